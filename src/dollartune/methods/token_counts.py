"""Weighted counts of tokens and pairs of neighbouring tokens, as tf-idf has them; no method by itself.

ids of a row ──> tokens and pairs ──> (1 + log count) · idf, length 1 ──> (row, n-gram, value) triples

Token ids are counted and not words, so that an adapter needs nothing but what the backbone reads.

Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval"; the smoothed idf is scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_PAIR = 1 << 21
"""Above every vocabulary (T5's and Gemma's have 256,000 ids): a pair (a, b) is the key (a + 1) · 2^21 + b, a token its id."""


@dataclass(frozen=True)
class NGrams:
    """Those that are counted."""

    keys: NDArray[np.int64]
    """(n-grams,), ascending."""
    idf: NDArray[np.float64]
    """(n-grams,): 1 + log((1 + N) / (1 + N_t)) for N training rows, N_t of them with the n-gram in it."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], most: int) -> NGrams:
        """The commonest n-grams of training rows, by the number of rows they are in."""
        number, found = _keys(rows)
        keys, at = np.unique(found, return_inverse=True)
        # Each once for a row: of (row, key) as one number.
        counts = np.bincount(np.unique(number * max(1, len(keys)) + at) % max(1, len(keys)), minlength=len(keys))
        if len(keys) > most:  # of equally common ones those with the smaller key
            kept = np.sort(np.argsort(-counts, kind="stable")[:most])
            keys, counts = keys[kept], counts[kept]
        return cls(keys, 1.0 + np.log((1 + len(rows)) / (1.0 + counts)))

    def counted(self, rows: Sequence[Sequence[int]]) -> Counted:
        """Values of n-grams in rows; each row that has any has length 1."""
        number, keys = _keys(rows)
        columns = np.searchsorted(self.keys, keys)
        # above the last key there is nothing to compare with
        known = columns < len(self.keys)
        known[known] = self.keys[columns[known]] == keys[known]
        pairs, counts = np.unique(number[known] * max(1, len(self.keys)) + columns[known], return_counts=True)
        row, ngram = np.divmod(pairs, max(1, len(self.keys)))
        value = (1.0 + np.log(counts)) * self.idf[ngram]
        length = np.sqrt(np.bincount(row, value**2, minlength=len(rows)))
        # idf is 1 at least, so that no row with an n-gram has no length
        return Counted(row, ngram, value / length[row])


@dataclass(frozen=True)
class Counted:
    """A sparse matrix (rows, n-grams)."""

    row: NDArray[np.int64]
    ngram: NDArray[np.int64]
    value: NDArray[np.float64]


def _keys(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and key of each token and of each pair."""
    # All rows at once: array operations on each of a hundred thousand take half a minute.
    number = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    ids = np.fromiter(chain.from_iterable(rows), np.int64, len(number))
    inside = number[1:] == number[:-1]
    # + 1: else pairs that begin with id 0 would have the keys of tokens
    pairs = (ids[:-1] + 1) * _PAIR + ids[1:]
    return np.concatenate([number, number[1:][inside]]), np.concatenate([ids, pairs[inside]])
