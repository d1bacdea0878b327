"""CUDA graphs: a pass whose shapes come again is recorded once; from then on the GPU replays it without Python.

    1st to 3rd time    the plain pass
    after the 3rd      the same pass is recorded on copies of its batch's tensors
    4th time           plain and replayed: only if both give the same losses and gradients, the recording is kept
    later              the batch is copied in, and replayed

Small passes alone gain: there, starting each of some thousand kernels takes longer than what it computes. A recording
holds everything that Python decided, so what Python may decide anew at each step is excluded: edits that draw from a
step's seed (dropout), penalties that follow a schedule, states of a frozen prefix, and adapters whose settings or tensors were
exchanged since.
The plain pass is the reference; `tests/train/test_cuda_graphs.py` holds them equal.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from dollartune.train.batching import Batch
from dollartune.train.micro_batch import PATCHES
from dollartune.train.out_of_memory import is_out_of_memory
from dollartune.train.recordable import recordable

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.train.shared_pass import SharedPass

log = logging.getLogger("dollartune")

_TIMES_BEFORE_RECORDING = 3
"""Times that a shape must have come before its pass is recorded: recording costs about two passes, and rare shapes never pay."""
_MOST_GRAPHS = 32
"""Recordings of one trainer; each keeps its batch and gradients, and all share the memory of their activations."""
_TOLERANCE = 0.02
"""Most relative difference of losses and gradients at the first replay: bf16 sums in another order stay far below."""


class _Unreadable:
    """Stands where a seed would; whatever is computed from it raises a TypeError."""


class Recording(Protocol):
    """Keeps what a function did on a device, to do it again with the same tensors."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Runs the function. What it returns, and all tensors that it left behind, are written anew by each replay."""
        ...

    def replay(self) -> None: ...


