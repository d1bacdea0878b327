"""Layer freezing: train some whole layers, by the lecture's rule the last ones, and keep the rest.

tokens ──> [ frozen ] ──> [ frozen ] ──> [ trained ] ──> [ trained ] ──> head
           trunk: no backward, can be computed once        last 2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, MethodConfig
from dollartune.methods.full import Unfreeze
from dollartune.methods.rules import Facts, full_tuning_rate
from dollartune.methods.selection import Selection
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class LayerFreezingConfig(MethodConfig):
    """Some layers trained whole, the others frozen."""

    lr: float = 1e-4
    weight_decay: float = 0.01
    train: str = "last 25%"
    """Layers to train: last 2, last 25%, first 50%, every 2, 0-5,11 (counted within each stack)."""
    stacks: str = "all"
    """Stacks of which layers are trained: all, encoder, decoder; the others stay frozen."""
    embeddings: bool = False
    """Train the embeddings too (and with them a language-model head that is tied to them)."""


class LayerFreezing(Method[LayerFreezingConfig]):
    """θ_l = θ_l0 + Δθ_l for the layers l of `train`; all others keep their values.

    Training starts at the backbone. Trainable: every parameter of the chosen layers, and of the embeddings if asked
    for; the classification head is trained beside any method. Frozen layers below the lowest trained one get no
    backward pass. Needs the batch for itself, since a layer's rows share its weights. Exactly mergeable.

    Source: Lee et al. 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning"; reference 004, layer
    freezing. The final norm stays frozen (combine with `norm` to train it).
    """

    name = "layer_freezing"
    aliases = ("freeze", "freezing", "partial_fine_tuning", "last_layers")
    branch = "specification"
    Config = LayerFreezingConfig
    kinds = ("layer", "embedding")
    # As of full tuning, for the layers that are trained.
    capabilities = Capabilities(mergeable=True, mixed_rows=False, stackable=False)
    reference = "upper_layers"
    # A quarter of a tiny model's two layers rounds to none.
    tiny: ClassVar[Mapping[str, Any]] = {"train": "last 1"}
    search: ClassVar[Mapping[str, Any]] = {
        "lr": LogUniform(1e-5, 1e-3),
        "train": Choice("last 1", "last 25%", "last 50%"),
    }

    @classmethod
    def defaults_for(cls, facts: Facts) -> dict[str, Any]:
        return {"lr": full_tuning_rate(facts.width)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        sites = Selection("layer", self.config.train, self.config.stacks).sites(anatomy, ("layer",))
        if not sites:
            raise UserError(f"train: {self.config.train!r} leaves no layer to train.")
        if not self.config.embeddings:
            return sites
        embeddings = [site for site in anatomy.sites if site.kind == "embedding"]
        inside = {
            site.name for site in embeddings for other in embeddings if site.exit.startswith(f"{other.exit}.")
        }  # ViT's patches
        return (*(site for site in embeddings if site.name not in inside), *sites)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Unfreeze:
        return Unfreeze(module)

    def count(self, site: Site) -> int:
        return site.parameters
