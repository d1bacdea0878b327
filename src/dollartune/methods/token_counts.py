"""Weighted counts of tokens and pairs of neighbouring tokens, as tf-idf has them; no method by itself.

ids of a row ──> tokens and pairs ──> (1 + log count) · idf, length 1 ──> (row, n-gram, value) triples

Token ids are counted and not words, so that an adapter needs nothing but what the backbone reads.

Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval"; the smoothed idf is scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        each = [np.unique(_keys(row)) for row in rows]
        keys, counts = np.unique(np.concatenate(each) if each else np.empty(0, np.int64), return_counts=True)
        if len(keys) > most:  # of equally common ones those with the smaller key
            kept = np.sort(np.argsort(-counts, kind="stable")[:most])
            keys, counts = keys[kept], counts[kept]
        return cls(keys, 1.0 + np.log((1 + len(rows)) / (1.0 + counts)))

    def counted(self, rows: Sequence[Sequence[int]]) -> Counted:
        """Values of n-grams in rows; each row that has any has length 1."""
        at: list[NDArray[np.int64]] = []
        ngrams: list[NDArray[np.int64]] = []
        values: list[NDArray[np.float64]] = []
        for number, row in enumerate(rows):
            keys, counts = np.unique(_keys(row), return_counts=True)
            columns = np.searchsorted(self.keys, keys)
            # above the last key there is nothing to compare with
            known = columns < len(self.keys)
            known[known] = self.keys[columns[known]] == keys[known]
            columns = columns[known]
            value = (1.0 + np.log(counts[known])) * self.idf[columns]
            length = math.sqrt(float(value @ value))
            at.append(np.full(len(columns), number))
            ngrams.append(columns)
            values.append(value / length if length else value)
        empty = np.empty(0, np.int64)
        return Counted(
            np.concatenate([empty, *at]), np.concatenate([empty, *ngrams]), np.concatenate([np.empty(0), *values])
        )


@dataclass(frozen=True)
class Counted:
    """A sparse matrix (rows, n-grams)."""

    row: NDArray[np.int64]
    ngram: NDArray[np.int64]
    value: NDArray[np.float64]


def _keys(row: Sequence[int]) -> NDArray[np.int64]:
    """Keys of a row's tokens and pairs."""
    ids = np.asarray(row, dtype=np.int64)
    # + 1: else pairs that begin with id 0 would have the keys of tokens
    return np.concatenate([ids, (ids[:-1] + 1) * _PAIR + ids[1:]])
