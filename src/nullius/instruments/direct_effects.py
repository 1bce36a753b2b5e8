"""Direct logit attribution: a logit as a sum of what every part of the model wrote into it.

The residual stream at the last position is the embedding plus all attention and feed-forward outputs, and the final norm is, in one given
forward pass, a linear map (its gain, the scale it had, and a LayerNorm's centring). So a logit, before a soft-cap, is *exactly*

    embedding + Σ_l attention_l + Σ_l mlp_l + constant        (constant: biases of final norm and vocabulary)

and attention_l = Σ_h head_lh + its bias, mlp_l = Σ_j neuron_lj + its bias, through a post-norm as the linear map that it was. Elhage et al. 2021.
A part's direct effect is not its total effect: what later layers make of it does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nullius.errors import UsageError
from nullius.instruments import taps
from nullius.models.language_model import Batch, LanguageModel


def pulled_back(norm: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """Pull a direction [B, d] back through a norm, taken as the linear map that it was at its input x [B, d]: the transpose of `pushed_through`."""
    gain, centred = _as_linear(norm, x)
    pulled = direction * gain
    return pulled - pulled.mean(-1, keepdim=True) if centred else pulled


def pushed_through(norm: nn.Module, x: Tensor, change: Tensor) -> Tensor:
    """What a change [B, d] of a norm's input becomes behind it, the norm taken as the linear map that it was at its input x [B, d]."""
    gain, centred = _as_linear(norm, x)
    return (change - change.mean(-1, keepdim=True) if centred else change) * gain


