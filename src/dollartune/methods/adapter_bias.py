"""AdapterBias: one vector added to the hidden state, in an amount that depends on the token.

y (tokens, d) ──┬──> a (d) ──> α (tokens, 1) ──> α vᵀ ──+──>
                └───────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Rows, Transform, kaiming_uniform, zeros
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Site


class AdapterBiasConfig(SiteMethodConfig):
    """A token-dependent shift of the representation."""

    lr: float = 3e-3
    # After the MLP, where Fu et al. place it.
    where: str = "mlp"
    """Sublayers (`self_attn`, `cross_attn`, `mlp`) or whole blocks (`layer`) that get a shift."""


class TokenShift(Transform):
    """y + (y aᵀ) v: a (1, d), v (1, d) from zero."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        # One of the two must not be zero, or neither gets a gradient; v is, so that y is unchanged at the start.
        self.a = kaiming_uniform(1, d_model)
        self.v = zeros(1, d_model)

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        # (batch, tokens, d) · (d, 1) -> α (batch, tokens, 1), times v (1, d): a product of rank 1, never the (d, d)
        # matrix a vᵀ.
        return y + (y @ self.a.to(y.dtype).mT) @ self.v.to(y.dtype)


class AdapterBias(Method[AdapterBiasConfig]):
    """h <- h + (h a) v: v (d,) is a task's shift, a (d,) says how much of it each token gets.

    Trainable: 2 d per site. Starts at the backbone exactly (v = 0).

    Source: Fu et al. 2022, "AdapterBias: Parameter-efficient Token-dependent Representation Shift for Adapters in NLP
    Tasks", equation 3; the count of reference 004's table (no bias on a).
    """

    name = "adapter_bias"
    aliases = ("adapterbias",)
    branch = "addition"
    Config = AdapterBiasConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(3e-4, 3e-2)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> TokenShift:
        return TokenShift(site.out_features)

    def count(self, site: Site) -> int:
        return 2 * site.out_features
