"""What a trial left: one typed record, stored as JSON, with a published schema (docs/record.schema.json).

TrialRecord
  trial        what was run: backbone, methods, task, scale, seed ...       -> TrialFacts
  status       done | tried (a setting of a search, not scored on test rows) | failed
  validation, test, training, parameters, memory, cost, inference, forgetting, search, budget, environment, error

This is the only module that knows the keys of the JSON. It imports nothing heavy, so that `status` and `results` start
at once; `build_record` makes records of what was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Protocol, Self, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dollartune.budget.serving_limits import ServingCost
from dollartune.errors import UserError
from dollartune.format import percent

RECORD_VERSION = 2
"""Raised when a key changes its meaning or its place; `_upgraded` then reads the older form. New keys need no new version."""


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A measured number. JSON has no NaN and no infinity: both are stored, and read back, as null."""


class _Section(BaseModel):
    """Frozen, because what a trial left does not change; keys of later versions are kept, so that nothing is lost when an
    older program reads and rewrites a record."""

    # populate_by_name: `Failure.kind` is written as `class`, which is no name in Python.
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


class Ablation(_Section):
    """Of which method a trial is an ablation."""

    of: str
    """Label of the whole method."""
    name: str
    """What was changed, such as `drop mlp`."""


class TrialFacts(_Section):
    """What was run. Everything but label, group, ablation and baseline decides the identifier."""

    backbone: str = ""
    objective: str = ""
    methods: tuple[dict[str, Any], ...] = ()
    """Per method of a combination: its name under `method`, then its settings."""
    group: str
    """The method entry of the study that it is a setting of."""
    label: str
    """The method with the settings that differ from its defaults; with the backbone where several are compared."""
    ablation: Ablation | None = None
    baseline: bool = False
    """Whether it is there for the methods to be held against, and none of those that are compared."""
    task: str
    # None and null for all rows: a number would claim that the data has exactly so many.
    scale: int | None = None
    """Training rows; null is all."""
    seed: int
    conditions: dict[str, Any] = {}
    """Everything else that decides the result: training and evaluation settings, contents of the data."""
    fraction: float = 1.0
    """Share of the study's training that it got."""
    steps: int | None = None
    """Optimizer steps that it was to get, where its length is no such share."""
    length: Literal["settings", "money", "at_most"] = "settings"
    """`money`: its time limit decided the steps; `training.plan` says how. `at_most`: where that was less than planned."""
    draw: int | None = None
    """Which draw of the training rows it had; null is the first, which all seeds shared before there were others."""
    extends: str | None = None
    """The trial whose adapter it went on training, with a schedule of its own; its steps and costs are those on top."""
    averaged_with: str | None = None
    """The trial with whose adapter its own was averaged, after training on the validation rows too; its validation score is that
    trial's."""


class ValidationResult(_Section):
    """On the validation rows, which choose settings and states."""

    score: Figure = None
    examples: int = 0
    # Not measured where the final trials' predictions are stored: it can be had from those.
    standard_error: float = 0.0
    """Of the score over its rows; of settings that a search tried only."""
    log_loss: Figure = None
    """Mean over the rows, at the best temperature; of settings that a search tried by accuracy only."""


class Generation(_Section):
    """What free generation gave, beside the label scoring that the score is from; empty where it was not asked for."""

    scores: dict[str, Figure] = {}
    breakdown: dict[str, int] = {}


class TestResult(_Section):
    """On the test rows, which choose nothing."""

    __test__ = False  # the name begins with Test: pytest must not collect it

    score: float
    """In the task's metric; higher is better."""
    scores: dict[str, Figure] = {}
    """Further metrics by name."""
    breakdown: dict[str, int] = {}
    """Label -> how often it was predicted."""
    generation: Generation = Generation()
    examples: int = 0
    seconds: float = 0.0
    prompt_tokens: float = 0.0
    """Mean tokens of one request."""


class ValidationPoint(_Section):
    """One validation during training."""

    epoch: float
    step: int
    seconds: float
    train_loss: Figure
    validation_loss: Figure
    rows: int = 0
    """Validation rows that were read; 0 in older records: all."""


class PlannedLength(_Section):
    """From this step on, training was to have so many steps in all."""

    step: int
    total_steps: int


class FrozenPrefix(_Section):
    """The leading layers below the lowest trained one, whose outputs were computed once."""

    layers: dict[str, int] = {}
    """Stack -> how many."""
    tokens: int = 0
    """Training tokens that began above them."""
    tokens_computed: int = 0
    """This trial's share of the tokens for which they were run."""


