"""Attention heads: what each writes towards an answer (direct logit attribution), and what happens when it is turned up or down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nullius.instruments import taps
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True, order=True)
class Head:
    """A query head; written 15.7 for layer 15, head 7."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


Setting = tuple[Head, float] | None


@torch.no_grad()
def attribution(model: LanguageModel, batch: Batch, first: Sequence[int], second: Sequence[int]) -> Tensor:
    """Direct logit attribution at the last position: what each head writes for token `first` over token `second`, [B, layers, heads].

    ΔA_h = (z_h W_O^h) · (u_first − u_second), where the final norm is the linear map that it was in this very forward pass (its scale and
    gain), and so is a norm between attention and residual stream (Gemma). A logit soft-cap is monotonic and is left out.
    first, second: token ids [B]. The reaction of later layers is not part of it: check with `effect_of_zeroing`.
    """
    anatomy = model.anatomy
    seen: dict[str, Tensor] = {}
    handles = [
        anatomy.final_norm.register_forward_hook(lambda _m, args, out: seen.update(x=args[0][:, -1].detach(), y=out[:, -1].detach()))
    ]
    raw: dict[int, Tensor] = {}
    for layer in range(anatomy.n_layers):
        keep: Callable[..., None] = lambda _m, _a, out, layer=layer: raw.update({layer: out[:, -1].detach()})  # noqa: E731
        handles.append(anatomy.o_proj(layer).register_forward_hook(keep))
    try:
        sites = taps.read(model, batch, ["z", "attn_out"])
    finally:
        for handle in handles:
            handle.remove()
    unembedding = anatomy.unembedding()
    direction = (unembedding[list(first)] - unembedding[list(second)]).float()
    direction = _through_final_norm(anatomy.final_norm, seen["x"].float(), seen["y"].float(), direction)
    out = []
    for layer in range(anatomy.n_layers):
        # a post-norm is elementwise: its gain in this pass is what came out over what went in
        gain = torch.nan_to_num(sites["attn_out"][layer].float() / raw[layer].float(), nan=1.0)
        towards = torch.einsum("hdm,bm->bhd", anatomy.o_weight(layer).float(), direction * gain)
        out.append((sites["z"][layer].float() * towards).sum(-1))
    return torch.stack(out, 1)


def _through_final_norm(norm: nn.Module, x: Tensor, y: Tensor, direction: Tensor) -> Tensor:
    """Pull a direction back through a norm at the scale it had: RMS norm is x ⊙ (y / x); LayerNorm also subtracts the mean."""
    bias = getattr(norm, "bias", None)
    if not isinstance(norm, nn.LayerNorm) and bias is None:
        return direction * torch.nan_to_num(y / x, nan=0.0)
    scale = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + getattr(norm, "eps", 1e-5))
    weight: Any = norm.weight if norm.weight is not None else torch.ones_like(x[0])
    pulled = direction * weight.float() * scale
    return pulled - pulled.mean(-1, keepdim=True)


@contextmanager
def scaled(model: LanguageModel, rows: Sequence[Setting]) -> Iterator[None]:
    """While open, multiply one head's value output z by a factor, at all positions: a head and factor for each row of the batch, or None.

    Equivalent to scaling the values that this query head reads, also under grouped-query attention.
    """
    layers = sorted({row[0].layer for row in rows if row})

    def multiply(layer: int) -> Callable[[Tensor], Tensor]:
        factors = torch.ones(len(rows), model.anatomy.n_heads, device=model.device, dtype=model.dtype)
        for i, row in enumerate(rows):
            if row and row[0].layer == layer:
                factors[i, row[0].head] = row[1]
        return lambda z: z * factors[:, None, :, None]

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(taps.edit(model, "z", layer, multiply(layer)))
        yield


@torch.no_grad()
def answers(
    model: LanguageModel, prompts: Sequence[str], setting: Sequence[Setting], batch_size: int = 24
) -> Iterable[tuple[list[int], Tensor]]:
    """Run prompts under their settings, in batches of similar length; yield item numbers and their last logits [b, V]."""
    for chosen in model.by_length(prompts, batch_size):
        with scaled(model, [setting[i] for i in chosen]):
            yield chosen, model.logits(model.encode([prompts[i] for i in chosen]))


def preferred(model: LanguageModel, prompts: Sequence[str], setting: Setting | Sequence[Setting] = None) -> list[int]:
    """Return the most probable next token of each prompt; setting: one for all, or one for each prompt."""
    settings = list(setting) if isinstance(setting, list) else [setting] * len(prompts)
    best = [0] * len(prompts)
    for chosen, logits in answers(model, prompts, settings):  # type: ignore[arg-type]
        for i, token in zip(chosen, logits.argmax(-1).tolist(), strict=True):
            best[i] = token
    return best


def differences(
    model: LanguageModel,
    prompts: Sequence[str],
    first: Sequence[int],
    second: Sequence[int],
    setting: Sequence[Setting] | None = None,
) -> Tensor:
    """Return logit(first) − logit(second) after each prompt [n], each under its setting."""
    out = torch.zeros(len(prompts))
    for chosen, logits in answers(model, prompts, setting or [None] * len(prompts)):
        rows = torch.arange(len(chosen), device=logits.device)
        a = torch.tensor([first[i] for i in chosen], device=logits.device)
        b = torch.tensor([second[i] for i in chosen], device=logits.device)
        out[chosen] = (logits[rows, a] - logits[rows, b]).float().cpu()
    return out


def effect_of_zeroing(
    model: LanguageModel, prompts: Sequence[str], first: Sequence[int], second: Sequence[int], heads: Sequence[Head]
) -> Tensor:
    """Return how much logit(first) − logit(second) falls, on average, when each head is silenced: [heads]."""
    n = len(prompts)
    plain = differences(model, prompts, first, second)
    settings = [(head, 0.0) for head in heads for _ in range(n)]
    silenced = differences(model, list(prompts) * len(heads), list(first) * len(heads), list(second) * len(heads), settings)
    return (plain.repeat(len(heads)) - silenced).view(len(heads), n).mean(-1)


def rank(scores: Tensor) -> list[Head]:
    """Return all heads of a [layers, heads] table, highest score first."""
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    return [Head(*divmod(i, scores.shape[1])) for i in order]
