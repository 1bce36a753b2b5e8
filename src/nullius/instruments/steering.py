"""Steering: a direction added to the stream while the model writes, at each new token, in units of the stream's own size.

h ← h + α · RMS(h) · v, with v of unit length and RMS the root mean square of the very state that is steered; α is the *dose*. Doses and vectors
may differ from row to row, so that a whole dose–response curve is a few batches. A steered model that has stopped to speak is no effect: measure
fluency beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import indices
from nullius.instruments.directions import unit
from nullius.instruments.interventions import Intervention, written
from nullius.instruments.where import Cells, Where
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding. least, most: new tokens; repetition_penalty and no_repeat: as in transformers (1 and 0: none)."""

    most: int
    least: int = 0
    repetition_penalty: float = 1.0
    no_repeat: int = 0


def by_rms(where: Where, vector: Tensor, dose: float | Tensor) -> Intervention:
    """Add dose × RMS(h) × the unit vector to a part. vector: for all rows [width], or one for each row [rows, width]; dose: a number, or [rows]."""

    vector, by = indices.numbers("vector", vector), dose if isinstance(dose, (int, float)) else indices.numbers("dose", dose)

    def change(part: Tensor, cells: Cells) -> Tensor:
        size = part.float().square().mean(-1, keepdim=True).sqrt().to(part.dtype)
        return part + cells.by_row(by, part) * size * cells.spread(unit(vector), part)

    return Intervention(where, change, {"vector": vector})


def steer(vectors: Mapping[int, Tensor], dose: float | Tensor, site: str = "resid_post") -> list[Intervention]:
    """Steer layers at the newest token of every pass: the last one of the prompt, then each new one. vectors: layer → [width] or [rows, width]."""
    if not vectors:
        raise UsageError("nothing to steer with: give a vector for one layer at least")
    return [by_rms(Where(site, layer, positions="last"), vector, dose) for layer, vector in vectors.items()]


def write(model: LanguageModel, texts: Sequence[str], interventions: Sequence[Intervention], decoding: Decoding) -> list[str]:
    """Continuations under interventions, without the prompts. One batch: row i of an intervention is texts[i]. Errors as in `generate`."""
    return written(
        model,
        texts,
        interventions,
        max_new_tokens=decoding.most,
        min_new_tokens=decoding.least,
        repetition_penalty=decoding.repetition_penalty,
        no_repeat_ngram_size=decoding.no_repeat,
    )


Measure = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]  # prompts, continuations → a number for each


@dataclass(frozen=True)
class DoseResponse:
    """doses [k]; measures: name → [k, n], the effect and the fluency beside it; texts [k][n]."""

    doses: tuple[float, ...]
    measures: dict[str, NDArray[np.float64]]
    texts: tuple[tuple[str, ...], ...]


def dose_response(
    model: LanguageModel,
    prompts: Sequence[str],
    vectors: Mapping[int, Tensor],
    doses: Sequence[float],
    measures: Mapping[str, Measure],
    decoding: Decoding,
    site: str = "resid_post",
) -> DoseResponse:
    """Write from every prompt at every dose and measure what was written. Dose 0 is the model as it is.

    Raises UsageError without a prompt or a dose, for a measure that does not give one number for each prompt, and as `write`.
    """
    if not doses or not prompts:
        raise UsageError("a dose-response curve needs a prompt and a dose at least")
    texts = [write(model, prompts, steer(vectors, dose, site) if dose else [], decoding) for dose in doses]
    found = {name: np.stack([measure(prompts, some) for some in texts]) for name, measure in measures.items()}
    wrong = next((name for name, values in found.items() if values.shape != (len(doses), len(prompts))), None)
    if wrong is not None:
        raise UsageError(
            f"measure '{wrong}' gives {list(found[wrong].shape[1:])} numbers for {len(prompts)} prompts: one for each is wanted"
        )
    return DoseResponse(tuple(doses), found, tuple(map(tuple, texts)))
