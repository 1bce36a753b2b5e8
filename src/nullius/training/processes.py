"""One process or many: what `torchrun` started, on which device each works, and how a model is sharded over them (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nullius.errors import NulliusError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """rank of this process among `world`, and its device. mesh: how they are connected; None for a single one."""

    rank: int
    world: int
    device: torch.device
    mesh: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.world
        return values

    def one_by_one(self, work: Callable[[], T]) -> T:
        """Do something in the first process and then in the others, which find what the first left on the disk.

        When it fails in the first, all raise its error: nobody waits for ever.
        """
        if self.world == 1:
            return work()
        result, error = None, None
        if self.first:
            try:
                result = work()
            except NulliusError as problem:
                error = problem
        told: list[Any] = [None if error is None else (str(error), error.exit_code)]
        dist.broadcast_object_list(told, src=0, device=self.device)
        if told[0] is not None:
            failed = NulliusError(told[0][0])
            failed.exit_code = told[0][1]
            raise error or failed
        return result if self.first else work()  # type: ignore[return-value]

    def shard(self, hf: Any) -> None:
        """Spread a model's weights over all processes, layer by layer: each is gathered just before it is used, and let go after."""
        from torch.distributed.fsdp import fully_shard

        for layer in layers(hf):
            fully_shard(layer, mesh=self.mesh)
        fully_shard(hf, mesh=self.mesh)


@contextmanager
def start(device: str | None = None) -> Iterator[Processes]:
    """Join the other processes when `torchrun` started this one (it sets WORLD_SIZE, RANK and LOCAL_RANK), and leave them at the end."""
    world, rank, local = (int(os.environ.get(name, other)) for name, other in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    kind = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if world == 1:
        yield Processes(0, 1, kind)
        return
    if kind.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(f"process {local} has no GPU of its own: {torch.cuda.device_count()} here; start that many (--nproc-per-node)")
        kind = torch.device("cuda", local)
        torch.cuda.set_device(kind)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo", device_id=kind if kind.type == "cuda" else None)
    try:
        mesh = dist.device_mesh.init_device_mesh(kind.type, (world,))
        yield Processes(rank, world, kind, mesh)
        dist.barrier()  # leave together: who is still connected to one that has left may be torn down with it
    finally:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    """Return the device of a name. Raises UsageError for one that there is not, or on which nothing can be trained."""
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device '{name}': write cpu, cuda, or cuda:1 for the second GPU") from None
    if found.type == "meta":
        raise UsageError("nothing can be trained on the device 'meta', which has no memory: write cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; leave --device out to use the CPU")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no device '{name}': the GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return found


def layers(hf: Any) -> list[nn.Module]:
    """Return the layers of a model: its longest list of modules of one kind."""
    lists = [module for module in hf.modules() if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1]
    return list(max(lists, key=len, default=[]))
