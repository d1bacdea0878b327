"""A backbone with adapters attached: hooks at the edited modules, a route that says which rows belong to which adapter.

The backbone's own code runs unchanged. Each edited module gets one forward hook; the hook looks up the current route and
applies, to each adapter's rows, what that adapter has there. Detaching removes the hooks, and the backbone is bit-equal
to before: no weight of it is ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attention import enable_prefixes, restore_attention
from dollartune.attachment.device_placement import move_to_backbone
from dollartune.attachment.fast.frozen_prefix import without_frozen_prefix
from dollartune.attachment.fast.last_layer_rows import LastLayer, only_read_rows
from dollartune.attachment.fast.unused_outputs import keeping_nothing, needed_inputs
from dollartune.attachment.generating import generate
from dollartune.attachment.hooks import put_in
from dollartune.attachment.inputs import prepare_inputs
from dollartune.attachment.pass_state import PassState
from dollartune.attachment.pooling import read_out, readout_of
from dollartune.attachment.routed_model import Hook, RoutedModel
from dollartune.attachment.routing import Assignment
from dollartune.backbones.token_table import output_head
from dollartune.errors import UserError, unknown_name

if TYPE_CHECKING:
    from dollartune.attachment.batch_layout import Layout
    from dollartune.backbones.anatomy import Anatomy
    from dollartune.methods.base import Method

__all__ = ["Assignment", "Attached", "PassState", "attach"]


class Attached(RoutedModel):
    """A backbone and its adapters. Call it like the model; `routed` sets which rows belong to which adapter.

    Args:
        model: a transformers model; its parameters are frozen while anything is attached.
        anatomy: where its roles are.
        processor: its tokenizer, for methods whose settings hold text.
        kernels_of: kind of device whose kernels it is passed with, if it is on the meta device.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, processor: Any = None, kernels_of: str = "cpu") -> None:
        super().__init__(model, anatomy, kernels_of)
        self.processor = processor
        self.adapters: dict[str, Adapter] = {}
        self._handles: dict[tuple[str, str], RemovableHandle] = {}
        self.last_layer = LastLayer.of(anatomy, getattr(model, "config", None))
        """Modules of the last layer that may leave out positions; None where every position of it is read."""
        # To be given back by `detach`: a user's own training may go on after it.
        self._required_grad = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)

    # Adding and removing

    def add(self, name: str, methods: Sequence[Method[Any]], seed: int = 0) -> Adapter:
        """Builds an adapter for this backbone from a list of methods and attaches it under a name."""
        adapter = Adapter(methods, self.anatomy, self.model, seed, self.processor)
        self.put(name, move_to_backbone(adapter, self.model))
        return adapter

    def put(self, name: str, adapter: Adapter) -> None:
        """Attaches an adapter that exists already."""
        if name in self.adapters:
            raise UserError(f"an adapter called {name!r} is attached already.")
        self.adapters[name] = adapter
        self._rebuild()

    def remove(self, name: str) -> Adapter:
        """Takes one adapter out; the others stay."""
        if name not in self.adapters:
            raise unknown_name("adapter", name, self.adapters)
        adapter = self.adapters.pop(name)
        route = tuple(a for a in self.state.route if a.adapter is not adapter)
        self.continue_under(replace(self.state, route=route))
        self._rebuild()
        return adapter

    def detach(self) -> nn.Module:
        """Takes everything out and gives the backbone back as it was."""
        self.adapters.clear()
        self.continue_under(replace(self.state, route=()))
        self._rebuild()
        # After the hooks are gone: until then a gradient would flow through edits that are being taken out.
        for parameter in self._required_grad:
            parameter.requires_grad_(True)
        return self.model

    def _rebuild(self) -> None:
        """One hook of each kind per edited module, whatever the number of adapters; those that are there stay."""
        adapters = list(self.adapters.values())
        vision_tokens = self.anatomy.kind == "vision" and any(a.virtual for a in adapters)
        wanted = {("input", name) for a in adapters for name in (*a.inputs, *a.captures)}
        wanted |= {("output", name) for a in adapters for name in a.outputs}
        wanted |= {("weights", name) for a in adapters for name in a.weights}
        # prepended: our hooks must find their input where the module computes
        if self.placed:
            wanted |= {("device", name) for _, name in wanted}
        if vision_tokens:
            wanted.add(("vision tokens", self.anatomy.at("input")[0].exit))
        # hooks that stay are not touched: with hundreds of adapters in a server, adding one must not cost all others
        for key in self._handles.keys() - wanted:
            self._handles.pop(key).remove()
        # sorted, so that hooks of one module are always put in in the same order: device, input, output
        for kind, name in sorted(wanted - self._handles.keys()):
            self._handles[kind, name] = put_in(self, kind, name, self.sealed)
        names = {name for a in adapters for name in a.prefixes}
        if vision_tokens:
            # a vision model has no mask: attention learns from `visible_tokens` which places are real
            names |= {site.exit for site in self.anatomy.at("self_attn.core")}
        if names:
            enable_prefixes(self, names)
        else:
            restore_attention(self)

    @contextmanager
    def sealing(self, seal: Callable[[Hook], Hook]) -> Iterator[None]:
        """Within the block, every hook has `seal` around it."""
        before = self.sealed
        with self.bare():
            # Also those of adapters that are attached within the block.
            self.sealed = seal  # while no hook is in the model: each is sealed as it is put in
        try:
            yield
        finally:
            with self.bare():
                self.sealed = before

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within the block, nothing is in the model; then all that is attached comes back."""
        adapters, self.adapters = self.adapters, {}
        try:
            self._rebuild()
            yield
        finally:
            self.adapters = adapters
            self._rebuild()

    # Routing

    @contextmanager
    def routed(
        self, *assignments: Assignment | str | None, batch_rows: int | None = None, layout: Layout | None = None
    ) -> Iterator[Attached]:
        """Within the block, rows belong to these adapters; a name (or None) alone means every row.

        Args:
            batch_rows: rows of the block's batch.
            layout: of that batch, from before it went to its device: a GPU need not be waited for to see it.

        Raises:
            UserError: an adapter that must have the batch for itself shares it.
        """
        route = []
        for item in assignments:
            if item is None or isinstance(item, str):
                if item is not None and item not in self.adapters:
                    raise unknown_name("adapter", item, self.adapters)
                item = Assignment(self.adapters[item] if item is not None else None, slice(None))
            route.append(item)
        if len(route) > 1:
            for alone in (a.adapter for a in route if a.adapter is not None and not a.adapter.mixed_rows):
                raise UserError(
                    f"{alone.methods} changes the backbone itself and cannot share a batch with other adapters."
                )
        # of a route of slices, the last row's end; 0 where a route says `every row`
        batch_rows = batch_rows or max((a.rows.stop or 0 for a in route), default=0)
        with self.changed(route=tuple(route), batch_rows=batch_rows, layout=layout, captured_inputs={}):
            yield self

    def activate(self, name: str) -> None:
        """From now on, every row belongs to this adapter wherever no block says otherwise."""
        if name not in self.adapters:
            raise unknown_name("adapter", name, self.adapters)
        self.continue_under(replace(self.state, route=(Assignment(self.adapters[name], slice(None)),)))

    # Running

    def __call__(
        self, keep: tuple[Tensor, Tensor] | None = None, prompt_lengths: Tensor | None = None, **inputs: Any
    ) -> Any:
        """Runs the backbone under the current route.

        Args:
            keep: (row, position) index tensors; the head then computes logits there only, as (1, len(row), vocabulary),
                and every other position costs nothing. Positions count real tokens; virtual tokens are added inside.
            prompt_lengths: (rows,) number of prompt tokens per row, for methods that act on the prompt only.
            inputs: what the model takes: input_ids, attention_mask, decoder_input_ids, pixel_values ...

        Returns:
            The model's own output object.
        """
        if (readout := readout_of(self)) is not None:
            return read_out(self, readout, inputs)
        ready = prepare_inputs(self, inputs, prompt_lengths)
        try:
            with self.under(ready.state):
                return self._run(ready.inputs, keep, ready.positions, prompt_lengths)
        finally:
            # Also after an error, where a traceback holds the frames.
            ready.state.captured_inputs.clear()  # whoever still holds the state holds no tensors of the pass

    def _run(
        self,
        inputs: dict[str, object],
        keep: tuple[Tensor, Tensor] | None,
        moved: Tensor | None,
        prompt_lengths: Tensor | None,
    ) -> Any:
        """The pass itself. `moved` (rows, tokens): where each token is now; None: unmoved."""
        state = self.state
        known = None
        if state.frozen_prefix is not None:
            known = state.frozen_prefix.states(self, inputs, prompt_lengths)
        family = self.anatomy.family
        if family.masks_without_cache or not family.generates or output_head(self.model) is None:
            inputs = keeping_nothing(self.model, inputs)
        handle = None
        if keep is not None:
            rows, positions = keep
            # Callers count real tokens; virtual ones have shifted them.
            positions = positions if moved is None else moved[rows, positions]
            keep = rows, positions
            # before the head, where it saves most: logits are (tokens, vocabulary), and the vocabulary is the widest axis
            head = output_head(self.model)
            assert head is not None  # places are asked of language models
            handle = head.register_forward_pre_hook(_gathering(rows, positions))
        try:
            with (
                self.exclusive_values(),
                without_frozen_prefix(self, *known) if known is not None else nullcontext(),
                only_read_rows(self, self.last_layer, keep) if state.skip_unused else nullcontext(),
            ):
                return self.model(**(needed_inputs(self, self.model, inputs) if state.skip_unused else inputs))
        finally:
            if handle is not None:
                handle.remove()

    def generate(self, **inputs: Any) -> Tensor:
        """`model.generate` under the current route; see `generating.generate`."""
        return generate(self, inputs)

    def layers(self) -> list[nn.Module]:
        """Every layer of every stack, once each."""
        names = dict.fromkeys(
            site.exit for site in self.anatomy.at("layer")
        )  # a layer that is run again has several sites
        return [self.model.get_submodule(name) for name in names]


def _gathering(rows: Tensor, positions: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """Pre-hook of the head: hidden states (rows, tokens, d_model) -> those that are asked for, (1, asked, d_model).

    Heads of several futures (ProphetNet) get (rows, futures, tokens, d_model), and give logits of all.
    """

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, at = args[0], (rows.to(args[0].device), positions.to(args[0].device))
        if states.dim() == 4:
            return (states.transpose(1, 2)[at].transpose(0, 1).unsqueeze(0), *args[1:])  # (1, futures, asked, d_model)
        return (states[at].unsqueeze(0), *args[1:])  # (1, asked, d_model)

    return hook


def attach(
    model: nn.Module, *methods: Method[Any], name: str = "default", seed: int = 0, processor: Any = None
) -> Attached:
    """Attaches one adapter made of these methods to a transformers model, active for every row.

    `processor` is the model's tokenizer; only methods whose settings hold text need it.

    Examples:
        >>> attached = attach(model, LoRA(rank=8, where="self_attn.q self_attn.v"))
        >>> attached(input_ids=ids, attention_mask=mask).logits

    Raises:
        UserError: what is given is no model of transformers, or no method; or none is given.
    """
    from dollartune.backbones.loading import anatomy_of
    from dollartune.methods.base import Method

    example = "attach(model, LoRA(rank=8)), with `from dollartune.methods import LoRA`"
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        inside = " (its `.model` is one)" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise UserError(f"attach takes a model of transformers; got {type(model).__name__}{inside}.", hint=example)
    for method in methods:
        if not isinstance(method, Method):
            raise UserError(f"attach takes methods, one after another; got {method!r}.", hint=example)
    if not methods:
        raise UserError("no method is given, so nothing would be trained.", hint=example)
    attached = Attached(model, anatomy_of(model), processor)
    attached.add(name, methods, seed)
    attached.activate(name)
    return attached
