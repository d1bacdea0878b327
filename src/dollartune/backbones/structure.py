"""The anatomy of a family without a file: its layers, and what plays which role in them, read off a miniature.

    lists of layers ──> one layer of each shape ──> attentions ──> the linears before and after each
                                                └─> feed-forwards: linears whose outputs enter another one, one by one
                                                └─> experts and convolutions, norms, and the linears that are left

A role map of this kind names every linear and every tensor of experts of every layer; what it cannot place gets a role
by its own name (`other.laurel_linear_left`, `mixer.in_proj`), so that a selection reaches it. What was seen is printed by
`dollartune backbones show MODEL` and can be corrected in a file (see `anatomy_file.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dollartune.backbones.anatomy import (
    BackboneKind,
    Core,
    Family,
    Part,
    RolePath,
    Stack,
    Sublayer,
    Weights,
    weight_shape,
)
from dollartune.backbones.miniature import ROWS, miniatures, sample_inputs
from dollartune.backbones.probing import (
    Call,
    Meeting,
    Trace,
    embeddings_suffice,
    negated,
    padding_before_matters,
    padding_matters,
    score_sources,
    sources,
    takes_more_places,
    trace,
    trainable_through,
    writes_from_embeddings,
)
from dollartune.errors import UserError

_HEADS = ("lm_head", "classifier", "score", "classification_head", "embed_out", "head", "cls", "logits_proj")
"""Usual names of heads; a model with none of them gives its last module outside the base model."""


@dataclass
class _Layer:
    """One layer of a miniature while its roles are read."""

    name: str
    model: nn.Module
    inputs: dict[str, Tensor]
    events: list[Call | Meeting]
    """Of this layer's first call, in order."""
    width: int
    """Of the residual stream."""
    encoder_length: int | None
    """Tokens of the encoder's output where this is a decoder's layer that reads it."""
    by_tokens: bool
    """Whether it gives (rows, tokens, width), as it was given."""
    places: int
    """Rows times tokens of what it was given."""
    roles: dict[str, RolePath] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Modules that have a role."""

    def relative(self, name: str) -> str:
        return name.removeprefix(f"{self.name}.")

    def module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def linears(self) -> list[Call]:
        """The first call of each linear, in order."""
        picking = {call.name for call in self.picking()}
        first: dict[str, Call] = {}
        for event in self.events:
            if isinstance(event, Call) and event.linear and event.name not in picking:
                first.setdefault(event.name, event)
        return list(first.values())

    def picking(self) -> list[Call]:
        """Calls of linears that get some of a batch's tokens, as experts do that are modules of their own: of several
        adapters nobody could tell whose token is whose."""
        whole = {ROWS, self.places, ROWS * (self.encoder_length or 0)}
        calls = [event for event in self.events if isinstance(event, Call) and event.linear and event.x is not None]
        # All experts of a list where one does: another may have got as many tokens as there are by chance.
        alike = {
            _without_numbers(c.name) for c in calls if c.x is not None and c.x.dim() == 2 and c.x.shape[0] not in whole
        }
        return [call for call in calls if _without_numbers(call.name) in alike]

    def give(self, role: str, path: RolePath, *names: str) -> None:
        """Enters a role; a second one of the same name gets a number."""
        # The first keeps the plain name, so that a selection written for ordinary families finds it.
        number, wanted = 2, role
        while role in self.roles:
            role, number = f"{wanted}_{number}", number + 1
        self.roles[role] = path
        self.taken.update(names)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def read_structure(model: Any, kind: BackboneKind) -> Family:
    """A role map for a model of an unknown family, from passes of a miniature of it.

    Raises:
        UserError: no miniature of it runs, or it has nothing that is a layer; with what was tried.
    """
    tried = "its configuration is too large and cannot be made small"
    for small in miniatures(type(model), model.config):
        try:
            # A miniature is run with real numbers; on the meta device nothing could be probed.
            with torch.device("cpu"):  # also where the caller builds on the meta device
                return _read(model, small, kind)
        except _MissingShape as error:
            tried = str(error)
        except Exception as error:
            # Of the last miniature: the first ones are the smallest, which some families refuse for reasons of size
            # alone.
            tried = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    raise UserError(f"the structure of {model.config.model_type!r} ({type(model).__name__}) cannot be read: {tried}.")


_PADDING = 1e-3
"""Share from which padding matters: rounding stays below 1e-5."""


def _check_head(model: Any, seen: Trace) -> None:
    """Refuses heads for text that read something else than states of tokens (ProphetNet's several futures)."""
    head = model.get_output_embeddings()
    for call in seen.calls():
        if head is not None and model.get_submodule(call.name) is head and call.x is not None and call.x.dim() != 3:
            raise UserError(f"its head reads {call.x.dim()} dimensions, not (rows, tokens, width)")


class _MissingShape(Exception):
    """The model has layers of a shape that the miniature lacks."""


def _read(model: Any, small: Any, kind: BackboneKind) -> Family:
    inputs = sample_inputs(small, kind)
    # before a pass: BigBird puts other attentions into its layers where texts are short
    shapes = {name: _shape(module) for name, module in small.named_modules() if name.rpartition(".")[2].isdigit()}
    seen = trace(small, inputs)
    base_name = _base_name(small)
    prefix = f"{base_name}." if base_name else ""
    stacks: dict[str, Stack] = {}
    notes: list[str] = []
    refusals: dict[str, str] = {}
    _check_head(small, seen)
    if (problem := trainable_through(small, seen, inputs)) is not None:
        refusals["training"] = problem
    if (share := padding_matters(small, inputs)) > _PADDING:
        notes.append(
            f"what {model.config.model_type} gives for a row depends on the padding beside it (by {share:.1%} of its size on a "
            "small copy): with batches of one row it is the row's own"
        )
    base = next((call.output for call in seen.calls() if call.name == _base_name(small)), None)
    if (
        "input_ids" in inputs
        and kind == "encoder"
        and base is not None
        and base.shape[1:2] != inputs["input_ids"].shape[1:]
    ):
        notes.append(
            f"the last states of {model.config.model_type} are fewer than its tokens, so a mean over them depends on the padding "
            "beside it: with batches of one row it is the row's own"
        )
    # Names are read off the miniature and are the model's: both are made by one class.
    embeddings = _embeddings(small, seen, prefix, kind)
    groups = _layer_lists(small, seen, kind)
    if not groups:
        kinds = ("attention", "linear", "weights", "norm", "sublayer", "layer", "input")
        refusals |= dict.fromkeys(kinds, "no list of layers is seen in it")
        notes.append(
            f"no list of layers is seen in {model.config.model_type}: methods that edit layers are refused, and what needs none "
            "of its parts works (full, a head, a linear probe, zero- and few-shot)"
        )
    interface = True
    idle: dict[str, None] = {}  # roles, in order
    picking: dict[str, None] = {}  # paths in a layer
    chooses = False
    called = {call.name for call in seen.calls()}
    left_out: list[str] = []
    for stack_name, lists in groups.items():
        # Of one list: a stage's layers have the modules of the stage before, and may have more heads (SegFormer).
        by_shape: dict[Any, dict[str, RolePath]] = {}
        encoder_length = inputs["input_ids"].shape[1] if stack_name == "decoder" and kind == "encoder_decoder" else None
        for path in lists:
            for name in (f"{path}.{index}" for index in range(len(small.get_submodule(path)))):
                shape = path, shapes[name]
                # Layers of one shape are read once: hundreds of them take the time of a few.
                if (
                    shape not in by_shape
                    and (layer := _layer_of(small, seen, name, inputs, encoder_length)) is not None
                ):
                    by_shape[shape] = _roles(layer)
                    unread = _idle(layer, seen) if "training" not in refusals else []
                    idle |= dict.fromkeys(unread)
                    chooses |= _chooses_tokens(layer, unread)
                    picking |= dict.fromkeys(layer.relative(call.name) for call in layer.picking())
        uncalled = {
            (path, shapes[name])
            for path in lists
            for name in (f"{path}.{index}" for index in range(len(small.get_submodule(path))))
            if name not in called
        }
        entries: list[tuple[str, Mapping[str, RolePath]]] = []
        for name in (f"{path}.{index}" for path in lists for index in range(len(model.get_submodule(path)))):
            shape = name.rpartition(".")[0], _shape(model.get_submodule(name))
            if shape not in by_shape and shape in uncalled:
                left_out.append(name)
                entries.append((name.removeprefix(prefix), {}))
                continue
            if shape not in by_shape:
                raise _MissingShape(f"the layer {name} has a shape that no smaller copy has")
            entries.append(
                (name.removeprefix(prefix), _scaled(by_shape[shape], model.get_submodule(name), small, lists))
            )
        meetings = [event for event in seen.events if isinstance(event, Meeting)]
        # One attention outside of it is enough: prefixes must reach every layer or none.
        interface &= bool(meetings) and all(meeting.interface for meeting in meetings)
        entrance = _entrance(small, seen, kind, stack_name, lists, prefix)
        problem = "" if entrance is not None else "the embedded tokens of this family cannot be told"
        if entrance is not None:
            ids = "decoder_input_ids" if stack_name == "decoder" and kind == "encoder_decoder" else "input_ids"
            if kind == "vision":
                problem = takes_more_places(small, inputs, prefix + entrance) or ""
            elif ids in inputs:
                problem = embeddings_suffice(small, inputs, prefix + entrance, ids) or ""
            if not problem and kind == "encoder" and _finds_last_by_ids(small):
                problem = "its classifier reads the last place of a row, which it finds by token ids"
        if problem:
            refusals["input"] = problem
        norm = _final_norm(small, seen, lists, prefix)
        stacks[stack_name] = Stack(
            lists[0].removeprefix(prefix), {}, final_norm=norm, by_layer=tuple(entries),
            entrance=None if problem else entrance,
        )  # fmt: skip
    if left_out:
        notes.append(f"{len(left_out)} layers, such as {left_out[0]}, have no part in passes of text alone")
    if idle:
        notes.append(
            f"no gradient reaches {', '.join(idle)} in a short pass: what they give chooses and is no part of the result, so "
            "adapters there train nothing"
        )
    if picking:
        notes.append(
            f"{len(picking)} linears of a layer, such as {next(iter(picking))}, get some of a batch's tokens each, and no method "
            "but full reaches them"
        )
    if not interface:  # of some layers alone prefixes would be half of what was asked for
        stacks = {name: replace(stack, by_layer=_without_cores(stack.by_layer)) for name, stack in stacks.items()}
    if groups and not any(
        isinstance(path, Core) for stack in stacks.values() for _, roles in stack.by_layer for path in roles.values()
    ):
        refusals["attention"] = (
            "its keys and values differ in size, or are not kept by heads"
            if interface
            else "its attention is code of its own, which takes no keys and values from elsewhere"
        )
    writes = kind == "decoder" and small.get_output_embeddings() is not None
    return Family(
        (str(model.config.model_type),), kind, stacks, embeddings, _heads(small, seen, base_name), interface,
        guessed=True, base=base_name, notes=tuple(notes), refusals=refusals,
        counts_padding=writes and padding_before_matters(small, inputs),
        writes_from_embeddings=not writes or writes_from_embeddings(small, inputs),
        keeps_states=kind != "vision" and (chooses or _keeps_states(small, groups)),
    )  # fmt: skip


def _without_cores(
    layers: Sequence[tuple[str, Mapping[str, RolePath]]],
) -> tuple[tuple[str, Mapping[str, RolePath]], ...]:
    return tuple(
        (name, {role: path for role, path in roles.items() if not isinstance(path, Core)}) for name, roles in layers
    )


def _finds_last_by_ids(model: nn.Module) -> bool:
    """Whether an encoder's classifier is built as a decoder's (EmbeddingGemma)."""
    from transformers.modeling_layers import GenericForSequenceClassification

    return isinstance(model, GenericForSequenceClassification)


def _keeps_states(small: nn.Module, groups: Mapping[str, list[str]]) -> bool:
    """Whether layers have convolutions over tokens, one channel each, as state-space models do beside attention (Falcon-H1)."""
    layers = [small.get_submodule(path) for lists in groups.values() for path in lists]
    return any(isinstance(module, nn.Conv1d) and module.groups > 1 for layer in layers for module in layer.modules())


def _shape(layer: nn.Module) -> tuple[tuple[str, str], ...]:
    """What layers of one shape have in common: the names and types of the modules inside."""
    return tuple((name, type(module).__name__) for name, module in layer.named_modules())


def _base_name(model: Any) -> str:
    """Of the module that holds the layers: transformers' base model, or the text part inside it."""
    base = model.base_model
    names: list[str] = [name for name, module in model.named_modules() if module is base]
    return names[0]


# Layers


def _layer_lists(model: nn.Module, seen: Trace, kind: BackboneKind) -> dict[str, list[str]]:
    """Stack -> names of its lists of layers, in forward order.

    A list of layers holds modules that are called one after the other and that have norms or attention with weights. Of
    lists inside lists the outer one is meant (T5's sublayers lie in a list), unless the inner ones hold whole layers, an
    attention and three linears each (Swin's blocks inside its stages; T5's feed-forward holds no attention).
    """
    # Reversed, so that of several calls (ALBERT's one layer) the first one's place stays.
    called = {call.name: index for index, call in reversed(list(enumerate(seen.events))) if isinstance(call, Call)}
    attended = {event.module for event in seen.events if isinstance(event, Meeting)}
    lists: list[str] = []
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList | nn.Sequential)
            and len(module)
            and _is_list_of_layers(module, name, called)
        ):
            lists.append(name)
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]

    def whole(name: str) -> bool:
        elements = [f"{name}.{index}." for index in range(len(list(model.get_submodule(name).children())))]
        linears = [n for n, m in model.get_submodule(f"{name}.0").named_modules() if weight_shape(m)]
        # Three: an attention has at least a fused projection and an output, and a whole layer a feed-forward beside it.
        return all(any(place.startswith(one) for place in attended) for one in elements) and len(linears) >= 3

    chosen: list[str] = []
    for name in outer:
        inner = [other for other in lists if other.startswith(f"{name}.")]
        blocks = [other for other in inner if whole(other) and not any(other.startswith(f"{o}.") for o in inner)]
        chosen += blocks if blocks else [name]
    chosen.sort(key=lambda name: min(place for call, place in called.items() if call.startswith(f"{name}.")))
    if kind != "encoder_decoder":
        return {"decoder" if kind == "decoder" else "encoder": chosen} if chosen else {}
    split: dict[str, list[str]] = {"encoder": [], "decoder": []}
    decoder = _module_name(model, "get_decoder")
    for name in chosen:
        split["decoder" if decoder is not None and name.startswith(f"{decoder}.") else "encoder"].append(name)
    return {stack: names for stack, names in split.items() if names}


