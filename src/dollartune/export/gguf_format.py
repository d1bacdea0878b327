"""A merged model as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio).

    merged weights ──llama.cpp's names; q and k reordered──> tensors      ┐
    config ──> shapes, RoPE, epsilon                                      ├──> model.gguf ──transformers' reader──> compared:
    tokenizer ──> vocabulary, merges or scores, marks, chat template      ┘              logits, and tokens of texts

Weights are stored as they are computed with (F32, F16, BF16); llama.cpp's own `llama-quantize` makes smaller files of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.backbones.chat import template_of
from dollartune.backbones.families import families
from dollartune.backbones.gguf import need_readers, write_unpacked
from dollartune.backbones.kind import family_of
from dollartune.backbones.loading import load_backbone
from dollartune.errors import UserError
from dollartune.export.gguf_tokenizer import (
    Vocabulary,
    require_same_tokens,
    swallowed_spaces,
    vocabulary_of,
    write_vocabulary,
)
from dollartune.export.merged import merged_copy
from dollartune.export.scoring import (
    adapter_logits,
    require_equal,
    require_same_weights,
    rounding_notes,
    sample_inputs,
    tolerance,
)
from dollartune.files import drafted, need_empty

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.anatomy import GGUFArchitecture
    from dollartune.backbones.loading import Backbone

FILE = "model.gguf"
_STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def gguf_refusal(backbone: Backbone) -> str | None:
    """Why a backbone has no GGUF file; None where it has one. Its tokenizer is looked at when the file is written."""
    config = backbone.model.config
    family = family_of(config)
    if backbone.objective != "language":
        return "a GGUF file holds a language model and has no place for a classification head"
    if family is None or config.model_type not in family.gguf:
        known = sorted({name for one in families().values() for name in one.gguf})
        return f"GGUF is written for {', '.join(known)}, and this backbone is {config.model_type}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its positions are scaled ({rope.get('rope_type')}), which transformers' reader of GGUF passes over"
    if config.hidden_act != "silu":
        return f"its feed-forward layers are of {config.hidden_act}, and llama.cpp computes silu"
    if getattr(config, "sliding_window", None) is not None:
        return "its attention slides over a window, which the file does not tell"
    return None


@torch.no_grad()
def write_gguf(
    folder: Path,
    backbone: Backbone,
    adapter: Adapter,
    info: Mapping[str, Any],
    inputs: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Merges an adapter, writes `model.gguf`, reads it back as a backbone, and compares logits and tokens.

    Args:
        folder: must not exist yet, or be empty.
        info: what `adapter.json` holds.
        inputs: examples to compare on; by default random tokens.

    Raises:
        UserError: the package gguf is missing, the backbone or its tokenizer has no GGUF, a method is not exactly mergeable,
            or what was read back gives other logits or tokens.
    """
    need_empty(folder)
    if (why := gguf_refusal(backbone)) is not None:
        raise UserError(
            f"{why}.", hint="Export with --format merged: transformers, vLLM and text-generation-inference read it."
        )
    vocabulary = vocabulary_of(backbone.processor, backbone.model.config.vocab_size)
    given = dict(inputs or sample_inputs(backbone))
    expected = adapter_logits(backbone, adapter, given)
    untuned = float((adapter_logits(backbone, None, given) - expected).abs().max())
    model, merged = merged_copy(backbone, adapter)
    task = info.get("task") or {}
    template = task.get("chat_template") or template_of(backbone.processor)
    with drafted(folder) as draft:
        _write(draft / FILE, model, backbone, vocabulary, template, info)
        again = _read_back(draft / FILE, draft / "unpacked", backbone)
        difference = require_equal(
            adapter_logits(again, None, given), expected, backbone.dtype, "the GGUF file, read back by transformers,"
        )
        require_same_weights(again.model, model, "the GGUF file, read back by transformers,")
        prompts = [text for text in (task.get("prompt"), task.get("system")) if text]
        texts = require_same_tokens(backbone.processor, again.processor, prompts)
        # The weights a second time, there to be read back and for nothing else.
        shutil.rmtree(draft / "unpacked")
    allowed = tolerance(backbone.dtype) * max(1.0, float(expected.abs().max()))
    lines = [
        f"wrote {FILE}, {(folder / FILE).stat().st_size:,} bytes, {_STORED[backbone.dtype]}, {len(merged.modules)} modules "
        f"merged; read back by transformers, logits differ from the adapter's by at most {difference:.1e} (allowed: "
        f"{allowed:.1e}; the untuned weights differ by {untuned:.1e}), and {texts} texts are the same tokens.",
        *rounding_notes(difference, untuned, max(merged.lost.values(), default=0.0), backbone.dtype),
    ]
    if json.loads(backbone.processor.backend_tokenizer.to_str())["normalizer"] and vocabulary.model == "gpt2":
        lines.append(
            "llama.cpp takes texts as they are: give it Unicode's form NFC, into which this tokenizer puts them."
        )
    if swallowing := swallowed_spaces(backbone.processor):
        lines.append(
            f"{', '.join(swallowing[:3])} takes the space beside it along here, and in GGUF leaves it as a token."
        )
    return lines


