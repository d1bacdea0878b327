"""The anatomy of a backbone: which module plays which role.

Methods speak only of sites, never of a model family:

    decoder.3.self_attn.q          a linear:    y = W x + b
    decoder.3.mlp.experts.down     weights:     a parameter of several dimensions that no linear holds (experts, convolutions)
    decoder.3.self_attn.core       an attention: where keys and values meet (prefixes go here)
    decoder.3.self_attn            a sublayer:  from the input of its first linear to the output of its last
    decoder.3.layer                a whole block: its output is the residual stream
    decoder.3.norm.mlp             a normalization
    decoder.input                  the embedded tokens as they enter a stack (virtual tokens go here)
    embed.tokens, pooler, head, model      outside the layers

A family file says where these are, relative to the base model; `read_anatomy` resolves them on a live (or meta) model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from dollartune.backbones.config_values import config_value
from dollartune.errors import UserError

SiteKind = Literal["model", "input", "embedding", "linear", "weights", "attention", "sublayer", "layer", "norm", "head"]
BackboneKind = Literal["decoder", "encoder_decoder", "encoder", "vision"]


@dataclass(frozen=True)
class Part:
    """One of several outputs that share a fused linear, such as q, k and v of GPT-2 and BLOOM.

    `layout` is how the fused output is laid out: "block" = [q | k | v], "heads" = per head [q_h | k_h | v_h], "slice" =
    outputs `start` to `stop` of every `width`, `groups` times over, where parts differ in size: grouped queries
    [q q q q k v] per group, or [q | k | v] with fewer keys than queries (one group).
    """

    path: str
    index: int
    of: int
    layout: Literal["block", "heads", "slice"] = "block"
    groups: int = 1
    start: int = 0
    stop: int = 0
    width: int = 0

    @classmethod
    def slice(cls, path: str, groups: int, start: int, stop: int, width: int) -> Part:
        """Outputs start..stop of every `width` of a linear with groups · width outputs."""
        return cls(path, 1, 3, "slice", groups, start, stop, width)  # before it, itself, behind it

    def size(self, fused: int) -> int:
        """How many of the `fused` outputs are its own."""
        return self.groups * (self.stop - self.start) if self.layout == "slice" else fused // self.of


@dataclass(frozen=True)
class Sublayer:
    """A sublayer without the residual connection: what enters `entry` becomes what leaves `exit`."""

    entry: str
    exit: str


@dataclass(frozen=True)
class Weights:
    """A parameter that a module holds by itself: experts (experts, out, in), a convolution (out, in, height, width), a
    projection by heads (in, heads, size)."""

    path: str
    parameter: str


@dataclass(frozen=True)
class Core:
    """Where keys and values of so many heads meet, each as wide as the outputs of the role `key` say; for families
    whose config is not read for it."""

    path: str
    heads: int
    key: str
    times: int = 1
    """How often each key is there by then, where queries share keys and the family's code repeats them."""
    queries: int = 0
    """Heads of queries, where `key` is the output projection, which takes as much of each: no linear alone gives the keys."""


RolePath = str | Part | Sublayer | Weights | Core
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
    by_layer: tuple[tuple[str, Mapping[str, RolePath]], ...] = ()
    """(path of a layer relative to the base model, its roles), in forward order, where layers differ or lie in several
    lists; `layers` and `roles` are then not read."""
    entrance: str | None = "embed.tokens"
    """What gives the embedded tokens: a key of the family's `embeddings`, or a path relative to the base model; None
    where nothing can be put among the tokens."""


