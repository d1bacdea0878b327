"""Compiling is tried where it can pay, kept where it is faster, and never stops a training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast.compile import compiled_layers
from dollartune.backbones.loading import Backbone
from dollartune.methods.registry import build_method
from dollartune.testing.tiny import tiny_backbone
from dollartune.train.compile_policy import CompilePolicy
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(CompilePolicy, "known", {})
    yield
    torch.compiler.reset()


@pytest.fixture
def attached() -> Iterator[Attached]:
    tiny = tiny_backbone("opt")
    found = Attached(tiny.model, tiny.anatomy)
    yield found
    found.detach()


@contextmanager
def nothing(attached: Attached) -> Iterator[None]:
    yield


def policy(attached: Attached, **more: Any) -> CompilePolicy:
    settings: dict[str, Any] = {"mode": "auto", "device": CUDA, "seconds_left": lambda: math.inf, "layers": nothing}
    return CompilePolicy(attached, name="opt", **{**settings, **more})


def steps(compiling: CompilePolicy, rate: Callable[[int], float], count: int, left: int = 100_000) -> list[bool]:
    """Whether each of some steps of 1,000 tokens was compiled; `rate` gives tokens per second by number of the step."""
    seen = []
    for step in range(count):
        seen.append(compiling.on)
        compiling.stepped(1000, 1000 / rate(step), left - step)
    return seen


def test_a_long_training_compiles_and_stays_where_it_is_faster(attached: Attached) -> None:
    compiling = policy(attached)
    compiling.begin()
    seen = steps(compiling, lambda step: 10 if step == 12 else 1200 if step > 12 else 1000, 40)
    assert seen == [False] * 12 + [True] * 28
    assert compiling.seconds == pytest.approx(100 - 1)  # the first compiled step's, beyond that of a plain one
    later = policy(attached)
    later.begin()
    assert later.on


def test_where_it_is_no_faster_plain_layers_come_back_for_good(attached: Attached) -> None:
    compiling = policy(attached)
    compiling.begin()
    assert steps(compiling, lambda step: 1000 if step < 12 else 1010, 40) == [False] * 12 + [True] * 12 + [False] * 16
    later = policy(attached)
    later.begin()
    assert not any(steps(later, lambda _: 1000, 40))


@pytest.mark.parametrize(
    "more", [{"device": CPU}, {"mode": "never"}, {"seconds_left": lambda: 599.0}], ids=["processor", "never", "budget"]
)
def test_nothing_is_compiled(attached: Attached, more: dict[str, Any]) -> None:
    compiling = policy(attached, **more)
    compiling.begin()
    assert not any(steps(compiling, lambda _: 1000, 40))


def test_a_short_training_is_not_compiled(attached: Attached) -> None:
    compiling = policy(attached)
    compiling.begin()
    assert not any(steps(compiling, lambda _: 1000, 40, left=580))  # seconds
    assert CompilePolicy.known == {}


def test_always_begins_at_once(attached: Attached) -> None:
    compiling = policy(attached, mode="always", device=CPU)
    compiling.begin()
    assert all(steps(compiling, lambda _: 1000, 30))
    compiling.end()
    assert not compiling.on


def losses(layers: Any = None) -> tuple[list[float], float]:
    tiny = tiny_backbone("opt")
    attached = Attached(tiny.model, tiny.anatomy)
    generator = torch.Generator().manual_seed(0)
    # of one length: each that is new is compiled anew, which tests/attachment/fast/test_compile.py looks at
    rows = [Encoded(str(i), tuple(torch.randint(3, 60, (5,), generator=generator).tolist()), (7,)) for i in range(6)]
    settings = TrainingSettings(epochs=2, batch_size=3, patience=None, compile="never" if layers is None else "always")
    trials = [
        TrialState(name, attached.add(name, [build_method(name)], 0), rows, settings, 0) for name in ("lora", "ia3")
    ]
    trainer = CohortTrainer(Backbone("opt", tiny.model, None, tiny.anatomy, tiny.objective), attached, trials, rows[:2])
    if layers is not None:
        trainer.compile_policy.layers = layers
    before = [set(module.__dict__) for module in tiny.model.modules()]
    try:
        trainer.run()
        assert [set(module.__dict__) for module in tiny.model.modules()] == before
        return [v.validation_loss for t in trials for v in t.progress.history], trials[0].progress.compile_seconds
    finally:
        attached.detach()


@pytest.mark.slow
def test_a_compiled_training_is_the_plain_one() -> None:
    plain, _ = losses()
    compiled, _ = losses(partial(compiled_layers, backend="eager"))
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_compiler_that_fails_costs_nothing_but_a_word(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no such processor")

    plain, _ = losses()
    with caplog.at_level(logging.WARNING, "dollartune"):
        found, _ = losses(partial(compiled_layers, backend=broken))
    assert found == pytest.approx(plain, rel=1e-6)
    assert "compiled layers failed" in caplog.text


def test_checkpointed_layers_cannot_be_compiled() -> None:
    with pytest.raises(ValidationError, match="Leave one of them out"):
        TrainingSettings(compile="always", gradient_checkpointing=True)
