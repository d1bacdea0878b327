"""Length from money: plans that change on the way, on a clock of our own; the same plan gives the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.early_stopping import end_wins
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.length import (
    Look,
    Planner,
    Replan,
    at_most,
    end_decayed,
    fill_time,
    is_look,
    look_rows,
    look_steps,
    steps_by_rows,
)
from dollartune.train.loop import CohortTrainer, Silent
from dollartune.train.lr_schedule import decay_progress, learning_rate_factor
from dollartune.train.progress import Progress
from dollartune.train.repeat import Repeat
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

SETTINGS = TrainingSettings(batch_size=4, patience=None, precision="fp32")


def wsd(step: int, *plan: tuple[int, int], warmup: float = 0.1) -> float:
    return learning_rate_factor(step, [Replan(*one) for one in plan], "wsd", warmup)


class Machine:
    """A clock that training moves: so long for a step, so long for a validation row."""

    def __init__(self, limit: float, step_seconds: Callable[[int], float], row_seconds: float = 0.001) -> None:
        self.now, self.limit, self.step_seconds, self.row_seconds = 0.0, limit, step_seconds, row_seconds

    def clock(self) -> float:
        return self.now

    def left(self) -> float:
        return self.limit - self.now


class Trainer(CohortTrainer):
    """The trainer on such a machine."""

    machine: Machine

    def train_step(self, running: Any) -> None:
        self.machine.now += self.machine.step_seconds(running[0].progress.step)
        super().train_step(running)

    def block_losses(self, trials: Any, rows: int | None = None) -> Any:
        blocks = self.validation_blocks if rows is None else self.validation_blocks[: -(-rows // 64)]
        before = self.machine.now
        self.machine.now += self.machine.row_seconds * sum(batch.rows for block in blocks for batch in block)
        found = super().block_losses(trials, rows)
        if self.pace is not None:  # its clock stood still inside
            self.pace.validated(self.machine.now - before, sum(batch.rows for block in blocks for batch in block))
        return found


@pytest.fixture(scope="module")
def rows(backbone: Backbone, moods: Task) -> list[Encoded]:
    return Encoder(backbone).encode(moods, moods.splits(10, 0, 4).train)


def trained(
    backbone: Backbone,
    rows: list[Encoded],
    machine: Machine,
    method: str = "lora(rank=2, dropout=0.1)",
    settings: TrainingSettings = SETTINGS,
    watcher: Silent | None = None,
    planner: Planner = fill_time,
    **length: Any,
) -> TrialState:
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        trial = TrialState("t", attached.add("t", [build_method(method)], 0), rows, settings, 0, **length)
        trainer = Trainer(
            backbone, attached, [trial], rows[:4], watcher, lambda: machine.left() <= 0, None, machine.left, planner,
            machine.clock,
        )  # fmt: skip
        trainer.machine = machine
        trainer.run()
    finally:
        attached.detach()
    return trial


def test_more_rows_never_train_less() -> None:
    """No cliff, as between 1,000 and 1,001 rows: five epochs and one."""
    for batch in (8, 16, 64):
        steps = [steps_by_rows(rows, batch) for rows in range(1, 3000)]
        assert all(after >= before for before, after in itertools.pairwise(steps))
        assert all(count * batch >= rows for rows, count in enumerate(steps, 1))
    assert steps_by_rows(1000, 16) / 1000 > steps_by_rows(10_000, 16) / 10_000  # and fewer passes over more rows


def test_warmup_stable_decay() -> None:
    rates = [wsd(step, (0, 100)) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert set(rates[10:81]) == {1.0}
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[80:]))
    assert rates[85] == pytest.approx(1 - 0.25**0.5)
    assert 0 < rates[99] < 0.03


def test_moving_the_end_in_time_is_as_if_it_had_stood_there_from_the_start() -> None:
    moved = [wsd(step, (0, 100), (40, 200)) for step in range(40, 200)]
    assert moved == [wsd(step, (0, 200)) for step in range(40, 200)]
    # the warm-up is over: a longer total does not begin it again
    assert wsd(12, (0, 100), (11, 1000)) == 1.0
    # and before its end it follows
    assert wsd(9, (0, 100), (9, 1000)) == pytest.approx(10 / 101)


def test_in_the_decay_the_end_comes_nearer_and_the_rate_never_jumps() -> None:
    plan = [Replan(0, 100), Replan(90, 95)]
    assert decay_progress(90, plan) == pytest.approx(0.5)
    assert decay_progress(95, plan) == 1.0
    made = [[one for one in plan if one.step <= step] for step in range(95)]
    rates = [learning_rate_factor(step, made[step], "wsd", 0.0) for step in range(80, 95)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    # a plan that is shorter than what is done begins the decay where it was made
    late = [Replan(0, 100), Replan(60, 64)]
    assert [decay_progress(step, late) for step in (60, 61, 62, 64)] == [0.0, 0.25, 0.5, 1.0]


def test_looks_grow() -> None:
    steps = list(itertools.islice(look_steps(), 8))
    assert steps == [20, 28, 40, 56, 79, 111, 156, 219]
    assert [step for step in range(1, 230) if is_look(step)] == steps
    assert [look_rows(step, 16) for step in (20, 219, 1000)] == [64, 384, 1600]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "constant"])
def test_when_the_end_may_be_moved(backbone: Backbone, rows: list[Encoded], schedule: Any) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    settings = SETTINGS.model_copy(update={"schedule": schedule, "warmup": 0.1})
    trial = TrialState("t", attached.add("t", [build_method("bitfit")], 0), rows, settings, 0, steps=100)
    attached.detach()
    trial.replan(120)  # nothing is done yet
    trial.progress.step = 50
    if schedule in ("wsd", "constant"):
        trial.replan(200)
        trial.replan(100)
    else:
        for total in (200, 100):
            with pytest.raises(ValueError, match=f"the rate of schedule '{schedule}' is falling"):
                trial.replan(total)
    trial.progress.step = 90
    if schedule == "wsd":
        with pytest.raises(ValueError, match="from 100 to 101 steps at step 90"):
            trial.replan(101)
        trial.replan(95)
        assert trial.progress.plan[-1] == Replan(90, 95)
    with pytest.raises(ValueError, match="90 steps are done"):
        trial.replan(90)


@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda step: 0.1,
        lambda step: 3.0 if step == 0 else 0.1,  # setting up
        lambda step: 0.1 if step < 30 else 0.2,  # somebody else comes to the machine
        lambda step: 0.2 if step < 30 else 0.1,
        lambda step: 0.07 + 0.06 * (step * 7919 % 13) / 13,  # lengths
    ],
    ids=["even", "slow start", "slower", "faster", "uneven"],
)
def test_the_time_is_used_and_training_ends_decayed(
    backbone: Backbone, rows: list[Encoded], step_seconds: Callable[[int], float]
) -> None:
    machine = Machine(10.0, step_seconds)
    trial = trained(backbone, rows, machine, method="bitfit", from_money=True)
    progress = trial.progress
    assert progress.stopped == ""
    assert decay_progress(progress.step, progress.plan) == 1.0
    assert 0.95 * 10.0 <= machine.now <= 10.0
    assert [row.step for row in progress.history[:3]] == [20, 28, 40]
    assert progress.history[-1].step == progress.step == trial.total_steps


def test_less_time_than_the_first_plan(backbone: Backbone, rows: list[Encoded]) -> None:
    machine = Machine(1.0, lambda step: 0.1)
    trial = trained(backbone, rows, machine, from_money=True)
    assert machine.now <= 1.0
    assert 8 <= trial.progress.step <= 9
    assert decay_progress(trial.progress.step, trial.progress.plan) == 1.0


@pytest.mark.parametrize("row_seconds", [0.5, 2.0])
def test_looks_that_are_dear_do_not_go_over_the_limit(
    backbone: Backbone, rows: list[Encoded], row_seconds: float
) -> None:
    """Four rows cost as much as many steps, and nobody knew it before the last look: what is no duty is left out."""
    machine = Machine(10.0, lambda step: 0.5, row_seconds)
    trial = trained(backbone, rows, machine, from_money=True)
    assert trial.progress.step < 20
    assert machine.now <= 10.0 + 4 * row_seconds  # the last look; the worker keeps that much (`_training_deadline`)


def test_without_a_limit_the_first_plan_stands(backbone: Backbone, rows: list[Encoded]) -> None:
    trial = trained(backbone, rows, Machine(float("inf"), lambda step: 0.1), from_money=True)
    assert trial.progress.plan == [Replan(0, SETTINGS.steps_for(len(rows)))]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["lora(rank=2, dropout=0.2)", "adalora(rank=4, target_rank=2)", "full"])
def test_trained_again_by_the_plan_gives_equal_bits(backbone: Backbone, rows: list[Encoded], method: str) -> None:
    first = trained(backbone, rows, Machine(9.0, lambda step: 0.1 + 0.001 * (step % 7)), method, from_money=True)
    progress = first.progress
    assert len(progress.plan) > 2
    repeat = Repeat(progress.plan, progress.step, progress.best_step, progress.stopped, progress.average)
    again = trained(backbone, rows, Machine(1e9, lambda step: 1.0), method, from_money=True, repeat=repeat)
    assert again.progress.plan == progress.plan
    assert not again.progress.history, "validation decides nothing here"
    for name, tensor in first.adapter.tensors().items():
        assert torch.equal(tensor, again.adapter.tensors()[name]), name


class Interrupted(Silent):
    """Remembers how far training was when the money came to its end."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.state: TrialState | None = None

    def stepped(self, trial: TrialState) -> None:
        self.state = trial

    def interrupted(self) -> None:
        assert self.state is not None
        self.at.append(self.state.progress.step)
        assert len(self.at) > 1 or not self.state.progress.ending, "more money goes on as if nothing had been cut"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda step: 0.1,
        lambda step: 0.1 if step < 60 else 0.2,  # somebody else comes to the machine
        lambda step: 0.5 if step < 12 else 0.1,  # what looked like the end was none
    ],
    ids=["even", "slower", "faster"],
)
def test_a_set_length_that_the_money_does_not_reach_ends_decayed(
    backbone: Backbone, rows: list[Encoded], step_seconds: Callable[[int], float], schedule: Any
) -> None:
    machine, watcher = Machine(10.0, step_seconds), Interrupted()
    settings = SETTINGS.model_copy(update={"schedule": schedule})
    trial = trained(backbone, rows, machine, "bitfit", settings, watcher, end_decayed, steps=500)
    progress = trial.progress
    assert progress.stopped == "budget"
    assert 0.9 * 10.0 <= machine.now <= 10.0
    assert progress.step == trial.total_steps < 500
    plans = [[one for one in progress.plan if one.step <= step] for step in range(progress.step)]
    rates = [learning_rate_factor(step, plan, schedule, settings.warmup) for step, plan in enumerate(plans)]
    cut = progress.plan[1].step
    assert watcher.at[0] == cut
    untouched = [learning_rate_factor(step, progress.plan[:1], schedule, settings.warmup) for step in range(cut)]
    assert rates[:cut] == untouched
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[cut:]))
    assert rates[-1] < 0.15 < rates[cut - 1]
    assert learning_rate_factor(progress.step, progress.plan, schedule, settings.warmup) == pytest.approx(0, abs=1e-9)
    assert progress.history[-1].step == progress.step


