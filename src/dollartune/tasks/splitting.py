"""Cuts rows into train, validation and test so that no input stands on two sides."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from dollartune.errors import UserError
from dollartune.tasks.base import SplitName

SEED = 20240607
SHARES: dict[SplitName, float] = {"train": 0.70, "validation": 0.15, "test": 0.15}

Item = TypeVar("Item")


def split_rows(
    items: Sequence[Item],
    group: Callable[[Item], Hashable],
    stratum: Callable[[Item], Hashable],
    shares: Mapping[SplitName, float] = SHARES,
    seed: int = SEED,
) -> dict[SplitName, list[Item]]:
    """Deals groups of items to the splits, stratum by stratum, so that each split gets its share of every stratum.

    A group goes to the split that lacks the largest number of items: with deficits `share * n - dealt`, ties to the
    first split. Groups come in an order that depends on the seed only.

    Args:
        items: rows in file order; the order inside a split is kept.
        group: key of a row's group; rows with equal keys stay together (equal inputs, one patient, one page).
        stratum: key of a row's stratum, for example its label; a group counts to its most frequent stratum.
        shares: fraction of the rows per split; their sum is 1.
        seed: the split is a function of the items and this number.

    Raises:
        UserError: there are too few different inputs to give every split one.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[group(item)].append(index)
    if len(groups) < len(shares):
        raise UserError(
            f"{len(groups)} different inputs cannot be divided into {', '.join(shares)}; at least {len(shares)} are needed.",
            "Add rows, or give validation and test files of your own.",
        )
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        strata[Counter(stratum(items[index]) for index in members).most_common(1)[0][0]].append(members)
    dealt = _deal(list(strata.values()), shares, seed)
    if any(not dealt[split] for split in shares):  # strata of one or two groups each: deal over all of them at once
        dealt = _deal([list(groups.values())], shares, seed)
    return {split: [items[index] for index in sorted(dealt[split])] for split in shares}


def _deal(strata: Iterable[list[list[int]]], shares: Mapping[SplitName, float], seed: int) -> dict[SplitName, list[int]]:
    generator = random.Random(seed)
    dealt: dict[SplitName, list[int]] = {split: [] for split in shares}
    for groups in strata:
        total = sum(len(members) for members in groups)
        missing = {split: share * total for split, share in shares.items()}
        order = list(groups)
        generator.shuffle(order)
        for members in order:
            split = max(missing, key=lambda name: missing[name])
            dealt[split].extend(members)
            missing[split] -= len(members)
    return dealt


def input_key(parts: Iterable[str]) -> str:
    """The key under which two inputs count as the same: their texts without regard to case and white space."""
    text = "\x1f".join(" ".join(part.casefold().split()) for part in parts)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
