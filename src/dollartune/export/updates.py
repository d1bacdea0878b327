"""What an adapter adds to each linear's weight, as matrices: turned into LoRA factors, added up, trimmed.

    W' - W = ΔW (out, in)  ──SVD──>  B (out, r) A (r, in)        exact where ΔW has no more than rank r
    Σ w_i ΔW_i                                                    task arithmetic (Ilharco et al., 2023)
    TIES (Yadav et al., 2023), DARE (Yu et al., 2024)             trimmed or thinned out before they are added

A merge knows every method whose change is linear, plug-ins included; no method is named here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dollartune.attachment.merging import merge
from dollartune.backbones.quantize import is_quantized
from dollartune.errors import UserError
from dollartune.methods.exchange import PeftPart

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone

How = Literal["linear", "ties", "dare"]
WAYS: tuple[How, ...] = ("linear", "ties", "dare")
WAYS_WITH: dict[str, tuple[How, ...]] = {"density": ("ties", "dare"), "seed": ("dare",)}
"""Option -> the ways in which it does something."""
_NOTHING = 1e-6
"""Singular values below this share of the largest are rounding in fp32."""


@dataclass(frozen=True)
class Updates:
    """The change of one or several adapters."""

    weights: Mapping[str, Tensor]
    """Module -> ΔW (out, in), whatever way the module stores its weight."""
    head: Mapping[str, Tensor]
    """Name -> value of a classification head's parameters."""


@dataclass(frozen=True)
class FactoredUpdates:
    """Updates as LoRA."""

    part: PeftPart
    rank: int
    lost: float
    """Largest share of a module's update (Frobenius norm) that the rank leaves out."""


@torch.no_grad()
def updates_of(backbone: Backbone, adapter: Adapter) -> Updates:
    """What an adapter adds to the weights of linears.

    Raises:
        UserError: its change is no linear function of modules' inputs, or touches what no LoRA holds (biases, norms,
            embeddings).
    """
    if any(is_quantized(module) for module in backbone.model.modules() if getattr(module, "weight", None) is not None):
        raise UserError("updates are taken from weights that are not in 4 bits.", hint="Leave --quantize out.")
    # A copy, because merging writes into the weights; in fp32, as those of 16 bits would round small updates away.
    model = copy.deepcopy(backbone.model).float()
    merge(model, backbone.anatomy, adapter)
    anatomy = backbone.anatomy
    transposed = {site.exit: site.transposed for site in anatomy.sites if site.kind == "linear"}
    heads = tuple(site.exit for site in anatomy.heads) if backbone.objective == "classification" else ()
    before = dict(backbone.model.named_parameters())
    weights, head, others = {}, {}, []
    for name, value in model.named_parameters():
        path, _, attribute = name.rpartition(".")
        if any(path == other or path.startswith(f"{other}.") for other in heads):
            head[name] = value.detach().float().cpu()
        # Bit for bit: what no edit touched is the same tensor's copy.
        elif name in before and torch.equal(before[name].float(), value):
            continue
        elif attribute == "weight" and path in transposed and name in before:
            # (out, in), or (in, out) where the module stores it so.
            change = (value - before[name].float()).cpu()
            weights[path] = change.T if transposed[path] else change
        else:
            others.append(name)
    if others:
        raise UserError(
            f"the adapter changes {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}, which no LoRA holds: it "
            "is of linears' weights alone.",
            hint="Export with --format merged.",
        )
    if not weights:
        raise UserError("the adapter changes no linear's weight.", hint="Export with --format merged.")
    return Updates(weights, head)


