"""Classifiers whose checkpoint has no head, and none of what stands before it (DistilBERT's pre_classifier, a pooler): what is
drawn when a checkpoint is loaded is drawn otherwise by the next who loads it, so that the exports must hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dollartune.attachment import Adapter
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.export.arithmetic import write_lora
from dollartune.export.directory import load_adapter, save_adapter
from dollartune.export.merged import write_merged
from dollartune.export.peft_format import read_peft, write_peft
from dollartune.export.scoring import adapter_logits, sample_inputs
from dollartune.export.targets import head_of
from dollartune.methods.head import Head
from dollartune.methods.lora import LoRA
from dollartune.testing.practice import perturb

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    "Bert": SIZES,
    "Roberta": SIZES,
    "Electra": {**SIZES, "embedding_size": 16},
    "Albert": {**SIZES, "embedding_size": 16},
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32},
    "ModernBert": {**SIZES, "cls_token_id": 0, "sep_token_id": 2},
}
POOLERS = {
    "DistilBert": "pre_classifier", "Bert": "bert.pooler", "Albert": "albert.pooler", "DebertaV2": "pooler",
    "ModernBert": "head",
}  # fmt: skip
"""Roberta's and Electra's heads hold their hidden layer themselves."""


def without_head(family: str, folder: Path) -> Backbone:
    """A checkpoint as training on masked words leaves it, read as a classifier."""
    config = getattr(transformers, f"{family}Config")(
        **CONFIGS[family], vocab_size=99, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )
    make = getattr(transformers, f"{family}Model")
    torch.manual_seed(3)
    (make(config, add_pooling_layer=False) if family in ("Bert", "Albert") else make(config)).save_pretrained(folder)
    return load_backbone(str(folder), "classification", labels=("a", "b", "c"))


def tuned(backbone: Backbone) -> Adapter:
    adapter = Adapter([LoRA(rank=2), Head()], backbone.anatomy, backbone.model, seed=1)
    perturb(adapter, 0.05, seed=2)
    return adapter


@torch.no_grad()
def elsewhere(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model.eval()(**inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", CONFIGS)
def test_what_was_drawn_with_the_head_is_tuned_and_goes_along(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    backbone = without_head(family, tmp_path / "base")
    before_head = [site.exit for site in backbone.anatomy.heads[:-1]]
    assert before_head == ([POOLERS[family]] if family in POOLERS else [])
    adapter, inputs = tuned(backbone), sample_inputs(backbone)
    expected = adapter_logits(backbone, adapter, inputs)
    write_merged(tmp_path / "merged", backbone, adapter)
    write_peft(tmp_path / "peft", backbone, adapter)
    torch.manual_seed(77)  # whoever loads it next draws otherwise
    auto = transformers.AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    bare = auto.from_pretrained(tmp_path / "base", num_labels=3, dtype=torch.float32)
    with_peft = peft.PeftModel.from_pretrained(bare, tmp_path / "peft")
    for model in (merged, with_peft):
        torch.testing.assert_close(elsewhere(model, inputs), expected, atol=1e-5, rtol=1e-4)
    again, _ = read_peft(tmp_path / "peft", backbone)
    torch.testing.assert_close(adapter_logits(backbone, again, inputs), expected, atol=1e-5, rtol=1e-4)


def test_peft_saves_what_is_named_like_the_head(tmp_path: Path) -> None:
    """DistilBERT's pre_classifier ends in "classifier", so that peft asks for it also where the checkpoint has it."""
    pytest.importorskip("peft")
    without_head("DistilBert", tmp_path / "base").model.save_pretrained(tmp_path / "classifier")
    backbone = load_backbone(str(tmp_path / "classifier"), "classification", labels=("a", "b", "c"))
    assert [site.exit for site in backbone.anatomy.heads] == ["classifier"]
    adapter = tuned(backbone)
    assert write_peft(tmp_path / "peft", backbone, adapter).peft_difference is not None
    assert "by the peft library" in write_lora(tmp_path / "lora", backbone, adapter, {}, 8, None)[1]
    for folder in ("peft", "lora"):
        again, _ = read_peft(tmp_path / folder, backbone)
        assert {site.name for site, _ in again.items()} == {site.name for site, _ in adapter.items()}


def test_an_adapter_of_before_keeps_what_was_drawn(tmp_path: Path) -> None:
    backbone = without_head("Bert", tmp_path / "base")
    adapter, inputs = tuned(backbone), sample_inputs(backbone)
    assert head_of(adapter) == "pooler"  # and no name that vLLM takes
    save_adapter(tmp_path / "new", adapter, {"backbone": backbone.name, "objective": "classification"})
    expected = adapter_logits(backbone, load_adapter(tmp_path / "new", backbone), inputs)
    torch.testing.assert_close(expected, adapter_logits(backbone, adapter, inputs))
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "new" / "adapter.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if ".pooler." not in name}
    save_file(kept, weights)
    old = load_adapter(tmp_path / "new", backbone)
    assert [site.exit for site, _ in old.items() if site.kind == "head"] == ["classifier"]
    assert not torch.allclose(adapter_logits(backbone, old, inputs), expected, atol=1e-4)
