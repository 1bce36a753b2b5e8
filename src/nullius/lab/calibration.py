"""Calibration: does an instrument find what is there, and nothing else? Asked where the right answer is known by construction.

A case plants something (a head that carries the answer, a direction) and leaves the rest null. It is one function:

    @case("path patching", planted="the heads on the path", null="all other heads", modules=("paths",))
    def induction_paths(seed: int) -> Trial:
        ...
        return Trial(found=2, planted=2, alarms=0, nulls=14)

`nullius calibrate` runs all cases over their seeds and stores, for each instrument, how many planted things it recovered and how many null ones it
took for real, with 95 % intervals over seeds: what one seed draws (a model, its texts) is shared by all that it plants, so that its things are not
independent. A case marked `by_nature` shows where an instrument falls short whatever its code: it is shown in words, and does not count towards the
goals. docs/calibration.md says how to add a case.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import nullius
from nullius.errors import StudyError, UsageError, nearest

RECOVERY_GOAL, ALARM_GOAL = 0.95, 0.05
OK, SHORT, STALE, NEVER = "ok", "falls short", "older than the instrument's code", "never calibrated"
INSTRUMENTS = Path(nullius.__file__).parent / "instruments"
ROOMS = ("training",)  # rooms beside it whose modules an instrument may be made of, named with their room: "training.parts"


@dataclass(frozen=True)
class Trial:
    """What one seed gave: `found` of `planted` things recovered, `alarms` among `nulls` things that are not there."""

    found: int
    planted: int
    alarms: int
    nulls: int

    def __post_init__(self) -> None:
        for name in ("found", "planted", "alarms", "nulls"):
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's numbers cannot be stored
        if not (0 <= self.found <= self.planted and 0 <= self.alarms <= self.nulls):
            raise StudyError(
                f"a trial cannot find {self.found} of {self.planted} planted things and raise {self.alarms} of {self.nulls} alarms"
            )

    def __add__(self, other: Trial) -> Trial:
        return Trial(self.found + other.found, self.planted + other.planted, self.alarms + other.alarms, self.nulls + other.nulls)


@dataclass(frozen=True)
class Case:
    """A calibration case.

    instrument: its name as in claims' `rests_on`. planted, null: what is there and what is not, and by which rule it is called found. modules: the
    instrument's modules in nullius/instruments (or in nullius/training: "training.parts"), whose code, with what it imports there, is hashed.
    seeds: how many, from 0. by_nature: empty, or why it must fall short here. run: seed → Trial.
    """

    instrument: str
    name: str
    planted: str
    null: str
    modules: tuple[str, ...]
    seeds: int
    by_nature: str
    run: Callable[[int], Trial]


_CASES: dict[tuple[str, str], Case] = {}


def case(
    instrument: str, *, planted: str, null: str, modules: Sequence[str], seeds: int = 10, by_nature: str = ""
) -> Callable[[Callable[[int], Trial]], Callable[[int], Trial]]:
    """Register a function seed → Trial as a calibration case. Arguments as in `Case`.

    Raises StudyError where a module does not exist or the instrument has a case of that name already.
    """

    def register(run: Callable[[int], Trial]) -> Callable[[int], Trial]:
        for module in modules:
            if _path(module) is None:
                raise StudyError(f"calibration case '{run.__name__}' names nullius.instruments.{module}, which does not exist")
        key = (instrument, run.__name__)
        if key in _CASES and _CASES[key].run.__module__ != run.__module__:
            raise StudyError(f"{instrument} has two calibration cases named '{run.__name__}'")
        _CASES[key] = Case(instrument, run.__name__, planted, null, tuple(modules), seeds, by_nature, run)
        return run

    return register


@cache
def _load() -> None:
    from nullius.lab import calibrations

    for module in pkgutil.iter_modules(calibrations.__path__):
        importlib.import_module(f"{calibrations.__name__}.{module.name}")


def cases(instruments: Sequence[str] = ()) -> list[Case]:
    """Every case of `nullius.lab.calibrations`, or those of some instruments, by instrument. Raises UsageError for an instrument without cases."""
    _load()
    known = {instrument for instrument, _ in _CASES}
    for name in instruments:
        if name not in known:
            raise UsageError(f"no calibration case for '{name}'{nearest(name, known)}; there are: {', '.join(sorted(known))}")
    return [found for (instrument, _), found in sorted(_CASES.items()) if not instruments or instrument in instruments]


@dataclass(frozen=True)
class Ran:
    """A case's trials over its seeds, summed up."""

    case: Case
    trials: tuple[Trial, ...]
    seconds: float

    @property
    def total(self) -> Trial:
        """All trials together."""
        return sum(self.trials, Trial(0, 0, 0, 0))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data (docs/calibration.md)."""
        about = {"name": self.case.name, "planted": self.case.planted, "null": self.case.null, "by_nature": self.case.by_nature}
        return {**about, "seeds": self.case.seeds, "seconds": round(self.seconds, 2), **rates(self.trials)}


def run_case(one: Case, on_seed: Callable[[int, int], None] | None = None) -> Ran:
    """Run a case over its seeds."""
    started, trials = time.monotonic(), []
    for seed in range(one.seeds):
        trials.append(one.run(seed))
        if on_seed is not None:
            on_seed(seed + 1, one.seeds)
    return Ran(one, tuple(trials), time.monotonic() - started)


def row(ran: Sequence[Ran]) -> dict[str, Any]:
    """Put the cases of one instrument together as the row that is stored and shown. Cases that fail by nature stand beside its rates, not in them."""
    instrument = ran[0].case.instrument
    trials = [trial for one in ran if not one.case.by_nature for trial in one.trials]
    modules = sorted({module for one in ran for module in one.case.modules})
    found = {
        "name": instrument,
        "title": instrument,
        "about": "; ".join(one.case.planted for one in ran if not one.case.by_nature),
        **rates(trials),
        "cases": [one.to_dict() for one in ran if not one.case.by_nature],
        "by_nature": [one.to_dict() for one in ran if one.case.by_nature],
        "last": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "version": nullius.__version__,
        "modules": modules,
        "code": code_digest(modules),
        "seconds": round(sum(one.seconds for one in ran), 2),
    }
    return {**found, "state": OK if meets_goals(found) else SHORT}


def rates(trials: Sequence[Trial]) -> dict[str, Any]:
    """Recovery and false alarms as counts with their 95 % intervals over trials; None where nothing was planted, or nothing was null."""
    return {
        "recovered": _rate([(one.found, one.planted) for one in trials]),
        "alarms": _rate([(one.alarms, one.nulls) for one in trials]),
    }


def _rate(counts: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """A rate over trials that each drew anew, as (found, of) of each, with its interval: that of Clopper and Pearson, each trial counting as one.

    It is theirs, exactly, where every trial has one thing. Where it has several, their share lies between 0 and 1, and no variable there varies more
    than one that is 0 or 1 with the same mean: the interval covers whatever the things of one trial have in common. Trials of unlike sizes count as
    (Σ of)² / Σ of² equal ones (Kish).
    """
    counts = [(found, of) for found, of in counts if of]
    if not counts:
        return None
    from scipy.stats import beta

    found, of = sum(found for found, _ in counts), sum(of for _, of in counts)
    worth = of**2 / sum(of**2 for _, of in counts)
    hits = found / of * worth
    lo = float(beta.ppf(0.025, hits, worth - hits + 1)) if found else 0.0
    hi = float(beta.ppf(0.975, hits + 1, worth - hits)) if found < of else 1.0
    return {"found": found, "of": of, "trials": len(counts), "lo": lo, "hi": hi}


def meets_goals(found: dict[str, Any]) -> bool:
    """Whether the recovery rate is at least 0.95 and the false-alarm rate at most 0.05 (the rates seen; their intervals say how sure that is)."""
    hits, alarms = found["recovered"], found["alarms"]
    recovers = hits is not None and hits["found"] >= RECOVERY_GOAL * hits["of"]
    return bool(recovers and alarms is not None and alarms["found"] <= ALARM_GOAL * alarms["of"])


def calibrate(instruments: Sequence[str] = (), on_step: Callable[[str, int, int], None] | None = None) -> list[dict[str, Any]]:
    """Run the cases of all instruments (or of some), store each instrument's row in the journal, and return the rows, by instrument.

    on_step(label, done, total): told after each seed.
    """
    chosen = cases(instruments)
    total, done, rows = sum(one.seeds for one in chosen), 0, []
    for name in dict.fromkeys(one.instrument for one in chosen):
        ran = []
        for one in (one for one in chosen if one.instrument == name):

            def tell(seed: int, _of: int, before: int = done, label: str = f"{name}: {one.name}") -> None:
                if on_step is not None:
                    on_step(label, before + seed, total)

            ran.append(run_case(one, tell))
            done += one.seeds
        rows.append(row(ran))
        _store(rows[-1])
    return rows


def _store(found: dict[str, Any]) -> None:
    from nullius.lab.schema import calibration, writing

    with writing() as connection:
        connection.execute(calibration.insert().values(instrument=found["name"], at=found["last"], code=found["code"], detail=found))


def latest() -> dict[str, dict[str, Any]]:
    """Return instrument → its newest stored row, its state being what holds now: a calibration older than the instrument's code says so."""
    import sqlalchemy as sa

    from nullius.lab.schema import calibration, reading

    newest: dict[str, dict[str, Any]] = {}
    with reading() as connection:
        for found in connection.execute(sa.select(calibration.c.detail).order_by(calibration.c.at, calibration.c.id)).scalars():
            newest[found["name"]] = found
    return {name: {**found, "state": _state(found)} for name, found in newest.items()}