@torch.no_grad()
def low_rank_of(updates: Updates, backbone: Backbone, most: int) -> FactoredUpdates:
    """Updates as LoRA of one rank for all modules, at most `most`: a server then needs no pattern of ranks.

    The SVD is the closest matrix of a rank there is (Eckart and Young, 1936).
    """
    # u (out, k), s (k,), v (k, in), k the smaller side.
    split = {path: torch.linalg.svd(change.float(), full_matrices=False) for path, change in updates.weights.items()}
    rounding = {path: _rounding(backbone.model.get_parameter(f"{path}.weight")) for path in split}
    needed = {path: int((s > max(_NOTHING * s[0], rounding[path])).sum()) for path, (_, s, _) in split.items()}
    # The largest that any module needs: LoRA's rank is one number, and zeros fill the others.
    rank = max(1, min(most, max(needed.values())))
    tensors, lost = {}, 0.0
    for path, (u, s, v) in split.items():
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        b = u.new_zeros(u.shape[0], rank)
        a = v.new_zeros(rank, v.shape[1])
        # The root of the singular values on both sides, so that A and B are of like size and neither overflows in 16
        # bits.
        b[:, :kept], a[:kept] = u[:, :kept] * root, root[:, None] * v[:kept]
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = a, b
        if needed[path] > kept:
            # The Frobenius norm of a matrix is that of its singular values.
            lost = max(lost, float(s[kept:].norm() / s.norm()))
    stored = {site.exit: site.transposed for site in backbone.anatomy.sites if site.kind == "linear"}
    settings = {
        "r": rank,
        "lora_alpha": rank,  # a scale of 1: the size of the update lies in its factors
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": all(stored[path] for path in updates.weights),
    }
    return FactoredUpdates(PeftPart("LORA", settings, tensors, tuple(updates.weights)), rank, lost)


def _rounding(weight: Tensor) -> float:
    """Singular values that rounding W + ΔW to fp32 brings into ΔW: those of a random matrix whose entries are a unit in the last
    place of W's, (√out + √in) times their size. A small update would else need the rank of its rounding."""
    size = weight.float().norm() / weight.numel() ** 0.5
    return float(torch.finfo(torch.float32).eps * size * sum(side**0.5 for side in weight.shape))


@torch.no_grad()
def combine(
    several: Sequence[Updates], weights: Sequence[float], how: How = "linear", density: float = 0.5, seed: int = 0
) -> Updates:
    """Adds up the changes of several adapters of one backbone.

    Args:
        weights: of each.
        how: `linear` adds them; `ties` keeps the largest values of each and, where their signs differ, those of the sign
            with the larger sum, and takes the mean of what is left (as peft does, of weighted values); `dare` drops values at
            random and makes what is left larger.
        density: share of values that `ties` and `dare` keep.
        seed: of what `dare` drops.

    Raises:
        UserError: classification heads, of which there cannot be one for several tasks.
    """
    if any(one.head for one in several):
        raise UserError(
            "the adapters have classification heads, and one head cannot score several tasks.",
            hint="dollartune serve takes adapters of several tasks at once.",
        )
    generator = torch.Generator().manual_seed(seed)
    combined: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for one in several for path in one.weights):
        # An adapter that does not touch a module adds zero there.
        like = next(one.weights[path] for one in several if path in one.weights)
        changes = [one.weights.get(path, torch.zeros_like(like)) for one in several]
        if how == "ties":
            combined[path] = _ties(changes, weights, density)
            continue
        if how == "dare":
            changes = [
                # Divided by what is kept, so that the expected sum stays the same (as dropout).
                change * (torch.rand(change.shape, generator=generator) < density) / density
                for change in changes
            ]
        combined[path] = sum(
            (weight * change for weight, change in zip(weights, changes, strict=True)), torch.zeros_like(like)
        )
    return Updates(combined, {})


def _ties(changes: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    trimmed = torch.stack([weight * _largest(change, density) for weight, change in zip(weights, changes, strict=True)])
    sign = trimmed.sum(0).sign()
    # Zeros were trimmed away: they neither vote nor thin out the mean.
    agrees = (trimmed.sign() == sign) & (trimmed != 0)
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _largest(change: Tensor, density: float) -> Tensor:
    kept = max(1, round(density * change.numel()))
    # kthvalue counts from the smallest, from 1.
    least = change.abs().flatten().kthvalue(change.numel() - kept + 1).values
    return torch.where(change.abs() >= least, change, 0.0)