@dataclass(frozen=True)
class GGUFArchitecture:
    """How llama.cpp keeps the weights of a model type."""

    name: str
    """`general.architecture` of its files."""
    paired_rotation: bool = False
    """Whether rows of q and k are stored with the two halves of a head's rotation beside each other."""
    biases: tuple[str, ...] = ()
    """Modules with a bias; the file has no place for one anywhere else."""


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
    """Whether it was read from the structure, by no file."""
    base: str | None = None
    """Name of the base model inside the whole model, where it is not transformers' own `base_model`."""
    notes: tuple[str, ...] = ()
    """What reading the structure could not tell, in sentences."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Site kind -> why there is none of it."""
    keeps_states: bool = False
    """Whether its layers keep states beside keys and values from token to token, or choose among tokens by more than those."""
    counts_padding: bool = False
    """Whether padding before a row changes what is written after it, so that only rows of one length are written together."""
    writes_from_embeddings: bool = True
    """Whether transformers' `generate` takes embeddings of its class, as virtual tokens need."""
    generates: bool = True
    """Whether `generate`, which goes on from what it keeps, writes what passes over the whole text say. Not so where it puts a
    mask behind the text (XLM), or where nothing can be kept (layers of linear attention alone)."""
    streams: int = 1
    """How many streams of d_model stand beside each other in the last states (Reformer's two)."""
    latents: bool = False
    """Whether its last states are as many for every text (Perceiver), so that none of them is padding's."""
    masks_without_cache: bool = False
    """Whether its decoder hides later tokens from earlier ones in passes alone that keep nothing (FSMT)."""
    tokens_first: bool = False
    """Whether its layers get and give (tokens, rows, d_model), as fairseq's do (FSMT)."""
    gguf: Mapping[str, GGUFArchitecture] = field(default_factory=dict)
    """model_type -> how a GGUF file of it is laid out, where one can be written and read back."""


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
    parameter: str = ""
    """Name of the tensor inside the module (weights sites)."""
    matrices: int = 1
    """How many matrices (out, in) the tensor holds: its experts (weights sites)."""

    @property
    def name(self) -> str:
        """For example `decoder.3.self_attn.q`, `embed.tokens`, `head`."""
        return ".".join(str(part) for part in (self.stack, self.layer, self.role) if part not in ("", None))

    @property
    def fused_features(self) -> int:
        """Outputs of the whole linear, of which the role may have a part."""
        if self.part is None:
            return self.out_features
        return self.part.groups * self.part.width if self.part.layout == "slice" else self.out_features * self.part.of


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

    @property
    def keeps_keys(self) -> bool:
        """Whether every layer attends to the tokens before: only then is a cache of keys and values all that a pass needs
        to go on from. State-space layers, recurrences and short convolutions keep something else, which padding reaches."""
        if self.family.guessed and not self.family.attention_interface:
            return False  # attention of its own may count places, where rows of a batch have padding between (MPT)
        return self.rows_join

    @property
    def rows_join(self) -> bool:
        """Whether rows that began at different times can go on together from one cache, padded on the left."""
        attending = {(site.stack, site.layer) for site in self.sites if site.role.startswith("self_attn.")}
        keeps_more = self.family.keeps_states or self.family.counts_padding or not self.family.generates
        return not keeps_more and 0 < sum(self.layer_counts.values()) <= len(attending)

    def gets_tokens_first(self, name: str) -> bool:
        """Whether the module of that name gets (tokens, rows, d_model): it lies in a layer of a family whose layers do."""
        return self.family.tokens_first and any(f"{name}.".startswith(f"{layer.exit}.") for layer in self.at("layer"))

    @property
    def heads(self) -> tuple[Site, ...]:
        """The head, behind what was drawn together with it."""
        return tuple(site for site in self.sites if site.kind == "head")

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
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    # Of a class of its own (I-BERT's QuantLinear): whether it gives W x + b and nothing else is seen in a pass.
    if "linear" in type(module).__name__.lower() and weight is not None and weight.dim() == 2:
        return (weight.shape[1], weight.shape[0], False) if bias is None or bias.shape == weight.shape[:1] else None
    return None


