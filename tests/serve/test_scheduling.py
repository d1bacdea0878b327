"""Who is computed when: prompts in pieces, joins by length, equal beginnings once, rows of classifications in slices."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import METHODS, alone, ask, running

from dollartune.backbones.loading import load_backbone
from dollartune.serve.batch import RunningBatch
from dollartune.serve.beginnings import LEAST
from dollartune.serve.joining import choose, common_length, length_class
from dollartune.serve.limits import Limits
from dollartune.serve.piece_size import PieceSize
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.service import Service
from dollartune.serve.slices import RowWork, Slices
from dollartune.testing.directory import write_tiny


def words(start: int, count: int) -> str:
    return " ".join(f"w{(start + 7 * i) % 80}" for i in range(count))


def test_a_piece_shrinks_at_once_and_grows_step_by_step() -> None:
    size_of = PieceSize(0.5, 100, least=10)
    assert size_of.most() == 100
    size_of.took(100, 5.0)
    assert size_of.most() == 10
    size_of.took(10, 0.01)
    assert size_of.most() == 20, "at most twice as much"
    size_of.took(1, 0.2)
    assert size_of.most() == 20, "a small piece that nobody waited for says nothing of larger ones"
    for _ in range(10):
        size_of.took(size_of.most(), size_of.most() / 1000)
    assert size_of.most() == 500
    size_of.took(250, 0.3)
    assert size_of.most() == 416, "a piece of half the size tells of the whole"


def test_what_was_measured_a_while_ago_is_halved_once() -> None:
    now = 0.0
    size_of = PieceSize(0.5, 100, least=10, clock=lambda: now)
    size_of.took(100, 0.5)
    now = 60.0  # a burst comes to a quiet server: pieces may take twice as long beside it
    assert size_of.most() == 50
    size_of.took(50, 0.5)
    assert size_of.most() == 50, "it did"
    now = 120.0
    size_of.took(25, 0.25)
    assert size_of.most() == 50, "measured just now, and nobody waited too long"
    now = 180.0
    assert size_of.most() == 25


@pytest.mark.parametrize("seed", range(5))
def test_the_first_joins_with_those_nearest_to_it_in_length(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 400, (60,), generator=generator).tolist()
    chosen = choose(lengths, 16, 4096, 20)
    assert chosen == sorted(chosen)
    assert chosen[0] == 0, "whoever waits longest is never passed over"
    own = [lengths[i] for i in chosen]
    assert len(own) <= 16
    assert len(own) * max(own) <= 4096
    assert len(own) * max(own) - sum(own) <= 20 * (len(own) - 1), "a pass of its own would cost less than the padding"
    between = [i for i, length in enumerate(lengths) if min(own) < length < max(own)]
    assert set(between) <= set(chosen), "nobody between them is left out"


def test_choices_at_the_edges() -> None:
    assert choose([], 4, 100, 9) == choose([5], 0, 100, 9) == []
    assert choose([900, 3], 4, 100, 9) == [0], "the first joins, however long, and alone"
    assert choose([3, 900, 4, 3], 4, 100, 9) == [0, 2, 3]
    assert choose([5] * 9, 4, 1000, 0) == [0, 1, 2, 3], "equals in order of arrival"
    assert [common_length(a, b) for a, b in (((1, 2, 3), (1, 2, 4)), ((), (1,)), ((1, 2), (1, 2)), ((2,), (1,)))] == [
        2, 0, 2, 0,
    ]  # fmt: skip


@pytest.fixture(params=["llama", "opt", "gpt2", "bloom"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    # No pause at all: every piece of a prompt is as small as pieces are.
    names = {"lora_a", "prompt", "prefix", "longer_prefix", "pfeiffer", "full", "half_prefix"}
    names -= {"half_prefix"} if request.param == "bloom" else set()
    methods = {name: own for name, own in METHODS.items() if name in names}
    yield from running(request.param, tmp_path, Limits(batch_rows=6, new_tokens=40, pause_seconds=0.0), methods)


def test_prompts_in_pieces_and_from_equal_beginnings_equal_alone(service: Service) -> None:
    names = ["base", "lora_a", "prompt", "prefix", "longer_prefix", "pfeiffer", "full", "half_prefix"]
    names = [name for name in names if name == "base" or service.pool.get(name) is not None]
    system = words(0, LEAST + 1)
    asked = []
    for turn in range(3):
        for index, name in enumerate(names):
            prompt = f"{system} {words(3 * index + turn, 1 + 6 * ((index + turn) % 3))}"
            asked.append((name, prompt, ask(service, name, prompt, max_tokens=5)))
        time.sleep(0.05)  # some join while others generate
    for _, _, caught in asked:
        assert caught.done.wait(120)
    assert service.pool.beginnings.tokens_spared >= LEAST, "later prompts begin as earlier ones of the same adapter"
    expected = service.engine.call(lambda: [alone(service, name, prompt, 5) for name, prompt, _ in asked]).result(120)
    assert [caught.text for *_, caught in asked] == expected


def test_beginnings_are_given_up_with_their_adapter_and_when_there_is_no_room(tmp_path: Path) -> None:
    for service in running("llama", tmp_path, None, {"lora_a": METHODS["lora_a"]}):
        stored = service.pool.beginnings
        for index in range(12):
            assert ask(service, "lora_a", words(index, 50), max_tokens=1).done.wait(30)
            stored.most_bytes = 5 * next(iter(stored._stored.values())).bytes
            assert stored._bytes == sum(one.bytes for one in stored._stored.values()) <= stored.most_bytes
        assert len(stored._stored) == 5, "the oldest are given up"
        service.remove("lora_a")
        service.engine.call(service.pool.sweep, urgent=True).result(30)
        assert not stored._stored
        assert stored._bytes == 0


def test_requests_may_come_while_those_that_wait_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for service in running("llama", tmp_path, Limits(batch_rows=6, new_tokens=40), {}):
        look, more = service.engine._lane, []

        def looks(sequence: Any, service: Service = service, look: Any = look, more: list[Any] = more) -> str:
            if len(more) < 3:  # another thread's request, at the worst moment
                more.append(None)
                more[-1] = ask(service, "base", f"w{len(more)}", max_tokens=2)
            return str(look(sequence))

        monkeypatch.setattr(service.engine, "_lane", looks)
        first = ask(service, "base", "w1 w2", max_tokens=2)
        assert first.done.wait(60)
        assert all(one.done.wait(60) for one in more)
        assert first.reason in ("stop", "length")


def test_a_fault_between_two_steps_ends_requests_and_not_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in running("llama", tmp_path, Limits(batch_rows=6, new_tokens=40), {}):

        def fails(sequence: Any) -> str:
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(service.engine, "_lane", fails)
            caught = ask(service, "base", "w1 w2")
            assert caught.done.wait(60)
            assert caught.reason == "error"
        again = ask(service, "base", "w1 w2", max_tokens=3)
        assert again.done.wait(60)
        assert again.reason in ("stop", "length")
        assert service.engine.alive


def test_equal_prompts_are_read_once() -> None:
    service = Service(load_backbone("tiny-decoder"), "base", Limits(batch_rows=6, new_tokens=40))
    prompt = words(0, 3 * LEAST)
    service.engine.start()
    gate = threading.Event()
    service.engine.call(gate.wait)
    caught = [ask(service, "base", prompt, max_tokens=3, temperature=1.0, seed=seed) for seed in range(4)]
    gate.set()  # all four wait already
    assert all(one.done.wait(60) for one in caught)
    service.engine.stop(1.0)
    tokens = len(service.prompts.encoder.prompt_ids(prompt))
    assert service.pool.beginnings.tokens_spared == 3 * (tokens - 1)


def test_lengths_that_share_a_batch() -> None:
    assert [length_class(tokens, 512) for tokens in (1, 512, 513, 2048, 2049, 8193)] == [0, 0, 1, 1, 2, 3]


def test_a_long_prompt_does_not_lengthen_the_rows_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[tuple[int, int]] = []
    append = RunningBatch._append

    def seen(self: RunningBatch, new: Any, pairs: Any, visible: torch.Tensor, positions: torch.Tensor) -> None:
        append(self, new, pairs, visible, positions)
        joined.append((len(self.rows), self._visible.shape[1]))

    monkeypatch.setattr(RunningBatch, "_append", seen)
    limits = Limits(batch_rows=6, new_tokens=60, short_tokens=12)
    for service in running("llama", tmp_path, limits, {"lora_a": METHODS["lora_a"], "prefix": METHODS["prefix"]}):
        gate = threading.Event()
        service.engine.call(gate.wait)
        asked = [("base", words(3, 4), 40), ("lora_a", words(1, 6), 30), ("prefix", words(5, 5), 30)]
        asked += [("lora_a", words(2, 40), 20), ("base", words(4, 45), 1), ("lora_a", words(6, 9), 1)]
        caught = [ask(service, name, prompt, max_tokens=tokens) for name, prompt, tokens in asked]
        gate.set()
        assert all(one.done.wait(60) for one in caught)
        assert max(rows for rows, _ in joined) == 3, "who has its whole answer after the prompt does not join"
        assert all(places < 40 or rows == 1 for rows, places in joined), joined
        expected = service.engine.call(
            lambda service=service, asked=asked: [alone(service, *one) for one in asked]
        ).result(60)
        assert [one.text for one in caught] == expected


def work(kind: str, rows: list[int], seen: list[list[int]], fails: int | None = None) -> RowWork:
    def run(own: list[int]) -> list[int]:
        seen.append(own)
        if fails in own:
            raise ValueError("a row that fails")
        return [10 * row for row in own]

    return RowWork((kind,), rows, [100] * len(rows), run, time.monotonic() + 600)


def test_rows_are_done_in_slices_and_kinds_take_turns() -> None:
    slices, seen = Slices(0.0), []
    one, other, third = work("a", [1, 2, 3, 4], seen), work("b", [5], seen), work("a", [6, 7], seen)
    for item in (one, other, third):
        slices.add(item)
    slices.step()
    assert seen == [[1, 2]], "as many as fit the first size"
    slices.step()
    assert seen[1:] == [[5]]
    while slices:
        slices.step()
    assert one.future.result(0) == [10, 20, 30, 40]
    assert third.future.result(0) == [60, 70]
    assert max(len(rows) for rows in seen[2:]) == 1, "no pause: one row at a time"


def test_requests_share_slices_and_a_row_that_fails_is_its_own_request_s() -> None:
    slices, seen = Slices(1e9), []
    good, bad = work("a", [1], seen, fails=2), work("a", [2], seen, fails=2)
    left = work("a", [3], seen)
    for item in (good, bad, left):
        slices.add(item)
    left.future.cancel()
    slices.step()
    assert seen[0] == [1, 2], "both in one pass; whose client left, is not asked"
    assert good.future.result(0) == [10]
    with pytest.raises(ValueError, match="fails"):
        bad.future.result(0)
    assert not slices


class Leaving(Future[list[Any]]):
    """Of a client that leaves right after somebody has looked whether it is there."""

    def done(self) -> bool:
        found = super().done()
        self.cancel()
        return found


def test_a_client_that_leaves_when_its_time_is_up_is_no_fault() -> None:
    slices, seen = Slices(1e9), []
    late, good = work("a", [1], seen), work("a", [2], seen)
    late.deadline, late.future = 0.0, Leaving()
    for item in (late, good):
        slices.add(item)
    slices.step()
    assert late.future.cancelled()
    assert (good.future.result(0), seen) == ([20], [[2]])


def test_texts_get_their_tokens_between_the_slices_of_a_classification(tmp_path: Path) -> None:
    for service in running("llama", tmp_path, Limits(batch_rows=6, new_tokens=40, pause_seconds=0.0), {}):
        order: list[str] = []

        def run(rows: list[Any], order: list[str] = order, service: Service = service) -> list[Any]:
            order.append(f"{service.engine.generated}")
            return rows

        caught = ask(service, "base", "w1 w2", max_tokens=30, ignore_end=True)
        rows = RowWork(("a",), list(range(12)), [400] * 12, run, time.monotonic() + 600)
        service.engine.add_rows(rows)
        assert rows.future.result(60) == list(range(12))
        assert caught.done.wait(60)
        assert len(set(order)) > 5, "the count of tokens grew between slices"


def test_prompts_and_rows_take_turns_where_both_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(
        load_backbone(str(write_tiny(tmp_path / "model", "llama"))), "base", Limits(batch_rows=2), tmp_path
    )
    engine, done = service.engine, []
    monkeypatch.setattr(engine, "_take_in", lambda: done.append("prompts"))
    monkeypatch.setattr(engine.slices, "step", lambda: done.append("rows"))

    def turns() -> list[str]:
        done.clear()
        for _ in range(4):
            engine._turn()
        return list(done)

    assert turns() == ["prompts"] * 4
    engine.slices.add(work("a", [1], []))
    assert turns() == ["rows"] * 4, "no prompt waits"
    sequence = Sequence(None, (5, 6), Sampling(), lambda text, reason: None, service.backbone.processor, math.inf)
    engine._waiting.append(sequence)
    assert turns() == ["prompts", "rows"] * 2
    monkeypatch.setattr(type(engine), "running", 2)
    assert turns() == ["rows"] * 4, "the batch is full"
