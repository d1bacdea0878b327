"""The loop: trials side by side equal trials alone, micro-batches equal whole ones, and each trial ends by itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.methods.edits import Rows
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.batching import Collator, by_length
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.forward_backward import assignments
from dollartune.train.free_memory import PassesTooLarge, memory_limited
from dollartune.train.loop import CohortTrainer, Silent
from dollartune.train.loss import cross_entropy_sum, trial_losses
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

METHODS = {
    "lora": "lora(rank=2, dropout=0.1)",
    "ia3": "ia3",
    "prompt": "prompt(tokens=3)",
    "bitfit": "bitfit",
    "adapters": "pfeiffer(reduction=8)",
}
SETTINGS = TrainingSettings(epochs=2, batch_size=4, patience=None, precision="fp32")


@pytest.fixture(scope="module")
def rows(backbone: Backbone, moods: Task) -> tuple[list[Encoded], list[Encoded]]:
    """(training, validation)"""
    splits = moods.splits(10, 0, 6)
    encoder = Encoder(backbone)
    return encoder.encode(moods, splits.train), encoder.encode(moods, splits.validation)


@pytest.fixture
def attached(backbone: Backbone) -> Iterator[Attached]:
    found = Attached(backbone.model, backbone.anatomy)
    yield found
    found.detach()


def states(
    attached: Attached, rows: Any, names: Sequence[str], settings: TrainingSettings = SETTINGS
) -> list[TrialState]:
    """Trials with a seed of their own each."""
    made = []
    for name in names:
        seed = list(METHODS).index(name)
        adapter = attached.add(name, [build_method(METHODS[name])], seed)
        made.append(TrialState(name, adapter, rows[0], settings, seed))
    return made


def trained(backbone: Backbone, rows: Any, names: Sequence[str], **more: Any) -> dict[str, TrialState]:
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        trials = states(attached, rows, names, more.pop("settings", SETTINGS))
        CohortTrainer(backbone, attached, trials, rows[1], **more).run()
    finally:
        attached.detach()
    return {trial.name: trial for trial in trials}


def losses(trial: TrialState) -> list[float]:
    return [row.validation_loss for row in trial.progress.history]


def same(first: TrialState, second: TrialState, tolerance: float) -> None:
    """The same course and the same tensors."""
    assert losses(first) == pytest.approx(losses(second), abs=tolerance)
    mine, other = first.adapter.tensors(), second.adapter.tensors()
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=tolerance)


def test_a_cohort_of_different_methods_equals_training_alone(backbone: Backbone, rows: Any) -> None:
    together = trained(backbone, rows, list(METHODS))
    for name in METHODS:
        alone = trained(backbone, rows, [name])[name]
        assert alone.progress.step == together[name].progress.step == 6
        assert losses(alone)[0] != losses(alone)[1]
        same(alone, together[name], 2e-4)
    course = {name: tuple(losses(trial)) for name, trial in together.items()}
    assert len(set(course.values())) == len(METHODS)


def test_training_twice_gives_the_same_bits(backbone: Backbone, rows: Any) -> None:
    first, second = (trained(backbone, rows, ["lora"])["lora"] for _ in range(2))
    assert losses(first) == losses(second)
    for name, tensor in first.adapter.tensors().items():
        assert torch.equal(tensor, second.adapter.tensors()[name])


def test_micro_batches_equal_one_batch(backbone: Backbone, rows: Any) -> None:
    whole = trained(backbone, rows, ["bitfit", "ia3"])
    micro = trained(backbone, rows, ["bitfit", "ia3"], settings=SETTINGS.model_copy(update={"micro_batch_size": 3}))
    for name in whole:
        same(whole[name], micro[name], 2e-4)
        assert whole[name].progress.tokens == micro[name].progress.tokens


def test_a_trial_whose_numbers_break_leaves_the_rest_alone(backbone: Backbone, rows: Any) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    broken: dict[str, Exception] = {}
    try:
        trials = states(attached, rows, ["bitfit", "lora"])
        trials[1].peak_rates = [1e9 for _ in trials[1].peak_rates]  # far from any overflow, on every processor
        CohortTrainer(
            backbone, attached, trials, rows[1], failed=lambda trial, error: broken.__setitem__(trial.name, error)
        ).run()
    finally:
        attached.detach()
    assert list(broken) == ["lora"]
    assert isinstance(broken["lora"], FloatingPointError)
    assert trials[1].progress.stopped == "failed"
    assert trials[1].progress.error == str(broken["lora"])
    assert 0 < trials[1].progress.step < 6
    same(trials[0], trained(backbone, rows, ["bitfit"])["bitfit"], 2e-4)


def test_without_anyone_to_tell_a_break_is_raised(backbone: Backbone, rows: Any, attached: Attached) -> None:
    (trial,) = states(attached, rows, ["lora"])
    trial.peak_rates = [1e9 for _ in trial.peak_rates]
    with pytest.raises(FloatingPointError, match=r"a trained weight has grown to 1e.09 at step 1"):
        CohortTrainer(backbone, attached, [trial], rows[1]).run()


def scripted(
    trainer: CohortTrainer, script: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Validation losses as written; keeps the tensors at each validation."""
    seen: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in script}

    def validate(trials: Sequence[TrialState], _rows: int | None = None) -> list[list[tuple[float, int]]]:
        for trial in trials:
            seen[trial.name].append({k: v.clone() for k, v in trial.adapter.tensors().items()})
        return [[(script[trial.name][len(seen[trial.name]) - 1], 1)] for trial in trials]

    monkeypatch.setattr(trainer, "block_losses", validate)
    return seen


