"""Pooled last states of a backbone, and the scores of what reads them.

inputs ──> layers (no head; of an encoder-decoder the encoder alone) ──> states (rows, tokens, d) ──> pooled ──> Readout
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.attachment.fast.unused_outputs import needed_inputs
from dollartune.backbones.forward_inputs import takes
from dollartune.backbones.module_outputs import states_of
from dollartune.methods.features import MIDDLE, middle_layer, pool

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel
    from dollartune.methods.edits import Readout

OF_THE_ENCODER = ("input_ids", "attention_mask")
"""What the encoder of an encoder-decoder reads."""


def readout_of(attached: RoutedModel) -> Readout | None:
    """What reads the current route's rows in the place of the head; None where the head does."""
    readouts = [
        a.adapter.readout for a in attached.state.route if a.adapter is not None and a.adapter.readout is not None
    ]
    return readouts[0] if readouts else None  # such an adapter shares no batch, see `Capabilities.mixed_rows`


@torch.no_grad()
def pooled_states(
    attached: RoutedModel, inputs: Mapping[str, Any], pooling: tuple[str, ...], routed: bool = False
) -> Tensor:
    """(rows, width) in fp32, of the bare backbone: a row's features depend on its own tokens alone, within rounding.

    Args:
        inputs: of a batch, as the model takes them.
        pooling: as `methods.features.pools` gives it.
        routed: under the current route, whose adapters have no virtual tokens, in place of the bare backbone.
    """
    model: Any = attached.model
    given = {name: value for name, value in inputs.items() if value is not None}
    if not pooling:  # a readout of tokens alone (`tfidf_probe`)
        first = next(iter(given.values()))
        return torch.zeros(first.shape[0], 0, device=first.device)
    middle: list[Tensor] = []
    handle = None
    if any(name.endswith(MIDDLE) for name in pooling):
        path = middle_layer(attached.anatomy)
        assert path is not None  # `pools` refuses it otherwise

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            states = states_of(output)
            middle.append(states.transpose(0, 1) if attached.anatomy.gets_tokens_first(path) else states)

        handle = attached.model.get_submodule(path).register_forward_hook(keep)
    try:
        with attached.changed(route=attached.state.route if routed else ()):
            if attached.anatomy.kind == "encoder_decoder":
                given = {name: value for name, value in given.items() if name in OF_THE_ENCODER}
                # (rows, tokens, d). The decoder would need a first token that nobody has trained to stand for the row.
                states = model.base_model.get_encoder()(**given).last_hidden_state
            else:
                states = _last_states(attached, needed_inputs(attached, model.base_model, given))
    finally:
        if handle is not None:
            handle.remove()
    mask = given.get("attention_mask")
    if mask is not None:
        mask = None if attached.anatomy.family.latents else _mask_of(mask.to(states.device), states.shape[1])
    if handle is None:
        return pool(states, mask, pooling)
    of_middle = _as_tokens(middle[0]).to(states.device)
    parts = [
        pool(of_middle if name.endswith(MIDDLE) else states, mask, (name.removesuffix(MIDDLE),)) for name in pooling
    ]
    return torch.cat(parts, dim=-1)


def _mask_of(mask: Tensor, places: int) -> Tensor:
    """(rows, places), where a family's later layers have fewer places than its input has tokens (Funnel)."""
    if mask.shape[1] == places:
        return mask
    return mask[:, torch.arange(places, device=mask.device) * mask.shape[1] // places]


def _last_states(attached: RoutedModel, inputs: Mapping[str, Any]) -> Tensor:
    """(rows, tokens, d)."""
    model: Any = attached.model
    body = model.base_model
    if body is not model:
        return _as_tokens(body(**_by_its_names(body, inputs)).last_hidden_state)
    # Image halves of image-text models (CLIP, SigLIP) have no body under the name that `base_model` looks for, which gives
    # the model with its head. Asked for all its states, transformers would leave hooks of its own on the layers.
    last: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        last[:] = [states_of(output)]

    handle = model.get_submodule(attached.anatomy.at("layer")[-1].exit).register_forward_hook(keep)
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    return _as_tokens(getattr(output, "last_hidden_state", last[0]))


def _by_its_names(body: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Perceiver's body takes token ids as `inputs`, as it takes pixels."""
    main = "input_ids" if takes(body, "input_ids") else body.main_input_name
    return {main if name == "input_ids" else name: value for name, value in inputs.items()}


def _as_tokens(states: Tensor) -> Tensor:
    """(rows, tokens, d); convolutions give (rows, d, height, width), whose places are the tokens."""
    return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states


def real_tokens(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Token ids of each row of a batch, without padding."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        rows: list[list[int]] = ids.tolist()
        return rows
    return [row[real > 0].tolist() for row, real in zip(ids, mask, strict=True)]


def first_tokens(inputs: Mapping[str, Any], most: int | None) -> dict[str, object]:
    """A batch cut to the first real tokens of each row, padded on the right."""
    cut = dict(inputs)
    if most is None or "input_ids" not in cut or cut["input_ids"].shape[1] <= most:
        return cut
    mask = cut.get("attention_mask")
    # stable, so that tokens keep their order
    order = None if mask is None else torch.argsort(mask > 0, dim=1, descending=True, stable=True)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if (tensor := cut.get(name)) is not None:
            cut[name] = (tensor if order is None else tensor.gather(1, order))[:, :most]
    return cut


def read_out(attached: RoutedModel, readout: Readout, inputs: Mapping[str, Any]) -> Any:
    """An output with `logits` (rows, classes), in fp32."""
    features = pooled_states(attached, first_tokens(inputs, readout.most_tokens), readout.pooling)
    return SimpleNamespace(logits=scores_of(readout, features, inputs))


def scores_of(readout: Readout, features: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """A readout's scores (rows, classes) of a batch whose features are known."""
    tokens: Sequence[Sequence[int]] | None = None
    if readout.counts_tokens and features.device.type != "meta" and inputs.get("input_ids") is not None:
        tokens = real_tokens(inputs)
    return readout.scores(features, tokens)
