"""Hooks on sites: the one place that reads from and writes into a running model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nullius.errors import SubjectError
from nullius.models.anatomy import Anatomy, Site
from nullius.models.dataflow import first_input, first_output, with_input

Edit = Callable[[Tensor], Tensor]


def on_read(anatomy: Anatomy, site: Site, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `take` with the site's tensor, by head where it has heads, each time the model runs through it. What `take` returns is dropped.

    Raises SubjectError for a model whose layers are compiled, which would not see the hook.
    """
    not_compiled(anatomy, site)
    if site.name == "pattern":

        def pattern(_module: Any, _args: Any, output: Any) -> None:
            if output[1] is None:
                raise SubjectError(
                    "the attention pattern is not there: read it with taps.read, which runs that pass without a fused kernel"
                )
            take(output[1])

        return site.module.register_forward_hook(pattern)

    def after(_module: Any, _args: Any, output: Any) -> Any:  # a hook that returns something puts it in the tensor's place
        value = first_output(output)
        take(_own(anatomy, site, value))
        return _with_output(output, value.clone()) if site.changed else None

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        take(_own(anatomy, site, first_input(args, kwargs)))

    if site.side == "output":
        return _ordered(site.module, site.module.register_forward_hook(after))
    return _ordered(site.module, site.module.register_forward_pre_hook(before, with_kwargs=True))


def on_write(anatomy: Anatomy, site: Site, edit: Edit) -> list[RemovableHandle]:
    """Replace the site's tensor by `edit(tensor)` each time the model runs through it. Returns the handles to remove.

    Edits of one site act in the order in which they were opened; of several sites, in the order in which the model computes these. Raises
    SubjectError for `pattern`, and as `on_read`.
    """
    not_compiled(anatomy, site)
    if site.name == "pattern":
        raise SubjectError("the attention pattern can be read, not edited: edit z or v instead")
    if site.name == "resid_mid":
        return _write_resid_mid(anatomy, site, edit)

    def changed(whole: Tensor) -> Tensor:
        new = edit(_own(anatomy, site, whole))
        new = new if site.factor == 1 else new / site.factor
        new = new.reshape(whole.shape) if site.shape is not None else anatomy.merge_heads(site, whole, new)
        return new.clone() if site.changed else new

    if site.side == "output":

        def output_hook(_module: Any, _args: Any, output: Any) -> Any:
            return _with_output(output, changed(first_output(output)))

        return [_ordered(site.module, site.module.register_forward_hook(output_hook))]

    def input_hook(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return with_input(args, kwargs, changed(first_input(args, kwargs)))

    return [_ordered(site.module, site.module.register_forward_pre_hook(input_hook, with_kwargs=True))]


def hooked(module: nn.Module) -> bool:
    """Whether hooks are open on a module or a part of it. transformers leaves some for good once it was asked for attentions; those only look."""
    hooks = [hook for part in module.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())]
    return any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks)


def _own(anatomy: Anatomy, site: Site, value: Tensor) -> Tensor:
    """A site's own tensor from its module's: by head, by text, as it is added to the stream."""
    value = value if site.shape is None else value.reshape(*site.shape.rows, -1)
    value = anatomy.split_heads(site, value)
    return value if site.factor == 1 else value * site.factor


def _with_output(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _write_resid_mid(anatomy: Anatomy, site: Site, edit: Edit) -> list[RemovableHandle]:
    """resid_mid is a sum that no module returns: it is edited through its summand attn_out, which stays as it is, to the bit, where the edit does."""
    before: dict[str, Tensor] = {}

    def through(attn_out: Tensor) -> Tensor:
        mid = before["resid_pre"] + attn_out  # kept: where activations are checkpointed, a layer is run again without its own hooks
        return attn_out + (edit(mid) - mid)

    first, second = anatomy.site("resid_pre", site.layer), anatomy.site("attn_out", site.layer)
    handles = [on_read(anatomy, first, lambda value: before.update(resid_pre=value)), *on_write(anatomy, second, through)]
    for module, handle in zip((first.module, second.module), handles, strict=True):
        # edits of the summands come first, whenever they are opened
        _hooks(module, handle)[handle.id].of_a_sum = True
    return handles


def _hooks(module: nn.Module, handle: RemovableHandle) -> Any:
    """The hooks of a module among which this one is."""
    return module._forward_hooks if handle.id in module._forward_hooks else module._forward_pre_hooks


def _ordered(module: nn.Module, handle: RemovableHandle) -> RemovableHandle:
    """Put a new hook before those that edit a sum which this module's tensor is a part of."""
    hooks = _hooks(module, handle)
    for number in [number for number, hook in hooks.items() if getattr(hook, "of_a_sum", False)]:
        hooks.move_to_end(number)
    return handle


def not_compiled(anatomy: Anatomy, site: Site) -> None:
    """Raise SubjectError where a site lies in something compiled: such code does not see hooks that are opened later."""
    around = (anatomy.decoder, anatomy.layers[site.layer], anatomy.attn(site.layer), anatomy.mlp(site.layer), site.module)
    if any(part._compiled_call_impl is not None for part in around):
        raise SubjectError(f"the layers of {anatomy.family} are compiled, and would not see what is read or changed: load the model anew")
