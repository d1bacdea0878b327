"""What a backbone is: a decoder, an encoder, both, or one of images. Its configuration and a pass tell, not its classes.

Many encoders have a class for causal language models (BERT, BigBird, RemBERT), and many encoder-decoders one for their
decoder alone; so a class that exists says nothing.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch

from dollartune.backbones.config_values import config_value
from dollartune.backbones.families import families
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import BackboneKind, Family

Objective = Literal["language", "classification"]
"""What the head does: write text (label words included), or score classes."""


def family_of(config: Any) -> Family | None:
    """The role map of a configuration's model type, if there is one."""
    return families().get(text_config(config).model_type) or families().get(config.model_type)


def text_config(config: Any) -> Any:
    """The part of a configuration that a text model has: of a model with pictures or sound, the decoder of text inside."""
    if reads_images(config):
        return config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "get_text_config"):
        return config
    inner = config.get_text_config(decoder=True)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if inner is not config and getattr(inner, key, None) is None:
            # Marks are written in the outer config alone, and the text model needs them.
            setattr(inner, key, getattr(config, key, None))
    if inner is not config:
        inner.dollartune_outer = config.model_type
    return inner


def outer_note(config: Any) -> str | None:
    """What to say of a text model that lies inside one that also takes pictures or sound; None for any other."""
    outer = getattr(config, "dollartune_outer", None)
    return None if outer is None else f"of {outer} the text part is read and tuned; pictures and sound are not read"


def reads_images(config: Any) -> bool:
    """Whether images are what it classifies: pixels are the main input of its family, or it has a text tower beside and
    a class for images alone (CLIP)."""
    from transformers.models.auto import modeling_auto as auto

    from dollartune.backbones.own_head import mapped_class

    texts = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    if any(config.model_type in mapping for mapping in texts):
        return False
    if hasattr(config, "vision_config"):
        return config.model_type in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return getattr(mapped_class(type(config)), "main_input_name", "input_ids") == "pixel_values"


def kind_of(config: Any) -> BackboneKind:
    """The kind of backbone that a configuration describes.

    Raises:
        UserError: it reads neither text nor images, or no pass of a small copy of it runs.
    """
    family = family_of(config)
    text = text_config(config)
    # BERT with `is_decoder` masks later tokens: then its file's kind is wrong, and a pass decides.
    if family is not None and not _says_otherwise(text, family.kind):
        return family.kind
    if reads_images(config):
        return "vision"
    if getattr(text, "is_encoder_decoder", False):
        _refuse_sound(text)
        return "encoder_decoder"
    return "encoder" if _sees_later_tokens(text) else "decoder"


def _says_otherwise(text: Any, kind: str) -> bool:
    """Whether a configuration turns its family's attention round: BERT as a decoder, Gemma as an encoder (EmbeddingGemma,
    PaliGemma's text part)."""
    if kind == "encoder":
        return bool(getattr(text, "is_decoder", False))
    both_ways = getattr(text, "use_bidirectional_attention", None) in (True, "all") or not getattr(
        text, "is_causal", True
    )
    return kind == "decoder" and both_ways


def has_window(config: Any) -> bool:
    """Whether some of its attention reaches back over so many places only. In a batch whose rows are padded such a window
    counts padding too, so going on from a padded cache gives other results than the row alone."""
    text = text_config(config)
    layers = [str(kind) for kind in getattr(text, "layer_types", None) or ()]
    # families call it as they like (sliding_window, keep_window_size); max_window_layers says where one is
    names = {key for key in text.to_dict() if "window" in key and "layers" not in key}
    sizes = [config_value(text, key) for key in sorted(names | {"sliding_window", "window_size", "local_attention"})]
    return any("sliding" in kind or "chunked" in kind for kind in layers) or any(
        isinstance(size, int | list) and not isinstance(size, bool) for size in sizes
    )


def default_objective(config: Any) -> Objective:
    """`language` for what writes text, `classification` for encoders and vision models."""
    return "language" if kind_of(config) in ("decoder", "encoder_decoder") else "classification"


def check_objective(config: Any, objective: Objective) -> None:
    """Refuses to read an encoder as a language model, whatever classes exist for it.

    Raises:
        UserError: with that reason.
    """
    if objective == "language" and (kind := kind_of(config)) in ("encoder", "vision"):
        why = (
            "reads both ways: what it gives for a token has seen the tokens behind it, so it cannot write or score text"
            if kind == "encoder"
            else "reads images and writes nothing"
        )
        raise UserError(
            f"objective: language has no meaning here: {config.model_type} {why}.",
            hint="Set objective: classification.",
        )


def _refuse_sound(config: Any) -> None:
    if any(hasattr(config, key) for key in ("num_mel_bins", "conv_dim", "audio_config")):
        raise UserError(
            f"a backbone of type {config.model_type!r} reads sound; text and images are what this version tunes on.",
            hint="Give a model of text or of images.",
        )
    from dollartune.backbones.own_head import mapped_class

    # CANINE reads characters and has no vocabulary
    reads_ids = (
        hasattr(config, "vocab_size") or getattr(mapped_class(type(config)), "main_input_name", "") == "input_ids"
    )
    if not reads_ids:
        raise UserError(
            f"a backbone of type {config.model_type!r} is neither a model of text nor one that classifies images.",
            hint="Give a model of text or of images.",
        )


_SEEN: dict[str, bool] = {}
"""Configuration as text -> what a pass of it showed; a study asks for the same one many times."""


def _sees_later_tokens(config: Any) -> bool:
    from transformers import AutoModel, AutoModelForMaskedLM

    from dollartune.backbones.miniature import miniatures
    from dollartune.backbones.own_head import base_class
    from dollartune.backbones.probing import NothingSeen, looks_ahead

    # Every setting: a window or a flag may decide what is masked.
    key = json.dumps([type(config).__name__, config.to_dict()], sort_keys=True, default=str)
    if key not in _SEEN:
        _refuse_sound(config)
        base = AutoModel if hasattr(config, "auto_map") else base_class(type(config))
        if base is None:
            raise UserError(
                f"transformers has no model for {config.model_type!r} alone, apart from the pictures or sounds beside it.",
                hint="Give a backbone of text or of images.",
            )
        why, nothing = "no small copy of it can be made", None
        # A base model may read no tokens without what its heads give it (Perceiver's takes what a module of theirs has read).
        headed = AutoModelForMaskedLM._model_mapping.get(type(config), None)
        for model in chain(miniatures(base, config), () if headed is None else miniatures(headed, config)):
            try:
                with torch.device("cpu"):  # also where the caller builds on the meta device
                    _SEEN[key] = looks_ahead(model)
                break
            except NothingSeen as error:
                nothing = error
            except Exception as error:
                # some families refuse sizes so small; the next copy is larger
                why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
        else:
            if nothing is not None:  # and a file that says what it is would not make it run
                raise UserError(
                    f"a backbone of type {config.model_type!r} cannot be run here: {nothing}.",
                    hint="Take another backbone.",
                )
            raise UserError(
                f"whether {config.model_type!r} reads both ways or writes from left to right cannot be seen: {why}.",
                hint="Say it in a file: `backbone: {name: ..., anatomy: FILE}`, with `kind: decoder` or `kind: encoder`.",
            )
    return _SEEN[key]
