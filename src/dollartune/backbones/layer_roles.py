"""What plays which role in one layer of a miniature, read off what happened in its first call.

attentions ──> the linears before and after each, by what their outputs feed
feed-forwards: linears whose outputs enter another one, place by place
experts, convolutions and other tensors; norms; and the linears that are left, by their own names
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dollartune.backbones.anatomy import (
    Core,
    Part,
    RolePath,
    Sublayer,
    Weights,
    weight_shape,
)
from dollartune.backbones.miniature import ROWS
from dollartune.backbones.probing import (
    Call,
    Meeting,
    multiplied,
    negated,
    score_sources,
    sources,
)


@dataclass
class ProbedLayer:
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
    tokens_first: bool = False
    """Whether it was given (tokens, rows, width)."""
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


def roles_of(layer: ProbedLayer) -> dict[str, RolePath]:
    """Role -> path relative to the layer."""
    linears = layer.linears()
    last = -1
    attentions = _attentions(layer, linears)
    for together in attentions:
        # Of those that share their linears the widest first, which keeps the plain names (LiLT's text, beside its layout)
        for meeting in sorted(together, key=lambda one: 0 if one.value is None else -one.value.numel()):
            _attention(layer, linears, meeting, last, layer.events.index(meeting))
        last = max(layer.events.index(meeting) for meeting in together)
    if not attentions:
        _attention_by_name(layer, linears)
    _feed_forwards(layer, linears)
    _tensors(layer)
    _left_over(layer, linears)
    _norms(layer)
    if layer.by_tokens:  # what stands at the end of a layer is edited token by token, not by channels of an image
        layer.give("layer", "")
    return layer.roles


def _attentions(layer: ProbedLayer, linears: Sequence[Call]) -> list[list[Meeting]]:
    """Attentions in order, those together between which no linear is called: they read the same ones."""
    groups: list[list[Meeting]] = []
    apart = True
    for event in layer.events:
        if isinstance(event, Meeting):
            if apart:
                groups.append([])
            groups[-1].append(event)
            apart = False
        elif any(event is call for call in linears):
            apart = True
    return groups


def _attention(layer: ProbedLayer, linears: Sequence[Call], meeting: Meeting, after: int, at: int) -> None:
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
        masks_by_role["q"], masks_by_role["k"] = score_sources(meeting.scores, outputs, layer.tokens_first)
        _without_biases(meeting.scores, before, masks_by_role)
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
    if meeting.interface and meeting.module.startswith(f"{layer.name}.") and f"{name}.k" not in layer.roles:
        _core_by_output(layer, name, meeting)
    elif meeting.interface and meeting.module.startswith(f"{layer.name}."):
        key, value = meeting.key, meeting.value
        width = int(chosen["k"][1].sum()) if chosen["k"][1] is not None else 0
        # JetMoE repeats its keys before they meet the queries
        times, rest = (
            divmod(key.shape[1] * key.shape[-1], width) if key is not None and key.dim() == 4 and width else (1, 1)
        )
        if key is not None and value is not None and key.shape == value.shape and not rest:
            layer.give(f"{name}.core", Core(layer.relative(meeting.module), key.shape[1], f"{name}.k", times))


def _without_biases(scores: Tensor, calls: Sequence[Call], masks: dict[str, list[Tensor | None]]) -> None:
    """Takes out of several linears behind queries those that no score multiplies with a key."""
    key, _ = _nearest(calls, masks["k"])
    behind = [index for index, mask in enumerate(masks["q"]) if mask is not None]
    if key is None or key.output is None or len(behind) < 2:
        return
    products = [i for i in behind if (y := calls[i].output) is not None and multiplied(scores, y, key.output)]
    if products:
        masks["q"] = [mask if index in products else None for index, mask in enumerate(masks["q"])]


def _core_by_output(layer: ProbedLayer, name: str, meeting: Meeting) -> None:
    """Where keys and values meet, in families whose keys are made of more than one linear's outputs (Zaya mixes them with the
    queries): a head is as wide as what the output projection takes of each head of queries."""
    query, key, value, leaving = meeting.query, meeting.key, meeting.value, layer.roles.get(f"{name}.o")
    if query is None or key is None or value is None or query.dim() != 4 or not isinstance(leaving, str):
        return
    shape = weight_shape(layer.module(f"{layer.name}.{leaving}"))
    if shape is not None and key.shape == value.shape and query.shape[1] * key.shape[-1] == shape[0]:
        core = Core(layer.relative(meeting.module), key.shape[1], f"{name}.o", queries=query.shape[1])
        layer.give(f"{name}.core", core)


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


def _attention_by_name(layer: ProbedLayer, linears: Sequence[Call]) -> None:
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


def _feed_forwards(layer: ProbedLayer, linears: Sequence[Call]) -> None:
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


def _short(layer: ProbedLayer, call: Call) -> str:
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


def _gate_and_up(layer: ProbedLayer, down: Call, ups: Sequence[Call]) -> tuple[RolePath | None, RolePath]:
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


def _tensors(layer: ProbedLayer) -> None:
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


def _gives_states(layer: ProbedLayer, path: str) -> bool:
    """Whether a module is called and gives something as wide as the residual stream: others only hold experts."""
    calls = [event for event in layer.events if isinstance(event, Call) and event.name == f"{layer.name}.{path}"]
    return bool(calls) and calls[0].output is not None and calls[0].output.shape[-1] == layer.width


def _tensors_of(layer: ProbedLayer) -> list[tuple[Call, str]]:
    """Tensors of three or four dimensions that the modules of a layer hold, in the order of their first calls."""
    calls = {event.name: event for event in reversed(layer.events) if isinstance(event, Call)}
    ordered = [event for event in layer.events if isinstance(event, Call) and calls[event.name] is event]
    return [(call, parameter) for call in ordered for parameter in _own_tensors(layer.module(call.name))]


def _is_experts(layer: ProbedLayer, name: str, parameter: str) -> bool:
    """Whether a tensor is one of experts: of three dimensions, in no convolution, and in no module that attends."""
    module = layer.module(name)
    attends = any(isinstance(event, Meeting) and event.module.startswith(name) for event in layer.events)
    return module.get_parameter(parameter).dim() == 3 and not isinstance(module, nn.Conv1d | nn.Conv2d) and not attends


def _left_over(layer: ProbedLayer, linears: Sequence[Call]) -> None:
    """Every linear that has no role yet, by its own name: `mixer` in layers without attention, else `other`."""
    # What mixes tokens where no attention does (state-space layers, recurrences) is what one would tune there.
    group = "other" if any(role.startswith("self_attn") for role in layer.roles) else "mixer"
    for call in linears:
        if call.name not in layer.taken:
            layer.give(f"{group}.{_short(layer, call)}", layer.relative(call.name), call.name)


def _norms(layer: ProbedLayer) -> None:
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
                and not any(list(child.parameters()) for child in module.children())
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


def scaled_roles(roles: Mapping[str, RolePath], layer: nn.Module) -> dict[str, RolePath]:
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
