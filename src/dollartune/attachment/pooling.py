"""Pooled last states of a backbone, and the scores of what reads them.

inputs ──> layers (no head; of an encoder-decoder the encoder alone) ──> states (rows, tokens, d) ──> pooled ──> Readout
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.fast.unused_outputs import needed_inputs
from dollartune.methods.features import pool

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel
    from dollartune.methods.edits import Readout

OF_THE_ENCODER = ("input_ids", "attention_mask")
"""What the encoder of an encoder-decoder reads."""


def readout_of(attached: RoutedModel) -> Readout | None:
    """What reads the current route's rows in the place of the head; None where the head does."""
    found = [a.adapter.readout for a in attached.state.route if a.adapter is not None and a.adapter.readout is not None]
    return found[0] if found else None  # such an adapter shares no batch, see `Capabilities.mixed_rows`


@torch.no_grad()
def pooled_states(attached: RoutedModel, inputs: Mapping[str, Any], pooling: tuple[str, ...]) -> Tensor:
    """(rows, width) in fp32, of the bare backbone: a row's features depend on its own tokens alone, within rounding.

    Args:
        inputs: of a batch, as the model takes them.
        pooling: as `methods.features.pools` gives it.
    """
    model: Any = attached.model
    given = {name: value for name, value in inputs.items() if value is not None}
    with attached.changed(route=()):
        if attached.anatomy.kind == "encoder_decoder":
            given = {name: value for name, value in given.items() if name in OF_THE_ENCODER}
            # (rows, tokens, d). The decoder would need a first token that nobody has trained to stand for the row.
            states = model.base_model.get_encoder()(**given).last_hidden_state
        else:
            states = model.base_model(**needed_inputs(attached, given)).last_hidden_state
    mask = given.get("attention_mask")
    return pool(states, None if mask is None else mask.to(states.device), pooling)


def read_out(attached: RoutedModel, readout: Readout, inputs: Mapping[str, Any]) -> Any:
    """An output with `logits` (rows, classes), in fp32."""
    features = pooled_states(attached, inputs, readout.pooling)
    return SimpleNamespace(logits=readout.scores(features))
