"""The trials of a study: what is compared, each with a hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dollartune.backbones.chat import stored_template
from dollartune.backbones.content_hash import of_backbone
from dollartune.errors import UserError, unknown_name
from dollartune.fingerprint import fingerprint
from dollartune.methods.base import Method, SiteMethodConfig
from dollartune.methods.registry import build_method, method_class, reference
from dollartune.methods.spelling import normalized, parse_call
from dollartune.methods.stored_adapter import read_info
from dollartune.trials.content_hash import of_task

if TYPE_CHECKING:
    from dollartune.backbones.kind import Objective
    from dollartune.config import AblationSettings, StudySettings
    from dollartune.train.settings import TrainingSettings

NO_INFLUENCE = {"batch_size", "forgetting", "general_text", "inference_cost"}
"""Evaluation settings that change no score: a trial is the same trial with them."""
NO_IDENTITY = {"label", "group", "ablation", "baseline"}
"""What is stored of a trial beside what decides its result."""
NOT_OF_BACKBONE = {"name", "tasks", "methods", "device_map", "anatomy"}
"""Settings of a backbone that say where it lies or what it is for, not what it computes; an anatomy counts by what its file
says."""


@dataclass(frozen=True)
class Variant:
    """A method with fixed settings, or a combination of several: one row of the result table."""

    methods: tuple[tuple[tuple[str, Any], ...], ...]
    """Per method: (key, value) pairs as stored, `method` first."""
    group: str
    """The method entry that it is a setting of; budgets are given and winners are chosen per group."""
    ablation: tuple[str, str] | None = None
    """(label of the whole method, what was changed), for ablations."""

    @classmethod
    def of(cls, built: Sequence[Method[Any]], group: str, ablation: tuple[str, str] | None = None) -> Variant:
        return cls(tuple(tuple(_hashable(m.describe()).items()) for m in built), group, ablation)

    def build(self) -> list[Method[Any]]:
        """The methods, ready to attach."""
        return [build_method(settings) for settings in self.settings]

    @cached_property
    def settings(self) -> tuple[dict[str, object], ...]:
        """What `methods` says, as methods take it; kept, as a study has many trials of each variant."""
        return tuple(_plain(dict(pairs)) for pairs in self.methods)

    @cached_property
    def trains(self) -> bool:
        """Whether anything is trained. Kept, as thousands of trials of one variant are asked."""
        return any(method.capabilities.trains for method in self.build())

    @cached_property
    def solved(self) -> bool:
        """Whether what is trained is solved at once."""
        return any(method.capabilities.solved for method in self.build())

    @cached_property
    def answers_alone(self) -> bool:
        """Whether it needs no backbone: baselines do not."""
        return any(method.capabilities.baseline for method in self.build())

    @cached_property
    def label(self) -> str:
        """Short and unique within a study: only settings that differ from the method's defaults."""
        if self.ablation is not None:
            return f"{self.ablation[0]}: {self.ablation[1]}"
        names = []
        for method in self.build():
            # A method's repr leaves out defaults, which is what makes a label short.
            inside = repr(method).split("(", 1)[1][:-1].replace("'", "")
            names.append(f"{method.name}({inside})" if inside else method.name)
        return " + ".join(names)


