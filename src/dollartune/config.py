"""What a study file may say: one strict schema for YAML, the Python API, `--help` and the documentation.

backbone: facebook/opt-125m
task: boolq
methods: [zero_shot, full, lora: {rank: [2, 4, 8]}, prompt: {tokens: [2, 48, 96]}]
scales: [100, 1000]
seeds: 3
budget: {dollars: 1, per: method, price: 2.90/h}

What may be written in several ways (a name or a mapping, a number or a list) is brought to one form here, by a validator
of its key, when the file is read: after that `StudySettings` holds plain values, and nobody asks again how they were written.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError

from dollartune.budget.limit import BudgetSettings, parse_budget
from dollartune.budget.serving_limits import ServingLimits, parse_limits
from dollartune.errors import UserError, nearest
from dollartune.train.settings import TrainingSettings

# frozen: settings are hashed into a trial's name. forbid and strict: a misspelt key or "3" for 3 is told, never
# guessed. Docstrings of attributes are what `--help` and the docs print.
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

MOST_SEEDS = 10_000
"""How many seeds a number may stand for: of a million trials the list alone takes minutes."""
MOST_SEED = 2**63 - 1
"""What a generator of random numbers takes, either way."""
NAMED_SCALES = {"low": 100, "medium": 1000, "high": 10_000}
"""Reference 001's data scales."""


# The two kinds of mistake travel through pydantic as error types, because a plain ValueError would come out with its
# own wording around it.
def _wrong(sentence: str, hint: str | None = None) -> PydanticCustomError:
    """A mistake in a value, in a sentence that names the key itself (`study_file` prints it as it stands)."""
    return PydanticCustomError("sentence", "{sentence}", {"sentence": sentence, "hint": hint})


def _kind(wanted: str) -> PydanticCustomError:
    """A value of the wrong kind: `study_file` says which key, what it should be, and what was given."""
    return PydanticCustomError("kind", "Input should be {wanted}", {"wanted": wanted})


def _from_home(path: Any) -> Any:
    """A leading ~ is the user's home, as it is for a shell: else a folder of that name would be made."""
    return os.path.expanduser(path) if isinstance(path, str) else path


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
    random_weights_seed: int | None = Field(None, ge=-MOST_SEED, le=MOST_SEED)
    """Random instead of pretrained weights, as a control."""
    anatomy: str | None = None
    """A file that says which module plays which role, where reading the structure got it wrong; `dollartune backbones show
    MODEL --yaml` writes one to begin with."""
    tasks: list[str] | None = None
    """Names of the tasks that it is for; by default every task that it can read."""
    methods: list[str] | None = None
    """Names of the methods that it is for; by default all of the study's that have a meaning on it. Baselines come on top."""


class SearchSettings(BaseModel):
    """How hyperparameters are chosen, for each method with its own money (or by racing, where the budget is per study).

    - By default where there is a budget for each method or for the study; not where the study lists ablations, nor with a
      budget per trial, which is for the trials that it lists. `search: false` runs exactly what the study lists.
    - A method whose settings hold lists is tried with exactly the values that the study names: a grid.
    - Any other method is searched over its own space (`dollartune methods show lora`); a setting that the study states
      stays as it is.

    Settings are tried with the first seed and judged by their validation score alone. The best one of each method is
    then run with every seed and evaluated on the test rows.
    """

    model_config = _STRICT

    trials: int | None = Field(None, ge=1)
    """Maximum number of settings to try per method; by default as many as its money pays for up to 50, or 12 without a limit."""
    sampler: Literal["tpe", "random", "quasi"] = "tpe"
    """Sampler: `tpe` learns from the scores, `quasi` covers the space evenly, `random`."""
    pruner: Literal["none", "median", "halving"] = "median"
    """Pruner: what ends search trials that cannot win early, by their validation loss."""
    seed: int = Field(0, ge=0)
    """Of the sampler."""
    strategy: Literal["sampled", "anytime"] = "sampled"
    """`sampled`: the sampler proposes settings, the best is trained on every seed. `anytime`: a solved probe first, then the
    strongest method by rule for as long as the money allows, then more settings; the adapter is as good as the money so far."""


