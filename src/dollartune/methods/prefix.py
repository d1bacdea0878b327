"""Prefix tuning: trained keys and values that every query of an attention sees before the real ones.

softmax( q · [ P_K ; K ]ᵀ ) [ P_V ; V ]        P_K, P_V (n, t) per attention, t = key/value heads x head size

without reparameterization (P-tuning v2): P_K, P_V are the trained tensors
with it:                                  [P_K, P_V] = W₂ tanh(W₁ E + b₁) + b₂,  E (n, t) and W₁ shared by all layers
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import KeyValuePrefix, Rows
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


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
        # Small: large random keys would take most of the attention from the tokens at once.
        self.key_prefix = nn.Parameter(torch.randn(heads, length, head_size) * 0.1)
        self.value_prefix = nn.Parameter(torch.randn(heads, length, head_size) * 0.1)

    def prefix(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return self.key_prefix, self.value_prefix


class PrefixInputs(nn.Module):
    """What all layers share: E (n, t) and the first layer, tanh(W₁ E + b₁) (n, h)."""

    def __init__(self, length: int, size: int, hidden: int) -> None:
        super().__init__()
        # of deviation 1, as the embedding that peft has here
        self.inputs = nn.Parameter(torch.randn(length, size))  # E (n, t)
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
        both = self.last(self.encoder()).view(self.length, 2, self.heads, self.head_size)  # (n, 2, heads, head_size)
        key, value = both.permute(1, 2, 0, 3)  # each (heads, n, head_size)
        return key, value

    @torch.no_grad()
    def frozen(self) -> DirectPrefix:
        prefix = DirectPrefix(self.heads, self.length, self.head_size)
        key, value = self.prefix(Rows())
        prefix.key_prefix, prefix.value_prefix = nn.Parameter(key.clone()), nn.Parameter(value.clone())
        # What belongs to the site and not to the network: its number and its gate.
        prefix.key, prefix.gate = self.key, self.gate
        return prefix


# How the peft library ties the prefixes of a decoder: one table (n, 2 L t) of K0 V0 K1 V1 ..., filled into the cache of
# every layer. In an encoder-decoder it joins the table with itself and hands four places to each layer, of which the decoder's
# self-attention takes the first two (the other two were for the cross-attention, whose cache is then thrown away): layer i
# gets pair 2 i mod L, and the encoder gets nothing.


def pair_of(layer: int, layers: int) -> int:
    """Index of the pair (K, V) that a layer of an encoder-decoder's decoder gets."""
    return 2 * layer % layers


class TiedPrefixes(nn.Module):
    """The prefixes of an encoder-decoder's decoder in the peft library, whose table has L pairs (K, V) and is read twice
    as fast as it should be. With an even L half of the table is never read, and is not here.

    Args:
        layers: L, of the decoder.
        prefix: makes one layer's trained keys and values.
    """

    def __init__(self, layers: int, prefix: Callable[[], KeyValuePrefix]) -> None:
        super().__init__()
        self.layers = layers
        pairs = dict.fromkeys(str(pair_of(layer, layers)) for layer in range(layers))
        self.pairs = nn.ModuleDict({pair: prefix() for pair in pairs})


