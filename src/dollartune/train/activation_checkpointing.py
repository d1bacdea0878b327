"""Gradient checkpointing: layers above the lowest trained one keep their input alone and run again in the backward pass.

    forward    x ──> [ layer ] ──> y        saved: x, and the route that the hooks inside the layer read
    backward   x ──> [ layer ] again, under that route ──> gradients

Below the lowest trained layer nothing needs a gradient, so nothing is saved there and nothing runs again: torch's
non-reentrant checkpoint asks for a second run only where something was to be saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from dollartune.backbones.swapped_forward import swapped_forward

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached


@contextmanager
def recomputed_layers(attached: Attached, active: bool = True) -> Iterator[None]:
    """Within the block, passes with gradients keep no activations inside layers. The results are bit-equal.

    Args:
        attached: the backbone; every layer of every stack takes part.
        active: false makes this a block like any other.
    """
    if not active:
        yield
        return
    with swapped_forward([(layer, _recomputed(attached, layer, layer.forward)) for layer in attached.layers()]):
        yield


def _recomputed(attached: Attached, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        # validation saves nothing, so running again would be for nothing
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        again = _same_state(attached)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), again()

        def with_cache_copies(*args: Any, **kwargs: Any) -> Any:
            """A layer writes its keys and values into the cache; twice would be once too often."""
            return forward(*map(_private, args), **{name: _private(value) for name, value in kwargs.items()})

        return checkpoint(
            with_cache_copies,
            *args,
            # the reentrant one needs an input with a gradient, which the lowest layers have not
            use_reentrant=False,
            context_fn=contexts,
            preserve_rng_state=layer.training,  # the backbone's own dropout; that of edits is drawn from seeds
            **kwargs,
        )

    return run


def _same_state(attached: Attached) -> Callable[[], AbstractContextManager[None]]:
    """What the layer runs under now, to be there again during the backward pass, when the forward pass is long over."""
    # without the forward pass's scratch: this closure lives until the backward pass, and would keep every sublayer's input alive
    state = replace(attached.state, captured_inputs={})
    modes = _get_current_function_mode_stack()  # the planner's, which a backward pass would otherwise leave aside

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes[len(_get_current_function_mode_stack()) :]:
                stack.enter_context(mode)
            stack.enter_context(attached.under(replace(state, captured_inputs={})))
            if state.last_layer is not None:
                stack.enter_context(state.last_layer.hooked())
            stack.enter_context(attached.with_parameters(state.replaced_parameters))
            yield

    return again


def _private(value: Any) -> Any:
    """A copy of a key/value cache that shares its tensors; anything else as it is."""
    from transformers import Cache

    if not isinstance(value, Cache):
        return value
    copied = copy.copy(value)
    for name, part in vars(value).items():
        if name == "layers":
            copied.layers = [copy.copy(layer) for layer in part]
        elif isinstance(part, Cache):
            setattr(copied, name, _private(part))
        elif isinstance(part, dict):
            setattr(copied, name, dict(part))
    return copied
