"""Adapters in the peft library's format: `adapter_config.json` and `adapter_model.safetensors`, written, read and re-scored.

What a method's tensors are called there is said in the method's own file (`to_peft`, `from_peft`); this file puts the
parts of an adapter together, and takes a checkpoint apart.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.adapter import Adapter
from dollartune.backbones.config_values import config_value
from dollartune.backbones.own_head import need_known_head
from dollartune.errors import UserError
from dollartune.export.directory import check_sizes
from dollartune.export.scoring import adapter_logits, peft_installed, peft_logits, require_equal, sample_inputs
from dollartune.files import drafted, need_empty, write_atomically, write_json
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, low_rank
from dollartune.methods.registry import build_method, methods
from dollartune.methods.stored_adapter import CONFIG as STORED_CONFIG
from dollartune.untrusted_files import read_json, read_tensors

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.base import Method

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXTRA = "dollartune.json"
"""What peft's config has no place for: task, scores, cost. peft does not read it."""


PEFT_FILES = (CONFIG, WEIGHTS, EXTRA)
TASK_TYPES = ("SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
"""Of peft, those whose adapters do here what they did there. TOKEN_CLS and QUESTION_ANS score every token, by a head that none
of our objectives has."""


@dataclass
class PeftExport:
    """What was written."""

    peft_type: str
    bytes: int
    difference: float
    """Largest difference of logits after loading it back here."""
    peft_difference: float | None
    """The same by the installed peft library; None where it is not installed."""
    notes: list[str] = field(default_factory=list)


def write_peft(folder: Path, backbone: Backbone, adapter: Adapter, info: Mapping[str, Any] | None = None) -> PeftExport:
    """Writes an adapter in peft's format, loads it back and compares logits on a few inputs.

    Args:
        folder: must not exist yet, or be empty.
        backbone: the one that the adapter was tuned for, with nothing attached.
        info: what `adapter.json` says beside the methods (task, scores, cost), kept for importing it again.

    Raises:
        UserError: peft has no such method, or what was written does not give the same logits.
    """
    need_empty(folder)
    need_known_head(backbone.model)
    if adapter.virtual and backbone.kind == "decoder" and backbone.objective == "classification":
        # transformers finds a row's last token by its ids, and peft passes embeddings where there are virtual tokens
        raise UserError(
            "under peft a decoder's classification head reads the last place of a batch when there are virtual tokens, which is "
            "padding in every row but the longest: its answers would not be the adapter's.",
            hint="dollartune serve answers for it as it is; a method without virtual tokens can be exported.",
        )
    part, saved = _combine(adapter, backbone)
    config, tensors = _contents(part, saved, backbone)
    with drafted(folder) as draft:
        size = _write(draft, config, tensors, info)
        return _verify(draft, backbone, adapter, part.peft_type, size)


def write_part(
    folder: Path, backbone: Backbone, part: PeftPart, head: Mapping[str, Tensor], info: Mapping[str, Any] | None
) -> int:
    """Writes tensors that are in peft's form already.

    Args:
        folder: a draft; what is there already stays, or is written over.
        head: name -> value of a classification head's parameters, saved whole.

    Returns:
        Size of the weights file in bytes.
    """
    saved = []
    if head:
        modules = tuple(site.exit for site in backbone.anatomy.heads)
        saved.append(PeftPart("", {}, dict(head), modules))
    config, tensors = _contents(part, saved, backbone)
    return _write(folder, config, tensors, info)


def _combine(adapter: Adapter, backbone: Backbone) -> tuple[PeftPart, list[PeftPart]]:
    """The one adapted part that a peft checkpoint has, and the modules saved whole beside it."""
    anatomy = backbone.anatomy
    main: list[tuple[Any, PeftPart]] = []
    saved: list[PeftPart] = []
    for part in adapter.parts:
        items = list(part.items())  # type: ignore[operator]
        peft_part = part.method.to_peft(items, anatomy)  # type: ignore[union-attr, operator]
        if peft_part.peft_type:
            main.append((items, peft_part))
        else:
            saved.append(peft_part)
    if len(main) > 1:  # a checkpoint has one type; what can be saved whole beside it, is
        saved += [peft_part.saved for _, peft_part in main if peft_part.saved is not None]
        main = [(items, peft_part) for items, peft_part in main if peft_part.saved is None]
    if len(main) > 1:
        items = [item for part_items, _ in main for item in part_items]
        if not all(hasattr(edit, "factors") for _, edit in items):
            raise UserError(
                f"a peft checkpoint has one method; this adapter has {', '.join(peft_part.peft_type for _, peft_part in main)}."
            )
        # Low-rank updates add: [A; A'] and [B, B'] are one LoRA of the summed rank.
        main = [(items, low_rank([(site, edit.factors()) for site, edit in items]))]
    if not main:
        raise UserError(
            "a peft checkpoint needs a method beside a head; this adapter has none.",
            hint="Export with --format merged.",
        )
    # One is left by now.
    part_found = main[0][1]
    if backbone.objective == "classification" and anatomy.heads and not any("head" in m.kinds for m in adapter.methods):
        # peft expects the head in every checkpoint of a classifier
        saved.append(_as_they_are(backbone, [site.exit for site in anatomy.heads]))
    return part_found, saved


def _named_alike(saved: Sequence[PeftPart], backbone: Backbone) -> list[PeftPart]:
    """What peft saves, and looks for, along with modules that are saved whole: all whose name ends in a listed one, as that of
    DistilBERT's pre_classifier ends in its classifier's."""
    listed = [name for part in saved for name in part.modules]
    names = [
        name
        for name, module in backbone.model.named_modules()
        if name.endswith(tuple(listed)) and name not in listed and any(True for _ in module.parameters())
    ]
    return [_as_they_are(backbone, names)] if names else []


def _as_they_are(backbone: Backbone, modules: Sequence[str]) -> PeftPart:
    """Modules of the backbone saved whole, with its own values."""
    values = {
        f"{name}.{key}": t for name in modules for key, t in backbone.model.get_submodule(name).state_dict().items()
    }
    return PeftPart("", {}, values, tuple(modules))


def _contents(
    part: PeftPart, saved: Sequence[PeftPart], backbone: Backbone
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """peft's config and tensors."""
    saved = [*saved, *_named_alike(saved, backbone)]
    virtual = not part.modules  # tokens and prefixes: peft asks such a checkpoint for the model's size instead
    config: dict[str, object] = {
        "peft_type": part.peft_type,
        "task_type": _task_type(backbone),
        "base_model_name_or_path": backbone.name,
        "revision": backbone.revision,
        "inference_mode": True,
        **part.settings,
    }
    if not virtual:
        config["target_modules"] = list(part.modules) if part.full_names else short_names(part.modules, backbone.model)
    else:
        model = backbone.model.config
        # peft asks for these by its own names, and configs of families have theirs.
        for key, names in {
            "num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
            "num_attention_heads": ("num_attention_heads", "num_heads", "n_head"),
        }.items():
            sizes = [int(value) for name in names if (value := config_value(model, name))]
            if not sizes:
                raise UserError(
                    f"peft's virtual tokens and prefixes ask a backbone for its {key}, and {model.model_type} has none."
                )
            config.setdefault(key, sizes[0])
    if modules := [name for whole in saved for name in whole.modules]:
        config["modules_to_save"] = modules
    tensors = {}
    for key, value in part.tensors.items():
        name = f"base_model{key}" if key.startswith(".") else key if virtual else f"base_model.model.{key}"
        tensors[name] = value
    prefix = "base_model." if virtual else "base_model.model."
    tensors |= {f"{prefix}{key}": value for whole in saved for key, value in whole.tensors.items()}
    # fp32, as peft writes it; a clone, as safetensors refuses tensors that share memory.
    return config, {key: value.detach().float().cpu().contiguous().clone() for key, value in tensors.items()}


def _task_type(backbone: Backbone) -> str | None:
    if backbone.kind == "vision":
        return None
    if backbone.objective == "classification":
        return "SEQ_CLS"
    return {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}.get(backbone.kind)


def short_names(modules: Sequence[str], model: Any) -> list[str]:
    """`q_proj` instead of every path that ends in it, where all modules of that name are meant."""
    all_names = [name for name, _ in model.named_modules()]
    wanted = set(modules)
    shortened: dict[str, None] = {}
    for path in modules:
        last = path.rsplit(".", 1)[-1]
        everywhere = [name for name in all_names if name == last or name.endswith(f".{last}")]
        # A short name that meets more modules than were adapted would make peft adapt those too.
        shortened[last if wanted.issuperset(everywhere) else path] = None
    return list(shortened)


def _write(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], info: Mapping[str, Any] | None) -> int:
    from safetensors.torch import save

    content = save(tensors, metadata={"format": "pt"})
    # The weights before the config: peft takes a folder for an adapter as soon as it has a config.
    write_atomically(folder / WEIGHTS, content)
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    if info is not None:
        write_json(folder / EXTRA, info)
    return len(content)


def _verify(folder: Path, backbone: Backbone, adapter: Adapter, peft_type: str, size: int) -> PeftExport:
    inputs = sample_inputs(backbone)
    expected = adapter_logits(backbone, adapter, inputs)
    again, notes = read_peft(folder, backbone)
    difference = require_equal(
        adapter_logits(backbone, again, inputs), expected, backbone.dtype, "the written peft adapter, loaded here,"
    )
    peft_difference = None
    if peft_installed():
        theirs = peft_logits(backbone, folder, inputs)
        peft_difference = require_equal(theirs, expected, backbone.dtype, "the written peft adapter, loaded by peft,")
    return PeftExport(peft_type, size, difference, peft_difference, notes)


# Reading


def read_config(folder: Path) -> dict[str, object]:
    """A peft adapter's config.

    Raises:
        UserError: it is none, or one of a kind that cannot be imported.
    """
    config = read_json(folder / CONFIG)
    peft_type = str(config.get("peft_type"))
    known = sorted({method.capabilities.peft_type for method in methods().values() if method.capabilities.peft_type})
    if peft_type not in known:
        raise UserError(f"{folder / CONFIG} has peft_type {peft_type!r}; {', '.join(known)} can be imported.")
    if (task_type := config.get("task_type")) and task_type not in TASK_TYPES:
        raise UserError(
            f"{folder / CONFIG} has task_type {task_type!r}: what it scores is no class or text of a whole row. "
            f"{', '.join(TASK_TYPES)} can be imported.",
            hint="dollartune tune DATA tunes a backbone for classes or texts of rows.",
        )
    return config


def is_peft(folder: Path) -> bool:
    """Whether a folder holds an adapter in peft's format, and none in ours."""
    return (folder / CONFIG).is_file() and not (folder / STORED_CONFIG).is_file()


def read_peft_info(folder: Path) -> dict[str, Any]:
    """What is known of a peft adapter beside its tensors: all that an export from here remembers, or its backbone alone.

    Raises:
        UserError: it is none, or malformed.
    """
    config = read_config(folder)
    stored = read_json(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    info = {"backbone": config.get("base_model_name_or_path"), "task": None, **stored}
    if config.get("task_type") == "SEQ_CLS":
        info["objective"] = "classification"
    return info


def read_peft(folder: Path, backbone: Backbone) -> tuple[Adapter, list[str]]:
    """Builds our adapter from a peft directory.

    Returns:
        The adapter, ready to be used or trained on, and notes on what was converted.

    Raises:
        UserError: it is malformed, changes what cannot be changed here, or does not fit the backbone.
    """
    config = read_config(folder)
    tensors = read_tensors(folder, WEIGHTS)
    checkpoint, saved = _sorted(config, tensors, backbone)
    parts: list[ImportedPart] | None = None
    try:
        for method in methods().values():
            # LoRA and DoRA share a type: whoever does not know the checkpoint answers None, and the next one is asked.
            if method.capabilities.peft_type == config["peft_type"] and "from_peft" in vars(method) and parts is None:
                parts = method.from_peft(checkpoint)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{str(folder)!r} is not a well-formed {config['peft_type']} adapter: {type(error).__name__}: {error}."
        ) from None
    if not parts:
        raise UserError(
            f"{str(folder)!r} is a {config['peft_type']} adapter that changes nothing that can be imported."
        )
    parts = parts + _saved_parts(saved, checkpoint)
    built: list[Method[Any]] = [build_method({"method": part.method, **part.settings}) for part in parts]
    check_sizes(folder, built, backbone.anatomy, backbone.model, sum(tensor.numel() for tensor in tensors.values()))
    adapter = Adapter(built, backbone.anatomy, backbone.model)
    for edits, part in zip(adapter.parts, parts, strict=True):
        expected = {site.name: edit for site, edit in edits.items()}  # type: ignore[operator]
        if expected.keys() != part.tensors.keys():
            raise UserError(f"the peft adapter lacks tensors for {sorted(expected.keys() - part.tensors.keys())[:3]}.")
        for name, edit in expected.items():
            _fill(edit, part.tensors[name], name)
    return adapter.to(backbone.device), checkpoint.notes


def _sorted(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone
) -> tuple[PeftCheckpoint, dict[str, dict[str, Tensor]]]:
    """Tensors by module, those of the method apart from modules that were saved whole.

    No list of names is needed: a key begins with the path of a module of the backbone, and what stands after it is either a
    parameter that this module has itself (saved whole) or the method's own (`lora_A.weight`, `hada_w1_a`).

    Raises:
        UserError: a module was saved whole that nothing here can take over.
    """
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    saved: dict[str, dict[str, Tensor]] = defaultdict(dict)
    known = backbone.model.state_dict(keep_vars=True)  # keep_vars: nothing is copied
    paths = {name for name, _ in backbone.model.named_modules()}
    kinds = {method.saved_whole for method in methods().values()}
    # The longest path first: `classifier.dense` also begins with `classifier`.
    whole = sorted({site.exit for site in backbone.anatomy.sites if site.kind in kinds}, key=len, reverse=True)
    for key, value in tensors.items():
        plain = key.removeprefix("base_model.")
        # peft wraps once more where it adapts modules: `base_model.model.` + path. A backbone may begin with `model.` itself
        options = (plain.removeprefix("model."), plain) if plain.startswith("model.") else (plain, f"model.{plain}")
        name = next((option for option in options if option in known), None)
        if name is None:
            path = _module_before(options[0], paths)
            modules[path][options[0][len(path) + bool(path) :]] = value
            continue
        path = next((path for path in whole if name.startswith(f"{path}.")), "")
        if not path and _is_backbones_own(value, known[name]):
            continue
        if not path:
            raise UserError(
                f"the peft adapter has a tensor {key!r}, which belongs to no normalization or head of this "
                "backbone and cannot be imported."
            )
        saved[path][name.removeprefix(f"{path}.")] = value
    return PeftCheckpoint(config, dict(modules), backbone.anatomy, backbone.model), dict(saved)


def _is_backbones_own(value: Tensor, own: Tensor) -> bool:
    """Whether a saved tensor changes nothing."""
    return value.shape == own.shape and torch.equal(value.float().cpu(), own.detach().float().cpu())


def _module_before(name: str, paths: set[str]) -> str:
    """The longest module path that a tensor's name begins with; empty where there is none."""
    parts = name.split(".")
    return next((path for n in range(len(parts) - 1, 0, -1) if (path := ".".join(parts[:n])) in paths), "")


def _saved_parts(saved: Mapping[str, Mapping[str, Tensor]], checkpoint: PeftCheckpoint) -> list[ImportedPart]:
    """Modules that were saved whole, each handed to the method that trains its kind."""
    parts: list[ImportedPart] = []
    for method in methods().values():
        if method.saved_whole is None or "saved_whole" not in vars(method):  # a subclass does not take it twice
            continue
        paths = {site.exit for site in checkpoint.anatomy.sites if site.kind == method.saved_whole}
        if of_method := {path: values for path, values in saved.items() if path in paths}:
            parts += method.from_saved(checkpoint, of_method)
    return parts


@torch.no_grad()
def _fill(edit: Any, tensors: Mapping[str, Tensor], site: str) -> None:
    """Puts imported tensors into an edit."""
    tensors_here = {**dict(edit.named_parameters()), **dict(edit.named_buffers())}
    if any(name in tensors_here and tensors_here[name].shape != tensor.shape for name, tensor in tensors.items()):
        edit.fit(dict(tensors))  # a head of other classes than the backbone's; where all fits, training may go on
        tensors_here = {**dict(edit.named_parameters()), **dict(edit.named_buffers())}
    for name, tensor in tensors.items():
        if name not in tensors_here:
            raise UserError(
                f"the peft adapter has a tensor {name!r} at {site}, where {sorted(tensors_here)} are expected."
            )
        if tensors_here[name].shape != tensor.shape:
            raise UserError(
                f"the peft adapter has shape {tuple(tensor.shape)} for {name!r} at {site}; "
                f"expected {tuple(tensors_here[name].shape)}."
            )
        # Past autograd: these are leaves that require gradients.
        tensors_here[name].data.copy_(tensor)
    if missing := {name for name in tensors_here if name.startswith("copies.")} - tensors.keys():
        raise UserError(f"the peft adapter lacks {sorted(missing)} at {site}.")
