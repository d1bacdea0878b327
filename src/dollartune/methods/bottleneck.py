"""Building blocks of the adapters that squeeze a hidden state through a narrow layer; no method by itself.

    h (tokens, d) ──> down (b, d) ──> activation ──> up (d, b) ──> · scale ──+──> y
                                                                             |
                       y, the output of the sublayer ────────────────────────+

`h` is the sublayer's output (sequential adapters) or its input (parallel adapters). The two matrices are dense,
products of rank-r factors, or sums of Kronecker products; the biases and the way they are applied are the same for
all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dollartune.errors import UserError
from dollartune.methods.base import SiteMethodConfig
from dollartune.methods.edits import Rows, Transform, kaiming_uniform, zeros

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Site

Activation = Literal["relu", "gelu", "silu", "tanh", "none"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "none": lambda h: h,
}


class BottleneckConfig(SiteMethodConfig):
    """Settings that all bottleneck adapters share."""

    lr: float = 1e-3
    where: str = "mlp"
    """Sublayers (`self_attn`, `cross_attn`, `mlp`) or whole blocks (`layer`) that get an adapter."""
    reduction: int = Field(16, ge=1)
    """d_model over the bottleneck's width b."""
    size: int | None = Field(None, ge=1)
    """The bottleneck's width b itself, in place of `reduction`."""
    activation: Activation = "relu"
    """Function between the two projections; `none` makes the adapter linear."""

    def width(self, d_model: int) -> int:
        """The bottleneck's width b for a hidden state of that width."""
        return self.size or max(1, d_model // self.reduction)

    def mistake(self, sites: Sequence[Site]) -> str | None:
        """A reduction that leaves no whole number at the widest site, or a width that `order` does not divide."""
        widest = max(site.out_features for site in sites)
        if self.size is None and self.reduction > widest:
            return f"reduction {self.reduction:,} is above the width {widest:,} of what it reduces."
        try:
            for width in {site.out_features for site in sites}:
                self.width(width)
        except UserError as error:
            return error.message
        return None


class KroneckerConfig(BottleneckConfig):
    """Settings of bottlenecks made of Kronecker products."""

    lr: float = 3e-3
    where: str = "self_attn cross_attn mlp"
    """Sublayers (`self_attn`, `cross_attn`, `mlp`) or whole blocks (`layer`) that get an adapter."""
    reduction: int = Field(32, ge=1)
    """d_model over the bottleneck's width b, which is then rounded up to a multiple of `order`."""
    order: int = Field(4, ge=1)
    """Number n of terms; it must divide the hidden size (and `size`, if that is given)."""
    activation: Activation = "gelu"
    """Function between the two projections; `none` makes the adapter linear."""

    def width(self, d_model: int) -> int:
        """The bottleneck's width b.

        Raises:
            UserError: n does not divide d or b.
        """
        # Rounded up, so that a width that the user did not write is never refused.
        size = self.size or -(-max(1, d_model // self.reduction) // self.order) * self.order
        for what, width in (("hidden size", d_model), ("bottleneck's width", size)):
            if width % self.order:
                raise UserError(
                    f"order {self.order} must divide the {what}, which is {width}.", hint="Set order or size."
                )
        return size


class Bottleneck(Transform):
    """y + scale · (act(h downᵀ + b_down) upᵀ + b_up); up and b_up start at zero, so it starts as the identity.

    Args:
        d_model, size: d and b.
        activation: name of the function between.
        beside: h is the sublayer's input (parallel), else its output (sequential).
        scale: factor of what is added.
    """

    def __init__(
        self, d_model: int, size: int, activation: Activation, beside: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.activation, self.beside, self.scale = activation, beside, scale
        self.down_bias = zeros(1, size)
        self.up_bias = zeros(1, d_model)
        self._build(d_model, size)

    def _build(self, d_model: int, size: int) -> None:
        self.down = kaiming_uniform(size, d_model)  # (b, d)
        self.up = zeros(d_model, size)  # (d, b)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """down (b, d) and up (d, b)."""
        return self.down, self.up

    def change(self, h: Tensor) -> Tensor:
        """What is added to the sublayer's output; h (rows, tokens, d)."""
        down, up = self.matrices()
        # (rows, tokens, b)
        hidden = _ACTIVATIONS[self.activation](h @ down.to(h.dtype).mT + self.down_bias.to(h.dtype))
        return (hidden @ up.to(h.dtype).mT + self.up_bias.to(h.dtype)) * self.scale

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return y + self.change(x if self.beside else y).to(y.dtype)  # (rows, tokens, d)


class LowRankBottleneck(Bottleneck):
    """A bottleneck whose matrices are products of rank-r factors: down = L R, up = L' R'."""

    def __init__(self, d_model: int, size: int, activation: Activation, rank: int) -> None:
        self.rank = rank
        super().__init__(d_model, size, activation)

    def _build(self, d_model: int, size: int) -> None:
        # Over √r, so that the product L R has the variance of R, a dense adapter's.
        self.down_left = nn.Parameter(torch.randn(size, self.rank) / self.rank**0.5)  # (b, r)
        self.down_right = kaiming_uniform(self.rank, d_model)  # (r, d)
        self.up_left = zeros(d_model, self.rank)  # (d, r)
        self.up_right = kaiming_uniform(self.rank, size)  # (r, b)

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.down_left @ self.down_right, self.up_left @ self.up_right


class Rule(nn.Module):
    """The n small matrices A_i (n, n) of a Kronecker sum: the rule by which blocks combine."""

    def __init__(self, order: int) -> None:
        super().__init__()
        # Over √n, for the same reason: n terms are added.
        self.matrices = nn.Parameter(torch.randn(order, order, order) / order**0.5)  # (n, n, n)


class KroneckerBottleneck(Bottleneck):
    """A bottleneck whose matrices are W = Σ_i A_i ⊗ B_i, with B_i dense or B_i = s_i t_i of rank k.

    Args:
        order: n, the number of terms; it must divide d and b.
        rank: k of the factors, or None for dense B_i.
        rule: A_i shared with other adapters (and by down and up), or None for two of its own.
    """

    def __init__(
        self, d_model: int, size: int, activation: Activation, order: int, rank: int | None, rule: Rule | None
    ) -> None:
        self.order, self.rank = order, rank
        super().__init__(d_model, size, activation)
        self.down_rule = rule or Rule(order)
        self.up_rule = rule or Rule(order)

    def _build(self, d_model: int, size: int) -> None:
        n, wide, narrow = self.order, d_model // self.order, size // self.order
        if self.rank is None:
            self.down_blocks = nn.Parameter(torch.randn(n, narrow, wide) / d_model**0.5)  # B (n, b/n, d/n)
            self.up_blocks = zeros(n, wide, narrow)
        else:  # scaled so that W starts with the variance of a dense adapter's, 1/d
            self.down_left = nn.Parameter(torch.randn(n, narrow, self.rank))  # s (n, b/n, k)
            self.down_right = nn.Parameter(
                torch.randn(n, self.rank, wide) / (self.rank * d_model) ** 0.5
            )  # t (n, k, d/n)
            self.up_left = zeros(n, wide, self.rank)
            self.up_right = nn.Parameter(torch.randn(n, self.rank, narrow) / (self.rank * size) ** 0.5)

    def matrices(self) -> tuple[Tensor, Tensor]:
        down: Tensor
        up: Tensor
        if self.rank is None:
            down, up = self.down_blocks, self.up_blocks
        else:
            down, up = self.down_left @ self.down_right, self.up_left @ self.up_right
        return kronecker_sum(self.down_rule.matrices, down), kronecker_sum(self.up_rule.matrices, up)


def kronecker_sum(rule: Tensor, blocks: Tensor) -> Tensor:
    """Σ_i A_i ⊗ B_i: rule (..., n, p, q), blocks (..., n, r, s) -> (..., p·r, q·s)."""
    return torch.einsum("...ipq,...irs->...prqs", rule, blocks).flatten(-4, -3).flatten(-2, -1)


def dense_count(d_model: int, size: int) -> int:
    """Parameters of a dense bottleneck: 2 d b + b + d."""
    return 2 * d_model * size + size + d_model
