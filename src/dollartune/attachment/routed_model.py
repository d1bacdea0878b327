"""A model and the state of the pass that runs through it: what hooks and fast paths hold. `Attached` adds the adapters.

    with routed.changed(route=...):        from here on other values; whatever was before comes back at the end
        with routed.under(state):          a whole state, for example the one that a layer ran under in the forward pass

Nobody else writes the state: it is a property without a setter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dollartune.attachment.fsdp import together
from dollartune.attachment.pass_state import FrozenPrefixStates, PassState
from dollartune.backbones.device_map import is_placed

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy

Hook = Callable[..., Any]


class RoutedModel:
    """A backbone whose passes run under a state.

    Args:
        model: a transformers model.
        anatomy: where its roles are.
        kernels_of: kind of device whose kernels it is passed with, if it is on the meta device.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, kernels_of: str = "cpu") -> None:
        self.model = model
        self.anatomy = anatomy
        self.placed = is_placed(model)
        """Whether its modules compute on several devices, or weights are put away between passes (a device map)."""
        self.sealed: Callable[[Hook], Hook] = _unchanged
        """Put around each hook: where layers are compiled, what keeps the compiler out of it."""
        self._state = PassState(kernels_of=kernels_of)

    @property
    def state(self) -> PassState:
        """What a pass that begins now runs under; within a pass, what its next module runs under."""
        return self._state

    @contextmanager
    def under(self, state: PassState) -> Iterator[None]:
        """Within the block, passes run under this state."""
        before, self._state = self._state, state
        try:
            yield
        finally:
            self._state = before

    @contextmanager
    def changed(self, **changes: Any) -> Iterator[None]:
        """Within the block, passes run under the current state with these fields of it changed.

        Raises:
            TypeError: a name that `PassState` has not.
        """
        with self.under(replace(self._state, **changes)):
            yield

    def continue_under(self, state: PassState) -> None:
        """For hooks: from the next module on, the pass that runs goes on under this state. The block around the pass ends it."""
        self._state = state

    def use_frozen_prefix(self, states: FrozenPrefixStates | None) -> None:
        """From now on, passes ask there for the outputs of leading layers that no adapter touches; None: they run them."""
        self._state = replace(self._state, frozen_prefix=states)

    @contextmanager
    def every_layer(self) -> Iterator[None]:
        """Within the block, passes run the frozen leading layers as well, whoever knows their outputs."""
        before = self._state.frozen_prefix
        self.use_frozen_prefix(None)
        try:
            yield
        finally:
            self.use_frozen_prefix(before)

    @contextmanager
    def exclusive_values(self) -> Iterator[None]:
        """Within the block, the parameters that the routed adapter replaces (full tuning) hold its values.

        Values are put in as plain tensors, so gradients flow to the adapter's own (fp32) copies. They stand where the
        parameters stood, so that whoever asks the model for its parameters (generate, for the device) finds them.
        """
        overrides: dict[str, Tensor] = {}
        for assignment in self._state.route:
            for site, edit in assignment.adapter.exclusive if assignment.adapter else ():
                prefix = f"{site.entry}." if site.entry else ""
                for name, value in edit.values().items():
                    # in the format that the parameter has now: the backbone may compute in another one for a while
                    now = self.model.get_parameter(prefix + name).dtype
                    overrides[prefix + name] = together(value.to(now))
        if not overrides:
            yield
            return
        with self.with_parameters(_tied_targets(self.model, overrides)):
            yield

    @contextmanager
    def with_parameters(self, targets: Sequence[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
        """Within the block, parameters (module, name) are these tensors."""
        originals = [(module, name, module._parameters[name]) for module, name, _ in targets]
        try:
            with self.changed(replaced_parameters=tuple(targets)):
                for module, name, value in targets:
                    # past __setattr__, which refuses a plain tensor in the place of a parameter
                    module._parameters[name] = value  # type: ignore[assignment]
                yield
        finally:
            for module, name, original in originals:
                module._parameters[name] = original


def _unchanged(hook: Hook) -> Hook:
    return hook


def _tied_targets(model: nn.Module, overrides: dict[str, Tensor]) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, parameter name, value) wherever an overridden parameter is held: a tied one is held by several modules."""
    value_of = {id(model.get_parameter(name)): value for name, value in overrides.items()}
    return [
        (module, name, value_of[id(parameter)])
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in value_of
    ]