def test_a_set_length_that_is_paid_for_is_kept(backbone: Backbone, rows: list[Encoded]) -> None:
    machine, watcher = Machine(10.0, lambda step: 0.07 + 0.06 * (step * 7919 % 13) / 13), Interrupted()
    trial = trained(backbone, rows, machine, "bitfit", SETTINGS, watcher, end_decayed, steps=90)
    assert trial.progress.plan == [Replan(0, 90)]
    assert (trial.progress.stopped, trial.progress.step, watcher.at) == ("", 90, [])


@pytest.mark.usefixtures("one_thread")
def test_a_cut_training_again_gives_equal_bits(backbone: Backbone, rows: list[Encoded]) -> None:
    machine = Machine(6.0, lambda step: 0.1 + 0.001 * (step % 7))
    first = trained(backbone, rows, machine, planner=end_decayed, steps=300)
    progress = first.progress
    assert progress.stopped == "budget"
    repeat = Repeat(progress.plan, progress.step, progress.best_step, progress.stopped, progress.average)
    again = trained(backbone, rows, Machine(1e9, lambda step: 1.0), steps=300, repeat=repeat)
    assert (again.progress.plan, again.progress.stopped) == (progress.plan, "budget")
    for name, tensor in first.adapter.tensors().items():
        assert torch.equal(tensor, again.adapter.tensors()[name]), name


