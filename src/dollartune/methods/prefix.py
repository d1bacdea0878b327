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

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        chosen = self.sites(anatomy)
        if not anatomy.family.attention_interface and len(chosen) < len(anatomy.at("self_attn.core")):
            raise UserError(
                f"prefix: {anatomy.family.model_types[0]} has attention code of its own and takes its prefix as a cache,"
                " which all layers must have; leave layers at 'all'."
            )

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> PrefixInputs | None:
        if not self.config.reparameterize:
            return None
        return PrefixInputs(self.config.tokens, sites[0].out_features, self.config.hidden)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> DirectPrefix | ReparameterizedPrefix:
        if isinstance(shared, PrefixInputs):
            return ReparameterizedPrefix(shared, site.heads, site.head_size)
        return DirectPrefix(site.heads, self.config.tokens, site.head_size)

    def count(self, site: Site) -> int:
        size = site.out_features
        return 2 * size * (self.config.hidden + 1) if self.config.reparameterize else 2 * self.config.tokens * size

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        n, size, hidden = self.config.tokens, sites[0].out_features, self.config.hidden
        return n * size + size * hidden + hidden if self.config.reparameterize else 0

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """PREFIX_TUNING: one table (n, 2 · layers · t), K0 V0 K1 V1 ..., computed by the network where there is one."""
        _require_same_positions(anatomy)
        if any(edit.gate is not None for _, edit in items):
            raise UserError("peft has no gated prefixes.")
        own = [(site, edit) for site, edit in items if site.role == "self_attn.core"]
        if len(own) != len(items) or len(own) != len(anatomy.at("self_attn.core")):
            raise UserError("peft's prefix is in the self-attention of every layer; this adapter's is not.")
        with torch.no_grad():
            pairs = [edit.prefix(Rows()) for _, edit in sorted(own, key=lambda item: item[0].layer or 0)]
            table = torch.stack(
                [t.transpose(0, 1) for pair in pairs for t in pair], dim=1
            )  # (n, 2 layers, heads, head_size)
        site = own[0][0]
        settings = {
            "num_virtual_tokens": table.shape[0],
            "num_transformer_submodules": 1,
            "num_layers": len(own),
            "prefix_projection": False,
            "num_attention_heads": site.heads,
            "token_dim": site.heads * site.head_size,
            "encoder_hidden_size": site.heads * site.head_size,
        }
        return PeftPart("PREFIX_TUNING", settings, {"prompt_embeddings": table.flatten(1)}, ())

    @classmethod
    def from_peft(cls, found: PeftCheckpoint) -> list[ImportedPart] | None:
        """Trained directly from now on: peft stores what its network computed."""
        _require_same_positions(found.anatomy)
        sites = sorted(found.anatomy.at("self_attn.core"), key=lambda site: site.layer or 0)
        table = found.modules[""]["prompt_embeddings"]
        heads, size = sites[0].heads, sites[0].head_size
        if table.shape[1] != 2 * len(sites) * heads * size:
            raise UserError(
                f"the peft prefix has {table.shape[1]} numbers per place; {len(sites)} layers of {heads} heads of {size} have "
                f"{2 * len(sites) * heads * size}."
            )
        parts = table.view(table.shape[0], 2 * len(sites), heads, size).permute(1, 2, 0, 3)
        tensors = {
            site.name: {"key_prefix": parts[2 * index], "value_prefix": parts[2 * index + 1]}
            for index, site in enumerate(sites)
        }
        return [ImportedPart("prefix", {"tokens": table.shape[0], "where": "self_attn"}, tensors)]


def _require_same_positions(anatomy: Anatomy) -> None:
    if anatomy.kind == "encoder_decoder":
        raise UserError(
            "peft gives the prefix of an encoder-decoder positions (T5's distances, BART's embeddings), puts it into the decoder "
            "alone and uses half of its table; here it has no position. Neither can be written as the other.",
            hint="Export with --format dollartune, or use LoRA or prompt tuning for exchange.",
        )