@dataclass(frozen=True)
class Trial:
    """One (backbone, method settings, task, scale, seed)."""

    backbone: str
    backbone_index: int
    objective: Objective
    variant: Variant
    task: str
    task_index: int
    scale: int | None
    seed: int
    conditions: str
    """Canonical JSON of everything else that decides the result: training and evaluation settings, the task's spec."""
    fraction: float = 1.0
    """Share of the study's training that it gets: below 1 in a search, or where the money does not pay for all of it."""
    steps: int | None = None
    """Optimizer steps that it gets, where its length is not a share of the study's training."""
    length: Literal["settings", "money", "at_most"] = "settings"
    """`money`: its time limit decides how many steps are made (`train.length`), begun with the plan that settings, fraction and
    steps give; how many there were, and how they were planned, its record says. `at_most`: the same, but never more than the
    first plan."""
    draws: Literal["once", "each_seed"] = "once"
    """Whether each seed has training rows of its own."""
    among_backbones: bool = False
    """Whether other backbones are compared on the same task; the label then names this one."""
    baseline: bool = False
    """Whether it stands in the tables for the methods to be held against, and is none of those that are compared. It is run
    beside the scheduler: nothing about it is chosen."""

    extends: str | None = None
    """Identifier of the finished trial whose adapter it goes on training, for `steps` more; None: it begins at its method's
    beginning."""
    more: str = ""
    """What its label says of that, such as `, +60 steps`, or of an average: trials of all seeds that were extended alike are one
    variant."""
    averaged_with: str | None = None
    """Identifier of the trial with whose adapter it is averaged in the end (`train.averages`). It begins as that one did, and
    trains on the validation rows too, which have chosen that one: its validation score is that trial's."""

    @cached_property
    def identifier(self) -> str:
        """Content hash, 12 hex digits: the same trial has the same name in every run and study."""
        what = {key: value for key, value in self.to_json().items() if key not in NO_IDENTITY}
        # 48 bits: in a study of a million trials two would share a name once in 500 times; a folder's name stays
        # readable.
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def draw(self) -> int | None:
        """Which draw of the training rows it has. None is the first: that of seed 0, of trials on all rows, and of every trial
        that was recorded before seeds drew rows, whose names therefore stay."""
        return self.seed if self.draws == "each_seed" and self.scale is not None and self.seed != 0 else None

    @property
    def label(self) -> str:
        """The variant's label, with the backbone's name where several are compared, and how far it was extended."""
        backbone = f" @ {self.backbone.rstrip('/').split('/')[-1]}" if self.among_backbones else ""
        return f"{self.variant.label}{backbone}{self.more}"

    @property
    def trains(self) -> bool:
        return self.variant.trains

    @property
    def answers_alone(self) -> bool:
        """Whether it needs no backbone."""
        return self.variant.answers_alone

    @property
    def solved(self) -> bool:
        """Whether what is trained is solved at once: no steps, so no length, checkpoints or cohorts either."""
        return self.variant.solved

    def to_json(self) -> dict[str, object]:
        return {
            "backbone": self.backbone,
            "objective": self.objective,
            "methods": [dict(settings) for settings in self.variant.settings],
            "group": self.variant.group,
            "label": self.label,
            "ablation": self.variant.ablation and {"of": self.variant.ablation[0], "name": self.variant.ablation[1]},
            **({"baseline": True} if self.baseline else {}),
            "task": self.task,
            "scale": self.scale,
            "seed": self.seed,
            "conditions": json.loads(self.conditions),
            # Left out at their defaults: trials of before these settings existed keep their identifiers, and users find
            # their records.
            **({"fraction": self.fraction} if self.fraction != 1 else {}),
            **({"steps": self.steps} if self.steps is not None else {}),
            **({"length": self.length} if self.length != "settings" else {}),
            **({"draw": self.draw} if self.draw is not None else {}),
            **({"extends": self.extends} if self.extends is not None else {}),
            **({"averaged_with": self.averaged_with} if self.averaged_with is not None else {}),
        }


def variants(entries: Sequence[Any]) -> list[Variant]:
    """Every variant that a study's `methods:` names, grids unfolded, in the order written.

    Raises:
        UserError: unknown method or setting, or the same variant twice.
    """
    by_label: dict[str, Variant] = {}
    for entry in entries:
        parts = entry if isinstance(entry, list) else [entry]
        unfolded = [_unfold(part) for part in parts]
        group = " + ".join(choices[0].name for choices in unfolded)
        for combination in itertools.product(*unfolded):
            variant = Variant.of(combination, group)
            if variant.label in by_label:
                raise UserError(f"methods: {variant.label!r} appears twice.")
            by_label[variant.label] = variant
    return list(by_label.values())


def _unfold(entry: Any) -> list[Method[Any]]:
    """A method entry with lists as settings becomes one method per combination of their values."""
    if isinstance(entry, str):
        name, settings = parse_call(entry)
    elif isinstance(entry, Mapping) and len(entry) == 1:
        name, value = next(iter(entry.items()))
        if value is not None and not isinstance(value, Mapping):
            raise UserError(
                f"methods: {name!r} takes a mapping of settings, got {value!r}.", hint=f"dollartune methods show {name}"
            )
        settings = dict(value or {})
    else:
        raise UserError(
            f"methods: write a name, or one name with its settings; got {entry!r}.", hint="dollartune methods ls"
        )
    cls = method_class(str(name))
    # What is stated beside an alias stands above the settings that the alias means.
    settings = {**cls.presets.get(normalized(str(name)), {}), **settings}
    grids = {}
    for key, value in settings.items():
        field = cls.Config.model_fields.get(key)
        # `layers: [0, 1]` is one value where the setting is a list, and a grid everywhere else.
        listlike = field is not None and str(field.annotation).startswith(("list", "tuple", "dict", "set", "frozenset"))
        grids[key] = value if isinstance(value, list) and not listlike else [value]
        if not grids[key]:
            raise UserError(f"methods: {cls.name}, setting {key!r}: the list of values is empty.")
    return [cls(**_floats(cls, dict(zip(grids, values, strict=True)))) for values in itertools.product(*grids.values())]


