"""Which of the waiting prompts are read in one pass: a pass is as wide as its longest prompt, and padding is computed too."""

from __future__ import annotations

from collections.abc import Sequence

FREE_PADDING = 16
"""Padding tokens per row that are not worth a pass of their own: below it, a pass over the weights costs more."""


def choose(lengths: Sequence[int], room: int, most: int) -> list[int]:
    """Indices of prompts to read together: the first, which waits longest, and those nearest to it in length.

    Args:
        lengths: tokens of each waiting prompt that are still to be read, in order of arrival.
        room: rows that may join.
        most: tokens of one pass, padding included; the first prompt always joins, however long.

    Returns:
        Indices in order of arrival; at most a fifth of their pass, and `FREE_PADDING` per row, is padding.
    """
    if not lengths or room <= 0:
        return []
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    low = high = order.index(0)
    total = lengths[0]

    def fits(longest: int, added: int) -> bool:
        rows = high - low + 2
        padding = rows * longest - (total + added)
        return rows * longest <= most and padding <= FREE_PADDING * rows + rows * longest // 5

    while high - low + 1 < room:
        longest = lengths[order[high]]
        below = lengths[order[low - 1]] if low > 0 else None
        above = lengths[order[high + 1]] if high + 1 < len(order) else None
        # The shorter one pads itself; the longer one pads all rows that are there.
        costs = []
        if below is not None and fits(longest, below):
            costs.append((longest - below, 0))
        if above is not None and fits(above, above):
            costs.append(((above - longest) * (high - low + 1), 1))
        if not costs:
            break
        if min(costs)[1] == 0:
            low -= 1
            total += lengths[order[low]]
        else:
            high += 1
            total += lengths[order[high]]
    return sorted(order[low : high + 1])


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # halving: comparing slices is far faster than comparing tokens one by one
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