def _write(
    path: Path, model: Any, backbone: Backbone, vocabulary: Vocabulary, template: str | None, info: Mapping[str, Any]
) -> None:
    need_readers("writing GGUF files, which are read back and compared,")
    import gguf

    config = model.config
    family = family_of(config)
    assert family is not None
    architecture = family.gguf[config.model_type]
    writer = gguf.GGUFWriter(str(path), architecture.name)
    _write_facts(writer, config, info)
    writer.add_file_type(
        gguf.LlamaFileType[f"{'ALL' if backbone.dtype == torch.float32 else 'MOSTLY'}_{_STORED[backbone.dtype]}"]
    )
    write_vocabulary(writer, backbone.processor, vocabulary, template)
    known = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # without it a reader takes the embedding
        target = _target(name, names, architecture)
        values = (
            _reordered(name, weight.float().cpu(), config) if architecture.paired_rotation else weight.float().cpu()
        )
        # Vectors (norms, biases) stay in fp32: they are few, and llama.cpp adds them in fp32.
        kind = gguf.GGMLQuantizationType[_STORED[backbone.dtype] if values.dim() > 1 else "F32"]
        writer.add_tensor(target, gguf.quantize(values.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_facts(writer: Any, config: Any, info: Mapping[str, Any]) -> None:
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    task = (info.get("task") or {}).get("name")
    backbone = str(info.get("backbone") or "adapter").rstrip("/").rsplit("/", 1)[-1]
    writer.add_name(f"{backbone} for {task}" if task else backbone)
    if info.get("license"):
        writer.add_license(str(info["license"]))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _target(name: str, names: Any, architecture: GGUFArchitecture) -> str:
    """llama.cpp's name of a tensor.

    Raises:
        UserError: it has none.
    """
    target = names.get_name(name, try_suffixes=(".weight", ".bias"))
    module = name.rpartition(".")[0].rpartition(".")[2]
    if target is None or (name.endswith(".bias") and module not in architecture.biases):
        raise UserError(
            f"the merged model has {name}, which readers of a GGUF file of {architecture.name} do not look for.",
            hint="Export with --format merged: transformers, vLLM and text-generation-inference read it.",
        )
    return str(target)


def _reordered(name: str, weight: Tensor, config: Any) -> Tensor:
    """Rows of q and k as llama.cpp rotates them: value i of a head beside value i + head_size / 2."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    # (heads · size, in) -> (heads, 2, size / 2, in) -> (heads, size / 2, 2, in)
    return weight.view(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _read_back(path: Path, room: Path, backbone: Backbone) -> Backbone:
    """The file as a backbone: by transformers' reader, through what reads any GGUF file here."""
    room.mkdir()
    write_unpacked(path, room)
    return load_backbone(str(room), "language", dtype=backbone.dtype, device=backbone.device)
