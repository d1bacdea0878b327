"""Cuts rows into train, validation and test so that no input stands on two sides."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.tasks.base import SplitName

# Fixed for good: another value would cut other test rows, and no record could be compared with one of before.
SEED = 20240607
# 15 % of a thousand rows are 150 test rows, where an interval of accuracy is about 13 points wide; less would say little.
SHARES: dict[SplitName, float] = {"train": 0.70, "validation": 0.15, "test": 0.15}

Item = TypeVar("Item")


def split_rows(
    items: Sequence[Item],
    keys: Callable[[Item], Iterable[Hashable]],
    stratum: Callable[[Item], Hashable],
    shares: Mapping[SplitName, float] = SHARES,
    seed: int = SEED,
) -> dict[SplitName, list[Item]]:
    """Deals groups of items to the splits, stratum by stratum, so that each split gets its share of every stratum.

    A group goes to the split that lacks the largest number of items: with deficits `share * n - dealt`, ties to the
    first split. Groups come in an order that depends on the seed only.

    Args:
        items: rows in file order; the order inside a split is kept.
        keys: what ties rows together (equal inputs, one patient, one page); rows that share a key, directly or through
            other rows, are one group.
        stratum: key of a row's stratum, for example its label; a group counts to its most frequent stratum.
        shares: fraction of the rows per split; their sum is 1.
        seed: the split is a function of the items and this number.

    Raises:
        UserError: there are too few different inputs to give every split one.
    """
    groups = _connected([list(keys(item)) for item in items])
    # Groups, not rows: a hundred rows with one input are one group, and any cut of them would test on training inputs.
    if len(groups) < len(shares):
        raise UserError(
            f"{len(groups)} different inputs cannot be divided into {', '.join(shares)}: {len(shares)} are needed.",
            "Add rows, or give validation and test files of your own.",
        )
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for members in groups:
        strata[Counter(stratum(items[index]) for index in members).most_common(1)[0][0]].append(members)
    dealt = _deal(list(strata.values()), shares, seed)
    _keep_rare(list(strata.values()), dealt)
    if "train" in dealt:
        _keep_learnable(list(strata.values()), dealt)
    return {split: [items[index] for index in sorted(chain.from_iterable(dealt[split]))] for split in shares}


def _connected(keys: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Indices of items that share keys, as groups in order of their first item (union-find)."""
    parent = list(range(len(keys)))

    def root(index: int) -> int:
        while parent[index] != index:
            # Path halving keeps look-ups nearly constant in time.
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    owner: dict[Hashable, int] = {}
    for index, keys_of_row in enumerate(keys):
        for key in keys_of_row:
            # The smaller index becomes the root, so that groups do not depend on the order of keys.
            first, second = sorted((root(owner.setdefault(key, index)), root(index)))
            parent[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(keys)):
        groups[root(index)].append(index)
    return list(groups.values())


def _deal(
    strata: Iterable[list[list[int]]], shares: Mapping[SplitName, float], seed: int
) -> dict[SplitName, list[list[int]]]:
    """Split -> its groups. What rounding denies a split in one stratum is carried to the next."""
    generator = random.Random(seed)
    dealt: dict[SplitName, list[list[int]]] = {split: [] for split in shares}
    missing = dict.fromkeys(shares, 0.0)
    for groups in strata:
        total = sum(len(members) for members in groups)
        for split, share in shares.items():
            missing[split] += share * total
        order = list(groups)
        # Files are often sorted by label or date; dealt in file order a split would be one end of the file.
        generator.shuffle(order)
        for members in order:
            # The split that lacks most gets the next group, so that one large group cannot push a split far from its share.
            split = max(missing, key=lambda name: missing[name])
            dealt[split].append(members)
            missing[split] -= len(members)
    for split in shares:  # a handful of rows: rounding must not leave a split empty
        if not dealt[split]:
            dealt[split].append(max(dealt.values(), key=len).pop())
    return dealt


def _keep_rare(strata: Iterable[list[list[int]]], dealt: dict[SplitName, list[list[int]]]) -> None:
    """Exchanges groups so that a rare stratum reaches each split, where it has a group for each.

    Dealing by shares alone leaves three rows of a class wherever rounding puts them, often all in training: then a constant
    scores 1.0 on the test rows. A split that gets such a group gives one of its largest stratum back, so that sizes stay;
    strata that were in each split already are not touched, and neither are the cuts of earlier versions.
    """
    rare = sorted((groups for groups in strata if len(groups) >= len(dealt)), key=len)
    stratum = {id(members): number for number, groups in enumerate(rare) for members in groups}
    for number, _ in enumerate(rare):
        for groups in dealt.values():
            if any(stratum.get(id(members)) == number for members in groups):
                continue
            # From the split that has most of it, and only where one stays behind.
            giver = max(dealt, key=lambda name: sum(stratum.get(id(members)) == number for members in dealt[name]))
            moved = next(members for members in dealt[giver] if stratum.get(id(members)) == number)
            if sum(stratum.get(id(members)) == number for members in dealt[giver]) < 2:
                continue
            counts = Counter(stratum.get(id(members)) for members in groups)
            common = counts.most_common(1)[0][0] if groups else None
            dealt[giver].remove(moved)
            groups.append(moved)
            # A group of about the size comes back, unless it is the last of its stratum here.
            back = next((members for members in groups if stratum.get(id(members)) == common), None)
            if back is not None and back is not moved and counts[common] > 1:
                groups.remove(back)
                dealt[giver].append(back)


def _keep_learnable(strata: Iterable[list[list[int]]], dealt: dict[SplitName, list[list[int]]]) -> None:
    """Exchanges groups so that training has each stratum: a class of one or two rows would be asked for and never shown.

    Training gives a group of a stratum of which it keeps one, so that sizes stay; where it has none to give, it stays as it is.
    """
    stratum = {id(members): number for number, groups in enumerate(strata) for members in groups}
    train = dealt["train"]
    for number, groups in enumerate(strata):
        if any(stratum[id(members)] == number for members in train):
            continue
        counts = Counter(stratum[id(members)] for members in train)
        spare = next((members for members in train if counts[stratum[id(members)]] > 1), None)
        if spare is None:
            continue
        giver = next(split for split in dealt if any(members is groups[0] for members in dealt[split]))
        dealt[giver].remove(groups[0])
        train.remove(spare)
        dealt[giver].append(spare)
        train.append(groups[0])


def input_key(parts: Iterable[str]) -> str:
    """The key under which two inputs count as the same: their texts without regard to case and white space."""
    text = "\x1f".join(" ".join(part.casefold().split()) for part in parts)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
