"""Activation patching over whole grids of sites, exactly, without the work that mathematics makes unnecessary (see `wavefront`).

`residual` asks at which layer and position the difference between two runs lives in the residual stream; `heads` asks which heads carry it.
Base and source texts are pairs of equal length. Denoising: the base is the corrupted text, the source the clean one; noising: the reverse.
Every sweep checks itself: some random cells are run the plain way, whole, and must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.instruments import taps, wavefront
from nullius.models.language_model import Batch, LanguageModel

Metric = Callable[[Tensor], Tensor]
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


def difference(logits: Tensor) -> Tensor:
    """Logit of the first answer minus that of the second: [rows, 2] → [rows]."""
    return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True)
class Sweep:
    """values: the metric with each cell patched, [n, layers, columns] (columns: positions or heads). base, source: the metric of the plain
    runs [n]. checked: cells that were also run the plain way; gap: the largest difference seen there."""

    values: Tensor
    base: Tensor
    source: Tensor
    checked: int
    gap: float

    def restored(self) -> Tensor:
        """Mean over pairs of (patched − base) / (source − base): 0 no effect, 1 all of the difference. [layers, columns].

        Raises UsageError when base and source do not differ.
        """
        whole = (self.source - self.base).mean()
        if abs(float(whole)) < 1e-6:
            raise UsageError("base and source give the same metric: there is no difference to trace")
        return (self.values - self.base[:, None, None]).mean(0) / whole


@torch.no_grad()
def residual(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    *,
    site: Literal["resid_pre", "attn_out", "mlp_out"] = "resid_pre",
    metric: Metric = difference,
    max_rows: int = 512,
    checks: int = 4,
) -> Sweep:
    """Patch one site at each layer and position. answers: token ids [n, k] whose logits the metric reads at the last position.

    Positions before the first token in which the pairs differ cannot matter and are not run: their cells hold the base's value.
    max_rows: sequences in one forward pass. Raises UsageError for pairs of unequal length, NulliusError when a checked cell disagrees.
    """
    pair = Pair(model, base, source, answers, metric)
    n_layers, length = model.anatomy.n_layers, pair.length
    kept = taps.read(model, pair.source, [site], positions="all")[site]
    values = pair.metric_base[:, None, None].repeat(1, n_layers, length)
    group = max(1, max_rows // pair.n)
    for start in range(pair.first, length):

        def write(layer: int, x: Tensor, start: int = start) -> None:
            x[:, 0] = kept[layer][:, start]

        for layers in _groups(n_layers, group):
            out = wavefront.wave(model, pair.run, start, layers, 1, site, write)
            values[:, layers, start] = pair.measure(out).squeeze(1).T

    def plain(layer: int, column: int) -> Tensor:
        def patch(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, column] = kept[layer][:, column]
            return x

        return pair.plain(site, layer, patch)

    return pair.checked(values, plain, checks)


@torch.no_grad()
def heads(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    *,
    metric: Metric = difference,
    max_rows: int = 512,
    checks: int = 4,
) -> Sweep:
    """Patch one head's output z at all positions, for each layer and head. Arguments and errors as in `residual`."""
    pair = Pair(model, base, source, answers, metric)
    n_layers, n_heads = model.anatomy.n_layers, model.anatomy.n_heads
    kept = taps.read(model, pair.source, ["z"], positions="all")["z"]
    values = pair.metric_base[:, None, None].repeat(1, n_layers, n_heads)

    def write(layer: int, x: Tensor) -> None:
        by_copy = x.unflatten(0, (n_heads, pair.n))
        for head in range(n_heads):
            by_copy[head, :, :, head] = kept[layer][:, pair.first :, head]

    if pair.first < pair.length:
        for layers in _groups(n_layers, max(1, max_rows // (pair.n * n_heads))):
            out = wavefront.wave(model, pair.run, pair.first, layers, n_heads, "z", write)
            values[:, layers] = pair.measure(out).permute(2, 0, 1)

    def plain(layer: int, column: int) -> Tensor:
        def patch(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :, column] = kept[layer][:, :, column]
            return x

        return pair.plain("z", layer, patch)

    return pair.checked(values, plain, checks)


def _groups(n_layers: int, size: int) -> list[list[int]]:
    return [list(range(i, min(i + size, n_layers))) for i in range(0, n_layers, size)]


class Pair:
    """Base and source texts, their plain runs, and the metric. Made without gradients."""

    @torch.no_grad()
    def __init__(
        self,
        model: LanguageModel,
        base: Sequence[str] | Batch,
        source: Sequence[str] | Batch,
        answers: Sequence[Sequence[int]],
        metric: Metric,
    ) -> None:
        self.model, self.metric = model, metric
        self.base, self.source = (texts if isinstance(texts, Batch) else model.encode(texts) for texts in (base, source))
        _check_lengths(model, self.base, self.source)
        self.n, self.length = self.base.input_ids.shape
        self.answers = torch.as_tensor(answers, device=model.device)
        if self.answers.ndim != 2 or len(self.answers) != self.n:
            raise UsageError(f"answers must be token ids [{self.n}, k], one row for each pair; got {list(self.answers.shape)}")
        differs = (self.base.input_ids != self.source.input_ids).any(0).nonzero()
        self.first = int(differs[0]) if len(differs) else self.length
        self.run = wavefront.run_base(model, self.base)
        self.metric_base = metric(model.logits(self.base).float().gather(1, self.answers))
        self.metric_source = metric(model.logits(self.source).float().gather(1, self.answers))
        seen = self.measure(self.run.last[None, None])[0, 0]
        if float((seen - self.metric_base).abs().max()) > TOLERANCE[model.dtype]:
            raise SubjectError(f"{model.name} makes its logits from the final norm in a way that this sweep does not know")

    def measure(self, last: Tensor) -> Tensor:
        """The metric from the final norm's output [a, b, n, d_model] → [a, b, n]; only the answers' vocabulary rows are used."""
        anatomy = self.model.anatomy
        rows = anatomy.unembedding()[self.answers]  # [n, k, d_model]
        logits = torch.einsum("abnd,nkd->abnk", last, rows).float()
        bias = getattr(anatomy.unembed, "bias", None)
        if bias is not None:
            logits = logits + bias[self.answers].float()
        if anatomy.logit_softcap:
            logits = anatomy.logit_softcap * torch.tanh(logits / anatomy.logit_softcap)
        return self.metric(logits.flatten(0, 2)).view(last.shape[:3])

    def plain(self, site: str, layer: int, patch: Callable[[Tensor], Tensor]) -> Tensor:
        """One cell as anyone would run it: the whole text, all layers [n]."""
        with taps.edit(self.model, site, layer, patch):
            return self.metric(self.model.logits(self.base).float().gather(1, self.answers))

    def checked(self, values: Tensor, plain: Callable[[int, int], Tensor], checks: int) -> Sweep:
        """Run random cells the plain way; raise NulliusError when one disagrees."""
        generator = torch.Generator().manual_seed(0)
        gap = 0.0
        for _ in range(checks):
            layer, column = (int(torch.randint(extent, (1,), generator=generator)) for extent in values.shape[1:])
            gap = max(gap, float((values[:, layer, column] - plain(layer, column)).abs().max()))
        if gap > TOLERANCE[self.model.dtype]:
            raise NulliusError(f"the sweep on {self.model.name} disagrees with plain runs by {gap:.2g}: please report this model")
        return Sweep(values, self.metric_base, self.metric_source, checks, gap)


def _check_lengths(model: LanguageModel, base: Batch, source: Batch) -> None:
    """Pairs must have one length, without padding: a patch at a position must mean the same in both texts."""
    if base.input_ids.shape[0] != source.input_ids.shape[0]:
        raise UsageError(f"{base.input_ids.shape[0]} base texts but {source.input_ids.shape[0]} source texts")
    lengths = torch.stack([base.attention_mask.sum(1), source.attention_mask.sum(1)], 1)
    for i, (a, b) in enumerate(lengths.tolist()):
        if a != b or a != int(lengths[0, 0]):
            sides = [
                " | ".join(model.tokenizer.convert_ids_to_tokens(side.input_ids[i][side.attention_mask[i] > 0].tolist()))
                for side in (base, source)
            ]
            raise UsageError(
                f"pair {i} does not have the length of the others ({a} and {b} tokens):\n  base    {sides[0]}\n  source  {sides[1]}"
            )