def _module_name(model: Any, getter: str) -> str | None:
    """Name of what `get_decoder` and its like give, where the model has them."""
    module = getattr(model, getter, lambda: None)()
    return (
        next((name for name, other in model.named_modules() if other is module), None) if module is not None else None
    )


def _is_list_of_layers(module: nn.Module, name: str, called: Mapping[str, int]) -> bool:
    children = list(module.children())
    # Not all: some are for pictures alone (Llama 3.2 Vision).
    if not any(f"{name}.{index}" in called for index in range(len(children))):
        return False
    for child in children:
        kinds = [type(part).__name__ for part in child.modules()]
        weights = [p for p in child.parameters() if p.dim() > 1]
        # A list of projections, convolutions or embeddings has no norms; every layer of every family has.
        if len(weights) < 2 or not any("norm" in kind.lower() or "attention" in kind.lower() for kind in kinds):
            return False
    return True


def _layer_of(
    model: nn.Module, seen: Trace, name: str, inputs: dict[str, Tensor], encoder_length: int | None
) -> _Layer | None:
    """A layer of the miniature with what happened in its first call; None where the pass left it out."""
    start = next((i for i, e in enumerate(seen.events) if isinstance(e, Call) and e.name == name), None)
    if start is None:
        return None
    call = seen.events[start]
    assert isinstance(call, Call)
    inside: list[Call | Meeting] = []
    for event in seen.events[start + 1 :]:
        if isinstance(event, Call):
            if not event.name.startswith(f"{name}."):
                break
        elif not event.module.startswith(name):
            continue
        inside.append(event)
    width = call.output.shape[-1] if call.output is not None else 0
    by_tokens = call.output is not None and call.x is not None and call.output.dim() == 3 == call.x.dim()
    places = call.x.numel() // call.x.shape[-1] if call.x is not None else 0
    return _Layer(name, model, inputs, inside, width, encoder_length, by_tokens, places)


