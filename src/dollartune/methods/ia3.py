"""(IA)3: learned vectors that scale keys, values and the inner activations of the feed-forward.

k' = l_k ⊙ (W_k x)     v' = l_v ⊙ (W_v x)     feed-forward: W_down (l_ff ⊙ γ(W_up x))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import InputEdit, Rows, Transform
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, selections, stored_transposed
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class IA3Config(SiteMethodConfig):
    """Scaling vectors on chosen linears."""

    lr: float = 1e-2
    where: str = "self_attn.k self_attn.v cross_attn.k cross_attn.v mlp.down"
    """Linears to scale: the output of attention's keys and values, the input of `mlp.down`."""
    scale_inputs: str = "mlp.down"
    """Roles among them of which the input is scaled; the output of the others."""
    two_vectors: bool = False
    """Scale inputs as well as outputs, the form that T-Few's code has and reference 001 counts (933,888 on
    FLAN-T5-XL)."""


class OutputScale(Transform):
    """y ⊙ l, l (1, out) from ones."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, features))

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return y * self.scale.to(y.dtype)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        return self.scale, None

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # rows of W (out, in), and the bias, as y = W x + b is scaled whole
        return weight * self.scale.mT, None if bias is None else bias * self.scale[0]


class InputScale(InputEdit):
    """x ⊙ l, l (1, in) from ones."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, features))

    def edit_input(self, x: Tensor, rows: Rows) -> Tensor:
        return x * self.scale.to(x.dtype)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        return self.scale, None

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.scale, bias  # columns of W; the bias never saw x


class TwoScales(Transform):
    """(W (x ⊙ l_in)) ⊙ l_out, written as a function of x so that several roles may share one fused linear."""

    def __init__(self, module: nn.Module, site: Site) -> None:
        super().__init__()
        self.input_scale = nn.Parameter(torch.ones(1, site.in_features))
        self.output_scale = nn.Parameter(torch.ones(1, site.out_features))
        self.base = [(module, site)]  # in a list: the backbone's module is no part of this one

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        # W (x ⊙ l) = W x + W (x ⊙ (l − 1)): y has the first term.
        change = x * (self.input_scale.to(x.dtype) - 1)
        y = y + (change @ self._weight().to(x.dtype).mT).to(y.dtype)
        return y * self.output_scale.to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scaled = weight + self._weight().float() * (self.input_scale - 1)
        return scaled * self.output_scale.mT, None if bias is None else bias * self.output_scale[0]

    def _weight(self) -> Tensor:
        from dollartune.backbones.weights import site_weight

        return site_weight(*self.base[0])


class IA3(Method[IA3Config]):
    """Infused adapter by inhibiting and amplifying inner activations.

    One vector of ones per site, so training starts at the backbone: (1, out) on keys and values, (1, in) on the
    feed-forward's last linear. Trainable: sum of out over keys and values plus d_ff per feed-forward. Exactly
    mergeable.

    Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    section 3.3. `two_vectors` is the authors' code (T-Few), which multiplies inputs too.
    """

    name = "ia3"
    aliases = ("(ia)3", "ia_3", "t_few")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"t_few": {"two_vectors": True}}
    branch = "reparameterization"
    Config = IA3Config
    kinds = ("linear",)
    capabilities: Capabilities = Capabilities(mergeable=True, peft_type="IA3")  # type: ignore[misc]
    small_lr = 0.03
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(5e-4, 1e-1)}

    def __init__(self, config: IA3Config | None = None, /, **settings: Any) -> None:
        super().__init__(config, **settings)
        if self.config.two_vectors:  # peft's (IA)3 has one vector per linear
            self.capabilities = replace(type(self).capabilities, peft_type=None)

    def scales_input(self, site: Site) -> bool:
        """Whether the vector at a site scales its input."""
        return site.role in self.config.scale_inputs.replace(",", " ").split()

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> OutputScale | InputScale | TwoScales:
        if self.config.two_vectors:
            return TwoScales(module, site)
        return InputScale(site.in_features) if self.scales_input(site) else OutputScale(site.out_features)

    def count(self, site: Site) -> int:
        if self.config.two_vectors:
            return site.in_features + site.out_features
        return site.in_features if self.scales_input(site) else site.out_features

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        from dollartune.backbones.weights import part_rows

        if self.config.two_vectors:
            raise UserError("peft's (IA)3 has one vector per linear; two_vectors cannot be written in its format.")
        tensors: dict[str, Tensor] = {}
        inputs = []
        for site, edit in items:
            scale = edit.scale.detach()
            if isinstance(edit, InputScale):
                tensors[f"{site.exit}.ia3_l"] = scale  # (1, in)
                inputs.append(site.exit)
                continue
            fused = site.fused_features
            whole = tensors.setdefault(f"{site.exit}.ia3_l", scale.new_ones(fused, 1))  # (out, 1)
            whole[part_rows(site, fused), 0] = scale[0]
        modules = tuple(dict.fromkeys(site.exit for site, _ in items))
        settings = {"feedforward_modules": inputs, "fan_in_fan_out": stored_transposed(items), "init_ia3_weights": True}
        # peft finds the feed-forwards among `target_modules` by comparing names, so both lists have them in full
        return PeftPart("IA3", settings, tensors, modules, full_names=True)

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        tensors: dict[Site, dict[str, Tensor]] = {}
        inputs: set[str] = set()
        for path, parts in checkpoint.modules.items():
            if parts.keys() != {"ia3_l"} or parts["ia3_l"].dim() != 2:
                raise UserError(f"the peft adapter has {sorted(parts)} at {path!r}; expected one vector, ia3_l.")
            vector = parts["ia3_l"]
            for site, rows in checkpoint.pieces(path):
                # peft's layout tells them apart: (1, in) scales inputs, (out, 1) outputs.
                if vector.shape == (1, site.in_features) and vector.shape[1] > 1:
                    inputs.add(site.role)
                    tensors[site] = {"scale": vector}
                else:
                    tensors[site] = {"scale": vector[rows].mT}
        return [
            ImportedPart(
                "ia3",
                {**selection, "scale_inputs": " ".join(sorted(inputs)) or "none"},
                {site.name: tensors[site] for site in sites},
            )
            for selection, sites in selections(list(tensors))
        ]
