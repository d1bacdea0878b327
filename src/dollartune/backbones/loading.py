"""Loads any transformers model, by embedded name, hub id or local directory, with its tokenizer and anatomy."""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import nn

from dollartune.backbones.anatomy import Anatomy, read_anatomy
from dollartune.backbones.checkpoint_files import nearest_folder, weights_problem
from dollartune.backbones.device_map import (
    DeviceMap,
    checked_device_map,
    home_device,
    refuse_new_on_disk,
)
from dollartune.backbones.kind import (
    Objective,
    check_objective,
    default_objective,
    family_of,
    kind_of,
    outer_note,
    text_config,
)
from dollartune.backbones.locate import missing_words, resolve
from dollartune.backbones.own_head import class_with_head
from dollartune.backbones.quantize import keep_scales, nf4_settings
from dollartune.backbones.quiet import quiet_transformers
from dollartune.backbones.stored_names import drawn_parameters
from dollartune.backbones.structure import read_structure
from dollartune.backbones.weights_hash import weights_hash
from dollartune.errors import UserError, unknown_name
from dollartune.hub_access import without_waiting


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
    random_weights_seed: int | None = None
    """Of weights that were drawn in place of the pretrained ones, as a control."""
    weights_hash: str | None = None
    """Tells its weights from others of the same shape (see `weights_hash.py`)."""

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
    """The model's configuration; a directory needs only a config.json. Of a model with pictures or sound beside text, the
    part that reads and writes text.

    Raises:
        UserError: there is no such model, its config cannot be read, or it asks for code of its own.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = resolve(name)
    try:
        with without_waiting(path):
            return text_config(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        if (words := missing_words(name)) is not None:
            raise UserError(*words) from None
        first = str(error).strip().splitlines()[0]
        raise UserError(f"backbone {name!r} cannot be read: {first}{nearest_folder(name)}", _how_else(path)) from None


def _how_else(path: str) -> str:
    """What to do where a config cannot be read."""
    if Path(path).is_dir():
        return f"Compare {path}/config.json with the one of the model's makers."
    offline = (
        " (HF_HUB_OFFLINE is set: nothing is fetched)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    )
    return f"Where there is a network{offline}: dollartune backbones get {path}. What is here: dollartune backbones ls"


def read_shape(name: str, trust_remote_code: bool = False) -> Any:
    """A configuration that is good enough to plan with: from the table of known shapes, else `read_config`.

    Raises:
        UserError: as `read_config`.
    """
    from dollartune.backbones.shapes import known_shape

    # as in `resolve`, a folder of that name comes before the hub's model
    known = None if Path(name).expanduser().is_dir() else known_shape(name)
    return read_config(name, trust_remote_code) if known is None else known


def _auto_class(config: Any, objective: Objective) -> Any:
    """The class of transformers that has the head for an objective; one of ours where it has none for classes of text.

    Raises:
        UserError: the objective has no meaning for this kind, or transformers has no such head for this family.
    """
    import transformers

    check_objective(config, objective)
    kind = kind_of(config)
    if kind == "vision":
        auto = transformers.AutoModelForImageClassification
    elif objective == "classification":
        auto = transformers.AutoModelForSequenceClassification
    else:
        auto = transformers.AutoModelForSeq2SeqLM if kind == "encoder_decoder" else transformers.AutoModelForCausalLM
    if type(config) not in auto._model_mapping and not hasattr(config, "auto_map"):
        if (made := class_with_head(type(config), kind, objective)) is not None:
            return made
        raise UserError(
            f"transformers has no {auto.__name__.removeprefix('AutoModelFor')} for the family {config.model_type!r}, which "
            f"objective: {objective} needs.",
            hint="Set objective: language, or take another backbone."
            if objective == "classification" and kind in ("decoder", "encoder_decoder")
            # Image models have one objective.
            else "Take another backbone.",
        )
    return auto


def load_backbone(
    name: str | os.PathLike[str],
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
    name = os.fspath(name)
    config = read_config(name, trust_remote_code)
    objective = objective or default_objective(config)
    if objective not in get_args(Objective):
        raise unknown_name("objective", str(objective), get_args(Objective))
    if objective == "classification" and labels:
        config.num_labels = len(labels)
        # Names go into the config, where a merged model's own users look for them.
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    auto = _auto_class(config, objective)
    processor = load_processor(name, config)
    # Classifiers of decoders find the last real token by it.
    if getattr(config, "pad_token_id", None) is None and getattr(processor, "pad_token_id", None) is not None:
        config.pad_token_id = processor.pad_token_id
    drawn: frozenset[str] = frozenset()
    if random_weights_seed is not None:
        if device_map is not None:
            raise UserError("device_map and random_weights_seed exclude each other: random weights lie on one device.")
        # Forked: loading must not move the generator that trials draw from.
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_weights_seed)
            model = auto.from_config(config).to(dtype)
    else:
        model, missing = _pretrained(name, auto, config, dtype, quantize, trust_remote_code, device_map)
        drawn = missing if objective == "classification" else frozenset()
    model.eval()
    # Packed weights and mapped ones are where they belong.
    if device_map is None and quantize == "none":
        model.to(device)
    revision, anatomy = getattr(config, "_commit_hash", None), anatomy_of(model, drawn)
    hashed = weights_hash(model, anatomy, drawn)
    return Backbone(name, model, processor, anatomy, objective, revision, random_weights_seed, hashed)


_TEXT_INSIDE = {
    r"^model\.language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head": "lm_head",
    r"^model\.text_model\.": "model.",
    r"^text_model\.model\.": "model.",
    r"^language_model\.backbone\.": "model.",
}
"""Where the weights of a text model are in a checkpoint that also holds a tower for pictures -> where it has them alone."""


def _pretrained(
    name: str,
    auto: Any,
    config: Any,
    dtype: torch.dtype,
    quantize: str,
    trust_remote_code: bool,
    device_map: DeviceMap | None,
) -> tuple[Any, frozenset[str]]:
    """The model with the weights of its checkpoint, on the processor or where quantization or a map puts it; and the names of
    parameters that the checkpoint has not."""
    extra: dict[str, object] = {}
    room = None
    if device_map is not None:
        with torch.device("meta"), quiet_transformers():
            written = checked_device_map(device_map, auto.from_config(config))
        room = tempfile.TemporaryDirectory(prefix="dollartune-offload-")  # safetensors are read where they lie
        extra = {"device_map": written, "offload_folder": room.name}
    if outer_note(config) is not None:
        extra["key_mapping"] = _TEXT_INSIDE
    if quantize == "nf4":
        extra["quantization_config"] = nf4_settings(dtype)
    try:
        with quiet_transformers(), without_waiting(resolve(name)), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a new classification head is drawn here; the adapter's own copy is seeded by trial
            model, told = auto.from_pretrained(
                resolve(name),
                config=config,
                dtype=dtype,
                # A checkpoint's head for other classes is replaced; everything else has to fit, which transformers
                # checks.
                ignore_mismatched_sizes=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **extra,
            )
    except Exception as error:  # whatever the reader of a damaged file raises
        folder = Path(resolve(name))
        if folder.is_dir() and (problem := weights_problem(folder)) is not None:
            raise UserError(f"backbone {name!r} cannot be loaded: {problem}.", hint=_FETCH_AGAIN) from None
        if not isinstance(error, OSError | ValueError | SafetensorError):
            raise
        if quantize == "nf4" and "dispatched on the CPU or the disk" in str(error):
            raise UserError(
                f"backbone {name!r}: layers in 4 bits cannot be put away to memory or disk, as device_map would.",
                hint="Use GPUs that hold all of it, or leave out one of quantize: nf4 and device_map.",
            ) from None
        raise UserError(f"backbone {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if outer_note(config) is not None and (lost := [key for key in told["missing_keys"] if ".layers." in key]):
        raise UserError(
            f"backbone {name!r}: the text part cannot be read out of its checkpoint, which has no {lost[0]}.",
            hint="Give a checkpoint of the text model alone.",
        )
    if room is not None:
        refuse_new_on_disk(model, told["missing_keys"])
        # as long as the model lives, weights on disk are read from it
        weakref.finalize(model, room.cleanup)
    if quantize == "nf4":
        keep_scales(model)
    return model, frozenset(told["missing_keys"])


def load_processor(name: str, config: Any) -> Any:
    """The tokenizer (padding token set) or the image processor of a backbone; None if the directory has neither.

    Where its files are missing transformers makes some tokenizers of nothing, for which every word is the unknown one: that is
    none.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    path = resolve(name)
    with quiet_transformers(), without_waiting(path):
        if kind_of(config) == "vision":
            try:
                return AutoImageProcessor.from_pretrained(path)
            except OSError:
                return None
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, TypeError):  # the last from classes that are given no vocabulary (Marian)
            return None
    # real vocabularies are larger, and only small ones are looked through
    if len(tokenizer) < _SMALLEST_VOCABULARY:
        # a mark may be one of an added token too (T5's `<extra_id_0>`); other added tokens may be all the words there are
        added = tokenizer.added_tokens_decoder.values()
        marks = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        if len(tokenizer.get_vocab().keys() - marks) <= 1:  # T5's has the mark of a word's beginning besides
            return None
    if tokenizer.pad_token_id is None:
        # Decoders have none. Padding is masked everywhere, so which token it is does not matter.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


