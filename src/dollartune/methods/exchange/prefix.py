"""Reads and writes peft's PREFIX_TUNING checkpoints; and the prefixes of a decoder as the peft library ties them.

One table (n, 2 L t) of K0 V0 K1 V1 ..., filled into the cache of every layer. In an encoder-decoder the library joins the table
with itself and hands four places to each layer, of which the decoder's self-attention takes the first two (the other two were
for the cross-attention, whose cache is then thrown away): layer i gets pair 2 i mod L, and the encoder gets nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.errors import UserError
from dollartune.methods.edits import KeyValuePrefix, Rows
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart


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
        prefix = copy.copy(self._own())
        prefix.key, prefix.as_text = self.key, True
        return prefix


def write_prefix(items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
    """The table, computed by the network where there is one.

    Raises:
        UserError: peft puts its prefix elsewhere.
    """
    if any(edit.gate is not None for _, edit in items):
        raise UserError("peft has no gated prefixes.")
    tied = anatomy.kind == "encoder_decoder"
    if tied and not all(edit.as_text for _, edit in items):
        raise UserError(
            "peft gives the prefix of an encoder-decoder positions, puts it into the decoder alone and shares it between "
            "layers; this one has no position. Neither can be written as the other.",
            hint="Train with prefix(like_peft=true) to exchange (T5 and its kin), or export with --format dollartune.",
        )
    own = sorted((item for item in items if item[0].role == "self_attn.core"), key=lambda item: item[0].layer or 0)
    if len(own) != len(items) or len(own) != len(anatomy.at("self_attn.core", "decoder" if tied else None)):
        raise UserError("peft's prefix is in the self-attention of every layer; this adapter's is not.")
    site, layers = own[0][0], len(own)
    with torch.no_grad():
        pairs = [edit.prefix(Rows()) for _, edit in own]
        table = pairs[0][0].new_zeros(pairs[0][0].shape[1], 2 * layers, site.heads, site.head_size)
        for layer, pair in enumerate(pairs):
            place = 2 * (pair_of(layer, layers) if tied else layer)
            table[:, place], table[:, place + 1] = (t.transpose(0, 1) for t in pair)
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


def read_prefix(found: PeftCheckpoint) -> list[ImportedPart]:
    """Trained directly from now on: peft stores what its network computed.

    Raises:
        UserError: the table has another size, or belongs to an encoder-decoder with learned positions.
    """
    tied = found.anatomy.kind == "encoder_decoder"
    if tied and found.anatomy.at("embed.decoder_positions"):
        raise UserError(
            f"peft moves the learned positions of {found.anatomy.family.model_types[0]} by its prefix; here a prefix of an "
            "encoder-decoder moves none, so this adapter cannot be imported.",
            hint="LoRA and prompt tuning can be exchanged.",
        )
    sites = sorted(found.anatomy.at("self_attn.core", "decoder" if tied else None), key=lambda site: site.layer or 0)
    table = found.modules[""]["prompt_embeddings"]
    layers, heads, size = len(sites), sites[0].heads, sites[0].head_size
    if table.shape[1] != 2 * layers * heads * size:
        raise UserError(
            f"the peft prefix has {table.shape[1]} numbers per place; {layers} layers of {heads} heads of {size} have "
            f"{2 * layers * heads * size}."
        )
    places = table.view(table.shape[0], 2 * layers, heads, size).permute(1, 2, 0, 3)
    tensors: dict[str, dict[str, Tensor]] = {}
    for layer, site in enumerate(sites):
        pair = pair_of(layer, layers) if tied else layer
        path = f"table.pairs.{pair}." if tied else ""
        tensors[site.name] = {f"{path}key_prefix": places[2 * pair], f"{path}value_prefix": places[2 * pair + 1]}
    if tied:
        found.notes.append(
            "as in peft, the prefix is in the decoder's self-attention alone"
            + (", and layers share it in pairs." if layers % 2 == 0 else ".")
        )
    settings = {"tokens": table.shape[0], "where": "self_attn", **({"like_peft": True} if tied else {})}
    return [ImportedPart("prefix", settings, tensors)]
