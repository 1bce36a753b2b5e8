"""The rule: from a finding to a verdict. Everything that decides stands on this page.

The claimed side of a claim's statistic begins at its margin, the smallest effect that would matter.

| word         | when                                                                                                          |
| ------------ | ------------------------------------------------------------------------------------------------------------- |
| holds        | the whole 95% interval lies on the claimed side, Holm-adjusted p ≤ .05 over the study's claims, the control is null |
| fails        | the whole interval lies on the other side of the margin: a precise zero fails; and the control is null          |
| inconclusive | the interval straddles the margin, or the control is not null                                                   |
| out of reach | the subject did not pass a gate on which the claim rests, or lacks what the claim needs                          |

A control is null when its own interval includes the null value, or lies wholly within ± margin of it (too small to matter). An equivalence
is the other way round: its control is a contrast known to differ, and must lie wholly outside the margin, else nothing could have been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nullius.errors import StudyError
from nullius.lab.claims import Claim, Expectation
from nullius.lab.findings import Finding
from nullius.lab.lab import Gate
from nullius.lab.statistics import Estimate, Interval, estimate, holm
from nullius.lab.studies import Study

Word = Literal["holds", "fails", "inconclusive", "out of reach"]
ALPHA = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the lab concludes about one claim on one subject. reason: one plain sentence."""

    claim: Claim
    word: Word
    reason: str
    effect: Interval | None = None
    control: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data (docs/records.md)."""
        return {
            "claim": self.claim.id,
            "digest": self.claim.digest,
            "wording": self.claim.wording,
            "statistic": self.claim.expect.statistic,
            "kind": self.claim.expect.kind,
            "margin": self.claim.expect.margin * (self.claim.expect.sign if self.claim.expect.kind not in ("at_least", "at_most") else 1),
            "control_wording": self.claim.control,
            "published": self.claim.published,
            "unit": self.claim.unit,
            "word": self.word,
            "reason": self.reason,
            "effect": self.effect.to_dict() if self.effect else None,
            "control": self.control.to_dict() if self.control else None,
            "p": self.p,
            "p_holm": self.p_holm,
            "note": self.note,
            "rests_on": list(self.claim.rests_on),
        }


def conclude(
    study: Study, findings: Mapping[str, Finding], gates: Sequence[Gate], *, parameters: float, chat: bool, full: bool
) -> list[Verdict]:
    """Return one verdict for each registered claim, in the study's order.

    parameters, chat, full: facts of the subject and the run that `Needs` speaks of. Holm's family is the claims within reach.
    Raises StudyError when a claim within reach was not reported.
    """
    barriers = {claim.id: _barrier(claim, gates, parameters, chat, full) for claim in study.claims}
    estimates: dict[str, Estimate] = {}
    for claim in study.claims:
        finding = findings.get(claim.id)
        if finding is None and barriers[claim.id] is None:
            raise StudyError(
                f"study '{study.slug}' left out claim '{claim.id}': every claim within reach must be reported with its control"
            )
        if finding is not None:
            seed = int(claim.digest[:8], 16)
            estimates[claim.id] = estimate(claim.expect, finding.treated, finding.control, finding.paired, seed=seed)
    within = [claim.id for claim in study.claims if barriers[claim.id] is None]
    adjusted = dict(zip(within, holm([estimates[claim_id].p for claim_id in within]), strict=True))
    verdicts = []
    for claim in study.claims:
        found, barrier, finding = estimates.get(claim.id), barriers[claim.id], findings.get(claim.id)
        note = finding.note if finding else ""
        if found is None:
            verdicts.append(Verdict(claim, "out of reach", barrier or ""))
            continue
        word, reason = ("out of reach", barrier) if barrier else decide(claim.expect, found, adjusted[claim.id])
        p_holm = adjusted.get(claim.id)
        verdicts.append(Verdict(claim, word, reason, found.effect, found.control, found.p, p_holm, note))  # type: ignore[arg-type]
    return verdicts


def decide(expect: Expectation, found: Estimate, p_holm: float) -> tuple[Word, str]:
    """Apply the rule to one claim within reach. Returns the word and the reason."""
    trouble = control_trouble(expect, found.control)
    side = _side(expect, found.effect)
    if side == 0:
        return "inconclusive", "the interval straddles the margin" + (f"; {trouble}" if trouble else "")
    if trouble:
        return "inconclusive", trouble
    if side < 0:
        return (
            "fails",
            "the whole interval lies short of the margin" if expect.kind != "equivalent" else "the whole interval lies outside the margin",
        )
    if p_holm > ALPHA:
        return "inconclusive", f"the interval is on the claimed side, but p = {p_holm:.3f} after Holm's correction"
    return "holds", "the whole interval lies on the claimed side and the control is null"


def _side(expect: Expectation, effect: Interval) -> int:
    """1: the interval lies wholly on the claimed side; −1: wholly on the other; 0: it straddles."""
    if expect.kind == "equivalent":
        if -expect.margin < effect.lo and effect.hi < expect.margin:
            return 1
        return -1 if effect.lo > expect.margin or effect.hi < -expect.margin else 0
    if expect.kind in ("at_least", "at_most"):
        boundary = expect.margin
        if expect.sign > 0:
            return 1 if effect.lo >= boundary else -1 if effect.hi < boundary else 0
        return 1 if effect.hi <= boundary else -1 if effect.lo > boundary else 0
    boundary = expect.sign * expect.margin
    if expect.sign > 0:
        return 1 if effect.lo > boundary else -1 if effect.hi < boundary else 0
    return 1 if effect.hi < boundary else -1 if effect.lo > boundary else 0


def control_trouble(expect: Expectation, control: Interval) -> str:
    """Return why the control is not null, or an empty string when it is."""
    if expect.kind == "equivalent":
        if control.lo > expect.margin or control.hi < -expect.margin:
            return ""
        return "the contrast known to differ was not seen to differ, so nothing could have been seen"
    band = expect.margin if expect.kind in ("above_control", "below_control", "trend", "correlation", "ordering") else 0.0
    null = expect.null
    if control.lo <= null <= control.hi or (null - band < control.lo and control.hi < null + band):
        return ""
    return f"the control is not null: {control.estimate:.3g} [{control.lo:.3g}, {control.hi:.3g}], expected {null:g}"


def _barrier(claim: Claim, gates: Sequence[Gate], parameters: float, chat: bool, full: bool) -> str | None:
    """Return why a claim is out of reach, or None."""
    needs = claim.needs
    if needs.also:
        return f"needs {needs.also}"
    if parameters < needs.parameters:
        return f"needs a subject of at least {needs.parameters / 1e9:.3g} B parameters; this one has {parameters / 1e9:.3g} B"
    if needs.chat and not chat:
        return "needs an instruction-tuned subject"
    if needs.full and not full:
        return "needs a run at full scale (--full)"
    for gate in gates:
        if not gate.passed and (not gate.claims or claim.id in gate.claims):
            return f"the subject cannot do this: {gate.what}: {gate.mean:.2f} [{gate.lo:.2f}, {gate.hi:.2f}], needed above {gate.above:.2f}"
    return None
