"""One trial over several processes (torchrun): each passes its share of every batch, the frozen layers lie in shards (FSDP2).

    process 0   rows 0 2 4 ..   ┐ layers: one shard each, put together      ┐ gradients of the adapters are added up;
    process 1   rows 1 3 5 ..   ┘ for the pass through a layer, then freed  ┘ every process takes the same step

What is trained is the same in all processes, and small where the method is parameter-efficient. Full tuning trains fp32 copies
of everything: those, their gradients and the optimizer's numbers are sharded; the working copy is whole in each process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dollartune.attachment.fsdp import is_shard, spread_copies
from dollartune.train.micro_batch import micro_batches

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.anatomy import Anatomy


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which one this is. Alone, everything here does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one keeps the records and watches the clock."""
        return self.rank == 0

    def micro_batches(self, longest: int, micro: int | None) -> list[tuple[int, int, float]]:
        """(start, stop, weight) of the rows that this process passes, one entry per pass.

        Every process has as many passes as the others, since each has to take part in putting layers together; what is
        left over is a row of weight 0.

        Args:
            longest: rows in the largest batch.
            micro: most rows per pass; by default an equal share.
        """
        # Rounded up, so that one pass per process is enough.
        micro = micro or -(-longest // self.size)
        parts = micro_batches(longest, micro)
        # Every size-th part, not a block: rows are sorted by length within a batch (`epoch_order`), and each process gets long
        # and short ones.
        mine = [(part.start, part.stop, 1.0) for part in parts[self.rank :: self.size]]
        # Row 0 always exists; times 0 its gradients add nothing.
        return mine + [(0, 1, 0.0)] * (-(-len(parts) // self.size) - len(mine))

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sums over processes."""
        if self.size == 1:
            return list(numbers)
        import torch.distributed as dist

        # in double: a sum over processes must not round differently from a sum in one
        total = torch.tensor(numbers, dtype=torch.float64, device=device_of_this_process())
        dist.all_reduce(total)
        return total.tolist()

    def agree(self, flag: bool) -> bool:
        """What the first process says: clocks differ, and all must do the same."""
        return bool(self.add([float(flag and self.first)])[0]) if self.size > 1 else flag

    def add_gradients(self, adapters: Iterable[Adapter]) -> None:
        """Adds up the gradients of what every process holds whole; those of shards were added up by the backward pass."""
        if self.size == 1:
            return
        import torch.distributed as dist

        # The same order everywhere: sums are matched by their turn, not by name.
        for adapter in adapters:
            for parameter in adapter.parameters():
                if parameter.requires_grad and not is_shard(parameter):
                    # a process whose rows never reached this tensor still has to take part in the sum
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)


def processes() -> Processes:
    """Those that this one trains with; itself alone where no group was begun."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def device_of_this_process() -> torch.device:
    """Its own GPU, or the CPU."""
    if torch.cuda.is_available():
        # torchrun's number of the process on its own machine.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the group that torchrun describes in the environment, for the block; alone without torchrun."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device_of_this_process())
    # nccl is for GPUs alone; gloo is the one for processors that comes with torch.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield processes()
        dist.barrier()  # none goes while another still talks to it
    finally:
        dist.destroy_process_group()


def shard_layers(model: nn.Module, anatomy: Anatomy) -> int:
    """Spreads the layers of a frozen backbone over the processes; embeddings, norms and head stay whole.

    Adapters that are read from weights (PiSSA, DoRA) are built under `whole_layers`.

    Returns:
        Number of layers that were sharded.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = _mesh()
    # Each module once, in the order in which layers run.
    names = dict.fromkeys(site.exit for site in anatomy.at("layer"))
    for name in names:
        fully_shard(model.get_submodule(name), mesh=mesh)
    return len(names)


def shard_copies(adapter: Adapter) -> int:
    """Spreads what full tuning trains over the processes; the optimizer's numbers follow. Does nothing alone.

    Returns:
        Number of tensors that were sharded.
    """
    return spread_copies((edit for _, edit in adapter.exclusive), _mesh()) if processes().size > 1 else 0


def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_of_this_process().type, (processes().size,))


@contextmanager
def whole_layers(model: nn.Module) -> Iterator[None]:
    """Within the block every process holds all weights, to read them."""
    from torch.distributed.fsdp import FSDPModule

    sharded: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        # Outside a forward pass FSDP2 leaves shards, whose values are a slice of the weight.
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
