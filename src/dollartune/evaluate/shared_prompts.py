"""Prompts that begin alike: the solved examples of few-shot prompting are read once, not once per question.

    [ solved examples | question 1 ]        [ solved examples ]──keys, values──┬─ [ question 1 ]
    [ solved examples | question 2 ]   ->                                      └─ [ question 2 ]

For decoders whose adapter has no places of its own and looks at no prompt as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.backbones.forward_inputs import takes
from dollartune.backbones.kind import has_window
from dollartune.methods.edits import Transform
from dollartune.train.batching import Collator

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded

# Below it the second pass, and the copy of the cache for every row, cost more than reading 32 tokens again.
LEAST = 32
"""Common tokens from which it pays to read them apart."""


@dataclass(frozen=True)
class Group:
    """Prompts with a common beginning."""

    indices: tuple[int, ...]
    common: int
    """Tokens that all of them begin with; each has at least one more. 0: nothing to share."""


def groups(prompts: Sequence[tuple[int, ...]]) -> list[Group]:
    """Divides prompts into groups that begin alike; those that begin like no other are one group without anything common.

    Neighbours in alphabetical order have the longest common beginnings. A group ends where the next prompt would take a
    third off what its prompts have in common.
    """
    # Sorted by tokens, so that prompts with the longest common beginnings are neighbours: one walk instead of all pairs.
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    sharing: list[Group] = []
    alone: list[int] = []
    at = 0
    while at < len(order):
        # At least one token of each prompt stays out: the logits after it are what is asked for.
        members, common = [order[at]], len(prompts[order[at]]) - 1
        for index in order[at + 1 :]:
            shared = min(_common(prompts[members[0]], prompts[index]), common, len(prompts[index]) - 1)
            if shared < LEAST or (len(members) > 1 and shared < 2 * common / 3):
                break
            members, common = [*members, index], shared
        if len(members) > 1:
            sharing.append(Group(tuple(members), common))
        else:
            alone += members
        at += len(members)
    return [*sharing, Group(tuple(sorted(alone)), 0)] if alone else sharing


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def may_go_on(backbone: Backbone) -> bool:
    """Whether a batch whose rows are padded may go on from its cache: each row is then what it is alone. Not so where
    attention counts places (windows), or where a layer keeps something else than keys and values."""
    return backbone.anatomy.keeps_keys and not has_window(backbone.model.config)


def can_share(backbone: Backbone, adapter: Adapter | None) -> bool:
    """Whether a prompt may be read in two parts under this adapter."""
    # Encoders see the whole prompt at once: a beginning has no states of its own there.
    if backbone.kind != "decoder" or not may_go_on(backbone):
        return False
    return adapter is None or not (
        adapter.virtual or adapter.prefixes or any(isinstance(edit, Transform) for _, edit in adapter.items())
    )


def read_beginning(backbone: Backbone, attached: Attached, adapter: str | None, tokens: tuple[int, ...]) -> Any:
    """The cache of a common beginning, of one row."""
    ids = torch.tensor([tokens], device=backbone.device)
    last = torch.zeros(1, dtype=torch.long, device=backbone.device), torch.tensor([len(tokens) - 1], device=ids.device)
    with attached.routed(adapter, batch_rows=1):
        return attached(keep=last, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values


def read_rest(
    backbone: Backbone, attached: Attached, adapter: str | None, rows: Sequence[Encoded], common: int, beginning: Any
) -> tuple[Tensor, Any, Tensor]:
    """Reads what follows a common beginning.

    Returns:
        Logits (rows, vocabulary) after each prompt, the cache of the whole prompts, and their mask (rows, tokens).
    """
    rest = Collator(backbone)([row.rest(common) for row in rows]).to(backbone.device)
    ids, mask = rest.inputs["input_ids"], rest.inputs["attention_mask"]
    mask = torch.cat([mask.new_ones(len(rows), common), mask], dim=1)
    # A pass appends to the cache that it is given; the beginning is needed again for the next batch.
    cache = copy.deepcopy(beginning)
    cache.batch_repeat_interleave(len(rows))
    more: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if takes(backbone.model, "position_ids"):
        # Without them some models count positions from the mask of what is passed, which begins after the common tokens.
        # repeated, not expanded: some families reshape them in place (Kosmos-2)
        more["position_ids"] = (common + torch.arange(ids.shape[1], device=ids.device)).repeat(len(rows), 1)
    with attached.routed(adapter, batch_rows=len(rows)):
        output = attached(keep=rest.keep, **more)
    return output.logits[0], output.past_key_values, mask
