"""What a study will take before a second of it is paid: trial by trial, and in sum.

    plan_study(settings) -> StudyPlan(trials: TrialPlan ...)

Works from configs alone (`calibration=False`, a named machine); on this machine, with weights at hand, a few real steps
make it sharper, once per machine and backbone.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.backbones.loading import Backbone, load_processor, read_shape
from dollartune.backbones.locate import resolve
from dollartune.budget.prices import find_price, machine, price_note
from dollartune.budget.study_budget import memory_of
from dollartune.methods.registry import with_head
from dollartune.planner.design import design_notes
from dollartune.planner.dry_run import Bare, bare_backbone
from dollartune.planner.hardware import Hardware, named_hardware, this_hardware
from dollartune.planner.text_lengths import StatedLengths, task_shape
from dollartune.planner.trial_plan import Estimate, EvaluationPlan, Misfit, Planner, baseline_estimate, refusal
from dollartune.train.optimizers import check_optimizer
from dollartune.train.precision import choose_dtype, default_device
from dollartune.trials.expand import plan
from dollartune.trials.trial import Trial, room_for_virtual_tokens

if TYPE_CHECKING:
    from dollartune.backbones.kind import Objective
    from dollartune.budget.prices import Machine
    from dollartune.config import BackboneSettings, StudySettings
    from dollartune.methods.base import Method
    from dollartune.planner.roofline import Speed
    from dollartune.tasks.base import Task

LOAD_BYTES_PER_SECOND = 0.4e9
"""Reading weights from a disk and copying them to where they are computed with: a cloud's network disk, the slowest of the
two."""
LOAD_SECONDS = 2.0
"""Per backbone, before the first weight is read: tokenizer, config and the modules of transformers."""
LOADING_MAY_TAKE = 2
"""Times the planned seconds of loading that the upper end of a study's range allows: a cold page cache halves a disk's speed."""
HALF_PAYS = 1.5
"""Times the fp32 rate from which a machine's peak in bf16 says that it computes in it, and does not widen each operand first."""


@dataclass(frozen=True)
class TrialPlan:
    """What one trial is expected to take."""

    trial: Trial
    estimate: Estimate
    dollars: float
    misfit: Misfit | None = None
    """Why it is refused; None where it fits."""

    @property
    def seconds(self) -> float:
        """Tuning and evaluation, without loading the backbone, which trials share."""
        return self.estimate.seconds

    @property
    def fits(self) -> bool:
        return self.misfit is None


@dataclass(frozen=True)
class StudyPlan:
    """All trials of a study, where they would run, and what it comes to."""

    trials: tuple[TrialPlan, ...]
    hardware: Hardware
    load_seconds: float
    """Loading each backbone once."""
    notes: tuple[str, ...]
    """What was supposed or left out."""
    tasks: tuple[Task, ...] = ()

    @property
    def seconds(self) -> float:
        return self.load_seconds + sum(plan.seconds for plan in self.trials if plan.fits)

    @property
    def range_seconds(self) -> tuple[float, float]:
        """Least and most that the study may take."""
        estimates = [plan.estimate for plan in self.trials if plan.fits]
        return (
            self.load_seconds + sum(estimate.low_seconds for estimate in estimates),
            LOADING_MAY_TAKE * self.load_seconds + sum(estimate.high_seconds for estimate in estimates),
        )

    @property
    def dollars(self) -> float:
        return self.hardware.dollars(self.seconds)

    @property
    def refused(self) -> tuple[TrialPlan, ...]:
        return tuple(plan for plan in self.trials if not plan.fits)

    def of(self, identifier: str) -> TrialPlan | None:
        """The plan of a trial by its identifier."""
        return next((plan for plan in self.trials if plan.trial.identifier == identifier), None)

    def seconds_by_group(self) -> dict[str, float]:
        """Seconds of each method, all its trials and seeds."""
        seconds: dict[str, float] = {}
        for planned in self.trials:
            if planned.fits:
                group = planned.trial.variant.group
                seconds[group] = seconds.get(group, 0.0) + planned.seconds
        return seconds


def plan_study(
    settings: StudySettings,
    machine_name: str | None = None,
    price: str | float | None = None,
    tokens: str | None = None,
    calibration: bool = True,
    told: Callable[[str], None] = lambda text: None,
) -> StudyPlan:
    """Plans every trial of a study.

    Args:
        machine_name: a row of the table of machines; None is this machine.
        price: dollars per hour, over the budget's and the machine's own.
        tokens: lengths to suppose instead of the data's, `300` or `300+40` (prompt + answer).
        calibration: measure a few real steps on this machine where weights are at hand.
        told: hears what is being done.

    Raises:
        UserError: what `plan` refuses, an unknown machine, or lengths that nobody knows.
    """
    stated = None if tokens is None else StatedLengths.parse(tokens)
    trials, tasks, notes = plan(settings, read_rows=False)
    notes += design_notes(settings, trials, tasks)
    return _StudyPlanner(settings, tasks, machine_name, price, stated, calibration, told).plan(trials, notes)


