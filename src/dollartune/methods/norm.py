"""Norm tuning: train the scales and shifts of normalizations, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, copies, saved_modules, selections
from dollartune.methods.full import Unfreeze
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class NormConfig(SiteMethodConfig):
    """Trained normalizations."""

    # As of BitFit: a few thousand numbers beside which everything is frozen.
    lr: float = 1e-3
    where: str = "norm"
    """Normalizations to train: norm, norm.self_attn, norm.mlp, norm.final ..."""


class Norm(Method[NormConfig]):
    """y = γ ⊙ normalize(x) + β with γ and β (d_model,) trained at each chosen normalization.

    Training starts at the backbone's own values. Trainable: 2 d_model per layer norm, d_model per RMS norm (it has
    no β). Exactly mergeable.

    Source: Qi et al. 2022, "Parameter-Efficient Tuning on Layer Normalization"; Zhao et al. 2023, "Tuning LayerNorm in
    Attention". The peft library has it as LN_TUNING. Norms of embeddings are not among the sites.
    """

    name = "norm"
    aliases = ("norm_tuning", "layer_norm", "layernorm", "ln_tuning")
    branch = "specification"
    Config = NormConfig
    kinds = ("norm",)
    capabilities = Capabilities(mergeable=True, peft_type="LN_TUNING")
    saved_whole = "norm"
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(2e-4, 2e-2)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Unfreeze:
        # γ and β whole, not their change: RMS norms of Gemma hold γ - 1, and a copy keeps that meaning
        return Unfreeze(module)

    def count(self, site: Site) -> int:
        return site.parameters

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """LN_TUNING, which keeps whole normalizations."""
        whole = saved_modules(items)
        # peft wraps the module and puts this name before the last part: `norm.weight` ->
        # `norm.ln_tuning_layers.weight`.
        tensors = {".ln_tuning_layers.".join(key.rsplit(".", 1)): value for key, value in whole.tensors.items()}
        # in full: the last part of a name, "1" or "norm", may be that of other modules as well
        return replace(whole, peft_type="LN_TUNING", tensors=tensors, full_names=True, saved=whole)

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        values = {
            path: {key.removeprefix("ln_tuning_layers."): t for key, t in parts.items()}
            for path, parts in checkpoint.modules.items()
        }
        return cls.from_saved(checkpoint, values)

    @classmethod
    def from_saved(cls, checkpoint: PeftCheckpoint, values: Mapping[str, Mapping[str, Tensor]]) -> list[ImportedPart]:
        # `sites` gives one for each part of a module; a norm has one.
        sites = [site for path in values for site in checkpoint.sites(path, ("norm",))[:1]]
        return [
            ImportedPart("norm", selection, {site.name: copies(values[site.exit]) for site in chosen})
            for selection, chosen in selections(sites)
        ]
