"""Virtual tokens and prefixes: how they enter embeddings, masks and positions, for rows with different numbers of them.

    decoder, text          [unused | padding | virtual | tokens | padding]      positions count what is not masked
    decoder, classifier    [unused | padding | virtual | tokens]                its last place is what the head reads
    encoder                [virtual | tokens | padding | unused]                positions just run on
    vision                 [tokens | virtual | unused]                          attention has no order here

Rows of one batch may belong to adapters with 0, 20 and 100 virtual tokens; each row's result equals its result alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.attention import prefix_cache
from dollartune.backbones.forward_inputs import takes
from dollartune.backbones.module_outputs import states_of
from dollartune.backbones.positions import position_limit
from dollartune.backbones.token_table import output_head
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attachment.pass_state import PassState
    from dollartune.attachment.routed_model import RoutedModel
    from dollartune.attachment.routing import Assignment
    from dollartune.backbones.anatomy import Anatomy
    from dollartune.methods.edits import VirtualTokens

_PER_TOKEN = {
    "attention_mask": (1, 0),
    "decoder_attention_mask": (1, 0),
    "token_type_ids": (0, 0),
    "labels": (-100, -100),
}
"""Inputs with one number per token: what virtual tokens and unused places get there."""


@dataclass(frozen=True)
class Arrangement:
    """Where the tokens of a stack go when virtual ones join them.

    Args:
        groups: for each run of rows, (rows, virtual tokens before, virtual tokens after the first), (rows, n, d_model).
        longest: most virtual tokens of any row.
        pads: (rows,) padding places before the first token, or None where no row has any.
        compact: rows begin with their tokens and end with what is unused, else the other way round.
        behind: tokens after the first go behind all (images: attention knows no order, and DeiT's second is special).
    """

    groups: tuple[tuple[slice, list[Tensor], list[Tensor]], ...]
    longest: int
    pads: Tensor | None
    compact: bool
    behind: bool

    @property
    def even(self) -> bool:
        """Whether all rows have the same number of virtual tokens."""
        return len({sum(t.shape[1] for t in (*before, *after)) for _, before, after in self.groups}) == 1

    def __call__(self, tokens: Tensor, virtual: Any, unused: float) -> Tensor:
        """tokens (rows, tokens, ...) -> (rows, longest + tokens, ...), with a filling for new places.

        `virtual` is that filling, or None for the virtual tokens themselves.
        """
        return torch.cat(
            [self._group(tokens[rows], rows, before, after, virtual, unused) for rows, before, after in self.groups]
        )

    def _group(
        self, given: Tensor, rows: slice, before: list[Tensor], after: list[Tensor], virtual: Any, unused: float
    ) -> Tensor:
        if virtual is not None:
            before, after = (
                [given.new_full((given.shape[0], t.shape[1]), virtual) for t in block] for block in (before, after)
            )
        length = sum(t.shape[1] for t in (*before, *after))
        # (rows, unused places, ...)
        rest = given.new_full((given.shape[0], self.longest - length, *given.shape[2:]), unused)
        pads = None if self.pads is None else self.pads[rows]
        # encoders and images: attention sees everything that the mask shows, so unused positions may stand at the end
        if self.compact:
            if pads is not None and length:
                given = _reordered(given, lambda places: (places + pads[:, None]) % given.shape[1])
            if self.behind:
                return torch.cat([*before, given, *after, rest], dim=1)
            head, tail = (given[:, :1], given[:, 1:]) if after else (given[:, :0], given)
            return torch.cat([*before, head, *after, tail, rest], dim=1)
        # decoders write on at the right end, so what is unused goes to the left
        joined = torch.cat([rest, *before, *after, given], dim=1)
        if pads is None or not length:
            return joined
        start = rest.shape[1] + pads[:, None]  # the virtual tokens go between the padding and the first token

        def order(places: Tensor) -> Tensor:
            padding = torch.where(places >= rest.shape[1], places + length, places)
            return torch.where(
                places < start, padding, torch.where(places < start + length, places - pads[:, None], places)
            )

        return _reordered(joined, order)

    def positions(self, rows: int, tokens: int, device: torch.device) -> Tensor:
        """(rows, tokens): where each token is now."""
        # Tokens numbered from 1 and arranged like any others: where a number comes to lie is where its token is; 0
        # marks places that are none.
        old = self(torch.arange(1, tokens + 1, device=device).expand(rows, -1), 0, 0)
        new = torch.arange(old.shape[1], device=device).expand(rows, -1)
        return new.new_zeros(rows, tokens + 1).scatter(1, old, new)[:, 1:]  # column 0 gathers all that are no token


@dataclass(frozen=True)
class PreparedInputs:
    """What `prepare_inputs` makes of a batch."""

    inputs: dict[str, Any]
    """The model's keyword arguments."""
    positions: Tensor | None
    """(rows, tokens): where each token of the stack that answers is now; None: unmoved."""
    state: PassState
    """What the pass is to run under: edits know the batch's rows and which of its tokens are the prompt's."""


def prepare_inputs(
    attached: RoutedModel, inputs: dict[str, Any], prompt_lengths: Tensor | None, generating: bool = False
) -> PreparedInputs:
    """Turns plain inputs into what the backbone needs under the current route. Changes nothing.

    Args:
        inputs: what the model takes; input_ids and masks (rows, tokens), pixel_values (rows, channels, height, width).
        prompt_lengths: (rows,) number of prompt tokens per row; None: all tokens are the prompt's.
        generating: the inputs are a prompt that `model.generate` goes on from.

    Raises:
        UserError: the input no longer fits the backbone's positions, or its head cannot be used with virtual tokens.
    """
    inputs = dict(inputs)
    anatomy, kind = attached.anatomy, attached.anatomy.kind
    first = next(v for v in inputs.values() if isinstance(v, Tensor))
    # scratch made anew: no pass may read what another one captured
    state = replace(attached.state, batch_rows=first.shape[0], captured_inputs={})
    prompt = _prompt_mask(attached, inputs, prompt_lengths)
    if kind == "vision" or not any(a.adapter and (a.adapter.virtual or a.adapter.prefixes) for a in state.route):
        return PreparedInputs(inputs, None, tell_edits(state, anatomy, prompt))
    positions = None
    if kind == "encoder_decoder":
        if _has_virtual(state, "encoder") and "input_ids" in inputs:
            if getattr(attached.model, "classification_head", None) is not None:
                raise UserError(
                    f"{type(attached.model).__name__} finds its classes at the ids' end-of-text token, which virtual"
                    " tokens replace; use objective: language, or a prefix."
                )
            _, prompt, state = _insert(attached, state, "encoder", inputs, prompt)
        if not generating and _has_virtual(state, "decoder"):
            if "decoder_input_ids" not in inputs:
                inputs["decoder_input_ids"] = attached.model.prepare_decoder_input_ids_from_labels(inputs["labels"])  # type: ignore[operator]
            positions, _, state = _insert(attached, state, "decoder", inputs, None, ("labels",), "decoder_")
        return PreparedInputs(inputs, positions, tell_edits(state, anatomy, prompt))
    stack = "decoder" if kind == "decoder" else "encoder"
    start = None
    if _has_virtual(state, stack):
        if _reads_last(attached):
            if state.layout is not None:  # padding goes to the left
                state = replace(state, layout=replace(state.layout, right_padded=False))
        elif state.layout is not None and state.layout.right_padded:
            start = max(_virtual_lengths(state, stack))
        positions, prompt, state = _insert(attached, state, stack, inputs, prompt, ("token_type_ids", "labels"))
    elif inputs.get("attention_mask") is None:
        # `_add_prefixes` counts positions by it and widens it
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    state = tell_edits(state, anatomy, prompt, start)
    with attached.under(state):
        _add_prefixes(attached, inputs, generating)
    return PreparedInputs(inputs, positions, state)


def insert_virtual(
    state: PassState, anatomy: Anatomy, stack: str, embeddings: Tensor, mask: Tensor | None
) -> tuple[Tensor, Arrangement]:
    """Puts each row's virtual tokens among its embeddings (rows, tokens, d_model); says how other inputs follow."""
    kind = anatomy.kind
    groups = []
    for assignment in state.covering(embeddings.shape[0]):
        edits: list[VirtualTokens] = assignment.adapter.virtual.get(stack, []) if assignment.adapter else []
        start, stop, _ = assignment.rows.indices(embeddings.shape[0])
        before: list[Tensor] = []
        after: list[Tensor] = []
        for edit in edits:
            tokens = edit.tokens(assignment.context).to(embeddings.dtype)
            # a class token stays first: classifiers read position 0
            behind = kind in ("encoder", "vision") if edit.after_first is None else edit.after_first
            (after if behind else before).append(tokens if tokens.dim() == 3 else tokens.expand(stop - start, -1, -1))
        if after and kind == "decoder":
            before, after = [*before, *after], []  # a decoder's tokens all see the first one anyway
        groups.append((slice(start, stop), before, after))
    longest = max(sum(t.shape[1] for t in (*before, *after)) for _, before, after in groups)
    pads = None
    known = state.layout is not None and state.layout.right_padded
    # unasked whether there is any: asking a GPU's tensor waits for it
    if mask is not None and not known:
        pads = mask.long().argmax(dim=1)
    arrangement = Arrangement(tuple(groups), longest, pads, compact=kind != "decoder", behind=kind == "vision")
    return arrangement(embeddings, None, 0.0), arrangement


def _insert(
    attached: RoutedModel,
    state: PassState,
    stack: str,
    inputs: dict[str, Any],
    prompt: Tensor | None,
    followers: tuple[str, ...] = (),
    decoder: str = "",
) -> tuple[Tensor, Tensor | None, PassState]:
    """Replaces token ids by embeddings with virtual tokens, in `inputs`; the mask and the `followers` go with them.

    `decoder` is the prefix of the input names of an encoder-decoder's decoder.

    Returns:
        Where each token is now, the prompt's mask (rows, tokens) for the new positions, and the state with the new layout.
    """
    ids, mask = f"{decoder}input_ids", f"{decoder}attention_mask"
    tokens = inputs.pop(ids)
    if inputs.get(mask) is None:
        inputs[mask] = torch.ones_like(tokens)
    # virtual tokens have no ids, so embeddings are computed here and the model starts from them
    embedding = attached.model.get_submodule(attached.anatomy.at("input", stack)[0].entry)
    order = None
    if _reads_last(attached):  # and it will have no ids; where rows have no padding this changes nothing
        # argmax of the mirrored mask: the first one from the right, wherever padding is.
        ends = tokens.shape[1] - inputs[mask].long().flip(1).argmax(dim=1)
        order = (torch.arange(tokens.shape[1], device=tokens.device) + ends[:, None]) % tokens.shape[1]
        tokens = tokens.gather(1, order)
        prompt = None if prompt is None else prompt.gather(1, order)
    tokens_mask = inputs[mask] if order is None else inputs[mask].gather(1, order)
    moved, arrangement = insert_virtual(state, attached.anatomy, stack, states_of(embedding(tokens)), tokens_mask)
    if state.layout is not None and attached.anatomy.kind == "decoder":
        even = state.layout.right_padded and arrangement.even
        state = replace(state, layout=replace(state.layout, right_padded=even))
    inputs[ids.replace("input_ids", "inputs_embeds")] = moved
    for name in (mask, *followers):
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.shape == tokens.shape:
            virtual, unused = _PER_TOKEN[name]
            inputs[name] = arrangement(value if order is None else value.gather(1, order), virtual, unused)
    positions = arrangement.positions(tokens.shape[0], tokens.shape[1], tokens.device)
    return positions, None if prompt is None else arrangement(prompt, 0, 0), state


def _add_prefixes(attached: RoutedModel, inputs: dict[str, Any], generating: bool) -> None:
    """Positions start after each row's prefix, as if it were a cache; where it has to be one, it becomes one."""
    mask = inputs["attention_mask"]
    lengths, longest = prefix_lengths(attached.state, mask.shape[0], mask.device)
    embedding = _position_embedding(attached)
    padding = getattr(embedding, "padding_idx", None)
    limit = position_limit(attached.model.config)
    if embedding is not None and limit is not None and mask.shape[1] + longest > limit:
        raise UserError(
            f"{mask.shape[1]} tokens and a prefix of {longest} do not fit the backbone's {limit} positions.",
            hint="Shorten the inputs, or use fewer virtual tokens.",
        )
    if attached.anatomy.kind == "decoder":
        if takes(attached.model, "position_ids"):
            # clamped: padding before a row would be at -1
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0) + lengths[:, None]
    elif longest and embedding is not None:
        # a prefix takes the first positions, as a text before the row would
        running = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape) + lengths[:, None]
        if padding is not None:  # RoBERTa's positions start after that of the padding and leave padding out
            running = (mask.long().cumsum(-1) + lengths[:, None]) * mask.long() + padding
        inputs["position_ids"] = running
    if longest and not attached.anatomy.family.attention_interface:
        inputs["past_key_values"], visible = prefix_cache(attached, mask.shape[0])
        # the cache's positions count as keys, so the mask must be as wide as both
        inputs["attention_mask"] = torch.cat([visible.to(mask.dtype), mask], dim=1)
        if "inputs_embeds" in inputs and generating:  # `generate` cuts off as many places as the cache has
            embeddings = inputs["inputs_embeds"]
            inputs["inputs_embeds"] = torch.cat(
                [embeddings.new_zeros(mask.shape[0], longest, embeddings.shape[2]), embeddings], dim=1
            )