def _floats(cls: type[Method[Any]], settings: dict[str, object]) -> dict[str, object]:
    """Integers where the config wants a number: `lr: 1` is meant as 1.0."""
    return {
        key: float(value)
        if isinstance(value, int) and not isinstance(value, bool) and key in cls.Config.model_fields
        and cls.Config.model_fields[key].annotation is float
        else value
        for key, value in settings.items()
    }  # fmt: skip


def ablated(variants: Sequence[Variant], ablations: AblationSettings | None) -> list[Variant]:
    """The ablations of each variant that can be put at a choice of sites.

    Raises:
        UserError: `methods` names a method that the study does not have, or none can be ablated.
    """
    if ablations is None:
        return []
    groups = {variant.group for variant in variants}
    for name in ablations.methods:
        if name not in groups:
            raise unknown_name("method in ablations", name, groups)
    changed_variants = []
    for variant in variants:
        built = variant.build()
        # Nothing named means all.
        if ablations.methods and variant.group not in ablations.methods:
            continue
        if not all(isinstance(method.config, SiteMethodConfig) for method in built):
            continue
        changes = [(layers, {"layers": layers}) for layers in ablations.layers]
        for method in built:
            where = method.config.where
            changes += [
                (f"drop {d}", {"where": f"{where} {' '.join(f'-{r}' for r in d.split())}"}) for d in ablations.drop
            ]
        changes += [(f"only {where}", {"where": where}) for where in ablations.where]
        for name, change in changes:
            changed = [type(method)(method.config.model_copy(update=change)) for method in built]
            changed_variants.append(Variant.of(changed, variant.group, (variant.label, name)))
    if not changed_variants:
        raise UserError("ablations: none of the study's methods can be put at a choice of layers and modules.")
    return changed_variants


def _refuse_to_begin(folder: Path, chosen: Sequence[Variant]) -> None:
    """Refuses an adapter that no trial could begin with. Sizes and sites are compared when an adapter is built.

    Raises:
        UserError: none of the study's methods is the adapter's, or it is solved on the rows at once, whatever was there before.
    """
    head = reference("head").name
    names = [str(method["method"]) for method in read_info(folder)["methods"]]
    wanted = [name for name in names if name != head]
    built = {variant: [method.name for method in variant.build() if method.name != head] for variant in chosen}
    alike = [variant for variant, own in built.items() if own == wanted]
    if all(variant.solved for variant in alike):
        why = f"its methods are {', '.join(dict.fromkeys(' + '.join(own) for own in built.values() if own))}"
        if alike:
            why = f"{' + '.join(wanted)} is solved on the rows at once and begins with nothing"
        raise UserError(
            f"begin_with: the adapter in {str(folder)!r} is of {' + '.join(names)}, and no trial of this study could begin with "
            f"it: {why}.",
            hint="dollartune methods show METHOD, or tune anew, without begin_with, on all rows."
            if alike
            else "dollartune methods show METHOD",
        )