def _state(found: dict[str, Any]) -> str:
    return STALE if code_digest(found["modules"]) != found["code"] else OK if meets_goals(found) else SHORT


def lines_of(resting: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return instrument → line for all that claims or verdicts (plain data, with `rests_on`) rest on."""
    names = {name for entry in resting for name in entry.get("rests_on") or ()}
    stored = latest() if names else {}
    return {name: line(name, stored.get(name)) for name in names}


def line(name: str, found: dict[str, Any] | None) -> str:
    """Say an instrument's calibration (its row of `latest`): `path patching: recovers 48/50 planted, 1/200 false alarms (calibrated 3 days ago)`."""
    if found is None:
        return f"{name} (never calibrated on this machine: nullius calibrate)"
    hits, alarms = found["recovered"], found["alarms"]
    said = [f"recovers {hits['found']}/{hits['of']} planted"] if hits else []
    said += [f"{alarms['found']}/{alarms['of']} false alarms"] if alarms else []
    notes = [f"calibrated {ago(found['last'])}"]
    notes += ["calibration is older than the instrument's code"] if found["state"] == STALE else []
    notes += ["falls short of the goals"] if found["state"] != STALE and not meets_goals(found) else []
    return f"{name}: {', '.join(said)} ({'; '.join(notes)})"


def ago(when: str, now: datetime | None = None) -> str:
    """Say how long ago an ISO time was: just now, 5 minutes ago, 3 days ago."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(when)).total_seconds()
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"


def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 (16 hex digits) of the source of modules (`Case.modules`) and of all that they import in these rooms; nothing is imported for it."""
    waiting = list(modules)
    seen: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in seen:
            continue
        seen[name] = path.read_bytes() if path is not None else b"gone"
        waiting += _imports(seen[name].decode("utf-8"))
    whole = hashlib.sha256()
    for name, source in sorted(seen.items()):
        whole.update(name.encode() + b"\0" + source + b"\0")
    return whole.hexdigest()[:16]


def _path(module: str) -> Path | None:
    parts = module.split(".")
    base = INSTRUMENTS.parent.joinpath(*parts) if parts[0] in ROOMS else INSTRUMENTS.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def _imports(source: str) -> tuple[str, ...]:
    """Names of modules of nullius.instruments, and of ROOMS, that a source imports."""
    found = []
    for room, before in (("instruments", ""), *((room, f"{room}.") for room in ROOMS)):
        names = re.findall(rf"^\s*from nullius\.{room}\.([\w.]+) import", source, re.M)
        for several in re.findall(rf"^\s*from nullius\.{room} import (\([^)]*\)|[^\n]*)", source, re.M):
            names += [name.split(" as ")[0].strip() for name in several.strip("()").replace("\n", " ").split(",")]
        found += [before + name for name in names if name]
    return tuple(found)
