"""Evaluates one adapter on a task: predictions, scores, breakdown, loss; by label scoring and by free generation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch

from dollartune import metrics
from dollartune.errors import UserError
from dollartune.evaluate.fp32_passes import surely_best
from dollartune.evaluate.generation import generate_texts
from dollartune.evaluate.labels import LABEL_SLACK_TOKENS, class_log_probabilities, label_log_probabilities
from dollartune.evaluate.prompts import content_free, few_shot_encoded
from dollartune.methods.base import prompting_of
from dollartune.tasks.mixture import Mixture, mean_over_tasks

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.base import Method, Prompting
    from dollartune.tasks.base import Example, Task
    from dollartune.train.encoding import Encoded, Encoder
    from dollartune.train.features import FeatureStore

CALIBRATION_ROWS = 64
"""Training rows for calibration: the standard error of a mean probability is at most 0.5 / 8 by then."""


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one example."""

    example_id: str
    predicted: str | None
    """Label (classification) or text (generation)."""
    expected: str
    correct: bool | None = None
    probabilities: dict[str, float] | None = None
    """Label -> probability, normalized over the labels."""
    generated: str | None = None
    """Free text after the prompt."""
    generated_label: str | None = None
    """The label that the free text was read as; None is "other"."""
    references: tuple[str, ...] = ()
    """Every acceptable text (generation)."""
    group: str | None = None
    """Of rows that come together, such as those of one patient."""


class StoredPrediction(TypedDict):
    """A `Prediction` as it lies on disk."""

    example_id: str
    predicted: str | None
    expected: str
    correct: bool | None
    probabilities: dict[str, float] | None
    generated: str | None
    generated_label: str | None
    references: list[str]
    group: NotRequired[str | None]
    """0.1 wrote none."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one adapter on one set of examples."""

    score: float
    """The task's primary metric."""
    scores: dict[str, float]
    breakdown: dict[str, int] = field(default_factory=dict)
    generation_scores: dict[str, float] = field(default_factory=dict)
    """Scores of free generation, where it was asked for beside label scoring."""
    generation_breakdown: dict[str, int] = field(default_factory=dict)
    predictions: tuple[Prediction, ...] = ()
    seconds: float = 0.0
    prompt_tokens: float = 0.0
    """Mean tokens per request: what an in-context prompt costs each time."""
    examples: int = 0
    shortened: int = 0
    """Examples whose input was cut to the longest length allowed."""


class ScoredRows(TypedDict):
    """What an `Evaluation` says of rows, whatever they took."""

    score: float
    scores: dict[str, float]
    predictions: tuple[Prediction, ...]
    breakdown: NotRequired[dict[str, int]]
    generation_scores: NotRequired[dict[str, float]]
    generation_breakdown: NotRequired[dict[str, int]]