def plan_trials(
    settings: StudySettings, pairs: Sequence[tuple[int, int, Objective, bool]], task_names: Sequence[str]
) -> list[Trial]:
    """All trials of a study, in the order in which they are run: task, backbone, scale, variant, seed.

    A method that no seed changes (zero-shot prompting) is run once.

    Args:
        pairs: (task index, backbone index, objective, whether other backbones have the same task).
    """
    conditions = study_conditions(settings)
    if settings.begin_with is not None:
        _refuse_to_begin(Path(settings.begin_with), variants(settings.methods))
    specs, backbones = settings.tasks, settings.backbones
    root = Path(settings.data_root) if settings.data_root else None
    whole = variants(settings.methods)
    seeds_of = {
        # Without chance a second seed would be the same trial, paid twice and counted as agreement.
        variant: settings.seeds[: None if any(method.capabilities.seeded for method in variant.build()) else 1]
        for variant in [*whole, *ablated(whole, settings.ablations)]
    }
    trials: list[Trial] = []
    for task_index, backbone_index, objective, among in pairs:
        spec, backbone = specs[task_index], backbones[backbone_index]
        name = task_names[task_index]
        task_facts = spec if isinstance(spec, dict) else name
        facts = {**conditions, "task": task_facts, "backbone": backbone.model_dump(exclude=NOT_OF_BACKBONE)}
        contents = {"backbone": of_backbone(backbone.name), "task": of_task(spec, root)}
        if backbone.anatomy is not None:
            contents["anatomy"] = fingerprint(Path(backbone.anatomy).expanduser())
        if template := _chat_template(spec, backbone.name, objective):
            # The template and not the model's revision: it decides the tokens, and so the result.
            facts["chat"] = hashlib.sha256(template.encode()).hexdigest()[:16]
        if any(contents.values()):
            facts["contents"] = contents  # the same paths may hold something else another day
        text = json.dumps(facts, sort_keys=True, default=str)
        trials += [
            Trial(
                backbone.name,
                backbone_index,
                objective,
                variant,
                name,
                task_index,
                scale,
                seed,
                text,
                draws=settings.draws,
                among_backbones=among,
            )
            # The smallest scale of all variants before the next one: an interrupted study has compared something.
            for scale in settings.scales
            for variant, seeds in seeds_of.items()
            for seed in seeds
        ]
    return trials


def study_conditions(settings: StudySettings) -> dict[str, object]:
    """Settings that decide the result of every trial of a study alike; tasks, backbones and methods are each trial's own."""
    conditions: dict[str, object] = {
        "training": _conditions_of(settings.training),
        "evaluation": settings.evaluation.model_dump(exclude=NO_INFLUENCE),
        "data_seed": settings.data_seed,
    }
    if settings.begin_with is not None:
        # By content: the same path may hold another adapter tomorrow.
        conditions["begin_with"] = fingerprint(Path(settings.begin_with), without=(".md",))
    return conditions


def _chat_template(spec: Any, backbone: str, objective: Objective) -> str | None:
    """The chat template by which a task is asked; None: as it stands, and trials are named as before there were templates."""
    never = isinstance(spec, dict) and spec.get("chat") == "never"
    return None if never or objective != "language" else stored_template(backbone)


def room_for_virtual_tokens(variants: Iterable[Variant]) -> int:
    """Tokens that prompts and prefixes take: left free in every input, for every method, so that all see the same inputs."""
    return max(
        (sum(int(getattr(method.config, "tokens", 0)) for method in variant.build()) for variant in set(variants)),
        default=0,
    )


def _hashable(value: Any) -> Any:
    """Lists become tuples, so that variants can be compared and hashed."""
    if isinstance(value, dict):
        return {
            key: _hashable(item) if not isinstance(item, dict) else tuple(sorted(item.items()))
            for key, item in value.items()
        }
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def _plain(settings: dict[str, object]) -> dict[str, object]:
    """The inverse, as the method's config takes it."""
    cls = method_class(str(settings["method"]))
    plain: dict[str, object] = {}
    for key, value in settings.items():
        field = cls.Config.model_fields.get(key)
        kind = str(field.annotation) if field is not None else ""
        if isinstance(value, tuple):
            plain[key] = dict(value) if kind.startswith("dict") else list(value) if kind.startswith("list") else value
        else:
            plain[key] = value
    return plain


def _conditions_of(training: TrainingSettings) -> dict[str, object]:
    """Training settings that decide a result, so that records of before are found: settings that came later only where they are
    others than all trials had then, a cohort whose size the machine decides as the trial alone that it equals; compiling decides
    none. Length by reference 001's rule is what naming no epochs meant in 0.1."""
    since = {"optimizer": "adamw", "head_start": "fresh", "class_weights": "none", "train_on_validation": False,
             "class_offsets": "none"}  # fmt: skip
    conditions = training.model_dump(exclude={"compile", *(n for n, v in since.items() if getattr(training, n) == v)})
    if training.schedule == "auto":
        conditions["schedule"] = "linear"  # where it is another, the length comes from money, which the trial says
    conditions["epochs"] = {"reference_001": None, None: "by_rows"}.get(training.epochs, training.epochs)  # type: ignore[arg-type]
    return conditions | ({"cohort_size": 1} if training.cohort_size == "auto" else {})