class Training(_Section):
    """How the tuning went. What is best is so by validation loss, in nats per token."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    """Of `seconds`."""
    stopped: str = "finished"
    """`finished`, `patience`, `budget`, `pruned`."""
    best_validation_loss: Figure = None
    best_epoch: float = 0.0
    best_step: int = 0
    best_seconds: float = 0.0
    plan: tuple[PlannedLength, ...] = ()
    """How many steps training was to have, first and after each change: trained by these, it ends with the same weights."""
    average: str = ""
    """`decay` where the adapter is the average of the decay's states, which was better than the best single one."""
    rows_share: float | None = None
    """Share of the training rows that a solved adapter was solved on, less than its settings say where time ended before; null
    where it is not solved, and in older records."""
    on_validation: bool | None = None
    """Whether a solved adapter was solved on the validation rows too; null in records of before, where the study decided it."""
    begun_with: str = ""
    """Folder of the tuned adapter (`begin_with`) whose tensors it began with; empty where it began fresh."""
    frozen_prefix: FrozenPrefix = FrozenPrefix()
    history: tuple[ValidationPoint, ...] = ()


class Parameters(_Section):
    """Numbers of parameters."""

    trainable: int = 0
    total: int = 0
    """Of the backbone."""
    modules: dict[str, int] = {}
    """Path of each module that was edited -> parameters trained there."""
    reported: dict[str, dict[str, Figure]] = {}
    """Method -> what it says of its trained part besides the size: AdaLoRA's mean rank, DiffPruning's sparsity."""


class Memory(_Section):
    peak_bytes: int = 0
    """While tuning; 0 where nothing was tuned."""
    trials: int | None = None
    """Trials that were tuned together then: the bytes are those of all of them. Null in older records."""


class Cost(_Section):
    """Booked for this trial: tuning, evaluation, export. What it goes on from is not in it (`whole_cost`), nor are features, and
    outputs of frozen layers, that were there already: who has only this trial to pay for has to pay for those too."""

    seconds: float = 0.0
    # At the price of the moment of booking: a later price changes nothing that was paid.
    dollars: float = 0.0
    price_per_hour: float = 0.0
    """Dollars; 0 where no price was given."""
    features_seconds: float = 0.0
    """What features of the frozen backbone, and outputs of its frozen layers, that it read took when they were computed: for it,
    or before it."""
    features_booked_seconds: float = 0.0
    """Of those, what is in `seconds`."""

    @property
    def earlier_seconds(self) -> float:
        """Of features that were there already."""
        return max(0.0, self.features_seconds - self.features_booked_seconds)

    @property
    def known_dollars(self) -> float | None:
        """None without a price: then nobody knows what it cost, which is not nothing."""
        return self.dollars if self.price_per_hour or self.dollars else None

    def plus(self, others: Iterable[Cost] = ()) -> Cost:
        """This trial and those that its adapter is made of, features that were there already included; without a price where one
        of them had none.

        Trials of one adapter read the same rows: what their features took is counted once. Seeds may have rows of their own, so
        that this is no sum over seeds.
        """
        every = [self, *others]
        known = all(one.known_dollars is not None for one in every)
        booked = sum(one.features_booked_seconds for one in every)
        features = max(booked, *(one.features_seconds for one in every))
        earlier = features - booked
        price = self.price_per_hour if known else 0.0
        return Cost(
            seconds=sum(one.seconds for one in every) + earlier,
            dollars=sum(one.dollars for one in every) + earlier * price / 3600 if known else 0.0,
            price_per_hour=price,
            features_seconds=features,
            features_booked_seconds=features,
        )


