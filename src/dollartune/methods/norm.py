"""Norm tuning: train the scales and shifts of normalizations, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from dollartune.backbones.anatomy import Site
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.full import Unfreeze
from dollartune.methods.space import LogUniform


class NormConfig(SiteMethodConfig):
    """Trained normalizations."""

    lr: float = 1e-3
    where: str = "norm"
    """Normalizations to train: norm, norm.self_attn, norm.mlp, norm.final ..."""


class Norm(Method[NormConfig]):
    """y = γ ⊙ normalize(x) + β with γ and β (d_model,) trained at each chosen normalization.

    Training starts at the backbone's own values. Trainable: 2 d_model per layer norm, d_model per RMS norm (it has no β).
    Exactly mergeable.

    Source: Qi et al. 2022, "Parameter-Efficient Tuning on Layer Normalization"; Zhao et al. 2023, "Tuning LayerNorm in
    Attention". The peft library has it as LN_TUNING. Norms of embeddings are not among the sites.
    """

    name = "norm"
    aliases = ("norm_tuning", "layer_norm", "layernorm", "ln_tuning")
    branch = "specification"
    Config = NormConfig
    kinds = ("norm",)
    capabilities = Capabilities(mergeable=True, peft_type="LN_TUNING")
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(2e-4, 2e-2)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Unfreeze:
        return Unfreeze(module)

    def count(self, site: Site) -> int:
        return site.parameters