class Evaluator:
    """Evaluates adapters on a task's examples.

    Args:
        pool: training examples, from which few-shot prompts are made.
        features: of rows that a study has seen already, for methods that read nothing else.
        free_generation: also let the model write freely in classification tasks (reference 000 reports this).
        encoded: examples that are encoded already, by `key_of`, as the task asks them by itself.
    """

    def __init__(
        self,
        backbone: Backbone,
        attached: Attached,
        task: Task,
        encoder: Encoder,
        pool: Sequence[Example] = (),
        free_generation: bool = True,
        batch_size: int = 32,
        features: FeatureStore | None = None,
        encoded: Mapping[tuple[str, str], Encoded] | None = None,
    ) -> None:
        self.backbone, self.attached, self.task, self.encoder = backbone, attached, task, encoder
        self.pool, self.free_generation, self.batch_size, self.features = pool, free_generation, batch_size, features
        self.encoded = encoded or {}

    def evaluate(
        self, adapter: str | None, methods: Sequence[Method[Any]], examples: Sequence[Example], seed: int = 0
    ) -> Evaluation:
        """Evaluates the adapter of that name (None: the bare backbone) as these methods prompt it.

        A mixture of tasks is evaluated task by task; its score is the mean over the tasks that were trained on.
        """
        started = time.perf_counter()
        if isinstance(self.task, Mixture):
            evaluation = self._parts(self.task, adapter, methods, examples, seed)
            return replace(evaluation, seconds=time.perf_counter() - started)
        prompting = prompting_of(methods)
        before = self.encoder.shortened
        encoded = self.encode(examples, prompting, seed)
        shortened = self.encoder.shortened - before  # now: rows that only calibrate are encoded later
        if self.task.kind == "generation":
            facts = self._generation(adapter, examples, encoded)
        elif self.backbone.objective == "classification":
            facts = classified(self.task, examples, self._class_scores(adapter, encoded), None)
        else:
            facts = self._label_scored(adapter, examples, encoded, prompting, seed)
        lengths = [len(e.prompt) for e in encoded]
        mean = sum(lengths) / max(1, len(lengths))
        seconds = time.perf_counter() - started
        return Evaluation(**facts, seconds=seconds, prompt_tokens=mean, examples=len(examples), shortened=shortened)

    def _parts(
        self,
        mixture: Mixture,
        adapter: str | None,
        methods: Sequence[Method[Any]],
        examples: Sequence[Example],
        seed: int,
    ) -> Evaluation:
        """Every task of a mixture by its own measures, held-out tasks included."""
        by_task = {}
        for task, rows in mixture.groups(examples):
            # A held-out task has no training rows; its few-shot examples then come from the others.
            pool = [example for example in self.pool if example.task == task.name] or self.pool
            part = Evaluator(
                self.backbone,
                self.attached,
                task,
                self.encoder,
                pool,
                self.free_generation,
                self.batch_size,
                self.features,
                self.encoded,
            )
            by_task[task.name] = part.evaluate(adapter, methods, rows, seed)
        score = mean_over_tasks({name: result.score for name, result in by_task.items()}, mixture)
        scores = {f"{name}/{metric}": value for name, part in by_task.items() for metric, value in part.scores.items()}
        rows_seen = sum(part.examples for part in by_task.values())
        return Evaluation(
            score=score,
            scores={mixture.metric: score, **scores},
            breakdown={f"{name}/{label}": n for name, part in by_task.items() for label, n in part.breakdown.items()},
            predictions=tuple(row for part in by_task.values() for row in part.predictions),
            prompt_tokens=sum(part.prompt_tokens * part.examples for part in by_task.values()) / max(1, rows_seen),
            examples=rows_seen,
            shortened=sum(part.shortened for part in by_task.values()),
        )

    def encode(self, examples: Sequence[Example], prompting: Prompting | None, seed: int) -> list[Encoded]:
        """Examples as this method asks them: with its template and its solved examples."""
        template = self._template(prompting)
        if prompting is not None and prompting.examples:
            return few_shot_encoded(self.encoder, self.task, examples, self.pool, prompting, template, seed)
        if template is not None:
            return self.encoder.encode(self.task, examples, template)
        # Every trial is scored on the same rows, and decoding their pictures takes as long as a small backbone does.
        fresh = [example for example in examples if key_of(example) not in self.encoded]
        made = iter(self.encoder.encode(self.task, fresh) if fresh else ())
        return [self.encoded.get(key_of(example)) or next(made) for example in examples]

    def _template(self, prompting: Prompting | None) -> Any:
        if prompting is None or prompting.template == 0:
            return None
        extra = self.task.extra_templates
        if prompting.template > len(extra):
            raise UserError(f"template {prompting.template} of task {self.task.name!r}: it has 0 to {len(extra)}.")
        return extra[prompting.template - 1]

    def _calibration_rows(self, prompting: Prompting) -> Sequence[Example]:
        """What is asked to learn what the prompt alone makes likely; never a row that is scored.

        Raises:
            UserError: training rows are wanted, and there are none.
        """
        if prompting.calibrate != "training_rows":
            return content_free(self.task, self._template(prompting))
        if not self.pool:
            raise UserError(
                "calibrate: training_rows needs training rows, and there are none.", "Write calibrate: true."
            )
        return self.pool[:CALIBRATION_ROWS]

    def _label_scored(
        self,
        adapter: str | None,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        prompting: Prompting | None,
        seed: int,
    ) -> ScoredRows:
        answers = self.encoder.label_answers(self.task)
        asked: list[Encoded] = []
        if prompting is not None and prompting.calibrate:
            # the same seed as the questions: the same solved examples stand before both
            asked = self.encode(self._calibration_rows(prompting), prompting, seed)
        averaged = prompting is not None and prompting.calibrate == "training_rows"

        def score(rows: Sequence[int]) -> torch.Tensor:
            some = [encoded[row] for row in rows]
            return self._label_scores(adapter, some, answers, asked, averaged)

        log_p = surely_best(self.attached, score(range(len(encoded))), score)
        texts = None
        if self.free_generation:
            longest = max(len(answer) for answer in answers) + LABEL_SLACK_TOKENS
            texts = generate_texts(self.backbone, self.attached, adapter, encoded, longest, self.batch_size, True)
        return classified(self.task, examples, log_p, texts)

    def _class_scores(self, adapter: str | None, encoded: Sequence[Encoded]) -> torch.Tensor:
        def score(rows: Sequence[int], features: FeatureStore | None = None) -> torch.Tensor:
            some = [encoded[row] for row in rows]
            return class_log_probabilities(self.backbone, self.attached, adapter, some, self.batch_size, features)

        # Again without the store: features in fp32 of rounded weights are not those of a backbone that was loaded in fp32, whose
        # trials would find them there.
        return surely_best(self.attached, score(range(len(encoded)), self.features), score)

    def _label_scores(
        self,
        adapter: str | None,
        encoded: Sequence[Encoded],
        answers: Sequence[tuple[int, ...]],
        asked: Sequence[Encoded],
        averaged: bool,
    ) -> torch.Tensor:
        """log p of each label, (rows, labels), with what an adapter adds to it and without what the prompt alone makes likely.

        Args:
            asked: rows that tell what the prompt makes likely; empty without calibration.
            averaged: take their scores off, averaged, and not the logarithm of their mean probabilities.
        """
        log_p = label_log_probabilities(self.backbone, self.attached, adapter, encoded, answers, self.batch_size)
        offsets = None if adapter is None else self.attached.adapters[adapter].label_offsets
        if offsets is not None and len(offsets) == len(answers):  # of another task's labels they say nothing
            log_p = log_p + offsets.to(log_p)
        if not asked:
            return log_p
        prior = label_log_probabilities(self.backbone, self.attached, adapter, asked, answers, self.batch_size)
        each = prior.log_softmax(-1)
        if averaged:
            # an offset of each label's score, estimated over many inputs: Zhou et al. (2024) average probabilities, whose
            # mean is the few sure rows' where a model is sure of some and unsure of most
            return log_p - each.mean(0)
        # Contextual calibration (Zhao et al., 2021): divide by what the labels get for content-free inputs, averaged as
        # probabilities, since averaging logs of three would let one near-zero label rule.
        return log_p - each.exp().mean(0).log()

    def _generation(self, adapter: str | None, examples: Sequence[Example], encoded: Sequence[Encoded]) -> ScoredRows:
        limit = self.task.max_answer_tokens
        texts = generate_texts(self.backbone, self.attached, adapter, encoded, limit, self.batch_size)
        references = [example.references or (str(example.target),) for example in examples]
        scores = score_all(self.task, texts, references, None)
        rows = tuple(
            Prediction(e.id, text, str(e.target), generated=text, references=tuple(wanted), group=self.task.group_of(e))
            for e, text, wanted in zip(examples, texts, references, strict=True)
        )
        return {"score": scores[self.task.metric], "scores": scores, "predictions": rows}


