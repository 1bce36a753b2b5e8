"""Anatomy: where, inside any decoder that transformers loads, the sites lie that the field has names for.

Found by structure (the longest list of equal layers, the module that is an attention, the linear map whose shape is that of an output
projection), then checked on the model itself when it is loaded: parts must add up to the residual stream, editing by the identity must
change nothing, editing by zero must change something. No adapter per family.

Sites (names of TransformerLens). Residual: resid_pre, resid_mid, resid_post, and what is added to it: attn_out, mlp_out (after Gemma's or
OLMo 2's post-norms, where there are any) [batch, token, d_model]. Heads: q, k, v (output of the projections, before rotary embedding and
query/key norms), z (one head's output before the output projection) [batch, token, heads, d_head]; pattern [batch, heads, query, key].
Neurons: mlp_post [batch, token, d_mlp]. logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nullius.errors import SubjectError, UsageError, nearest

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "q", "k", "v", "pattern", "z", "mlp_post", "mlp_out")


@dataclass(frozen=True)
class Site:
    """A place to read and write: the input or the output of a module; `part` is a slice of a fused projection, `heads` its head count."""

    name: str
    layer: int
    module: nn.Module
    side: Literal["input", "output"]
    heads: int = 0
    part: Literal["", "q", "k", "v"] = ""


class Anatomy:
    """The anatomy of a causal language model of transformers. Raises SubjectError naming what could not be found."""

    def __init__(self, hf: Any) -> None:
        config = hf.config.get_text_config() if hasattr(hf.config, "get_text_config") else hf.config
        self.family: str = config.model_type
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.logit_softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.parallel: bool = bool(getattr(config, "use_parallel_residual", False) or getattr(config, "parallel_attn", False))
        self.embed: nn.Module = hf.get_input_embeddings()
        unembed = hf.get_output_embeddings()
        if unembed is None:
            raise SubjectError(f"{self.family} has no output embedding: nullius needs a causal language model (a decoder), not an encoder")
        self.unembed: nn.Module = unembed
        lists = [module for module in hf.modules() if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1]
        lists = [module for module in lists if any(_is_attention(part) for part in module[0].modules())]
        if not lists:
            raise SubjectError(f"cannot map {self.family}: no list of equal layers that hold an attention")
        longest = max(lists, key=lambda module: len(module))
        self.layers: list[nn.Module] = list(longest)
        self.n_layers = len(self.layers)
        decoder = next(module for module in hf.modules() if any(child is longest for child in module.children()))
        norms = [child for child in decoder.children() if _is_norm(child)]
        if not norms:
            raise SubjectError(f"cannot map {self.family}: no final norm beside the layers")
        self.final_norm: nn.Module = norms[-1]
        self.d_mlp: int = _width(self.down_proj(0))[0]

    def _child(self, layer: int, test: Any, what: str) -> nn.Module:
        for child in self.layers[self._layer(layer)].children():
            if test(child):
                return child
        raise SubjectError(f"cannot map {self.family}: layer {layer} has no {what}")

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= layer < self.n_layers:
            raise UsageError(f"layer {layer} does not exist: {self.family} has layers 0 to {self.n_layers - 1}")
        return layer % self.n_layers

    def attn(self, layer: int) -> nn.Module:
        """Return the attention module of a layer."""
        return self._child(layer, _is_attention, "attention")

    def mlp(self, layer: int) -> nn.Module:
        """Return the feed-forward module of a layer."""

        def test(child: nn.Module) -> bool:
            return not _is_attention(child) and not _is_norm(child) and len(_linears(child)) >= 2

        return self._child(layer, test, "feed-forward block")

    def attn_norm(self, layer: int) -> nn.Module | None:
        """Return the norm before the attention (None in OLMo 2, which norms after it)."""
        return None if self._post_norms(layer) and not self._pre_norms(layer) else self._norms(layer)[0]

    def mlp_norm(self, layer: int) -> nn.Module | None:
        """Return the norm before the feed-forward block, whose input is resid_mid (None in OLMo 2)."""
        if self._post_norms(layer):
            return getattr(self.layers[layer], "pre_feedforward_layernorm", None)
        return self._norms(layer)[-1]

    def _norms(self, layer: int) -> list[nn.Module]:
        return [child for child in self.layers[self._layer(layer)].children() if _is_norm(child)]

    def _post_norms(self, layer: int) -> bool:
        return hasattr(self.layers[self._layer(layer)], "post_feedforward_layernorm")

    def _pre_norms(self, layer: int) -> bool:
        return hasattr(self.layers[self._layer(layer)], "pre_feedforward_layernorm")

    def o_proj(self, layer: int) -> nn.Module:
        """Return the output projection of the attention: the last linear map from heads · d_head to d_model."""
        shape = (self.n_heads * self.d_head, self.d_model)
        found = [linear for linear in _linears(self.attn(layer)) if _width(linear) == shape]
        if not found:
            raise SubjectError(f"cannot map {self.family}: the attention of layer {layer} has no output projection {shape[0]} → {shape[1]}")
        return found[-1]

    def down_proj(self, layer: int) -> nn.Module:
        """Return the second linear map of the feed-forward block, whose inputs are the neurons."""
        found = [linear for linear in _linears(self.mlp(layer)) if _width(linear)[1] == self.d_model]
        if not found:
            raise SubjectError(f"cannot map {self.family}: the feed-forward block of layer {layer} has no projection onto {self.d_model}")
        return found[-1]

    def o_weight(self, layer: int) -> Tensor:
        """Return W_O by head: [n_heads, d_head, d_model]."""
        module = self.o_proj(layer)
        weight = module.weight if isinstance(module, Conv1D) else module.weight.T
        return weight.view(self.n_heads, self.d_head, self.d_model)  # type: ignore[operator]

    def unembedding(self) -> Tensor:
        """Return W_U [vocabulary, d_model]."""
        return self.unembed.weight  # type: ignore[return-value]

    def site(self, name: str, layer: int) -> Site:
        """Return where a site lies, or raise UsageError (no such site or layer) or SubjectError (this architecture has no such site)."""
        if name not in SITES:
            raise UsageError(f"no site '{name}'{nearest(name, SITES)}; sites: {', '.join(SITES)}")
        layer = self._layer(layer)
        block = self.layers[layer]
        if name == "resid_pre":
            return Site(name, layer, block, "input")
        if name == "resid_post":
            return Site(name, layer, block, "output")
        if name == "resid_mid":
            if self.parallel:
                raise SubjectError(f"{self.family} runs attention and feed-forward in parallel: it has no resid_mid")
            return Site(name, layer, self.mlp_norm(layer) or self.mlp(layer), "input")
        if name == "attn_out":
            return Site(name, layer, block.post_attention_layernorm if self._post_norms(layer) else self.attn(layer), "output")  # type: ignore[arg-type]
        if name == "mlp_out":
            return Site(name, layer, block.post_feedforward_layernorm if self._post_norms(layer) else self.mlp(layer), "output")  # type: ignore[arg-type]
        if name == "mlp_post":
            return Site(name, layer, self.down_proj(layer), "input")
        if name == "z":
            return Site(name, layer, self.o_proj(layer), "input", self.n_heads)
        if name == "pattern":
            return Site(name, layer, self.attn(layer), "output")
        return self._projection(name, layer)  # type: ignore[arg-type]

    def _projection(self, name: Literal["q", "k", "v"], layer: int) -> Site:
        attention = self.attn(layer)
        heads = self.n_heads if name == "q" else self.n_kv_heads
        separate = getattr(attention, f"{name}_proj", None)
        if separate is not None:
            return Site(name, layer, separate, "output", heads)
        whole = (self.n_heads + 2 * self.n_kv_heads) * self.d_head
        for linear in _linears(attention):
            if _width(linear) == (self.d_model, whole):
                return Site(name, layer, linear, "output", heads, name)
        raise SubjectError(f"cannot map {self.family}: its attention has neither {name}_proj nor a fused projection onto {whole}")

    def split_heads(self, site: Site, value: Tensor) -> Tensor:
        """View a site's tensor by head: [..., heads, d_head]; for a fused projection, the part that the site names."""
        if not site.part:
            return value.unflatten(-1, (site.heads, self.d_head)) if site.heads else value
        if self.family == "gpt_neox":  # each head keeps its own q, k, v side by side
            return value.unflatten(-1, (self.n_heads, 3, self.d_head))[..., "qkv".index(site.part), :]
        widths = [self.n_heads * self.d_head, self.n_kv_heads * self.d_head, self.n_kv_heads * self.d_head]
        return value.split(widths, -1)["qkv".index(site.part)].unflatten(-1, (site.heads, self.d_head))

    def merge_heads(self, site: Site, whole: Tensor, value: Tensor) -> Tensor:
        """Undo `split_heads`: put an edited part back into the module's own tensor."""
        if not site.part:
            return value.flatten(-2) if site.heads else value
        whole = whole.clone()
        self.split_heads(site, whole).copy_(value)
        return whole


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.lower().endswith(("attention", "attn")) and bool(_linears(module))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _linears(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, (nn.Linear, Conv1D))]