class _StudyPlanner:
    """Keeps what trials share: backbones without weights, planners by task, speeds."""

    def __init__(
        self,
        settings: StudySettings,
        tasks: Sequence[Task],
        machine_name: str | None,
        price: str | float | None,
        stated: StatedLengths | None,
        calibration: bool,
        told: Callable[[str], None],
    ) -> None:
        self.settings, self.tasks, self.stated, self.told = settings, tasks, stated, told
        self.machine = machine(machine_name) if machine_name is not None else None
        # A named machine cannot be measured from here.
        self.calibration = calibration and self.machine is None
        if self.machine is None or self.machine.kind != "cuda":  # what a named GPU needs is not asked of this machine
            device = default_device().type if self.machine is None else self.machine.kind
            check_optimizer(settings.training.optimizer, device)
        budget = settings.budget
        wanted = price if price is not None else budget.price if budget is not None else None
        named = machine_name or (budget.machine if budget is not None else None)
        self.price = find_price(wanted, named)
        priced = price_note(named, wanted, datetime.date.today())
        self.notes: list[str] = [] if priced is None else [priced]
        self.reserve = 0
        self._bare: dict[tuple[Any, ...], Bare] = {}
        self._planners: dict[tuple[Any, ...], Planner] = {}
        self._machines: dict[tuple[Any, ...], Hardware] = {}
        self._estimates: dict[tuple[Any, ...], tuple[Estimate, Misfit | None]] = {}

    def plan(self, trials: Sequence[Trial], notes: Sequence[str]) -> StudyPlan:
        """All trials; those that differ in their seed alone are estimated once."""
        # One number for all trials, as the study has it: inputs are cut alike for every method.
        self.reserve = room_for_virtual_tokens(trial.variant for trial in trials)
        planned = []
        for trial in trials:
            # Without the seed: it changes no shape.
            key = (trial.task_index, trial.backbone_index, trial.objective, trial.scale, trial.variant)
            if key not in self._estimates:
                self.told(f"{trial.task}: {trial.label}")
                self._estimates[key] = self._estimate(trial)
            estimate, misfit = self._estimates[key]
            hardware = self._hardware(trial)
            planned.append(TrialPlan(trial, estimate, hardware.dollars(estimate.seconds), misfit))
        # 4-bit copies that were made to say what would fit (`refusal`) are not loaded by the study.
        loads = {k: bare for k, bare in self._bare.items() if k[-1] == self.settings.backbones[k[0]].quantize}
        # Once per backbone: trials after the first find it loaded.
        seconds = sum(load_seconds(_bytes(bare)) for bare in loads.values())
        hardware = self._hardware(trials[0])
        return StudyPlan(
            tuple(planned), hardware, seconds, tuple(dict.fromkeys([*notes, *self.notes])), tuple(self.tasks)
        )

    def _estimate(self, trial: Trial) -> tuple[Estimate, Misfit | None]:
        if trial.answers_alone:
            return baseline_estimate(), None
        methods = self._methods(trial)
        planner = self._planner(trial)
        estimate = planner.estimate(methods, trial.scale)
        wanted = self.settings.backbones[trial.backbone_index]
        # A function and no planner yet: a copy in 4 bits is made only where the backbone does not fit as it is.
        packed = None
        # 4 bits are proposed only where weights stay frozen: packed ones have no gradient.
        if wanted.quantize == "none" and not any({"model", "layer"} & set(method.kinds) for method in methods):
            packed = self._planner
        if wanted.device_map is not None:
            self.notes.append(
                f"{wanted.name}: spread by device_map; whether it fits is not checked, and seconds are those of one device."
            )
            return estimate, None
        # After the device map, which spreads over what this number does not know.
        if estimate.peak_bytes <= planner.hardware.usable_bytes:
            return estimate, None
        return estimate, refusal(planner, methods, estimate, packed(trial, "nf4") if packed is not None else None)

    def _methods(self, trial: Trial) -> list[Method[Any]]:
        """As the trial attaches them: a classification trial also tunes the head."""
        methods = trial.variant.build()
        processor = self._planner(trial).backbone.processor
        return with_head([_resolved(method, processor) for method in methods], trial.objective)

    def _planner(self, trial: Trial, quantize: str | None = None) -> Planner:
        key = (trial.task_index, trial.backbone_index, trial.objective, quantize)
        if key not in self._planners:
            task = self.tasks[trial.task_index]
            bare = self._backbone(trial, task, quantize)
            shape, notes = task_shape(task, bare, self.settings, self.reserve, self.stated)
            self.notes += notes
            if shape.source != "the data":
                self.notes.append(f"{task.name}: lengths from {shape.source}.")
            evaluation = self.settings.evaluation
            wanted = EvaluationPlan(evaluation.rows, evaluation.batch_size, evaluation.free_generation)
            self._planners[key] = Planner(bare, shape, self.settings.training, wanted, self._hardware(trial))
        return self._planners[key]

    def _backbone(self, trial: Trial, task: Task, quantize: str | None) -> Bare:
        wanted = self.settings.backbones[trial.backbone_index]
        quantize = quantize or wanted.quantize
        classes = len(task.labels) if trial.objective == "classification" else 0
        key = (trial.backbone_index, trial.objective, classes, quantize)
        if key not in self._bare:
            dtype = self._dtype(wanted)
            bare = bare_backbone(wanted.name, trial.objective, dtype, quantize, classes, wanted.trust_remote_code)
            bare.processor = local_processor(wanted)
            if bare.processor is None and bare.kind != "vision":
                self.notes.append(f"{wanted.name}: its tokenizer is not on this machine.")
            self._bare[key] = bare
        return self._bare[key]

    def _dtype(self, wanted: BackboneSettings) -> Any:
        import torch

        precision = self.settings.training.precision
        if self.machine is not None and precision == "auto":
            return torch.bfloat16 if half_pays(self.machine) else torch.float32
        config = read_shape(wanted.name, wanted.trust_remote_code)
        width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0))
        return choose_dtype(self.settings.training, width, default_device())

    def _hardware(self, trial: Trial) -> Hardware:
        """Where it would run; a calibration belongs to one backbone."""
        if self.machine is not None:
            key: tuple[Any, ...] = ()
            if key not in self._machines:
                self._machines[key] = named_hardware(self.machine, self.price, memory_of(self.settings))
            return self._machines[key]
        key = (trial.backbone_index, trial.objective)
        if key not in self._machines:
            self._machines[key] = this_hardware(self._speed(trial), self.price, memory_of(self.settings))
        return self._machines[key]

    def _speed(self, trial: Trial) -> Speed:
        from dollartune.planner import calibration

        wanted = self.settings.backbones[trial.backbone_index]
        task = self.tasks[trial.task_index]
        bare = self._backbone(trial, task, None)
        path = calibration.calibration_path(bare, wanted.quantize)
        if (kept := calibration.kept_speed(path)) is not None:
            return kept
        if not self.calibration:
            return calibration.prior_speed()
        if (missing := _no_weights(wanted)) is not None:
            self.notes.append(f"{wanted.name}: not measured, {missing}; seconds are those of a machine like this one.")
            return calibration.prior_speed()
        self.told(f"measuring a few steps of {wanted.name} on this machine")
        backbone = _load(wanted, trial.objective, task, bare)
        shape, _ = task_shape(task, bare, self.settings, self.reserve, self.stated)
        # Measured up to the longest row of the data; beyond is nothing to predict.
        longest = max(prompt + answer for prompt, answer in shape.lengths)
        speed, measured = calibration.calibrate(backbone, bare, self.settings.training, longest)
        calibration.keep_speed(path, speed, measured)
        return speed


