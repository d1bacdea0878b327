"""What trials share: backbones, data and encodings, loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.content_hash import of_backbone
from dollartune.backbones.families import use_file
from dollartune.backbones.loading import Backbone, load_backbone, read_config
from dollartune.engines.base import EvaluationCost
from dollartune.engines.baselines import BaselineRows
from dollartune.engines.extra_metrics import ExtraMetrics
from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Evaluation, Evaluator, key_of
from dollartune.methods.base import prompting_of
from dollartune.methods.registry import with_head
from dollartune.train.distributed import processes, shard_layers
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.features import FeatureStore
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.optimizers import check_optimizer
from dollartune.train.out_of_memory import halved_after_out_of_memory
from dollartune.train.precision import choose_dtype, default_device
from dollartune.trials.record import DataFacts
from dollartune.trials.trial import Trial, variants

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.methods.base import Method
    from dollartune.tasks.base import Example, Splits, Task

LEAST_ESTIMATE = 0.2
"""Seconds that a solution was estimated to take, from which what it took says something of longer ones."""
FEATURES = ".features"
"""Folder of the studies' output with rows' features; it may be deleted at any time."""


@dataclass(eq=False)
class RowCosts:
    """What evaluating a row takes, as last measured, of trials that show the same number of solved examples: prompts with some
    are several times as long."""

    seconds_per_row: float | None = None
    """Of a test row."""
    seconds_per_validation_row: float = 0.0
    """Of a validation row, where nothing is generated beside the scoring of labels."""
    validation_rows: int = 0
    """On which that was measured."""
    solution_ratio: float = 1.0
    """Of what the last solution took to what it was estimated to take, by its operations: machines differ, and are shared."""

    def note_test(self, seconds: float, rows: int) -> None:
        """Learns from an evaluation on test rows."""
        # A single quick look (a warm cache, short rows) lowers the estimate by a fifth at most, while a slow one counts
        # at once: too low a reserve loses a trial, too high a one some steps.
        self.seconds_per_row = max(seconds / max(1, rows), 0.8 * (self.seconds_per_row or 0.0))

    def note_validation(self, seconds: float, rows: int) -> None:
        """Learns from an evaluation on validation rows."""
        self.seconds_per_validation_row = max(seconds / max(1, rows), 0.8 * self.seconds_per_validation_row)
        self.note_rows(rows)

    def note_solution(self, seconds: float, estimated: float) -> None:
        """Learns from the solution of a solved trial."""
        # A shorter one is made of what every solution has, and a quicker one had another problem: these say nothing of the next.
        if estimated >= LEAST_ESTIMATE:
            self.solution_ratio = max(1.0, seconds / estimated)

    def note_rows(self, rows: int) -> None:
        """Learns how many validation rows are scored, where what they took says nothing: features were there already."""
        self.validation_rows = rows


@dataclass(eq=False)
class TrialContext:
    """What trials of one backbone, objective, task and scale share; `row_costs` is theirs alone that ask in the same way."""

    backbone: Backbone
    attached: Attached
    task: Task
    splits: Splits
    encoder: Encoder
    train: list[Encoded]
    validation: list[Encoded]
    shortened: int
    """Training and validation inputs that were longer than the backbone or `max_length` allows."""
    measures: ExtraMetrics
    """Forgetting and the cost of a request."""
    shortened_validation: int = 0
    """Of those shortened, validation inputs."""
    features: FeatureStore = field(default_factory=FeatureStore)
    """Of rows by the frozen backbone, for methods that are solved on them."""
    row_costs: RowCosts = field(default_factory=RowCosts)

    @property
    def seconds_per_validation(self) -> float:
        """What one measurement of the validation loss takes during training: scoring labels takes longer than the loss, so this
        errs on the safe side."""
        costs = self.row_costs
        return costs.seconds_per_validation_row * min(costs.validation_rows, len(self.validation))

    def methods(self, trial: Trial) -> list[Method[Any]]:
        """A trial's methods; a classification trial also tunes the head, unless it does so already or tunes all."""
        methods = [method.resolve(self.backbone.processor) for method in trial.variant.build()]
        return with_head(methods, trial.objective)

    def evaluator(self, free_generation: bool, batch_size: int = 32) -> Evaluator:
        """Who evaluates on this task."""
        return Evaluator(
            self.backbone,
            self.attached,
            self.task,
            self.encoder,
            self.splits.train,
            free_generation,
            batch_size,
            self.features,
            {key_of(example): row for example, row in zip(self.splits.validation, self.validation, strict=True)},
        )

    def evaluate(
        self,
        adapter: str | None,
        methods: Sequence[Method[Any]],
        rows: Sequence[Example],
        seed: int,
        free_generation: bool,
        batch_size: int,
    ) -> Evaluation:
        """Evaluates an attached adapter (None: the backbone alone) on rows; with smaller batches where memory runs out.

        Args:
            batch_size: rows per forward pass, to begin with.
        """
        while True:
            try:
                return self.evaluator(free_generation, batch_size).evaluate(adapter, methods, rows, seed)
            except Exception as error:
                smaller = halved_after_out_of_memory(error, batch_size, "rows per pass while evaluating")
                if smaller is None:
                    raise
                batch_size = smaller

    def costs(self) -> EvaluationCost:
        """What evaluating takes, as far as it is known now."""
        rows, costs = self.splits, self.row_costs
        return EvaluationCost(
            len(rows.test), len(rows.validation), costs.seconds_per_row, costs.seconds_per_validation_row
        )

    def data_facts(self, test: Evaluation | None) -> DataFacts:
        """Numbers of rows, as they are stored with every record.

        Args:
            test: of the test rows; None where they were not asked.
        """
        return DataFacts(
            train=len(self.splits.train),
            validation=len(self.splits.validation),
            test=len(self.splits.test),
            shortened=self.shortened + (0 if test is None else test.shortened),
        )


