"""DollarTune: what can fine-tuning accomplish for a dollar?

    from dollartune import Study, attach, tune
    from dollartune.methods import LoRA

    tuned = tune("reviews.csv", budget="5 min")                                  # a file or a frame in, an adapter out
    Study(backbone="tiny-decoder", task="demo_library", methods=["zero_shot", "lora"]).run().leaderboard()
    model = attach(model, LoRA(rank=8, where="self_attn.q self_attn.v"))         # a module for any training loop

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dollartune._moved import install

if TYPE_CHECKING:
    from dollartune.backbones.loading import load_backbone
    from dollartune.export.opening import open_adapter
    from dollartune.study.api import Study, open_study
    from dollartune.tasks.registry import load_task
    from dollartune.tunable import attach
    from dollartune.tuned import tune

_HOMES = {
    "Study": "dollartune.study.api",
    "attach": "dollartune.tunable",
    "load_backbone": "dollartune.backbones.loading",
    "load_task": "dollartune.tasks.registry",
    "open_adapter": "dollartune.export.opening",
    "open_study": "dollartune.study.api",
    "tune": "dollartune.tuned",
}
__all__ = ["Study", "attach", "load_backbone", "load_task", "open_adapter", "open_study", "tune"]


install()  # after all else: names of 0.1 must be found only where today's are not


def __dir__() -> list[str]:
    """Names that load on first use, so that completion finds them."""
    ours = {name for name in globals() if name.startswith("__") or f"dollartune.{name}" in sys.modules}
    return sorted({*ours, *_HOMES, "__version__"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dollartune")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
