"""Anatomy: where, inside any decoder that transformers loads, the sites lie that the field has names for.

Found by structure: the longest list of layers that hold an attention, then what feeds what inside a layer (`dataflow`). No adapter per family.
What is found is checked on the model itself when it is loaded (`self_test`).

Sites (names of TransformerLens). Residual: resid_pre, resid_mid, resid_post, and what is added to it: attn_out, mlp_out (after Gemma's or
OLMo 2's post-norms, where there are any) [batch, token, d_model]. Heads: q, k, v (output of the projections, before rotary embedding and
norms of queries, keys, values), z (one head's output before the output projection) [batch, token, heads, d_head]; pattern [batch, heads, query, key].
Neurons: mlp_post [batch, token, d_mlp].
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nullius.errors import SubjectError, UsageError, nearest
from nullius.models import dataflow, stated

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "q", "k", "v", "pattern", "z", "mlp_post", "mlp_out")


@dataclass(frozen=True, eq=False)
class Site:
    """A place to read and write: the input or the output of a module.

    width: of its last dimension. heads: their number, 0 where there are none. columns: which of the module's outputs belong to each head [heads,
    d_head], where q, k and v come out of one fused projection. factor: by what the module's tensor is multiplied before it is added to the stream;
    the site's own tensor is the product. changed: the layer's code goes on to change the module's tensor in place. shape: where the module sees
    [B · T, ..], what says B and T.
    """

    name: str
    layer: int
    module: nn.Module
    side: Literal["input", "output"]
    width: int
    heads: int = 0
    columns: Tensor | None = None
    factor: float = 1.0
    changed: bool = False
    shape: Shape | None = None


class Shape:
    """A hook before a layer, that notes of how many texts and tokens the stream is that arrives."""

    def __init__(self) -> None:
        self.rows: tuple[int, ...] = ()

    def __call__(self, _module: Any, args: Any, kwargs: Any) -> None:
        self.rows = tuple(dataflow.first_input(args, kwargs).shape[:-1])


class Anatomy:
    """The anatomy of a causal language model of transformers.

    n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp: sizes (d_mlp: of the first layer that has neurons). layers: the modules. decoder: the
    module that holds them, embed, final_norm, unembed: modules. parallel: attention and feed-forward block read the same stream (no resid_mid).
    logit_scale: by what the vocabulary projection is multiplied (Cohere, Granite); logit_softcap: c where logits are c·tanh(x/c) (Gemma 2).
    Making one runs two tokens through the model for each kind of layer. Raises SubjectError naming what could not be found.
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
        self.logit_softcap: float | None = getattr(config, "final_logit_softcapping", None)
        body = hf.get_decoder() or hf  # of an image-and-text model, the part that reads text
        lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
        lists = [module for module in lists if any(dataflow.is_attention(part) for part in module.modules())]
        if not lists:
            raise SubjectError(f"cannot map {self.family}: no list of layers that hold an attention")
        stack = max(lists, key=len)
        self.layers: list[nn.Module] = list(stack)
        self.n_layers = len(self.layers)
        self.decoder: nn.Module = next(module for module in body.modules() if any(child is stack for child in module.children()))
        norms = [child for child in self.decoder.children() if "norm" in type(child).__name__.lower()]
        if not norms:
            raise SubjectError(f"cannot map {self.family}: no final norm beside the layers")
        self.final_norm: nn.Module = norms[-1]
        self._shape = Shape()
        self._flows = self._traced(hf, config)
        self.parallel: bool = self._flows[0].resid_mid is None
        with_neurons = [layer for layer, flow in enumerate(self._flows) if flow.down_proj is not None]
        self.d_mlp: int = dataflow.width(self.down_proj(with_neurons[0]))[0] if with_neurons else config.intermediate_size
        self._stated_kv_heads = stated.number_of(config, "num_key_value_heads") or self.n_heads
        self.logit_scale: float = stated.logit_scale(hf, self.unembed, self.logit_softcap, stated.numbers(config))

    def _traced(self, hf: Any, config: Any) -> list[dataflow.Flow]:
        """Find the parts of every layer; layers that are made alike are traced once."""
        tokens = torch.tensor([[0, 1]], device=hf.device)
        kinds: dict[Any, dataflow.Flow] = {}
        flows = []
        for i, block in enumerate(self.layers):
            kind = tuple(
                (name, type(part), *(dataflow.width(part) if dataflow.is_linear(part) else ())) for name, part in block.named_modules()
            )
            if kind not in kinds:
                try:
                    kinds[kind] = dataflow.trace(
                        lambda: self.decoder(input_ids=tokens, use_cache=False),
                        block,
                        self.n_heads,
                        stated.number_of(config, "num_key_value_heads"),
                        stated.numbers(config),
                    )
                except (
                    SubjectError,
                    RuntimeError,
                    ValueError,
                    TypeError,
                    AttributeError,
                    IndexError,
                    KeyError,
                ) as error:  # code of any model
                    where = f" (layer {i})" if kinds else ""
                    raise SubjectError(f"cannot map {self.family}: {str(error).splitlines()[0]}{where}") from None
            flow = kinds[kind]
            if flow.flat:
                block.register_forward_pre_hook(self._shape, with_kwargs=True)
            flows.append(flow)
        if len({flow.resid_mid is None for flow in flows}) > 1:
            raise SubjectError(f"cannot map {self.family}: some of its layers run attention and feed-forward in parallel and some do not")
        return flows

    @property
    def d_head(self) -> int:
        """Width of a head. Raises SubjectError where it differs from layer to layer: `site(...).width` is that of a layer."""
        widths = [self.site("z", layer).width for layer in range(self.n_layers) if self.has("z", layer)]
        return self._alike("heads of different widths", widths or [self.d_model // self.n_heads])

    @property
    def n_kv_heads(self) -> int:
        """Number of key-value heads. Raises SubjectError where it differs from layer to layer: `site("k", layer).heads` is that of a layer."""
        return self._alike(
            "different numbers of key-value heads", [len(f.columns["k"][1]) if f.columns else self._stated_kv_heads for f in self._flows]
        )

    def _alike(self, what: str, values: list[int]) -> int:
        if len(set(values)) > 1:
            raise SubjectError(
                f"the layers of {self.family} have {what} ({', '.join(map(str, sorted(set(values))))}): this cannot be done on it"
            )
        return values[0]

    def _part(self, layer: int, name: str | None) -> Any:
        return None if name is None else self.layers[self._layer(layer)].get_submodule(name)

    def _flow(self, layer: int) -> dataflow.Flow:
        return self._flows[self._layer(layer)]

    def _layer(self, layer: int) -> int:
        try:
            layer = index(layer)
        except TypeError:
            raise UsageError(f"a layer is a whole number, not {layer!r}") from None
        if not -self.n_layers <= layer < self.n_layers:
            raise UsageError(f"layer {layer} does not exist: {self.family} has layers 0 to {self.n_layers - 1}")
        return layer % self.n_layers

    def attn(self, layer: int) -> nn.Module:
        """Return the attention module of a layer."""
        return self._part(layer, self._flow(layer).attn)

    def mlp(self, layer: int) -> nn.Module:
        """Return the feed-forward module of a layer."""
        return self._part(layer, self._flow(layer).mlp)

    def attn_norm(self, layer: int) -> nn.Module | None:
        """Return the norm before the attention (None in OLMo 2, which norms after it)."""
        return self._part(layer, self._flow(layer).attn_norm)

    def mlp_norm(self, layer: int) -> nn.Module | None:
        """Return the norm before the feed-forward block (None in OLMo 2; the attention's own in some parallel models)."""
        return self._part(layer, self._flow(layer).mlp_norm)

    def post_norm(self, layer: int, block: Literal["attn", "mlp"]) -> nn.Module | None:
        """Return the norm between a block and the stream that it is added to (Gemma 2 and 3, OLMo 2), or None."""
        flow = self._flow(layer)
        name, own = (flow.attn_out, flow.attn) if block == "attn" else (flow.mlp_out, flow.mlp)
        return None if name.partition(".")[0] == own else self._part(layer, name)

    def added(self, layer: int, block: Literal["attn", "mlp"], projected: Tensor) -> Tensor:
        """What a block adds to the stream, from the output of the linear map that it ends in [.., d_model]: through its norm, times its factor."""
        norm, flow = self.post_norm(layer, block), self._flow(layer)
        factor = flow.attn_factor if block == "attn" else flow.mlp_factor
        value = projected if norm is None else norm(projected)
        return value if factor == 1 else value * factor

    def feed_forward(self, layer: int, stream: Tensor) -> Tensor:
        """What the feed-forward block adds to a stream [.., d_model] that it reads.

        Raises SubjectError where the block is no module of its own (OPT).
        """
        flow, norm, block = self._flow(layer), self.mlp_norm(layer), self.mlp(layer)
        if flow.down_proj == "":
            raise SubjectError(f"the feed-forward block of {self.family} is no module of its own: it cannot be run alone")
        x = stream if norm is None else norm(stream)
        out = dataflow.first_output(block(x, torch.zeros_like(x)) if flow.adds_stream else block(x))
        return self.added(layer, "mlp", out.reshape(stream.shape))

    @property
    def lies_flat(self) -> bool:
        """Whether some blocks see the tokens of all texts laid end to end."""
        return any(flow.flat for flow in self._flows)

    def attends(self, layer: int) -> bool:
        """Whether a layer mixes tokens by an attention (or by one of the project's own mixers), not by a convolution or a recurrence."""
        return self._flow(layer).o_proj is not None

    def adds_stream(self, layer: int) -> bool:
        """Whether the feed-forward block is given the stream too, and adds itself to it (MPT, BLOOM)."""
        return self._flow(layer).adds_stream

    def returned(self, layer: int, stream: Tensor) -> Any:
        """What a layer returns when this stream leaves it, for a function that stands in for the layer."""
        beside = self._flow(layer).beside
        return stream if beside < 0 else (stream, *[None] * beside)

    def logits(self, normed: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits in float32 from the final norm's output: of the whole vocabulary, [.., d_model] → [.., V]; or of tokens [n, k] alone,
        [.., n, d_model] → [.., n, k]."""
        if tokens is None:
            out = self.unembed(normed).float()
        else:
            out = torch.einsum("...nd,nkd->...nk", normed, self.unembedding()[tokens]).float()
            bias = getattr(self.unembed, "bias", None)
            out = out if bias is None else out + bias[tokens].float()
        out = out if self.logit_scale == 1 else out * self.logit_scale
        return self.logit_softcap * torch.tanh(out / self.logit_softcap) if self.logit_softcap else out

    def o_proj(self, layer: int) -> nn.Module:
        """Return the output projection of the attention, from heads · d_head to d_model. Raises SubjectError in a layer that does not attend."""
        name = self._flow(layer).o_proj
        if name is None:
            raise SubjectError(
                f"layer {self._layer(layer)} of {self.family} mixes tokens by {type(self.attn(layer)).__name__}: it has no heads"
            )
        return self.attn(layer).get_submodule(name)

    def down_proj(self, layer: int) -> nn.Module:
        """Return the last linear map of the feed-forward block, whose inputs are the neurons. Raises SubjectError where experts are mixed."""
        name = self._flow(layer).down_proj
        if name is None:
            raise SubjectError(
                f"the feed-forward block of layer {self._layer(layer)} of {self.family} does not end in one linear map (experts?): it has no mlp_post"
            )
        return self.mlp(layer).get_submodule(name)

    def o_weight(self, layer: int) -> Tensor:
        """Return W_O by head: [n_heads, d_head, d_model]."""
        module = self.o_proj(layer)
        weight: Tensor = module.weight  # type: ignore[assignment]
        return (weight if isinstance(module, Conv1D) else weight.T).view(self.n_heads, -1, self.d_model)

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
        flow = self._flow(layer)
        if flow.o_proj is None and name in ("q", "k", "v", "z", "pattern"):
            raise SubjectError(f"layer {layer} of {self.family} mixes tokens by {type(self.attn(layer)).__name__}: it has no {name}")
        shape = self._shape if name in flow.flat else None
        match name:
            case "resid_pre":
                return Site(name, layer, self.layers[layer], "input", self.d_model)
            case "resid_post":
                return Site(name, layer, self.layers[layer], "output", self.d_model)
            case "resid_mid":
                if self.parallel:
                    raise SubjectError(f"{self.family} runs attention and feed-forward in parallel: it has no resid_mid")
                return Site(name, layer, self._part(layer, flow.resid_mid), "input", self.d_model, shape=shape)
            case "attn_out" | "mlp_out":
                where, factor = (flow.attn_out, flow.attn_factor) if name == "attn_out" else (flow.mlp_out, flow.mlp_factor)
                return Site(name, layer, self._part(layer, where), "output", self.d_model, 0, None, factor, name in flow.changed, shape)
            case "mlp_post":
                module = self.down_proj(layer)
                return Site(name, layer, module, "input", dataflow.width(module)[0], shape=shape)
            case "pattern":
                return Site(name, layer, self.attn(layer), "output", 0)
            case "z":
                module, heads = self.o_proj(layer), self.n_heads if own is None else own["z"]
                return Site(name, layer, module, "input", dataflow.width(module)[0] // heads, heads)
        if own is not None:
            module = self.attn(layer).get_submodule(f"{name}_proj")
            return Site(name, layer, module, "output", dataflow.width(module)[1] // own[name], own[name])
        if name not in flow.columns:
            raise SubjectError(f"the attention of {self.family} has no map from which {name} could be read by head")
        projection, columns = flow.columns[name]
        module = self.attn(layer).get_submodule(projection)
        fused = dataflow.width(module)[1] != columns.numel()
        return Site(name, layer, module, "output", columns.shape[1], len(columns), columns if fused else None)

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
