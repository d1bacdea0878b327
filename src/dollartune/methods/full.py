"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from dollartune.backbones.device_map import tensor_of
from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, MethodConfig
from dollartune.methods.edits import Override
from dollartune.methods.rules import Facts, full_tuning_rate
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class FullConfig(MethodConfig):
    """Train everything."""

    lr: float = 5e-5
    # AdamW's decoupled decay as BERT was fine-tuned (Devlin et al. 2019, A.3); methods that train few numbers decay
    # none.
    weight_decay: float = 0.01


class Unfreeze(Override):
    """Trained fp32 copies of all parameters of a module; the backbone's own stay as they are.

    Costs a second copy of the weights, and gives back a backbone that is bit-equal after any number of trials.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # Only 4-bit weights are stored as integers (uint8, two per byte); no gradient exists for those.
        packed = next((name for name, p in module.named_parameters() if not p.is_floating_point()), None)
        if packed is not None:
            raise UserError(
                f"{packed} is packed in 4 bits and cannot be trained itself.",
                hint="Load the backbone with quantize: none, or tune with a method that adds to it, such as lora.",
            )
        # `named_parameters` gives a tied weight once, under its first name, so it gets one copy and stays tied.
        self.names = [name for name, _ in module.named_parameters()]
        self.copies = nn.ParameterDict(
            {
                # ParameterDict takes no dots in its keys
                name.replace(".", "/"): nn.Parameter(tensor_of(module, name).detach().clone().float())
                for name in self.names
            }
        )

    def trained(self, name: str) -> nn.Parameter | None:
        return self.copies[key] if (key := name.replace(".", "/")) in self.copies else None

    def values(self) -> dict[str, Tensor]:
        # The fp32 copy is what AdamW moves, since steps of 1e-5 are lost in bf16's 8 bits.
        return {name: self.copies[name.replace(".", "/")] for name in self.names}


class Full(Method[FullConfig]):
    """θ = θ0 + Δθ, all of it.

    Trainable: every parameter (tied ones once). The adapter is as large as the model. Needs the batch for itself.

    Source: the baseline of references 000 and 001.
    """

    name = "full"
    aliases = ("full_fine_tuning", "full_tuning", "fine_tuning", "ft")
    branch = "specification"
    Config = FullConfig
    kinds = ("model",)
    # Rows of another trial in the batch would need another model, so neither mixed rows nor a second method on top.
    capabilities = Capabilities(mergeable=True, mixed_rows=False, stackable=False)
    reference = "everything"
    small_lr = 0.0005
    # The rule's 5e-6 to 1e-3, with room on both sides.
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(3e-6, 3e-3)}

    @classmethod
    def defaults_for(cls, facts: Facts) -> dict[str, Any]:
        return {"lr": full_tuning_rate(facts.width)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return anatomy.at("model")

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Unfreeze:
        return Unfreeze(module)

    def count(self, site: Site) -> int:
        return site.parameters