class TiedPrefix(KeyValuePrefix):
    """One layer's prefix in the shared table."""

    as_text = True

    def __init__(self, table: TiedPrefixes, layer: int) -> None:
        super().__init__()
        self.table, self.pair = table, str(pair_of(layer, table.layers))
        self.length = self._own().length

    def _own(self) -> KeyValuePrefix:
        return self.table.pairs[self.pair]  # type: ignore[return-value]

    def prefix(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return self._own().prefix(rows)

    def frozen(self) -> KeyValuePrefix:
        # a light copy: layers of one pair share its tensors, and each has a number of its own
        prefix = copy.copy(self._own())
        prefix.key, prefix.as_text = self.key, True
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
    small_lr = 0.03
    tiny: ClassVar[Mapping[str, Any]] = {"tokens": 3}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-1), "tokens": Choice(5, 20, 50)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return anatomy.at("self_attn.core", "decoder") if self._tied(anatomy) else super().sites(anatomy)

    def _tied(self, anatomy: Anatomy) -> bool:
        return self.config.like_peft and anatomy.kind == "encoder_decoder"

    @property
    def added_tokens(self) -> int:
        return self.config.tokens

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
        """PREFIX_TUNING: one table for all layers, computed by the network where there is one.

        Raises:
            UserError: peft puts its prefix elsewhere.
        """
        if anatomy.kind == "vision":
            raise UserError("peft has no prefixes for vision transformers.")
        if any(edit.gate is not None for _, edit in items):
            raise UserError("peft has no gated prefixes.")
        tied = anatomy.kind == "encoder_decoder"
        if tied and not all(edit.as_text for _, edit in items):
            raise UserError(
                "peft gives the prefix of an encoder-decoder positions, puts it into the decoder alone and shares it between "
                "layers; this one has no position. Neither can be written as the other.",
                hint="Train with prefix(like_peft=true) to exchange (T5 and its kin), or export with --format dollartune.",
            )
        prefixes = sorted(
            (item for item in items if item[0].role == "self_attn.core"), key=lambda item: item[0].layer or 0
        )
        if len(prefixes) != len(items) or len(prefixes) != len(
            anatomy.at("self_attn.core", "decoder" if tied else None)
        ):
            raise UserError("peft's prefix is in the self-attention of every layer; this adapter's is not.")
        site, layers = prefixes[0][0], len(prefixes)
        if any((one.heads, one.head_size) != (site.heads, site.head_size) for one, _ in prefixes):
            raise UserError(
                "peft's prefix has keys and values of one size for all layers; this backbone's layers differ in it."
            )
        with torch.no_grad():
            pairs = [edit.prefix(Rows()) for _, edit in prefixes]
            table = pairs[0][0].new_zeros(pairs[0][0].shape[1], 2 * layers, site.heads, site.head_size)
            for layer, pair in enumerate(pairs):
                index = 2 * (pair_of(layer, layers) if tied else layer)
                # (heads, n, size) -> (n, heads, size)
                table[:, index], table[:, index + 1] = (t.transpose(0, 1) for t in pair)
        settings = {
            "num_virtual_tokens": table.shape[0],
            "num_transformer_submodules": 2 if tied else 1,
            "num_layers": layers,
            "prefix_projection": False,
            "num_attention_heads": site.heads,
            "token_dim": site.heads * site.head_size,
            "encoder_hidden_size": site.heads * site.head_size,
        }
        return PeftPart("PREFIX_TUNING", settings, {"prompt_embeddings": table.flatten(1)}, ())

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        """Trained directly from now on: peft stores what its network computed.

        Raises:
            UserError: the table has another size, or belongs to an encoder-decoder with learned positions.
        """
        tied = checkpoint.anatomy.kind == "encoder_decoder"
        if tied and checkpoint.anatomy.at("embed.decoder_positions"):
            family = checkpoint.anatomy.family.model_types[0]
            raise UserError(
                f"peft moves the learned positions of {family} by its prefix; here a prefix of an encoder-decoder moves none, "
                "so this adapter cannot be imported.",
                hint="LoRA and prompt tuning can be exchanged.",
            )
        sites = sorted(
            checkpoint.anatomy.at("self_attn.core", "decoder" if tied else None), key=lambda site: site.layer or 0
        )
        table = checkpoint.alone("prompt_embeddings")
        layers, heads, size = len(sites), sites[0].heads, sites[0].head_size
        if table.shape[1] != 2 * layers * heads * size:
            raise UserError(
                f"the peft prefix has {table.shape[1]} numbers per place; {layers} layers of {heads} heads of {size} have "
                f"{2 * layers * heads * size}."
            )
        by_layer = table.view(table.shape[0], 2 * layers, heads, size).permute(1, 2, 0, 3)  # (2 L, heads, n, size)
        tensors: dict[str, dict[str, Tensor]] = {}
        for layer, site in enumerate(sites):
            pair = pair_of(layer, layers) if tied else layer
            path = f"table.pairs.{pair}." if tied else ""
            tensors[site.name] = {
                f"{path}key_prefix": by_layer[2 * pair],
                f"{path}value_prefix": by_layer[2 * pair + 1],
            }
        if tied:
            checkpoint.notes.append(
                "as in peft, the prefix is in the decoder's self-attention alone"
                + (", and layers share it in pairs." if layers % 2 == 0 else ".")
            )
        settings = {"tokens": table.shape[0], "where": "self_attn", **({"like_peft": True} if tied else {})}
        return [ImportedPart("prefix", settings, tensors)]
