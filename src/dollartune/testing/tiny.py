"""Tiny random models of every family: about 32 wide, two or three layers, a vocabulary of 99; built once per process.

Weights are drawn larger than the families' own 0.02, so that attention is far from uniform and every edit shows in the
output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.backbones.kind import Objective, default_objective
from dollartune.backbones.loading import anatomy_of
from dollartune.errors import unknown_name

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.anatomy import Anatomy

# No multiple of a width or of a head's size, so that a mistaken axis shows.
VOCABULARY = 99
LABELS = 3
# As BART has them, 0 being the start; padding other than 0 shows where a mask is forgotten.
PAD, END = 1, 2


def _opt(t: Any, **common: Any) -> Any:
    return t.OPTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        ffn_dim=64,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.15,
        **common,
    )


def _gpt2(t: Any, **common: Any) -> Any:
    return t.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.15, **common)


def _gpt_neo(t: Any, **common: Any) -> Any:
    return t.GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        # One layer of each: local attention masks by distance.
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        initializer_range=0.15,
        **common,
    )


def _bloom(t: Any, **common: Any) -> Any:
    return t.BloomConfig(hidden_size=32, n_layer=3, n_head=4, initializer_range=0.15, **common)


def _llama(t: Any, **common: Any) -> Any:
    return t.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        # Fewer than queries' heads: grouped queries have shapes of their own.
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
        **common,
    )


def _t5(t: Any, **common: Any) -> Any:
    return t.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        # As FLAN-T5 has it: two input projections in the MLP.
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        **common,
    )


def _bart(t: Any, **common: Any) -> Any:
    return t.BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.15,
        decoder_start_token_id=END,
        **common,
    )


def _bert(t: Any, **common: Any) -> Any:
    return t.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.15,
        **common,
    )


def _roberta(t: Any, **common: Any) -> Any:
    return t.RobertaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.15,
        **common,
    )


def _albert(t: Any, **common: Any) -> Any:
    return t.AlbertConfig(
        # Less than the hidden size: ALBERT projects its embeddings up.
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.15,
        **common,
    )


def _vit(t: Any, **common: Any) -> Any:
    return t.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        # 16 patches and the class token.
        patch_size=8,
        initializer_range=0.15,
        num_labels=common["num_labels"],
    )


def _deit(t: Any, **common: Any) -> Any:
    return t.DeiTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        initializer_range=0.15,
        num_labels=common["num_labels"],
        architectures=["DeiTForImageClassification"],
    )


FAMILIES: dict[str, Callable[..., Any]] = {
    "opt": _opt,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "bloom": _bloom,
    "llama": _llama,
    "t5": _t5,
    "bart": _bart,
    "bert": _bert,
    "roberta": _roberta,
    "albert": _albert,
    "vit": _vit,
    "deit": _deit,
}
"""Family name -> its tiny configuration, given the transformers module."""


@dataclass(frozen=True)
class TinyBackbone:
    """A tiny model, its anatomy and example inputs. It is shared by all tests of a process: detach what you attach."""

    name: str
    model: Any
    anatomy: Anatomy
    objective: Objective

    def inputs(self, rows: int = 4, tokens: int = 7, seed: int = 0) -> dict[str, Tensor]:
        """A batch; the last row is two tokens shorter and padded. Vision: pixel_values (rows, 3, 32, 32)."""
        generator = torch.Generator().manual_seed(seed)
        if self.anatomy.kind == "vision":
            return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)}
        # From 3 on: no start, padding or end inside a row by chance.
        ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, tokens - 2 :] = 0
        ids[mask == 0] = PAD
        if self.anatomy.family.kind == "encoder_decoder" and self.objective == "classification":
            # T5 and BART read a class at the last end mark, and refuse rows that differ in how many they have.
            ids[torch.arange(rows), mask.sum(-1) - 1] = END
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.anatomy.kind == "encoder_decoder" and self.objective == "language":
            inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (rows, 4), generator=generator)
        return inputs

    def logits(self, attached: Attached, inputs: dict[str, Any]) -> Tensor:
        """Logits under the current route: (rows, classes), or (real tokens, vocabulary) for language models.

        Virtual tokens move positions, so language models are read where the real tokens are.
        """
        if self.objective == "classification":
            result: Tensor = attached(**inputs).logits
            return result
        mask = (
            torch.ones_like(inputs["decoder_input_ids"]) if "decoder_input_ids" in inputs else inputs["attention_mask"]
        )
        # (real tokens,) each: padding's logits mean nothing and differ between routes.
        rows, positions = mask.nonzero(as_tuple=True)
        result = attached(keep=(rows, positions), **inputs).logits
        return result[0]


def select(inputs: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some rows of a batch, without the columns that are padding in all of them."""
    chosen = {name: tensor[rows] for name, tensor in inputs.items()}
    if (mask := chosen.get("attention_mask")) is not None:
        longest = int(mask.sum(-1).max())
        chosen["input_ids"], chosen["attention_mask"] = chosen["input_ids"][:, :longest], mask[:, :longest]
    return chosen


def read_name(name: str) -> tuple[str, Objective | None]:
    """`opt` or `opt/classification` -> family and objective (None: what the family was made for)."""
    family, _, objective = name.partition("/")
    if family not in FAMILIES:
        raise unknown_name("tiny family", family, FAMILIES)
    if objective not in ("", "language", "classification"):
        raise unknown_name("objective", objective, ("language", "classification"))
    return family, objective or None  # type: ignore[return-value]


BUILT: dict[str, TinyBackbone] = {}
"""Those of this process: tests share them, and leave them as they found them."""


def tiny_backbone(name: str) -> TinyBackbone:
    """The tiny model of a family, with random weights that depend on nothing else: `opt`, `opt/classification`, `bert`
    ...

    Raises:
        UserError: there is no such family or objective.
    """
    if name not in BUILT:
        BUILT[name] = _new_backbone(name)
    return BUILT[name]


def _new_backbone(name: str) -> TinyBackbone:
    family, objective = read_name(name)
    config = _config(family)
    objective = objective or default_objective(config)
    model = _build(config, family, objective).eval()
    return TinyBackbone(name, model, anatomy_of(model), objective)


@cache
def meta_backbone(name: str) -> TinyBackbone:
    """The same on the meta device: shapes without values."""
    family, objective = read_name(name)
    config = _config(family)
    objective = objective or default_objective(config)
    with torch.device("meta"):
        model = _auto_class(family, objective).from_config(config).eval()
    return TinyBackbone(name, model, anatomy_of(model), objective)


def _config(family: str) -> Any:
    import transformers

    return FAMILIES[family](
        transformers, vocab_size=VOCABULARY, num_labels=LABELS, bos_token_id=0, pad_token_id=PAD, eos_token_id=END
    )


def _auto_class(family: str, objective: Objective) -> Any:
    import transformers

    if family in ("vit", "deit"):
        return transformers.AutoModelForImageClassification
    if objective == "classification":
        return transformers.AutoModelForSequenceClassification
    if family in ("bert", "roberta", "albert"):
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModelForSeq2SeqLM if family in ("t5", "bart") else transformers.AutoModelForCausalLM


def _build(config: Any, family: str, objective: Objective) -> nn.Module:
    # The caller's own draws go on as if no model had been built.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = _auto_class(family, objective).from_config(config)
        for name, parameter in model.named_parameters():  # biases and norms away from 0 and 1, where bugs hide
            if parameter.dim() == 1:
                nn.init.normal_(
                    parameter, mean=1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, std=0.1
                )
    return model
