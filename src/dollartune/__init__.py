"""DollarTune: what can fine-tuning accomplish for a dollar?

    from dollartune import Study
    from dollartune import attach
    from dollartune.methods import LoRA

    Study(backbone="tiny-decoder", task="demo_library", methods=["zero_shot", "lora"]).run().leaderboard()
    attached = attach(model, LoRA(rank=8, where="self_attn.q self_attn.v"))

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dollartune._moved import install

if TYPE_CHECKING:
    from dollartune.attachment.attached import attach
    from dollartune.backbones.loading import load_backbone
    from dollartune.export.opening import open_adapter
    from dollartune.study.api import Study, open_study
    from dollartune.tasks.registry import load_task

_HOMES = {
    "Study": "dollartune.study.api",
    "attach": "dollartune.attachment.attached",
    "load_backbone": "dollartune.backbones.loading",
    "load_task": "dollartune.tasks.registry",
    "open_adapter": "dollartune.export.opening",
    "open_study": "dollartune.study.api",
}
__all__ = ["Study", "attach", "load_backbone", "load_task", "open_adapter", "open_study"]


install()  # after all else: names of 0.1 must be found only where today's are not


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
