"""The one decorator that makes a function a study, and the way to find studies by name."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullius.errors import StudyError, UsageError, nearest
from nullius.lab.claims import Claim

if TYPE_CHECKING:
    from nullius.lab.lab import Lab


@dataclass(frozen=True)
class Option:
    """A choice that a study offers: a closed set of values, the first of which is the default."""

    name: str
    values: tuple[str, ...]
    help: str

    @property
    def default(self) -> str:
        return self.values[0]


@dataclass(frozen=True)
class Study:
    """The code that tests one paper's claims. `module` is where its claims and its prose live."""

    slug: str
    claims: tuple[Claim, ...]
    function: Callable[[Lab], None]
    module: str
    minutes: float  # expected wall time of a quick run on two CPU cores with the default subject
    trains_its_own: bool = False  # the study trains the network it measures, beside or instead of the given subject
    options: tuple[Option, ...] = ()
    subject: str = "smollm2-135m"  # the default subject

    def claim(self, claim_id: str) -> Claim:
        """Return a registered claim, or raise StudyError."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise StudyError(f"study '{self.slug}' never registered a claim '{claim_id}'; its claims: {', '.join(c.id for c in self.claims)}")

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raise UsageError for an option that the study does not offer, or a value outside its closed set."""
        known = {option.name: option.values for option in self.options}
        for name, value in options.items():
            if name not in known:
                raise UsageError(f"study '{self.slug}' has no option '{name}'; it has: {', '.join(known) or 'none'}")
            if value not in known[name]:
                raise UsageError(f"option '{name}' of '{self.slug}' takes {', '.join(known[name])}, not '{value}'")

    @property
    def source_hash(self) -> str:
        """SHA-256 (16 hex digits) of the study's module."""
        path = importlib.import_module(self.module).__file__
        assert path is not None
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]

    def __call__(self, lab: Lab) -> None:
        self.function(lab)


def study(
    slug: str,
    *,
    claims: tuple[Claim, ...],
    minutes: float = 2.0,
    trains_its_own: bool = False,
    options: tuple[Option, ...] = (),
    subject: str = "smollm2-135m",
) -> Callable[[Callable[[Lab], None]], Study]:
    """Make a function that takes a Lab a study of the paper `slug`.

    Raises StudyError for a study without claims, with two claims of one id, or with a claim without control.
    """
    ids = [claim.id for claim in claims]
    if not claims or len(set(ids)) != len(ids):
        raise StudyError(f"study '{slug}' needs claims with distinct ids, got {ids}")
    for claim in claims:
        if not claim.control.strip():
            raise StudyError(f"claim '{claim.id}' of '{slug}' names no control")

    def wrap(function: Callable[[Lab], None]) -> Study:
        return Study(slug, claims, function, function.__module__, minutes, trains_its_own, options, subject)

    return wrap


@cache
def modules() -> dict[str, str]:
    """Return slug → module name of every study, found by file name (`factual_recall.py` is `factual-recall`), nothing imported."""
    # by name and not by import: the lab stands below the studies and knows none of them
    root = importlib.import_module("nullius.studies").__path__
    found = {}
    for question in pkgutil.iter_modules(root, "nullius.studies."):
        folder = Path(root[0]) / question.name.rsplit(".", 1)[1]
        for module in pkgutil.iter_modules([str(folder)], question.name + "."):
            found[module.name.rsplit(".", 1)[1].replace("_", "-")] = module.name
    return found


def get(slug: str) -> Study:
    """Import and return the study of a paper, or raise UsageError with the nearest names."""
    if slug not in modules():
        raise UsageError(f"no study for '{slug}' yet{nearest(slug, modules())}; `nullius papers --runnable` lists those there are")
    for value in vars(importlib.import_module(modules()[slug])).values():
        if isinstance(value, Study) and value.slug == slug:
            return value
    raise StudyError(f"{modules()[slug]} defines no study named '{slug}'")


def question(slug: str) -> str:
    """Return the group of a study: mechanisms, representations, behaviour, ..."""
    return modules()[slug].split(".")[2]


def describe(claim: Claim) -> dict[str, Any]:
    """Return a claim as plain data, for JSON and for the page of a paper."""
    return {
        "id": claim.id,
        "wording": claim.wording,
        "statistic": claim.expect.statistic,
        "kind": claim.expect.kind,
        "margin": claim.expect.boundary,
        "expected": claim.expect.wording,
        "control": claim.control,
        "published": claim.published,
        "unit": claim.unit,
        "needs": needs(claim),
        "rests_on": list(claim.rests_on),
        "digest": claim.digest,
    }


def needs(claim: Claim) -> str:
    """Return what a claim needs of its subject and run, in words; empty when nothing."""
    wanted = claim.needs
    parts = [f"at least {wanted.parameters / 1e9:g} B parameters"] if wanted.parameters else []
    parts += ["an instruction-tuned subject"] if wanted.chat else []
    parts += ["a run at full scale"] if wanted.full else []
    parts += [wanted.also] if wanted.also else []
    return ", ".join(parts)