def read_anatomy(model: nn.Module, family: Family, drawn: Collection[str] = ()) -> Anatomy:
    """Resolves a family's role map on a model.

    Args:
        drawn: names of parameters that the checkpoint has not, and which therefore hold noise. Those between the last states
            and the head (DistilBERT's pre_classifier, the pooler of a BERT that was trained on masked words) are the role
            `pooler`: part of the head, trained and stored with it.

    Raises:
        UserError: a role that the family promises is not there; the message lists what was found.
    """
    base: nn.Module = model.base_model if family.base is None else model.get_submodule(family.base)  # type: ignore[assignment]
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is base)
    d_model = model_width(model.config, family.hidden_size) or _head_width(model, family)
    # First of all, as sites are in forward order and the model begins before everything in it.
    sites: list[Site] = [Site("", None, "model", "model", "", "", d_model, d_model, parameters=_count(model))]
    for role, path in family.embeddings.items():
        module = _find(base, path)
        if module is not None:
            sites.append(
                Site("", None, role, "embedding", prefix + path, prefix + path, 0, d_model, parameters=_count(module))
            )
    layer_counts = {}
    for stack_name, stack in family.stacks.items():
        by_layer: list[tuple[str, Mapping[str, RolePath]]] = list(stack.by_layer)
        if not by_layer:
            layers = _find(base, stack.layers)
            if layers is None:
                continue  # for example a sequence classifier that keeps the encoder only
            by_layer = [(f"{stack.layers}.{index}", stack.roles) for index in range(len(layers))]  # type: ignore[arg-type]
        layer_counts[stack_name] = len(by_layer)
        if stack.entrance is not None:
            path = family.embeddings.get(stack.entrance, stack.entrance)
            # OPT-350m, ALBERT: less than d_model
            width = getattr(_find(base, path), "embedding_dim", d_model)
            sites.append(Site(stack_name, None, "input", "input", prefix + path, prefix + path, width, width))
        # Layers are numbered within their stack, over all lists that it has.
        for index, (path, roles) in enumerate(by_layer):
            sites.extend(_layer_sites(model, prefix + path, stack_name, index, stack, roles, d_model))
        # OLMo's has no weights that could be trained
        if stack.final_norm and (norm := _find(base, stack.final_norm)) is not None and _count(norm):
            name = prefix + stack.final_norm
            has_bias = getattr(norm, "bias", None) is not None
            # A norm has a scale and perhaps a shift, of one length.
            size = _count(norm) // (1 + has_bias)
            sites.append(
                Site(
                    stack_name, None, "norm.final", "norm", name, name, size, size, bias=has_bias, parameters=_count(norm)
                )
            )  # fmt: skip
    if family.stacks and not layer_counts:
        children = ", ".join(name for name, _ in base.named_children())
        raise UserError(
            f"the {family.model_types[0]} role map expects layers at {[s.layers for s in family.stacks.values()]}; "
            f"the model has {children}."
        )
    for name in family.heads:
        head = _find(model, name)
        if head is not None:
            sites += _drawn_poolers(model, (*(site.exit for site in sites), name), drawn, d_model)
            shape = weight_shape(head)
            # RoBERTa's and BART's heads are small networks: what enters is d_model, what leaves the classes.
            sizes = shape[:2] if shape else (d_model, int(getattr(model.config, "num_labels", 0)))
            sites.append(Site("", None, "head", "head", name, name, *sizes, parameters=_count(head)))
            break
    return Anatomy(family, tuple(sites), d_model, layer_counts, prefix, family.notes)


