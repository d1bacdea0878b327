"""Passes in fp32 of a backbone that is kept in half precision, where rounding would let a row's neighbours decide its answer.

    weights in bf16 ──> the same values in fp32, for a while ──> passes whose sums differ by 1e-6 with the rows beside a row

A product in bf16 rounds its sums to three digits, and the order of the sums depends on how many rows there are: scores move by
hundredths, so that of two answers which are nearly as likely another one wins in another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.backbones.device_map import home_device
from dollartune.train.distributed import processes
from dollartune.train.free_memory import free_bytes

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached

HALF = (torch.bfloat16, torch.float16)
NEAR_NATS = 0.25
"""By which the likeliest answer has to lead for half precision to be sure of it. Scores of small models moved by 0.016 nats
from batch to batch; more than ten times that is left for large ones."""
_ROOM = 1.25
"""Times the weights in fp32 that must be free for them: passes need memory as well."""


def rounds(attached: Attached) -> bool:
    """Whether passes are in half precision and could be in fp32: weights that are packed in 4 bits, spread over devices or over
    processes stay as they are."""
    if attached.placed or processes().size > 1:
        return False
    parameters = list(attached.model.parameters())
    if not all(one.is_floating_point() for one in parameters):
        return False
    half = [one for one in parameters if one.dtype in HALF]
    needed = _ROOM * sum(4 * one.numel() for one in half)
    return bool(half) and needed < free_bytes(home_device(attached.model))


@contextmanager
def in_fp32(attached: Attached) -> Iterator[None]:
    """Within the block, weights have the values that they have in half precision, as fp32 numbers, and passes compute in fp32.

    They are cast and not rounded, so that what was in half precision is afterwards as before, bit for bit.
    """
    tensors = [*attached.model.parameters(), *attached.model.buffers()]
    half = [(one, one.data) for one in tensors if one.dtype in HALF]
    # Outputs of frozen layers are kept in half precision.
    with attached.every_layer():
        try:
            # Numbers that are made in inference mode could be no weights after it.
            with torch.inference_mode(False), torch.no_grad():
                for one, _ in half:
                    one.data = one.data.float()
            yield
        finally:
            with torch.inference_mode(False), torch.no_grad():
                for one, before in half:
                    one.data = before


def surely_best(attached: Attached, scores: Tensor, score: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Scores of answers, (rows, answers). Where passes are in half precision, those of rows whose two likeliest answers are near
    each other are computed in fp32: which of them is chosen then depends on the row alone.

    Args:
        score: scores rows, by index, (rows asked for, answers).
    """
    if scores.shape[-1] < 2 or not len(scores) or not rounds(attached):
        return scores
    first, second = scores.topk(2, dim=-1).values.unbind(-1)
    unsure = (first - second < NEAR_NATS).nonzero()[:, 0].tolist()
    if not unsure:
        return scores
    with in_fp32(attached):
        again = score(unsure)
    scores = scores.clone()  # what was made in inference mode cannot be written into outside it
    scores[unsure] = again
    return scores
