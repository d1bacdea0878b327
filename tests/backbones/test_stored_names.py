"""Without weights a backbone has the parts before its head that a loaded one has, so that plans and counts are the true ones."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from dollartune.attachment.attached import Attached
from dollartune.attachment.counting import count_parameters
from dollartune.backbones.loading import load_backbone
from dollartune.backbones.outline import anatomy_without_weights
from dollartune.backbones.stored_names import drawn_parameters
from dollartune.methods.registry import build_method
from dollartune.planner.dry_run import bare_backbone

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip
WITH_DRAWN = {
    "DistilBert": {"vocab_size": 100, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "num_labels": 3},
    "Bert": SIZES,
    "Albert": SIZES | {"embedding_size": 16},
    "DebertaV2": SIZES,
    "RemBert": SIZES | {"input_embedding_size": 16, "output_embedding_size": 16},
}
"""Families whose classifiers have a part before the head that a model of masked words has not."""


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("name", WITH_DRAWN)
def test_a_count_and_a_plan_know_what_loading_draws(name: str, kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{name}Config")(**WITH_DRAWN[name])
    getattr(transformers, f"{name}{kind}")(config).save_pretrained(tmp_path)
    folder = str(tmp_path)
    loaded = load_backbone(folder, "classification", ["a", "b", "c"])
    poolers = [site.name for site in loaded.anatomy.sites if site.role.startswith("pooler")]
    assert bool(poolers) == (kind == "ForMaskedLM")
    for without in (
        anatomy_without_weights(folder, "classification"),
        bare_backbone(folder, "classification", torch.float32).anatomy,
    ):
        assert [site.name for site in without.sites if site.role.startswith("pooler")] == poolers
    attached = Attached(loaded.model, loaded.anatomy)
    trained = attached.add("mine", [build_method("head")]).count()
    attached.detach()
    assert count_parameters(folder, ["head"])["trainable_parameters"] == trained


def test_a_checkpoint_that_is_not_here_or_has_other_names_says_nothing(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(**WITH_DRAWN["DistilBert"])
    model = transformers.DistilBertForSequenceClassification(config)
    config.save_pretrained(tmp_path)
    assert not drawn_parameters(str(tmp_path), model)
    save_file({f"other.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert not drawn_parameters(str(tmp_path), model)
    for broken in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        (tmp_path / broken).write_bytes(b"not a checkpoint")
        assert not drawn_parameters(str(tmp_path), model)