class ContextCache:
    """Makes trial contexts, and keeps them.

    Args:
        tasks: of the study, by index.
        places: places in each input that stay free for virtual tokens.
    """

    def __init__(self, settings: StudySettings, tasks: Sequence[Task], places: int) -> None:
        self.settings, self.tasks, self.places = settings, tasks, places
        self.device = default_device()
        check_optimizer(settings.training.optimizer, self.device.type)
        self._contexts: dict[tuple[Any, ...], TrialContext] = {}
        """By cell, draw of the training rows and solved examples."""
        self._row_costs: dict[tuple[Any, ...], RowCosts] = {}
        """By cell and solved examples."""
        self._backbones: dict[tuple[Any, ...], Backbone] = {}

    def context(self, trial: Trial) -> TrialContext:
        """Backbone, data and encodings of a trial, made once."""
        cell = (trial.backbone_index, trial.objective, trial.task_index, trial.scale)
        prompting = prompting_of(trial.variant.build())
        shown = 0 if prompting is None else prompting.examples
        # A seed counts only where it draws training rows of its own.
        key = (cell, trial.draw, shown)
        if key not in self._contexts:
            costs = self._row_costs.setdefault((*cell, shown), RowCosts())
            self._contexts[key] = replace(self._with_rows(trial, cell), row_costs=costs)
        return self._contexts[key]

    def _with_rows(self, trial: Trial, cell: tuple[Any, ...]) -> TrialContext:
        """Of what is there as much as the trial's rows can use."""
        beside = {draw: context for (other, draw, _), context in self._contexts.items() if other == cell}
        if trial.draw in beside:
            return beside[trial.draw]
        return self._other_rows(trial, next(iter(beside.values()))) if beside else self._first_rows(trial)

    def _first_rows(self, trial: Trial) -> TrialContext:
        task = self.tasks[trial.task_index]
        splits = self._splits(trial, task)
        backbone = self._backbone(trial, task)
        encoder = Encoder(backbone, self.settings.training.max_length, self.places)
        # Test rows are encoded when they are scored; a search never needs them.
        train = encoder.encode(task, splits.train)
        in_train = encoder.shortened
        validation = encoder.encode(task, splits.validation)
        attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
        if not attached.placed:  # its layers' outputs would have to travel between devices
            cache = FrozenPrefixCache(folder=Path(self.settings.output))
            attached.use_frozen_prefix(cache)
            cache.reuse = True  # most studies have several seeds, and every trial is evaluated on the same rows
        random_weights = self.settings.backbones[trial.backbone_index].random_weights_seed is not None
        measures = ExtraMetrics(self.settings.evaluation, random_weights)
        return TrialContext(
            backbone, attached, task, splits, encoder, train, validation, encoder.shortened, measures,
            encoder.shortened - in_train, self._features(trial, backbone),
        )  # fmt: skip

    def _other_rows(self, trial: Trial, beside: TrialContext) -> TrialContext:
        """The context of another draw of the training rows: all else is the same."""
        splits = self._splits(trial, beside.task)
        encoder = Encoder(beside.backbone, self.settings.training.max_length, self.places)
        train = encoder.encode(beside.task, splits.train)
        shortened = encoder.shortened + beside.shortened_validation
        return replace(beside, splits=splits, encoder=encoder, train=train, shortened=shortened)

    def baseline_rows(self, trial: Trial) -> BaselineRows:
        """The rows of a trial that needs no backbone."""
        task = self.tasks[trial.task_index]
        return BaselineRows(task, self._splits(trial, task))

    def release(self) -> None:
        """Forgets everything, to have its memory back."""
        # Contexts first, since their hooks hold the backbones.
        self._contexts.clear()
        self._backbones.clear()
        if torch.cuda.is_available():
            # Freed blocks go back to the driver: another process (a worker beside this one) cannot use what the
            # allocator keeps.
            torch.cuda.empty_cache()

    def _changes_backbone(self) -> bool:
        """Whether a method of the study puts its own values in the place of the backbone's, which then stays whole."""
        methods = (method for variant in variants(self.settings.methods) for method in variant.build())
        return not all(method.capabilities.mixed_rows for method in methods)

    def _features(self, trial: Trial, backbone: Backbone) -> FeatureStore:
        """Kept beside the studies, since a later one with the same backbone and rows can use them."""
        wanted = self.settings.backbones[trial.backbone_index]
        # One from the hub has no folder to hash; its revision says which weights these are.
        weights = of_backbone(wanted.name) or f"{wanted.name}@{backbone.revision}"
        identity = f"{weights}/{wanted.quantize}/{wanted.random_weights_seed}"
        return FeatureStore(identity, Path(self.settings.output) / FEATURES)

    def _splits(self, trial: Trial, task: Task) -> Splits:
        return task.splits(trial.scale, self.settings.data_seed, self.settings.evaluation.rows, trial.draw)

    def _backbone(self, trial: Trial, task: Task) -> Backbone:
        labels = task.labels if trial.objective == "classification" else ()
        key = (trial.backbone_index, trial.objective, labels)
        if key not in self._backbones:
            wanted = self.settings.backbones[trial.backbone_index]
            if wanted.device_map is not None and processes().size > 1:
                raise UserError(
                    "device_map spreads a backbone over the GPUs of one process, and torchrun has begun several.",
                    hint="dollartune run STUDY.yaml",
                )
            # Before loading, which reads the anatomy.
            if wanted.anatomy is not None:
                use_file(Path(wanted.anatomy).expanduser())
            config = read_config(wanted.name, wanted.trust_remote_code)
            # Narrow models are computed in fp32 (`choose_dtype`), as there converting costs more than half precision
            # saves.
            width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0))
            dtype = choose_dtype(self.settings.training, width, self.device)
            self._backbones[key] = load_backbone(
                wanted.name, trial.objective, labels, dtype, self.device, wanted.quantize,
                wanted.trust_remote_code, wanted.random_weights_seed, wanted.device_map,
            )  # fmt: skip
            # Sharded weights are views of a flat buffer, in which a method cannot put values of its own.
            if processes().size > 1 and not self._changes_backbone():
                shard_layers(self._backbones[key].model, self._backbones[key].anatomy)
        return self._backbones[key]
