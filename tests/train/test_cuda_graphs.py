"""Passes that are recorded once and replayed: the same training as by plain passes, and a plain pass wherever it must be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone
from dollartune.methods.edits import Rows
from dollartune.methods.lora import LoRA, LowRank
from dollartune.methods.registry import build_method
from dollartune.testing.practice import refusal
from dollartune.testing.tape import Tape
from dollartune.testing.tiny import END, tiny_backbone
from dollartune.train.cuda_graphs import CudaGraphs, CudaRecording, signature
from dollartune.train.distributed import Processes
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.micro_batch import PATCHES
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

CPU = torch.device("cpu")
BATCH, ROWS, EPOCHS = 3, 12, 3
STEPS = EPOCHS * ROWS // BATCH
BEFORE = 4
"""Passes until the first replay that counts: three plain ones, and one beside its replay."""
METHODS: list[Any] = ["lora", "dora", "ia3", "bitfit", "adapter", "prefix", "prompt", "norm", "full", "vera"]


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads no mask while a CUDA graph is recorded; that a tape records, it cannot know."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)


def rows(name: str, lengths: Sequence[int] = (7,)) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (length,), generator=generator).tolist())

    if name == "vit":
        return [Encoded(str(i), (), (), i % 2, torch.randn(3, 32, 32, generator=generator)) for i in range(ROWS)]
    if name.endswith("classification"):
        ends = (END,)  # where classifiers of two stacks look
        return [Encoded(str(i), draw(lengths[i % len(lengths)]) + ends, (), i % 2) for i in range(ROWS)]
    return [Encoded(str(i), draw(lengths[i % len(lengths)]), draw(2)) for i in range(ROWS)]


def trained(
    name: str, methods: Sequence[Any], replayed: bool, lengths: Sequence[int] = (7,), most_tokens: int = 10**6
) -> tuple[list[float], dict[str, Tensor], CudaGraphs]:
    """Losses, tensors at the end, and what was replayed."""
    tiny = tiny_backbone(name)
    backbone = Backbone(name, tiny.model, None, tiny.anatomy, tiny.objective)
    attached = Attached(tiny.model, tiny.anatomy)
    settings = TrainingSettings(epochs=EPOCHS, batch_size=BATCH, patience=None)
    trials = []
    for seed, method in enumerate(methods):
        method = build_method(method) if isinstance(method, str | dict) else method
        adapter = attached.add(str(seed), [method], seed)
        trials.append(TrialState(str(seed), adapter, rows(name, lengths), settings, seed))
    trainer = CohortTrainer(backbone, attached, trials, [])
    replays = trainer.forward_backward.cuda_graphs = CudaGraphs(CPU, Tape if replayed else None, most_tokens)
    try:
        trainer.run()
        tensors = {f"{t.name} {n}": tensor.clone() for t in trials for n, tensor in t.adapter.tensors().items()}
        return [loss for t in trials for loss in t.losses], tensors, replays
    finally:
        attached.detach()


def assert_same(name: str, methods: Sequence[Any], **more: Any) -> CudaGraphs:
    plain, tensors, _ = trained(name, methods, False, **more)
    losses, found, replays = trained(name, methods, True, **more)
    assert losses == pytest.approx(plain, rel=1e-4)
    for key, tensor in tensors.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5, msg=key)
    return replays


FAMILIES = ["opt", "llama", "t5", "bart", "bert/classification", "vit"]
"""Each method on these; of others, what transformers does there that no GPU records as it stands."""
OTHERS = ["bart/classification", "t5/classification", "gpt_neo", "gpt_neo/classification", "llama/classification"]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_that_of_plain_passes(name: str, method: Any) -> None:
    if reason := refusal(build_method(method), tiny_backbone(name)):
        pytest.skip(reason)
    assert assert_same(name, [method]).replayed == STEPS - BEFORE


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "full"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_waits_for_the_device_is_recorded_otherwise(name: str, method: str) -> None:
    if method == "prompt" and name in ("bart/classification", "t5/classification"):
        pytest.skip("it finds its classes by token ids, which virtual tokens replace")
    assert assert_same(name, [method], lengths=(7, 5)).replayed >= STEPS - 2 * BEFORE


def test_a_mixed_cohort_is_replayed_until_a_trial_leaves() -> None:
    assert assert_same("llama", ["lora", "ia3", "bitfit", "prompt", "prefix"]).replayed == STEPS - BEFORE


def test_dropout_is_never_recorded() -> None:
    assert assert_same("opt", [{"lora": {"dropout": 0.3}}]).replayed == 0


@pytest.mark.parametrize(
    "method", ["adalora", "adapter_drop", {"adapter_drop": {"robust": True}}, "diff_pruning"], ids=str
)
@pytest.mark.parametrize("name", ["opt", "vit"])
def test_what_python_decides_anew_at_each_step_is_never_recorded(
    name: str, method: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dollartune"):
        assert assert_same(name, [method]).replayed == 0
    assert not caplog.text


def test_long_passes_stay_plain() -> None:
    assert assert_same("opt", ["lora"], most_tokens=20).replayed == 0


def test_each_shape_is_recorded_and_none_is_wider_than_the_longest_row() -> None:
    replays = assert_same("opt", ["lora"], lengths=(3, 4, 17, 19))
    assert 0 < replays.replayed <= STEPS - BEFORE


class _Counting(LowRank):
    """Computes something else each time, and nobody can see it."""

    passes = 0

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        type(self).passes += 1
        return super().delta(x, rows) * (1 + type(self).passes)


class _Hidden(LoRA):
    def edit(self, site: Any, shared: Any, module: Any) -> Any:
        edit = super().edit(site, shared, module)
        edit.__class__ = _Counting
        return edit


def test_a_recording_that_differs_at_its_first_replay_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dollartune"):
        _, _, replays = trained("opt", [_Hidden()], True)
    assert replays.replayed == 0
    assert "such passes stay plain" in caplog.text


def test_what_a_recording_takes_for_granted_is_in_the_signature() -> None:
    tiny = tiny_backbone("opt")
    attached = Attached(tiny.model, tiny.anatomy)
    adapter = attached.add("a", [build_method("lora")], 0)
    before = signature(adapter)
    with torch.no_grad():
        next(adapter.parameters()).add_(1.0)
    assert signature(adapter) == before  # values may change, a replay sees them
    _, edit = next(iter(adapter.items()))
    edit.scale = 3.0  # type: ignore[assignment]
    changed = signature(adapter)
    assert changed != before
    edit.A = torch.nn.Parameter(edit.A.detach().clone())  # type: ignore[operator]
    assert signature(adapter) != changed
    attached.detach()


def test_an_image_counts_as_its_patches() -> None:
    assert assert_same("vit", ["lora"], most_tokens=PATCHES * BATCH - 1).replayed == 0


def test_of_several_processes_none_records(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Processes):
        """The second one has no rows."""

        def micro_batches(self, longest: int, micro_batch_size: int | None) -> list[tuple[int, int, float]]:
            return Processes().micro_batches(longest, micro_batch_size)

        def add_gradients(self, adapters: Any) -> None: ...

        def add(self, values: list[float]) -> list[float]:
            return values

    monkeypatch.setattr("dollartune.train.forward_backward.processes", lambda: Two(0, 2))
    assert assert_same("opt", ["lora"]).replayed == 0


def test_a_broken_recording_leaves_the_stream_and_lets_go_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ended = SimpleNamespace(device_index=0, wait_stream=lambda other: None), []
    now = [plain]

    class Broken:
        """As torch does it: at the end it raises, before it goes back to the stream."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> None:
            now[0] = SimpleNamespace(device_index=0)

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: plain)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", Broken)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: now.__setitem__(0, stream))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *given: ended.append(given), raising=False)
    with pytest.raises(RuntimeError, match="invalidated"):
        CudaRecording((0, 1)).record(lambda: torch.zeros(1))
    assert now == [plain]
    assert ended == [(0, (0, 1))]


def test_class_weights_are_moved_once() -> None:
    tiny = tiny_backbone("bert/classification")
    attached = Attached(tiny.model, tiny.anatomy)
    settings = TrainingSettings(class_weights="balanced")
    state = TrialState("a", attached.add("a", [build_method("lora")], 0), rows(tiny.name), settings, 0)
    attached.detach()
    meta = torch.device("meta")
    there = state.class_weights_on(meta)
    assert there is not None
    assert there.device == meta
    assert state.class_weights_on(meta) is there
    assert state.class_weights is not None
    assert state.class_weights.device == CPU
