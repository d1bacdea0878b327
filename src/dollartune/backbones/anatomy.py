"""The anatomy of a backbone: which module plays which role.

Methods speak only of sites, never of a model family:

    decoder.3.self_attn.q          a linear:    y = W x + b
    decoder.3.self_attn.core       an attention: where keys and values meet (prefixes go here)
    decoder.3.self_attn            a sublayer:  from the input of its first linear to the output of its last
    decoder.3.layer                a whole block: its output is the residual stream
    decoder.3.norm.mlp             a normalization
    decoder.input                  the embedded tokens as they enter a stack (virtual tokens go here)
    embed.tokens, head, model      outside the layers

A family file says where these are, relative to the base model; `read_anatomy` resolves them on a live (or meta) model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from dollartune.errors import UserError

SiteKind = Literal["model", "input", "embedding", "linear", "attention", "sublayer", "layer", "norm", "head"]
BackboneKind = Literal["decoder", "encoder_decoder", "encoder", "vision"]


@dataclass(frozen=True)
class Part:
    """One of several outputs that share a fused linear, such as q, k and v of GPT-2 and BLOOM.

    `layout` is how the fused output is laid out: "block" = [q | k | v], "heads" = per head [q_h | k_h | v_h].
    """

    path: str
    index: int
    of: int
    layout: Literal["block", "heads"] = "block"


@dataclass(frozen=True)
class Sublayer:
    """A sublayer without the residual connection: what enters `entry` becomes what leaves `exit`."""

    entry: str
    exit: str


RolePath = str | Part | Sublayer
"""A path relative to one layer ("" is the layer itself; `a|b` means a, or b where there is no a)."""


@dataclass(frozen=True)
class Stack:
    """One stack of equal layers."""

    layers: str
    """Path of the layer list, relative to the base model."""
    roles: Mapping[str, RolePath]
    """Role -> path relative to one layer. Paths that a model lacks (a gate, a cross-attention) are left out silently
    when they are listed in `optional`."""
    optional: frozenset[str] = frozenset()
    final_norm: str | None = None
    beside: Callable[[nn.Module, torch.Tensor], tuple[Any, ...]] | None = None
    """What a layer gives beside the hidden states, from the first layer and hidden states (rows, tokens, d_model), where
    layers give a tuple: what the next layer needs when this one is not run."""
    recurrent: bool = False
    """Whether the same layers run again and again, so that each comes before and after each other."""


@dataclass(frozen=True)
class Family:
    """Where the roles of one model family are. One instance per file in `families/`."""

    model_types: tuple[str, ...]
    kind: BackboneKind
    stacks: Mapping[str, Stack]
    embeddings: Mapping[str, str]
    """`embed.tokens`, `embed.positions` ... -> path relative to the base model."""
    heads: tuple[str, ...] = ("lm_head",)
    """Names of task or language-model heads, relative to the whole model; the first that exists is the `head` role."""
    attention_interface: bool = True
    """Whether attention goes through transformers' attention interface (BLOOM and GPT-Neo have their own code)."""
    hidden_size: str = "hidden_size"
    """Config attribute that holds d_model."""
    class_token: bool = False
    """Whether its classifiers read the first place of the last layer and nothing else."""
    guessed: bool = False


@dataclass(frozen=True)
class Site:
    """A role in one layer: the only address that methods use."""

    stack: str
    layer: int | None
    role: str
    kind: SiteKind
    entry: str
    """Full module name whose input is the site's input x."""
    exit: str
    """Full module name whose output is the site's output y; equal to `entry` except for sublayers."""
    in_features: int
    out_features: int
    part: Part | None = None
    bias: bool = False
    """Whether the module has a bias already (linear and norm sites)."""
    transposed: bool = False
    """Whether the module stores its weight as (in, out), as GPT-2's Conv1D does."""
    heads: int = 0
    """Key/value heads (attention sites and fused linears)."""
    head_size: int = 0
    parameters: int = 0
    """Parameters of the module and all inside it, tied ones once (model, embedding, layer, norm and head sites)."""

    @property
    def name(self) -> str:
        """For example `decoder.3.self_attn.q`, `embed.tokens`, `head`."""
        return ".".join(str(part) for part in (self.stack, self.layer, self.role) if part not in ("", None))


