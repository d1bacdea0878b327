"""Modules whose own tensors an adapter gives other values: experts, convolutions, projections that no linear holds.

    x, routes ──> [ module with W ]  ──> y                     rows that no adapter of this kind has
              └─> [ module with W + scale · B A ] ──> y        rows that one has

The module runs again with the other values, on the rows that have them. A linear's output can be edited from its input;
what experts do with theirs is their own code, so only its weights can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel


def weights_hook(attached: RoutedModel, name: str) -> Any:
    """Forward hook of the module of that name, whose tensors some adapters have values for."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object], output: Any) -> Any:
        state = attached.state
        rows = state.batch_rows
        route = list(state.covering(rows))
        if not any(name in _weights(a.adapter) for a in route):
            return None
        if len(route) == 1:
            return _run(module, _values(route[0].adapter, name), args, kwargs)
        if not rows:
            raise UserError(f"{name} has values of several adapters, and the rows of the batch are not known.")
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        # Experts get (rows · tokens, d), a convolution (rows, ...): rows lie in runs of equal length either way.
        each, rest = divmod(first.shape[0], rows)
        if rest:
            raise UserError(
                f"{name} gets a first dimension of {first.shape[0]} for {rows} rows, which cannot be divided among them: rows of "
                "several adapters cannot share a batch here.",
                hint="Set training.cohort_size: 1.",
            )
        pieces = []
        for assignment in route:
            start, stop, _ = assignment.rows.indices(rows)
            part = slice(start * each, stop * each)

            def own(value: Any, part: slice = part) -> Any:
                return value[part] if isinstance(value, Tensor) and value.shape[:1] == first.shape[:1] else value

            given = tuple(own(value) for value in args), {key: own(value) for key, value in kwargs.items()}
            pieces.append(_run(module, _values(assignment.adapter, name), *given))
        return _together(pieces)

    return hook


def _weights(adapter: Any) -> Mapping[str, Any]:
    weights: Mapping[str, Any] = getattr(adapter, "weights", {}) if adapter is not None else {}
    return weights


def _values(adapter: Any, name: str) -> dict[str, Tensor]:
    """Tensor name -> value, of one adapter at a module."""
    values: dict[str, Tensor] = {}
    for _, edit in _weights(adapter).get(name, ()):
        values.update(edit.values())
    return values


def _run(module: nn.Module, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, object]) -> Any:
    """The module's output with these values in the places of its own tensors. Its hooks have run already."""
    before = {name: module._parameters[name] for name in values}
    try:
        for name, value in values.items():
            # Put in by hand: functional_call would run the module's hooks, and with them this one, again.
            module._parameters[name] = value.to(before[name].dtype)  # type: ignore[assignment, union-attr]
        return module.forward(*args, **kwargs)
    finally:
        module._parameters.update(before)


def _together(pieces: list[Any]) -> Any:
    """Outputs of runs of rows as one of the batch; of tuples, each member."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces)
    if isinstance(pieces[0], tuple):
        return tuple(_together([piece[index] for piece in pieces]) for index in range(len(pieces[0])))
    return pieces[0]