def _idle(layer: _Layer, seen: Trace) -> list[str]:
    """Roles of linears and norms that no gradient of the result reaches: an indexer gives which tokens are attended to, a
    router which experts are asked, and neither is part of what comes out."""
    calls = {event.name: event for event in reversed(layer.events) if isinstance(event, Call)}
    paths = {role: path.path if isinstance(path, Part) else path for role, path in layer.roles.items()}
    given = {
        role: call.output
        for role, path in paths.items()
        if isinstance(path, str) and path and (call := calls.get(f"{layer.name}.{path}")) is not None
        and call.output is not None
    }  # fmt: skip
    # What does not require a gradient, where every weight does, is computed without any.
    live = {role: output for role, output in given.items() if output.requires_grad}
    masks = dict(zip(live, sources(seen.output[0], list(live.values())), strict=True))
    return [role for role in given if masks.get(role) is None]


def _chooses_tokens(layer: _Layer, roles: Sequence[str]) -> bool:
    """Whether one of these idle roles lies in an attention, and so chooses which tokens are attended to."""
    attentions = [layer.relative(event.module) for event in layer.events if isinstance(event, Meeting)]
    paths = [layer.roles[role] for role in roles]
    return any(isinstance(path, str) and path.startswith(f"{module}.") for path in paths for module in attentions)


