"""The lab as a study sees it: a subject, a seed, a scale, and the places where samples, gates, notes and the figure are handed over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from nullius.errors import StudyError
from nullius.lab.claims import Claim
from nullius.lab.figures import Figure
from nullius.lab.findings import Finding, Reported, samples
from nullius.lab.statistics import mean_interval
from nullius.lab.studies import Study

if TYPE_CHECKING:
    from nullius.models.language_model import LanguageModel

T = TypeVar("T")


class OutOfReach(Exception):
    """Ends a study whose subject did not pass a gate. Raised by `Lab.require`, caught by the runner."""


class Listener(Protocol):
    """Receives progress; the command line draws it, the journal stores it."""

    def step(self, label: str, done: int, total: int | None) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A listener that shows nothing."""

    def step(self, label: str, done: int, total: int | None) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Gate:
    """A requirement on the subject: what was asked, what was seen. `claims` empty means all of the study's."""

    what: str
    mean: float
    lo: float
    hi: float
    above: float
    passed: bool
    claims: tuple[str, ...]


@dataclass
class Lab:
    """Handed to a study. The study measures; the lab does the statistics and gives the verdicts (after the study returns)."""

    study: Study
    subject: LanguageModel
    seed: int = 0
    full: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    listener: Listener = field(default_factory=Silent)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.findings: dict[str, Finding] = {}
        self.gates: list[Gate] = []
        self.notes: list[str] = []
        self.figures: list[Figure] = []
        self.study.check_options(self.options)

    def scale(self, *, quick: T, full: T) -> T:
        """Return `full` at full scale, else `quick`."""
        return full if self.full else quick

    def option(self, name: str) -> str:
        """Return the chosen value of one of the study's declared options."""
        for option in self.study.options:
            if option.name == name:
                return self.options.get(name, option.default)
        raise StudyError(f"study '{self.study.slug}' declares no option '{name}'")

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, showing how many are done."""
        if total is None and isinstance(items, Sequence):
            total = len(items)
        self.listener.step(label, 0, total)
        for done, item in enumerate(items, 1):
            yield item
            self.listener.step(label, done, total)

    def note(self, text: str) -> None:
        """Add a sentence to the record: what was chosen, what was dropped and why."""
        self.notes.append(text)
        self.listener.note(text)

    def figure(self, figure: Figure) -> None:
        """Add a figure to the run. The first one is the run's face."""
        self.figures.append(figure)

    def require(
        self, accuracy: ArrayLike, *, above: float, what: str, claims: Sequence[str] = (), clusters: Sequence | None = None
    ) -> bool:
        """Gate: the subject must do the task at all, its accuracy's whole 95% interval lying above `above` (chance).

        accuracy: per-item scores [n]; none where the subject cannot even be asked, which does not pass. what: the task in words. claims: those that
        rest on it (default: the whole study).
        Returns whether it passed. When the whole study rests on it and it did not pass, the study ends here, out of reach.
        """
        for claim_id in claims:
            self.study.claim(claim_id)
        scores = np.asarray(accuracy, dtype=np.float64)
        interval = mean_interval(scores if len(scores) else np.zeros(1), clusters)
        gate = Gate(what, interval.estimate, interval.lo, interval.hi, above, interval.lo > above, tuple(claims))
        self.gates.append(gate)
        if not gate.passed and not claims:
            raise OutOfReach(what)
        return gate.passed

    def finding(
        self,
        claim: str,
        *,
        treated: Reported,
        control: Reported,
        clusters: Sequence | Mapping[str, Sequence] | None = None,
        control_clusters: Sequence | Mapping[str, Sequence] | None = None,
        paired: bool | None = None,
        note: str = "",
    ) -> None:
        """Report a claim's per-item samples and those of its control.

        treated, control: see `nullius.lab.findings.samples`. clusters: what items share (a country, a template); the control uses the same
        when `control_clusters` is None and the lengths agree. paired: item i of both is the same stimulus (default: lengths agree).
        Raises StudyError for a claim never registered or reported twice, or for samples that do not fit its statistic.
        """
        registered: Claim = self.study.claim(claim)
        if claim in self.findings:
            raise StudyError(f"claim '{claim}' of '{self.study.slug}' was reported twice")
        book: dict[object, int] = {}
        a = samples(registered, treated, clusters, "treated", book)
        same_shape = _shape(treated) == _shape(control)
        shared = clusters if control_clusters is None and same_shape else control_clusters
        b = samples(registered, control, shared, "control", book)
        paired = same_shape if paired is None else paired
        if paired and not same_shape:
            raise StudyError(f"claim '{claim}': paired samples of different lengths, {len(a)} and {len(b)}")
        self.findings[claim] = Finding(claim, a, b, paired, note)


def _shape(reported: Any) -> Any:
    if isinstance(reported, Mapping):
        return {name: len(values) for name, values in reported.items()}
    if isinstance(reported, tuple):
        return tuple(len(values) for values in reported)
    return len(reported)
