"""What a study file may say: one strict schema for YAML, the Python API, `--help` and the documentation.

backbone: facebook/opt-125m
task: boolq
methods: [zero_shot, full, lora: {rank: [2, 4, 8]}, prompt: {tokens: [2, 48, 96]}]
scales: [100, 1000]
seeds: 3
budget: {dollars: 1, per: method, price: 2.90/h}
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dollartune.errors import UserError, nearest
from dollartune.train.settings import TrainingSettings

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

Item = TypeVar("Item")

NAMED_SCALES = {"low": 100, "medium": 1000, "high": 10_000}
"""Reference 001's data scales."""


class BackboneSettings(BaseModel):
    """The pretrained model."""

    model_config = _STRICT

    name: str
    """Embedded name (tiny-decoder), hub id or local directory."""
    objective: Literal["auto", "language", "classification"] = "auto"
    """`language`: the model writes the answer; `classification`: a new head scores classes. `auto`: what the model was
    made for (encoders and vision models classify)."""
    quantize: Literal["none", "nf4"] = "none"
    """Keep the frozen linear layers in 4 bits (QLoRA)."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] | None = None
    """For studies that train nothing (zero-shot, few-shot), on a backbone larger than one GPU: spread its layers over all
    GPUs, the host's memory and disk. A name, or module -> number of a GPU, cpu or disk (key '': all others)."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    random_weights_seed: int | None = None
    """Random instead of pretrained weights, as a control."""
    tasks: list[str] | None = None
    """Names of the tasks that it is for; by default every task that it can read."""


class BudgetSettings(BaseModel):
    """What may be spent."""

    model_config = _STRICT

    dollars: float | None = Field(None, gt=0)
    """Money."""
    seconds: float | None = Field(None, gt=0)
    """Time; `minutes:` or `hours:` may be written instead."""
    per: Literal["method", "study", "trial"] = "method"
    """Who gets it: each method the same (the fair fight), all together, or each trial."""
    price: str | float | None = None
    """Price of this machine, for example 2.49/h."""
    machine: str | None = None
    """A machine of the price table (`dollartune machines ls`), when no price is given."""
    reserve: float = Field(0.15, ge=0.0, lt=1.0)
    """Share kept back for the final evaluation and export."""

    @model_validator(mode="before")
    @classmethod
    def _in_seconds(cls, data: Any) -> Any:
        """Minutes and hours as seconds."""
        if not isinstance(data, dict) or not {"minutes", "hours"} & data.keys():
            return data
        units = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
        given = [unit for unit in units if unit in data]
        if len(given) > 1 or isinstance(data[given[0]], bool) or not isinstance(data[given[0]], int | float):
            raise ValueError(f"one of seconds, minutes and hours, as a number; got {', '.join(given)}")
        rest = {key: value for key, value in data.items() if key != given[0]}
        return {**rest, "seconds": float(data[given[0]] * units[given[0]])}


class SearchSettings(BaseModel):
    """How hyperparameters are chosen, for each method with its own money (or by racing, where the budget is per study).

    - A method whose settings hold lists is tried with exactly the values that the study names: a grid.
    - Any other method is searched over its own space (`dollartune methods show lora`); a setting that the study states
      stays as it is.

    Settings are tried with the first seed and judged by their validation score alone. The best one of each method is
    then run with every seed and evaluated on the test rows. Without `search:` a study runs exactly what it lists.
    """

    model_config = _STRICT

    trials: int | None = Field(None, ge=1)
    """Most settings tried of each method; by default as many as its money pays for up to 50, or 12 without a limit."""
    sampler: Literal["tpe", "random", "quasi"] = "tpe"
    """Who proposes: `tpe` learns from the scores, `quasi` covers the space evenly, `random`."""
    pruner: Literal["none", "median", "halving"] = "median"
    """Who ends hopeless tries early, by their validation loss."""
    seed: int = 0
    """Of the sampler."""


class EvaluationSettings(BaseModel):
    """What is measured at the end."""

    model_config = _STRICT

    rows: int = Field(2500, ge=1)
    """Most test and validation rows (reference 001, A.2)."""
    free_generation: bool = True
    """In classification tasks also let the model write freely and count what it says."""
    batch_size: int = Field(32, ge=1)
    """Rows per forward pass."""
    forgetting: bool = True
    """Also measure the loss on general text before and after tuning (about a second per trial with a small model)."""
    general_text: str | None = None
    """Text file for that, paragraphs separated by empty lines; by default the text of the package."""
    inference_cost: bool = True
    """Also measure what a request costs with each tuned adapter (about a second per trial)."""


class AblationSettings(BaseModel):
    """Each method again on fewer layers or modules (reference 001, Tables 2 and 3; reference 003's sets on ViT)."""

    model_config = _STRICT

    methods: list[str] = Field(default_factory=list)
    """Which of the study's methods; by default all that can be put at a choice of sites."""
    layers: list[str] = Field(default_factory=list)
    """Choices of layers, for example first 50%, last 50%, random 50%."""
    drop: list[str] = Field(default_factory=list)
    """Roles to take away, for example self_attn, cross_attn, `q o`, attention, dense."""
    where: list[str] = Field(default_factory=list)
    """Other choices of roles, for example `self_attn.q`, `self_attn.q self_attn.v`."""


