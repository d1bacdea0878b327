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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dollartune import format as numbers
from dollartune.backbones.anatomy import (
    BackboneKind,
    Core,
    Family,
    Part,
    RolePath,
    Stack,
    model_width,
    weight_shape,
)
from dollartune.backbones.layer_roles import ProbedLayer, roles_of, scaled_roles
from dollartune.backbones.miniature import ANSWER_TOKENS, ROWS, TOKENS, miniatures, sample_inputs
from dollartune.backbones.probing import (
    Call,
    Meeting,
    Trace,
    changes_by_itself,
    embeddings_suffice,
    generates,
    masks_without_cache,
    padding_before_matters,
    padding_matters,
    sources,
    takes_more_places,
    trace,
    trainable_through,
    writes_from_embeddings,
)
from dollartune.backbones.token_table import output_head, token_table
from dollartune.errors import UserError

_HEADS = ("lm_head", "classifier", "score", "classification_head", "embed_out", "head", "cls", "logits_proj")
"""Usual names of heads; a model with none of them gives its last module outside the base model."""


def read_structure(model: Any, kind: BackboneKind) -> Family:
    """A role map for a model of an unknown family, from passes of a miniature of it.

    Raises:
        UserError: no miniature of it runs, or it has nothing that is a layer; with what was tried.
    """
    tried = "its configuration is too large and cannot be made small"
    for small in miniatures(type(model), model.config):
        try:
            # A miniature is run with real numbers; on the meta device nothing could be probed.
            # Also where the caller builds on the meta device, or computes without gradients (an export that loads what it wrote).
            with torch.device("cpu"), torch.enable_grad():
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
    """Refuses heads for text that read something else than states of tokens, or of several futures of each (ProphetNet)."""
    head = output_head(model)
    for call in seen.calls():
        dimensions = 3 if call.x is None else call.x.dim()
        if head is not None and model.get_submodule(call.name) is head and dimensions not in (3, 4):
            raise UserError(f"its head reads {dimensions} dimensions, not (rows, tokens, width)")


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
            f"what {model.config.model_type} gives for a row depends on the padding beside it (by {numbers.percent(share)} of "
            "its size on a small copy): with batches of one row it is the row's own"
        )
    if (share := changes_by_itself(small, inputs, seen)) > _PADDING:
        notes.append(
            f"what {model.config.model_type} gives for a row differs from pass to pass (by {numbers.percent(share)} of its size "
            "on a small copy): its code draws random numbers"
        )
    base = next((call.output for call in seen.calls() if call.name == base_name), None)
    latents = False
    if (
        "input_ids" in inputs
        and kind == "encoder"
        and base is not None
        and base.shape[1:2] != inputs["input_ids"].shape[1:]
        and not (latents := _are_latents(small, inputs))
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
    chooses = tokens_first = False
    width = 0
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
                    by_shape[shape] = roles_of(layer)
                    tokens_first |= layer.tokens_first
                    width = layer.width if layer.by_tokens else width
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
            entries.append((name.removeprefix(prefix), scaled_roles(by_shape[shape], model.get_submodule(name))))
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
    writes = kind == "decoder" and output_head(small) is not None
    goes_on = not writes or generates(small, inputs)
    answers = "decoder_input_ids" in inputs and output_head(small) is not None
    masks = masks_without_cache(small, inputs) if answers else False
    if masks is None:
        refusals |= dict.fromkeys(("training", "answers"), "its decoder sees the tokens that it is to foretell")
    return Family(
        (str(model.config.model_type),), kind, stacks, embeddings, _heads(small, seen, base_name), interface,
        guessed=True, base=base_name, notes=tuple(notes), refusals=refusals,
        counts_padding=writes and goes_on and padding_before_matters(small, inputs),
        writes_from_embeddings=not writes or writes_from_embeddings(small, inputs),
        generates=goes_on, tokens_first=tokens_first, latents=latents, masks_without_cache=bool(masks),
        hidden_size=_width_name(small.config, width),
        streams=_streams(small.config, base) if kind in ("encoder", "decoder") else 1,
        keeps_states=kind != "vision" and (chooses or _keeps_states(small, groups)),
    )  # fmt: skip


def _without_cores(
    layers: Sequence[tuple[str, Mapping[str, RolePath]]],
) -> tuple[tuple[str, Mapping[str, RolePath]], ...]:
    return tuple(
        (name, {role: path for role, path in roles.items() if not isinstance(path, Core)}) for name, roles in layers
    )


@torch.no_grad()
def _are_latents(small: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether the base model gives as many last states for a shorter text."""
    places: list[int] = []
    handle = small.base_model.register_forward_hook(
        lambda module, args, output: places.append(getattr(output, "last_hidden_state", output[0]).shape[1])
    )
    try:
        for length in (TOKENS, ANSWER_TOKENS):
            small(**{name: value[:, :length] for name, value in inputs.items()})
    finally:
        handle.remove()
    return places[0] == places[1]


def _streams(config: Any, base: Tensor | None) -> int:
    """How many times as wide as a model's states its last ones are."""
    width = model_width(config)
    if base is None or base.dim() != 3 or not width or base.shape[-1] % width:
        return 1
    return max(1, base.shape[-1] // width)


def _width_name(config: Any, width: int) -> str:
    """The setting that holds the width of the layers' states, where the usual names hold another (Perceiver's latents)."""
    usual = Family.hidden_size
    if not width or model_width(config, usual) == width:
        return usual
    widths = (name for name in vars(config) if re.search("latent|hidden|width|dim|embed", name))
    return next((name for name in widths if getattr(config, name) == width), usual)


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
) -> ProbedLayer | None:
    """A layer of the miniature with what happened in a call of it; None where the pass left it out."""
    calls = [(i, event) for i, event in enumerate(seen.events) if isinstance(event, Call) and event.name == name]
    if not calls:
        return None
    # The first one through which gradients flow: of layers that run again and again, HRM trains the last rounds alone.
    start, call = next((item for item in calls if (y := item[1].output) is not None and y.requires_grad), calls[0])
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
    tokens_first = call.x is not None and call.x.shape[:-1] in ((TOKENS, ROWS), (ANSWER_TOKENS, ROWS))
    return ProbedLayer(name, model, inputs, inside, width, encoder_length, by_tokens, places, tokens_first)


def _idle(layer: ProbedLayer, seen: Trace) -> list[str]:
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


def _chooses_tokens(layer: ProbedLayer, roles: Sequence[str]) -> bool:
    """Whether one of these idle roles lies in an attention, and so chooses which tokens are attended to."""
    attentions = [layer.relative(event.module) for event in layer.events if isinstance(event, Meeting)]
    paths = [layer.roles[role] for role in roles]
    return any(isinstance(path, str) and path.startswith(f"{module}.") for path in paths for module in attentions)


# Around the layers


def _embeddings(model: Any, seen: Trace, prefix: str, kind: BackboneKind) -> dict[str, str]:
    """`embed.tokens`, and the learned positions where a table is read at 0, 1, 2 ... (or from an offset on)."""
    if kind == "vision":
        return {}
    tokens = token_table(model)
    tables = [name.removeprefix(prefix) for name, module in model.named_modules() if module is tokens]
    names = {"embed.tokens": tables[0]} if tables else {}
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
        tokens = token_table(model)
        return next((name.removeprefix(prefix) for name, module in model.named_modules() if module is tokens), None)
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
    output = output_head(model)
    if output is not None:
        return (next(name for name, module in model.named_modules() if module is output),)
    outside = [
        call.name for call in seen.calls() if call.name and call.name.split(".")[0] != (base or "\0").split(".")[0]
    ]
    children = list(
        dict.fromkeys(name.split(".")[0] for name in outside if list(model.get_submodule(name).parameters()))
    )
    usual = [name for name in reversed(children) if name in _HEADS]  # what is called last gives the classes
    if children:
        return tuple(usual or children[-1:])
    # inside the base model (Perceiver's): the linear that gives the scores, whatever shape they have there
    scores = seen.output[0].flatten()
    giving = [call.name for call in seen.calls() if call.linear and _equal(call.output, scores)]
    return tuple(giving[-1:]) or _HEADS[:1]


def _equal(output: Tensor | None, scores: Tensor) -> bool:
    return output is not None and output.numel() == scores.numel() and bool(torch.equal(output.flatten(), scores))
