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
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

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
    names = dict.fromkeys(site.exit for site in attached.anatomy.at("layer"))
    layers = [attached.model.get_submodule(name) for name in names]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        object.__setattr__(layer, "forward", _recomputed(attached, layer, layer.forward))
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if own is not None:
                object.__setattr__(layer, "forward", own)


def _recomputed(attached: Attached, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        again = _as_now(attached)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), again()

        def own_caches(*args: Any, **kwargs: Any) -> Any:
            """A layer writes its keys and values into the cache; twice would be once too often."""
            return forward(*map(_private, args), **{name: _private(value) for name, value in kwargs.items()})

        return checkpoint(
            own_caches,
            *args,
            use_reentrant=False,
            context_fn=contexts,
            preserve_rng_state=layer.training,  # the backbone's own dropout; that of edits is drawn from seeds
            **kwargs,
        )

    return run


def _as_now(attached: Attached) -> Callable[[], AbstractContextManager[None]]:
    """What hooks inside a layer read, as it is now, to be there again during the backward pass."""
    route, batch_rows, used_places = attached.route, attached.batch_rows, attached.used_places
    replaced, narrowing = attached.replaced, attached.narrowing
    modes = _get_current_function_mode_stack()  # the planner's, which a backward pass would otherwise leave aside

    @contextmanager
    def again() -> Iterator[None]:
        outside = attached.route, attached.batch_rows, attached.used_places, attached.captured
        attached.route, attached.batch_rows, attached.used_places, attached.captured = (
            route,
            batch_rows,
            used_places,
            {},
        )
        try:
            with ExitStack() as stack:
                for mode in modes[len(_get_current_function_mode_stack()) :]:
                    stack.enter_context(mode)
                if narrowing is not None:
                    stack.enter_context(narrowing.hooked())
                with attached.with_values(replaced):
                    yield
        finally:
            attached.route, attached.batch_rows, attached.used_places, attached.captured = outside

    return again


def _private(value: Any) -> Any:
    """A copy of a key/value cache that shares its tensors; anything else as it is."""
    from transformers import Cache

    if not isinstance(value, Cache):
        return value
    own = copy.copy(value)
    for name, part in vars(value).items():
        if name == "layers":
            own.layers = [copy.copy(layer) for layer in part]
        elif isinstance(part, Cache):
            setattr(own, name, _private(part))
        elif isinstance(part, dict):
            setattr(own, name, dict(part))
    return own
