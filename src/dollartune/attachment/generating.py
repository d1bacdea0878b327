"""`model.generate` under a route, virtual tokens and prefixes included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dollartune.attachment.inputs import decoder_lengths, insert_in_decoder, prepare_inputs, tell_edits
from dollartune.backbones.marks import decoder_start

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
    rows = next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor))
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
        some_rows = {
            name: value[assignment.rows] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
            for name, value in inputs.items()
        }
        with attached.changed(route=(replace(assignment, rows=slice(None)),), batch_rows=0, layout=None):
            pieces.append(_generate(attached, some_rows))
    longest = max(piece.shape[1] for piece in pieces)
    config: Any = attached.model.generation_config
    stated = inputs.get("pad_token_id")
    # pieces end at different lengths; what follows an end mark is padding everywhere in transformers
    padding = int(stated if stated is not None else config.pad_token_id or 0)
    return torch.cat([functional.pad(piece, (0, longest - piece.shape[1]), value=padding) for piece in pieces])
