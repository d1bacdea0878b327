"""Modules and names of 0.1 that moved: for one version, importing the old one warns with the new name and works on.

Delete this file, its test and the call of `install()` in `dollartune/__init__.py` with 0.3.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "dollartune"
MOVED = {
    "attach.adapter": "attachment.adapter",
    "attach.attached": "attachment.attached",
    "attach.attention": "attachment.attention",
    "attach.compiled": "attachment.fast.compile",
    "attach.cpu_attention": "attachment.fast.cpu_attention",
    "attach.cpu_linear": "attachment.fast.cpu_linear",
    "attach.generating": "attachment.generating",
    "attach.hooks": "attachment.hooks",
    "attach.inputs": "attachment.inputs",
    "attach.keeping": "attachment.fast.decode_cache",
    "attach.kernels": "attachment.fast.kernels",
    "attach.lean": "attachment.fast.unused_outputs",
    "attach.merging": "attachment.merging",
    "attach.narrowing": "attachment.fast.last_layer_rows",
    "attach.placing": "attachment.device_placement",
    "attach.recompute": "attachment.fast.recompute",
    "attach.routing": "attachment.routing",
    "attach.sharding": "attachment.fsdp",
    "attach.skipping": "attachment.fast.frozen_prefix",
    "attach.stacking": "attachment.stacking",
    "attach.twins": "attachment.fast.shared_weight_replica",
    "attach.weights": "backbones.weights",
    "backbones.counting": "attachment.counting",
    "backbones.placing": "backbones.device_map",
    "budget.alarm": "budget.deadline",
    "budget.batches": "planner.batches",
    "budget.calibration": "planner.calibration",
    "budget.meters": "budget.peak_memory",
    "budget.packed": "planner.nf4_meta",
    "budget.places": "planner.hardware",
    "budget.planner": "planner.trial_plan",
    "budget.rehearsal": "planner.dry_run",
    "budget.remembered": "planner.meta_kernel_cache",
    "budget.speed": "planner.roofline",
    "budget.tracing": "planner.op_trace",
    "cli.handing": "cli.export",
    "cli.running": "cli.run",
    "cli.tuning": "cli.tune",
    "cli.using": "cli.predict",
    "export.handing": "export.handover",
    "export.reading": "untrusted_files",
    "report.charts.look": "report.charts.style",
    "report.charts.money": "report.charts.pareto",
    "report.charts.use": "report.charts.serving_cost",
    "report.marks": "report.svg_marks",
    "report.speed": "report.learning_speed",
    "report.use": "report.serving_cost",
    "report.wording": "report.text",
    "report.writing": "report.write",
    "serve.addresses": "serve.routes",
    "serve.answering": "serve.streaming",
    "serve.gate": "serve.middleware",
    "serve.measures": "serve.metrics",
    "budget.remote": "engines.worker_account",
    "study.adapters": "engines.adapters",
    "study.allowance": "schedule.fixed",
    "study.arms": "schedule.successive_halving",
    "study.candidates": "schedule.search_space",
    "study.contest": "schedule.racing",
    "study.course": "schedule.scheduler",
    "study.engines": "engines.base",
    "study.engines.choosing": "engines.select_engine",
    "study.engines.local": "engines.local",
    "study.engines.ray": "engines.ray",
    "study.engines.ray_cluster": "engines.ray_cluster",
    "study.engines.ray_node": "engines.ray_worker",
    "study.engines.shipping": "engines.ray_worker",
    "study.fingerprints": "trials.content_hash",
    "study.forecast": "planner.study_plan",
    "study.lengths": "planner.text_lengths",
    "study.measures": "engines.extra_metrics",
    "study.money": "budget.study_budget",
    "study.pace": "planner.trial_cost",
    "study.pacing": "engines.measure_cost",
    "study.planning": "trials.expand",
    "study.race_terms": "schedule.race_plan",
    "study.racing": "schedule.successive_halving",
    "study.records": "trials.build_record",
    "study.search": "schedule.optuna_search",
    "study.searching": "schedule.search",
    "study.sharded": "study.torchrun",
    "study.shrinking": "study.downscale",
    "study.starting": "study.startup",
    "study.store": "trials.store",
    "study.trials": "trials.trial",
    "study.tuning": "tuning",
    "study.workbench": "engines.trial_context",
    "study.worker": "engines.cohort_worker",
    "train.allocator": "train.malloc",
    "train.checkpointing": "train.activation_checkpointing",
    "train.compiling": "train.compile_policy",
    "train.lanes": "train.trial_threads",
    "train.memory": "train.micro_batch",
    "train.passes": "train.forward_backward",
    "train.replaying": "train.cuda_graphs",
    "train.trunk": "train.frozen_prefix_cache",
}
"""Module of 0.1 -> where its contents are now, both without `dollartune.`."""

RENAMED = {
    "budget.study_budget": {"promise_of": "budget_of"},
    "engines.base": {"Unit": "Cohort", "Grant": "TimeLimit", "Desk": "Driver"},
    "engines.cohort_worker": {"Worker": "CohortWorker"},
    "engines.extra_metrics": {"Measures": "ExtraMetrics"},
    "engines.trial_context": {
        "Workbench": "TrialContext",
        "Workshop": "ContextCache",
    },
    "planner.trial_cost": {"Pace": "TrialCost"},
    "export.handover": {"DTYPES": "backbones.weights:DTYPES"},
    "schedule.optuna_search": {"Search": "OptunaSearch"},
    "schedule.race_plan": {"Terms": "RacePlan"},
    "schedule.scheduler": {"Course": "Scheduler"},
    "schedule.search_space": {"Candidates": "SearchSpace"},
    "schedule.successive_halving": {
        "Racing": "SuccessiveHalving",
        "Job": "RaceJob",
        "Place": "ArmResult",
        "Outcome": "JobOutcome",
    },
    "serve.metrics": {"Measures": "ServerMetrics"},
    "serve.middleware": {"Gate": "LimitsMiddleware"},
    "trials.store": {"write_atomically": "files:write_atomically"},
    "train.compile_policy": {"Compiling": "CompilePolicy"},
    "train.cuda_graphs": {"Replays": "CudaGraphs"},
    "train.forward_backward": {"Passes": "ForwardBackward"},
    "train.frozen_prefix_cache": {"Trunk": "FrozenPrefixCache"},
    "train.micro_batch": {
        "Room": "MemoryBatchLimit",
        "free_bytes": "train.free_memory:free_bytes",
        "is_out_of_memory": "train.out_of_memory:is_out_of_memory",
    },
    "train.trial_threads": {"Lanes": "TrialThreads"},
}
"""Module of today -> name of 0.1 -> name of today, with its module before a colon where that is another. Asked for only through
a module of 0.1, so that today's have no aliases."""


