"""A small random copy of a model of any configuration, to be run a few times for what its class does not tell.

The copy has the same modules under the same names, the same number of heads, experts and groups, and narrower layers,
so that what is seen of it (which outputs of a linear become keys) holds for the real model in proportion.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dollartune.backbones.config_values import by_layer, config_value
from dollartune.backbones.quiet import quiet_transformers
from dollartune.backbones.token_table import output_head, vocabulary_size

TOKENS, ANSWER_TOKENS, ROWS = 11, 7, 2
"""Of the inputs; both odd and apart, so that no other size of a small model is taken for a number of tokens."""
_SMALL = 4_000_000
"""Parameters below which a model is its own miniature: a pass takes milliseconds."""
_LARGEST = 60_000_000
"""Parameters above which no copy is made: reading a config must not take seconds and gigabytes."""
_DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers",
)  # fmt: skip
_WIDTHS = re.compile(
    r"^(d_model|d_kv|d_ff|d_inner|n_embd|n_inner|dim|hidden_dim|rotary_dim|head_dim|global_head_dim|.*hidden_size|"
    r".*intermediate_size|.*ffn_dim|.*_head_dim|.*lora_rank|embedding_size|ffn_hidden_size|attention_hidden_size|"
    r"word_embed_proj_dim|.*embedding_size|hidden_size_per_layer_input)$"
)
_EXPERTS = re.compile(r"^(n_routed_experts|num_experts|num_local_experts|moe_num_experts|n_experts)$")
_CHOSEN = re.compile(
    r"^(num_experts_per_tok|num_experts_per_token|num_selected_experts|moe_k|moe_topk|moe_top_k|top_k_experts|experts_top_k|"
    r"n_group|topk_group)$"
)
"""Numbers of experts, and of those that a token chooses or chooses among: four are as good as 256 to see what they do."""
_LARGEST_WHOLE = 400_000_000
"""Parameters up to which a model that cannot be made small is copied as it is: image encoders, whose stages hang together."""
_HEAD_SIZES = (8, 16, 32)
"""Tried in this order: rotary embeddings of a part of each head need some room."""


def miniatures(model_class: Any, config: Any) -> Iterator[nn.Module]:
    """Copies to try, the smallest first; none where the model is very large and cannot be made small by its settings."""
    try:
        is_small = _size(model_class, config) <= _SMALL
    except Exception:  # a configuration that its class refuses
        return
    candidates = [config] if is_small else []
    if not candidates:
        for layers in (2, 4, 8, None):  # more where layers differ: the first of Jamba's that attends is the fifth
            candidates += [small for head in _HEAD_SIZES if (small := shrunk(config, head, layers)) is not None]
        candidates.append(config)
    for settings in candidates:
        try:
            if _size(model_class, settings) > (_LARGEST_WHOLE if settings is config else _LARGEST):
                continue
            yield _random(model_class, settings)
        except Exception:  # a configuration that its class refuses; the next one may do
            continue


def shrunk(config: Any, head_size: int, layers: int | None) -> Any | None:
    """A configuration with heads of that size and at most so many layers; None where it has no heads to go by."""
    small = copy.deepcopy(config)
    text = _inner(small)
    heads = next((v for k in ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads")
                  if isinstance(v := config_value(text, k), int)), None)  # fmt: skip
    width = next(
        (v for k in ("hidden_size", "d_model", "n_embd", "dim") if isinstance(v := getattr(text, k, None), int)), None
    )
    if not heads or not width:
        return None
    # All widths are divided by one factor, so that they keep their proportions; numbers of heads stay.
    factor = (config_value(text, "head_dim") or getattr(text, "d_kv", None) or width // heads) // head_size

    def narrow(value: int) -> int:
        # Where the factor leaves a rest, the nearest multiple of 8: heads must divide the width, and none may become 0.
        return value // factor if value % factor == 0 else max(8, round(value / factor / 8) * 8)

    for part in {id(part): part for part in (small, text)}.values():
        overrides = by_layer(part)
        if overrides:
            part.per_layer_config = None
        for key, value in list(vars(part).items()):
            if isinstance(value, bool) or value is None:
                continue
            if key == "vocab_size" or key.startswith("vocab_size_"):
                # 128 tokens: enough to draw rows that differ, and no embedding to speak of.
                setattr(part, key, min(value, 128))
            elif key.endswith("_token_id") and isinstance(value, int):
                # Marks have to lie within the small vocabulary, and 3 is none of its lowest ids, which are often
                # special.
                setattr(part, key, value if value < 64 else 3)
            elif key.endswith("_token_id") and isinstance(value, list):
                setattr(part, key, [token if token < 64 else 3 for token in value])
            elif key == "num_kv_shared_layers" and layers:
                # Gemma 4's last layers read the keys of earlier ones, of which some must be left
                setattr(part, key, min(value, layers // 2))
            elif key in _DEPTHS and isinstance(value, int) and layers:
                setattr(part, key, min(value, layers))
            elif key in ("layer_types", "mlp_layer_types", "attention_types", "activation_sparsity_pattern") and layers:
                setattr(part, key, value[:layers] if len(value) > layers else value)
            elif isinstance(value, int) and (_EXPERTS.match(key) or _CHOSEN.match(key)):
                setattr(part, key, min(value, 4 if _EXPERTS.match(key) else 1 if "group" in key else 2))
            elif factor > 1 and isinstance(value, int) and _WIDTHS.match(key):
                setattr(part, key, narrow(value))
        if overrides:
            depth = part.num_hidden_layers
            part.per_layer_config = {
                layer: {
                    key: narrow(value) if factor > 1 and isinstance(value, int) and _WIDTHS.match(key) else value
                    for key, value in settings.items()
                }
                for layer, settings in overrides.items()
                if layer < depth
            }
        _plain_rotation(part, max(1, factor))
    return small


def _plain_rotation(config: Any, factor: int) -> None:
    """Rotary embeddings without lists that are as long as half a head, and sections that are so many times shorter."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    if any(isinstance(value, dict) for value in rope.values()):  # one for each type of layer (Gemma 3 and 4)
        config.rope_parameters = {
            kind: _plain(value, factor) if isinstance(value, dict) else value for kind, value in rope.items()
        }
    else:
        config.rope_parameters = _plain(rope, factor)


