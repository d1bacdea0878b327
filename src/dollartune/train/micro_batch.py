"""How much goes through the model at once: rows of a trial (micro-batches), and trials side by side as memory allows.

batch of 16 rows, micro_batch_size 6    [ 6 | 6 | 4 ]  three passes, whose gradients add up, then one optimizer step
8 trials, memory for 3                  [ 3 | 3 | 2 ]  passes of a step
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor

from dollartune.train.batching import by_length
from dollartune.train.free_memory import free_bytes, limited
from dollartune.train.out_of_memory import halved_after_out_of_memory

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone

T = TypeVar("T")

_SHARE = 0.5
"""Of the free memory, what saved activations may take; the rest is for gradients on their way, logits and other processes."""
PATCHES = 256
"""Of an image, which counts as one token in batches, where memory is limited or small passes are told from large ones: a ViT's
of 224 pixels are 197, smaller ones of tests fewer."""
_SECONDS_PER_LAYER = 2.5e-3
"""What a pass costs in each layer, forwards and backwards, however small it is (two CPU cores: 10 ms for 4 layers)."""
_FLOPS_PER_SECOND = {"cpu": 1e11, "cuda": 1e14}
"""What a processor and a GPU get out of middle-sized products, to an order of magnitude: the estimate needs no more."""


def micro_batches(rows: int, micro_batch_size: int) -> list[slice]:
    """The rows of each pass of a batch; the last one may have fewer. Gradients of the passes add up to those of the batch."""
    return [slice(start, start + micro_batch_size) for start in range(0, rows, micro_batch_size)]


def rows_that_fit(saved_bytes: int, tokens: int, longest: int, states_bytes: int, device: torch.device) -> int:
    """Rows of a training pass for which free memory suffices; 0 where it does for none.

    Args:
        saved_bytes: what a measured pass saved for its tokens.
        longest: most tokens of a row.
        states_bytes: what training will hold beside its passes, and does not yet.
    """
    room = _SHARE * (free_bytes(device) - states_bytes)
    return max(0, int(room / max(1.0, saved_bytes / max(1, tokens) * longest)))


def forward_tokens(backbone: Backbone) -> float:
    """Tokens of a pass without gradients for which a limit of memory suffices; without a limit any number."""
    if not limited(backbone.device):
        return math.inf
    outputs: dict[tuple[str, int | None], int] = {}
    for site in (site for site in backbone.anatomy.sites if site.kind == "linear" and site.layer is not None):
        outputs[site.stack, site.layer] = outputs.get((site.stack, site.layer), 0) + site.out_features
    # What all linears of the widest layer write, four states beside them (residual, norms, attention), and keys and values of
    # every layer, which writing texts keeps: in fp32, which norms and kernels compute in.
    width = max((site.in_features for site in backbone.anatomy.at("layer")), default=1)
    numbers = max(outputs.values(), default=width) + 4 * width + 2 * width * len(outputs)
    tokens = _SHARE * free_bytes(backbone.device) / (4 * numbers)
    return tokens / PATCHES if backbone.kind == "vision" else tokens  # an image counts as one token in batches


def evaluation_batches(backbone: Backbone, lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Batches of indices of rows that pass without gradients, by length: as many rows as asked, where memory suffices."""
    return by_length(lengths, rows, spare_padding(backbone), forward_tokens(backbone))


def overhead_tokens(backbone: Backbone) -> int:
    """How many tokens cost as much as the pass itself: more padding than that is not worth a pass less."""
    layers = backbone.anatomy.at("layer")
    parameters = max((site.parameters for site in layers), default=1)
    # 2 operations per parameter forwards; backwards as many again for the inputs' gradients, as weights are frozen
    seconds = 4 * parameters / _FLOPS_PER_SECOND.get(backbone.device.type, 1e11)  # a token in a layer
    return int(_SECONDS_PER_LAYER / seconds)


def spare_padding(backbone: Backbone) -> int:
    """Padding, in tokens, that a batch of an evaluation may have before two smaller batches are cheaper."""
    return max(256, 2 * overhead_tokens(backbone))  # no backward pass: a token costs half; small products are slower


class SavedBytes:
    """Bytes of activations that are saved for the backward pass inside the `with` block, each storage counted once.

    Args:
        parameters: tensors that are there anyway and do not count.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in parameters}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # views of one storage are saved many times and take memory once
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


class MemoryBatchLimit:
    """Which trials share a pass: as many as free memory allows by a measured pass, with rows of like length.

    It decides nothing but speed: trials that are not together take turns within the same step.

    Args:
        overhead_tokens: tokens that cost as much as one pass more.
        rows: rows of a trial in a pass.
        limit_bytes: memory to use, in place of what is free.
    """

    def __init__(
        self, device: torch.device, overhead_tokens: int = sys.maxsize, rows: int = 1, limit_bytes: int | None = None
    ) -> None:
        self.device, self.overhead_tokens, self.rows, self.limit_bytes = device, overhead_tokens, rows, limit_bytes
        self.trials = sys.maxsize

    def together(self, trials: Sequence[T], widths: Sequence[int]) -> list[T]:
        """The next ones: from the shortest rows on, until padding them to a longer trial's costs more than a pass."""
        order = sorted(range(len(trials)), key=lambda index: widths[index])
        chosen = order[:1]
        for index in order[1 : self.trials]:
            # padding the trials so far to this one's width against starting another pass
            if len(chosen) * self.rows * (widths[index] - widths[chosen[-1]]) > self.overhead_tokens:
                break
            chosen.append(index)
        return [trials[index] for index in sorted(chosen)]

    def measure(self, saved_bytes: int, tokens: int, most_tokens: int) -> None:
        """Learns from a pass of one trial: what it saved for its tokens, and the most tokens that a trial may bring."""
        per_trial = max(1.0, saved_bytes / max(1, tokens) * most_tokens)
        free = free_bytes(self.device) if self.limit_bytes is None else self.limit_bytes
        self.trials = max(1, int(_SHARE * free / per_trial))

    def halve(self, error: BaseException, trials: int) -> bool:
        """After a pass of so many trials failed; False if that was not for memory, or if there was only one."""
        smaller = halved_after_out_of_memory(error, trials, "trials per pass")
        if smaller is not None:
            self.trials = smaller
        return smaller is not None
