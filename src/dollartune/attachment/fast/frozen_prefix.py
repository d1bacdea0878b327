"""The frozen prefix, the leading layers that no adapter touches: running them alone, and running without them.

    embeddings ──> [ 0 ] ──> [ 1 ] ──> [ 2 ] ──> [ 3 ] ──> norm ──> head
                   `─ frozen, 2 of 4 ─'  `─ edited ─'
    alone          [ 0 ] ──> [ 1 ] ──> states           layers above hand on what they get
    without it     states ──────────> [ 2 ] ──> [ 3 ]   layers below give the states, whatever they get

The model's own forward runs in both cases, with stand-ins in the list of layers, so that masks, positions, rotary angles
and norms are its own. Embeddings are always computed; they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.attachment.fast.frozen_layers import LayerCounts, decoder_is_fed
from dollartune.attachment.fast.unused_outputs import needed_inputs
from dollartune.backbones.device_map import home_device
from dollartune.backbones.token_table import output_head

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel


class StandIn(nn.Module):
    """Stands where a layer stood: gives known hidden states, or hands on what it gets. All else it has is the layer's."""

    def __init__(self, layer: nn.Module, states: Tensor | None, beside: tuple[Any, ...] | None) -> None:
        super().__init__()
        self.states, self.beside = states, beside
        object.__setattr__(self, "layer", layer)  # not a child: its parameters are not this one's

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = hidden_states if self.states is None else self.states
        return states if self.beside is None else (states, *self.beside)


@contextmanager
def without_frozen_prefix(attached: RoutedModel, counts: LayerCounts, states: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the leading layers are not run; `states` (rows, tokens, d_model) by stack stand for them."""
    with ExitStack() as stand_ins:
        for stack, given in states.items():
            layers, family = _layers(attached, stack), attached.anatomy.family.stacks[stack]
            beside = None if family.beside is None else family.beside(layers[0], given)
            for index in range(counts[stack]):
                # All of them give the same states: the last one's count, and none computes anything.
                stand_ins.enter_context(_replaced(layers, index, StandIn(layers[index], given, beside)))
        yield


@torch.no_grad()
def run_frozen_prefix(attached: RoutedModel, counts: LayerCounts, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """States (rows, tokens, d_model) that leave the frozen prefix of the bare backbone, by stack; nothing above is computed."""
    model: Any = attached.model
    states: dict[str, Tensor] = {}
    handles = []
    # only its number of extra outputs is asked for, so the smallest tensor will do
    probe = torch.zeros(1, 1, 1, device=home_device(model))
    head = output_head(model) if model.base_model is model else None
    try:
        with ExitStack() as stand_ins:
            for stack, count in counts.items():
                layers = _layers(attached, stack)
                beside = attached.anatomy.family.stacks[stack].beside
                for index in range(count, len(layers)):
                    nothing = None if beside is None else (None,) * len(beside(layers[0], probe))
                    stand_ins.enter_context(_replaced(layers, index, StandIn(layers[index], None, nothing)))
                if count:

                    def keep(module: nn.Module, args: Any, output: Any, stack: str = stack) -> None:
                        states[stack] = output[0] if isinstance(output, tuple) else output

                    handles.append(layers[count - 1].register_forward_hook(keep))
            if head is not None:  # a model that is its own base has its head inside: one position of it is enough
                handles.append(head.register_forward_pre_hook(lambda module, args: (args[0][:1, :1], *args[1:])))
            whole = decoder_is_fed(attached.anatomy.kind, inputs)
            runs = model.base_model if whole else model.base_model.get_encoder()
            with attached.changed(route=()):  # whatever else is edited: these layers are the backbone's own
                runs(**needed_inputs(attached, runs, inputs))  # nobody reads states at padding
    finally:
        for handle in handles:
            handle.remove()
    return states


def _layers(attached: RoutedModel, stack: str) -> Any:
    family = attached.anatomy.family.stacks[stack]
    return attached.model.get_submodule(attached.anatomy.base_prefix + family.layers)


@contextmanager
def _replaced(layers: nn.ModuleList, index: int, stand_in: StandIn) -> Iterator[None]:
    original = layers[index]
    layers._modules[str(index)] = stand_in
    try:
        yield
    finally:
        layers._modules[str(index)] = original
