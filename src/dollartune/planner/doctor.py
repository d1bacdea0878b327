"""What this machine has for tuning: versions, devices, number formats, memory, the cache, and what is not installed."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from dollartune import format as numbers
from dollartune.attachment.fast.processor import cpu_has_bf16
from dollartune.cache import cache_directory
from dollartune.files import folder_bytes
from dollartune.train.free_memory import host_memory_bytes

LIBRARIES = ("torch", "transformers", "datasets", "pydantic", "optuna", "scikit-learn")
EXTRAS = {
    "report": (("altair", "vl_convert"), "charts of reports, figures as SVG and PDF"),
    "serve": (("fastapi", "uvicorn", "prometheus_client"), "dollartune serve"),
    "ray": (("ray",), "trials side by side on several machines"),
    "quant": (("bitsandbytes", "accelerate"), "backbones in 4 bits, backbones larger than one GPU"),
    "gguf": (("gguf",), "GGUF files as backbones"),
    "notebook": (("ipykernel",), "notebooks"),
}
"""Extra -> the modules that it brings, and what for."""
LOW_DISK_BYTES = 2_000_000_000
"""Below this a study with checkpoints of a small backbone may fill the disk; full tuning of 135 M parameters writes 1.6 GB."""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the examination."""

    what: str
    state: Literal["ok", "missing", "warning"]
    """`missing`: something optional is not there; `warning`: something will go wrong or be slow."""
    found: str
    next: str = ""
    """The command that mends it."""


def examine() -> list[Diagnosis]:
    """Everything that is looked at, in the order in which it matters."""
    return [*_versions(), *_devices(), *_places(), *_extras()]


def _versions() -> list[Diagnosis]:
    rows = [
        Diagnosis("dollartune", "ok", version("dollartune")),
        Diagnosis("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    for name in LIBRARIES:
        try:
            rows.append(Diagnosis(name, "ok", version(name)))
        except PackageNotFoundError:
            rows.append(Diagnosis(name, "warning", "not installed", f"pip install {name}"))
    return rows


def _devices() -> list[Diagnosis]:
    import torch

    # Those that this process may use: in a container they are often fewer than the machine's.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = [
        Diagnosis("processor", "ok", f"{cores} cores, PyTorch uses {torch.get_num_threads()} threads"),
        Diagnosis("memory", "ok", numbers.size(host_memory_bytes())),
    ]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        rows.append(Diagnosis(f"GPU {index}", "ok", f"{facts.name}, {numbers.size(facts.total_memory)}"))
    if not torch.cuda.is_available():
        rows.append(Diagnosis("GPU", "missing", "none that PyTorch can use: everything runs on the processor"))
        fast = cpu_has_bf16()
    else:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    words = (
        "multiplied in hardware"
        if fast
        else "not in hardware: models are tuned in fp32, which takes about twice as long"
    )
    rows.append(Diagnosis("bf16", "ok" if fast else "missing", words))
    return rows


def _places() -> list[Diagnosis]:
    cache = cache_directory()
    # It may not have been made yet; it will lie on the disk of the folder above.
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    size = numbers.size(folder_bytes(cache)) if cache.is_dir() else "nothing yet"
    here = shutil.disk_usage(".").free
    return [
        Diagnosis("cache", "ok" if writable else "warning", f"{cache}: {size}{'' if writable else ', not writable'}",
                "" if writable else "export DOLLARTUNE_CACHE=FOLDER"),
        Diagnosis("disk", "ok" if min(free, here) > LOW_DISK_BYTES else "warning", f"{numbers.size(here)} free in this folder"),
    ]  # fmt: skip


def _extras() -> list[Diagnosis]:
    rows = []
    for extra, (modules, what) in EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if absent:
            lacking = f"{', '.join(absent)} not installed: no {what}"
            rows.append(Diagnosis(extra, "missing", lacking, f"pip install 'dollartune[{extra}]'"))
        else:
            rows.append(Diagnosis(extra, "ok", what))
    return rows
