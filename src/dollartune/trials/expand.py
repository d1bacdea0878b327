"""From settings to trials: what is run, what is left out and why. Loads no weights."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.backbones.device_map import refuse_training
from dollartune.backbones.families import use_file
from dollartune.backbones.locate import source_notes
from dollartune.backbones.outline import Outline, anatomy_without_weights, outline_of
from dollartune.budget.prices import price_note
from dollartune.errors import UserError, unknown_name
from dollartune.methods.base import prompting_of
from dollartune.methods.registry import method_class, reference
from dollartune.methods.selection import NoSuchSite, NothingSelected
from dollartune.tasks.mixture import Mixture
from dollartune.tasks.registry import load_task
from dollartune.trials.trial import Trial, Variant, plan_trials, variants

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy
    from dollartune.backbones.kind import Objective
    from dollartune.config import BackboneSettings, StudySettings
    from dollartune.methods.base import Method
    from dollartune.tasks.base import Task

MOST_VIRTUAL = 0.25
"""Share of a backbone's positions that a search gives to virtual tokens: they stay free in every method's rows, which are cut the
sooner for them. 48 tokens, the most that any range has, are a tenth of 512 positions."""

MOST_OF_BACKBONE = 10
"""Times its own parameters that a method may train beside a backbone. Full tuning trains once as many; reparameterized prefixes
and prompts of models for tests a few times as many."""


def objective_of(trial_methods: Sequence[Method[Any]], preferred: Objective) -> Objective:
    """A trial that tunes the head classifies; all others do what the study prefers."""
    return "classification" if any("head" in method.kinds for method in trial_methods) else preferred


def plan(settings: StudySettings, read_rows: bool = True) -> tuple[list[Trial], list[Task], list[str]]:
    """Trials, their tasks, and notes on what was guessed or left out; loads no weights.

    With several backbones, a pair that has no meaning (text on a vision model) is left out with a note; with one it is
    an error.

    Args:
        read_rows: also look whether the data has as many rows as the study asks for; without it, no preset's data is read.

    Raises:
        UserError: anything in the study that cannot work, before a second is spent on it.
    """
    root = Path(settings.data_root) if settings.data_root else None
    tasks = [load_task(spec, root) for spec in settings.tasks]
    for one in settings.backbones:
        if one.anatomy is not None:
            # Before outlines, which are read by it.
            use_file(Path(one.anatomy).expanduser())
    outlines = [outline_of(one.name, one.trust_remote_code) for one in settings.backbones]
    _check_names_of_tasks(settings.backbones, tasks)
    listed = plan_trials(settings, _pairs(settings.backbones, outlines, tasks), [task.name for task in tasks])
    listed = _wanted(settings.backbones, listed)
    screening = _Screening(settings, outlines, tasks)
    trials, left_out = screening.split(listed)
    # What needs no backbone is a baseline also where a study lists it as a method.
    trials = [replace(trial, baseline=True) if trial.answers_alone else trial for trial in trials]
    if settings.baselines and trials:
        # First in order, as they take seconds and everything else is held against them; what cannot be asked is left
        # out without a word, since nobody wrote it down.
        trials = [*screening.split(_baselines(settings, tasks, outlines, trials))[0], *trials]
    notes = [note for task in tasks for note in task.notes]
    notes += [note for wanted in settings.backbones for note in source_notes(wanted.name)]
    notes += [note for outline in outlines for note in outline.notes]
    notes += [f"left out: {problem}" for problem in left_out]
    if not trials:
        # the reasons alone: among what was guessed of the data they are not seen
        raise UserError("nothing is left to run:\n" + "\n".join(dict.fromkeys(left_out)))
    if read_rows:
        notes += _too_few_rows(settings, tasks)
    if settings.budget is not None:
        told = price_note(settings.budget.machine, settings.budget.price, datetime.date.today())
        notes += [] if told is None else [told]
    return trials, tasks, list(dict.fromkeys(notes))


def _baselines(
    settings: StudySettings, tasks: Sequence[Task], outlines: Sequence[Outline], trials: Sequence[Trial]
) -> list[Trial]:
    """Trials of what every method should beat, for each task with labels: first of all, as they take seconds.

    Those that need no backbone are run once for a task, whatever backbones it is tried on. What the study lists itself is not
    added again.
    """
    # By what they are for and not by name, so that a package may bring its own.
    alone = [Variant.of([reference(what)()], reference(what).name) for what in ("majority", "words")]
    untuned = Variant.of([reference("untuned")()], reference("untuned").name)
    listed = {(t.task_index, t.backbone_index, t.scale, t.seed, t.variant.label) for t in trials}
    added: dict[str, Trial] = {}
    # Reversed twice: a dict keeps the last value of a key, and the first trial is wanted, in the order of the trials.
    readers = {(t.task_index, t.backbone_index): t for t in reversed(trials)}
    for (task_index, backbone_index), template in reversed(readers.items()):
        # There is no commonest class of texts, and none to count words for.
        if tasks[task_index].kind != "classification":
            continue
        stated = settings.backbones[backbone_index].objective
        objective = outlines[backbone_index].objective if stated == "auto" else stated
        first = min(b for t, b in readers if t == task_index) == backbone_index
        for variant in [*(alone if first else ()), untuned]:
            for scale in settings.scales:
                trial = replace(
                    # One seed: neither counting classes nor an untuned model depends on it.
                    template, variant=variant, scale=scale, seed=settings.seeds[0], objective=objective, baseline=True,
                    fraction=1.0, steps=None, among_backbones=template.among_backbones and variant is untuned,
                )  # fmt: skip
                key = (task_index, backbone_index, scale, trial.seed, variant.label)
                if key not in listed:
                    added.setdefault(trial.identifier, trial)
    return list(added.values())


def fitting(settings: StudySettings, tasks: Sequence[Task]) -> Callable[[Trial], bool]:
    """Whether a search may offer a trial's settings: those that `check` would refuse, or whose virtual tokens take more than
    `MOST_VIRTUAL` of the positions, it may not."""
    outlines = [outline_of(one.name, one.trust_remote_code) for one in settings.backbones]
    screening = _Screening(settings, outlines, tasks)

    def fits(trial: Trial) -> bool:
        positions = outlines[trial.backbone_index].positions
        added = sum(method.added_tokens for method in trial.variant.build())
        if positions is not None and added > MOST_VIRTUAL * positions:
            return False
        try:
            return bool(screening.split([trial])[0])
        except UserError:  # layers that the only backbone lacks
            return False

    return fits


def absent_methods(settings: StudySettings, trials: Sequence[Trial]) -> list[str]:
    """Labels of methods that a study names and that run on none of its backbones and tasks."""
    running = {trial.variant.label for trial in trials}
    return [variant.label for variant in variants(settings.methods) if variant.label not in running]


def _wanted(backbones: Sequence[BackboneSettings], listed: Sequence[Trial]) -> list[Trial]:
    """Trials of methods that their backbone is for, where a study says so: a large one need not try all that a small one does.

    Raises:
        UserError: a backbone names a method that there is not, or that the study does not list.
    """
    wanted = [None if b.methods is None else {method_class(name).name for name in b.methods} for b in backbones]
    used = {variant: {method.name for method in variant.build()} for variant in {trial.variant for trial in listed}}
    known = sorted(set().union(*used.values()))
    for backbone, names in zip(backbones, wanted, strict=True):
        for name in sorted((names or set()) - set(known)):
            raise unknown_name(
                f"method of backbone {backbone.name!r}", name, known, hint="List it under `methods:` as well."
            )
    return [
        trial for trial in listed if (names := wanted[trial.backbone_index]) is None or used[trial.variant] <= names
    ]


def _check_names_of_tasks(backbones: Sequence[BackboneSettings], tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for name in names:
        # tables, charts and comparisons tell tasks apart by their names
        if names.count(name) > 1:
            raise UserError(
                f"{names.count(name)} tasks are called {name!r}, and their scores would stand in one table.",
                hint="Give one another name: tasks: [..., {data: FILE, name: NAME}]",
            )
    for backbone in backbones:
        for name in backbone.tasks or ():
            if name not in names:
                raise unknown_name(f"task of backbone {backbone.name!r}", name, names)


def _pairs(
    backbones: Sequence[BackboneSettings], outlines: Sequence[Outline], tasks: Sequence[Task]
) -> list[tuple[int, int, Objective, bool]]:
    """Each task with each backbone that can read it: (task index, backbone index, objective, whether there are others)."""
    pairs: list[tuple[int, int, Objective, bool]] = []
    for t, task in enumerate(tasks):
        readers = [
            b
            for b, (wanted, outline) in enumerate(zip(backbones, outlines, strict=True))
            # Pictures for vision models and text for all others: nothing here reads both.
            if (outline.kind == "vision") == (task.modality == "image")
            and (wanted.tasks is None or task.name in wanted.tasks)
        ]
        if not readers:
            vision = task.modality == "image"
            needed = "a vision backbone (for example tiny-vit)" if vision else "a backbone that reads text"
            raise UserError(f"task {task.name!r} needs {needed}; the study has {', '.join(b.name for b in backbones)}.")
        for b in readers:
            stated = backbones[b].objective
            pairs.append((t, b, outlines[b].objective if stated == "auto" else stated, len(readers) > 1))
    return pairs


@dataclass(frozen=True)
class _Case:
    """What decides whether a trial can work: trials that differ in scale and seed alone are one case."""

    task_index: int
    backbone_index: int
    objective: Objective
    variant: Variant


class _Screening:
    """Tells trials that can work from those that cannot, each case once: a study may list thousands of trials."""

    def __init__(self, settings: StudySettings, outlines: Sequence[Outline], tasks: Sequence[Task]) -> None:
        self.backbones, self.outlines, self.tasks = settings.backbones, outlines, tasks
        self._anatomies: dict[tuple[int, Objective], Anatomy] = {}
        self._methods: dict[Variant, list[Method[Any]]] = {}
        self._verdicts: dict[_Case, tuple[Objective, str | None]] = {}
        self._whole: dict[str, list[Method[Any]]] = {}
        """Methods by label; they are listed before their ablations."""

    def split(self, listed: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
        """(those that can work, why others were left out).

        A method that does not fit leaves the others alone, also where there is one backbone and one task.
        """
        trials, left_out = [], []
        for trial in listed:
            case = _Case(trial.task_index, trial.backbone_index, trial.objective, trial.variant)
            if case not in self._verdicts:
                self._verdicts[case] = self._verdict(trial)
            objective, problem = self._verdicts[case]
            if problem is None:
                trials.append(trial if objective == trial.objective else replace(trial, objective=objective))
            else:
                left_out.append(problem)
        return trials, left_out

    def _verdict(self, trial: Trial) -> tuple[Objective, str | None]:
        """The objective of a trial, and why it cannot work, or None."""
        if trial.variant not in self._methods:
            self._methods[trial.variant] = trial.variant.build()
        methods = self._methods[trial.variant]
        if trial.trains and self.backbones[trial.backbone_index].device_map is not None:
            raise refuse_training(f"method {trial.variant.label!r} trains on {trial.backbone!r}")
        trial = replace(trial, objective=objective_of(methods, trial.objective))
        return trial.objective, (
            self._meaningless(trial, methods) or self._nowhere(trial, methods) or self._unchanged(trial, methods)
        )

    def _meaningless(self, trial: Trial, methods: Sequence[Method[Any]]) -> str | None:
        """Why a method and a backbone, or a task, have nothing to do with each other, or None."""
        kind, task, label = self.outlines[trial.backbone_index].kind, self.tasks[trial.task_index], trial.variant.label
        if trial.answers_alone:
            return _unreadable(task, label, methods)
        for method in methods:
            if kind not in method.backbone_kinds:
                works = ", ".join(method.backbone_kinds)
                return f"method {method.name!r} has no meaning on {kind} backbones ({trial.backbone}); it works on {works}."
        positions, added = self.outlines[trial.backbone_index].positions, sum(method.added_tokens for method in methods)
        if positions is not None and added >= positions - 1:  # one token of the row at least, and one of the answer
            return f"{label}: {added:,} virtual tokens leave no room for a row; {trial.backbone} has {positions:,} positions."
        if trial.solved and len(methods) > 1:
            return (
                f"{label}: a solved method reads the frozen backbone and cannot be combined with others; a trained head begins "
                "at the solved one with training: {head_start: probe}."
            )
        template = 0 if (prompting := prompting_of(methods)) is None else prompting.template
        for part in (*task.parts, *task.held_out) if isinstance(task, Mixture) else (task,):
            if template > (most := len(part.extra_templates)):
                has = f"prompts 0 to {most}" if most else "one prompt, 0"
                return f"{label}: task {part.name!r} has {has}; template {template:,} is none of them."
        if trial.objective == "classification" and task.kind != "classification":
            return f"method {label!r} on {trial.backbone!r} scores classes; task {task.name!r} asks for text."
        if trial.objective == "classification" and not trial.trains:
            return f"method {label!r} needs a backbone that writes text; {trial.backbone!r} scores classes."
        return None

    def _nowhere(self, trial: Trial, methods: Sequence[Method[Any]]) -> str | None:
        """Why the sites that methods ask for are not on a backbone, or None.

        Raises:
            UserError: a misspelt role, or layers that a study's only backbone lacks: then its file is wrong.
        """
        for method in methods:
            if method.capabilities.trains:
                try:
                    method.check(self._anatomy(trial))
                    method.sites(self._anatomy(trial))
                    if (wrong := method.mistake(self._anatomy(trial))) is not None:
                        return f"{trial.variant.label}: {wrong}"
                    if (larger := _larger_than_all(method, self._anatomy(trial))) is not None:
                        return f"{trial.variant.label}: {larger}"
                except NothingSelected as error:
                    return f"{trial.variant.label}: {error.message}"
                except NoSuchSite as error:
                    # With several backbones a layer may exist in one and not in another, which is no mistake.
                    if len(self.backbones) == 1:
                        raise
                    return f"{trial.variant.label}: {error.message}"
                except UserError as error:
                    return f"{trial.variant.label}: {error.message}"
        return None

    def _unchanged(self, trial: Trial, methods: list[Method[Any]]) -> str | None:
        """Why an ablation is none: it leaves the method at all sites that it had."""
        if trial.variant.ablation is None:
            self._whole[trial.variant.label] = methods
            return None
        whole = self._whole.get(trial.variant.ablation[0], [])
        now, before = ([method.sites(self._anatomy(trial)) for method in some] for some in (methods, whole))
        # Compared by sites, not by text: "drop cross_attn" on a decoder is another text and the same method.
        return None if now != before else f"{trial.variant.label}: changes nothing, the method is not there."

    def _anatomy(self, trial: Trial) -> Anatomy:
        key = trial.backbone_index, trial.objective
        if key not in self._anatomies:
            wanted = self.backbones[trial.backbone_index]
            self._anatomies[key] = anatomy_without_weights(wanted.name, trial.objective, wanted.trust_remote_code)
        return self._anatomies[key]


def _larger_than_all(method: Method[Any], anatomy: Anatomy) -> str | None:
    """What is wrong where a method would train many times what the backbone has, so that no machine would hold both."""
    sites, whole = method.sites(anatomy), anatomy.at("model")[0].parameters
    trained = sum(method.count(site) for site in sites) + method.count_shared(sites, anatomy)
    if trained <= MOST_OF_BACKBONE * whole:
        return None
    return f"it would train {trained:,} numbers, more than {MOST_OF_BACKBONE} times the {whole:,} of the backbone."


def _unreadable(task: Task, label: str, methods: Sequence[Method[Any]]) -> str | None:
    """Why a baseline cannot answer a task, or None."""
    if len(methods) > 1:
        return f"{label}: a baseline answers without the backbone and cannot be combined with others."
    if task.kind != "classification":
        return f"method {label!r} scores classes; task {task.name!r} asks for text."
    if task.modality not in methods[0].capabilities.modalities:
        return f"method {label!r} cannot read pictures ({task.name})."
    return None


def _too_few_rows(settings: StudySettings, tasks: Sequence[Task]) -> list[str]:
    """A sentence on every scale that a task has not enough training rows for."""
    asked = [scale for scale in settings.scales if scale is not None]
    notes = []
    for task in tasks:
        have = len(task.load()["train"])  # all rows too: data that are not there would fail every trial
        short = sorted(scale for scale in asked if scale > have)
        if not have:
            raise UserError(f"task {task.name!r} has no training rows.")
        if short:
            which = ", ".join(f"{scale:,}" for scale in short)
            notes.append(f"{task.name} has only {have:,} training rows: scale {which} trains on all of them.")
    return notes
