"""Loads any transformers model, by embedded name, hub id or local directory, with its tokenizer and anatomy."""

from __future__ import annotations

import json
import logging
import tempfile
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dollartune.backbones.anatomy import (
    Anatomy,
    BackboneKind,
    Family,
    Part,
    Stack,
    Sublayer,
    read_anatomy,
    weight_shape,
)
from dollartune.backbones.device_map import (
    DeviceMap,
    checked_device_map,
    home_device,
    need_package,
    refuse_new_on_disk,
)
from dollartune.backbones.families import families
from dollartune.backbones.locate import missing_words, resolve
from dollartune.backbones.quantize import nf4_settings
from dollartune.errors import UserError

Objective = Literal["language", "classification"]
"""What the head does: write text (label words included), or score classes."""


@dataclass
class Backbone:
    """A loaded model with what is needed to talk to it."""

    name: str
    model: Any
    processor: Any
    """Tokenizer, or image processor for vision backbones."""
    anatomy: Anatomy
    objective: Objective
    revision: str | None = None

    @property
    def kind(self) -> str:
        return self.anatomy.kind

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return home_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]


def read_config(name: str, trust_remote_code: bool = False) -> Any:
    """The model's configuration; a directory needs only a config.json.

    Raises:
        UserError: there is no such model, its config cannot be read, or it asks for code of its own.
    """
    from transformers import AutoConfig

    path = resolve(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        if (words := missing_words(name)) is not None:
            raise UserError(*words) from None
        first = str(error).strip().splitlines()[0]
        raise UserError(f"backbone {name!r} cannot be read: {first}") from None


def read_shape(name: str, trust_remote_code: bool = False) -> Any:
    """A configuration that is good enough to plan with: from the table of known shapes, else `read_config`.

    Raises:
        UserError: as `read_config`.
    """
    from dollartune.backbones.shapes import known_shape

    known = None if Path(name).expanduser().is_dir() else known_shape(name)
    return read_config(name, trust_remote_code) if known is None else known


def family_of(config: Any) -> Family | None:
    """The role map of a configuration's model type, if there is one."""
    return families().get(config.model_type)


def kind_of(config: Any) -> BackboneKind:
    """The kind of backbone that a configuration describes."""
    family = family_of(config)
    return family.kind if family else ("encoder_decoder" if config.is_encoder_decoder else "decoder")


def default_objective(config: Any) -> Objective:
    """`language` where the model has a language-model head, `classification` for encoders and vision models."""
    return "language" if kind_of(config) in ("decoder", "encoder_decoder") else "classification"


def _auto_class(config: Any, objective: Objective) -> Any:
    import transformers

    family = family_of(config)
    if family is not None and family.kind == "vision":
        return transformers.AutoModelForImageClassification
    if objective == "classification":
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM


def load_backbone(
    name: str,
    objective: Objective | None = None,
    labels: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Literal["none", "nf4"] = "none",
    trust_remote_code: bool = False,
    random_weights_seed: int | None = None,
    device_map: DeviceMap | None = None,
) -> Backbone:
    """Loads a pretrained model in evaluation mode.

    Args:
        name: a name of `dollartune backbones ls`, a hub id, a local directory, a GGUF file, or `package:NAME/FOLDER`.
        objective: what the head does; by default what the model was made for.
        labels: class labels, for `classification`.
        dtype: of the weights.
        device: where to put them.
        quantize: `nf4` loads the linear layers in 4 bits (bitsandbytes).
        trust_remote_code: run code that comes with the model; off unless asked for by name.
        random_weights_seed: random instead of pretrained weights, as a control.
        device_map: for inference with more than one device holds: `auto`, `balanced`, `balanced_low_0`, `sequential`, or
            module -> GPU, `cpu` or `disk`. It takes the place of `device`.

    Raises:
        UserError: no such model, a family whose roles cannot be told, a map that cannot work, or a package that is missing.
    """
    config = read_config(name, trust_remote_code)
    objective = objective or default_objective(config)
    if objective == "classification" and labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    auto = _auto_class(config, objective)
    processor = load_processor(name, config)
    if getattr(config, "pad_token_id", None) is None and getattr(processor, "pad_token_id", None) is not None:
        config.pad_token_id = processor.pad_token_id
    if random_weights_seed is not None:
        if device_map is not None:
            raise UserError("device_map and random_weights_seed exclude each other: random weights lie on one device.")
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_weights_seed)
            model = auto.from_config(config).to(dtype)
    else:
        model = _pretrained(name, auto, config, dtype, quantize, trust_remote_code, device_map)
    model.eval()
    if device_map is None and quantize == "none":
        model.to(device)
    return Backbone(name, model, processor, anatomy_of(model), objective, getattr(config, "_commit_hash", None))


