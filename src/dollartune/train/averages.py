"""Averages of adapters' tensors: of the states of one run, and of several runs (soups). They cost nothing when serving.

    states of a decay   s1 ─ s2 ─ ... ─ sk      one start, one path: any trained tensor may be averaged
    runs from one start θ0 ─┬─ seed 0 ─┐
                            ├─ seed 1 ─┼─> mean, where θ0 is the same tensor in all
                            └─ seed 2 ─┘

LoRA with fresh A and B per seed has no common start: the mean of A times the mean of B is not the mean of B A. Its runs are
averaged where they begin at the same adapter, or as merged weights.

Source: Izmailov et al. 2018 (averages along a run); Wortsman et al. 2022 ("Model soups").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter

AVERAGED_STATES = 20
"""States of a decay that are averaged, at most: each costs a pass through the trained tensors, and beyond some ten the mean
hardly moves."""


@torch.no_grad()
def add_state(average: Mapping[str, Tensor], state: Mapping[str, Tensor], count: int) -> None:
    """Takes the count-th state into a running mean, in place; integers and flags are those of the latest state."""
    for name, tensor in state.items():
        if tensor.is_floating_point():
            # The running mean m += (x - m) / n: one state in memory, whatever their number, and a mean after each of them.
            average[name].add_((tensor - average[name]) / count)
        else:
            average[name].copy_(tensor)


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several runs' tensors. See `refuse_soup` for when it has a meaning.

    Raises:
        UserError: names or shapes differ (pruned ranks, another method).
    """
    # Cloned, because the mean is formed in place and the run's own tensors are still its record.
    first = {name: tensor.clone() for name, tensor in states[0].items()}
    for count, state in enumerate(states[1:], start=2):
        differ = [name for name in first if name not in state or state[name].shape != first[name].shape]
        if differ or state.keys() != first.keys():
            raise UserError(f"adapters of different shape have no average: they differ in {(differ or ['names'])[:3]}.")
        add_state(first, state, count)
    return first


def refuse_soup(adapters: Sequence[Adapter]) -> str | None:
    """Why runs of these adapters, with seeds of their own, may not be averaged tensor by tensor; None where they may.

    They may where every trained tensor starts at the same value in all of them: full tuning, layer freezing, BitFit, norm tuning,
    (IA)3, differences that begin at zero. They may not where a seed draws the start, as for LoRA's A, adapters' projections and
    prompts, whose runs end in frames of their own. A head that was drawn anew counts too; one begun at the solved probe does
    not.

    Args:
        adapters: as they begin, before training.
    """
    # Before tensors are compared: LoRA of rank 4 and of rank 8 differ in shape, and `equal` would say only that.
    if any([m.describe() for m in one.methods] != [m.describe() for m in adapters[0].methods] for one in adapters[1:]):
        return "they are of different methods or settings"
    starts = [one.tensors() for one in adapters]
    for name in adapters[0].trainable():
        if name in starts[0] and any(not torch.equal(starts[0][name], start[name]) for start in starts[1:]):
            return f"they begin at different values of {name}"
    return None
