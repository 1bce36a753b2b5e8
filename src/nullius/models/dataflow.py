"""What feeds what inside a decoder layer, found by running it with noise in place of every part's output.

Names differ between architectures (and lie: `post_attention_layernorm` comes before the feed-forward block in Llama, after the attention in
Gemma 2). So each part of one layer gets its own random output for one short pass. Whatever equals a noise, or a sum of two, shows where that
noise went. The weights play no role, so this also works on networks that are untrained or wired by hand.

Some blocks add the stream themselves (BLOOM, MPT). Their outputs show no noise of their own, so a second pass leaves them as they are, and the
linear maps that they end in are what is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nullius.errors import SubjectError


@dataclass(frozen=True)
class Flow:
    """Names of submodules of a layer (or, for *_proj, of its attention and feed-forward block). None or empty: there is no such thing.

    attn, mlp: the two blocks. attn_out, mlp_out: the modules whose outputs are added to the residual stream (the blocks, norms after them, or the
    maps that the blocks end in). attn_factor, mlp_factor: by what they are multiplied before they are added (Granite; else 1).
    attn_norm, mlp_norm: the norms before them. resid_mid: the module whose input is the stream between the two (None when they run in parallel).
    In a layer that does not attend (`o_proj` is None) attn is whatever else mixes tokens there: a convolution, a recurrence.
    o_proj, down_proj: the linear maps that the blocks end in; down_proj is "" when the block is itself that map, None when there is no such
    map (mixtures of experts). columns: for q, k, v the linear map and which of its outputs belong to each head, [heads, d_head].
    adds_stream: the feed-forward block takes the stream as well, and adds itself to it. changed: sites whose tensor
    the layer's own code goes on to change in place (Falcon). flat: sites whose tensor is [B · T, ..] there (OPT, some mixtures of experts). beside:
    how many things the layer returns beside the stream, in one tuple with it; −1 where it returns the stream alone.
    """

    attn: str
    mlp: str
    attn_out: str
    mlp_out: str
    attn_norm: str | None
    mlp_norm: str | None
    resid_mid: str | None
    o_proj: str | None
    down_proj: str | None
    columns: Mapping[str, tuple[str, Tensor]]
    attn_factor: float = 1.0
    mlp_factor: float = 1.0
    adds_stream: bool = False
    changed: frozenset[str] = frozenset()
    flat: frozenset[str] = frozenset()
    beside: int = -1


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Linear maps of a module by name, itself ("") included."""
    return {name: part for name, part in module.named_modules() if is_linear(part)}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map."""
    return isinstance(module, (nn.Linear, Conv1D))


def width(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a Linear or of a Conv1D (GPT-2)."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    rows, columns = weight.shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)


def is_attention(module: nn.Module) -> bool:
    """Whether a module's class says that it is an attention; the one thing that is told by its name. The project's own mixers say it themselves."""
    return getattr(module, "is_mixer", False) or (type(module).__name__.lower().endswith(("attention", "attn")) and bool(linears(module)))


def first_output(output: Any) -> Tensor:
    """Return the tensor among what a module returns."""
    return output[0] if isinstance(output, tuple) else output


def first_input(args: Any, kwargs: Any) -> Tensor:
    """Return the tensor that a module was called with."""
    return args[0] if args else kwargs["hidden_states"]


def with_input(args: Any, kwargs: Any, value: Tensor) -> tuple[Any, Any]:
    """Return a module's arguments with another tensor."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})


