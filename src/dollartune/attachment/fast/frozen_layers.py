"""Which leading layers no edit of an adapter touches: the frozen prefix. Their outputs are the backbone's own.

embeddings ──> [ 0 ] ──> [ 1 ] ──> [ 2 ] ──> [ 3 ] ──> norm ──> head
               `─ frozen, 2 of 4 ─'  `─ edited ─'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site

LayerCounts = Mapping[str, int]
"""Stack -> number of leading layers."""


def untouched_layers(sites: Iterable[Site], anatomy: Anatomy) -> dict[str, int]:
    """The frozen prefix of a backbone that is edited at these sites: stack -> leading layers that compute what they always do.

    A decoder that reads an edited encoder has none, nor has a backbone whose embeddings or positions change (virtual tokens;
    prefixes, which shift positions except in encoder-decoder models).
    """
    counts = dict(anatomy.layer_counts)
    if anatomy.family.guessed:  # of a family that nobody has looked at, layers may read more than the one before them
        return dict.fromkeys(counts, 0)
    encoder_edited = False
    for site in sites:
        # a head, or a pooler that was drawn with it: both read the last layer
        if site.kind == "head":
            continue
        if site.stack == "" or (site.kind == "attention" and anatomy.kind != "encoder_decoder"):
            return dict.fromkeys(counts, 0)
        # the final norm is above its layers; all else without a layer of its own stands before them
        whole = counts[site.stack] if site.role == "norm.final" else 0
        counts[site.stack] = min(counts[site.stack], whole if site.layer is None else site.layer)
        encoder_edited = encoder_edited or site.stack == "encoder"
    for name, stack in anatomy.family.stacks.items():
        # ALBERT's layers are one layer run again and again: an edit of any is an edit of the first
        if stack.recurrent and name in counts and counts[name] < anatomy.layer_counts[name]:
            counts[name] = 0
    if anatomy.kind == "encoder_decoder" and encoder_edited:
        counts["decoder"] = 0
    return counts


def shared_layers(counts: Iterable[LayerCounts]) -> dict[str, int]:
    """The frozen prefix that several adapters share."""
    fewest: dict[str, int] = {}
    for one in counts:
        fewest = {stack: min(layers, fewest.get(stack, layers)) for stack, layers in one.items()}
    return fewest


def decoder_is_fed(kind: str, inputs: Mapping[str, Any]) -> bool:
    """Whether a batch has what the decoder reads. Classifiers on encoder-decoders make it inside their own forward, so that
    only the encoder has a frozen prefix."""
    return kind != "encoder_decoder" or "decoder_input_ids" in inputs