# Roles in one layer


def _roles(layer: _Layer) -> dict[str, RolePath]:
    """Role -> path relative to the layer."""
    linears = layer.linears()
    last = -1
    attentions = [event for event in layer.events if isinstance(event, Meeting)]
    for meeting in attentions:
        index = layer.events.index(meeting)
        _attention(layer, linears, meeting, last, index)
        last = index
    if not attentions:
        _attention_by_name(layer, linears)
    _feed_forwards(layer, linears)
    _tensors(layer)
    _left_over(layer, linears)
    _norms(layer)
    if layer.by_tokens:  # what stands at the end of a layer is edited token by token, not by channels of an image
        layer.give("layer", "")
    return layer.roles


def _attention(layer: _Layer, linears: Sequence[Call], meeting: Meeting, after: int, at: int) -> None:
    """Roles of what feeds one attention and of what reads it."""
    order = {id(event): index for index, event in enumerate(layer.events)}
    # Since the attention before this one: a cross-attention's queries also depend on all of the self-attention.
    before = [c for c in linears if after < order[id(c)] < at and c.name not in layer.taken and _is_live(c)]
    outputs = [call.output for call in before if call.output is not None]
    masks_by_role: dict[str, list[Tensor | None]] = {}
    if meeting.key is not None and meeting.query is not None and meeting.value is not None:
        masks_by_role = {"q": sources(meeting.query, outputs), "k": sources(meeting.key, outputs)}
        masks_by_role["v"] = sources(meeting.value, outputs)
        keys = meeting.key.shape[-2]
    elif meeting.scores is not None:
        masks_by_role["q"], masks_by_role["k"] = score_sources(meeting.scores, outputs)
        nothing: list[Tensor | None] = [None] * len(outputs)
        masks_by_role["v"] = nothing if meeting.value is None else sources(meeting.value, outputs)
        keys = meeting.scores.shape[-1]
    else:
        return
    cross = layer.encoder_length is not None and keys == layer.encoder_length
    name = "cross_attn" if cross else "self_attn"
    chosen = {role: _nearest(before, masks) for role, masks in masks_by_role.items()}
    fused = [call for role, (call, _) in chosen.items() if call is not None]
    for role in ("q", "k", "v"):
        call, mask = chosen[role]
        if call is None or mask is None:
            continue
        # One linear for several roles is fused, even where a role depends on all of its outputs (norms over q and k mix
        # them).
        alone = sum(other is call for other in fused) == 1
        path = layer.relative(call.name)
        if bool(mask.all()) and alone:
            layer.give(f"{name}.{role}", path, call.name)
        elif (part := _slice(path, mask)) is not None:
            layer.give(f"{name}.{role}", part, call.name)
        elif call.name not in layer.taken:
            # Its parts cannot be told apart: edited whole, under a name that says so.
            joined = "".join(r for r in ("q", "k", "v") if chosen[r][0] is call)
            layer.give(f"{name}.{joined}", path, call.name)
    first = chosen["q"][0] or chosen["v"][0]
    holder = "" if first is None else first.name.rpartition(".")[0]
    for call, *masks in zip(
        before, *masks_by_role.values(), strict=True
    ):  # what feeds those: DeepSeek's narrow projections
        inside = call.name.startswith(f"{holder}.")
        if inside and call.name not in layer.taken and any(mask is not None for mask in masks):
            layer.give(f"{name}.{call.name.rpartition('.')[2]}", layer.relative(call.name), call.name)
    behind_it = [c for c in linears if order[id(c)] > at and c.name not in layer.taken]
    # Outputs that become values.
    size = int(chosen["v"][1].sum()) if chosen["v"][1] is not None else None
    leaving = behind_it[0] if behind_it else None
    if leaving is not None and first is not None:  # without a linear before it, projections are tensors: see `_tensors`
        shape = weight_shape(layer.module(leaving.name))
        # The output projection reads values, repeated where queries share them; else it is another module's first
        # linear.
        if shape is not None and (size is None or shape[0] % size == 0 or meeting.query is None):
            layer.give(f"{name}.o", layer.relative(leaving.name), leaving.name)
            chain = [c for c in before if c.name.startswith(f"{holder}.") and _feeds(c, first)]
            entry = chain[0] if chain else first
            layer.give(name, Sublayer(layer.relative(entry.name), layer.relative(leaving.name)))
    if meeting.interface and meeting.module.startswith(f"{layer.name}.") and f"{name}.k" in layer.roles:
        key, value = meeting.key, meeting.value
        width = int(chosen["k"][1].sum()) if chosen["k"][1] is not None else 0
        # JetMoE repeats its keys before they meet the queries
        times, rest = (
            divmod(key.shape[1] * key.shape[-1], width) if key is not None and key.dim() == 4 and width else (1, 1)
        )
        if key is not None and value is not None and key.shape == value.shape and not rest:
            layer.give(f"{name}.core", Core(layer.relative(meeting.module), key.shape[1], f"{name}.k", times))


