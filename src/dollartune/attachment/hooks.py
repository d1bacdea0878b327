"""What happens at an edited module: each adapter of the route applies its edits to its rows of the input or the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from dollartune.attachment.device_placement import moving_hook
from dollartune.attachment.fast.decode_cache import EditPlan
from dollartune.attachment.fast.recompute import add_delta
from dollartune.attachment.inputs import insert_virtual, tell_edits
from dollartune.attachment.reweighting import weights_hook
from dollartune.backbones.anatomy import join_parts, split_parts
from dollartune.backbones.device_map import execution_device, own_forward, tensor_of
from dollartune.backbones.module_outputs import states_of, with_states
from dollartune.methods.edits import Delta, Edit, Override, Rows, Transform

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from dollartune.attachment.pass_state import PassState
    from dollartune.attachment.routed_model import Hook, RoutedModel
    from dollartune.attachment.routing import Assignment


def put_in(attached: RoutedModel, kind: str, name: str, sealed: Callable[[Hook], Hook]) -> RemovableHandle:
    """Registers one hook at a module of the backbone; `remove()` of what is returned takes it out again.

    Args:
        kind: `device` (first of all: moves inputs to the module), `input`, `output`, `weights`, or `vision tokens`.
        sealed: what each hook is wrapped in.
    """
    module = attached.model.get_submodule(name)
    if kind == "device":
        return module.register_forward_pre_hook(moving_hook(execution_device(module)), with_kwargs=True, prepend=True)
    if kind == "input":
        return module.register_forward_pre_hook(sealed(input_hook(attached, name)), with_kwargs=True)
    if kind == "output":
        return module.register_forward_hook(sealed(output_hook(attached, name)), with_kwargs=True)
    if kind == "weights":
        return module.register_forward_hook(sealed(weights_hook(attached, name)), with_kwargs=True)
    return module.register_forward_hook(sealed(vision_tokens_hook(attached)))


def input_hook(attached: RoutedModel, name: str) -> Any:
    """Pre-hook of the module of that name: edits of its input, and captures for sublayers that begin here."""
    turned = attached.anatomy.gets_tokens_first(name)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = attached.state
        if not state.route:
            return None
        # Families call their layers either way, and transformers has changed it between versions.
        x, *rest = args if args else (kwargs["hidden_states"],)
        x = x.transpose(0, 1) if turned else x
        if any(a.adapter is not None and name in a.adapter.inputs for a in state.route):
            x = _edit_inputs(state, name, x)
        if any(a.adapter is not None and name in a.adapter.captures for a in state.route):
            state.captured_inputs[name] = x  # after its edits: a sublayer's edit sees what the sublayer sees
        x = x.transpose(0, 1) if turned else x
        return ((x, *rest), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    return hook


def _edit_inputs(state: PassState, name: str, x: Tensor) -> Tensor:
    whole = state.batched(x)
    # in a server, where autograd does not need the old values, rows are changed without taking the batch apart
    if len(state.route) > 1 and not torch.is_grad_enabled():
        plan = _plan(state, "inputs", name, whole)
        whole = whole.clone()  # the input may be someone else's too
        for affine in plan.affine:
            affine.apply(whole)
        for assignment in plan.rest:
            piece = whole[assignment.rows]
            for _, edit in assignment.adapter.inputs[name]:  # type: ignore[union-attr]
                # (rows of this adapter, tokens, in)
                piece = edit.edit_input(piece, assignment.context)
            whole[assignment.rows] = piece
        return whole.reshape(x.shape)
    route = list(state.covering(whole.shape[0]))
    pieces = []
    for assignment, piece in zip(route, _split(whole, route), strict=True):
        for _, edit in assignment.adapter.inputs.get(name, ()) if assignment.adapter else ():
            piece = edit.edit_input(piece, assignment.context)
        pieces.append(piece)
    # cat would copy a single piece too
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).reshape(x.shape)


def _split(whole: Tensor, route: Sequence[Assignment]) -> Sequence[Tensor]:
    """The rows of each assignment of a route that covers a batch.

    Their gradients are put together once: slices would each bring one of the size of the whole batch.
    """
    if len(route) == 1:
        return (whole[route[0].rows],)
    return torch.split(whole, [len(range(*a.rows.indices(whole.shape[0]))) for a in route])


def output_hook(attached: RoutedModel, name: str) -> Any:
    """Forward hook of the module of that name: edits of its output."""
    turned = attached.anatomy.gets_tokens_first(name)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = attached.state
        if not any(a.adapter is not None and name in a.adapter.outputs for a in state.route):
            return None
        y: Tensor = states_of(output)
        # A module that is told a number of rows alone gives values of its own (Perceiver's places): nothing enters it.
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        x = x if isinstance(x, Tensor) else y
        x, y = (x.transpose(0, 1), y.transpose(0, 1)) if turned else (x, y)
        # Experts and some feed-forwards get (rows · tokens, d).
        whole_x, whole_y = state.batched(x), state.batched(y)
        if len(state.route) > 1 and not torch.is_grad_enabled() and module._parameters:
            # what a module with weights puts out is a tensor of its own, so rows are changed in place and all others stay
            plan = _plan(state, "outputs", name, whole_y)
            for affine in plan.affine:
                affine.apply(whole_y)
            for assignment in plan.rest:
                entered = _Entered(state, [assignment])
                pieces = whole_x[assignment.rows], whole_y[assignment.rows]
                whole_y[assignment.rows] = _edit_output(attached, name, module, entered, 0, *pieces)
            return None
        # in training: pieces that are put together once, which autograd can follow
        route = list(state.covering(whole_y.shape[0]))
        alone = len(args) + len(kwargs) == 1 and x is not y  # x is all that it is called with
        entered = _Entered(state, route, None if turned or alone else (args, kwargs), len(whole_y))
        pairs = zip(_split(whole_x, route), _split(whole_y, route), strict=True)
        done = [_edit_output(attached, name, module, entered, number, *pair) for number, pair in enumerate(pairs)]
        result = done[0] if len(done) == 1 else torch.cat(done)
        result = result.reshape(*y.shape[:-1], result.shape[-1])  # a head may have other classes than the backbone's
        result = result.transpose(0, 1) if turned else result
        return with_states(output, result)

    return hook


def _plan(state: PassState, where: str, name: str, like: Tensor) -> EditPlan:
    """What is to be done at a module: as it was made at the route's first step, or every piece by itself."""
    pieces = state.editing(where, name, like.shape[0])
    if state.decode_cache is not None:
        return state.decode_cache.plan(pieces, where, name, like)
    return EditPlan((), list(pieces))


