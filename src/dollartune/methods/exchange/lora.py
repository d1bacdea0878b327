"""Reads peft's LORA checkpoints: LoRA, rsLoRA, PiSSA, and the factors of DoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dollartune.backbones.anatomy import Site
from dollartune.errors import UserError
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, selections

_UNREADABLE = {
    "lora_bias": "biases of its own",
    "use_qalora": "QALoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "parameters as targets",
    "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "use_bdlora": "block-diagonal factors",
}
"""Settings of a peft LoRA that change its function and have no counterpart here."""


def read_lora(found: PeftCheckpoint) -> list[ImportedPart]:
    """The `lora` parts of a checkpoint without magnitudes.

    Raises:
        UserError: a start that changed the backbone, or what `lora_parts` refuses.
    """
    init = found.config.get("init_lora_weights", True)
    if isinstance(init, str) and init not in ("gaussian", "eva", "orthogonal", "pissa"):
        raise UserError(
            f"the peft adapter starts from {init!r}, which changed the backbone's weights; "
            "convert it to a plain LoRA first."
        )
    parts = lora_parts(found, "lora", {"init": "pissa" if init == "pissa" else "zero"})
    if init == "pissa":
        _start_of_fused(found, parts)
    return parts


def lora_parts(found: PeftCheckpoint, method: str, settings: Mapping[str, Any]) -> list[ImportedPart]:
    """LoRA or DoRA parts from a LORA checkpoint; an update of a fused linear is cut into one per role, which is exact.

    Raises:
        UserError: a setting or tensor that changes the function and has no counterpart.
    """
    config = found.config
    for key, what in _UNREADABLE.items():
        if config.get(key):
            raise UserError(f"the peft adapter has {what} ({key}), which cannot be imported.")
    if config.get("bias", "none") != "none":
        raise UserError(f"the peft adapter trained biases too (bias: {config['bias']!r}), which cannot be imported.")
    stabilized = bool(config.get("use_rslora"))
    default = float(config.get("lora_alpha", 8))
    tensors: dict[Site, dict[str, Tensor]] = {}
    ranks, alphas = {}, {}
    for path, parts in found.modules.items():
        expected = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if method == "dora" else set())
        if parts.keys() != expected:
            raise UserError(f"the peft adapter has {sorted(parts)} at {path!r}; expected {sorted(expected)}.")
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
        alpha = peft_pattern(config.get("alpha_pattern") or {}, path, default)
        for site, rows in found.pieces(path):
            if (
                b.shape != (site.out_features * (site.part.of if site.part else 1), a.shape[0])
                or a.shape[1] != site.in_features
            ):
                raise UserError(
                    f"the peft adapter has A {tuple(a.shape)} and B {tuple(b.shape)} at {path!r}, "
                    f"which is {site.in_features} x {site.out_features}."
                )
            tensors[site] = {"A": a, "B": b[rows]}
            if method == "dora":
                tensors[site]["magnitude"] = parts["lora_magnitude_vector"].flatten()[rows][None]
            ranks[site.name], alphas[site.name] = a.shape[0], float(alpha)
            if site.part is not None and rows[0] == 0:
                found.notes.append(
                    f"{path} is fused; its update was cut into {site.part.of}, which train on separately."
                )
    rank = int(config.get("r", 8))
    shared = {
        **settings,
        "rank": rank,
        "alpha": default,
        "rank_stabilized": stabilized,
        "dropout": float(config.get("lora_dropout", 0.0)),
    }
    parts_found = []
    for selection, sites in selections(list(tensors)):
        names = [site.name for site in sites]
        rank_pattern = {name: ranks[name] for name in names if ranks[name] != rank}
        alpha_pattern = {name: alphas[name] for name in names if alphas[name] != default}
        own = {**shared, **selection, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
        parts_found.append(ImportedPart(method, own, {site.name: tensors[site] for site in sites}))
    return parts_found


def _start_of_fused(found: PeftCheckpoint, parts: Sequence[ImportedPart]) -> None:
    """peft's PiSSA starts from the singular vectors of a whole fused weight, ours from those of each role."""
    from dollartune.backbones.weights import module_weight
    from dollartune.methods.lora import LoRA, PrincipalLowRank

    tensors = {name: own for part in parts for name, own in part.tensors.items()}
    methods = {name: LoRA(**part.settings) for part in parts for name in part.tensors}
    for path in found.modules:
        for site, rows in found.pieces(path):
            if site.part is not None:
                method, weight = methods[site.name], module_weight(found.model.get_submodule(path))
                start = PrincipalLowRank(
                    weight.T if site.transposed else weight, method.rank(site), method.scale(site), 0.0
                )
                tensors[site.name] |= {"A0": start.A0, "B0": start.B0[rows]}


def peft_pattern(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """peft's look-up in `rank_pattern` and `alpha_pattern`: the first key that is the end of the module's path."""
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except re.error:
            raise UserError(f"the peft adapter's pattern {key!r} is not a regular expression.") from None
    return default
