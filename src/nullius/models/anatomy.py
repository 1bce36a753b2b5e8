"""Anatomy: where, inside any decoder that transformers loads, the sites lie that the field has names for.

Found by structure: the longest list of layers that hold an attention, then what feeds what inside a layer (`dataflow`). No adapter per family.
What is found is checked on the model itself when it is loaded (`self_test`).

Sites (names of TransformerLens). Residual: resid_pre, resid_mid, resid_post, and what is added to it: attn_out, mlp_out (after Gemma's or
OLMo 2's post-norms, where there are any) [batch, token, d_model]. Heads: q, k, v (output of the projections, before rotary embedding and
query/key norms), z (one head's output before the output projection) [batch, token, heads, d_head]; pattern [batch, heads, query, key].
Neurons: mlp_post [batch, token, d_mlp].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nullius.errors import SubjectError, UsageError, nearest
from nullius.models import dataflow

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "q", "k", "v", "pattern", "z", "mlp_post", "mlp_out")


@dataclass(frozen=True, eq=False)
class Site:
    """A place to read and write: the input or the output of a module.

    heads: their number, 0 where there are none. columns: which of the module's outputs belong to each head [heads, d_head], where q, k and v
    come out of one fused projection.
    """

    name: str
    layer: int
    module: nn.Module
    side: Literal["input", "output"]
    heads: int = 0
    columns: Tensor | None = None


class Anatomy:
    """The anatomy of a causal language model of transformers.

    n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp: sizes. layers: the modules. decoder: the module that
    holds them, embed, final_norm, unembed: modules. parallel: attention
    and feed-forward block read the same stream (no resid_mid). logit_softcap: c where logits are c·tanh(x/c) (Gemma 2).
    Making one runs two tokens through the model. Raises SubjectError naming what could not be found.
    """

    def __init__(self, hf: Any) -> None:
        config = hf.config.get_text_config()
        self.family: str = config.model_type
        unembed = hf.get_output_embeddings()
        if unembed is None:
            raise SubjectError(f"{self.family} has no output embedding: nullius needs a causal language model (a decoder), not an encoder")
        self.unembed: nn.Module = unembed
        self.embed: nn.Module = hf.get_input_embeddings()
        try:
            self.n_heads: int = config.num_attention_heads
            self.d_model: int = config.hidden_size
        except AttributeError as error:
            raise SubjectError(f"cannot map {self.family}: {error}") from None
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.logit_softcap: float | None = getattr(config, "final_logit_softcapping", None)
        body = hf.get_decoder() or hf  # of an image-and-text model, the part that reads text
        lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1]
        lists = [module for module in lists if any(dataflow.is_attention(part) for part in module[0].modules())]
        if not lists:
            raise SubjectError(f"cannot map {self.family}: no list of equal layers that hold an attention")
        stack = max(lists, key=len)
        self.layers: list[nn.Module] = list(stack)
        self.n_layers = len(self.layers)
        self.decoder: nn.Module = next(module for module in body.modules() if any(child is stack for child in module.children()))
        norms = [child for child in self.decoder.children() if "norm" in type(child).__name__.lower()]
        if not norms:
            raise SubjectError(f"cannot map {self.family}: no final norm beside the layers")
        self.final_norm: nn.Module = norms[-1]
        tokens = torch.tensor([[0, 1]], device=hf.device)
        try:
            self._flow = dataflow.trace(
                lambda: self.decoder(input_ids=tokens, use_cache=False), self.layers[0], self.n_heads, self.n_kv_heads, self.d_head
            )
        except (SubjectError, RuntimeError, ValueError, TypeError) as error:  # the model's own code may not bear this input
            raise SubjectError(f"cannot map {self.family}: {str(error).splitlines()[0]}") from None
        for i, block in enumerate(self.layers):
            lacks = {self._flow.attn, self._flow.mlp, self._flow.attn_out, self._flow.mlp_out} - {
                name for name, _ in block.named_children()
            }
            if lacks:
                raise SubjectError(f"cannot map {self.family}: layer {i} has no {' and no '.join(sorted(lacks))}, as layer 0 has")
        self.parallel: bool = self._flow.resid_mid is None
        self.d_mlp: int = config.intermediate_size if self._flow.down_proj is None else dataflow.width(self.down_proj(0))[0]

    def _part(self, layer: int, name: str | None) -> Any:
        return None if name is None else getattr(self.layers[self._layer(layer)], name)

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= layer < self.n_layers:
            raise UsageError(f"layer {layer} does not exist: {self.family} has layers 0 to {self.n_layers - 1}")
        return layer % self.n_layers

    def attn(self, layer: int) -> nn.Module:
        """Return the attention module of a layer."""
        return self._part(layer, self._flow.attn)

    def mlp(self, layer: int) -> nn.Module:
        """Return the feed-forward module of a layer."""
        return self._part(layer, self._flow.mlp)

    def attn_norm(self, layer: int) -> nn.Module | None:
        """Return the norm before the attention (None in OLMo 2, which norms after it)."""
        return self._part(layer, self._flow.attn_norm)

    def mlp_norm(self, layer: int) -> nn.Module | None:
        """Return the norm before the feed-forward block (None in OLMo 2; the attention's own in some parallel models)."""
        return self._part(layer, self._flow.mlp_norm)

    def o_proj(self, layer: int) -> nn.Module:
        """Return the output projection of the attention, from heads · d_head to d_model."""
        return self.attn(layer).get_submodule(self._flow.o_proj)

    def down_proj(self, layer: int) -> nn.Module:
        """Return the last linear map of the feed-forward block, whose inputs are the neurons. Raises SubjectError where experts are mixed."""
        if self._flow.down_proj is None:
            raise SubjectError(f"the feed-forward block of {self.family} does not end in one linear map (experts?): it has no mlp_post")
        return self.mlp(layer).get_submodule(self._flow.down_proj)

    def o_weight(self, layer: int) -> Tensor:
        """Return W_O by head: [n_heads, d_head, d_model]."""
        module = self.o_proj(layer)
        weight: Tensor = module.weight  # type: ignore[assignment]
        return (weight if isinstance(module, Conv1D) else weight.T).view(self.n_heads, self.d_head, self.d_model)

    def down_weight(self, layer: int) -> Tensor:
        """Return the feed-forward block's last map by neuron: [d_mlp, d_model]."""
        module = self.down_proj(layer)
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight if isinstance(module, Conv1D) else weight.T

    def unembedding(self) -> Tensor:
        """Return W_U [vocabulary, d_model]."""
        weight: Tensor = self.unembed.weight  # type: ignore[assignment]
        return weight

    def site(self, name: str, layer: int) -> Site:
        """Return where a site lies, or raise UsageError (no such site or layer) or SubjectError (this architecture has no such site)."""
        if name not in SITES:
            raise UsageError(f"no site '{name}'{nearest(name, SITES)}; sites: {', '.join(SITES)}")
        layer = self._layer(layer)
        own: dict[str, int] | None = getattr(
            self.attn(layer), "head_sites", None
        )  # the project's own mixers, which may differ from layer to layer
        if own is not None and name in ("q", "k", "v", "z", "pattern") and name not in own:
            raise SubjectError(f"layer {layer} mixes tokens by {self.attn(layer).name}: it has no {name}")
        match name:
            case "resid_pre":
                return Site(name, layer, self.layers[layer], "input")
            case "resid_post":
                return Site(name, layer, self.layers[layer], "output")
            case "resid_mid":
                if self.parallel:
                    raise SubjectError(f"{self.family} runs attention and feed-forward in parallel: it has no resid_mid")
                return Site(name, layer, self._part(layer, self._flow.resid_mid), "input")
            case "attn_out":
                return Site(name, layer, self._part(layer, self._flow.attn_out), "output")
            case "mlp_out":
                return Site(name, layer, self._part(layer, self._flow.mlp_out), "output")
            case "mlp_post":
                return Site(name, layer, self.down_proj(layer), "input")
            case "pattern":
                return Site(name, layer, self.attn(layer), "output")
            case "z":
                return Site(name, layer, self.o_proj(layer), "input", self.n_heads if own is None else own["z"])
        if own is not None:
            return Site(name, layer, self.attn(layer).get_submodule(f"{name}_proj"), "output", own[name])
        if name not in self._flow.columns:
            raise SubjectError(f"the attention of {self.family} has no map from which {name} could be read by head")
        projection, columns = self._flow.columns[name]
        module = self.attn(layer).get_submodule(projection)
        fused = dataflow.width(module)[1] != columns.numel()
        return Site(name, layer, module, "output", len(columns), columns if fused else None)

    def has(self, name: str, layer: int) -> bool:
        """Whether this architecture has a site in this layer."""
        try:
            self.site(name, layer)
        except SubjectError:
            return False
        return True

    def split_heads(self, site: Site, value: Tensor) -> Tensor:
        """View a site's tensor by head: [..., heads, d_head]; for a fused projection, the part that the site names."""
        if site.columns is not None:
            return value[..., site.columns.to(value.device)]
        return value.unflatten(-1, (site.heads, -1)) if site.heads else value

    def merge_heads(self, site: Site, whole: Tensor, value: Tensor) -> Tensor:
        """Undo `split_heads`: put an edited part back into the module's own tensor."""
        if site.columns is not None:
            return whole.index_copy(-1, site.columns.flatten().to(whole.device), value.flatten(-2))
        return value.flatten(-2) if site.heads else value


def self_test(anatomy: Anatomy, read: Any, edit: Any, run: Any) -> None:
    """Check on a few tokens that the sites are what their names say, at the first and the last layer.

    run() feeds two rows [2, T] that differ in their last token and returns the decoder's output [2, T, d_model]; read(sites, layers) does the
    same and returns the sites by name, [layers, 2, T, ...], with that output under "hidden"; edit(site, layer, fn) is a context manager.
    Raises SubjectError: not causal, parts that do not add up, or an edit that does not do what it says.
    """
    layers = sorted({0, anatomy.n_layers - 1})
    parts = read(("resid_pre", "attn_out", "mlp_out", "resid_post"), layers)
    plain = parts["hidden"]
    tolerance = 1e-4 if plain.dtype == torch.float32 else 5e-2
    if _gap(plain[0, :-1], plain[1, :-1]) > tolerance:
        raise SubjectError(f"{anatomy.family} lets tokens look ahead: an encoder; nullius needs a causal decoder")
    gap = _gap(parts["resid_pre"] + parts["attn_out"] + parts["mlp_out"], parts["resid_post"])
    if gap > tolerance:
        raise SubjectError(f"cannot map {anatomy.family}: resid_pre + attn_out + mlp_out misses resid_post by {gap:.1e} (relative)")
    if _gap(anatomy.final_norm(parts["resid_post"][-1]), plain) > tolerance:
        raise SubjectError(f"cannot map {anatomy.family}: the final norm of the last resid_post is not the decoder's output")
    for site in ("resid_pre", "z", "mlp_post"):
        if not anatomy.has(site, layers[-1]):
            continue
        with edit(site, layers[-1], lambda value: value):
            if not torch.equal(run(), plain):
                raise SubjectError(f"cannot map {anatomy.family}: editing {site} by the identity changes the output")
        with edit(site, layers[-1], torch.zeros_like):
            if torch.equal(run(), plain):
                raise SubjectError(f"cannot map {anatomy.family}: zeroing {site} changes nothing")


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())