def test_early_stopping_keeps_the_best_and_lets_the_others_go_on(
    backbone: Backbone, rows: Any, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 5, "patience": 2})
    trials = states(attached, rows, ["bitfit", "ia3"], settings)
    trainer = CohortTrainer(backbone, attached, trials, rows[1])
    seen = scripted(trainer, {"bitfit": [3.0, 2.0, 2.5, 2.2], "ia3": [5.0, 4.0, 3.0, 2.0, 1.0]}, monkeypatch)
    trainer.run()
    bitfit, ia3 = (trial.progress for trial in trials)
    assert (bitfit.stopped, bitfit.best_loss, bitfit.best_step, bitfit.best_epoch) == ("patience", 2.0, 6, 2.0)
    assert (ia3.stopped, ia3.best_loss, ia3.best_epoch) == ("", 1.0, 5.0)
    assert 0 < bitfit.best_seconds < bitfit.seconds
    for name, tensor in trials[0].adapter.tensors().items():
        assert torch.equal(tensor, seen["bitfit"][1][name])
        assert not torch.equal(tensor, seen["bitfit"][3][name])


@pytest.mark.parametrize("script", [[float("nan")], [float("inf"), 1.0]])
def test_a_first_validation_loss_that_is_no_number_fails_the_trial(
    backbone: Backbone, rows: Any, attached: Attached, monkeypatch: pytest.MonkeyPatch, script: list[float]
) -> None:
    (trial,) = states(attached, rows, ["bitfit"])
    failed: list[str] = []
    trainer = CohortTrainer(backbone, attached, [trial], rows[1], failed=lambda t, error: failed.append(str(error)))
    scripted(trainer, {"bitfit": script}, monkeypatch)
    trainer.run()
    assert trial.progress.stopped == "failed"
    assert failed == [f"the validation loss is {script[0]} at step 3"]


def test_a_later_validation_loss_that_is_no_number_keeps_what_was_best(
    backbone: Backbone, rows: Any, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = states(attached, rows, ["bitfit"])
    trainer = CohortTrainer(backbone, attached, [trial], rows[1])
    seen = scripted(trainer, {"bitfit": [2.0, float("nan")]}, monkeypatch)
    trainer.run()
    assert trial.progress.best_loss == 2.0
    assert all(torch.equal(t, seen["bitfit"][0][n]) for n, t in trial.adapter.tensors().items())


def test_the_deadline_ends_training_with_what_there_is(backbone: Backbone, rows: Any) -> None:
    asked: list[int] = []

    def late() -> bool:
        asked.append(1)
        return len(asked) > 2

    trial = trained(backbone, rows, ["bitfit"], out_of_time=late)["bitfit"]
    assert trial.progress.stopped == "budget"
    assert trial.progress.step == 2
    assert len(trial.progress.history) == 1  # measured at the end, as no epoch was full
    assert trial.best is not None


def test_no_time_at_all_leaves_the_adapter_untrained(backbone: Backbone, rows: Any) -> None:
    trial = trained(backbone, rows, ["bitfit"], out_of_time=lambda: True)["bitfit"]
    assert (trial.progress.stopped, trial.progress.step, trial.progress.history) == ("budget", 0, [])


@pytest.mark.usefixtures("one_thread")
def test_seconds_of_a_shared_pass_are_divided(backbone: Backbone, rows: Any) -> None:
    found = trained(backbone, rows, ["bitfit", "ia3"])
    assert found["bitfit"].progress.seconds == pytest.approx(found["ia3"].progress.seconds)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_loss_is_that_of_the_answers_tokens_alone(local_backbone: Any, moods: Task, family: str) -> None:
    found = load_backbone(str(local_backbone(family)))
    encoded = Encoder(found).encode(moods, moods.splits(3, 0, 2).train)
    batch = Collator(found)(encoded)
    attached = Attached(found.model, found.anatomy)
    adapter = attached.add("a", [build_method("bitfit")], 0)
    trainer = CohortTrainer(found, attached, [TrialState("a", adapter, encoded, SETTINGS, 0)], encoded)
    (loss,) = trial_losses(attached, batch, assignments(trainer.trials, [slice(0, 3)], [Rows()]), [slice(None)])
    by_hand = torch.zeros(())
    for row in encoded:  # one example after the other, without padding
        if family == "t5":
            start = found.model.config.decoder_start_token_id
            inputs = {"input_ids": [row.prompt], "decoder_input_ids": [(start, *row.answer[:-1])]}
        else:
            inputs = {"input_ids": [row.prompt + row.answer]}
        with torch.no_grad():
            logits = found.model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits[0]
        at = logits if family == "t5" else logits[len(row.prompt) - 1 : -1]
        by_hand += functional.cross_entropy(at, torch.tensor(row.answer), reduction="sum")
    attached.detach()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_the_prompts_tokens_are_no_targets(backbone: Backbone, rows: Any) -> None:
    batch = Collator(backbone)(rows[0][:3])
    assert batch.keep is not None
    assert len(batch.targets) == sum(len(row.answer) for row in rows[0][:3])
    for place, (row, position) in enumerate(zip(*(k.tolist() for k in batch.keep), strict=True)):
        encoded = rows[0][row]
        assert batch.targets[place] == (*encoded.prompt, *encoded.answer)[position + 1]
        assert position + 1 >= len(encoded.prompt)


def test_many_targets_in_chunks_give_the_same_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 11, generator=generator)
    targets = torch.randint(11, (50,), generator=generator)
    assert cross_entropy_sum(logits, targets, chunk=7).item() == pytest.approx(
        cross_entropy_sum(logits, targets).item()
    )


