"""Features of a frozen backbone: one vector per row, as solved methods read them.

tokens ──> frozen backbone ──> last states (tokens, d) ──> pooled (width,) ──> solved method ──> scores (classes,)

mean     over the real tokens                     width d
last     the last real token                      width d
first    the first place: [CLS]                   width d
@middle  the same of the states after half of the layers: `mean@middle`
several  one after the other, as `last+mean`      width d for each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.errors import UserError, nearest

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site

POOLS = ("mean", "last", "first")
"""Ways to make one vector of a row's states."""

DEFAULT = {"encoder": "mean", "encoder_decoder": "mean", "decoder": "last+mean", "vision": "first+mean"}
"""Kind of backbone -> pooling that is meant by `auto`. The mean is the standard for encoders (Reimers and Gurevych 2019) and
the encoder of T5 (Ni et al. 2022). In a causal decoder only the last token has seen the whole row, and it was trained to
foretell one token; in an image classifier only [CLS] was trained to stand for the whole: there the mean is put beside it."""


MIDDLE = "@middle"
"""Behind a part's name: of the states after half of the layers. Upper layers lose what pretraining had no use for; beside the
last layer the middle one lowered the held-out log loss on every set tried (MiniLM, 1,400 rows: SST-2 0.396 to 0.370, AG News
0.419 to 0.373, PhraseBank 0.587 to 0.535), and it costs no pass of its own."""
DEEP = "deep"
"""A `pooling` that means `auto` and its parts at the middle layer."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Training rows as a solved method sees them."""

    features: Tensor
    """(rows, width), fp32."""
    labels: Tensor
    """(rows,), class of each row."""
    classes: int
    """Number of classes, those without a row included."""
    seed: int = 0
    """Of the trial: whatever is drawn (folds) is drawn with it."""
    tokens: Sequence[Sequence[int]] | None = None
    """Token ids of each row, for methods that count them; None where rows are no texts."""


def pools(pooling: str, anatomy: Anatomy) -> tuple[str, ...]:
    """The parts of a `pooling` setting on a backbone.

    Raises:
        UserError: a part that there is not, or one twice.
    """
    chosen = (DEFAULT[anatomy.kind] if pooling in ("auto", DEEP) else pooling).split("+")
    if pooling == DEEP and middle_layer(anatomy) is not None:
        chosen += [f"{name}{MIDDLE}" for name in chosen]
    for name in chosen:
        if name.removesuffix(MIDDLE) not in POOLS:
            raise UserError(
                f"pooling: {pooling!r} is not understood.{nearest(name, POOLS)} Write auto, {DEEP}, {', '.join(POOLS)}, "
                "or several as last+mean."
            )
        if name.endswith(MIDDLE) and middle_layer(anatomy) is None:
            raise UserError(f"pooling: {name!r}: this backbone has no layer that is known to be in the middle.")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"pooling: {pooling!r} names a part twice.")
    return tuple(chosen)


def middle_layer(anatomy: Anatomy) -> str | None:
    """The module after which half of the layers have run; None where that is not known (one layer, or one that runs again)."""
    stack = "decoder" if anatomy.kind == "decoder" else "encoder"
    half = anatomy.layer_counts.get(stack, 0) // 2
    sites = anatomy.at("layer", stack, half - 1) if half else ()
    return sites[0].exit if sites else None


def state_width(head: Site, anatomy: Anatomy) -> int:
    """d of the states that are pooled, by what a backbone's own head reads; DINOv2's reads two parts, one after the other."""
    if anatomy.family.streams > 1:
        return anatomy.d_model * anatomy.family.streams
    return anatomy.d_model if head.in_features == 2 * anatomy.d_model else head.in_features


def read_by_head(anatomy: Anatomy) -> tuple[str, ...]:
    """The pooling that a backbone's own classification head reads; empty where it reads something else."""
    if anatomy.kind == "decoder":
        return ("last",)
    return ("first",) if anatomy.kind == "vision" and anatomy.family.class_token else ()


def pool(states: Tensor, mask: Tensor | None, chosen: tuple[str, ...]) -> Tensor:
    """One vector per row, in fp32: what a row gives depends on its real tokens alone.

    Args:
        states: (rows, tokens, d).
        mask: (rows, tokens), ones at real tokens, padding on either side; None where every place is real.
        chosen: as `pools` gives them.

    Returns:
        (rows, d for each part).
    """
    states = states.float()  # a mean of hundreds of bf16 numbers would lose what bf16 has
    if mask is None:
        mask = states.new_ones(states.shape[:2])
    mask = mask.to(states.dtype)
    positions = torch.arange(states.shape[1], device=states.device)
    real = mask > 0
    rows = torch.arange(len(states), device=states.device)
    pooled = []
    for name in chosen:
        if name == "mean":
            pooled.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0))  # (rows, d)
        elif name == "last":
            # By the mask and not by position: padding may be on either side.
            pooled.append(states[rows, torch.where(real, positions, -1).amax(1).clamp_min(0)])
        else:
            pooled.append(states[rows, torch.where(real, positions, states.shape[1] - 1).amin(1)])
    return torch.cat(pooled, dim=-1)
