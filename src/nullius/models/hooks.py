"""Hooks on sites: the one place that reads from and writes into a running model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nullius.errors import SubjectError
from nullius.models.anatomy import Anatomy, Site
from nullius.models.dataflow import first_input, first_output, with_input

Edit = Callable[[Tensor], Tensor]


def on_read(anatomy: Anatomy, site: Site, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `take` with the site's tensor, by head where it has heads, each time the model runs through it. What `take` returns is dropped."""
    if site.name == "pattern":

        def pattern(_module: Any, _args: Any, output: Any) -> None:
            if output[1] is None:
                raise SubjectError(
                    "the attention pattern is not there: read it with taps.read, which runs that pass without a fused kernel"
                )
            take(output[1])

        return site.module.register_forward_hook(pattern)

    def after(_module: Any, _args: Any, output: Any) -> None:  # a hook that returned something would put it in the tensor's place
        take(anatomy.split_heads(site, first_output(output)))

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        take(anatomy.split_heads(site, first_input(args, kwargs)))

    if site.side == "output":
        return site.module.register_forward_hook(after)
    return site.module.register_forward_pre_hook(before, with_kwargs=True)


def on_write(anatomy: Anatomy, site: Site, edit: Edit) -> list[RemovableHandle]:
    """Replace the site's tensor by `edit(tensor)` each time the model runs through it. Returns the handles to remove."""
    if site.name == "pattern":
        raise SubjectError("the attention pattern can be read, not edited: edit z or v instead")
    if site.name == "resid_mid":
        return _write_resid_mid(anatomy, site, edit)

    def changed(whole: Tensor) -> Tensor:
        return anatomy.merge_heads(site, whole, edit(anatomy.split_heads(site, whole)))

    if site.side == "output":

        def output_hook(_module: Any, _args: Any, output: Any) -> Any:
            value = changed(first_output(output))
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return [site.module.register_forward_hook(output_hook)]

    def input_hook(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return with_input(args, kwargs, changed(first_input(args, kwargs)))

    return [site.module.register_forward_pre_hook(input_hook, with_kwargs=True)]


def _write_resid_mid(anatomy: Anatomy, site: Site, edit: Edit) -> list[RemovableHandle]:
    """resid_mid is a sum that no module returns: it is edited through its summand attn_out."""
    before: list[Tensor] = []
    handle = on_read(anatomy, anatomy.site("resid_pre", site.layer), lambda value: before.append(value))
    through = on_write(anatomy, anatomy.site("attn_out", site.layer), lambda value: edit(before[-1] + value) - before.pop())
    return [handle, *through]