def _is_live(call: Call) -> bool:
    return call.output is not None and call.output.requires_grad


def _nearest(calls: Sequence[Call], masks: Sequence[Tensor | None]) -> tuple[Call | None, Tensor | None]:
    """The last linear that feeds a target, with the outputs that do: one before it feeds through it."""
    feeding = [(call, mask) for call, mask in zip(calls, masks, strict=True) if mask is not None]
    return feeding[-1] if feeding else (None, None)


def _feeds(call: Call, other: Call) -> bool:
    """Whether what one linear gives enters another."""
    if call is other or call.output is None or other.x is None:
        return False
    return sources(other.x, [call.output])[0] is not None


def _slice(path: str, mask: Tensor) -> Part | None:
    """The fewest equal groups of outputs in which a role has one run of places; None where there are none."""
    features = len(mask)
    # From the fewest groups on: [q | k | v] is one group of the whole, and also many of less.
    for groups in (n for n in range(1, features + 1) if features % n == 0):
        rows = mask.view(groups, -1)
        if not bool((rows == rows[0]).all()):
            continue
        indices = rows[0].nonzero()[:, 0]
        start, stop = int(indices[0]), int(indices[-1]) + 1
        if stop - start == len(indices) and stop - start < rows.shape[1]:
            return Part.slice(path, groups, start, stop, rows.shape[1])
        # A gap within the first group: no finer division closes it.
        if stop - start != len(indices):
            continue
    return None


