"""What feeds what inside a decoder layer, found by running it with noise in place of every part's output.

Names differ between architectures (and lie: `post_attention_layernorm` comes before the feed-forward block in Llama, after the attention in
Gemma 2). So each part of one layer gets its own random output for one short pass. Whatever equals a noise, or a sum of two, shows where that
noise went. The weights play no role, so this also works on networks that are untrained or wired by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    attn, mlp: the two blocks. attn_out, mlp_out: the modules whose outputs are added to the residual stream (the blocks, or norms after them).
    attn_norm, mlp_norm: the norms before them. resid_mid: the module whose input is the stream between the two (None when they run in parallel).
    o_proj, down_proj: the linear maps that the blocks end in; down_proj is "" when the block is itself that map, None when there is no such
    map (mixtures of experts). columns: for q, k, v the linear map and which of its outputs belong to each head, [heads, d_head].
    """

    attn: str
    mlp: str
    attn_out: str
    mlp_out: str
    attn_norm: str | None
    mlp_norm: str | None
    resid_mid: str | None
    o_proj: str
    down_proj: str | None
    columns: Mapping[str, tuple[str, Tensor]]


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Linear maps of a module by name, itself ("") included."""
    return {name: part for name, part in module.named_modules() if isinstance(part, (nn.Linear, Conv1D))}


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
    """One pass through a layer with noise for its input and for the output of each part; keeps what went in and what came out."""

    def __init__(self, layer: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.noise: dict[str, Tensor] = {}
        self.stream: Tensor | None = None
        self._random = torch.Generator().manual_seed(0)
        self._handles = [layer.register_forward_pre_hook(self._enter, with_kwargs=True), layer.register_forward_hook(self._leave)]
        for name, part in parts.items():
            self._handles.append(part.register_forward_pre_hook(self._keep_input(name), with_kwargs=True))
            self._handles.append(part.register_forward_hook(self._replace(name)))

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

    def _keep_input(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if args or "hidden_states" in kwargs:
                self.inputs[name] = first_input(args, kwargs)

        return hook

    def _replace(self, name: str) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            self.outputs[name] = first_output(output)
            self.noise[name] = self._fresh(self.outputs[name])
            return (self.noise[name], *output[1:]) if isinstance(output, tuple) else self.noise[name]

        return hook


@torch.no_grad()
def trace(run: Callable[[], Any], layer: nn.Module, n_heads: int, n_kv_heads: int, d_head: int) -> Flow:
    """Find the parts of a layer. run: one pass of the model over at least two tokens.

    Raises SubjectError, with a phrase that names what could not be found.
    """
    children = {name: child for name, child in layer.named_children() if not isinstance(child, (nn.Dropout, nn.Identity))}
    attn = next((name for name, child in children.items() if is_attention(child)), None)
    if attn is None:
        raise SubjectError("its layers have no attention")
    inner = {f"{attn}/{name}": part for name, part in linears(children[attn]).items()}
    others = {f"{n}/{name}": part for n, child in children.items() if n != attn for name, part in linears(child).items() if name}
    noisy = _Noisy(layer, {**inner, **others, **children})
    try:
        run()
    finally:
        noisy.close()
    if noisy.stream is None or not set(children) <= set(noisy.noise):
        raise SubjectError("its layers do not call all of their parts")

    def source(value: Tensor | None, among: Any) -> str | None:
        return next((name for name in among if value is not None and _same(value, noisy.noise.get(name))), None)

    added = noisy.outputs["layer"] - noisy.stream
    fitting = [name for name in children if noisy.noise[name].shape == added.shape]
    pair = next((set(pair) for pair in combinations(fitting, 2) if _same(added, noisy.noise[pair[0]] + noisy.noise[pair[1]])), None)
    if pair is None:
        raise SubjectError("what its layers add to the residual stream is not the sum of two parts")
    # an output norm is added in place of the block whose output it reads
    behind = {name: source(noisy.inputs.get(name), children) for name in pair}
    attn_out = next((name for name in pair if name == attn or behind[name] == attn), None)
    if attn_out is None:
        raise SubjectError("what its attention returns is not added to the residual stream")
    (mlp_out,) = pair - {attn_out}
    mlp = mlp_out
    if behind[mlp_out] is not None and not linears(children[mlp_out]):
        mlp = behind[mlp_out] or mlp_out
    middle = noisy.stream + noisy.noise[attn_out]
    o_proj = source(noisy.outputs[attn], inner)
    if o_proj is None:
        raise SubjectError("what its attention returns is not the output of one linear map")
    down_proj = source(noisy.outputs[mlp], [name for name in others if name.startswith(f"{mlp}/")])
    return Flow(
        attn=attn,
        mlp=mlp,
        attn_out=attn_out,
        mlp_out=mlp_out,
        attn_norm=source(noisy.inputs.get(attn), children),
        mlp_norm=source(noisy.inputs.get(mlp), [name for name in children if not linears(children[name])]),
        resid_mid=next((name for name in children if _same(middle, noisy.inputs.get(name))), None),
        o_proj=o_proj.partition("/")[2],
        down_proj="" if isinstance(children[mlp], (nn.Linear, Conv1D)) else down_proj and down_proj.partition("/")[2],
        columns=_columns(noisy, attn, inner, noisy.inputs[o_proj], n_heads, n_kv_heads, d_head),
    )


def _columns(
    noisy: _Noisy, attn: str, inner: Mapping[str, nn.Module], z: Tensor, n_heads: int, n_kv_heads: int, d_head: int
) -> dict[str, tuple[str, Tensor]]:
    """Find q, k, v. The first token can attend only to itself: there, z of a head is its value, whatever the weights.

    Empty where that does not hold (gated or sink attention): such a model has no sites q, k, v.
    """
    group = n_heads // n_kv_heads
    widths = {"q": n_heads * d_head, "k": n_kv_heads * d_head, "v": n_kv_heads * d_head}
    whole = sum(widths.values())
    first = z.flatten(0, -2)[0]
    if first.numel() != widths["q"]:
        return {}

    def is_value(name: str, columns: Tensor) -> bool:
        value = noisy.noise[name].flatten(0, -2)[0][columns.to(first.device)]
        return _same(value.repeat_interleave(group, 0).flatten(), first)

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
    """Equal up to rounding (bfloat16 included); different noises differ by more than their own size."""
    return b is not None and a.shape == b.shape and float((a.float() - b.float()).norm()) <= 0.05 * float(b.float().norm())