@dataclass(frozen=True)
class Anatomy:
    """All sites of one backbone, in forward order, with the few sizes that methods need."""

    family: Family
    sites: tuple[Site, ...]
    d_model: int
    layer_counts: Mapping[str, int]
    """Layers per stack."""
    base_prefix: str = ""
    """Name of the base model inside the whole model, with a trailing dot, for example `model.`."""
    notes: tuple[str, ...] = field(default=())

    @property
    def kind(self) -> BackboneKind:
        return self.family.kind

    def roles(self) -> tuple[str, ...]:
        """Every role that occurs, in order."""
        return tuple(dict.fromkeys(site.role for site in self.sites))

    def at(self, role: str, stack: str | None = None, layer: int | None = None) -> tuple[Site, ...]:
        """Sites with exactly this role (and stack and layer, when given)."""
        return tuple(
            site
            for site in self.sites
            if site.role == role and stack in (None, site.stack) and layer in (None, site.layer)
        )


def weight_shape(module: nn.Module) -> tuple[int, int, bool] | None:
    """(in_features, out_features, transposed) of a linear-like module, or None if it is not one."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1], True
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, False
    return None


def read_anatomy(model: nn.Module, family: Family) -> Anatomy:
    """Resolves a family's role map on a model.

    Raises:
        UserError: a role that the family promises is not there; the message lists what was found.
    """
    base: nn.Module = model.base_model  # type: ignore[assignment]
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is base)
    d_model = int(getattr(model.config, family.hidden_size))
    sites: list[Site] = [Site("", None, "model", "model", "", "", d_model, d_model, parameters=_count(model))]
    for role, path in family.embeddings.items():
        module = _find(base, path)
        if module is not None:
            sites.append(
                Site("", None, role, "embedding", prefix + path, prefix + path, 0, d_model, parameters=_count(module))
            )
    layer_counts = {}
    for stack_name, stack in family.stacks.items():
        layers = _find(base, stack.layers)
        if layers is None:
            continue  # for example a sequence classifier that keeps the encoder only
        layer_counts[stack_name] = len(layers)  # type: ignore[arg-type]
        embedding = prefix + family.embeddings["embed.tokens"]
        width = getattr(
            _find(base, family.embeddings["embed.tokens"]), "embedding_dim", d_model
        )  # OPT-350m, ALBERT: < d_model
        sites.append(Site(stack_name, None, "input", "input", embedding, embedding, width, width))
        for index in range(len(layers)):  # type: ignore[arg-type]
            sites.extend(_layer_sites(model, prefix + f"{stack.layers}.{index}", stack_name, index, stack, d_model))
        if stack.final_norm and (norm := _find(base, stack.final_norm)) is not None:
            name = prefix + stack.final_norm
            has_bias = getattr(norm, "bias", None) is not None
            sites.append(
                Site(
                    stack_name,
                    None,
                    "norm.final",
                    "norm",
                    name,
                    name,
                    d_model,
                    d_model,
                    bias=has_bias,
                    parameters=_count(norm),
                )
            )
    if not layer_counts:
        found = ", ".join(name for name, _ in base.named_children())
        raise UserError(
            f"the {family.model_types[0]} role map expects layers at {[s.layers for s in family.stacks.values()]}; "
            f"the model has {found}."
        )
    for name in family.heads:
        head = _find(model, name)
        if head is not None:
            shape = weight_shape(head)
            sizes = shape[:2] if shape else (d_model, int(model.config.num_labels))  # type: ignore[union-attr, arg-type]
            sites.append(Site("", None, "head", "head", name, name, *sizes, parameters=_count(head)))
            break
    return Anatomy(family, tuple(sites), d_model, layer_counts, prefix)


def _layer_sites(
    model: nn.Module, layer_path: str, stack_name: str, index: int, stack: Stack, d_model: int
) -> Iterator[Site]:
    """Sites of one layer, in the order of the family's role map."""
    layer = model.get_submodule(layer_path)
    for role, path in stack.roles.items():
        if isinstance(path, str) and "|" in path:
            choices = path.split("|")
            path = next((choice for choice in choices if _find(layer, choice) is not None), choices[0])
        paths = (
            (path.entry, path.exit)
            if isinstance(path, Sublayer)
            else (path.path,)
            if isinstance(path, Part)
            else (path,)
        )
        modules = [layer if p == "" else _find(layer, p) for p in paths]
        if any(module is None for module in modules):
            if role in stack.optional:
                continue
            linears = [name for name, module in layer.named_modules() if weight_shape(module)]
            raise UserError(f"role {role!r} should be at {layer_path}.{paths[0]}; the layer has the linears {linears}.")
        names = [layer_path if p == "" else f"{layer_path}.{p}" for p in paths]
        yield _site(model, role, path, modules, names, stack_name, index, d_model)


