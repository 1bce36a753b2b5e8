"""Claims: what a paper says, made testable before any data is seen.

A claim states a statistic, what is expected of it, and the control that must come out null. The expectation carries the smallest
effect that would matter (`margin`), so that a precise zero is a *fails* and not an everlasting *inconclusive*.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["above_control", "below_control", "at_least", "at_most", "correlation", "equivalent", "trend", "ordering"]


@dataclass(frozen=True)
class Expectation:
    """What is expected of a claim's statistic: the statistic itself, the boundary it must pass, and what "null" means for the control.

    Made by the functions below; the rule that turns it into a verdict stands in `nullius.lab.verdicts`.
    """

    kind: Kind
    statistic: str  # in words, shown beside the number
    margin: float = 0.0
    null: float = 0.0
    method: str = ""
    levels: tuple[str, ...] = ()
    sign: int = 1

    @property
    def boundary(self) -> float:
        """Where the claimed side begins: at `bound` itself, else at the margin in the claim's direction. An equivalence has one on each side."""
        return self.margin if self.kind in ("at_least", "at_most") else self.sign * self.margin

    @property
    def side(self) -> str:
        """The claimed side in words: above 0.2, at or below 0.1, within ±0.05."""
        if self.kind == "equivalent":
            return f"within ±{self.margin:g}"
        inclusive = "at or " if self.kind in ("at_least", "at_most") else ""
        return f"{inclusive}{'above' if self.sign > 0 else 'below'} {self.boundary + 0:g}"  # never -0

    @property
    def wording(self) -> str:
        """The whole expectation in words: the statistic, of which levels in which order, and the side on which it must lie."""
        order = (
            f" over {', '.join(self.levels)}" if self.kind == "trend" else f" in the order {' > '.join(self.levels)}" if self.levels else ""
        )
        return f"{self.statistic}{order}: {self.side}"


def above_control(margin: float = 0.0, *, null: float = 0.0) -> Expectation:
    """Mean of treated minus mean of control lies above `margin`, the smallest difference that would matter.

    The control is null when its own mean is compatible with `null` (0 for changes, chance for accuracies).
    """
    return Expectation("above_control", "mean of treated − control", margin, null)


def below_control(margin: float = 0.0, *, null: float = 0.0) -> Expectation:
    """Mean of treated minus mean of control lies below `-margin`. The control's mean must be compatible with `null`."""
    return Expectation("below_control", "mean of treated − control", margin, null, sign=-1)


def at_least(bound: float, *, null: float) -> Expectation:
    """Mean of treated is at least `bound`; the control's mean must be compatible with `null` (chance, say)."""
    return Expectation("at_least", "mean", bound, null)


def at_most(bound: float, *, null: float) -> Expectation:
    """Mean of treated is at most `bound`; the control's mean must be compatible with `null`."""
    return Expectation("at_most", "mean", bound, null, sign=-1)


def correlation_above(bound: float = 0.0, *, method: Literal["spearman", "pearson"] = "spearman") -> Expectation:
    """Correlation of pairs (x, y) lies above `bound`; the control's correlation must be compatible with 0."""
    return Expectation("correlation", f"{method.title()} correlation", bound, method=method)


def correlation_below(bound: float = 0.0, *, method: Literal["spearman", "pearson"] = "spearman") -> Expectation:
    """Correlation of pairs (x, y) lies below `bound` (0 or negative); the control's correlation must be compatible with 0."""
    return Expectation("correlation", f"{method.title()} correlation", -bound, method=method, sign=-1)


def equivalent(margin: float, *, to: float = 0.0) -> Expectation:
    """Mean of treated lies within `margin` of `to`.

    Absence of a difference means something only if a difference could have been seen: the control of an equivalence claim is a
    contrast known to differ, and it must come out *outside* the margin.
    """
    if margin <= 0:
        raise ValueError(f"equivalent() needs a margin above 0, got {margin}")
    return Expectation("equivalent", f"mean − {to:g}" if to else "mean", margin, to)


def trend(direction: Literal["increasing", "decreasing"], *levels: str, margin: float = 0.0) -> Expectation:
    """Values rise (or fall) monotonically over the ordered `levels`: Kendall's tau-b between level and value, above `margin`."""
    return Expectation("trend", "Kendall's tau-b with level", margin, levels=levels, sign=1 if direction == "increasing" else -1)


def ordering(*levels: str, margin: float = 0.0) -> Expectation:
    """The means of the conditions fall strictly in the order given (largest first): the smallest adjacent difference is above `margin`.

    An intersection-union test: each adjacent difference is tested at full level and all must pass.
    """
    if len(levels) < 2:
        raise ValueError("ordering() needs at least two conditions")
    return Expectation("ordering", "smallest adjacent difference of means", margin, levels=levels)


@dataclass(frozen=True)
class Needs:
    """What a subject must have for a claim to be within reach; where it lacks something the verdict is *out of reach*, with the reason.

    `parameters`: least number of parameters. `chat`: an instruction-tuned subject. `full`: only at full scale.
    `also`: anything that no program can check on the subject alone ("a size ladder of one family"); never met by a single run.
    """

    parameters: float = 0.0
    chat: bool = False
    full: bool = False
    also: str = ""


@dataclass(frozen=True)
class Claim:
    """One testable sentence of a paper.

    id: short name, unique in its study. wording: the sentence. expect: see the functions above. control: the negative control in words.
    published: the paper's own value, shown beside ours, never used to decide. unit: of the statistic. needs: see `Needs`.
    rests_on: instruments, by name, whose calibration is shown beside the verdict.
    """

    id: str
    wording: str
    expect: Expectation
    control: str
    published: float | str | None = None
    unit: str = ""
    needs: Needs = Needs()
    rests_on: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) of wording, statistic, expectation and control: reword a claim and old verdicts stay with old words."""
        words = {"wording": self.wording, "expect": asdict(self.expect), "control": self.control}
        return hashlib.sha256(json.dumps(words, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
