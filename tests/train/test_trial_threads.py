"""Trials in threads, each on cores of its own: the numbers of training alone, and everything as it was at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.fast.shared_weight_replica import replica
from dollartune.backbones.loading import Backbone
from dollartune.methods.registry import build_method
from dollartune.testing.tiny import tiny_backbone
from dollartune.train.encoding import Encoded
from dollartune.train.forward_backward import ForwardBackward
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

METHODS = ("lora(rank=2, dropout=0.1)", "ia3", "prompt(tokens=3)", "prefix(tokens=2)", "pfeiffer(reduction=8)")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rows(count: int, seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (length,), generator=generator).tolist())

    return [Encoded(str(i), draw(3 + i % 5), draw(1 + i % 2)) for i in range(count)]


def trainer(name: str, methods: Sequence[str], **more: Any) -> CohortTrainer:
    tiny = tiny_backbone(name)
    attached = Attached(tiny.model, tiny.anatomy)
    settings = TrainingSettings(epochs=3, batch_size=4, patience=None)
    trials = []
    for method in methods:
        seed = METHODS.index(method)
        adapter = attached.add(method, [build_method(method)], seed)
        trials.append(TrialState(method, adapter, rows(10, 0), settings, seed))
    backbone = Backbone(name, tiny.model, None, tiny.anatomy, tiny.objective)
    return CohortTrainer(backbone, attached, trials, rows(5, 1), **more)


def trained(found: CohortTrainer) -> dict[str, Any]:
    """Validation losses and tensors of each trial that did not fail."""
    before = [set(module.__dict__) for module in found.backbone.model.modules()]
    try:
        found.run()
        assert [set(module.__dict__) for module in found.backbone.model.modules()] == before
    finally:
        assert torch.get_num_threads() == 2
        found.attached.detach()
    return {
        t.name: ([v.validation_loss for v in t.progress.history], list(t.adapter.tensors().values()))
        for t in found.trials
        if not t.progress.error
    }


@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
def test_trials_are_what_they_are_alone(name: str) -> None:
    found = trainer(name, METHODS[:2] if name == "t5" else METHODS)
    together = trained(found)
    assert found.threads is not None
    assert len(found.threads.forward_backwards) == 2
    for method, (losses, tensors) in together.items():
        alone = trainer(name, [method])
        ((expected, other),) = trained(alone).values()
        assert alone.threads is None
        assert len(losses) == 3
        assert losses == pytest.approx(expected, rel=1e-4)
        for mine, one in zip(tensors, other, strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-3, atol=1e-5)


def test_bits_do_not_depend_on_where_threads_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seconds in (0.0, 0.01, 10.0):
        monkeypatch.setattr("dollartune.train.loop.ROUND_SECONDS", seconds)
        found.append(trained(trainer("opt", METHODS)))
    for other in found[1:]:
        for method, (losses, tensors) in other.items():
            assert losses == found[0][method][0]
            assert all(torch.equal(mine, one) for mine, one in zip(tensors, found[0][method][1], strict=True))


def test_seconds_are_divided_among_the_trials_of_all_threads() -> None:
    found = trainer("opt", METHODS)
    started = time.perf_counter()
    trained(found)
    assert 0 < sum(t.progress.seconds for t in found.trials) <= time.perf_counter() - started


def test_a_trial_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrialState.step

    def breaks(self: TrialState, loss: float) -> None:
        if self.name == "ia3" and self.progress.step == 2:
            raise FloatingPointError("not a number")
        step(self, loss)

    expected = trained(trainer("opt", METHODS))
    monkeypatch.setattr(TrialState, "step", breaks)
    failures: list[str] = []
    found = trained(trainer("opt", METHODS, failed=lambda state, _: failures.append(state.name)))
    assert failures == ["ia3"]
    assert set(found) == set(METHODS) - {"ia3"}
    for method, (losses, _) in found.items():
        assert losses == pytest.approx(expected[method][0], rel=1e-4)


def test_a_full_memory_halves_the_passes_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = ForwardBackward.gradients
    sizes: list[int] = []

    def full(self: ForwardBackward, trials: Sequence[TrialState]) -> list[float]:
        if len(trials) > 1:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(trials))
        return gradients(self, trials)

    expected = trained(trainer("opt", METHODS))
    monkeypatch.setattr(ForwardBackward, "gradients", full)
    found = trained(trainer("opt", METHODS))
    for method, (losses, _) in found.items():
        assert losses == pytest.approx(expected[method][0], rel=1e-4)
    assert set(sizes) == {1}


def test_an_error_in_a_thread_is_raised_when_all_threads_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: ForwardBackward, trials: Sequence[TrialState]) -> list[float]:
        raise ValueError("broken")

    monkeypatch.setattr(ForwardBackward, "gradients", breaks)
    with pytest.raises(ValueError, match="broken"):
        trained(trainer("opt", METHODS))


def test_the_budget_ends_threads_with_what_they_have() -> None:
    asked: list[int] = []

    def spent() -> bool:
        asked.append(1)
        return len(asked) > 2

    found = trainer("opt", METHODS, out_of_time=spent)
    trained(found)
    assert {t.progress.stopped for t in found.trials} == {"budget"}
    assert all(0 < t.progress.step < t.total_steps for t in found.trials)


def test_a_twin_shares_every_weight_and_no_module() -> None:
    tiny = tiny_backbone("llama")
    attached = Attached(tiny.model, tiny.anatomy)
    for name, method in (("a", "lora(rank=2)"), ("b", "prefix(tokens=2)")):
        attached.add(name, [build_method(method)])
    with fast_kernels(attached):
        other = replica(attached)
        assert not any("forward" in module.__dict__ for module in other.model.modules())
    for mine, its in zip(attached.model.parameters(), other.model.parameters(), strict=True):
        assert mine is its
    assert not {id(m) for m in attached.model.modules()} & {id(m) for m in other.model.modules()}
    inputs = tiny.inputs()
    for name in "ab":
        with attached.routed(name), other.routed(name), torch.no_grad():
            torch.testing.assert_close(other(**inputs).logits, attached(**inputs).logits)
    other.detach()
    attached.detach()
