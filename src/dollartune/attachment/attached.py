"""A backbone with adapters attached: hooks at the edited modules, a route that says which rows belong to which adapter.

The backbone's own code runs unchanged. Each edited module gets one forward hook; the hook looks up the current route and
applies, to each adapter's rows, what that adapter has there. Detaching removes the hooks, and the backbone is bit-equal
to before: no weight of it is ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attention import enable_prefixes, restore_attention
from dollartune.attachment.device_placement import moving_hook, place
from dollartune.attachment.fast.decode_cache import Kept
from dollartune.attachment.fast.frozen_prefix import TrunkStates, without_trunk
from dollartune.attachment.fast.last_layer_rows import LastLayer, Narrowing, narrowed
from dollartune.attachment.fast.unused_outputs import Layout, lean_inputs
from dollartune.attachment.fsdp import together
from dollartune.attachment.generating import generate
from dollartune.attachment.hooks import input_hook, output_hook, vision_tokens_hook
from dollartune.attachment.inputs import prepare_inputs
from dollartune.attachment.routing import Assignment, covering
from dollartune.backbones.anatomy import Anatomy
from dollartune.backbones.device_map import execution_device, is_placed
from dollartune.errors import UserError, unknown_name
from dollartune.methods.base import Method

__all__ = ["Assignment", "Attached", "attach"]

Hook = Callable[..., Any]


class Attached:
    """A backbone and its adapters. Call it like the model; `routed` sets which rows belong to which adapter.

    Args:
        model: a transformers model; its parameters are frozen while anything is attached.
        anatomy: where its roles are.
        processor: its tokenizer, for methods whose settings hold text.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, processor: Any = None) -> None:
        self.model = model
        self.anatomy = anatomy
        self.processor = processor
        self.adapters: dict[str, Adapter] = {}
        self.route: tuple[Assignment, ...] = ()
        self.batch_rows = 0
        self._handles: dict[tuple[str, str], RemovableHandle] = {}
        self.captured: dict[str, Tensor] = {}
        """Module -> its input in this pass, where a sublayer begins."""
        self.used_places: Tensor | None = None
        """(rows, tokens) bool, where rows of images have different numbers of virtual tokens."""
        self.replaced: Sequence[tuple[nn.Module, str, Tensor]] = ()
        """(module, parameter name, value) of what holds other values just now."""
        self.kept: Kept | None = None
        """What a server keeps over steps of one route; None: everything is computed at every pass."""
        self.trunk: TrunkStates | None = None
        """Who knows what leading layers give that no adapter of a route touches; None: they are computed at every pass."""
        self.lean = False
        """Whether passes leave out what nobody reads: masks that hide nothing, the last layer's work at other places than
        those asked for. Results there then mean nothing."""
        self.last_layer = LastLayer.of(anatomy, getattr(model, "config", None))
        self.narrowing: Narrowing | None = None
        """What of the last layer the current pass computes; None: all of it."""
        self.layout: Layout | None = None
        """Of the batch that passes, where it is known; else a pass looks at the batch itself."""
        self.sealed: Callable[[Hook], Hook] = _as_it_is
        """Put around each hook: where layers are compiled, what keeps the compiler out of it."""
        self.kernels_of = "cpu"
        """Kind of device whose kernels a model on the meta device is passed with; any other one has its own."""
        self.placed = is_placed(model)
        """Whether its modules compute on several devices, or weights are put away between passes (a device map)."""
        self._required_grad = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)

    # Adding and removing

    def add(self, name: str, methods: Sequence[Method[Any]], seed: int = 0) -> Adapter:
        """Builds an adapter for this backbone from a list of methods and attaches it under a name."""
        adapter = Adapter(methods, self.anatomy, self.model, seed, self.processor)
        self.put(name, place(adapter, self.model))
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
        self.route = tuple(a for a in self.route if a.adapter is not adapter)
        self._rebuild()
        return adapter

    def detach(self) -> nn.Module:
        """Takes everything out and gives the backbone back as it was."""
        self.adapters.clear()
        self.route = ()
        self._rebuild()
        for parameter in self._required_grad:
            parameter.requires_grad_(True)
        return self.model

    def _rebuild(self) -> None:
        """One hook of each kind per edited module, whatever the number of adapters; those that are there stay."""
        adapters = list(self.adapters.values())
        vision_tokens = self.anatomy.kind == "vision" and any(a.virtual for a in adapters)
        wanted = {("input", name) for a in adapters for name in (*a.inputs, *a.captures)}
        wanted |= {("output", name) for a in adapters for name in a.outputs}
        if self.placed:
            wanted |= {("device", name) for _, name in wanted}
        if vision_tokens:
            wanted.add(("vision tokens", self.anatomy.at("input")[0].exit))
        for key in self._handles.keys() - wanted:
            self._handles.pop(key).remove()
        for kind, name in sorted(wanted - self._handles.keys()):
            self._handles[kind, name] = self._hooked(kind, name)
        names = {name for a in adapters for name in a.prefixes}
        if vision_tokens:
            names |= {site.exit for site in self.anatomy.at("self_attn.core")}
        if names:
            enable_prefixes(self, names)
        else:
            restore_attention(self)

    def _hooked(self, kind: str, name: str) -> RemovableHandle:
        module = self.model.get_submodule(name)
        if kind == "device":
            return module.register_forward_pre_hook(
                moving_hook(execution_device(module)), with_kwargs=True, prepend=True
            )
        if kind == "input":
            return module.register_forward_pre_hook(self.sealed(input_hook(self, name)), with_kwargs=True)
        if kind == "output":
            return module.register_forward_hook(self.sealed(output_hook(self, name)), with_kwargs=True)
        return module.register_forward_hook(self.sealed(vision_tokens_hook(self)))

    @contextmanager
    def sealing(self, seal: Callable[[Hook], Hook]) -> Iterator[None]:
        """Within the block, every hook has `seal` around it."""
        with self.bare():
            self.sealed = seal
        try:
            yield
        finally:
            with self.bare():
                self.sealed = _as_it_is

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
        before = self.route, self.batch_rows, self.layout
        self.route, self.layout = tuple(route), layout
        self.batch_rows = batch_rows or max((a.rows.stop or 0 for a in route), default=0)
        try:
            yield self
        finally:
            self.route, self.batch_rows, self.layout = before
            self.captured.clear()

    @contextmanager
    def exclusive_values(self) -> Iterator[None]:
        """Within the block, the parameters that the routed adapter replaces (full tuning) hold its values.

        Values are put in as plain tensors, so gradients flow to the adapter's own (fp32) copies. They take the
        parameters' places, so that whoever asks the model for its parameters (generate, for the device) finds them.
        """
        overrides: dict[str, Tensor] = {}
        for assignment in self.route:
            for site, edit in assignment.adapter.exclusive if assignment.adapter else ():
                prefix = f"{site.entry}." if site.entry else ""
                overrides.update({prefix + name: together(value) for name, value in edit.values().items()})
        if not overrides:
            yield
            return
        with self.with_values(_tied_targets(self.model, overrides)):
            yield

    @contextmanager
    def with_values(self, targets: Sequence[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
        """Within the block, parameters (module, name) are these tensors."""
        before, self.replaced = self.replaced, targets
        originals = [(module, name, module._parameters[name]) for module, name, _ in targets]
        try:
            for module, name, value in targets:
                module._parameters[name] = value  # type: ignore[assignment]
            yield
        finally:
            self.replaced = before
            for module, name, original in originals:
                module._parameters[name] = original

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
        layout = self.layout
        prepared, places = prepare_inputs(self, inputs, prompt_lengths)
        known = self.trunk.states(self, prepared, prompt_lengths) if self.trunk is not None else None
        handle = None
        if keep is not None:
            rows, positions = keep
            positions = positions if places is None else places[rows, positions]
            head = self.model.get_output_embeddings()  # type: ignore[operator]

            def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                device = args[0].device
                return (args[0][rows.to(device), positions.to(device)].unsqueeze(0), *args[1:])

            handle = head.register_forward_pre_hook(gather)
            keep = rows, positions
        try:
            with (
                self.exclusive_values(),
                without_trunk(self, *known) if known is not None else nullcontext(),
                narrowed(self, keep) if self.lean else nullcontext(),
            ):
                return self.model(**(lean_inputs(self, prepared) if self.lean else prepared))
        finally:
            if handle is not None:
                handle.remove()
            self.layout = layout
            self.captured.clear()
            self.used_places = None

    def generate(self, **inputs: Any) -> Tensor:
        """`model.generate` under the current route; see `generating.generate`."""
        return generate(self, inputs)

    def covering(self, rows: int) -> Iterator[Assignment]:
        """The route as pieces that make up a whole batch of `rows`."""
        return covering(self.route, self.batch_rows, rows)

    def editing(self, where: str, name: str, rows: int) -> Iterator[Assignment]:
        """Those pieces whose adapters edit the `inputs` or `outputs` of a module."""
        for assignment in self.covering(rows):
            if assignment.adapter is not None and name in getattr(assignment.adapter, where):
                yield assignment

    def batched(self, tensor: Tensor) -> Tensor:
        """(rows, tokens, d) view of what a module got; some families flatten rows and tokens before the feed-forward."""
        if tensor.dim() >= 3:
            return tensor
        return tensor.view(self.batch_rows, -1, tensor.shape[-1]) if self.batch_rows else tensor.unsqueeze(0)


def _as_it_is(hook: Hook) -> Hook:
    return hook


def _tied_targets(model: nn.Module, overrides: dict[str, Tensor]) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, parameter name, value) for every place that holds an overridden parameter, tied places included."""
    value_of = {id(model.get_parameter(name)): value for name, value in overrides.items()}
    return [
        (module, name, value_of[id(parameter)])
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in value_of
    ]


def attach(
    model: nn.Module, *methods: Method[Any], name: str = "default", seed: int = 0, processor: Any = None
) -> Attached:
    """Attaches one adapter made of these methods to a transformers model, active for every row.

    `processor` is the model's tokenizer; only methods whose settings hold text need it.

    >>> attached = attach(model, LoRA(rank=8, where="self_attn.q self_attn.v"))
    >>> attached(input_ids=ids, attention_mask=mask).logits
    """
    from dollartune.backbones.loading import anatomy_of

    attached = Attached(model, anatomy_of(model), processor)
    adapter = attached.add(name, methods, seed)
    attached.route = (Assignment(adapter, slice(None)),)
    return attached
