"""What a request costs: few-shot prompts and virtual tokens count, and time is limited."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.evaluate.cost import REQUESTS, RequestCost, request_cost
from dollartune.evaluate.evaluation import Evaluator
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.encoding import Encoder
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache


@pytest.fixture
def evaluator(backbone: Backbone, moods: Task) -> Iterator[Evaluator]:
    attached = Attached(backbone.model, backbone.anatomy)
    yield Evaluator(backbone, attached, moods, Encoder(backbone), moods.splits(20).train, False, 4)
    attached.detach()


def test_solved_examples_make_requests_longer(evaluator: Evaluator, moods: Task) -> None:
    rows = moods.splits(20).test
    bare = request_cost(evaluator, None, [build_method("zero_shot")], rows, seconds=0.0)
    shots = request_cost(evaluator, None, [build_method("few_shot(examples=2)")], rows, seconds=0.0)
    assert bare.requests == min(REQUESTS, len(rows))
    assert shots.prompt_tokens > 1.5 * bare.prompt_tokens
    assert bare.virtual_tokens == shots.virtual_tokens == 0
    assert bare.seconds > 0
    assert bare.alone_seconds > 0


@pytest.mark.parametrize(("method", "virtual"), [("prompt(tokens=7)", 7), ("prefix(tokens=5)", 5), ("lora", 0)])
def test_virtual_tokens_are_read_with_every_request(
    evaluator: Evaluator, moods: Task, method: str, virtual: int
) -> None:
    evaluator.attached.add("trial", [build_method(method)], 0)
    rows = moods.splits(20).test
    plain = request_cost(evaluator, None, [], rows, seconds=0.0)
    tuned = request_cost(evaluator, "trial", [build_method(method)], rows, seconds=0.0)
    assert tuned.virtual_tokens == virtual
    assert tuned.prompt_tokens == pytest.approx(plain.prompt_tokens + virtual)


@pytest.mark.parametrize("method", ["head", "lora(layers='last 1')"])
def test_a_request_runs_every_layer_whatever_the_study_has_computed(moods: Task, method: str) -> None:
    backbone = load_backbone("tiny-encoder", labels=moods.labels)
    attached = Attached(backbone.model, backbone.anatomy)
    cache = FrozenPrefixCache()
    cache.reuse = True
    attached.use_frozen_prefix(cache)
    evaluator = Evaluator(backbone, attached, moods, Encoder(backbone), [], False, 4)
    attached.add("trial", [build_method(method)], 0)
    rows = moods.splits(20).test
    first = backbone.model.get_submodule(next(s.entry for s in backbone.anatomy.at("layer") if s.layer == 0))
    passes: list[int] = []
    handle = first.register_forward_hook(lambda *_: passes.append(1))
    evaluator.evaluate("trial", [build_method(method)], rows)
    before = len(passes)
    evaluator.evaluate("trial", [build_method(method)], rows)
    assert len(passes) == before, "the study itself goes on from what it has computed"
    request_cost(evaluator, "trial", [build_method(method)], rows, seconds=0.0)
    handle.remove()
    assert len(passes) == before + 4  # one to warm up, one alone, one batch, one for its memory
    assert attached.state.frozen_prefix is cache


def test_it_stops_repeating(evaluator: Evaluator, moods: Task) -> None:
    rows = moods.splits(20).test
    once = time.perf_counter()
    request_cost(evaluator, None, [], rows, seconds=0.0)
    once = time.perf_counter() - once
    started = time.perf_counter()
    request_cost(evaluator, None, [], rows, seconds=0.4)
    assert time.perf_counter() - started < 0.4 + 5 * once + 1


def test_dollars_of_a_thousand_requests() -> None:
    assert RequestCost(8, 0.5, 0.6, 100.0, 0).dollars(3.6) == pytest.approx(0.5)
