"""What a trial will take: memory by part, seconds, dollars; whether it fits, and if not, what would.

    Planner(backbone without weights, what is known of the task, settings, where it runs).estimate(methods, rows)

Memory is what the passes of the trial keep at their worst moment (`dry_run`); seconds are their traced work at the
speed of the machine (`roofline`). Both come from the training code itself, not from formulas about it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.evaluate.labels import LABEL_SLACK_TOKENS
from dollartune.methods.base import prompting_of
from dollartune.planner.dry_run import Bare, DryRun, dry_run_of
from dollartune.planner.dry_run_cache import cache_file, read_dry_runs, write_dry_runs
from dollartune.train.batching import VALIDATION_ROWS_AT_ONCE
from dollartune.train.solve import FEATURE_ROWS, solve_seconds

if TYPE_CHECKING:
    from dollartune.methods.base import Method
    from dollartune.planner.batches import BatchShapes, TaskShape
    from dollartune.planner.hardware import Hardware
    from dollartune.train.settings import TrainingSettings

KEPT_STATES = 2
"""Copies of the trained tensors while training may stop early: those that are trained, and the best ones so far."""
BETWEEN_SECONDS = 0.1
"""Per trial: attaching, records."""


@dataclass(frozen=True)
class EvaluationPlan:
    """How trials are evaluated."""

    rows: int
    """Most test and validation rows."""
    batch_size: int
    free_generation: bool


@dataclass(frozen=True)
class Estimate:
    """What one trial will take."""

    trainable: int
    """Parameters."""
    memory: Mapping[str, int]
    """Bytes at the worst moment by part: weights, trained, gradients, optimizer, activations, logits, kernels, runtime."""
    seconds: float
    """Tuning to the last epoch, and evaluation; without loading the backbone."""
    low_seconds: float
    """If patience ends it at the first chance, answers are short and the machine is faster than thought."""
    high_seconds: float
    """If answers are as long as allowed and the machine is slower than thought."""
    parts: Mapping[str, float]
    """Seconds of `tune`, `validate`, `score`, `write`."""
    steps: int
    """Optimizer steps."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


BASELINE_SECONDS = (0.2, 2.0, 20.0)
"""Least, usual and most of a baseline: counting classes takes no time, words of ten thousand rows ten seconds on one core."""


def baseline_estimate() -> Estimate:
    """Of a trial that needs no backbone."""
    low, usual, high = BASELINE_SECONDS
    return Estimate(0, {}, usual, low, high, {"tune": usual}, 0)


@dataclass(frozen=True)
class Misfit:
    """Why a trial is refused, and what would fit."""

    needed_bytes: int
    available_bytes: int
    nearest: Mapping[str, Any] = field(default_factory=dict)
    """Settings that would make it fit, as they stand in a study file; empty if none does."""
    nearest_bytes: int = 0
    """What it would need then, or with the thriftiest settings if none fits."""
    by_budget: bool = False
    """Whether the budget allows less than the machine has."""

    def sentence(self, label: str, machine: str) -> str:
        """What is needed, what there is, what would fit."""
        who = "the budget allows" if self.by_budget else f"{machine} has"
        text = f"{label} needs {numbers.size(self.needed_bytes)}; {who} {numbers.size(self.available_bytes)}."
        if self.nearest:
            settings = ", ".join(f"{name}: {value}" for name, value in self.nearest.items())
            return f"{text} It fits with {settings} ({numbers.size(self.nearest_bytes)})."
        return f"{text} No setting makes it fit: the thriftiest needs {numbers.size(self.nearest_bytes)}."


