"""Anatomies as files: what was read off a model's structure, written out to be looked at, corrected, and given back.

dollartune backbones show MODEL --yaml > my_model.yaml        then in a study:
backbone: {name: MODEL, anatomy: my_model.yaml}

model_types: [my_model]
kind: decoder
embeddings: {embed.tokens: embed_tokens}
stacks:
  decoder:
    final_norm: norm
    shapes:                                          layers that are alike share their roles
    - layers: [layers.0, layers.1]                   relative to the base model
      roles:
        self_attn.q: self_attn.q_proj                a linear
        self_attn.k: {path: self_attn.kv, groups: 4, start: 0, stop: 8, width: 16}     outputs of a fused one
        self_attn: {entry: self_attn.q_proj, exit: self_attn.o_proj}                   a sublayer
        self_attn.core: {path: self_attn, heads: 2, key: self_attn.k}                  where keys and values meet
        mlp.experts.down: {path: mlp.experts, parameter: down_proj}                    experts, convolutions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import yaml

from dollartune.backbones.anatomy import BackboneKind, Core, Family, Part, RolePath, Stack, Sublayer, Weights
from dollartune.errors import UserError, nearest

_FORMS: dict[frozenset[str], Any] = {
    frozenset({"entry", "exit"}): Sublayer,
    frozenset({"path", "parameter"}): Weights,
    frozenset({"path", "heads", "key"}): Core,
    frozenset({"path", "heads", "key", "times"}): Core,
    frozenset({"path", "heads", "key", "queries"}): Core,
    frozenset({"path", "index", "of"}): Part,
    frozenset({"path", "index", "of", "layout"}): Part,
    frozenset({"path", "groups", "start", "stop", "width"}): Part.slice,
}
"""What a role's mapping may consist of, and what it makes."""
_FACTS = (
    "attention_interface",
    "keeps_states",
    "counts_padding",
    "writes_from_embeddings",
    "generates",
    "latents",
    "masks_without_cache",
    "tokens_first",
    "streams",
    "hidden_size",
)
"""What is true of a family, or how much, where it is not as in most; see `Family`."""
_FAMILY_KEYS = ("model_types", "kind", "stacks", "embeddings", "heads", "base", *_FACTS)
_STACK_KEYS = ("shapes", "final_norm", "entrance")


def read_family(path: Path) -> Family:
    """The family that a file describes.

    Raises:
        UserError: the file is not there, or a key or a role in it is not understood.
    """
    try:
        text = path.read_text(encoding="utf8")
    except OSError as error:
        raise UserError(f"anatomy: {str(path)!r} cannot be read: {error.strerror}.") from None
    return family_of_text(text, str(path))


def family_of_text(text: str, source: str) -> Family:
    """The family that the text of such a file describes; `source` names it in errors.

    Raises:
        UserError: it is no YAML, or a key or a role in it is not understood.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"anatomy: {source!r} is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(
            f"anatomy: {source!r} is no mapping.", hint="dollartune backbones show MODEL --yaml prints one."
        )
    return family_from(data, source)


def family_from(data: Mapping[str, Any], source: str) -> Family:
    """The family that a mapping of this form describes; `source` names it in errors."""
    _check_keys(data, _FAMILY_KEYS, source)
    if data.get("kind") not in get_args(BackboneKind):
        raise UserError(f"{source}: kind is {data.get('kind')!r}; it is one of {', '.join(get_args(BackboneKind))}.")
    types = data.get("model_types")
    if not isinstance(types, list) or not types:
        raise UserError(
            f"{source}: model_types lists the model_type of each config.json that it is for; got {types!r}."
        )
    stacks = {
        str(name): _stack(dict(stack), f"{source}, stack {name}") for name, stack in (data.get("stacks") or {}).items()
    }
    if not stacks:
        raise UserError(f"{source}: there is no stack.", hint="dollartune backbones show MODEL --yaml prints one.")
    return Family(
        tuple(map(str, types)), data["kind"], stacks, dict(data.get("embeddings") or {}),
        tuple(data.get("heads") or ("lm_head",)), base=data.get("base"),
        **{name: _fact(name, data[name], source) for name in _FACTS if name in data},
    )  # fmt: skip


def _fact(name: str, value: Any, source: str) -> Any:
    kind = type(getattr(Family, name))
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "a whole number", str: "a name"}[kind]
        raise UserError(f"{source}: {name} is {value!r}; it is {wanted}.")
    return value


def _stack(data: Mapping[str, Any], source: str) -> Stack:
    _check_keys(data, _STACK_KEYS, source)
    entries = []
    for shape in data.get("shapes") or ():
        _check_keys(shape, ("layers", "roles"), source)
        roles = {str(role): _role(value, f"{source}, role {role}") for role, value in shape["roles"].items()}
        entries += [(str(layer), roles) for layer in shape["layers"]]
    if not entries:
        raise UserError(f"{source}: `shapes` lists layers and their roles; got {data.get('shapes')!r}.")
    # By number: as text, layer 10 would come before layer 2.
    entries.sort(key=lambda entry: [int(part) if part.isdigit() else 0 for part in entry[0].split(".")])
    first = entries[0][0].rpartition(".")[0]
    entrance = data.get("entrance", "embed.tokens")
    return Stack(first, {}, final_norm=data.get("final_norm"), by_layer=tuple(entries), entrance=entrance)


def _role(value: Any, source: str) -> RolePath:
    if isinstance(value, str):
        return value
    form = _FORMS.get(frozenset(value)) if isinstance(value, Mapping) else None
    if form is None:
        known = "; ".join(", ".join(sorted(keys)) for keys in _FORMS)
        raise UserError(f"{source}: {value!r} is neither a path nor a mapping of one of these sets of keys: {known}.")
    path: RolePath = form(**value)
    return path


def _check_keys(data: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    for key in data:
        if key not in known:
            raise UserError(f"{source}: unknown key {key!r}.{nearest(str(key), known)} Known: {', '.join(known)}.")


def written(family: Family) -> str:
    """A family as the text of such a file."""
    stacks: dict[str, Any] = {}
    for name, stack in family.stacks.items():
        shapes: list[dict[str, Any]] = []
        for layer, roles in stack.by_layer:
            plain = {role: _plain(path) for role, path in roles.items()}
            alike = next((shape for shape in shapes if shape["roles"] == plain), None)
            if alike is None:
                shapes.append({"layers": [layer], "roles": plain})
            else:
                alike["layers"].append(layer)
        stacks[name] = {"final_norm": stack.final_norm, "entrance": stack.entrance, "shapes": shapes}
    data = {
        "model_types": list(family.model_types), "kind": family.kind, "base": family.base,
        "embeddings": dict(family.embeddings), "heads": list(family.heads),
        **{name: getattr(family, name) for name in _FACTS if getattr(family, name) != getattr(Family, name)},
        "stacks": stacks,
    }  # fmt: skip
    # unsorted: roles stand in forward order, in which sites are made
    return yaml.safe_dump(data, sort_keys=False, width=120, default_flow_style=None)


def _plain(path: RolePath) -> Any:
    if isinstance(path, str):
        return path
    fields = asdict(path)
    if isinstance(path, Part):
        kept = (
            ("path", "groups", "start", "stop", "width")
            if path.layout == "slice"
            else ("path", "index", "of", "layout")
        )
        return {key: fields[key] for key in kept}
    if isinstance(path, Core):
        fields = {key: value for key, value in fields.items() if value != {"times": 1, "queries": 0}.get(key)}
    return fields
