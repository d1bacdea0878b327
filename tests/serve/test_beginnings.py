"""Prompts that are kept: the one that begins most alike is found among however many, and the least used ones go."""

from __future__ import annotations

import random

import pytest
import torch

from dollartune.backbones.loading import load_backbone
from dollartune.serve import beginnings
from dollartune.serve.beginnings import LEAST, Beginnings
from dollartune.serve.joining import common_length

SYSTEM = tuple(range(100, 100 + LEAST + 10))
BYTES_OF_A_TOKEN = 2 * 2 * 4
"""Keys and values of one layer, one head of size 2, in fp32."""


def kept(most_bytes: int) -> Beginnings:
    return Beginnings(load_backbone("tiny-decoder"), most_bytes)


def keep(begins: Beginnings, prompt: tuple[int, ...]) -> None:
    places = torch.ones(len(prompt), dtype=torch.bool)
    values = torch.tensor(prompt, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 1, -1, 2)
    begins.keep(None, prompt, [(values, values)], 0, places)


def chat(drawn: random.Random) -> tuple[int, ...]:
    """The system text, or some of it, and what somebody said."""
    own = tuple(drawn.randrange(5) for _ in range(drawn.randrange(LEAST, 3 * LEAST)))
    return SYSTEM[: drawn.choice([len(SYSTEM), LEAST, 5])] + own


def test_the_prompt_that_begins_most_alike_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(one: tuple[int, ...], other: tuple[int, ...]) -> int:
        nonlocal compared
        compared += 1
        return common_length(one, other)

    monkeypatch.setattr(beginnings, "common_length", counted)
    drawn, begins = random.Random(0), kept(200 * 60 * BYTES_OF_A_TOKEN)
    for _ in range(600):
        keep(begins, chat(drawn))
    stored = [one.tokens for one in begins._stored.values()]
    assert 50 < len(stored) < 600, "the least used ones have gone"
    for _ in range(200):
        prompt = chat(drawn)
        compared = 0
        length, past = begins.find(None, prompt)
        assert compared <= 2
        most = max(min(common_length(one, prompt), len(prompt) - 1) for one in stored)
        assert length == (most if most >= LEAST else 0)
        if past is not None:
            assert past.keys[0, 0, :, 0].tolist() == list(prompt[:length])


def test_what_is_mostly_there_is_not_kept_again() -> None:
    begins = kept(10**6)
    assert not begins.wants(None, SYSTEM[:LEAST])
    assert begins.wants(None, SYSTEM)
    keep(begins, SYSTEM)
    assert not begins.wants(None, SYSTEM + (1,) * LEAST)
    assert begins.wants(None, SYSTEM + (1,) * (LEAST + 1))
    begins.forget(None)
    assert begins.find(None, (*SYSTEM, 1, 2)) == (0, None)
    assert not begins._stored
    assert not begins._in_order