class EvaluationSettings(BaseModel):
    """What is measured at the end."""

    model_config = _STRICT

    rows: int = Field(2500, ge=1)
    """Maximum number of test and validation rows (reference 001, A.2)."""
    free_generation: bool = True
    """In classification tasks also let the model write freely and count what it says."""
    batch_size: int = Field(32, ge=1)
    """Rows per forward pass."""
    forgetting: bool = True
    """Also measure the loss on general text before and after tuning (about a second per trial with a small model)."""
    general_text: Annotated[str | None, BeforeValidator(_from_home)] = None
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

    @model_validator(mode="before")
    @classmethod
    def _without_idle(cls, written: Any) -> Any:
        """`idle` of 0.1 said whether machines that wait are paid for; work alone is booked now."""
        if not isinstance(written, Mapping) or "idle" not in written:
            return written
        text = "engine.idle does nothing since 0.2, as only work on a machine is booked: remove it from the study."
        warnings.warn(text, FutureWarning, stacklevel=2)
        return {key: value for key, value in written.items() if key != "idle"}


def _each_once(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """The values, if none of them appears twice: the same trial would be listed, and paid for, twice."""
    for value in values:
        if values.count(value) > 1:
            raise _wrong(f"{key}: {'all' if value is None else value} appears twice.")
    return tuple(values)


def _whole(value: Any) -> bool:
    """Whether a value is a whole number; YAML's `true` is one for Python, and none for whoever writes a study."""
    return isinstance(value, int) and not isinstance(value, bool)


def _scales(written: Any) -> Any:
    """`[low, 1000, all]` -> (100, 1000, None)."""
    if not isinstance(written, list | tuple):
        raise _kind("a list")
    if not written:
        raise _kind("a list with at least one entry")
    rows: list[int | None] = []
    for scale in written:
        if _whole(scale):
            if scale < 1:
                raise _wrong(f"scales: {scale} training rows are too few. Write a number from 1 up.")
            rows.append(scale)
        elif scale is None or scale == "all":
            rows.append(None)
        elif isinstance(scale, str) and scale in NAMED_SCALES:
            rows.append(NAMED_SCALES[scale])
        else:
            close = nearest(scale, [*NAMED_SCALES, "all"]) if isinstance(scale, str) else ""
            raise _wrong(
                f"scales: {scale!r} is not a valid scale.{close} Write a number of rows, low, medium, high or all."
            )
    return _each_once("scales", rows)


def _scales_as_written(rows: Sequence[int | None]) -> list[int | str]:
    """How scales are written down: a file says `all`, not null."""
    return ["all" if count is None else count for count in rows]


Scales = Annotated[tuple[int | None, ...], BeforeValidator(_scales), PlainSerializer(_scales_as_written)]
"""Numbers of training rows; None is all of them."""


def _seeds(written: Any) -> Any:
    """`3` -> (0, 1, 2); a list stays as it is."""
    if _whole(written):
        if written > MOST_SEEDS:
            raise _wrong(f"seeds: {written:,} are more than {MOST_SEEDS:,}. Write how many seeds, or which as a list.")
        written = range(written)
    if not isinstance(written, list | tuple | range) or not all(map(_whole, written)):
        raise _kind("a whole number or a list of whole numbers")
    if not written:
        raise _wrong("seeds: that means no trial at all. Write how many seeds, from 1 up, or which.")
    if large := [seed for seed in written if abs(seed) > MOST_SEED]:
        raise _wrong(f"seeds: {large[0]} is beyond {MOST_SEED:,}, the largest that generators take.")
    return _each_once("seeds", written)


def _backbones(written: Any) -> Any:
    """A name, a mapping, or a list of both -> mappings."""
    several = written if isinstance(written, list | tuple) else [written]
    if not several:
        raise _kind("a list with at least one entry")
    for one in several:
        if not isinstance(one, str | dict | BackboneSettings):
            raise _kind("a text or a mapping or a list")
    return tuple({"name": one} if isinstance(one, str) else one for one in several)


def _name(written: Any) -> Any:
    """A name that is one of a folder: what a fresh run deletes lies in that folder, and in none above it."""
    if isinstance(written, str):
        parts = re.split(r"[/\\]", written)
        # 255 bytes are the most that file systems take
        if any(not part.strip(". ") or "\0" in part or len(part.encode()) > 200 for part in parts):
            raise _wrong(f"name: {written[:100]!r} is no name of a folder inside `output:`; write some letters.")
    return written


def _methods(written: Any) -> Any:
    """A list as it stands, if each combination in it has methods."""
    if isinstance(written, list | tuple) and any(isinstance(one, list | tuple) and not one for one in written):
        raise _wrong("methods: a combination is empty; write names in it, as in `- [NAME, NAME]`.")
    return written


def _tasks(written: Any) -> Any:
    """A list -> a tuple; what a mapping may say is checked where the task is loaded (`tasks.config`)."""
    if not isinstance(written, list | tuple):
        raise _kind("a list")
    for one in written:
        if one == "":
            raise _wrong("task: the name is empty; write a preset's (`dollartune tasks ls`) or a data file.")
        if not isinstance(one, str | dict):
            several = " Several tasks are written as `tasks: [...]`." if isinstance(one, list) else ""
            raise _wrong(f"a task is a text (a preset's name or a data file) or a mapping; got {one!r}.{several}")
    return _each_once("tasks", written)


def _budget(written: Any) -> Any:
    """`$1`, `20 min`, `$5 per study` -> a mapping."""
    if written is None or isinstance(written, dict | BudgetSettings):
        return written
    if not isinstance(written, str | int | float) or isinstance(written, bool):
        raise _kind("a text or a mapping")
    try:
        return parse_budget(str(written), per="method")  # the fair fight: each method the same
    except UserError as error:
        raise _wrong(f"budget: {error.message}", error.hint) from None


def _search(written: Any) -> Any:
    """true or false, the most settings to try, or a mapping -> a mapping, or None where nothing is searched."""
    if written is None or isinstance(written, dict | SearchSettings):
        return written
    if isinstance(written, bool):
        return SearchSettings() if written else None
    if written == "anytime":
        return SearchSettings(strategy="anytime")
    if not _whole(written):
        raise _kind("true or false or a whole number or a mapping")
    if written < 1:
        raise _wrong(f"search: {written} settings are too few. Write a number from 1 up, true or false.")
    return SearchSettings(trials=written)


def _search_where_unstated(stated: dict[str, Any]) -> SearchSettings | None:
    """The fair fight: for the same money each method chooses its own settings. At settings that one hand chose for all, the rate
    decides more than the method does.

    Args:
        stated: the keys above, as they were validated.
    """
    budget: BudgetSettings | None = stated.get("budget")
    if budget is None or not budget.limited or budget.per == "trial" or stated.get("ablations") is not None:
        return None
    return SearchSettings()


def _limits(written: Any) -> Any:
    """`20 ms`, or a list of such texts -> a mapping."""
    if written is None or isinstance(written, dict | ServingLimits):
        return written
    several = [written] if isinstance(written, str) else written
    if not isinstance(several, list | tuple) or not all(isinstance(one, str) for one in several):
        raise _kind("a text or a list of texts or a mapping")
    try:
        return parse_limits(several)
    except UserError as error:
        raise _wrong(f"limits: {error.message}", error.hint) from None


def _engine(written: Any) -> Any:
    """A name -> a mapping."""
    return {"name": written} if isinstance(written, str) else written


class UncutSettings(BaseModel):
    """What a study was before `--shrink` cut it, in the order in which the cut one has it."""

    model_config = _STRICT

    backbones: list[str]
    """Names of the backbones."""
    scales: Scales
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

    model_config = _STRICT | ConfigDict(serialize_by_alias=True)

    name: Annotated[str | None, BeforeValidator(_name)] = None
    """Name of the study and of its folder; by default the file's name."""
    backbones: Annotated[tuple[BackboneSettings, ...], BeforeValidator(_backbones)] = Field(alias="backbone")
    """The pretrained model: a name or a mapping. Or a list of them: each task is then run on every backbone that can read
    it."""
    tasks: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_tasks)] = ()
    """The task (written `task:`), or a list of tasks: presets, data files, or mappings that describe one."""
    methods: Annotated[list[str | dict[str, Any] | list[str | dict[str, Any]]], BeforeValidator(_methods)] = Field(
        min_length=1
    )
    """Methods to compare. A list in a setting means every value of it; a list of methods is a combination."""
    baselines: bool = True
    """Also run what every method should beat: of each task with labels the commonest class, logistic regression on words (tf-idf)
    and the backbone as it is, where it can be asked without tuning. They cost a few seconds and are never called the best."""
    ablations: AblationSettings | None = None
    """Also run methods on fewer layers or modules."""
    scales: Scales = (1000,)
    """Numbers of training rows, or low, medium, high (100, 1,000, 10,000), or all."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = (0, 1, 2)
    """How many seeds (3 means 0, 1, 2), or a list of them."""
    budget: Annotated[BudgetSettings | None, BeforeValidator(_budget)] = None
    """What may be spent, for example `$1`, `20 min`, or a mapping."""
    search: Annotated[SearchSettings | None, BeforeValidator(_search)] = Field(default_factory=_search_where_unstated)
    """Choose hyperparameters before the final runs: true, false, the most settings to try, or a mapping. By default true where
    there is a budget, false without one."""
    limits: Annotated[ServingLimits | None, BeforeValidator(_limits)] = None
    """The most that serving may take, for example `20 ms` (a request), `500 MiB`, `$0.10 per 1000`, or a list of them. A method
    that takes more is measured and not trained."""
    training: TrainingSettings = TrainingSettings()
    """How trials are trained."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is measured at the end."""
    data_seed: int = 0
    """Which rows are drawn; the same for every method."""
    draws: Literal["each_seed", "once"] = "each_seed"
    """`each_seed`: where the data hold more than a scale, each seed draws training rows of its own, so that intervals say what so
    many rows of this kind are worth; validation and test rows stay. `once`: all seeds train on the same rows (a folder of
    before 0.2 stays so)."""
    data_root: Annotated[str | None, BeforeValidator(_from_home)] = None
    """Folder with local copies of presets' data."""
    begin_with: Annotated[str | None, BeforeValidator(_from_home)] = None
    """Folder of a tuned adapter, for example one that `dollartune import` wrote: trials of the same methods, sizes and
    sites begin with its tensors, all others fresh."""
    output: Annotated[str, BeforeValidator(_from_home)] = "studies"
    """Folder in which the study's folder is made."""
    keep_adapters: Literal["all", "best", "none"] = "best"
    """Which trained adapters are kept: all, the best of each task and scale, none."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default_factory=list)
    """Experiment trackers to tell, if installed."""
    engine: Annotated[EngineSettings, BeforeValidator(_engine)] = EngineSettings()
    """Where trials are run: `local`, `ray`, or a mapping."""
    source: SourceSettings | None = None
    """The published study that this one repeats."""

    @model_validator(mode="before")
    @classmethod
    def _one_list_of_tasks(cls, data: Any) -> Any:
        """`task:` and `tasks:` as one list, the single one first."""
        if not isinstance(data, dict) or "task" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "task"}
        single, several = ([] if data["task"] is None else [data["task"]]), rest.get("tasks")
        if several is not None and not isinstance(several, list | tuple):
            return rest  # the validator of `tasks` says what is wrong with it
        return rest | {"tasks": [*single, *(several or ())]}
