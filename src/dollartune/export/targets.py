"""What can serve an adapter: the peft library, vLLM, any transformers program after merging, or the server here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.anatomy import BackboneKind
    from dollartune.methods.base import Method

Format = Literal["dollartune", "peft", "lora", "merged", "gguf", "head"]
FORMATS: tuple[Format, ...] = ("dollartune", "peft", "lora", "merged", "gguf", "head")


@dataclass(frozen=True)
class Target:
    """A program that may serve an adapter."""

    name: str
    possible: bool
    reason: str


VLLM_HEADS = ("classifier", "score")
"""Heads that vLLM takes from an adapter (vllm/lora/peft_helper.py, 0.33)."""


def head_of(adapter: Adapter) -> str:
    """The name of the module that an adapter's classification head is, of several the first that vLLM does not take; empty where
    it has none."""
    names = [site.exit.rpartition(".")[2] for site, _ in adapter.items() if site.kind == "head"]
    return min(names, key=lambda name: name in VLLM_HEADS, default="")


def refused_by_weights(random_weights_seed: int | None) -> dict[str, str]:
    """Formats that leave the backbone out, and why they cannot hold an adapter of random weights; none where it has none."""
    why = "it was tuned on random weights, and whoever loads the backbone by its name gets the pretrained ones"
    return {} if random_weights_seed is None else dict.fromkeys(("peft", "lora", "head"), why)


def serving_targets(
    methods: Sequence[Method[Any]],
    head_name: str = "",
    kind: BackboneKind | None = None,
    refused: Mapping[str, str] | None = None,
) -> tuple[Target, ...]:
    """What can serve adapters of these methods, and why not what cannot.

    Args:
        head_name: of the head's module, where the adapter has one and its backbone is known.
        kind: of the backbone, where it is known.
        refused: formats that were found not to hold this adapter, and why.
    """
    refused = refused or {}
    without_head = [method for method in methods if method.saved_whole != "head"]
    head = len(without_head) < len(methods)
    trained = [method for method in without_head if method.capabilities.trains]
    missing = [method.name for method in trained if method.capabilities.peft_type is None]
    # what is saved whole (norms) fits beside the one type that a checkpoint has
    types = {method.capabilities.peft_type for method in trained if method.saved_whole is None}
    fits = not missing and bool(trained) and len(types) <= 1 and "peft" not in refused
    without = refused.get("peft") or _without_peft(missing, bool(trained))
    peft = Target("peft", fits, "export --format peft" if fits else without)
    merges = _mergeable(methods) and "merged" not in refused
    plain = fits and all(method.capabilities.vllm for method in trained) and (not head or head_name in VLLM_HEADS)
    if kind == "encoder_decoder":
        vllm = Target("vLLM", False, "it has no LoRA for encoder-decoders")
    elif plain:
        notes = "".join(method.vllm_note for method in trained)
        vllm = Target("vLLM", True, f"export --format peft, then --enable-lora{notes}")
    else:
        refusal = next((m.capabilities.vllm_refusal for m in trained if not m.capabilities.vllm), None)
        why = refusal or refused.get("peft") or f"it takes heads called {' or '.join(VLLM_HEADS)} alone"
        vllm = Target("vLLM", False, why + ("; export --format merged and serve the whole model" if merges else ""))
    merged = Target(
        "transformers, and whatever serves its models",
        merges,
        "export --format merged"
        if merges
        else refused.get("merged")
        or "no merge is exact: " + ", ".join(m.name for m in methods if not m.capabilities.mergeable),
    )
    alone = [method.name for method in methods if not method.capabilities.mixed_rows]
    here = Target(
        "dollartune serve",
        True,
        "dollartune serve BACKBONE --adapter NAME=DIR" if not alone else f"{', '.join(alone)} gets batches of its own",
    )
    return here, peft, vllm, merged


def serving_lines(
    methods: Sequence[Method[Any]],
    head_name: str = "",
    kind: BackboneKind | None = None,
    refused: Mapping[str, str] | None = None,
) -> list[str]:
    """One sentence per program; see `serving_targets`."""
    return [
        f"{target.name}: {'yes' if target.possible else 'no'}, {target.reason}"
        for target in serving_targets(methods, head_name, kind, refused)
    ]


def _mergeable(methods: Sequence[Method[Any]]) -> bool:
    return bool(methods) and all(method.capabilities.mergeable for method in methods)


def _without_peft(missing: Sequence[str], trained: bool) -> str:
    if missing:
        return f"it has no {' or '.join(missing)}"
    return "its checkpoints hold one method" if trained else "there is nothing trained beside a head"