def _drawn_poolers(model: nn.Module, known: Sequence[str], drawn: Collection[str], d_model: int) -> Iterator[Site]:
    """The largest modules beside all known ones whose every parameter was drawn."""
    taken = [path for path in known if path]
    paths: dict[str, None] = {}
    for name in drawn:
        path, parts = "", name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            wider = ".".join(parts[:length])
            holds_known = any(f"{other}.".startswith(f"{wider}.") for other in taken)
            if holds_known or any(f"{wider}.".startswith(f"{other}.") for other in taken):
                break
            if not all(f"{wider}.{inner}" in drawn for inner, _ in model.get_submodule(wider).named_parameters()):
                break
            path = wider
        # what is packed in 4 bits cannot be trained
        if path and all(p.is_floating_point() for p in model.get_submodule(path).parameters()):
            paths[path] = None
    for number, path in enumerate(sorted(paths), 1):
        role = "pooler" if number == 1 else f"pooler_{number}"
        yield Site("", None, role, "head", path, path, d_model, d_model, parameters=_count(model.get_submodule(path)))


def model_width(config: Any, attribute: str = "hidden_size") -> int:
    """d_model of a configuration; of the last stage, where stages differ; of the text part, where there are several. 0 where
    it has none (convolutional nets that multiply the widths of a table)."""
    # The family's own name first: some configs have several of these for different parts.
    names = (attribute, "hidden_size", "d_model", "n_embd", "dim", "embed_dim")
    for settings in (config, *(part for part in (getattr(config, key, None) for key in _INNER) if part is not None)):
        for name in names:
            if isinstance(value := config_value(settings, name), int):
                return value
        sizes = getattr(settings, "hidden_sizes", None) or getattr(settings, "embed_dims", None)
        if sizes:
            return int(sizes[-1])
    return 0


def _head_width(model: nn.Module, family: Family) -> int:
    """What the head reads."""
    head = next((head for name in family.heads if (head := _find(model, name)) is not None), model)
    shapes = [shape for module in head.modules() if (shape := weight_shape(module)) is not None]
    return shapes[0][0] if shapes else 0


_INNER = ("text_config", "vision_config")
"""Configurations inside one of several parts; a text model with pictures is read as text."""


def _layer_sites(
    model: nn.Module,
    layer_path: str,
    stack_name: str,
    index: int,
    stack: Stack,
    roles: Mapping[str, RolePath],
    d_model: int,
) -> Iterator[Site]:
    """Sites of one layer, in the order of its role map. A norm without weights (OLMo) is none: nothing can train there."""
    layer = model.get_submodule(layer_path)
    known: dict[str, Site] = {}
    for role, path in roles.items():
        if isinstance(path, str) and "|" in path:
            choices = path.split("|")
            path = next((choice for choice in choices if _find(layer, choice) is not None), choices[0])
        paths = (
            (path.entry, path.exit)
            if isinstance(path, Sublayer)
            else (path.path,)
            if isinstance(path, Part | Weights | Core)
            else (path,)
        )
        modules = [layer if p == "" else _find(layer, p) for p in paths]
        if any(module is None for module in modules):
            if role in stack.optional:
                continue
            linears = [name for name, module in layer.named_modules() if weight_shape(module)]
            raise UserError(f"role {role!r} should be at {layer_path}.{paths[0]}; the layer has the linears {linears}.")
        names = [layer_path if p == "" else f"{layer_path}.{p}" for p in paths]
        if role.startswith("norm.") and not any(True for module in modules[-1:] for _ in module.parameters()):  # type: ignore[union-attr]
            continue
        site = _site(model, role, path, modules, names, stack_name, index, d_model)
        known[role] = site
        if isinstance(path, Core):
            key = known[path.key]
            size = key.in_features // path.queries if path.queries else key.out_features * path.times // path.heads
            site = replace(site, heads=path.heads, head_size=size, out_features=path.heads * size)
        yield site


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
        enters, leaves = weight_shape(first), weight_shape(last)
        sizes = (enters[0] if enters else d_model, leaves[1] if leaves else d_model)
        return Site(stack, index, role, "sublayer", names[0], names[-1], *sizes)
    if isinstance(path, Weights):
        matrices, out_features, in_features = matrix_shape(last.get_parameter(path.parameter).shape, d_model)
        return Site(
            stack, index, role, "weights", names[0], names[0], in_features, out_features,
            parameter=path.parameter, matrices=matrices, parameters=last.get_parameter(path.parameter).numel(),
        )  # fmt: skip
    if role == "layer":
        return Site(stack, index, role, "layer", names[0], names[0], d_model, d_model, parameters=_count(last))
    if role.startswith("norm."):
        size = int(next(last.parameters()).shape[0])
        return Site(stack, index, role, "norm", names[0], names[0], size, size, bias=has_bias, parameters=_count(last))
    if isinstance(path, Core) or role.endswith(".core"):
        heads, head_size = (0, 0) if isinstance(path, Core) else _kv_heads(model, stack)
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
        out_features = part.size(out_features)
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