class MovedModules:
    """Finds modules of 0.1. Stands last among Python's finders, so that it is asked only for what does not exist.

    A finder and a loader by what it has, not by `importlib.abc`: importing that takes longer than the rest of the package.
    """

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        old = fullname.removeprefix(f"{PACKAGE}.")
        if old == fullname:
            return None
        if old == "attach":
            # Importing a package binds it to its parent under its own name: were this one forwarded, `from dollartune
            # import attach` would give a module from then on, and no longer the function.
            raise ModuleNotFoundError(_attach_moved(), name=fullname)
        if old not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=any(name.startswith(f"{old}.") for name in MOVED))  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        new = f"{PACKAGE}.{MOVED[module.__name__.removeprefix(f'{PACKAGE}.')]}"
        warnings.warn(
            f"{module.__name__} is {new} now; the old name goes with the next version.",
            DeprecationWarning,
            stacklevel=2,  # the frame that imports: Python leaves its own import machinery out of the count
        )
        today = import_module(new)

        def forward(name: str) -> Any:
            renamed = RENAMED.get(new.removeprefix(f"{PACKAGE}."), {}).get(name)
            if renamed is None:
                return getattr(today, name)
            elsewhere, _, now = renamed.rpartition(":")
            home = f"{PACKAGE}.{elsewhere}" if elsewhere else new
            warnings.warn(f"{name} is {home}.{now} now.", DeprecationWarning, stacklevel=2)
            return getattr(import_module(home), now)

        # A module of its own that asks today's for each name. Today's module itself under a second name would get
        # this loader written into its `__spec__`.
        module.__getattr__ = forward  # type: ignore[method-assign]
        module.__dir__ = lambda: dir(today)  # type: ignore[method-assign]


def _attach_moved() -> str:
    moved = ", ".join(
        f"{old} -> {new.removeprefix('attachment.')}" for old, new in MOVED.items() if old.startswith("attach.")
    )
    return (
        "dollartune.attach is a function (`from dollartune import attach`); the package of that name in 0.1 is "
        f"dollartune.attachment now. Its modules: {moved.replace('attach.', '')}."
    )


def install() -> None:
    """Adds the finder, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
