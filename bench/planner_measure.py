"""ExtraMetrics real training steps for the planner's benchmark, in a process of its own; prints JSON as its last line.

    python bench/planner_measure.py memory NUMBER FOLDER     peak of one setting
    python bench/planner_measure.py seconds MODEL FOLDER     steps of a backbone's settings, and its calibration

FOLDER holds (and keeps) the backbones' weights, random ones in fp32, as a hub would give them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from planner_settings import TRAINING, Setting, config_of, settings

from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.budget.peak_memory import PeakMemory, resident_bytes
from dollartune.planner.calibration import calibrate, timed_steps
from dollartune.planner.dry_run import BatchShape, bare

STEPS_FOR_MEMORY = 6
LONGEST = 192
"""Tokens of the longest input in the settings: what `plan` would know from the data."""


def weights(name: str, folder: Path, small: bool = False) -> Path:
    """The backbone's checkpoint; a process of its own makes it, so that this one's memory stays as it was."""
    plain = name.removesuffix(" in bf16")  # what is stored is fp32
    path = folder / (f"{plain}-small" if small else plain)
    if not (path / "config.json").is_file():
        child = os.fork()
        if child == 0:
            config, auto, _ = config_of(name, small)
            torch.manual_seed(0)
            auto.from_config(config).save_pretrained(path)
            os._exit(0)
        os.waitpid(child, 0)
    return path


def loaded(name: str, dtype: torch.dtype, folder: Path) -> Backbone:
    return load_backbone(str(weights(name, folder)), config_of(name)[2], dtype=dtype)


def warm_up(setting: Setting, folder: Path) -> None:
    """A step of the same kind on one layer: whatever is loaded at first use is there before memory is measured.

    What the step freed goes back to the kernel; else training would find it, and seem to need less.
    """
    path = weights(setting.model, folder, small=True)
    backbone = load_backbone(str(path), config_of(setting.model)[2], dtype=getattr(torch, setting.dtype))
    shape = BatchShape(2, 8, 2 if setting.answer else 0)
    timed_steps(backbone, setting.methods(backbone.objective), TRAINING, shape, 1)
    del backbone
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def memory(number: int, folder: Path) -> dict[str, Any]:
    """Highest resident memory of the process during training, less what it had before the backbone was loaded."""
    setting = settings()[number]
    path = weights(setting.model, folder)
    warm_up(setting, folder)
    before = resident_bytes()
    backbone = load_backbone(str(path), config_of(setting.model)[2], dtype=getattr(torch, setting.dtype))
    with PeakMemory() as peak:
        timed_steps(backbone, setting.methods(backbone.objective), TRAINING, setting.shape, STEPS_FOR_MEMORY)
    return {"process_bytes": before, "measured_bytes": peak.host_peak_bytes - before}


def seconds(name: str, folder: Path, repeats: int = 7) -> dict[str, Any]:
    """What `plan` would measure of a backbone on this machine, and the steps of its settings."""
    chosen = [setting for setting in settings() if setting.model == name]
    dtype = getattr(torch, chosen[0].dtype)
    backbone = loaded(name, dtype, folder)
    config, auto, objective = config_of(name)
    with torch.device("meta"):
        model = auto.from_config(config)
    speed, steps = calibrate(backbone, bare(model.to(dtype), name, objective), TRAINING, LONGEST)
    measured = {
        setting.name: timed_steps(backbone, setting.methods(objective), TRAINING, setting.shape, repeats)
        for setting in chosen
    }
    calibration = [{"method": s.method, "shape": asdict(s.shape), "seconds": s.seconds} for s in steps]
    return {"speed": speed.to_json(), "calibration": calibration, "measured_seconds": measured}


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    what, which, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    found = memory(int(which), folder) if what == "memory" else seconds(which, folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