class Planner:
    """Estimates trials of one backbone on one task.

    Args:
        backbone: without weights.
        task: lengths and numbers of rows.
        hardware: where trials would run.
    """

    def __init__(
        self,
        backbone: Bare,
        task: TaskShape,
        training: TrainingSettings,
        evaluation: EvaluationPlan,
        hardware: Hardware,
    ) -> None:
        self.backbone, self.task, self.training = backbone, task, training
        self.evaluation, self.hardware = evaluation, hardware
        self._estimates: dict[Hashable, Estimate] = {}
        self._passes: dict[Hashable, dict[str, Any]] = {}
        """Structure of methods -> what dry runs of them came to."""

    def estimate(self, methods: Sequence[Method[Any]], rows: int | None = None) -> Estimate:
        """What a trial of these methods (as it attaches them) takes on so many training rows (None: all)."""
        # A scale above what the task has is all of it, as when it is run.
        rows = min(rows or self.task.train_rows, self.task.train_rows)
        trains = [method for method in methods if method.capabilities.trains]
        # Not by the label: a search tries hundreds of rates, which all cost the same.
        key = (_structure(methods), rows)
        if key not in self._estimates:
            with self._dry_run_of(trains) as dry:
                self._estimates[key] = self._estimate(dry, methods, rows, bool(trains))
        return self._estimates[key]

    def peak_bytes(self, methods: Sequence[Method[Any]]) -> int:
        """Peak memory alone."""
        trains = [method for method in methods if method.capabilities.trains]
        with self._dry_run_of(trains) as dry:
            shapes = self.task.batches(self.training.batch_size, self.training.group_by_length)
            return sum(
                memory_parts(self._training_memory(dry, shapes), self.hardware, self._keeps_best(trains)).values()
            )

    # Inside

    def _keeps_best(self, trains: object) -> bool:
        return bool(trains) and self.training.patience is not None  # where nothing is stepped, nothing better is kept

    @contextmanager
    def _dry_run_of(self, trains: Sequence[Method[Any]]) -> Iterator[DryRun]:
        """Dry runs of one adapter; those that were made before, by this process or an earlier one, are not made again."""
        structure = _structure(trains)
        path = cache_file(self.backbone, trains, repr(structure), self.training, self.hardware.device)
        known = self._passes.setdefault(structure, read_dry_runs(path) if structure not in self._passes else {})
        before = len(known)
        with dry_run_of(self.backbone, trains, self.training, known, self.hardware.device) as dry:
            yield dry
        if len(known) > before:
            write_dry_runs(path, known)

    def _estimate(self, dry: DryRun, methods: Sequence[Method[Any]], rows: int, trains: bool) -> Estimate:
        speed, training = self.hardware.speed, self.training
        seconds: dict[str, float] = {}
        shortest = dict.fromkeys(("tune", "validate"), 0.0)
        passes: list[Mapping[str, int]] = []
        steps = 0
        solved = [method for method in methods if method.capabilities.solved]
        if solved:
            steps = 1
            shapes = self.task.batches(FEATURE_ROWS, True)
            passes.append(self._training_memory(dry, shapes))
            features = dry.scoring(shapes.mean, self.task.label_tokens or (1,))
            assert dry.adapter is not None
            alone = solve_seconds(dry.adapter, rows)
            seconds["tune"] = math.ceil(rows / shapes.mean.rows) * speed.seconds(features.work) + alone
            shortest["tune"] = seconds["tune"]
        elif trains:
            batches = math.ceil(rows / training.batch_size)
            steps = training.steps_for(rows)
            epochs = steps / batches
            # A batch cannot be larger than what there is to train on; few-row scales are common.
            shapes = self.task.batches(min(training.batch_size, rows), training.group_by_length)
            passes.append(self._training_memory(dry, shapes, epochs > 1))
            seconds["tune"] = steps * speed.seconds(dry.training_work(shapes.mean, epochs > 1))
            measured = self.task.batches(max(training.batch_size, VALIDATION_ROWS_AT_ONCE), True)
            validation_rows = min(training.validation_rows, self.task.validation_rows)
            once = math.ceil(validation_rows / measured.mean.rows) * speed.seconds(dry.validation(measured.mean).work)
            times = math.ceil(epochs * min(training.validations_per_epoch, batches))
            seconds["validate"] = times * once
            if training.head_start == "probe" and self.backbone.objective == "classification":
                # One pass over the rows; the solution is short beside it.
                begun = self.task.batches(FEATURE_ROWS, True).mean
                pass_seconds = speed.seconds(dry.scoring(begun, self.task.label_tokens or (1,)).work)
                seconds["tune"] += math.ceil(rows / begun.rows) * pass_seconds
            # The earliest end: the first validation is the best one, and patience runs out after it.
            patience = min(times, times if training.patience is None else training.patience + 1)
            shortest = {"tune": seconds["tune"] * patience / times, "validate": once * patience}
        evaluated, least, most = self._evaluation(dry, methods, trains, passes)
        seconds |= evaluated
        total = sum(seconds.values()) + BETWEEN_SECONDS
        low = sum(shortest.values()) + sum(least.values()) + BETWEEN_SECONDS
        high = seconds.get("tune", 0.0) + seconds.get("validate", 0.0) + sum(most.values()) + BETWEEN_SECONDS
        keeps_best = self._keeps_best(trains)
        parts = [memory_parts(memory, self.hardware, keeps_best) for memory in passes]
        memory = max(
            parts, key=lambda bytes_by_part: sum(bytes_by_part.values())
        )  # passes follow one another: the worst counts
        trainable = dry.adapter.count() if dry.adapter is not None else 0
        return Estimate(
            trainable,
            memory,
            total,
            low / (1 + speed.uncertainty),  # a factor either way: times (1 - 0.6) would promise too much
            high * (1 + speed.uncertainty),
            seconds,
            steps,
        )

    def _training_memory(self, dry: DryRun, shapes: BatchShapes, repeats: bool = False) -> Mapping[str, int]:
        """Bytes by part of the step with the longest rows, where training needs most; where no step is made, of the longest
        batch scored."""
        if dry.adapter is None or dry.adapter.readout is not None:
            return dry.scoring(shapes.longest, self.task.label_tokens or (1,)).memory
        return dry.training_memory(shapes.longest, repeats)

    def _evaluation(
        self, dry: DryRun, methods: Sequence[Method[Any]], trains: bool, passes: list[Mapping[str, int]]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Seconds of scoring and writing: expected, least, most. Adds what it passed to `passes`."""
        speed, task, wanted = self.hardware.speed, self.task, self.evaluation
        prompting = prompting_of(methods)
        shape = task.with_examples(prompting.examples) if prompting is not None and prompting.examples else task
        batches = shape.batches(wanted.batch_size, True)
        test = math.ceil(min(task.test_rows, wanted.rows) / batches.mean.rows)
        validation = min(task.validation_rows, wanted.rows, self.training.validation_rows)
        both = test + math.ceil(validation / batches.mean.rows)
        seconds: dict[str, float] = {}
        least: dict[str, float] = {}
        most: dict[str, float] = {}
        writes = task.kind == "generation" or (wanted.free_generation and self.backbone.objective == "language")
        if task.kind == "classification":
            scored = dry.scoring(batches.mean, task.label_tokens)
            passes.append(dry.scoring(batches.longest, task.label_tokens).memory)
            seconds["score"] = least["score"] = most["score"] = both * speed.seconds(scored.work)
        if writes:
            longest = (
                task.max_answer_tokens
                if task.kind == "generation"
                else max(task.label_tokens, default=1) + LABEL_SLACK_TOKENS
            )
            # A tuned model ends where the answers of its data end; an untuned one has not learnt to end at all.
            expected = min(longest, batches.mean.answer + 1) if trains else longest
            read, one = dry.writing(batches.mean, longest)
            if task.kind == "generation":
                passes.append(dry.writing(batches.longest, longest)[0].memory)
            # Where labels are scored, free generation is a breakdown of the test rows alone; where texts are written it is the
            # score.
            times = both if task.kind == "generation" else test
            shortest = min(longest, max(1, batches.mean.answer))
            for part, tokens in ((seconds, expected), (least, shortest), (most, longest)):
                # Reading the prompts gives the first token; each further one is a pass of one token over the cache.
                part["write"] = times * (speed.seconds(read.work) + (tokens - 1) * speed.seconds(one))
        return seconds, least, most


def memory_parts(memory: Mapping[str, int], hardware: Hardware, keeps_best: bool) -> dict[str, int]:
    """Bytes by part on a machine, the gaps of its allocator and its runtime included.

    Args:
        keeps_best: whether the best state so far is kept beside the trained parameters.
    """
    order = ("weights", "trained", "gradients", "optimizer", "activations", "logits", "kernels")
    parts = {name: memory.get(name, 0) for name in order}
    if keeps_best:
        parts["trained"] *= KEPT_STATES
    # Gaps form among what comes and goes; weights and optimizer states are allocated once and stay.
    moving = parts["activations"] + parts["logits"]
    parts["activations"] += int(moving * hardware.allocator_slack)
    parts["kernels"] += hardware.kernel_bytes
    parts["runtime"] = hardware.runtime_bytes
    return parts


def _structure(methods: Sequence[Method[Any]]) -> tuple[str, ...]:
    """What of methods decides their cost: everything but learning rate and weight decay."""
    plain = [{k: v for k, v in method.describe().items() if k not in ("lr", "weight_decay")} for method in methods]
    return tuple(repr(sorted(settings.items())) for settings in plain)


def thriftier(planner: Planner, methods: Sequence[Method[Any]], packed: Planner | None) -> tuple[dict[str, Any], int]:
    """The nearest settings with which a trial fits its machine, and its peak bytes then.

    Tried in this order: fewer rows per pass, activations computed again in the backward pass, frozen weights in 4 bits,
    and their combinations; empty settings with the least bytes if nothing fits.

    Args:
        packed: the same planner with the backbone in 4 bits; None where the methods train its weights.
    """
    least = 0
    training = planner.training
    recompute = {"gradient_checkpointing": True}
    # Cheapest change first: smaller passes cost some speed, recomputing a third more products, 4 bits some quality.
    variants: list[tuple[dict[str, Any], Planner]] = [({}, planner)]
    if not training.gradient_checkpointing:
        variants.append((recompute, _with(planner, recompute)))
    if packed is not None:
        variants.append(({"quantize": "nf4"}, packed))
        variants.append(({**recompute, "quantize": "nf4"}, _with(packed, recompute)))
    rows = training.micro_batch_size or training.batch_size
    for changes, changed in variants:
        # One row at a time first: if that does not fit, nothing between does, and dry runs of those are spared.
        least_here = _with(changed, {"micro_batch_size": 1}).peak_bytes(methods)
        least = min(least or least_here, least_here)
        if least_here > planner.hardware.usable_bytes:
            continue
        micro = rows
        while micro > 1:
            needed = _with(changed, {"micro_batch_size": micro}).peak_bytes(methods)
            if needed <= planner.hardware.usable_bytes:
                return ({**changes, "micro_batch_size": micro} if micro < rows else changes), needed
            micro //= 2
        return {**changes, "micro_batch_size": 1}, least_here
    return {}, least


def _with(planner: Planner, changes: Mapping[str, Any]) -> Planner:
    training = planner.training.model_copy(update=dict(changes))
    return Planner(planner.backbone, planner.task, training, planner.evaluation, planner.hardware)


def refusal(
    planner: Planner, methods: Sequence[Method[Any]], estimate: Estimate, packed: Planner | None
) -> Misfit | None:
    """Why a trial does not fit its machine, with what would; None if it fits."""
    if estimate.peak_bytes <= planner.hardware.usable_bytes:
        return None
    trains = any(method.capabilities.trains for method in methods)
    settings, needed = thriftier(planner, methods, packed) if trains else ({}, estimate.peak_bytes)
    usable, limit = planner.hardware.usable_bytes, planner.hardware.limit_bytes
    return Misfit(estimate.peak_bytes, usable, settings, needed, by_budget=usable == limit)
