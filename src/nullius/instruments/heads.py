"""Attention heads: what each writes towards an answer (direct logit attribution), and what happens when it is turned up, down or off.

Everything here is about a *contrast*: prompts with two rival answers, `first` and `second`, of one token each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nullius.instruments import resume, taps
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True, order=True)
class Head:
    """A query head; written 15.7 for layer 15, head 7."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


@dataclass(frozen=True, order=True)
class Scaling:
    """One head's value output times a factor."""

    head: Head
    factor: float

    def __str__(self) -> str:
        return f"head {self.head} × {self.factor:g}"


Setting = Scaling | None  # None: the subject as it is


@dataclass(frozen=True)
class Contrast:
    """Prompts [n], each with two rival next tokens [n]."""

    prompts: tuple[str, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def against(self, first: Sequence[int], second: Sequence[int]) -> Contrast:
        """Return the same prompts with other answers."""
        return Contrast(self.prompts, tuple(first), tuple(second))

    def with_others(self, tokens: Sequence[int], rng: np.random.Generator) -> Contrast:
        """Return the same prompts, each with two different answers drawn from `tokens` that are neither of its own: a null contrast."""
        pool = sorted(set(tokens))
        pairs = [
            rng.choice([token for token in pool if token not in own], 2, replace=False).tolist()
            for own in zip(self.first, self.second, strict=True)
        ]
        return self.against([pair[0] for pair in pairs], [pair[1] for pair in pairs])


@dataclass(frozen=True)
class Outcome:
    """What a subject answers under each setting, by prompt: greedy next token and logit(first) − logit(second) [settings, n]."""

    contrast: Contrast
    token: np.ndarray
    difference: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """1 where the greedy answer is `first` [settings, n]."""
        return (self.token == np.array(self.contrast.first)).astype(float)

    @property
    def second(self) -> np.ndarray:
        """1 where the greedy answer is `second` [settings, n]."""
        return (self.token == np.array(self.contrast.second)).astype(float)


@torch.no_grad()
def attribution(model: LanguageModel, contrast: Contrast, batch_size: int = 32) -> Tensor:
    """Direct logit attribution at the last position: what each head writes for `first` over `second`, in logits [n, layers, heads].

    ΔA_h = (z_h W_O^h) · (u_first − u_second), where the final norm is the linear map that it was in this very forward pass (its gain, and the
    scale it had), and so is a norm between attention and residual stream (Gemma, OLMo 2). Summed over everything that writes to the
    residual stream, ΔA is the logit difference itself (before a soft-cap). Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits". What later layers make of a head's output is not part of it: check with `effect_of_ablation`.
    """
    anatomy = model.anatomy
    unembedding = anatomy.unembedding()
    out = torch.zeros(len(contrast), anatomy.n_layers, anatomy.n_heads)
    norms: dict[int, nn.Module] = {-1: anatomy.final_norm}
    for layer in range(anatomy.n_layers):
        writer = anatomy.site("attn_out", layer).module
        if writer is not anatomy.attn(layer):
            norms[layer] = writer
    for chosen in model.by_length(contrast.prompts, batch_size):
        into: dict[int, Tensor] = {}
        handles = [norm.register_forward_pre_hook(partial(_keep_last, into, layer)) for layer, norm in norms.items()]
        try:
            z = taps.read(model, model.encode([contrast.prompts[i] for i in chosen]), ["z"])["z"].float()
        finally:
            for handle in handles:
                handle.remove()
        direction = (unembedding[[contrast.first[i] for i in chosen]] - unembedding[[contrast.second[i] for i in chosen]]).float()
        direction = pulled_back(anatomy.final_norm, into[-1], direction)
        for layer in range(anatomy.n_layers):
            there = pulled_back(norms[layer], into[layer], direction) if layer in norms else direction
            towards = torch.einsum("hdm,bm->bhd", anatomy.o_weight(layer).float(), there)
            out[chosen, layer] = (z[layer] * towards).sum(-1).cpu()
    return out


def _keep_last(into: dict[int, Tensor], layer: int, _module: nn.Module, args: tuple[Tensor]) -> None:
    into[layer] = args[0][:, -1].detach()


def pulled_back(norm: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """Pull a direction [B, d] back through a norm, taken as the linear map that it was at its input x [B, d].

    y − b = s · w ⊙ (x − μ), with μ only for a LayerNorm: w, b and whether there is a μ are found by showing the norm known vectors, so that
    every norm (Gemma's 1 + w, OLMo's without w) is read alike.
    """
    known = torch.ones(x.shape[-1], device=x.device, dtype=x.dtype)
    known[1::2] = -1  # mean 0, mean square 1
    bias = norm(torch.zeros_like(known)).float()
    weight = (norm(known).float() - bias) * known.float()
    centred = torch.allclose(norm(known + 0.5).float() - bias, norm(known).float() - bias, rtol=1e-3, atol=1e-3 * float(weight.abs().max()))
    inner = x.float() - x.float().mean(-1, keepdim=True) if centred else x.float()
    base = weight * inner
    scale = ((norm(x).float() - bias) * base).sum(-1, keepdim=True) / (base * base).sum(-1, keepdim=True).clamp(min=1e-30)
    pulled = direction * weight * scale
    return pulled - pulled.mean(-1, keepdim=True) if centred else pulled


@contextmanager
def scaled(model: LanguageModel, rows: Sequence[Setting], around: Tensor | None = None) -> Iterator[None]:
    """While open, scale one head's value output z at all positions, z ← μ + α (z − μ): a setting for each row of the batch.

    around: μ [layers, heads, d_head], 0 when None. α = 0 is then zero ablation, or mean ablation with μ from `mean_output`. Scaling z equals
    scaling the values that this one query head reads, also where several share them (grouped-query attention).
    """
    anatomy = model.anatomy
    with ExitStack() as stack:
        for layer in sorted({row.head.layer for row in rows if row}):
            factors = torch.ones(len(rows), 1, anatomy.n_heads, 1, device=model.device, dtype=model.dtype)
            for i, row in enumerate(rows):
                if row and row.head.layer == layer:
                    factors[i, :, row.head.head] = row.factor
            centre = 0.0 if around is None else around[layer].to(model.device, model.dtype)
            stack.enter_context(taps.edit(model, "z", layer, partial(_towards, factors, centre)))
        yield


def _towards(factors: Tensor, centre: Tensor | float, z: Tensor) -> Tensor:
    return torch.where(factors == 1, z, centre + factors * (z - centre))


@contextmanager
def all_scaled(model: LanguageModel, factor: float) -> Iterator[None]:
    """While open, scale the value output of every head of every layer (0: no token sees another one)."""
    with ExitStack() as stack:
        for layer in range(model.anatomy.n_layers):
            stack.enter_context(taps.edit(model, "z", layer, lambda z: factor * z))
        yield


@torch.no_grad()
def sweep(
    model: LanguageModel, contrast: Contrast, settings: Sequence[Setting | Sequence[Setting]], around: Tensor | None = None, rows: int = 0
) -> Outcome:
    """Run every prompt under every setting. Layers below a scaled head are run once for all settings (`nullius.instruments.resume`).

    settings: each one for all prompts, or a sequence with one for each prompt. around: see `scaled`. rows: sequences in one forward
    pass (0: 16 on a CPU, where larger ones leave the cache, 256 elsewhere).
    """
    rows = rows or (16 if model.device.type == "cpu" else 256)
    n = len(contrast)
    table = [[setting] * n if setting is None or isinstance(setting, Scaling) else list(setting) for setting in settings]
    token = np.zeros((len(table), n), dtype=np.int64)
    difference = np.zeros((len(table), n))
    for chosen in model.by_length(contrast.prompts, rows):
        jobs: dict[int, list[tuple[int, int]]] = {}  # layer (−1: nothing scaled) → pairs of setting and row of this batch
        for s, per_prompt in enumerate(table):
            for row, i in enumerate(chosen):
                setting = per_prompt[i]
                jobs.setdefault(setting.head.layer if setting else -1, []).append((s, row))
        batch = model.encode([contrast.prompts[i] for i in chosen])
        last, below = resume.run_keeping(model, batch, sorted(jobs.keys() - {-1}))
        for layer, pairs in jobs.items():
            for start in range(0, len(pairs), rows):
                some, at = (list(part) for part in zip(*pairs[start : start + rows], strict=True))
                items = [chosen[row] for row in at]
                hidden = last[at]
                if layer >= 0:
                    here = [table[s][i] for s, i in zip(some, items, strict=True)]
                    with resume.from_layer(model, layer, below[layer][at]), scaled(model, here, around):
                        hidden = model.hidden(Batch(batch.input_ids[at], batch.attention_mask[at]))[:, -1]
                token[some, items], difference[some, items] = _read_answers(model, hidden, contrast, items)
    return Outcome(contrast, token, difference)


def _read_answers(model: LanguageModel, hidden: Tensor, contrast: Contrast, items: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Greedy token and logit(first) − logit(second) [rows] from the decoder's last output [rows, d_model]."""
    logits = model.anatomy.unembed(hidden).float()
    cap = model.anatomy.logit_softcap
    rivals = torch.tensor([(contrast.first[i], contrast.second[i]) for i in items], device=logits.device)
    two = logits.gather(1, rivals)
    if cap:
        two = cap * torch.tanh(two / cap)
    return logits.argmax(-1).cpu().numpy(), (two[:, 0] - two[:, 1]).cpu().numpy()


@torch.no_grad()
def mean_output(model: LanguageModel, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
    """Mean of each head's value output z over all tokens of the prompts (padding left out): [layers, heads, d_head]."""
    anatomy = model.anatomy
    total = torch.zeros(anatomy.n_layers, anatomy.n_heads, anatomy.d_head, device=model.device)
    count = 0.0
    for chosen in model.by_length(prompts, batch_size):
        batch = model.encode([prompts[i] for i in chosen])
        real = batch.attention_mask.float()
        count += float(real.sum())
        handles = []
        try:
            for layer in range(anatomy.n_layers):

                def add(z: Tensor, layer: int = layer, real: Tensor = real) -> None:
                    total[layer] += torch.einsum("bthd,bt->hd", z.float(), real)

                handles.append(hooks.on_read(anatomy, anatomy.site("z", layer), add))
            model.hidden(batch)
        finally:
            for handle in handles:
                handle.remove()
    return total / count


def effect_of_ablation(model: LanguageModel, contrast: Contrast, heads: Sequence[Head], around: Tensor | None = None) -> np.ndarray:
    """How much logit(first) − logit(second) falls when each head is replaced by 0 (or by its mean, `around`): [heads, n]."""
    settings: list[Setting | Sequence[Setting]] = [None, *(Scaling(head, 0.0) for head in heads)]
    difference = sweep(model, contrast, settings, around).difference
    return difference[0] - difference[1:]


def attribution_and_effect(
    model: LanguageModel, contrast: Contrast, heads: Sequence[Head], around: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over prompts of what each head writes by attribution, and of what its ablation takes away: two arrays [heads]."""
    table = attribution(model, contrast).mean(0)
    written = np.array([float(table[head.layer, head.head]) for head in heads])
    return written, effect_of_ablation(model, contrast, heads, around).mean(-1)


def all_heads(model: LanguageModel) -> list[Head]:
    """Every head, layer by layer."""
    return [Head(layer, head) for layer in range(model.anatomy.n_layers) for head in range(model.anatomy.n_heads)]


def extremes(scores: Tensor, top: int) -> list[Head]:
    """The `top` heads with the highest scores of a [layers, heads] table and the `top` with the lowest, without repetition."""
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    chosen = dict.fromkeys(order[:top] + order[::-1][:top])
    return [Head(*divmod(i, scores.shape[1])) for i in chosen]


def random_heads(model: LanguageModel, like: Sequence[Head], n: int, rng: np.random.Generator) -> list[Head]:
    """`n` heads drawn from the layers of `like`, never one of them; from the nearest layers where those have too few."""
    layers = {head.layer for head in like}
    others = [head for head in all_heads(model) if head not in set(like)]
    others = [others[i] for i in rng.permutation(len(others))]
    others.sort(key=lambda head: min(abs(head.layer - layer) for layer in layers))  # stable: random within a distance
    return others[:n]