def _width(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a Linear or a GPT-2 Conv1D."""
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)


def self_test(anatomy: Anatomy, read: Any, edit: Any, run: Any) -> None:
    """Check on four tokens that the sites are what their names say, at the first and the last layer.

    read(sites, layers) → dict, edit(site, layer, fn) → context manager, run() → Tensor. Raises SubjectError.
    """
    layers = sorted({0, anatomy.n_layers - 1})
    parts = read(("resid_pre", "attn_out", "mlp_out", "resid_post"), layers)
    rebuilt = parts["resid_pre"] + parts["attn_out"] + parts["mlp_out"]
    gap = float((rebuilt - parts["resid_post"]).norm() / parts["resid_post"].norm())
    if gap > (1e-4 if rebuilt.dtype == torch.float32 else 3e-2):
        raise SubjectError(f"cannot map {anatomy.family}: resid_pre + attn_out + mlp_out misses resid_post by {gap:.1e} (relative)")
    plain = run()
    for site in ("resid_pre", "z", "mlp_post"):
        with edit(site, layers[-1], lambda value: value):
            if not torch.equal(run(), plain):
                raise SubjectError(f"cannot map {anatomy.family}: editing {site} by the identity changes the output")
        with edit(site, layers[-1], torch.zeros_like):
            if torch.equal(run(), plain):
                raise SubjectError(f"cannot map {anatomy.family}: zeroing {site} changes nothing")
