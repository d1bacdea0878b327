"""The trunk: leading layers that no adapter touches. Which they are, running them alone, and running without them.

    embeddings ──> [ 0 ] ──> [ 1 ] ──> [ 2 ] ──> [ 3 ] ──> norm ──> head
                   `─ trunk, depth 2 ─'  `─ edited ─'
    trunk alone    [ 0 ] ──> [ 1 ] ──> states           layers above hand on what they get
    without it     states ──────────> [ 2 ] ──> [ 3 ]   layers below give the states, whatever they get

The model's own forward runs in both cases, with stand-ins in the list of layers, so that masks, positions, rotary angles
and norms are its own. Embeddings are always computed; they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dollartune.attachment.fast.unused_outputs import lean_inputs
from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.backbones.device_map import home_device

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached

Depths = Mapping[str, int]
"""Stack -> number of leading layers."""


class TrunkStates(Protocol):
    """Keeps what trunks give."""

    def states(
        self, attached: Attached, inputs: Mapping[str, Any], prompt_lengths: Tensor | None
    ) -> tuple[Depths, Mapping[str, Tensor]] | None:
        """Depths of the current route's trunk and what it gives for these inputs; None: run it."""


def untouched_layers(sites: Iterable[Site], anatomy: Anatomy) -> dict[str, int]:
    """The trunk of a backbone that is edited at these sites: stack -> leading layers that compute what they always do.

    A decoder that reads an edited encoder has no trunk, nor has a backbone whose embeddings or positions change (virtual
    tokens; prefixes, which shift positions except in encoder-decoder models).
    """
    depths = dict(anatomy.layer_counts)
    if anatomy.family.guessed:
        return dict.fromkeys(depths, 0)
    encoder_edited = False
    for site in sites:
        if site.role == "head":
            continue
        if site.stack == "" or (site.kind == "attention" and anatomy.kind != "encoder_decoder"):
            return dict.fromkeys(depths, 0)
        whole = depths[site.stack] if site.role == "norm.final" else 0
        depths[site.stack] = min(depths[site.stack], whole if site.layer is None else site.layer)
        encoder_edited = encoder_edited or site.stack == "encoder"
    for name, stack in anatomy.family.stacks.items():
        if stack.recurrent and name in depths and depths[name] < anatomy.layer_counts[name]:
            depths[name] = 0
    if anatomy.kind == "encoder_decoder" and encoder_edited:
        depths["decoder"] = 0
    return depths


def decoder_is_fed(kind: str, inputs: Mapping[str, Any]) -> bool:
    """Whether a batch has what the decoder reads. Classifiers on encoder-decoders make it inside their own forward, so that
    only the encoder has a trunk."""
    return kind != "encoder_decoder" or "decoder_input_ids" in inputs


def common(depths: Iterable[Depths]) -> dict[str, int]:
    """The trunk that several adapters share."""
    found: dict[str, int] = {}
    for one in depths:
        found = {stack: min(layers, found.get(stack, layers)) for stack, layers in one.items()}
    return found


class StandIn(nn.Module):
    """Takes a layer's place: gives known hidden states, or hands on what it gets. All else it has is the layer's."""

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
def without_trunk(attached: Attached, depths: Depths, states: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the leading layers are not run; `states` (rows, tokens, d_model) by stack stand for them."""
    with ExitStack() as places:
        for stack, given in states.items():
            layers, family = _layers(attached, stack), attached.anatomy.family.stacks[stack]
            beside = None if family.beside is None else family.beside(layers[0], given)
            for index in range(depths[stack]):
                places.enter_context(_replaced(layers, index, StandIn(layers[index], given, beside)))
        yield


@torch.no_grad()
def run_trunk(attached: Attached, depths: Depths, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """States (rows, tokens, d_model) that leave the trunk of the bare backbone, by stack; nothing above is computed."""
    model: Any = attached.model
    found: dict[str, Tensor] = {}
    route, attached.route = attached.route, ()
    handles = []
    probe = torch.zeros(1, 1, 1, device=home_device(model))
    head = model.get_output_embeddings() if model.base_model is model else None
    try:
        with ExitStack() as places:
            for stack, depth in depths.items():
                layers = _layers(attached, stack)
                beside = attached.anatomy.family.stacks[stack].beside
                for index in range(depth, len(layers)):
                    nothing = None if beside is None else (None,) * len(beside(layers[0], probe))
                    places.enter_context(_replaced(layers, index, StandIn(layers[index], None, nothing)))
                if depth:

                    def keep(module: nn.Module, args: Any, output: Any, stack: str = stack) -> None:
                        found[stack] = output[0] if isinstance(output, tuple) else output

                    handles.append(layers[depth - 1].register_forward_hook(keep))
            if head is not None:  # a model that is its own base has its head inside: one place of it is enough
                handles.append(head.register_forward_pre_hook(lambda module, args: (args[0][:1, :1], *args[1:])))
            whole = decoder_is_fed(attached.anatomy.kind, inputs)
            runs = model.base_model if whole else model.base_model.get_encoder()
            runs(**lean_inputs(attached, inputs))  # nobody reads states at padding
    finally:
        attached.route = route
        for handle in handles:
            handle.remove()
    return found


def _layers(attached: Attached, stack: str) -> Any:
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
