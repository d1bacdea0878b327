"""Averages of adapters' tensors: of the states of one run, and of several runs (soups). They cost nothing when serving.

    states of a decay   s1 ─ s2 ─ ... ─ sk      one start, one path: any trained tensor may be averaged
    runs from one start θ0 ─┬─ rows in one order ──────┐
                            └─ more rows, in another ──┴─> mean, where θ0 is the same tensor in both

LoRA with fresh A and B per seed has no common start: the mean of A times the mean of B is not the mean of B A. So runs that are
to be averaged have the same seed, and with it the same A and the same new head.

Source: Izmailov et al. 2018 (averages along a run); Wortsman et al. 2022 ("Model soups").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dollartune.errors import UserError

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
    """The mean of several runs' tensors; it has a meaning where they had one start.

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