class _Noisy:
    """One pass through a layer with noise for its input and for the output of each part; keeps what went in and what came out.

    seen: parts of which only the latter is done.
    """

    def __init__(self, layer: nn.Module, parts: Mapping[str, nn.Module], seen: Mapping[str, nn.Module]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.noise: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}  # the very tensors that stand in for outputs: the layer's own code may change them in place
        self.stream: Tensor | None = None
        self.beside = -1
        self._random = torch.Generator().manual_seed(0)
        self._handles = [layer.register_forward_pre_hook(self._enter, with_kwargs=True), layer.register_forward_hook(self._leave)]
        for name, part in parts.items():
            self._handles.append(part.register_forward_pre_hook(self._keep_input(name), with_kwargs=True))
            self._handles.append(part.register_forward_hook(self._replace(name)))
        for name, part in seen.items():
            self._handles.append(part.register_forward_pre_hook(self._keep_input(name), with_kwargs=True))
            self._handles.append(part.register_forward_hook(self._keep_output(name)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _fresh(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._random).to(like)

    def _enter(self, _module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.stream = self._fresh(first_input(args, kwargs))
        return with_input(args, kwargs, self.stream)

    def _leave(self, _module: Any, _args: Any, output: Any) -> None:
        self.outputs["layer"] = first_output(output)
        self.beside = len(output) - 1 if isinstance(output, tuple) else -1

    def _keep_input(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if args or "hidden_states" in kwargs:
                self.inputs[name] = first_input(args, kwargs)

        return hook

    def _keep_output(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            self.outputs[name] = first_output(output)

        return hook

    def _replace(self, name: str) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            self.outputs[name] = first_output(output)
            self.noise[name] = self._fresh(self.outputs[name])
            self.given[name] = self.noise[name].clone()
            return (self.given[name], *output[1:]) if isinstance(output, tuple) else self.given[name]

        return hook


@torch.no_grad()
def trace(run: Callable[[], Any], layer: nn.Module, n_heads: int, n_kv_heads: int | None, factors: Sequence[float] = ()) -> Flow:
    """Find the parts of a layer. run: one pass of the model over at least two tokens.

    n_kv_heads: key-value heads, where the configuration says; others are tried where these do not fit. factors: numbers of the configuration, one of
    which a factor found from noise is taken to be where it is near. Raises SubjectError, with a phrase that names what could not be found.
    """
    children = {name: child for name, child in layer.named_children() if not isinstance(child, (nn.Dropout, nn.Identity))}
    attn = next((name for name, child in children.items() if is_attention(child)), None)
    inner = {} if attn is None else {f"{attn}/{name}": part for name, part in linears(children[attn]).items()}
    others = {f"{n}/{name}": part for n, child in children.items() if n != attn for name, part in linears(child).items() if name}
    bare = {name: child for name, child in children.items() if _is_norm(child) or is_linear(child)}
    pair, noisy, stream = None, None, None
    for whole in (children, bare):  # then blocks that add the stream themselves
        noisy = _Noisy(layer, {**inner, **others, **whole}, {name: child for name, child in children.items() if name not in whole})
        try:
            run()
        finally:
            noisy.close()
        stream = noisy.stream
        if stream is None or not set(whole) <= set(noisy.noise):
            raise SubjectError("its layers do not call all of their parts")
        pair = _summands(noisy, list(whole) if whole is children else [*whole, *inner, *others], factors)
        if pair is not None:
            break
    if pair is None or noisy is None or stream is None:
        raise SubjectError("what its layers add to the residual stream is not the sum of two parts")

    def source(value: Tensor | None, among: Any) -> str | None:
        return next((name for name in among if value is not None and _same(value, noisy.noise.get(name))), None)

    # an output norm is added in place of the block whose output it reads
    behind = {name: source(noisy.inputs.get(name), [*children, *inner, *others]) for name in pair}
    attends = attn is not None
    if attends:
        attn_out = next((name for name in pair if _block(name) == attn or _block(behind[name]) == attn), None)
    else:  # of two blocks the one that tells the other

        def read(name: str) -> bool:
            return any(_same(stream + pair[name] * noisy.noise[name].view_as(stream), noisy.inputs.get(child)) for child in children)

        attn_out = next((name for name in pair if read(name)), None)
    if attn_out is None:
        raise SubjectError("what its attention returns is not added to the residual stream" if attends else "its layers have no attention")
    if attn is None:
        attn = attn_out.partition("/")[0]
        attn = _block(behind[attn_out]) or attn if _is_norm(children[attn]) else attn
    (mlp_out,) = pair.keys() - {attn_out}
    mlp = mlp_out.partition("/")[0]
    if behind[mlp_out] is not None and _is_norm(children[mlp]):
        mlp = _block(behind[mlp_out]) or mlp
    middle = stream + pair[attn_out] * noisy.noise[attn_out].view_as(stream)
    o_proj = source(noisy.outputs[attn], inner) or (attn_out if attn_out in inner else None)
    if o_proj is None and attends:
        raise SubjectError("what its attention returns is not the output of one linear map")
    ends = [name for name in others if name.startswith(f"{mlp}/")]
    down_proj = source(noisy.outputs[mlp], ends) or (mlp_out if mlp_out in ends else None)
    resid_mid = next((name for name in children if _same(middle, noisy.inputs.get(name))), None)
    places = {"attn_out": attn_out, "mlp_out": mlp_out}
    tensors = {**{site: noisy.noise[name] for site, name in places.items()}, "resid_mid": noisy.inputs.get(resid_mid or "")}
    if down_proj or is_linear(children[mlp]):
        tensors["mlp_post"] = noisy.inputs[down_proj or mlp]
    return Flow(
        attn=attn,
        mlp=mlp,
        attn_out=attn_out.replace("/", "."),
        mlp_out=mlp_out.replace("/", "."),
        attn_norm=source(noisy.inputs.get(attn), children),
        mlp_norm=source(noisy.inputs.get(mlp), [name for name in children if _is_norm(children[name])]),
        resid_mid=resid_mid,
        o_proj=o_proj and o_proj.partition("/")[2],
        down_proj="" if is_linear(children[mlp]) else down_proj and down_proj.partition("/")[2],
        columns={} if o_proj is None else _columns(noisy, inner, noisy.inputs[o_proj], n_heads, n_kv_heads),
        attn_factor=pair[attn_out],
        mlp_factor=pair[mlp_out],
        adds_stream=mlp not in noisy.noise,
        changed=frozenset(site for site, name in places.items() if not torch.equal(noisy.given[name], noisy.noise[name])),
        beside=noisy.beside,
        flat=frozenset(site for site, x in tensors.items() if x is not None and x.shape[:-1] != stream.shape[:-1]),
    )


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has no parameters but vectors."""
    return all(parameter.ndim < 2 for parameter in module.parameters())


def _block(name: str | None) -> str | None:
    """The block that a part belongs to."""
    return name and name.partition("/")[0]


def _summands(noisy: _Noisy, among: Sequence[str], factors: Sequence[float]) -> dict[str, float] | None:
    """The two parts whose sum the layer adds to the stream, each with the factor that it is taken by; None where there are no two."""
    assert noisy.stream is not None
    added = (noisy.outputs["layer"] - noisy.stream).double().flatten()
    fitting = [name for name in among if name in noisy.noise and noisy.noise[name].numel() == added.numel()]
    for pair in combinations(fitting, 2):
        sides = torch.stack([noisy.noise[name].double().flatten() for name in pair], 1)
        weights = torch.linalg.lstsq(sides.cpu(), added.cpu()[:, None]).solution[:, 0]
        if float((sides.cpu() @ weights - added.cpu()).norm()) <= 0.05 * float(added.norm()) and float(weights.abs().min()) > 1e-3:
            return {name: near(float(weight), (1.0, *factors)) for name, weight in zip(pair, weights, strict=True)}
    return None


def near(value: float, known: Sequence[float]) -> float:
    """A known number that a noisy one is within a hundredth of, or else the noisy one itself."""
    return next((one for one in known if abs(value - one) <= 0.01 * abs(one)), value)


def _columns(
    noisy: _Noisy, inner: Mapping[str, nn.Module], z: Tensor, n_heads: int, n_kv_heads: int | None
) -> dict[str, tuple[str, Tensor]]:
    """Find q, k, v. The first token can attend only to itself: there, z of a head is its value, whatever the weights; a share of it where
    some attention goes to a sink, a multiple where values are normed.

    Empty where that does not hold (gated attention, heads that are compressed): such a model has no sites q, k, v.
    """
    first = z.flatten(0, -2)[0]
    if len(first) % n_heads:
        return {}
    counts = [n for n in range(n_heads, 0, -1) if n_heads % n == 0]
    for heads in counts if n_kv_heads not in counts else (n_kv_heads, *(n for n in counts if n != n_kv_heads)):
        found = _columns_of(noisy, inner, first.view(n_heads, -1), heads)
        if found:
            return found
    return {}


def _columns_of(noisy: _Noisy, inner: Mapping[str, nn.Module], first: Tensor, n_kv_heads: int) -> dict[str, tuple[str, Tensor]]:
    """The columns for one number of key-value heads; empty where it does not fit. first: z of the first token [n_heads, d_head]."""
    n_heads, d_head = first.shape
    group = n_heads // n_kv_heads
    widths = {"q": n_heads * d_head, "k": n_kv_heads * d_head, "v": n_kv_heads * d_head}
    whole = sum(widths.values())

    def is_value(name: str, columns: Tensor) -> bool:
        value = noisy.noise[name].flatten(0, -2)[0][columns.to(first.device)].repeat_interleave(group, 0).double()
        share = (first.double() * value).sum(-1, keepdim=True) / value.square().sum(-1, keepdim=True)
        return _same(share * value, first.double()) and bool((share > 0).all())

    outs = {name: width(part)[1] for name, part in inner.items() if name in noisy.noise}
    for name in (name for name, out in outs.items() if out == whole):
        number = torch.arange(whole)
        blocks = dict(zip("qkv", (part.view(-1, d_head) for part in number.split(list(widths.values()))), strict=True))
        by_group = number.view(n_kv_heads, group + 2, d_head)
        groups = {"q": by_group[:, :group].reshape(-1, d_head), "k": by_group[:, group], "v": by_group[:, group + 1]}
        for columns in (blocks, groups):
            if is_value(name, columns["v"]):
                return {part: (name.partition("/")[2], chosen) for part, chosen in columns.items()}
    plain = {part: torch.arange(out).view(-1, d_head) for part, out in widths.items()}
    value = next((name for name, out in outs.items() if out == widths["v"] and is_value(name, plain["v"])), None)
    if value is None:
        return {}
    found = {"v": (value.partition("/")[2], plain["v"])}
    for part in "qk":
        named = [name.partition("/")[2] for name, out in outs.items() if out == widths[part] and name != value]
        named = [name for name in named if name.rpartition(".")[2].lstrip("w").startswith(part)] or named
        if len(named) != 1:
            return {}
        found[part] = (named[0], plain[part])
    return found


def _same(a: Tensor, b: Tensor | None) -> bool:
    """Equal up to rounding (bfloat16 included), and up to rows of texts that are laid end to end; different noises differ by more than their size."""
    if b is None or a.shape[-1] != b.shape[-1] or a.numel() != b.numel():
        return False
    return float((a.float().flatten() - b.float().flatten()).norm()) <= 0.05 * float(b.float().norm())