def load_seconds(weight_bytes: int) -> float:
    """What loading a backbone of so many bytes is expected to take."""
    return LOAD_SECONDS + weight_bytes / LOAD_BYTES_PER_SECOND


def half_pays(machine: Machine) -> bool:
    """Whether a machine of the table trains in bf16 where the study leaves it to us."""
    return machine.half_flops > HALF_PAYS * machine.single_flops


def _load(wanted: BackboneSettings, objective: Objective, task: Task, bare: Bare) -> Backbone:
    from dollartune.backbones.loading import load_backbone

    labels = task.labels if objective == "classification" else ()
    return load_backbone(
        wanted.name, objective, labels, bare.dtype, default_device(), wanted.quantize, wanted.trust_remote_code,
        wanted.random_weights_seed,
    )  # fmt: skip


def _resolved(method: Method[Any], processor: Any) -> Method[Any]:
    """The method with what its tokenizer fills in; without one, as it is."""
    return method if processor is None else method.resolve(processor)


def local_folder(name: str) -> Path | None:
    """Where a backbone's files are on this machine; None if they would have to be fetched."""
    path = Path(resolve(name))
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")  # a path, None, or a marker that the hub has no such file
    return Path(cached).parent if isinstance(cached, str) else None


def local_processor(wanted: BackboneSettings) -> Any:
    """A backbone's tokenizer, if it is on this machine; None if it would have to be fetched."""
    if local_folder(wanted.name) is None:
        return None
    return load_processor(wanted.name, read_shape(wanted.name, wanted.trust_remote_code))


def _no_weights(wanted: BackboneSettings) -> str | None:
    """Why steps cannot be measured, or None."""
    if wanted.device_map is not None:
        return "a device_map spreads it"
    if wanted.random_weights_seed is not None:
        return None
    folder = local_folder(wanted.name)
    if folder is None:
        return "its weights are not on this machine"
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return None if has_weights else "there are no weights beside its config.json"


def _bytes(bare: Bare) -> int:
    model = bare.model
    return sum(int(t.untyped_storage().nbytes()) for t in (*model.parameters(), *model.buffers()))