class EngineSettings(BaseModel):
    """Where trials are run. It changes no result, so a study may be begun on one engine and ended on another."""

    model_config = _STRICT

    name: Literal["local", "ray"] = "local"
    """`local`: one after the other in this process; `ray`: side by side on the machines of a Ray cluster."""
    address: str | None = None
    """Of the Ray cluster: HOST:6379, ray://HOST:10001 or auto. By default the one that runs here, or a new one."""
    cpus: float = Field(1.0, gt=0)
    """Processor cores that a cohort (or a trial alone) occupies on a machine of the cluster."""
    gpus: float | None = Field(None, ge=0)
    """GPUs that it occupies, for example 0.25; by default 1 where the cluster has any."""
    idle: bool = True
    """Whether the budget pays for machines of the cluster while they wait: false on a cluster shared with others."""


class UncutSettings(BaseModel):
    """What a study was before `--shrink` cut it, in the order in which the cut one has it."""

    model_config = _STRICT

    backbones: list[str]
    """Names of the backbones."""
    scales: list[int | str]
    """Numbers of training rows."""
    methods: list[Any]
    """Methods with their settings."""


class SourceSettings(BaseModel):
    """The published study that this one repeats."""

    model_config = _STRICT

    tables: list[str] = Field(min_length=1)
    """Its tables (`dollartune.evidence`), for example 001.table1; reports set their figures beside those measured."""
    uncut: UncutSettings | None = None
    """Written by `--shrink`: which published setting each smaller one stands for."""


class StudySettings(BaseModel):
    """A study file."""

    model_config = _STRICT

    name: str | None = None
    """Name of the study and of its folder; by default the file's name."""
    backbone: str | BackboneSettings | list[str | BackboneSettings]
    """The pretrained model, or several: each task is then run on every backbone that can read it."""
    task: str | dict[str, Any] | None = None
    """The task: a preset, a data file, or a mapping that describes one."""
    tasks: list[str | dict[str, Any]] = Field(default_factory=list)
    """Several tasks, instead of `task`."""
    methods: list[str | dict[str, Any] | list[str | dict[str, Any]]] = Field(min_length=1)
    """Methods to compare. A list in a setting means every value of it; a list of methods is a combination."""
    ablations: AblationSettings | None = None
    """Also run methods on fewer layers or modules."""
    scales: list[int | str] = Field(default=[1000], min_length=1)
    """Numbers of training rows, or low, medium, high (100, 1,000, 10,000), or all."""
    seeds: int | list[int] = 3
    """How many seeds (0, 1, 2 ...), or which."""
    budget: str | BudgetSettings | None = None
    """What may be spent, for example `$1`, `20 min`, or a mapping."""
    search: bool | int | SearchSettings = False
    """Choose hyperparameters before the final runs: true, the most settings to try, or a mapping."""
    training: TrainingSettings = TrainingSettings()
    """How trials are trained."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is measured at the end."""
    data_seed: int = 0
    """Which rows are drawn; the same for every method and seed."""
    data_root: str | None = None
    """Folder with local copies of presets' data."""
    begin_with: str | None = None
    """Folder of a tuned adapter, for example one that `dollartune import` wrote: trials of the same methods, sizes and
    sites begin with its tensors, all others fresh."""
    output: str = "studies"
    """Folder in which the study's folder is made."""
    keep_adapters: Literal["all", "best", "none"] = "best"
    """Which trained adapters are kept: all, the best of each task and scale, none."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default_factory=list)
    """Experiment trackers to tell, if installed."""
    engine: Literal["local", "ray"] | EngineSettings = "local"
    """Where trials are run: `local`, `ray`, or a mapping."""
    source: SourceSettings | None = None
    """The published study that this one repeats."""

    def engine_settings(self) -> EngineSettings:
        """The engine as settings, however it was written."""
        return self.engine if isinstance(self.engine, EngineSettings) else EngineSettings(name=self.engine)

    def backbones(self) -> list[BackboneSettings]:
        """All backbones as settings, however they were written."""
        written = self.backbone if isinstance(self.backbone, list) else [self.backbone]
        return [one if isinstance(one, BackboneSettings) else BackboneSettings(name=one) for one in written]

    def search_settings(self) -> SearchSettings | None:
        """How to search; None where the study runs exactly what it lists.

        Raises:
            UserError: fewer than one setting to try.
        """
        if isinstance(self.search, SearchSettings):
            return self.search
        if isinstance(self.search, bool):
            return SearchSettings() if self.search else None
        if self.search < 1:
            raise UserError(f"search: {self.search} settings are too few. Write a number from 1 up, true or false.")
        return SearchSettings(trials=self.search)

    def task_specs(self) -> list[str | dict[str, Any]]:
        """All tasks."""
        return [*([self.task] if self.task is not None else []), *self.tasks]

    def seed_list(self) -> list[int]:
        """All seeds.

        Raises:
            UserError: none, or one of them twice.
        """
        found = list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
        if not found:
            raise UserError(f"seeds: {self.seeds!r} means no trial at all. Write how many seeds, from 1 up, or which.")
        return _each_once("seeds", found)

    def scale_list(self) -> list[int | None]:
        """Numbers of training rows; None is all of them.

        Raises:
            UserError: not a scale, or the same number of rows twice.
        """
        found: list[int | None] = []
        for scale in self.scales:
            if isinstance(scale, int):
                if scale < 1:
                    raise UserError(f"scales: {scale} training rows are too few. Write a number from 1 up.")
                found.append(scale)
            elif scale == "all":
                found.append(None)
            elif scale in NAMED_SCALES:
                found.append(NAMED_SCALES[scale])
            else:
                raise UserError(
                    f"scales: {scale!r} is no scale.{nearest(scale, [*NAMED_SCALES, 'all'])} "
                    "Write a number of rows, low, medium, high or all."
                )
        return _each_once("scales", found)


def _each_once(key: str, values: list[Item]) -> list[Item]:
    """The values, if none of them stands twice."""
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{key}: {'all' if value is None else value} stands twice.")
    return values