def insert_in_decoder(attached: RoutedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Puts virtual tokens before the first tokens that an encoder-decoder's decoder is given while generating."""
    cache = inputs.get("past_key_values")
    if inputs.get("decoder_input_ids") is None or (cache is not None and cache.get_seq_length()):
        return inputs
    inputs = dict(inputs)
    # generate's own mask is for the ids alone; all virtual tokens are visible anyway
    inputs["decoder_attention_mask"] = None
    _insert(attached, attached.state, "decoder", inputs, None, decoder="decoder_")
    return inputs


def decoder_lengths(state: PassState, rows: int) -> list[int]:
    """Virtual tokens of each run of rows in the decoder of an encoder-decoder."""
    edits_of = [a.adapter.virtual.get("decoder", []) if a.adapter else [] for a in state.covering(rows)]
    return [sum(edit.length for edit in edits) for edits in edits_of]


def prefix_lengths(state: PassState, rows: int, device: torch.device) -> tuple[Tensor, int]:
    """(rows,) positions of each row's prefix, and the most of any."""
    longest = 0
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    for assignment in state.route:
        if assignment.adapter is not None and assignment.adapter.prefixes:
            sites = assignment.adapter.prefixes.values()
            length = max(sum(edit.length for _, edit in edits) for edits in sites)
            lengths[assignment.rows] = length
            longest = max(longest, length)
    return lengths, longest


def _reordered(tokens: Tensor, order: Any) -> Tensor:
    """tokens (rows, tokens, ...) in an order that differs by row: `order` maps new positions to old."""
    sources = order(torch.arange(tokens.shape[1], device=tokens.device)[None, :])
    return tokens[torch.arange(tokens.shape[0], device=tokens.device)[:, None], sources]


def _has_virtual(state: PassState, stack: str) -> bool:
    return any(a.adapter is not None and a.adapter.virtual.get(stack) for a in state.route)


def _position_embedding(attached: RoutedModel) -> Any:
    """The module of learned absolute positions, if the family has one."""
    sites = attached.anatomy.at("embed.positions")
    return attached.model.get_submodule(sites[0].entry) if sites else None


def _prompt_mask(attached: RoutedModel, inputs: dict[str, Any], prompt_lengths: Tensor | None) -> Tensor | None:
    """(rows, tokens) bool, true at the prompt's tokens; None for images."""
    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if ids is None:
        return None
    mask = inputs.get("attention_mask")
    mask = torch.ones(ids.shape[:2], device=ids.device) if mask is None else mask
    prompt: Tensor = mask.bool()
    if prompt_lengths is not None and attached.anatomy.kind == "decoder":
        # counted in real tokens, wherever the padding stands
        prompt = prompt & (mask.long().cumsum(-1) <= prompt_lengths[:, None])
    return prompt


def _reads_last(attached: RoutedModel) -> bool:
    """Whether the backbone is a decoder that classifies, and finds the place to read by its input's ids."""
    return attached.anatomy.kind == "decoder" and output_head(attached.model) is None


def _virtual_lengths(state: PassState, stack: str) -> list[int]:
    """Virtual tokens of each piece of the route in a stack."""
    edits_of = [a.adapter.virtual.get(stack, []) if a.adapter is not None else [] for a in state.route]
    return [sum(edit.length for edit in edits) for edits in edits_of]


def tell_edits(state: PassState, anatomy: Anatomy, prompt: Tensor | None, start: int | None = None) -> PassState:
    """The state in which edits know which tokens are the prompt's.

    Args:
        prompt: (rows, tokens) bool; None: no token is.
        start: position of the first real token, where it is known.
    """
    stack = "decoder" if anatomy.kind == "decoder" else "encoder"
    masks = {} if prompt is None else {stack: prompt}
    moved = stack == "decoder" and prompt is not None and _has_virtual(state, stack)

    def told(assignment: Assignment) -> Assignment:
        rows_masks = {name: mask[assignment.rows] for name, mask in masks.items()}
        first: int | Tensor = 0
        if moved:
            first = start if start is not None else rows_masks["decoder"].any(dim=0).long().argmax()
        return replace(assignment, context=replace(assignment.context, prompt_mask=rows_masks, start=first))

    return replace(state, route=tuple(told(assignment) for assignment in state.route))
