"""DoRA: LoRA on the direction of a weight, and a trained length for each of its rows.

x ──> W + scale · B A ──> each output divided by the row's length, times m ──> y
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dollartune.methods.base import Capabilities
from dollartune.methods.edits import Rows, Transform, dropout, kaiming_uniform, zeros
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, low_rank
from dollartune.methods.lora import LoRA, LoRAConfig, lora_parts
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class DoRAConfig(LoRAConfig):
    """A low-rank change of direction and a trained length per output of each chosen linear."""

    init: Literal["zero"] = "zero"
    """B starts at 0."""


class Decomposed(Transform):
    """m ⊙ (W + s B A) x / ‖W + s B A‖ + b, lengths taken over the inputs of each output.

    Written as a function of y = W x + b, so W multiplies x once, in the backbone.
    """

    def __init__(self, module: nn.Module, site: Site, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.A = kaiming_uniform(rank, site.in_features)  # (r, in)
        self.B = zeros(site.out_features, rank)  # (out, r)
        self.scale = scale
        self.dropout = dropout
        self.base = [(module, site)]  # in a list: the backbone's module is no part of this one
        self.magnitude = nn.Parameter(self._weight().float().norm(dim=1)[None].detach().clone())  # (1, out)

    def _weight(self) -> Tensor:
        from dollartune.backbones.weights import site_weight

        return site_weight(*self.base[0])

    def _bias(self) -> Tensor | None:
        from dollartune.backbones.weights import site_bias

        return site_bias(*self.base[0])

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """‖W + s B A‖ by row, (1, out), or (rows, 1, out) for stacked adapters; no gradient, as in the paper's section
        4.3.

        ‖w + s b A‖² = ‖w‖² + 2 s b·(A w) + s² b (A Aᵀ) b for one row w of W and b of B, which never forms B A.
        """
        weight, a, b = self._weight().float(), self.A.float(), self.B.float()
        square = weight.square().sum(dim=1)  # (out,)
        cross = (b * (weight @ a.mT)).sum(dim=-1)  # (..., out)
        of_update = (b @ (a @ a.mT) * b).sum(dim=-1)  # (..., out)
        # Rounding may leave a little below zero where the update cancels a row.
        return (square + 2 * self.scale * cross + self.scale**2 * of_update).clamp_min(0).sqrt().unsqueeze(-2)

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        gain = (self.magnitude / self.lengths()).to(y.dtype)  # (1, out)
        bias = self._bias()
        plain = y if bias is None else y - bias.to(y.dtype)  # the bias has no part in the direction
        if rows.training and self.dropout:  # peft drops inputs of the whole product, so W x is computed on what is left
            x = dropout(x, self.dropout, rows, self.key)
            dropped = x @ self._weight().to(x.dtype).mT
        else:
            dropped = plain
        low_rank = (x @ self.A.to(x.dtype).mT) @ (self.B.to(x.dtype).mT * self.scale)
        # y holds W x already, so only the difference is added: the same function with one product less.
        return y + (gain - 1) * dropped + gain * low_rank.to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gain = self.magnitude / self.lengths()
        original = self._bias()
        if bias is not None and original is not None:
            # as in `transform`: what edits before this one added is scaled, the own bias is not
            bias = gain[0] * (bias - original.float()) + original.float()
        elif bias is not None:
            bias = gain[0] * bias
        return gain.mT * (weight + self.scale * (self.B @ self.A)), bias


class DoRA(LoRA):
    """Weight-decomposed low-rank adaptation: y = m ⊙ (W + scale · B A) x / ‖W + scale · B A‖ + b.

    A (r, in) and B (out, r) as in LoRA; m (1, out) starts at ‖W‖, so training starts at the backbone. The length in the
    denominator follows the update but gets no gradient. Trainable: r (in + out) + out per linear. Exactly mergeable.

    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5 and section 4.3. As in the peft
    library, dropout acts on the input of W x too, and the bias is left as it is. For stacked adapters the lengths cost
    (rows, out, r) numbers, not (rows, out, in).
    """

    name = "dora"
    aliases = ("weight_decomposed_lora",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    branch = "reparameterization"
    Config = DoRAConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable=True, peft_type="LORA", vllm_refusal="it refuses DoRA")
    small_lr = None  # not measured
    search: ClassVar[Mapping[str, Any]] = {
        "lr": LogUniform(3e-5, 3e-2),
        "where": Choice(DoRAConfig.model_fields["where"].default, "all_linear"),
        "rank": Choice(2, 4, 8, 16, 32, 64, 128, 256),
    }

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Decomposed:  # type: ignore[override]
        return Decomposed(module, site, self.rank(site), self.scale(site), self.config.dropout)

    def count(self, site: Site) -> int:
        return super().count(site) + site.out_features

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        from dollartune.backbones.weights import module_weight, part_rows

        part = low_rank(
            [(site, [(edit.A.detach(), edit.B.detach(), edit.scale)]) for site, edit in items],
            self.config.rank_stabilized,
        )
        magnitudes: dict[str, Tensor] = {}
        for site, edit in items:
            if site.exit not in magnitudes:  # roles of a fused linear that are not adapted keep the length they have
                weight = module_weight(edit.base[0][0])
                magnitudes[site.exit] = (weight.T if site.transposed else weight).detach().float().norm(dim=1).cpu()
            magnitudes[site.exit][part_rows(site, len(magnitudes[site.exit]))] = (
                edit.magnitude.detach()[0].float().cpu()
            )
        tensors = part.tensors | {f"{path}.lora_magnitude_vector": value for path, value in magnitudes.items()}
        return replace(part, settings={**part.settings, "use_dora": True}, tensors=tensors)

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        return lora_parts(checkpoint, "dora", {}) if checkpoint.config.get("use_dora") else None
