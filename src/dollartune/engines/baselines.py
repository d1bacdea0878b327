"""Does one baseline: fits it on the training rows, answers the validation and test rows. No backbone is loaded.

What it leaves is the record of any other trial: predictions, scores, booked seconds, the cost of a request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from dollartune.engines.base import EvaluationCost
from dollartune.evaluate.cost import REQUESTS
from dollartune.evaluate.evaluation import Evaluation, classified
from dollartune.methods.baseline import Answerer, LabelledTexts
from dollartune.trials.record import DataFacts, Measured, Memory, Parameters, RequestFacts

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Example, Splits, Task
    from dollartune.trials.trial import Trial

PASSES = 5
"""Passes over the requests, of which the fastest counts: a pass takes a millisecond, and other work on the machine only ever
adds time."""


@dataclass
class BaselineRows:
    """What a baseline's trial needs: rows."""

    task: Task
    splits: Splits

    def costs(self) -> EvaluationCost:
        """Evaluating costs next to nothing, so nothing is reserved for it."""
        return EvaluationCost(len(self.splits.test), len(self.splits.validation), 0.0, 0.0)


def texts_of(task: Task, examples: Sequence[Example]) -> list[str]:
    """What a row says: the columns that the prompt names, without the prompt's own words; empty for pictures."""
    if task.template is None:
        return [""] * len(examples)
    columns = task.template.columns
    return ["\n".join(str(example.fields.get(name, "")) for name in columns) for example in examples]


def labelled_texts(trial: Trial, rows: BaselineRows) -> LabelledTexts:
    """The training rows as baselines see them."""
    number = {label: index for index, label in enumerate(rows.task.labels)}
    train = rows.splits.train
    labels = np.array([number[str(example.label)] for example in train], dtype=np.int64)
    return LabelledTexts(texts_of(rows.task, train), labels, len(number), trial.seed)


def fitted(trial: Trial, rows: BaselineRows) -> Answerer:
    """The trial's method on the training rows."""
    (method,) = trial.variant.build()
    return method.fit(labelled_texts(trial, rows))


def evaluated(answerer: Answerer, task: Task, examples: Sequence[Example]) -> Evaluation:
    """Answers and scores of these rows."""
    started = time.perf_counter()
    log_p = torch.from_numpy(answerer.log_probabilities(texts_of(task, examples)))
    facts = classified(task, examples, log_p)
    return Evaluation(**facts, seconds=time.perf_counter() - started, examples=len(examples))


def request_facts(answerer: Answerer, task: Task, examples: Sequence[Example]) -> RequestFacts:
    """The record's `inference`: seconds of a request alone and in a batch, as `evaluate.cost` measures them."""
    asked = texts_of(task, examples[:REQUESTS])

    def seconds(texts: Sequence[str]) -> float:
        started = time.perf_counter()
        answerer.log_probabilities(texts)
        return time.perf_counter() - started

    # Twice the first request would be in the median otherwise.
    seconds(asked[:1])  # the first call imports and allocates
    alone = median(seconds([text]) for text in asked)
    # The fastest and not the median, as PASSES says; alone each request is another text, so there it is the median.
    batch = min(seconds(asked) for _ in range(PASSES)) / len(asked)
    return RequestFacts(requests=len(asked), seconds=batch, alone_seconds=alone, prompt_tokens=0.0, virtual_tokens=0)


def baseline_facts(answerer: Answerer, trial: Trial, rows: BaselineRows, settings: StudySettings) -> Measured:
    """Further sections of its record."""
    (method,) = trial.variant.build()
    splits = rows.splits
    figures = {name: value for name, value in answerer.reported.items() if math.isfinite(value)}
    facts: Measured = {
        "parameters": Parameters(trainable=answerer.parameters, total=0, reported={method.name: figures}),
        "memory": Memory(peak_bytes=0),
        "data": DataFacts(
            train=len(splits.train), validation=len(splits.validation), test=len(splits.test), shortened=0
        ),
    }
    if settings.evaluation.inference_cost:
        facts["inference"] = request_facts(answerer, rows.task, splits.test)
    return facts
