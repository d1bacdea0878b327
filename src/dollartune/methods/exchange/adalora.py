"""Reads and writes peft's ADALORA checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.backbones.anatomy import Site
from dollartune.errors import UserError
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, selections, stored_transposed

if TYPE_CHECKING:
    from dollartune.methods.adalora import AdaLoRAConfig


def write_adalora(items: Sequence[tuple[Site, Any]], config: AdaLoRAConfig) -> PeftPart:
    """The triplets of separate linears, with the pattern of those that were dropped."""
    tensors: dict[str, Tensor] = {}
    pattern: dict[str, list[bool]] = {}
    for site, edit in items:
        tensors[f"{site.exit}.lora_A"], tensors[f"{site.exit}.lora_B"] = edit.Q.detach(), edit.P.detach()
        tensors[f"{site.exit}.lora_E"] = edit.values.detach()
        if edit.pruned:
            pattern[f"{site.exit}.lora_E"] = edit.kept.tolist()
    settings = {
        "init_r": config.rank,
        "target_r": config.target_rank,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "rank_pattern": pattern or None,
        "total_step": 1,
        "tinit": 0,
        "tfinal": 0,
        "deltaT": config.every,
        "lora_dropout": 0.0,
        "beta1": config.beta_sensitivity,
        "beta2": config.beta_uncertainty,
        "orth_reg_weight": config.orthogonality,
        "fan_in_fan_out": stored_transposed(items),
        "bias": "none",
    }
    return PeftPart("ADALORA", settings, tensors, tuple(site.exit for site, _ in items))


def read_adalora(found: PeftCheckpoint) -> list[ImportedPart]:
    """Parts at the starting rank; a triplet that was dropped is random with λ = 0.

    Raises:
        UserError: tensors other than a triplet's, or a pattern that does not fit them.
    """
    config = found.config
    rank, alpha = int(config.get("init_r", 12)), float(config.get("lora_alpha", 8))
    pattern = config.get("rank_pattern") or {}
    generator = torch.Generator().manual_seed(0)
    tensors: dict[Site, dict[str, Tensor]] = {}
    for path, parts in found.modules.items():
        if parts.keys() != {"lora_A", "lora_B", "lora_E"}:
            raise UserError(f"the peft adapter has {sorted(parts)} at {path!r}; expected lora_A, lora_B and lora_E.")
        q, p, values = parts["lora_A"], parts["lora_B"], parts["lora_E"]
        kept = torch.tensor(pattern.get(f"{path}.lora_E", [True] * rank), dtype=torch.bool)
        if len(kept) != rank or q.shape[0] not in (rank, int(kept.sum())):
            raise UserError(
                f"the peft adapter keeps {int(kept.sum())} of {rank} triplets at {path!r} and has {q.shape[0]}."
            )
        if q.shape[0] != rank or not kept.all():
            rows = slice(None) if q.shape[0] != rank else kept
            full_q, full_p = (
                torch.randn(rank, q.shape[1], generator=generator) * 0.02,
                torch.randn(p.shape[0], rank, generator=generator) * 0.02,
            )
            full_values = torch.zeros(rank, 1)
            full_q[kept], full_values[kept], full_p[:, kept] = q[rows], values[rows], p[:, rows]
            q, p, values = full_q, full_p, full_values
        for site, rows in found.pieces(path):
            tensors[site] = {"Q": q, "P": p[rows], "values": values}
    own = {
        "rank": rank,
        "target_rank": min(rank, int(config.get("target_r", 8))),
        "alpha": alpha,
        "dropout": float(config.get("lora_dropout", 0.0)),
    }
    return [
        ImportedPart("adalora", {**own, **selection}, {site.name: tensors[site] for site in sites})
        for selection, sites in selections(list(tensors))
    ]
