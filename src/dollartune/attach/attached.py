"""A backbone with adapters attached: hooks at the edited modules, a route that says which rows belong to which adapter.

The backbone's own code runs unchanged. Each edited module gets one forward hook; the hook looks up the current route and
applies, to each adapter's rows, what that adapter has there. Detaching removes the hooks, and the backbone is bit-equal
to before: no weight of it is ever written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dollartune.attach.adapter import Adapter
from dollartune.attach.attention import enable_prefixes, restore_attention
from dollartune.attach.inputs import decoder_lengths, insert_in_decoder, insert_virtual, prepare_inputs, tell_edits
from dollartune.attach.recompute import add_delta
from dollartune.backbones.anatomy import Anatomy, join_parts, split_parts
from dollartune.errors import UserError, unknown_name
from dollartune.methods.base import Method
from dollartune.methods.edits import Delta, Edit, Override, Rows, Transform


@dataclass(frozen=True)
class Assignment:
    """Some rows of a batch and the adapter they belong to (None: the bare backbone)."""

    adapter: Adapter | None
    rows: slice
    context: Rows = field(default_factory=Rows)

    def repeated(self, times: int) -> Assignment:
        """The same for a batch in which each row is there `times` times."""
        start, stop = (None if at is None else at * times for at in (self.rows.start, self.rows.stop))
        masks = {stack: mask.repeat_interleave(times, dim=0) for stack, mask in self.context.prompt_mask.items()}
        return Assignment(self.adapter, slice(start, stop), replace(self.context, prompt_mask=masks))


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
        self._handles: list[RemovableHandle] = []
        self._captured: dict[str, Tensor] = {}
        self.used_places: Tensor | None = None
        """(rows, tokens) bool, where rows of images have different numbers of virtual tokens."""
        self.kept_prefixes: dict[str, Any] | None = None
        """Attention -> the rows' prefixes, kept by a server over steps of one route; None: computed at every pass."""
        self._required_grad = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)

    # Adding and removing

    def add(self, name: str, methods: Sequence[Method[Any]], seed: int = 0) -> Adapter:
        """Builds an adapter for this backbone from a list of methods and attaches it under a name."""
        adapter = Adapter(methods, self.anatomy, self.model, seed, self.processor)
        device = next(self.model.parameters()).device
        self.put(name, adapter.to(device))
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
        """One hook of each kind per edited module, whatever the number of adapters."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        adapters = list(self.adapters.values())
        for name in {name for a in adapters for name in (*a.inputs, *a.captures)}:
            hook = self._input_hook(name)
            self._handles.append(self.model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        for name in {name for a in adapters for name in a.outputs}:
            output_hook = self._output_hook(name)
            self._handles.append(self.model.get_submodule(name).register_forward_hook(output_hook, with_kwargs=True))
        vision_tokens = self.anatomy.kind == "vision" and any(a.virtual for a in adapters)
        names = {name for a in adapters for name in a.prefixes}
        if vision_tokens:
            names |= {site.exit for site in self.anatomy.at("self_attn.core")}
        if names:
            enable_prefixes(self, names)
        else:
            restore_attention(self)
        if vision_tokens:
            site = self.anatomy.at("input")[0]
            module = self.model.get_submodule(site.exit)
            self._handles.append(module.register_forward_hook(self._vision_tokens_hook))

    # Routing

    @contextmanager
    def routed(self, *assignments: Assignment | str | None, batch_rows: int | None = None) -> Iterator[Attached]:
        """Within the block, rows belong to these adapters; a name (or None) alone means every row.

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
        before = self.route, self.batch_rows
        self.route = tuple(route)
        self.batch_rows = batch_rows or max((a.rows.stop or 0 for a in route), default=0)
        try:
            yield self
        finally:
            self.route, self.batch_rows = before
            self._captured.clear()

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
                overrides.update({prefix + name: value for name, value in edit.values().items()})
        if not overrides:
            yield
            return
        targets = _tied_targets(self.model, overrides)
        originals = [(module, name, module._parameters[name]) for module, name, _ in targets]
        try:
            for module, name, value in targets:
                module._parameters[name] = value  # type: ignore[assignment]
            yield
        finally:
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
        prepared, places = prepare_inputs(self, inputs, prompt_lengths)
        handle = None
        if keep is not None:
            rows, positions = keep
            positions = positions if places is None else places[rows, positions]
            head = self.model.get_output_embeddings()  # type: ignore[operator]

            def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return (args[0][rows, positions].unsqueeze(0), *args[1:])

            handle = head.register_forward_pre_hook(gather)
        try:
            with self.exclusive_values():
                return self.model(**prepared)
        finally:
            if handle is not None:
                handle.remove()
            self._captured.clear()
            self.used_places = None

    def generate(self, **inputs: Any) -> Tensor:
        """`model.generate` under the current route, virtual tokens and prefixes included.

        Returns:
            (rows · sequences per row, new tokens): what was written, without the prompt (an encoder-decoder's begins with
            its start token).
        """
        rows = next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor))
        inside = self.anatomy.kind == "encoder_decoder" and any(lengths := decoder_lengths(self, rows))
        if inside and len(set(lengths)) > 1:
            return self._generate_apart(inputs, rows)
        prepared, _ = prepare_inputs(self, inputs, None, generating=True)
        settings = prepared.get("generation_config") or self.model.generation_config
        beams, sequences = (
            prepared.get(n) or getattr(settings, n, None) or 1 for n in ("num_beams", "num_return_sequences")
        )
        if "past_key_values" in prepared and max(beams, sequences) > 1:
            prepared["past_key_values"].batch_repeat_interleave(max(beams, sequences))
        handles = [self.model.register_forward_hook(self._prompt_is_read)] if self.anatomy.kind == "decoder" else []
        if inside:
            hook = lambda module, args, kwargs: (args, insert_in_decoder(self, kwargs))  # noqa: E731
            handles.append(self.model.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            with torch.no_grad(), self.exclusive_values():
                tokens: Tensor = self.model.generate(**prepared)  # type: ignore[operator]
        finally:
            for handle in handles:
                handle.remove()
            self._captured.clear()
        if self.anatomy.kind == "decoder" and "input_ids" in prepared:
            tokens = tokens[:, prepared["input_ids"].shape[1] :]
        return tokens

    def _prompt_is_read(self, *_: Any) -> None:
        """After the prompt, single tokens follow that are not part of it."""
        tell_edits(self, None)

    def _generate_apart(self, inputs: dict[str, Any], rows: int) -> Tensor:
        """Generates for each run of rows by itself: decoders without position inputs cannot hold rows that start apart."""
        pieces = []
        for assignment in list(self._covering(rows)):
            own = {
                name: v[assignment.rows] if isinstance(v, Tensor) and v.shape[:1] == (rows,) else v
                for name, v in inputs.items()
            }
            with self.routed(replace(assignment, rows=slice(None))):
                pieces.append(self.generate(**own))
        longest = max(piece.shape[1] for piece in pieces)
        config: Any = self.model.generation_config
        padding = int(config.pad_token_id or 0)
        return torch.cat(
            [torch.nn.functional.pad(piece, (0, longest - piece.shape[1]), value=padding) for piece in pieces]
        )

    # Hooks

    def _batched(self, tensor: Tensor) -> Tensor:
        """(rows, tokens, d) view of what a module got; some families flatten rows and tokens before the feed-forward."""
        if tensor.dim() >= 3:
            return tensor
        return tensor.view(self.batch_rows, -1, tensor.shape[-1]) if self.batch_rows else tensor.unsqueeze(0)

    def _input_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.route:
                return None
            x, *rest = args if args else (kwargs["hidden_states"],)
            if any(a.adapter is not None and name in a.adapter.inputs for a in self.route):
                x = self._edit_inputs(name, x)
            if any(a.adapter is not None and name in a.adapter.captures for a in self.route):
                self._captured[name] = x
            return ((x, *rest), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def _edit_inputs(self, name: str, x: Tensor) -> Tensor:
        batched = self._batched(x)
        pieces = []
        for assignment in self._covering(batched.shape[0]):
            piece = batched[assignment.rows]
            for _, edit in assignment.adapter.inputs.get(name, ()) if assignment.adapter else ():
                piece = edit.edit_input(piece, assignment.context)
            pieces.append(piece)
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(x.shape)

    def _output_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not any(a.adapter is not None and name in a.adapter.outputs for a in self.route):
                return None
            y = output[0] if isinstance(output, tuple) else output
            x: Tensor = args[0] if args else kwargs["hidden_states"]
            batched_x, batched_y = self._batched(x), self._batched(y)
            pieces = []
            for assignment in self._covering(batched_y.shape[0]):
                pieces.append(self._edit_output(name, module, assignment, batched_x, batched_y))
            result = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(y.shape)
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return hook

    def _covering(self, rows: int) -> Iterator[Assignment]:
        """The route, with rows that no adapter claims filled in, so that the pieces make up the whole batch.

        Beam search and sampling have several rows for each row of the batch, next to each other.
        """
        times = rows // self.batch_rows if self.batch_rows and rows % self.batch_rows == 0 else 1
        route = self.route if times == 1 else tuple(a.repeated(times) for a in self.route)
        if len(route) == 1 and route[0].rows == slice(None):
            yield route[0]
            return
        at = 0
        for assignment in route:
            start, stop, _ = assignment.rows.indices(rows)
            if start > at:
                yield Assignment(None, slice(at, start))
            yield assignment
            at = stop
        if at < rows:
            yield Assignment(None, slice(at, rows))

    def _edit_output(self, name: str, module: nn.Module, assignment: Assignment, x: Tensor, y: Tensor) -> Tensor:
        """y of one assignment's rows after all of its edits at this module."""
        piece_x, piece_y = x[assignment.rows], y[assignment.rows]
        if assignment.adapter is None:
            return piece_y
        for site, edit in assignment.adapter.outputs.get(name, ()):
            if isinstance(edit, Override):
                piece_y = self._overridden(edit, module, piece_x)
            elif site.kind == "sublayer":
                site_x = self._batched(self._captured[site.entry])[assignment.rows]
                piece_y = apply_edit(edit, site_x, piece_y, assignment.context)
            elif site.part is not None:
                parts = split_parts(piece_y, site.part, site.heads)
                index = site.part.index
                parts[index] = apply_edit(edit, piece_x, parts[index], assignment.context)
                piece_y = join_parts(parts, site.part, site.heads)
            else:
                piece_y = apply_edit(edit, piece_x, piece_y, assignment.context)
        return piece_y

    def _overridden(self, edit: Override, module: nn.Module, x: Tensor) -> Tensor:
        """The module's output for other values of its parameters. Its own hooks must not run again, so the route is empty."""
        route, self.route = self.route, ()
        try:
            if edit.batched:
                one_row = torch.func.vmap(
                    lambda values, row: torch.func.functional_call(module, values, (row[None],))[0]
                )
                result: Tensor = one_row(
                    {name: value.expand(x.shape[0], *value.shape[1:]) for name, value in edit.values().items()}, x
                )
            else:
                result = torch.func.functional_call(module, edit.values(), (x,))
        finally:
            self.route = route
        return result

    def _vision_tokens_hook(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Puts virtual tokens behind the patch embeddings of a vision transformer, whose attention knows no order."""
        embeddings, arrangement = insert_virtual(self, "encoder", output, None)
        if arrangement.longest:
            real = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
            tell_edits(self, arrangement(real, 0, 0))
            used = arrangement(real, 1, 0)
            self.used_places = None if bool(used.all()) else used
        return embeddings


def apply_edit(edit: Edit, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """One edit on the output of a module. Shapes (rows, tokens, features)."""
    if isinstance(edit, Delta):
        return add_delta(edit, x, y, rows)
    if isinstance(edit, Transform):
        return edit.transform(x, y, rows)
    raise TypeError(f"{type(edit).__name__} does not edit an output")


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