class CudaRecording:
    """A CUDA graph.

    Args:
        pool: memory shared by graphs that never run at the same time.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        # A side stream for the run before, as torch's notes on CUDA graphs want it.
        before = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(before)
        with torch.cuda.stream(aside):
            function()  # libraries set themselves up for a stream at first use, which must not be recorded
        before.wait_stream(aside)
        try:
            with torch.cuda.graph(self.graph, pool=self.pool):
                return function()
        except BaseException:
            # torch ends a broken recording with an error, before it goes back to the stream and lets go of the pool: all that
            # follows would run on the recording's stream, and no freed memory would be given back any more.
            torch.cuda.set_stream(before)
            with suppress(RuntimeError):  # where the recording had not begun, or has ended
                torch._C._cuda_endAllocateToPool(before.device_index, self.pool)
            raise

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class _Recorded:
    recording: Recording
    batch: Batch
    losses: Tensor
    gradients: list[tuple[Tensor, Tensor | None]]
    """Each parameter with its gradient, as the replay writes it."""
    trusted: bool = False

    def replay(self, batch: Batch) -> None:
        """With the values of another batch of the same shapes, on the host."""
        for recorded, new in zip(_tensors(self.batch), _tensors(batch), strict=True):
            # Into the very memory that was recorded; copies and replay are queued on one stream, in this order.
            recorded.copy_(new, non_blocking=True)
        self.recording.replay()


class CudaGraphs:
    """The recorded passes of one trainer.

    Args:
        device: where passes run.
        new: makes an empty recording; None: every pass is a plain one.
        most_tokens: of a pass that gains by it.
    """

    def __init__(self, device: torch.device, new: Callable[[], Recording] | None, most_tokens: int) -> None:
        self.device, self.new, self.most_tokens = device, new, most_tokens
        self._met: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._refused: set[Hashable] = set()
        self.replayed = 0
        """ForwardBackward that were replayed instead of run."""

    @classmethod
    def on(cls, device: torch.device, most_tokens: int) -> CudaGraphs:
        """With CUDA graphs on a GPU, without recordings elsewhere."""
        if device.type != "cuda":
            return cls(device, None, 0)
        pool = torch.cuda.graph_pool_handle()
        return cls(device, lambda: CudaRecording(pool), most_tokens)

    @property
    def active(self) -> bool:
        """Whether anything may be recorded."""
        return self.new is not None

    def clear(self) -> None:
        """Gives the memory of all recordings back."""
        self._met.clear()
        self._recorded.clear()
        self._refused.clear()

    def run(self, shared: SharedPass, batch: Batch) -> Tensor:
        """(trials,) summed losses of a pass; gradients lie in the parameters, which held none."""
        tokens = batch.tokens * (PATCHES if "pixel_values" in batch.inputs else 1)
        if self.new is None or tokens > self.most_tokens:
            return shared(batch.to(self.device))
        batch = batch.to(torch.device("cpu"))  # where it is, and its layout with it
        key = _key(shared, batch)
        recorded = self._recorded.get(key)
        if recorded is not None and recorded.trusted:
            recorded.replay(batch)
            for parameter, gradient in recorded.gradients:
                # The replay wrote into the recording's gradient; the optimizer reads that tensor without a copy.
                parameter.grad = gradient
            self.replayed += 1
            return recorded.losses
        moved = batch.to(self.device)
        losses = shared(moved)
        if recorded is not None:
            recorded.replay(batch)
            recorded.trusted = _same(recorded, losses)
            if not recorded.trusted:
                del self._recorded[key]
                self._refused.add(key)
                log.warning("a recorded pass gave other gradients than the plain one: such passes stay plain")
        # what could not be recorded once is never tried again: each try costs two passes
        elif key not in self._refused and len(self._recorded) < _MOST_GRAPHS:
            self._met[key] += 1
            if self._met[key] == _TIMES_BEFORE_RECORDING:
                self._record(key, shared, moved)
        return losses

    def _record(self, key: Hashable, shared: SharedPass, batch: Batch) -> None:
        """Records a pass after it was run; its gradients stay as they are."""
        assert self.new is not None
        parameters = shared.parameters()
        # The step still needs what the plain pass gave.
        before = [parameter.grad for parameter in parameters]
        copied = _copied(batch)  # a graph reads the very memory that it was recorded on
        # An edit that draws would be frozen with the numbers of this step; so it fails here, and the pass stays plain.
        seeds = [cast(int, _Unreadable())] * len(shared.trials)

        def function() -> Tensor:
            for parameter in parameters:
                parameter.grad = None  # so that the backward pass writes gradients, and adds to none
            with recordable(shared.attached.model):
                return shared(copied, seeds)

        recording = self.new()
        try:
            losses = recording.record(function)
            written = [(parameter, parameter.grad) for parameter in parameters]
            self._recorded[key] = _Recorded(recording, copied, losses, written)
        except Exception as error:  # whatever cannot be recorded is passed plainly, as before
            self._refused.add(key)
            what = "no memory" if is_out_of_memory(error) else str(error).partition("\n")[0]
            log.debug("a pass of %s is not recorded: %s", [trial.name for trial in shared.trials], what)
        finally:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient


def _key(shared: SharedPass, batch: Batch) -> Hashable:
    """What a recording takes for granted: everything about a pass but the values of its tensors."""
    # slices are no keys before Python 3.12
    parts = [(s.start, s.stop) for s in (*shared.rows, *shared.targets)]
    shapes = [tuple(tensor.shape) for tensor in _tensors(batch)]
    trials = [(trial.name, signature(trial.adapter)) for trial in shared.trials]
    return (*batch.inputs, *shapes, *parts, *shared.weights, batch.layout, *trials)


def signature(adapter: Adapter) -> Hashable:
    """Everything in an adapter's edits that a recording would not see change: plain settings, and where tensors lie."""
    parts: list[Hashable] = []
    for module in adapter.modules():
        for name, value in (*vars(module).items(), *module._parameters.items(), *module._buffers.items()):
            if isinstance(value, Tensor):
                parts.append((name, value.data_ptr(), value.requires_grad))
            elif isinstance(value, int | float | str | None):
                parts.append((name, value))
    return tuple(parts)


def _tensors(batch: Batch) -> list[Tensor]:
    keep = () if batch.keep is None else batch.keep
    lengths = () if batch.prompt_lengths is None else (batch.prompt_lengths,)
    return [*batch.inputs.values(), batch.targets, *keep, *lengths]


def _copied(batch: Batch) -> Batch:
    """The same in tensors of its own."""
    keep = None if batch.keep is None else (batch.keep[0].clone(), batch.keep[1].clone())
    lengths = None if batch.prompt_lengths is None else batch.prompt_lengths.clone()
    inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    return Batch(inputs, batch.targets.clone(), keep, lengths, batch.counts, batch.layout)


def _same(recorded: _Recorded, losses: Tensor) -> bool:
    """Whether a replay gave these losses, and the gradients that the parameters hold now."""
    pairs = [(recorded.losses, losses)]
    for parameter, gradient in recorded.gradients:
        if (gradient is None) != (parameter.grad is None):
            return False
        if gradient is not None and parameter.grad is not None:
            pairs.append((gradient, parameter.grad))
    return all(_close(mine, plain) for mine, plain in pairs)


def _close(mine: Tensor, plain: Tensor) -> bool:
    difference = torch.linalg.vector_norm((mine - plain).float())
    # relative to the plain pass; the small absolute part is for gradients that are rightly 0
    return bool(difference <= _TOLERANCE * torch.linalg.vector_norm(plain.float()) + 1e-8)