_BY_NAME = {
    "q": ("q_proj", "query", "q", "q_lin", "query_proj", "wq"),
    "k": ("k_proj", "key", "k", "k_lin", "key_proj", "wk"),
    "v": ("v_proj", "value", "v", "v_lin", "value_proj", "wv"),
    "o": ("o_proj", "out_proj", "out_lin", "dense", "o", "wo"),
}
"""Last names of attention's linears in families whose attention cannot be watched (windows of their own, in blocks)."""


def _attention_by_name(layer: _Layer, linears: Sequence[Call]) -> None:
    chosen: dict[str, Call] = {}
    for role, names in _BY_NAME.items():
        for call in linears:
            if call.name.rpartition(".")[2] in names and "att" in call.name.lower() and role not in chosen:
                chosen[role] = call
    if not {"q", "k", "v"} <= chosen.keys():
        return
    for role, call in chosen.items():
        layer.give(f"self_attn.{role}", layer.relative(call.name), call.name)
    if "o" in chosen:
        layer.give("self_attn", Sublayer(layer.relative(chosen["q"].name), layer.relative(chosen["o"].name)))


def _feed_forwards(layer: _Layer, linears: Sequence[Call]) -> None:
    """Roles of pairs of linears whose inner places meet one by one: up, activation, down; with a gate beside, or inside
    one fused linear. The widest is `mlp`, one beside experts `mlp.shared`, further ones `other`.
    """
    left = [c for c in linears if c.name not in layer.taken]
    pairs: list[tuple[Call, list[Call]]] = []
    for down in left:
        shape = weight_shape(layer.module(down.name))
        if shape is None or down.x is None or not down.x.requires_grad or shape[1] != layer.width:
            continue  # what does not give a residual stream's width is a projection on the way (Mamba's x_proj)
        entering = []
        for up in left:
            if up is down or up.output is None or left.index(up) >= left.index(down):
                continue
            width = up.output.shape[-1]
            if width in (shape[0], 2 * shape[0]) and _place_by_place(down.x, up.output):
                entering.append(up)
        # The parent module's name is the last resort here: gradients alone cannot tell a gate from a linear that feeds
        # it.
        beside = [up for up in entering if up.name.rpartition(".")[0] == down.name.rpartition(".")[0]]
        entering = beside or entering  # what stands in the same module belongs together (not so in BERT's)
        if 1 <= len(entering) <= 2 and not any(
            up.name == other.name for up in entering for _, ups in pairs for other in ups
        ):
            pairs.append((down, entering))
    experts = any(_is_experts(layer, c.name, p) for c, p in _tensors_of(layer))
    # The widest one is the feed-forward; narrow pairs beside it are adapters or projections of the family's own.
    pairs.sort(key=lambda item: -(item[0].x.shape[-1] if item[0].x is not None else 0))
    for number, (down, ups) in enumerate(pairs):
        name = ("mlp.shared" if experts else "mlp") if number == 0 else f"other.{_short(layer, down)}"
        gate, wide = _gate_and_up(layer, down, ups)
        if gate is not None:
            layer.give(f"{name}.gate", gate, *(u.name for u in ups))
        layer.give(f"{name}.up", wide, *(u.name for u in ups))
        layer.give(f"{name}.down", layer.relative(down.name), down.name)
        if number == 0 and not experts:
            layer.give("mlp", Sublayer(layer.relative(ups[0].name), layer.relative(down.name)))


def _short(layer: _Layer, call: Call) -> str:
    return layer.relative(call.name).replace(".", "_")


def _place_by_place(x: Tensor, y: Tensor) -> bool:
    """Whether each place of x comes from one or two places of y, as an activation or a gate makes it."""
    try:
        # Of the first place alone: through a matrix product it depends on all places of y, through an activation on
        # one, through a gate in a fused linear on two.
        gradient = torch.autograd.grad(x[..., 0].sum(), y, retain_graph=True, allow_unused=True)[0]
    except RuntimeError:  # a recurrence that writes over its own states (RWKV) cannot be followed back
        return False
    if gradient is None:
        return False
    # Over all rows and tokens: an activation may be flat at one of them.
    touched = (gradient.abs().flatten(0, -2).amax(0) > 0).sum()
    return 1 <= int(touched) <= 2


def _gate_and_up(layer: _Layer, down: Call, ups: Sequence[Call]) -> tuple[RolePath | None, RolePath]:
    """Which is the gate: with the sign of `up` turned, what enters `down` turns its sign; with the gate's it does not."""
    assert down.x is not None
    plain = down.x.detach()

    def turns(name: str, features: slice | None) -> bool:
        moved = negated(layer.model, layer.inputs, name, features, down.name)
        # up enters linearly, so its sign passes through; the gate's goes through an activation, which is not odd.
        return moved is not None and moved.shape == plain.shape and bool(torch.allclose(moved, -plain, atol=1e-5))

    if len(ups) == 2:
        # Where neither turns (both activated) the second is taken for `up`, as LLaMA's order is gate, up.
        first = 0 if turns(ups[0].name, None) and not turns(ups[1].name, None) else 1
        return layer.relative(ups[1 - first].name), layer.relative(ups[first].name)
    path, width = layer.relative(ups[0].name), int(ups[0].output.shape[-1])  # type: ignore[union-attr]
    # No second half, so no gate inside.
    if width != 2 * plain.shape[-1]:
        return None, path
    half = width // 2
    for features, up, gate in (
        (slice(half, None), Part(path, 1, 2), Part(path, 0, 2)),
        (slice(0, half), Part(path, 0, 2), Part(path, 1, 2)),
    ):
        if turns(ups[0].name, features):
            return gate, up
    return None, path


