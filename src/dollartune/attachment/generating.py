"""`model.generate` under a route, virtual tokens and prefixes included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dollartune.attachment.fast.unused_outputs import keeping_nothing
from dollartune.attachment.inputs import decoder_lengths, insert_in_decoder, prepare_inputs, tell_edits
from dollartune.backbones.marks import decoder_start
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Greedy decoding but for what a call asks for: nothing of what a checkpoint stores (penalties, least lengths, forced
    tokens, beams).

    The same weights scored rougeL 0.014 or 0.127 by those settings, and the server follows none of them. They are taken off
    the model, since `generate` fills gaps in the settings it is given from there.
    """
    from transformers import GenerationConfig

    stored = getattr(model, "generation_config", None)
    # What a pass cannot do without: where an encoder-decoder's answer starts, as in training.
    start = decoder_start(model) if getattr(model.config, "is_encoder_decoder", False) else None
    begin = getattr(model.config, "bos_token_id", None)
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, decoder_start_token_id=start, bos_token_id=begin
    )
    try:
        yield
    finally:
        model.generation_config = stored


def generate(attached: RoutedModel, inputs: dict[str, Any]) -> Tensor:
    """Generates for every row of `inputs` (what `model.generate` takes) through the adapter of its row.

    Where a call says nothing else it is greedy, whatever decoding settings the checkpoint stores; `generation_config` among the
    inputs is a call's own.
    """
    if inputs.get("generation_config") is not None:
        return _generate(attached, inputs)
    with _own_settings(attached.model):
        return _generate(attached, inputs)


def _generate(attached: RoutedModel, inputs: dict[str, Any]) -> Tensor:
    """As `generate`, under the settings that the model has now.

    Returns:
        (rows · sequences per row, new tokens): what was written, without the prompt (an encoder-decoder's begins with
        its start token).
    """
    model: Any = attached.model
    family = attached.anatomy.family
    rows = next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor))
    mask = inputs.get("attention_mask")
    if family.counts_padding and isinstance(mask, Tensor) and not bool(mask.all()):
        return _generate_by_length(attached, inputs, mask)
    virtual = any(a.adapter and a.adapter.virtual for a in attached.state.route)
    if not family.generates or (virtual and not family.writes_from_embeddings):
        return _generate_by_whole_passes(attached, inputs, rows)
    inside = attached.anatomy.kind == "encoder_decoder" and any(lengths := decoder_lengths(attached.state, rows))
    if inside and len(set(lengths)) > 1:
        return _generate_apart(attached, inputs, rows)
    ready = prepare_inputs(attached, inputs, None, generating=True)
    prepared = ready.inputs
    settings = prepared.get("generation_config") or model.generation_config
    beams, sequences = (
        prepared.get(name) or getattr(settings, name, None) or 1 for name in ("num_beams", "num_return_sequences")
    )
    if "past_key_values" in prepared and max(beams, sequences) > 1:
        # generate repeats inputs for beams, but takes a given cache as it is
        prepared["past_key_values"].batch_repeat_interleave(max(beams, sequences))
    handles = []
    if attached.anatomy.kind == "decoder":  # after the prompt, single tokens follow that are not part of it

        def after_the_prompt(*_: Any) -> None:
            attached.continue_under(tell_edits(attached.state, attached.anatomy, None))

        handles.append(model.register_forward_hook(after_the_prompt))
    if inside:
        hook = lambda module, args, kwargs: (args, insert_in_decoder(attached, kwargs))  # noqa: E731
        handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad(), attached.under(ready.state), attached.exclusive_values():
            tokens: Tensor = model.generate(**prepared)
    finally:
        for handle in handles:
            handle.remove()
    # with embeddings as input there is no prompt in what generate gives back
    if attached.anatomy.kind == "decoder" and "input_ids" in prepared:
        tokens = tokens[:, prepared["input_ids"].shape[1] :]
    return tokens


def _generate_apart(attached: RoutedModel, inputs: dict[str, Any], rows: int) -> Tensor:
    """Generates for each run of rows by itself: decoders without position inputs cannot hold rows that start apart."""
    pieces = []
    for assignment in list(attached.state.covering(rows)):
        with attached.changed(route=(replace(assignment, rows=slice(None)),), batch_rows=0, layout=None):
            pieces.append(_generate(attached, _some_rows(inputs, rows, assignment.rows)))
    return _together(pieces, _padding(attached, inputs))