_SMALLEST_VOCABULARY = 1000
_FETCH_AGAIN = "Fetch or copy the model's files again, or take another: dollartune backbones ls"


def empty_model(
    name: str, objective: Objective | None = None, trust_remote_code: bool = False, classes: int | None = None
) -> nn.Module:
    """The model on the meta device, from its config alone: shapes and roles without weights.

    `classes` is the number of classes of a classification head; by default what the config says.
    """
    config = read_shape(name, trust_remote_code)
    if classes is not None:
        config.num_labels = classes
    objective = objective or default_objective(config)
    with torch.device("meta"), quiet_transformers():
        model: nn.Module = _auto_class(config, objective).from_config(config)
    if objective == "classification":
        _DRAWN[model] = drawn_parameters(name, model)
    return model.eval()


def anatomy_of(model: nn.Module, drawn: frozenset[str] = frozenset()) -> Anatomy:
    """The anatomy of a model: from its family's file, else read off its structure (see `structure.py`); kept per model.

    Args:
        drawn: names of parameters that its checkpoint has not, as `read_anatomy` takes them; known when it is loaded, and of
            an `empty_model`.

    Raises:
        UserError: the family is unknown and its structure cannot be read.
    """
    anatomy = _ANATOMIES.get(model)
    if anatomy is None:
        drawn = drawn or _DRAWN.get(model, frozenset())
        config: Any = model.config
        family = family_of(config)
        kind = kind_of(config)
        # A BERT that is used as a decoder has the type of an encoder's file.
        if family is None or family.kind != kind:
            family = read_structure(model, kind)
        anatomy = _ANATOMIES[model] = read_anatomy(model, family, drawn)
    return anatomy


_ANATOMIES: weakref.WeakKeyDictionary[nn.Module, Anatomy] = weakref.WeakKeyDictionary()
"""Reading a structure takes a few passes of a small copy; a model is asked for its anatomy many times."""
_DRAWN: weakref.WeakKeyDictionary[nn.Module, frozenset[str]] = weakref.WeakKeyDictionary()
"""Of models without weights: what their checkpoints have not."""
