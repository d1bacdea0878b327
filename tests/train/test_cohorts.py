"""Cohorts whose trials have different trunks, and cohorts that memory splits: nothing of it changes a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.loop import CohortTrainer
from dollartune.train.micro_batch import MemoryBatchLimit, SavedBytes
from dollartune.train.out_of_memory import halved_after_out_of_memory
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

METHODS = {
    "top": "lora(rank=2, dropout=0.1, layers='last 1')",
    "top bias": "bitfit(layers='last 1')",
    "middle": "pfeiffer(reduction=8, layers='last 2')",
    "all": "ia3",
    "prompt": "prompt(tokens=3)",
}
SETTINGS = TrainingSettings(epochs=2, batch_size=4, patience=None, precision="fp32")
Rows = tuple[list[Encoded], list[Encoded]]


@pytest.fixture(scope="module")
def rows(backbone: Backbone, moods: Task) -> Rows:
    splits = moods.splits(10, 0, 6)
    encoder = Encoder(backbone)
    return encoder.encode(moods, splits.train), encoder.encode(moods, splits.validation)


class NoFrozenPrefix(FrozenPrefixCache):
    """The plain path."""

    def layers(self, *_: Any) -> dict[str, int]:
        return {}


def cohort(
    backbone: Backbone, attached: Attached, rows: Rows, names: Sequence[str], settings: TrainingSettings = SETTINGS
) -> CohortTrainer:
    trials = []
    for name in names:
        seed = list(METHODS).index(name)
        adapter = attached.add(name, [build_method(METHODS[name])], seed)
        trials.append(TrialState(name, adapter, rows[0], settings, seed))
    return CohortTrainer(backbone, attached, trials, rows[1])


def trained(
    backbone: Backbone,
    rows: Rows,
    names: Sequence[str],
    cache: FrozenPrefixCache | None = None,
    room: int | None = None,
    **more: Any,
) -> dict[str, TrialState]:
    attached = Attached(backbone.model, backbone.anatomy)
    attached.use_frozen_prefix(cache)
    try:
        trainer = cohort(backbone, attached, rows, names, **more)
        if room is not None:
            trainer.batch_limit.limit_bytes = room
        trainer.run()
    finally:
        attached.detach()
    return {trial.name: trial for trial in trainer.trials}


def same(first: TrialState, second: TrialState, tolerance: float = 2e-4) -> None:
    for mine, other in zip(first.progress.history, second.progress.history, strict=True):
        assert mine.validation_loss == pytest.approx(other.validation_loss, abs=tolerance)
        assert mine.train_loss == pytest.approx(other.train_loss, abs=tolerance)
    tensors = second.adapter.tensors()
    for name, tensor in first.adapter.tensors().items():
        torch.testing.assert_close(tensor, tensors[name], atol=tolerance, rtol=tolerance)


def test_trials_with_different_trunks_equal_the_plain_path(backbone: Backbone, rows: Rows) -> None:
    cache = FrozenPrefixCache()
    together = trained(backbone, rows, list(METHODS), cache)
    for name, trial in together.items():
        same(trial, trained(backbone, rows, [name], NoFrozenPrefix())[name])
    layers = {name: trial.progress.frozen_prefix_layers for name, trial in together.items()}
    assert layers == {
        "top": {"decoder": 2},
        "top bias": {"decoder": 2},
        "middle": {"decoder": 1},
        "all": {},
        "prompt": {},
    }
    assert all(trial.progress.frozen_prefix_tokens == (trial.progress.tokens if layers[name] else 0)
               for name, trial in together.items())  # fmt: skip
    distinct = {(*row.prompt, *row.answer[:-1]) for row in (*rows[0], *rows[1])}
    assert cache.computed_tokens == 2 * sum(
        map(len, distinct)
    )  # each depth once, for whatever number of trials and epochs


def test_the_frozen_prefix_is_not_computed_where_rows_pass_once(backbone: Backbone, rows: Rows) -> None:
    once = SETTINGS.model_copy(update={"epochs": 1})
    cache = FrozenPrefixCache()
    alone = trained(backbone, rows, ["top"], cache, settings=once)["top"]
    assert cache.computed_tokens == alone.progress.frozen_prefix_tokens == 0
    two = trained(backbone, rows, ["top", "top bias"], cache, settings=once)
    assert two["top"].progress.frozen_prefix_tokens == two["top"].progress.tokens
    same(alone, two["top"])


def test_the_backbones_own_dropout_needs_every_layer(backbone: Backbone, rows: Rows) -> None:
    cache = FrozenPrefixCache()
    trained(backbone, rows, ["top"], cache, settings=SETTINGS.model_copy(update={"backbone_dropout": True}))
    assert cache.computed_tokens == 0


def test_a_later_cohort_uses_the_same_trunk(backbone: Backbone, rows: Rows) -> None:
    cache = FrozenPrefixCache()
    trained(backbone, rows, ["top"], cache)
    computed = cache.computed_tokens
    later = trained(backbone, rows, ["top bias"], cache)["top bias"]
    assert cache.computed_tokens == computed
    assert later.progress.frozen_prefix_tokens_computed == 0
    same(later, trained(backbone, rows, ["top bias"], NoFrozenPrefix())["top bias"])


@pytest.mark.parametrize("family", ["t5", "bart", "bloom"])
def test_trunks_of_other_families(local_backbone: Any, moods: Task, family: str) -> None:
    found = load_backbone(str(local_backbone(family)))
    splits = moods.splits(6, 0, 4)
    rows = Encoder(found).encode(moods, splits.train), Encoder(found).encode(moods, splits.validation)
    cache = FrozenPrefixCache()
    fast = trained(found, rows, ["top"], cache)["top"]
    same(fast, trained(found, rows, ["top"], NoFrozenPrefix())["top"])
    assert cache.reused_tokens > cache.computed_tokens > 0


# Memory


def passes(trainer: CohortTrainer, monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> list[int]:
    """Trials of each training pass; with `most`, more than that run out of memory."""
    seen: list[int] = []
    plain = trainer.forward_backward.gradients

    def gradients(trials: Sequence[TrialState]) -> list[float]:
        if most is not None and len(trials) > most:
            raise torch.OutOfMemoryError("out of memory")
        seen.append(len(trials))
        return plain(trials)

    monkeypatch.setattr(trainer.forward_backward, "gradients", gradients)
    return seen


NAMES = ["all", "prompt"]


@pytest.mark.usefixtures("one_thread")
def test_memory_decides_how_many_trials_share_a_pass(
    backbone: Backbone, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        trainer = cohort(backbone, attached, rows, NAMES)
        trainer.batch_limit.limit_bytes = 1000
        seen = passes(trainer, monkeypatch)
        trainer.run()
    finally:
        attached.detach()
    assert seen == [1] * 12
    whole = trained(backbone, rows, NAMES)
    for trial in trainer.trials:
        same(trial, whole[trial.name])


@pytest.mark.usefixtures("one_thread")
def test_out_of_memory_halves_the_pass_and_loses_nothing(
    backbone: Backbone, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        trainer = cohort(backbone, attached, rows, NAMES)
        seen = passes(trainer, monkeypatch, most=1)
        trainer.run()
    finally:
        attached.detach()
    assert seen == [1] * 12
    whole = trained(backbone, rows, NAMES)
    for trial in trainer.trials:
        assert trial.progress.examples == whole[trial.name].progress.examples
        same(trial, whole[trial.name])


def test_one_trial_that_does_not_fit_is_told(backbone: Backbone, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        trainer = cohort(backbone, attached, rows, ["all"])
        passes(trainer, monkeypatch, most=0)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.run()
    finally:
        attached.detach()


def test_room_is_half_of_what_is_free() -> None:
    room = MemoryBatchLimit(torch.device("cpu"), limit_bytes=1_000_000)
    room.measure(saved_bytes=5_000, tokens=10, most_tokens=100)
    assert room.trials == 10
    full = torch.OutOfMemoryError()
    assert room.halve(full, 10)
    assert room.trials == 5
    assert not room.halve(full, 1)
    assert not room.halve(ValueError(), 10)
    assert room.trials == 5


def test_saved_bytes_count_each_storage_once_and_no_parameters() -> None:
    linear = torch.nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8, requires_grad=True)
    with SavedBytes(linear.parameters()) as saved:
        y = x.exp()  # saves its output
        linear(y).sum() + linear(y).sum()  # save their input, which is the same
    assert saved.bytes == 4 * 8 * 4


def test_trials_with_rows_of_like_length_share_a_pass() -> None:
    room = MemoryBatchLimit(torch.device("cpu"), overhead_tokens=80, rows=8)
    assert room.together("abcd", [40, 20, 22, 21]) == ["b", "c", "d"]  # padding 24 rows to 40 costs more than a pass
    assert room.together("ab", [20, 30]) == ["a", "b"]
    room.trials = 2
    assert room.together("abc", [20, 20, 20]) == ["a", "b"]


@pytest.mark.parametrize(("size", "smaller"), [(16, 8), (3, 2), (2, 1), (1, None)])
def test_what_ran_out_of_memory_is_halved_down_to_one(size: int, smaller: int | None) -> None:
    assert halved_after_out_of_memory(torch.OutOfMemoryError(), size, "rows per pass") == smaller
    assert halved_after_out_of_memory(MemoryError(), size, "rows per pass") == smaller
    assert halved_after_out_of_memory(ValueError("no memory of that name"), size, "rows per pass") is None
