"""Which of the waiting prompts are read in one pass: a pass is as wide as its longest prompt, and padding is computed too."""

from __future__ import annotations

from collections.abc import Sequence


def choose(lengths: Sequence[int], room: int, most: int, spare: int) -> list[int]:
    """Indices of prompts to read together: the first, which waits longest, and those nearest to it in length.

    Args:
        lengths: tokens of each waiting prompt that are still to be read, in order of arrival.
        room: rows that may join.
        most: tokens of one pass, padding included; the first prompt always joins, however long.
        spare: tokens that cost as much as a pass by itself; whoever joins adds no more padding than that.

    Returns:
        Indices in order of arrival.
    """
    if not lengths or room <= 0:
        return []
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    low = high = order.index(0)
    while (rows := high - low + 1) < room:
        longest = lengths[order[high]]
        # The shorter one pads itself; the longer one pads all rows that are there.
        costs = []
        if low > 0 and (rows + 1) * longest <= most:
            costs.append((longest - lengths[order[low - 1]], 0))
        if high + 1 < len(order) and (rows + 1) * lengths[order[high + 1]] <= most:
            costs.append(((lengths[order[high + 1]] - longest) * rows, 1))
        padding, longer = min(costs, default=(spare + 1, 0))
        if padding > spare:
            break
        low, high = low - 1 + longer, high + longer
    return sorted(order[low : high + 1])


def length_class(tokens: int, short: int) -> int:
    """Prompts of one class share a batch: 0 up to `short` tokens, and one more for each factor of four above.

    A batch has as many places for each row as its longest row has. Where one of 2,000 joins fifteen of 50, buffers of 32,000
    places are filled, and read at every step, for 2,750 that somebody has: a step of its own costs less.
    """
    found, most = 0, short
    while tokens > most:
        found, most = found + 1, 4 * most
    return found


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