_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Of a call: by place, by name."""


class _Entered:
    """What entered the sublayers that end at a module, by the rows of each assignment of a route."""

    def __init__(
        self, state: PassState, route: Sequence[Assignment], called: _Arguments | None = None, rows: int = 0
    ) -> None:
        self.state, self.route, self.called, self.rows = state, route, called, rows
        self._pieces: dict[str, Sequence[Tensor]] = {}

    def arguments(self, number: int, x: Tensor) -> _Arguments:
        """What the module is called with for the assignment of that number, whose rows of its input are x."""
        if self.called is None or len(self.route) == 1:
            return self.called or ((x,), {})
        part = self.route[number].rows

        def own(value: Any) -> Any:
            return value[part] if isinstance(value, Tensor) and value.shape[:1] == (self.rows,) else value

        args, kwargs = self.called
        return tuple(own(value) for value in args), {name: own(value) for name, value in kwargs.items()}

    def __call__(self, entry: str, number: int) -> Tensor:
        """At the sublayer that begins at the module `entry`, for the assignment of that number."""
        if entry not in self._pieces:
            self._pieces[entry] = _split(self.state.batched(self.state.captured_inputs[entry]), self.route)
        return self._pieces[entry][number]


def _edit_output(
    attached: RoutedModel,
    name: str,
    module: nn.Module,
    entered: _Entered,
    number: int,
    piece_x: Tensor,
    piece_y: Tensor,
) -> Tensor:
    """y of one assignment's rows after all of its edits at this module."""
    assignment = entered.route[number]
    if assignment.adapter is None:
        return piece_y
    # in the order of the adapter's methods; what replaces values comes first (`Adapter.reindex`)
    for site, edit in assignment.adapter.outputs.get(name, ()):
        if isinstance(edit, Override):
            piece_y = _overridden(attached, edit, module, entered.arguments(number, piece_x))
        elif site.kind == "sublayer":
            # A sublayer may begin on one device and end on another.
            site_x = entered(site.entry, number).to(piece_y.device)
            piece_y = apply_edit(edit, site_x, piece_y, assignment.context)
        elif site.part is not None:
            # q, k and v of one fused linear: only the part that the site names is edited
            parts = split_parts(piece_y, site.part, site.heads)
            index = site.part.index
            parts[index] = apply_edit(edit, piece_x, parts[index], assignment.context)
            piece_y = join_parts(parts, site.part, site.heads)
        else:
            piece_y = apply_edit(edit, piece_x, piece_y, assignment.context)
    return piece_y


def _overridden(attached: RoutedModel, edit: Override, module: nn.Module, called: _Arguments) -> Tensor:
    """The module's output for other values of its parameters. Its own hooks must not run again, so the route is empty.

    Args:
        called: what it is called with for these rows.
    """
    args, kwargs = called
    values = {name: value.to(tensor_of(module, name).dtype) for name, value in edit.values().items()}
    with attached.changed(route=()), own_forward(module) if attached.placed else nullcontext():
        if not edit.batched:
            result: Tensor = states_of(torch.func.functional_call(module, values, args, kwargs))
            return result
        x: Tensor = args[0]
        # values of its own for each row (stacked adapters): one call for all rows, not one per adapter
        # (tensors of one row, (tokens, d)) -> (tokens, out); vmap makes batched products of it.
        one_row = torch.func.vmap(
            lambda values, row: states_of(torch.func.functional_call(module, values, (row[None],)))[0]
        )
        expanded = {name: value.expand(x.shape[0], *value.shape[1:]) for name, value in values.items()}
        by_row: Tensor = one_row(expanded, x)
        return by_row


def apply_edit(edit: Edit, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """One edit on the output of a module. Shapes (rows, tokens, features)."""
    if isinstance(edit, Delta):
        return add_delta(edit, x, y, rows)
    if isinstance(edit, Transform):
        return edit.transform(x, y, rows)
    raise TypeError(f"{type(edit).__name__} does not edit an output")


def vision_tokens_hook(attached: RoutedModel) -> Any:
    """Puts virtual tokens behind the patch embeddings of a vision transformer, whose attention knows no order."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        # BEiT's relatives give the size of the grid of patches beside them.
        patches: Tensor = output[0] if isinstance(output, tuple) else output
        embeddings, arrangement = insert_virtual(attached.state, attached.anatomy, "encoder", patches, None)
        if arrangement.longest:
            # Images have no padding, so every patch is the prompt's.
            real = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
            state = tell_edits(attached.state, attached.anatomy, arrangement(real, 0, 0))
            visible = None if arrangement.even else arrangement(real, 1, 0)
            attached.continue_under(replace(state, visible_tokens=visible))
        return (embeddings, *output[1:]) if isinstance(output, tuple) else embeddings

    return hook
