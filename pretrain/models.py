"""Shapes of the embedded backbones and how they are written: transformers' own format, bf16, with tokenizer files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

PAD, START, END, UNKNOWN, MASK, FIRST_SENTINEL = 0, 1, 2, 3, 4, 5


def new_model(name: str, vocabulary: int, sentinels: int) -> PreTrainedModel:
    """A backbone with random weights, drawn from torch's generator."""
    if name == "tiny-decoder":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
                num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
                pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
            )
        )  # fmt: skip
    if name == "tiny-encoder":
        model = BertForPreTraining(
            BertConfig(
                vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                num_attention_heads=4, max_position_embeddings=512, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
            )
        )  # fmt: skip
        table = model.bert.embeddings.position_embeddings.weight
        with torch.no_grad():  # learned positions that start as waves find their neighbours at once
            table.copy_(0.04 * sinusoids(*table.shape))
        return model
    if name == "tiny-seq2seq":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocabulary, d_model=256, d_kv=64, d_ff=512, num_layers=3, num_decoder_layers=3, num_heads=4,
                dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=True, pad_token_id=PAD,
                eos_token_id=END, decoder_start_token_id=PAD,
            )
        )  # fmt: skip
    raise ValueError(f"no shape for {name!r}")


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """(positions, width) sines and cosines of geometric wavelengths from 2 pi to 2 pi 2,000."""
    rates = torch.exp(-math.log(2000.0) * torch.arange(width // 2) / (width // 2))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def fast_tokenizer(name: str, path: Path, sentinels: int) -> PreTrainedTokenizerFast:
    """The shared tokenizer with the special tokens that the model's family puts around a text."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors

    core = Tokenizer.from_file(str(path))
    # Marks for missing text swallow the space before them: words carry theirs at the front.
    mask = AddedToken("<mask>", lstrip=True, special=True)
    gaps = [AddedToken(f"<extra_id_{index}>", lstrip=True, special=True) for index in range(sentinels)]
    core.add_special_tokens([mask, *gaps])
    marks: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if name == "tiny-decoder":
        marks["bos_token"] = "<s>"
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", START)]
        )
    elif name == "tiny-encoder":
        marks |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": mask}
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", START), ("</s>", END)]
        )
    else:
        # As in T5's own tokenizer a text begins with a space, so that a label word alone is the token it is in a text.
        core.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A +"), " ")])
        core.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
        )
        marks["additional_special_tokens"] = gaps
    names = ["input_ids", *(["token_type_ids"] if name == "tiny-encoder" else []), "attention_mask"]
    side = "left" if name == "tiny-decoder" else "right"
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=names,
        model_max_length=512,
        padding_side=side,
        clean_up_tokenization_spaces=False,
        **marks,
    )


def write_backbone(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Writes config, bf16 safetensors and tokenizer to `folder`; the folder is replaced as a whole, its README kept."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    config_path = temporary / "config.json"
    config = json.loads(config_path.read_text())
    config["dtype"] = "bfloat16"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    readme = folder / "README.md"
    if readme.exists():
        shutil.copy(readme, temporary / "README.md")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def distance_bias(buckets: int, heads: int, bidirectional: bool) -> torch.Tensor:
    """(buckets, heads) start for T5's relative position bias: minus slope times distance, a slope per head (ALiBi).

    T5 scores positions by this table alone; from zeros a small model needs most of its time to find its neighbours.
    """
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    step = torch.arange(side)
    far = exact * (128 / exact) ** ((step - exact).clamp(min=0) / (side - exact))
    distance = torch.where(step < exact, step.double(), far)
    distance = torch.cat([distance, distance]) if bidirectional else distance
    slopes = torch.tensor([1.0, 0.4, 0.1] + [0.0] * (heads - 3), dtype=torch.double)
    return (-distance.clamp(max=30)[:, None] * slopes).float()