class DataFacts(_Section):
    """Numbers of rows."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    shortened: int | None = None
    """Inputs that were cut to the longest length allowed: training and validation rows, and test rows that were scored."""


class AdapterFile(_Section):
    folder: str = "adapter"
    bytes: int = 0


class RequestFacts(_Section):
    """What answering a request costs on the machine that ran the trial; all null where not measured, for a `reason`."""

    requests: int | None = None
    seconds: Figure = None
    """Of one request where they come in batches."""
    alone_seconds: Figure = None
    prompt_tokens: Figure = None
    virtual_tokens: int | None = None
    peak_bytes: int | None = None
    """The weights, the adapter, and what answering a batch adds to them at most."""
    reason: str | None = None

    def serving(self, price_per_hour: float) -> ServingCost:
        """As limits of what is served are stated."""
        per_1000 = (self.seconds or 0.0) * 1000 * price_per_hour / 3600 if price_per_hour else None
        return ServingCost(self.alone_seconds or 0.0, self.peak_bytes or 0, per_1000)


class ForgettingFacts(_Section):
    """Loss on general text, nats per token, before and after tuning; null where not measured, for a `reason`."""

    before: Figure = None
    after: Figure = None
    tokens: int | None = None
    reason: str | None = None

    @property
    def rise(self) -> float | None:
        """Above zero: the tuned model predicts general text worse."""
        return None if self.before is None or self.after is None else self.after - self.before


class Measured(TypedDict, total=False):
    """Sections of a record that are measured where a trial is run."""

    parameters: Parameters
    memory: Memory
    data: DataFacts
    adapter: AdapterFile
    class_offsets: tuple[float, ...]
    inference: RequestFacts
    forgetting: ForgettingFacts


class SearchFacts(_Section):
    """How a final trial's setting was chosen."""

    tried: int = 0
    try_fraction: float = 1.0
    """Share of the whole training that a try got."""
    fraction: float = 1.0
    """Share that the final trials got."""
    seeds: int = 0
    seeds_wanted: int = 0
    sentence: str | None = None


class BudgetFacts(_Section):
    """The study's budget when the trial ran. With a larger one, what the budget cut goes on."""

    seconds: float | None = None
    dollars: float | None = None
    per: str = "study"
    """`study` or `method`."""
    memory_bytes: int | None = None
    """The most that the process might take."""


class Failure(_Section):
    kind: str = Field(alias="class")
    """`out_of_memory`, `not_finite`, `budget`, `limit`, `environment`, `bad_input` or `error`."""
    message: str = ""
    traceback: str | None = None

    @property
    def of_environment(self) -> bool:
        """Whether the machine ended the trial and not its settings. Records of before 0.2 call that an error of its class."""
        names = (
            "OSError:",
            "MemoryError:",
            "FileNotFoundError:",
            "PermissionError:",
            "ConnectionError:",
            "TimeoutError:",
        )
        return self.kind == "environment" or (self.kind == "error" and self.message.startswith(names))


class Environment(_Section):
    versions: dict[str, str] = {}
    python: str = ""
    device: str = ""
    threads: int = 0


class TrialRecord(_Section):
    """One trial's record, of whatever status. Derived figures (score per parameter, per dollar) are not stored."""

    id: str
    """The trial's identifier, a content hash."""
    trial: TrialFacts
    status: Literal["done", "tried", "failed"]
    metric: str = ""
    labels: tuple[str, ...] = ()
    """Empty where the task asks for text."""
    validation: ValidationResult | None = None
    test: TestResult | None = None
    """Null where the trial failed or was a search's try."""
    training: Training | None = None
    """Null where nothing was trained."""
    parameters: Parameters = Parameters()
    memory: Memory = Memory()
    data: DataFacts = DataFacts()
    cost: Cost = Cost()
    adapter: AdapterFile | None = None
    class_offsets: tuple[float, ...] | None = None
    """Thresholds: what was added to each class's score for the measure's sake, chosen on validation rows; its adapter has it."""
    inference: RequestFacts | None = None
    forgetting: ForgettingFacts | None = None
    search: SearchFacts | None = None
    budget: BudgetFacts | None = None
    environment: Environment = Environment()
    error: Failure | None = None

    @property
    def validation_score(self) -> float | None:
        return self.validation.score if self.validation is not None else None

    @property
    def stopped(self) -> str | None:
        """Why its training ended; None where nothing was trained."""
        return self.training.stopped if self.training is not None else None

    @property
    def rows_share(self) -> float:
        """Share of the training rows that it was trained on: less than all only where a solved method takes fewer, or its time
        ended before."""
        if self.training is not None and self.training.rows_share is not None:
            return self.training.rows_share
        return min((float(method.get("rows_share", 1.0)) for method in self.trial.methods), default=1.0)

    @property
    def fewer_rows(self) -> str:
        """On how many rows it was solved, in words, where time ended before those that its settings name; else empty."""
        solved = self.training is not None and self.training.rows_share is not None
        return f"solved on {percent(self.rows_share)} of the rows" if solved and self.stopped == "budget" else ""

    @property
    def cut_by_budget(self) -> bool:
        """Whether the budget ended a final trial, so that more money could make more of it."""
        if self.error is not None:
            return self.error.kind == "budget"
        return self.status == "done" and self.stopped == "budget"

    def with_facts(self, **facts: Any) -> Self:
        """The same record, with what the driver of a study knows of it: `budget`, `search`."""
        return self.model_copy(update=facts)

    def to_json(self) -> dict[str, object]:
        """As stored: only what was set, with the version."""
        # Only what was set: a default of this version must not be written as if it had been measured.
        return {"version": RECORD_VERSION, **self.model_dump(mode="json", by_alias=True, exclude_unset=True)}