def _plain(rope: dict[str, object], factor: int) -> dict[str, object]:
    if rope.get("rope_type", "default") != "default":
        # 10,000 is the base of the paper (RoFormer, 2021), which configs of that age do not write.
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}
    sections = rope.get("mrope_section")
    if not isinstance(sections, list) or factor == 1:
        return rope
    small = [max(1, int(section) // factor) for section in sections]
    small[-1] += max(0, sum(sections) // factor - sum(small))  # together they have to make half of what is rotated
    return {**rope, "mrope_section": small}


def _inner(config: Any) -> Any:
    """The text part, where there are several."""
    return getattr(config, "text_config", None) or config


def _size(model_class: Any, config: Any) -> int:
    with torch.device("meta"), quiet_transformers():
        return sum(p.numel() for p in _build(model_class, copy.deepcopy(config)).parameters())


def _build(model_class: Any, config: Any) -> nn.Module:
    model: nn.Module = model_class.from_config(config) if hasattr(model_class, "from_config") else model_class(config)
    return model


@torch.no_grad()
def _random(model_class: Any, config: Any) -> nn.Module:
    """In evaluation mode, its weights away from zeros and ones, where nothing could be told apart."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        settings = copy.deepcopy(config)
        settings.dtype = torch.float32
        if hasattr(settings, "use_cache"):
            settings.use_cache = False  # single passes: nothing goes on from a cache
        model = _build(model_class, settings).float()
        for parameter in model.parameters():
            # Biases start at zero and norms at one in all families: equal numbers would hide what depends on them.
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.05))
    return model.eval()


def sample_inputs(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """Inputs of a miniature: text of two rows, or two images."""
    config: Any = model.config
    draw = torch.Generator().manual_seed(0)
    if kind == "vision":
        return {"pixel_values": torch.randn(ROWS, *image_shape(config), generator=draw)}
    vocabulary = vocabulary_size(model)
    most = min(vocabulary, 120)
    # From 5 on: the ids below are usually padding, beginning and end, which some families treat apart.
    inputs = {"input_ids": torch.randint(min(5, most - 2), most, (ROWS, TOKENS), generator=draw)}
    end = getattr(config, "eos_token_id", None)
    if kind == "encoder_decoder" and isinstance(end, int) and end < vocabulary:
        inputs["input_ids"][:, -1] = end  # BART's classifiers read the place of the end mark
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    both = getattr(model, "reads_decoder_ids", False)  # other classifiers make them of the input
    if kind == "encoder_decoder" and (both or output_head(model) is not None):
        inputs["decoder_input_ids"] = torch.randint(min(5, most - 2), most, (ROWS, ANSWER_TOKENS), generator=draw)
    return inputs


def image_shape(config: Any) -> tuple[int, int, int]:
    """(channels, height, width) of what an image encoder takes; convolutional ones take any size, of which 64 is quick."""
    part = getattr(config, "vision_config", config)
    size: Any = getattr(part, "image_size", None) or 64
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return getattr(part, "num_channels", 3), height, width
