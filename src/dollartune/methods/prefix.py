"""Prefix tuning: trained keys and values that every query of an attention sees before the real ones.

softmax( q · [ P_K ; K ]ᵀ ) [ P_V ; V ]        P_K, P_V (n, t) per attention, t = key/value heads x head size

without reparameterization (P-tuning v2): P_K, P_V are the trained tensors
with it:                                  [P_K, P_V] = W₂ tanh(W₁ E + b₁) + b₂,  E (n, t) and W₁ shared by all layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import KeyValuePrefix, Rows
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart
from dollartune.methods.exchange.prefix import TiedPrefix, TiedPrefixes, pair_of, read_prefix, write_prefix
from dollartune.methods.space import Choice, LogUniform


class PrefixConfig(SiteMethodConfig):
    """Trained keys and values before those of each chosen attention."""

    lr: float = 1e-2
    """Peak learning rate; with `reparameterize`, 1e-4 to 1e-3 is enough."""
    where: str = "self_attn"
    """Attentions that get a prefix: `self_attn`, `cross_attn`, `attention` (both)."""
    tokens: int = Field(20, ge=1)
    """Number n of prefix places."""
    reparameterize: bool = False
    """Compute the prefix by a small network while training (the original prefix tuning); else train it directly."""
    hidden: int = Field(512, ge=1)
    """Hidden size h of that network."""
    like_peft: bool = False
    """In an encoder-decoder with relative positions (T5), do as the peft library does: a prefix in the decoder's
    self-attention alone, at the distances of a text before it, and layers that share a place of its table share their
    prefix. Needed to exchange such adapters; elsewhere both agree anyway."""


class DirectPrefix(KeyValuePrefix):
    """Trained keys and values (heads, n, head_size)."""

    def __init__(self, heads: int, length: int, head_size: int) -> None:
        super().__init__()
        self.length = length
        self.key_prefix = nn.Parameter(torch.randn(heads, length, head_size) * 0.1)
        self.value_prefix = nn.Parameter(torch.randn(heads, length, head_size) * 0.1)

    def prefix(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return self.key_prefix, self.value_prefix


class PrefixInputs(nn.Module):
    """What all layers share: E (n, t) and the first layer, tanh(W₁ E + b₁) (n, h)."""

    def __init__(self, length: int, size: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(length, size))
        self.first = nn.Linear(size, hidden)

    def forward(self) -> Tensor:
        return torch.tanh(self.first(self.inputs))


class ReparameterizedPrefix(KeyValuePrefix):
    """This layer's rows of W₂ (2t, h): keys first, then values."""

    def __init__(self, shared: PrefixInputs, heads: int, head_size: int) -> None:
        super().__init__()
        self.length = shared.inputs.shape[0]
        self.heads, self.head_size = heads, head_size
        self.encoder = shared
        self.last = nn.Linear(shared.first.out_features, 2 * heads * head_size)

    def prefix(self, rows: Rows) -> tuple[Tensor, Tensor]:
        both = self.last(self.encoder()).view(self.length, 2, self.heads, self.head_size)
        key, value = both.permute(1, 2, 0, 3)  # each (heads, n, head_size)
        return key, value

    @torch.no_grad()
    def frozen(self) -> DirectPrefix:
        prefix = DirectPrefix(self.heads, self.length, self.head_size)
        key, value = self.prefix(Rows())
        prefix.key_prefix, prefix.value_prefix = nn.Parameter(key.clone()), nn.Parameter(value.clone())
        prefix.key, prefix.gate = self.key, self.gate
        return prefix


class Prefix(Method[PrefixConfig]):
    """Keys and values of n extra places, before the real ones of every chosen attention.

    Trainable: 2 n t per attention; with reparameterization n t + (t h + h) once and (h · 2t + 2t) per attention. Not
    the identity at its start: even a zero prefix takes attention away from the tokens. Decoder-only and BERT-like
    backbones count positions from after the prefix, as if it had been a text; in encoder-decoder models it has no
    position.

    Source: Li and Liang 2021, "Prefix-Tuning", section 4; Liu et al. 2022, "P-Tuning v2" (no network, all layers). The
    network is the peft library's (one hidden layer).
    """

    name = "prefix"
    aliases = ("prefix_tuning", "p_tuning_v2", "deep_prompt")
    branch = "addition"
    Config = PrefixConfig
    kinds = ("attention",)
    capabilities = Capabilities(identity=False, peft_type="PREFIX_TUNING")
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-1), "tokens": Choice(5, 20, 50)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return anatomy.at("self_attn.core", "decoder") if self._tied(anatomy) else super().sites(anatomy)

    def _tied(self, anatomy: Anatomy) -> bool:
        return self.config.like_peft and anatomy.kind == "encoder_decoder"

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        if self._tied(anatomy) and anatomy.at("embed.decoder_positions"):
            raise UserError(
                f"prefix: like_peft works on encoder-decoders with relative positions; {anatomy.family.model_types[0]} has "
                "learned ones, which the peft library moves and this one does not."
            )
        if self._tied(anatomy) and self.config.reparameterize:
            raise UserError("prefix: like_peft and reparameterize exclude each other on encoder-decoders.")
        chosen = self.sites(anatomy)
        if not anatomy.family.attention_interface and len(chosen) < len(anatomy.at("self_attn.core")):
            raise UserError(
                f"prefix: {anatomy.family.model_types[0]} has attention code of its own and takes its prefix as a cache,"
                " which all layers must have; leave layers at 'all'."
            )

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> PrefixInputs | TiedPrefixes | None:
        if self._tied(anatomy):
            shape = sites[0].heads, self.config.tokens, sites[0].head_size
            return TiedPrefixes(len(sites), lambda: DirectPrefix(*shape))
        if not self.config.reparameterize:
            return None
        return PrefixInputs(self.config.tokens, sites[0].out_features, self.config.hidden)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> KeyValuePrefix:
        if isinstance(shared, TiedPrefixes):
            return TiedPrefix(shared, site.layer or 0)
        if isinstance(shared, PrefixInputs):
            return ReparameterizedPrefix(shared, site.heads, site.head_size)
        return DirectPrefix(site.heads, self.config.tokens, site.head_size)

    def count(self, site: Site) -> int:
        size = site.out_features
        return 2 * size * (self.config.hidden + 1) if self.config.reparameterize else 2 * self.config.tokens * size

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        n, size, hidden = self.config.tokens, sites[0].out_features, self.config.hidden
        if self._tied(anatomy):  # `count` has them once per layer
            pairs = {pair_of(layer, len(sites)) for layer in range(len(sites))}
            return 2 * n * size * (len(pairs) - len(sites))
        return n * size + size * hidden + hidden if self.config.reparameterize else 0

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """PREFIX_TUNING: one table for all layers."""
        return write_prefix(items, anatomy)

    @classmethod
    def from_peft(cls, found: PeftCheckpoint) -> list[ImportedPart] | None:
        return read_prefix(found)