def _own_tensors(module: nn.Module) -> list[str]:
    """Parameters of three or four dimensions that a module holds by itself; a convolution of single channels is left out,
    as a product of two small matrices is larger than it."""
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1:
        return []
    return [name for name, p in module.named_parameters(recurse=False) if p.dim() in (3, 4) and min(p.shape[:2]) > 1]


def _tensors(layer: _Layer) -> None:
    """Roles of experts and of other tensors that no linear holds, and the sublayer of a mixture of experts."""
    for call, parameter in _tensors_of(layer):
        path, value = layer.relative(call.name), layer.module(call.name).get_parameter(parameter)
        if _is_experts(layer, call.name, parameter):
            layer.give(f"mlp.experts.{parameter.removesuffix('_proj')}", Weights(path, parameter), call.name)
            container = path.rpartition(".")[0]
            if container and "mlp" not in layer.roles and _gives_states(layer, container):
                layer.give("mlp", Sublayer(container, container))
        elif isinstance(layer.module(call.name), nn.Conv1d | nn.Conv2d):
            layer.give(f"conv.{path.replace('.', '_')}", Weights(path, parameter), call.name)
        elif (
            value.dim() == 3 and value.shape[0] == layer.width
        ):  # XLNet's, by heads; else tables of distances or segments
            layer.give(f"self_attn.{parameter}", Weights(path, parameter))


def _gives_states(layer: _Layer, path: str) -> bool:
    """Whether a module is called and gives something as wide as the residual stream: others only hold experts."""
    calls = [event for event in layer.events if isinstance(event, Call) and event.name == f"{layer.name}.{path}"]
    return bool(calls) and calls[0].output is not None and calls[0].output.shape[-1] == layer.width


def _tensors_of(layer: _Layer) -> list[tuple[Call, str]]:
    """Tensors of three or four dimensions that the modules of a layer hold, in the order of their first calls."""
    calls = {event.name: event for event in reversed(layer.events) if isinstance(event, Call)}
    ordered = [event for event in layer.events if isinstance(event, Call) and calls[event.name] is event]
    return [(call, parameter) for call in ordered for parameter in _own_tensors(layer.module(call.name))]


def _is_experts(layer: _Layer, name: str, parameter: str) -> bool:
    """Whether a tensor is one of experts: of three dimensions, in no convolution, and in no module that attends."""
    module = layer.module(name)
    attends = any(isinstance(event, Meeting) and event.module.startswith(name) for event in layer.events)
    return module.get_parameter(parameter).dim() == 3 and not isinstance(module, nn.Conv1d | nn.Conv2d) and not attends


def _left_over(layer: _Layer, linears: Sequence[Call]) -> None:
    """Every linear that has no role yet, by its own name: `mixer` in layers without attention, else `other`."""
    # What mixes tokens where no attention does (state-space layers, recurrences) is what one would tune there.
    group = "other" if any(role.startswith("self_attn") for role in layer.roles) else "mixer"
    for call in linears:
        if call.name not in layer.taken:
            layer.give(f"{group}.{_short(layer, call)}", layer.relative(call.name), call.name)


def _norms(layer: _Layer) -> None:
    """Normalizations with weights: before or behind attention and feed-forward, where there are as many; else by name."""
    seen: list[Call] = []
    for event in layer.events:
        if isinstance(event, Call) and event.name not in {call.name for call in seen}:
            module = layer.module(event.name)
            shapes = [p.dim() for p in module.parameters()]
            if (
                event.tensors == 1
                and shapes
                and max(shapes) == 1
                and "norm" in type(module).__name__.lower()
                and not list(module.children())
            ):
                seen.append(event)
    outside = [c for c in seen if c.output is not None and c.output.shape[-1] == layer.width]
    meeting = next((i for i, event in enumerate(layer.events) if isinstance(event, Meeting)), len(layer.events))
    usual: dict[int, tuple[str, ...]] = {2: ("norm.self_attn", "norm.mlp")}
    if len(outside) == 1:
        usual[1] = ("norm.self_attn" if layer.events.index(outside[0]) < meeting else "norm.mlp",)
    if "cross_attn.q" in layer.roles:
        usual[3] = ("norm.self_attn", "norm.cross_attn", "norm.mlp")
    for call in seen:
        path = layer.relative(call.name)
        plain = usual.get(len(outside))
        if plain is not None and call in outside:
            layer.give(plain[outside.index(call)], path)
        else:
            layer.give(f"norm.{path.replace('.', '_')}", path)


