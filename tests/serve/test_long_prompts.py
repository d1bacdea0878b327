"""Prompts of a request: long ones are read beside the event loop, and copies once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dollartune.backbones.loading import load_backbone
from dollartune.serve.limits import Refused
from dollartune.serve.prompts import PromptReader
from dollartune.serve.sequence import Sampling
from dollartune.serve.service import Service

LONG = "a word and another one, " * 40


@pytest.fixture
def service() -> Iterator[Service]:
    served = Service(load_backbone("tiny-decoder"), "tiny-decoder")
    served.engine.start()
    yield served
    served.engine.stop()


def written(service: Service, prompts: list[Any], copies: int = 1) -> list[str]:
    """The greedy texts of a request that is answered as the server does."""
    texts, ended = [""] * len(prompts), [threading.Event() for _ in prompts]

    def emit(index: int) -> Any:
        def put(piece: str, reason: str | None) -> None:
            texts[index] += piece
            if reason is not None:
                ended[index].set()

        return put

    asyncio.run(service.generate("tiny-decoder", prompts, Sampling(max_tokens=4), emit, copies=copies))
    assert all(one.wait(60) for one in ended)
    return texts


@pytest.fixture
def read_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that prompts are read on, one entry for each prompt."""
    threads: list[int] = []
    ids = PromptReader.ids

    def noted(self: PromptReader, *args: Any, **settings: Any) -> Any:
        threads.append(threading.get_ident())
        return ids(self, *args, **settings)

    monkeypatch.setattr(PromptReader, "ids", noted)
    return threads


def test_many_long_prompts_are_read_beside_the_event_loop(service: Service, read_on: list[int]) -> None:
    prompts = [f"{n} {LONG}" for n in range(8)]
    beside = written(service, prompts)
    assert len(read_on) == 8
    assert threading.get_ident() not in read_on
    assert beside == [written(service, [prompt])[0] for prompt in prompts]


def test_a_short_prompt_is_read_at_once(service: Service, read_on: list[int]) -> None:
    written(service, ["a word"])
    assert read_on == [threading.get_ident()]


def test_copies_of_a_prompt_are_read_once(service: Service, read_on: list[int]) -> None:
    one, again, other, last = written(service, ["a word", "a word", "and another", "and another"], copies=2)
    assert len(read_on) == 2
    assert (one, other) == (again, last)


@pytest.mark.parametrize("prompts", [["a word", [10**9]], [f"{n} {LONG}" for n in range(8)] + [LONG * 400]])
def test_a_prompt_that_is_refused_lets_go_of_the_adapter(service: Service, prompts: list[Any]) -> None:
    held: list[Any] = []
    service.pool.release = lambda served: held.append(served)  # type: ignore[method-assign]
    with pytest.raises(Refused):
        asyncio.run(service.generate("tiny-decoder", prompts, Sampling(max_tokens=4), lambda index: print))
    assert len(held) == len(prompts)