def _pretrained(
    name: str,
    auto: Any,
    config: Any,
    dtype: torch.dtype,
    quantize: str,
    trust_remote_code: bool,
    device_map: DeviceMap | None,
) -> Any:
    """The model with the weights of its checkpoint, on the processor or where quantization or a map puts it."""
    extra: dict[str, Any] = {}
    room = None
    if device_map is not None:
        with torch.device("meta"), _quiet_transformers():
            written = checked_device_map(device_map, auto.from_config(config))
        room = tempfile.TemporaryDirectory(prefix="dollartune-offload-")  # safetensors are read where they lie
        extra = {"device_map": written, "offload_folder": room.name}
    if quantize == "nf4":
        for package in ("bitsandbytes", "accelerate"):
            need_package(package, "quantize: nf4")
        extra["quantization_config"] = nf4_settings(dtype)
    try:
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a new classification head is drawn here; the adapter's own copy is seeded by trial
            model, told = auto.from_pretrained(
                resolve(name),
                config=config,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError) as error:
        if quantize == "nf4" and "dispatched on the CPU or the disk" in str(error):
            raise UserError(
                f"backbone {name!r}: layers in 4 bits cannot be put away to memory or disk, as device_map would.",
                hint="Use GPUs that hold all of it, or leave out one of quantize: nf4 and device_map.",
            ) from None
        raise UserError(f"backbone {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if room is not None:
        refuse_new_on_disk(model, told["missing_keys"])
        weakref.finalize(model, room.cleanup)
    for module in model.modules() if quantize == "nf4" else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # else its first forward pass repacks the weight and rounds its scales, and what reads it later gets garbage
            module.support_avx512bf16_for_cpu = False
    return model


def load_processor(name: str, config: Any) -> Any:
    """The tokenizer (padding token set) or the image processor of a backbone; None if the directory has neither."""
    from transformers import AutoImageProcessor, AutoTokenizer

    path = resolve(name)
    family = family_of(config)
    with _quiet_transformers():
        if family is not None and family.kind == "vision":
            try:
                return AutoImageProcessor.from_pretrained(path)
            except OSError:
                return None
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError):
            return None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def empty_model(
    name: str, objective: Objective | None = None, trust_remote_code: bool = False, classes: int | None = None
) -> nn.Module:
    """The model on the meta device, from its config alone: shapes and roles without weights.

    `classes` is the number of classes of a classification head; by default what the config says.
    """
    config = read_shape(name, trust_remote_code)
    if classes is not None:
        config.num_labels = classes
    with torch.device("meta"), _quiet_transformers():
        model: nn.Module = _auto_class(config, objective or default_objective(config)).from_config(config)
    return model.eval()


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a model: from its family's file, or guessed (and said so in `notes`).

    Raises:
        UserError: the family is unknown and its structure cannot be guessed; the message lists what was found.
    """
    config: Any = model.config
    family = families().get(config.model_type)
    if family is None and hasattr(config, "text_config"):
        family = families().get(config.text_config.model_type)
    return read_anatomy(model, family or guess_family(model))


_GUESSES = {
    "self_attn.q": ("q_proj", "query", "q", "wq", "query_proj"),
    "self_attn.k": ("k_proj", "key", "k", "wk", "key_proj"),
    "self_attn.v": ("v_proj", "value", "v", "wv", "value_proj"),
    "self_attn.o": ("o_proj", "out_proj", "dense", "wo", "o", "c_proj"),
    "mlp.gate": ("gate_proj", "w1"),
    "mlp.up": ("up_proj", "fc1", "c_fc", "dense_h_to_4h", "w3", "wi"),
    "mlp.down": ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2", "wo"),
}
"""Role -> last name of its linear, in the families seen so far."""


def guess_family(model: nn.Module) -> Family:
    """A role map for a family without a file: the longest list of equal layers, and linears by their usual names.

    Raises:
        UserError: no list of layers with recognizable linears; lists what was found.
    """
    base: nn.Module = model.base_model  # type: ignore[assignment]
    lists = {name: m for name, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    config: Any = model.config
    model_type = str(config.model_type)
    best = max(lists, key=lambda name: (len(lists[name]), sum(1 for _ in lists[name].modules())), default=None)
    roles: dict[str, str | Part | Sublayer] = {}
    if best is not None:
        linears = [name for name, module in lists[best][0].named_modules() if weight_shape(module)]
        for role, names in _GUESSES.items():
            inside = ("attn", "attention") if role.startswith("self_attn") else ("mlp", "ffn", "feed", "")
            for path in linears:
                if (
                    path.split(".")[-1] in names
                    and path not in roles.values()
                    and any(word in path.lower() for word in inside)
                ):
                    roles[role] = path
                    break
    if not {"self_attn.q", "self_attn.v"} <= roles.keys():
        found = Counter(name.split(".")[-1] for name, module in base.named_modules() if weight_shape(module))
        raise UserError(
            f"model type {model_type!r} has no role map and none can be guessed: its linears are {dict(found)}. "
            f"Known families: {', '.join(sorted(families()))}.",
            hint="Write one in dollartune/backbones/families/ (20 lines; see the page on adding a backbone family).",
        )
    assert best is not None
    if {"mlp.up", "mlp.down"} <= roles.keys():
        roles["mlp"] = Sublayer(str(roles["mlp.up"]), str(roles["mlp.down"]))
    if "self_attn.o" in roles:
        roles["self_attn"] = Sublayer(str(roles["self_attn.q"]), str(roles["self_attn.o"]))
    embedding = next(name for name, module in base.named_modules() if isinstance(module, nn.Embedding))
    logging.getLogger("dollartune").warning(
        "no role map for %r; guessed: %s", model_type, {k: str(v) for k, v in roles.items()}
    )
    kind: Any = "decoder" if model.can_generate() else "encoder"  # type: ignore[operator]
    stack = Stack(best, {**roles, "layer": ""})
    return Family(
        (model_type,),
        kind,
        {kind: stack},
        {"embed.tokens": embedding},
        ("lm_head", "classifier", "score"),
        False,
        guessed=True,
    )


class _quiet_transformers:
    """transformers reports new heads and progress bars on stderr; ours is the only progress a user should see."""

    def __enter__(self) -> None:
        from transformers.utils import logging as hf_logging

        self.level = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()
        self.placing = logging.getLogger("accelerate.big_modeling")  # it says of every device map that weights are away
        self.placing_level = self.placing.level
        self.placing.setLevel(logging.ERROR)
        hf_logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        from transformers.utils import logging as hf_logging

        self.placing.setLevel(self.placing_level)
        hf_logging.set_verbosity(self.level)