def matrix_shape(shape: Sequence[int], d_model: int) -> tuple[int, int, int]:
    """(matrices, out, in) of a parameter of three or four dimensions.

    (experts, out, in) is one matrix per expert; a convolution (out, in, height, width) is one of in · height · width
    inputs; a projection by heads (d_model, heads, size), as XLNet has it, is one of heads · size outputs.
    """
    if len(shape) == 4:
        return 1, int(shape[0]), int(shape[1] * shape[2] * shape[3])
    # (d_model, heads, size): a model has more dimensions than heads, while experts are fewer than a matrix has rows.
    if shape[0] == d_model and shape[0] > shape[1]:
        return 1, int(shape[0]), int(shape[1] * shape[2])
    return int(shape[0]), int(shape[1]), int(shape[2])


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _kv_heads(model: nn.Module, stack: str) -> tuple[int, int]:
    """(key/value heads, size of one head) from the config; the names differ from family to family."""
    config: Any = model.config
    # BART's encoder and decoder may differ, so the stack's own name comes first.
    names = (f"{stack}_attention_heads", "num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")
    heads = next((int(value) for name in names if (value := config_value(config, name))), 0)
    width = next((int(value) for n in ("hidden_size", "d_model", "n_embd") if (value := config_value(config, n))), 0)
    if not heads:  # a split that was seen in a pass carries its own sizes
        return 0, 0
    # Stated ones first: T5's and Gemma's heads are not d_model / heads wide.
    head_size = config_value(config, "d_kv") or config_value(config, "head_dim") or width // heads
    return int(config_value(config, "num_key_value_heads") or heads), int(head_size)


def _find(root: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    try:
        module = root.get_submodule(path)
    except AttributeError:
        return None
    return module


def split_parts(y: torch.Tensor, part: Part, heads: int) -> list[torch.Tensor]:
    """Splits a fused output (..., fused) into its parts; `part.index` is the one that is meant."""
    if part.layout == "block":
        return list(y.chunk(part.of, dim=-1))
    if part.layout == "slice":
        sizes = [part.start, part.stop - part.start, part.width - part.stop]
        return [piece.flatten(-2) for piece in y.unflatten(-1, (part.groups, part.width)).split(sizes, dim=-1)]
    # (..., heads, of, head_size)
    split = y.unflatten(-1, (heads, part.of, -1))  # (..., heads, of, head_size)
    return [piece.flatten(-2) for piece in split.unbind(-2)]


def join_parts(parts: list[torch.Tensor], part: Part, heads: int) -> torch.Tensor:
    """Inverse of `split_parts`."""
    if part.layout == "block":
        return torch.cat(parts, dim=-1)
    if part.layout == "slice":
        sizes = [part.start, part.stop - part.start, part.width - part.stop]
        pieces = [piece.unflatten(-1, (part.groups, size)) for piece, size in zip(parts, sizes, strict=True)]
        return torch.cat(pieces, dim=-1).flatten(-2)
    stacked = torch.stack([piece.unflatten(-1, (heads, -1)) for piece in parts], dim=-2)  # (..., heads, of, head_size)
    return stacked.flatten(-3)