def _site(
    model: nn.Module,
    role: str,
    path: RolePath,
    modules: list[nn.Module | None],
    names: list[str],
    stack: str,
    index: int,
    d_model: int,
) -> Site:
    """One site, with the sizes read off its module."""
    first, last = modules[0], modules[-1]
    assert first is not None
    assert last is not None
    has_bias = getattr(last, "bias", None) is not None
    if isinstance(path, Sublayer):
        return Site(stack, index, role, "sublayer", names[0], names[-1], d_model, d_model)
    if role == "layer":
        return Site(stack, index, role, "layer", names[0], names[0], d_model, d_model, parameters=_count(last))
    if role.startswith("norm."):
        return Site(
            stack, index, role, "norm", names[0], names[0], d_model, d_model, bias=has_bias, parameters=_count(last)
        )
    if role.endswith(".core"):
        heads, head_size = _kv_heads(model, stack)
        size = heads * head_size
        return Site(
            stack, index, role, "attention", names[0], names[0], d_model, size, heads=heads, head_size=head_size
        )
    shape = weight_shape(last)
    if shape is None:
        raise UserError(f"role {role!r} should be a linear layer; {names[-1]} is a {type(last).__name__}.")
    in_features, out_features, transposed = shape
    part = path if isinstance(path, Part) else None
    heads, head_size = _kv_heads(model, stack) if part else (0, 0)
    if part:
        out_features //= part.of
    return Site(
        stack,
        index,
        role,
        "linear",
        names[0],
        names[0],
        in_features,
        out_features,
        part,
        has_bias,
        transposed,
        heads,
        head_size,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _kv_heads(model: nn.Module, stack: str) -> tuple[int, int]:
    """(key/value heads, size of one head) from the config; the names differ from family to family."""
    config: Any = model.config
    names = (f"{stack}_attention_heads", "num_attention_heads", "num_heads", "n_head")
    heads = next(int(getattr(config, name)) for name in names if getattr(config, name, None))
    width = next(int(getattr(config, n)) for n in ("hidden_size", "d_model", "n_embd") if getattr(config, n, None))
    head_size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or width // heads
    return int(getattr(config, "num_key_value_heads", None) or heads), int(head_size)


def _find(root: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    try:
        found = root.get_submodule(path)
    except AttributeError:
        return None
    return found


def split_parts(y: torch.Tensor, part: Part, heads: int) -> list[torch.Tensor]:
    """Splits a fused output (..., of * size) into its parts, each (..., size)."""
    if part.layout == "block":
        return list(y.chunk(part.of, dim=-1))
    split = y.unflatten(-1, (heads, part.of, -1))  # (..., heads, of, head_size)
    return [piece.flatten(-2) for piece in split.unbind(-2)]


def join_parts(parts: list[torch.Tensor], part: Part, heads: int) -> torch.Tensor:
    """Inverse of `split_parts`."""
    if part.layout == "block":
        return torch.cat(parts, dim=-1)
    stacked = torch.stack([piece.unflatten(-1, (heads, -1)) for piece in parts], dim=-2)  # (..., heads, of, head_size)
    return stacked.flatten(-3)
