"""The rule: from a finding to a verdict. Everything that decides stands on this page.

The claimed side of a claim's statistic begins at its margin, the smallest effect that would matter.

| word         | when                                                                                                         |
| ------------ | ------------------------------------------------------------------------------------------------------------ |
| holds        | the whole 95 % interval lies on the claimed side, p after Holm over the study's claims is ≤ .05, control null  |
| fails        | the whole interval lies on the other side of the margin, so that a precise zero fails; control null            |
| inconclusive | the interval straddles the margin, or p after Holm is > .05, or the control is not null                        |
| out of reach | the claim's needs are not met, or the subject did not pass a gate on which it rests; numbers, if any, are kept |

| kind            | statistic                      | claimed side | control's statistic  | the control is null when its interval ...                 |
| --------------- | ------------------------------ | ------------ | -------------------- | --------------------------------------------------------- |
| above_control   | mean of treated − control      | > margin     | its mean             | includes null, or lies within null ± margin               |
| below_control   | mean of treated − control      | < −margin    | its mean             | includes null, or lies within null ± margin               |
| at_least        | mean                           | ≥ bound      | its mean             | includes null, or lies within a tenth of the way to the   |
| at_most         | mean                           | ≤ bound      | its mean             | bound; and in any case does not reach the bound           |
| correlation     | Spearman's or Pearson's        | beyond bound | its correlation      | includes 0, or lies within ± bound                        |
| trend           | Kendall's tau-b with level     | beyond ± margin | its tau-b         | includes 0, or lies within ± margin                       |
| ordering        | smallest adjacent difference   | > margin     | its smallest         | includes 0, or lies within ± margin                       |
| equivalent      | mean − to                      | within ± margin | its mean − to     | lies wholly outside ± margin: the difference known to be  |
|                 |                                |              |                      | there was seen, so that its absence means something       |

A control about which its samples say nothing (a single cluster, a constant variable) is not null: it could not have come out otherwise.
Under the null a claim is found to hold at most once in twenty, as is tested by simulation for every kind; see `nullius.lab.statistics` for how
intervals and p-values are made. Holm's family is the claims within reach; *fails* is decided by the claim's own interval alone.
"""

from __future__ import annotations

import math
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
TENTH = 0.1  # a control this small beside the way from null to the bound is too small to matter


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
            "margin": self.claim.expect.boundary,
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

    parameters, chat, full: facts of the subject and the run that `Needs` speaks of. Resampling is seeded with the claim's digest.
    Raises StudyError for a claim within reach that was not reported, a finding without control, and a claim never registered.
    """
    for claim_id, finding in findings.items():
        study.claim(claim_id)
        if not len(finding.control):
            raise StudyError(f"study '{study.slug}' reported claim '{claim_id}' without its control")
    barriers = {claim.id: barrier(claim, gates, parameters=parameters, chat=chat, full=full) for claim in study.claims}
    estimates: dict[str, Estimate] = {}
    for claim in study.claims:
        if claim.id in findings:
            found = findings[claim.id]
            estimates[claim.id] = estimate(claim.expect, found.treated, found.control, found.paired, seed=int(claim.digest[:8], 16))
        elif barriers[claim.id] is None:
            raise StudyError(
                f"study '{study.slug}' left out claim '{claim.id}': every claim within reach must be reported with its control"
            )
    within = [claim.id for claim in study.claims if barriers[claim.id] is None]
    adjusted = dict(zip(within, holm([estimates[claim_id].p for claim_id in within]), strict=True))
    return [_verdict(claim, findings.get(claim.id), estimates.get(claim.id), barriers[claim.id], adjusted) for claim in study.claims]


def _verdict(
    claim: Claim, finding: Finding | None, found: Estimate | None, out_of_reach: str | None, adjusted: Mapping[str, float]
) -> Verdict:
    word: Word = "out of reach"
    reason = out_of_reach or ""
    if found is None or finding is None:
        return Verdict(claim, word, reason)
    if out_of_reach is None:
        word, reason = decide(claim.expect, found, adjusted[claim.id])
    return Verdict(claim, word, reason, found.effect, found.control, found.p, adjusted.get(claim.id), finding.note)


def decide(expect: Expectation, found: Estimate, p_holm: float) -> tuple[Word, str]:
    """Apply the rule to one claim within reach. Returns the word and the reason."""
    low, high = claimed_side(expect)
    trouble = control_trouble(expect, found.control)
    effect = found.effect
    within = (low <= effect.lo and effect.hi <= high) if expect.kind in ("at_least", "at_most") else low < effect.lo and effect.hi < high
    beyond = effect.hi < low or effect.lo > high
    if effect.says_nothing:
        return "inconclusive", f"the samples say nothing of the effect ({effect.method})"
    if not within and not beyond:
        return "inconclusive", f"the interval is not wholly {expect.side}, nor wholly outside" + (f"; {trouble}" if trouble else "")
    if trouble:
        return "inconclusive", trouble
    if beyond:
        return "fails", f"no part of the interval is {expect.side}"
    if p_holm > ALPHA:
        return "inconclusive", f"the whole interval is {expect.side}, but p = {p_holm:.2g} after Holm's correction"
    return "holds", f"the whole interval is {expect.side}, and the control " + (
        "differs, as it must" if expect.kind == "equivalent" else "is null"
    )


def claimed_side(expect: Expectation) -> tuple[float, float]:
    """Return the ends of the range in which the claim says that the statistic lies."""
    if expect.kind == "equivalent":
        return -expect.margin, expect.margin
    return (expect.boundary, math.inf) if expect.sign > 0 else (-math.inf, expect.boundary)


def control_trouble(expect: Expectation, control: Interval) -> str:
    """Return why the control is not null, or an empty string when it is."""
    seen = f"{control.estimate:.3g} [{control.lo:.3g}, {control.hi:.3g}]"
    if control.says_nothing:
        return f"the samples say nothing of the control ({control.method})"
    if expect.kind == "equivalent":
        if control.lo > expect.margin or control.hi < -expect.margin:
            return ""
        return f"the contrast known to differ was not seen to differ by more than {expect.margin:g}: {seen}"
    null, band = expect.null, expect.margin
    if expect.kind in ("at_least", "at_most"):
        band = TENTH * abs(expect.margin - null)
        if (control.hi >= expect.margin) if expect.sign > 0 else (control.lo <= expect.margin):
            return f"the control's interval reaches the bound {expect.margin:g}: {seen}"
    if control.lo <= null <= control.hi or (null - band < control.lo and control.hi < null + band):
        return ""
    return f"the control is not null: {seen}, expected {null:g}"


def barrier(claim: Claim, gates: Sequence[Gate], *, parameters: float, chat: bool, full: bool) -> str | None:
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