def test_validation_uses_the_first_rows_only(backbone: Backbone, rows: Any, attached: Attached) -> None:
    (trial,) = states(attached, rows, ["bitfit"], SETTINGS.model_copy(update={"validation_rows": 2}))
    trainer = CohortTrainer(backbone, attached, [trial], rows[1])
    order = by_length([row.length for row in rows[1][:2]], 32)[0]
    assert len(trainer.validation) == 1
    assert trainer.validation[0].counts == tuple(len(rows[1][i].answer) for i in order)


def test_a_classifier_on_an_encoder_decoder_has_a_frozen_prefix_in_the_encoder_alone(moods: Task) -> None:
    """The decoder's input is made inside the model, so what its leading layers give cannot be kept by rows."""
    backbone = load_backbone("tiny-seq2seq", "classification", moods.labels)
    splits = moods.splits(10, 0, 6)
    encoder = Encoder(backbone)
    train, validation = encoder.encode(moods, splits.train), encoder.encode(moods, splits.validation)
    attached = Attached(backbone.model, backbone.anatomy)
    trial = TrialState("head", attached.add("head", [build_method("head")]), train, SETTINGS, 0)
    CohortTrainer(backbone, attached, [trial], validation).run()
    assert trial.progress.frozen_prefix_layers == {"encoder": backbone.anatomy.layer_counts["encoder"], "decoder": 0}
    assert trial.progress.frozen_prefix_tokens > 0
    assert trial.progress.step == trial.total_steps


def test_without_validation_rows_a_trial_ends_with_its_last_tensors(backbone: Backbone, rows: Any) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    trial = states(attached, rows, ["lora"])[0]
    last: dict[str, torch.Tensor] = {}

    class Copies(Silent):
        def stepped(self, trial: TrialState) -> None:
            last.update({name: tensor.clone() for name, tensor in trial.adapter.tensors().items()})

    CohortTrainer(backbone, attached, [trial], [], Copies()).run()
    assert not trial.progress.history
    assert all(torch.equal(last[name], tensor) for name, tensor in trial.adapter.tensors().items())
    attached.detach()


def test_a_limit_of_memory_makes_passes_smaller_and_changes_no_result(
    backbone: Backbone, rows: Any, monkeypatch: Any
) -> None:
    whole = trained(backbone, rows, ["lora"])["lora"]
    monkeypatch.setattr("dollartune.train.loop.rows_that_fit", lambda *given: 2)
    with memory_limited(1 << 60, torch.device("cpu")):
        limited = trained(backbone, rows, ["lora"])["lora"]
    assert (limited.rows_per_pass, whole.rows_per_pass) == (2, 4)
    assert losses(limited) == pytest.approx(losses(whole), abs=1e-3)


def test_a_step_beyond_the_limit_says_how_many_rows_it_had(backbone: Backbone, rows: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("dollartune.train.loop.over_limit", lambda: True)
    with pytest.raises(PassesTooLarge) as error:
        trained(backbone, rows, ["lora"])
    assert error.value.rows == 4