def key_of(example: Example) -> tuple[str, str]:
    """By which an example is known in a study: of a mixture's tasks each numbers its own."""
    return example.task, example.id


def classified(
    task: Task, examples: Sequence[Example], log_p: torch.Tensor, texts: list[str] | None = None
) -> ScoredRows:
    """What an `Evaluation` says of rows whose classes were scored.

    Args:
        log_p: (rows, labels), up to a constant for each row.
        texts: what was written freely for each row beside that.

    Raises:
        FloatingPointError: a score is not a number.
    """
    # argmax of NaN is 0: a broken model would else score as one that always says the first label.
    if broken := int(log_p.isnan().any(-1).sum()):
        raise FloatingPointError(f"the scores of {broken} of {len(examples)} rows are not numbers")
    labels = task.labels
    probabilities = log_p.softmax(-1)
    chosen = [labels[i] for i in log_p.argmax(-1).tolist()]
    expected = [str(example.label) for example in examples]
    by_label = [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]
    rows = []
    read = [metrics.label_from_text(text, task.label_words) for text in texts] if texts is not None else None
    for index, example in enumerate(examples):
        rows.append(
            Prediction(
                example.id, chosen[index], expected[index], chosen[index] == expected[index], by_label[index],
                texts[index] if texts is not None else None, read[index] if read is not None else None,
                group=task.group_of(example),
            )
        )  # fmt: skip
    scores = score_all(task, chosen, expected, by_label)
    result: ScoredRows = {
        "score": scores[task.metric],
        "scores": scores,
        "breakdown": metrics.breakdown(chosen, labels),
        "predictions": tuple(rows),
    }
    if read is not None:
        result["generation_scores"] = score_all(task, read, expected, None)
        result["generation_breakdown"] = metrics.breakdown(read, labels)
    return result


def score_all(
    task: Task, predictions: Sequence[Any], references: Sequence[Any], probabilities: Sequence[Any] | None
) -> dict[str, float]:
    """Every metric of a task that the predictions allow: AUC needs probabilities, and is not a number where all references are of
    one class; nor is a measure of one class where no row has it, as of the few rows that a cost is measured on."""
    wanted = dict.fromkeys(
        (
            task.metric,
            *task.metrics,
            *(("accuracy", "balanced_accuracy", "f1", "matthews") if task.kind == "classification" else ()),
        )
    )
    scores = {}
    for name in wanted:
        metric = metrics.get(name)
        if metric.takes == "probabilities":
            if probabilities is not None:
                scores[name] = metric.score(probabilities, references) if len(set(references)) > 1 else math.nan
        elif (one := metric.of_class) in task.labels and one not in references and one not in predictions:
            scores[name] = math.nan
        else:
            scores[name] = metric.score(predictions, references)
    return scores