class DoneRecord(TrialRecord):
    """Of a trial that ended with a score on the test rows."""

    status: Literal["done"]
    test: TestResult


class FailedRecord(TrialRecord):
    """Of a trial that failed. The study went on."""

    status: Literal["failed"]
    error: Failure


class GoesOn(Protocol):
    """What says of a trial which others it goes on from: the trial itself, or the facts of its record."""

    @property
    def extends(self) -> str | None: ...
    @property
    def averaged_with(self) -> str | None: ...


def made_of(trial: GoesOn, read: Callable[[str], TrialRecord | None]) -> list[TrialRecord]:
    """Records of the trials that an adapter was trained further from or averaged with, and of those before them.

    Args:
        read: the record of a trial; None where it was removed.
    """
    records: dict[str, TrialRecord] = {}
    waiting = [trial.extends, trial.averaged_with]
    while waiting:
        name = waiting.pop()
        record = read(name) if name is not None and name not in records else None
        if name is not None and record is not None:
            records[name] = record
            waiting += [record.trial.extends, record.trial.averaged_with]
    return list(records.values())


def whole_cost(record: TrialRecord, known: Mapping[str, TrialRecord]) -> Cost:
    """What a trial's adapter has cost, with the trials that it is made of and features that were there already.

    Args:
        known: by identifier, all records of the study.
    """
    return record.cost.plus(part.cost for part in made_of(record.trial, known.get))


_CLASSES: dict[Any, type[TrialRecord]] = {"done": DoneRecord, "failed": FailedRecord}


def record_of(stored: Mapping[str, Any], source: str = "record") -> TrialRecord:
    """A record from its JSON, of this version or an older one.

    Args:
        source: where it was read, for messages.

    Raises:
        UserError: it was written by a newer version, or it is no record.
    """
    # Version 1 did not write it.
    version = stored.get("version", 1)
    if not isinstance(version, int) or version > RECORD_VERSION:
        raise UserError(
            f"{source}: a record of version {version}; this dollartune reads versions 1 to {RECORD_VERSION}.",
            hint="pip install --upgrade dollartune",
        )
    values = {key: value for key, value in stored.items() if key != "version"}
    try:
        # By status, so that a done record without test result is refused when it is read, not where it is used.
        return _CLASSES.get(values.get("status"), TrialRecord).model_validate(_upgraded(values, version))
    except ValidationError as error:
        # One is enough: a file that is no record has dozens.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{source}: not a trial's record: {where}: {first['msg']}.") from error


def read_record(text: str | bytes, source: str) -> TrialRecord:
    """A record from the text of its file.

    Raises:
        UserError: as `record_of`, and where the text is no JSON.
    """
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: not a trial's record: {error}.") from error
    if not isinstance(stored, dict):
        raise UserError(f"{source}: not a trial's record: expected a mapping, got {type(stored).__name__}.")
    return record_of(stored, source)


def _upgraded(values: dict[str, Any], version: int) -> dict[str, Any]:
    """Version 1 (dollartune 0.1) kept test results at the top, and had other names for a budget and the frozen prefix."""
    # Newer keys need nothing here, as long as they only add.
    if version >= 2:
        return values
    # Copies, because the caller's mapping may be shown or stored again.
    values = dict(values)
    if "promise" in values:
        values["budget"] = values.pop("promise")
    if isinstance(values.get("training"), dict) and "trunk" in values["training"]:
        training = dict(values["training"])
        training["frozen_prefix"] = training.pop("trunk")
        values["training"] = training
    if "score" in values:
        scored = {name: values.pop(name) for name in ("score", "scores", "breakdown", "generation") if name in values}
        values["test"] = {**(values.get("test") or {}), **scored}
    return values


def record_schema() -> dict[str, object]:
    """The JSON schema of a stored record, which docs/record.schema.json publishes."""
    schema = TrialRecord.model_json_schema(by_alias=True)
    version = {"const": RECORD_VERSION, "description": "Of the record's form.", "title": "Version"}
    schema["properties"] = {"version": version, **schema["properties"]}
    schema["required"] = ["version", *schema["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A trial's record of DollarTune",
        **schema,
    }