def _as_linear(norm: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """A norm at its input x [B, d] as a gain for each entry [B, d], behind a centring (True) or none.

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
    return weight * scale, centred


@dataclass(frozen=True)
class DirectEffects:
    """Parts of a logit, or of a difference of two, float32, of n texts.

    embedding [n], attention [n, layers], mlp [n, layers], constant [n]: they sum to `logit` [n], which the model itself gave (before a soft-cap).
    heads [n, layers, heads], 0 in layers that have none: with `attention_bias` they sum to attention.
    """

    embedding: Tensor
    attention: Tensor
    mlp: Tensor
    constant: Tensor
    heads: Tensor
    logit: Tensor

    @property
    def attention_bias(self) -> Tensor:
        """What the heads leave of each attention: the bias of its output projection [n, layers]."""
        return self.attention - self.heads.sum(-1)

    @property
    def total(self) -> Tensor:
        """The sum of all parts [n]."""
        return self.embedding + self.attention.sum(1) + self.mlp.sum(1) + self.constant


@torch.no_grad()
def decompose(
    model: LanguageModel, texts: Sequence[str] | Batch, first: Sequence[int | str], second: Sequence[int | str] | None = None
) -> DirectEffects:
    """Take apart logit(first), or logit(first) − logit(second), behind each text.

    first, second: token ids, or words of one token [n]. Texts form one batch. Raises UsageError for another number of tokens than texts, and for
    what is no token; SubjectError for an empty batch.
    """
    anatomy, batch = model.anatomy, model.batch(texts)
    attending = [layer for layer in range(anatomy.n_layers) if anatomy.has("z", layer)]
    parts = ["resid_pre", "attn_out", "mlp_out"]
    if len(attending) == anatomy.n_layers:
        caught, sites = _run(model, batch, first, [*parts, "z"])
    else:
        caught, sites = _run(model, batch, first, parts)
        sites["z"] = taps.read(model, batch, ["z"], attending)["z"] if attending else torch.empty(0)
    direction, constant, logit = _ends(model, caught.final, first, second)
    attention, mlp = ((sites[name].float() * direction).sum(-1).T.cpu() for name in ("attn_out", "mlp_out"))
    heads = torch.zeros(len(batch.input_ids), anatomy.n_layers, anatomy.n_heads)
    for layer, z in zip(attending, sites["z"], strict=True):
        there = caught.before_norm("attn", layer, direction)
        heads[:, layer] = torch.einsum("bhd,hdm,bm->bh", z.float(), anatomy.o_weight(layer).float(), there).cpu()
    return DirectEffects((sites["resid_pre"][0].float() * direction).sum(-1).cpu(), attention, mlp, constant.cpu(), heads, logit.cpu())


@torch.no_grad()
def neurons(
    model: LanguageModel, texts: Sequence[str] | Batch, layer: int, first: Sequence[int | str], second: Sequence[int | str] | None = None
) -> tuple[Tensor, Tensor]:
    """What each neuron of a layer writes into the logit, or difference: [n, d_mlp], and the rest [n], the bias of the last map. They sum to mlp.

    Errors as in `decompose`; UsageError for a layer that does not exist, SubjectError for one without neurons (mixtures of experts).
    """
    caught, sites = _run(model, model.batch(texts), first, ["mlp_out", "mlp_post"], [layer])
    direction, _, _ = _ends(model, caught.final, first, second)
    there = caught.before_norm("mlp", layer % model.anatomy.n_layers, direction)
    each = sites["mlp_post"][0].float() * (there @ model.anatomy.down_weight(layer).float().T)
    whole = (sites["mlp_out"][0].float() * direction).sum(-1)
    return each.cpu(), (whole - each.sum(-1)).cpu()


class _Caught:
    """Inputs of the final norm and of post-norms at the last position of a pass."""

    def __init__(self, model: LanguageModel) -> None:
        anatomy = model.anatomy
        self.inputs: dict[tuple[str, int], Tensor] = {}
        self.norms: dict[tuple[str, int], nn.Module] = {("final", -1): anatomy.final_norm}
        self.factors: dict[tuple[str, int], float] = {}
        for layer in range(anatomy.n_layers):
            for name in ("attn", "mlp"):
                norm = anatomy.post_norm(layer, name)
                self.factors[name, layer] = anatomy.site(f"{name}_out", layer).factor
                if norm is not None:
                    self.norms[name, layer] = norm

    @property
    def final(self) -> Tensor:
        return self.inputs["final", -1]

    def before_norm(self, name: str, layer: int, direction: Tensor) -> Tensor:
        """The direction pulled back through the block's factor and post-norm, where there are such [n, d_model]."""
        direction = direction * self.factors[name, layer]
        if (name, layer) not in self.norms:
            return direction
        return pulled_back(self.norms[name, layer], self.inputs[name, layer], direction)

    def keep(self, key: tuple[str, int], _module: nn.Module, args: tuple[Tensor]) -> None:
        self.inputs[key] = args[0][:, -1].detach()


def _run(
    model: LanguageModel, batch: Batch, first: Sequence[int | str], names: Sequence[str], layers: Sequence[int] | None = None
) -> tuple[_Caught, dict[str, Tensor]]:
    if len(first) != len(batch.input_ids):
        raise UsageError(f"{len(batch.input_ids)} texts need as many tokens to attribute, not {len(first)}")
    caught = _Caught(model)
    handles = [norm.register_forward_pre_hook(partial(caught.keep, key)) for key, norm in caught.norms.items()]
    try:
        return caught, taps.read(model, batch, names, layers)
    finally:
        for handle in handles:
            handle.remove()


def _ends(
    model: LanguageModel, final: Tensor, first: Sequence[int | str], second: Sequence[int | str] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The direction in the stream [n, d_model], the constant [n] and the logit itself [n]."""
    anatomy = model.anatomy
    weight, bias = anatomy.unembedding().float(), getattr(anatomy.unembed, "bias", None)
    if second is not None and len(second) != len(first):
        raise UsageError(f"{len(first)} tokens stand against {len(second)}")
    plus, minus = model.token_ids(list(first)), None if second is None else model.token_ids(list(second))
    u = anatomy.logit_scale * (weight[plus] - (weight[minus] if minus is not None else 0))
    normed = anatomy.final_norm(final).float()
    shift = anatomy.final_norm(torch.zeros_like(final)).float()  # a LayerNorm's bias
    constant = (u * shift).sum(-1)
    if bias is not None:
        extra = bias.float()[plus] - (bias.float()[minus] if minus is not None else 0)
        constant = constant + anatomy.logit_scale * extra
    logit = (u * (normed - shift)).sum(-1) + constant
    return pulled_back(anatomy.final_norm, final, u), constant, logit