def _scaled(
    roles: Mapping[str, RolePath], layer: nn.Module, small: nn.Module, lists: Sequence[str]
) -> dict[str, RolePath]:
    """The roles for a layer of the real model, whose fused linears are wider in proportion."""
    scaled: dict[str, RolePath] = {}
    for role, path in roles.items():
        if isinstance(path, Part) and path.layout == "slice":
            shape = weight_shape(layer.get_submodule(path.path))
            assert shape is not None
            width, rest = divmod(shape[1], path.groups)
            start, stop = (bound * width / path.width for bound in (path.start, path.stop))
            if rest or start != int(start) or stop != int(stop):
                scaled[f"{role.rpartition('.')[0]}.fused"] = path.path
                continue
            path = Part.slice(path.path, path.groups, int(start), int(stop), width)
        scaled[role] = path
    return scaled


# Around the layers


def _embeddings(model: Any, seen: Trace, prefix: str, kind: BackboneKind) -> dict[str, str]:
    """`embed.tokens`, and the learned positions where a table is read at 0, 1, 2 ... (or from an offset on)."""
    if kind == "vision":
        return {}
    tokens = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is tokens)
    names = {"embed.tokens": name.removeprefix(prefix)}
    for call in seen.calls():
        module = model.get_submodule(call.name)
        if not isinstance(module, nn.Embedding) or module is tokens or not call.name.startswith(prefix):
            continue
        if call.x is not None and call.x.dim() in (1, 2) and call.x.dtype == torch.long:
            row = call.x.reshape(-1, call.x.shape[-1])[0]
            if len(row) > 2 and bool((row.diff() == 1).all()):
                stack = "encoder_" if kind == "encoder_decoder" and "decoder" not in call.name.split(".") else ""
                stack = "decoder_" if kind == "encoder_decoder" and not stack else stack
                names.setdefault(f"embed.{stack}positions", call.name.removeprefix(prefix))
    return names


def _entrance(model: Any, seen: Trace, kind: BackboneKind, stack: str, lists: Sequence[str], prefix: str) -> str | None:
    """What gives the embedded tokens of a stack, relative to the base model."""
    if kind == "vision":
        first = next((c for c in seen.calls() if c.name == f"{lists[0]}.0"), None)
        if first is None or first.x is None or first.x.dim() != 3:
            return None  # pictures of channels and places: there are no tokens to stand beside
        giving = [
            c
            for c in seen.calls()
            if c.output is first.x and c.name.startswith(prefix) and not c.name.startswith(lists[0])
        ]
        return giving[0].name.removeprefix(prefix) if giving else None
    if kind != "encoder_decoder":
        tokens = model.get_input_embeddings()
        named: list[str] = [name for name, module in model.named_modules() if module is tokens]
        return named[0].removeprefix(prefix)
    owner = _module_name(model, f"get_{stack}") or lists[0].rpartition(".")[0]
    for call in seen.calls():  # each stack's own module: it may scale what a shared table gives
        if not call.name.startswith(f"{owner}.") or not isinstance(model.get_submodule(call.name), nn.Embedding):
            continue
        if call.x is not None and call.x.dtype == torch.long and call.output is not None and call.output.dim() == 3:
            return call.name.removeprefix(prefix)
    return None


def _final_norm(model: nn.Module, seen: Trace, lists: Sequence[str], prefix: str) -> str | None:
    """The norm that is called after the last layer, inside the base model."""
    last = f"{lists[-1]}.{len(model.get_submodule(lists[-1])) - 1}"  # type: ignore[arg-type]
    calls = seen.calls()
    indices = [index for index, call in enumerate(calls) if call.name == last or call.name.startswith(f"{last}.")]
    for call in calls[indices[-1] + 1 :] if indices else []:
        module = model.get_submodule(call.name)
        if "norm" in type(module).__name__.lower() and call.name.startswith(prefix) and not list(module.children()):
            read = call.output is not None and sources(seen.output[0], [call.output])[0] is not None
            return call.name.removeprefix(prefix) if read else None  # CLIP has one whose output nobody reads
        if weight_shape(module):
            return None
    return None


def _heads(model: Any, seen: Trace, base: str) -> tuple[str, ...]:
    """Names of the head, likeliest first."""
    output = model.get_output_embeddings()
    if output is not None:
        return (next(name for name, module in model.named_modules() if module is output),)
    outside = [
        call.name for call in seen.calls() if call.name and call.name.split(".")[0] != (base or "\0").split(".")[0]
    ]
    children = list(
        dict.fromkeys(name.split(".")[0] for name in outside if list(model.get_submodule(name).parameters()))
    )
    usual = [name for name in reversed(children) if name in _HEADS]  # what is called last gives the classes
    return tuple(usual or children[-1:]) or _HEADS[:1]