def test_patience_brings_the_decay(backbone: Backbone, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    worse = iter(range(1, 1000))
    monkeypatch.setattr(
        Trainer, "block_losses", lambda self, trials, rows=None: [[(float(next(worse)), 1)] for _ in trials]
    )
    settings = SETTINGS.model_copy(update={"patience": 2, "epochs": 1})
    assert settings.steps_for(len(rows)) <= 40, "the useful length, before which patience ends nothing"
    trial = trained(backbone, rows, Machine(100.0, lambda step: 0.1), "bitfit", settings, from_money=True)
    progress = trial.progress
    assert (progress.stopped, progress.best_step, progress.step) == (
        "patience",
        20,
        50,
    )  # the second look after it is at 40
    assert decay_progress(progress.step, progress.plan) == 1.0


def test_patience_waits_for_the_useful_length(
    backbone: Backbone, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a hard task the loss stands still first: the money has no better use than to go on until rows are used."""
    worse = iter(range(1, 1000))
    monkeypatch.setattr(
        Trainer, "block_losses", lambda self, trials, rows=None: [[(float(next(worse)), 1)] for _ in trials]
    )
    settings = SETTINGS.model_copy(update={"patience": 2})
    useful = settings.steps_for(len(rows))
    trial = trained(backbone, rows, Machine(1000.0, lambda step: 0.1), "bitfit", settings, from_money=True)
    assert useful <= trial.progress.step < 2 * useful
    assert trial.progress.stopped == "patience"


def test_the_end_is_kept_unless_an_earlier_state_is_better_by_more_than_luck() -> None:
    early = [(0.60 if row % 2 else 0.70, 1) for row in range(100)]
    progress = Progress(best_blocks=early, best_loss=0.65)
    luck = [(loss + (0.5 if row % 3 else -0.9), 1) for row, (loss, _) in enumerate(early)]
    assert sum(loss for loss, _ in luck) > sum(loss for loss, _ in early)
    assert end_wins(progress, luck)
    assert not end_wins(progress, [(loss + 0.1 + 0.01 * (row % 2), 1) for row, (loss, _) in enumerate(early)])
    few = Progress(best_blocks=early[:4], best_loss=0.65)
    assert not end_wins(few, luck[1:3] + luck[:2]), "too few rows for an error: the lower loss wins"


def test_the_planner_leaves_time_for_its_looks() -> None:
    look = Look(20, 100, False, 0.1, 0.001, 30.0, 16, 500)
    total = fill_time(look)
    spent = (total - 20) * 0.1 + look.validation_seconds(total)
    assert 0.97 * 30 <= spent <= 30
    assert fill_time(Look(90, 100, True, 0.1, 0.001, 2.0, 16, 100)) == 100, (
        "no longer than planned, once the rate falls"
    )
    assert fill_time(Look(90, 100, True, 0.1, 0.001, 0.8, 16, 100)) == 94
    # before the first look: a row is read in a third of the time in which it is trained
    assert fill_time(Look(4, 100, False, 0.48, 0.0, 10.0, 16, 100)) == 18  # 300 rows read are 3 s, and 14 steps 6.72 s


@pytest.mark.parametrize(("steps", "computed"), [(2, False), (9, True)])
def test_a_part_of_a_pass_does_not_wait_for_all_rows(
    backbone: Backbone, rows: list[Encoded], steps: int, computed: bool
) -> None:
    """Of many rows a short run reads a part, and what leaves its frozen layers would be computed for all of them first."""
    attached, cache, machine = Attached(backbone.model, backbone.anatomy), FrozenPrefixCache(), Machine(100.0, float)
    cache.reuse = True  # as in a study
    attached.use_frozen_prefix(cache)
    try:
        adapter = attached.add("t", [build_method("lora(rank=2, layers='last 1')")], 0)
        trial = TrialState("t", adapter, rows, SETTINGS, 0, steps=steps, from_money=True)
        planner = at_most(fill_time, steps)
        CohortTrainer(
            backbone, attached, [trial], rows[:4], seconds_left=machine.left, planner=planner, clock=machine.clock
        ).run()
    finally:
        attached.detach()
    assert trial.progress.step == steps
    assert (trial.progress.frozen_prefix_tokens_computed > 0) == computed


def test_the_last_choice_is_made_on_all_rows(local_backbone: Any, moods: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """An early look reads one block alone; what won there is measured on the rest before it is compared with the last state."""
    backbone = load_backbone(str(local_backbone("bert")), "classification", moods.labels)
    encoder = Encoder(backbone)
    train = encoder.encode(moods, moods.splits(10, 0, 4).train)
    attached = Attached(backbone.model, backbone.anatomy)
    settings = SETTINGS.model_copy(update={"validation_rows": 8})
    monkeypatch.setattr("dollartune.train.loop.BLOCK_ROWS", 4)
    monkeypatch.setattr("dollartune.train.length.BLOCK_ROWS", 4)
    monkeypatch.setattr(TrialState, "look_rows", property(lambda self: 8 if self.done else 4))
    trial = TrialState("t", attached.add("t", [build_method("head")], 0), train, settings, 0, steps=28, from_money=True)
    trainer = CohortTrainer(backbone, attached, [trial], train[:8])
    measured: list[int] = []
    losses = trainer.block_losses

    def lucky(trials: Any, rows: int | None = None) -> Any:
        """The first look is lucky on its block; measured on both, its state is worse than the last one."""
        found = losses(trials, rows)[0]
        measured.append(len(found))
        return [[(0.01 if len(measured) == 1 else loss + (9 if len(measured) == 3 else 0), n) for loss, n in found]]

    monkeypatch.setattr(trainer, "block_losses", lucky)
    trainer.run()
    attached.detach()
    assert measured == [4, 8, 8, 8]  # look at 20; at the end the last state, the best one before it, the average
    assert trial.progress.best_step == 28
    assert len(trial.progress.best_blocks) == 8
    assert 0 < trial.progress.best_loss < 1
    assert [row.rows for row in trial.progress.history] == [4, 8]
