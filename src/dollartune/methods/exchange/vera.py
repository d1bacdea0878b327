"""Reads and writes peft's VERA checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dollartune.backbones.anatomy import Site
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, selections, stored_transposed

if TYPE_CHECKING:
    from dollartune.methods.vera import VeRAConfig


def write_vera(items: Sequence[tuple[Site, Any]], config: VeRAConfig) -> PeftPart:
    """The vectors of separate linears and the projections that they share."""
    projections = items[0][1].projections[0]
    tensors = {".vera_A": projections.A, ".vera_B": projections.B}
    for site, edit in items:
        tensors[f"{site.exit}.vera_lambda_d"], tensors[f"{site.exit}.vera_lambda_b"] = (
            edit.d.detach()[0],
            edit.b.detach()[0],
        )
    settings = {
        "r": config.rank,
        "projection_prng_key": config.projection_seed,
        "save_projection": True,
        "vera_dropout": 0.0,
        "d_initial": config.d_initial,
        "fan_in_fan_out": stored_transposed(items),
        "bias": "none",
    }
    return PeftPart("VERA", settings, tensors, tuple(site.exit for site, _ in items))


def read_vera(found: PeftCheckpoint) -> list[ImportedPart]:
    """VeRA where the projections are those of the seed; else, and on fused linears, a LoRA of the same rank."""
    from dollartune.methods.vera import Projections

    config, rank = found.config, int(found.config.get("r", 256))
    stored = found.modules.pop("", {})
    vectors = {
        path: (parts["vera_lambda_d"].flatten(), parts["vera_lambda_b"].flatten())
        for path, parts in found.modules.items()
    }
    places = {path: found.sites(path) for path in vectors}
    sites = [site for own in places.values() for site in own]
    widest_in = max(site.in_features for site in sites)
    widest_out = max(site.out_features * (site.part.of if site.part else 1) for site in sites)
    seed = int(config.get("projection_prng_key", 0))
    drawn = Projections(rank, widest_in, widest_out, seed)
    a, b = stored.get("vera_A", drawn.A), stored.get("vera_B", drawn.B)
    same = a.shape == drawn.A.shape and b.shape == drawn.B.shape and torch.equal(a, drawn.A) and torch.equal(b, drawn.B)
    parts: list[ImportedPart] = []
    for selection, chosen in selections(sites) if same and not any(site.part for site in sites) else ():
        part = Projections(
            rank, max(site.in_features for site in chosen), max(site.out_features for site in chosen), seed
        )
        if part.A.shape != a.shape or part.B.shape != b.shape:  # a part alone would draw smaller projections
            parts = []
            break
        own = {
            "rank": rank,
            "projection_seed": seed,
            "dropout": float(config.get("vera_dropout", 0.0)),
            **selection,
        }
        tensors = {site.name: {"d": vectors[site.exit][0][None], "b": vectors[site.exit][1][None]} for site in chosen}
        parts.append(ImportedPart("vera", own, tensors))
    if parts:
        return parts
    found.notes.append(
        f"its frozen projections cannot be drawn again here, so it was converted to a LoRA of rank {rank}."
    )
    for selection, chosen in selections(sites):
        tensors = {}
        for site in chosen:
            d, lengths = vectors[site.exit]
            rows = dict(found.pieces(site.exit))[site]
            full = lengths[:, None] * b[: len(lengths)]
            tensors[site.name] = {"A": d[:, None] * a[:, : site.in_features], "B": full[rows]}
        parts.append(ImportedPart("lora", {"rank": rank, "alpha": float(rank), **selection}, tensors))
    return parts