def _generate_by_length(attached: RoutedModel, inputs: dict[str, Any], mask: Tensor) -> Tensor:
    """Generates for rows of one length at a time, without the padding before them: this family's code counts it."""
    rows, tokens = mask.shape
    lengths = mask.sum(-1)
    pieces: list[Tensor] = [mask.new_zeros(0, 0)] * rows
    for assignment in list(attached.state.covering(rows)):
        own = torch.arange(rows, device=mask.device)[assignment.rows]
        for length in lengths[own].unique().tolist():
            alike = own[lengths[own] == length]
            some = {
                name: value[:, tokens - length :]
                if isinstance(value, Tensor) and value.shape[1:2] == (tokens,)
                else value
                for name, value in _some_rows(inputs, rows, alike).items()
            }
            with attached.changed(route=(replace(assignment, rows=slice(None)),), batch_rows=0, layout=None):
                written = _generate(attached, some)
            for row, text in zip(alike.tolist(), written, strict=True):
                pieces[row] = text[None]
    return _together(pieces, _padding(attached, inputs))


_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
"""What changes nothing of greedy text."""
_GREEDY = {
    "input_ids",
    "attention_mask",
    "max_new_tokens",
    "min_new_tokens",
    "eos_token_id",
    "pad_token_id",
    "suppress_tokens",
}
"""What is understood where transformers' `generate` cannot be asked."""


def _generate_by_whole_passes(attached: RoutedModel, inputs: dict[str, Any], rows: int) -> Tensor:
    """Greedy text where transformers' `generate` takes no embeddings of a class (CTRL, the first GPT) or writes something else
    than whole passes say: each row by itself, a whole pass for each token.

    Raises:
        UserError: another way of decoding is asked for.
    """
    asked = {n for n, value in inputs.items() if value is not None and value is not False and n not in _GREEDY}
    if unknown := sorted(name for name in asked if inputs[name] != _NEUTRAL.get(name)):
        raise UserError(
            f"{type(attached.model).__name__} is asked for each token by a whole pass here, greedily; "
            f"{', '.join(unknown)} cannot be followed."
        )
    if inputs.get("max_new_tokens") is None:
        raise UserError("generate is to be told how many tokens to write: max_new_tokens.")
    if inputs.get("attention_mask") is None:
        inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    ends = inputs.get("eos_token_id")
    ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    pieces = []
    for assignment in list(attached.state.covering(rows)):
        some = _some_rows(inputs, rows, assignment.rows)
        with (
            torch.no_grad(),
            attached.changed(route=(replace(assignment, rows=slice(None)),), batch_rows=0, layout=None),
        ):
            for ids, mask in zip(some["input_ids"], some["attention_mask"].bool(), strict=True):
                pieces.append(_greedy_row(attached, ids[mask][None], inputs, ends))
    return _together(pieces, _padding(attached, inputs))


def _greedy_row(attached: RoutedModel, prompt: Tensor, inputs: dict[str, Any], ends: set[int]) -> Tensor:
    """(1, new tokens) after a prompt (1, tokens)."""
    length, ids = prompt.shape[1], prompt
    for written in range(int(inputs["max_new_tokens"])):
        mask = torch.ones_like(ids)
        ready = prepare_inputs(attached, {"input_ids": ids, "attention_mask": mask}, mask.new_tensor([length]))
        with attached.under(ready.state), attached.exclusive_values():
            logits = attached.model(**keeping_nothing(attached.model, ready.inputs)).logits[0, -1].float()
        logits[inputs.get("suppress_tokens") or []] = float("-inf")
        if written < int(inputs.get("min_new_tokens") or 0):
            logits[list(ends)] = float("-inf")
        token = logits.argmax()
        ids = torch.cat([ids, token[None, None]], dim=1)
        if int(token) in ends:
            break
    return ids[:, length:]


def _some_rows(inputs: dict[str, Any], rows: int, chosen: slice | Tensor) -> dict[str, Any]:
    return {
        name: value[chosen] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
        for name, value in inputs.items()
    }


def _padding(attached: RoutedModel, inputs: dict[str, Any]) -> int:
    config: Any = attached.model.generation_config
    stated = inputs.get("pad_token_id")
    return int(stated if stated is not None else config.pad_token_id or 0)


def _together(pieces: list[Tensor], padding: int) -> Tensor:
    """Texts that end at different lengths as one tensor; what follows an end mark is padding everywhere in transformers."""
    longest = max(piece.shape[1] for piece in pieces)
    return torch.cat([functional.pad(piece, (0, longest - piece.shape[1]), value=padding) for piece in pieces])
