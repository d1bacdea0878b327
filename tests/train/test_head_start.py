"""A trained head that begins at the solved one: its first scores are those of a logistic regression on what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, anatomy_of
from dollartune.methods.registry import build_method
from dollartune.study.api import Study
from dollartune.testing import tiny_backbone
from dollartune.train.encoding import Encoded
from dollartune.train.features import FeatureStore
from dollartune.train.head_start import begin_at_probe, read_features
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState


def rows_of(backbone: Backbone, count: int = 24) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    if backbone.kind == "vision":
        return [
            Encoded(str(i), label=i % 3, pixels=torch.randn(3, 32, 32, generator=generator) + i % 3)
            for i in range(count)
        ]
    ids = [torch.randint(5, 99, (4 + i % 5,), generator=generator).tolist() for i in range(count)]
    end = [2] if backbone.kind == "encoder_decoder" else []  # BART's classifier reads where the end mark is
    return [Encoded(str(i), (5 + i % 3, *own, *end), label=i % 3) for i, own in enumerate(ids)]


def begun(family: str, *specs: str) -> tuple[Backbone, Attached, TrialState, FeatureStore]:
    tiny = tiny_backbone(family)
    backbone = Backbone(family, tiny.model, None, tiny.anatomy, tiny.objective)
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("trial", [build_method(spec) for spec in specs], seed=3)
    state = TrialState("trial", adapter, rows_of(backbone), TrainingSettings(batch_size=8), seed=3)
    return backbone, attached, state, FeatureStore()


@pytest.mark.parametrize("specs", [("head",), ("lora(rank=2)", "head"), ("full",)], ids=["head", "lora", "full"])
@pytest.mark.parametrize("family", ["bert", "vit", "opt/classification", "llama/classification", "bart/classification"])
def test_the_first_scores_are_the_probes(family: str, specs: tuple[str, ...]) -> None:
    backbone, attached, state, store = begun(family, *specs)
    head = backbone.model.get_submodule(backbone.anatomy.at("head")[0].exit)
    linear = [module for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]
    before = linear.weight.detach().clone()
    read = read_features(linear, "trial", backbone, attached, state.train, 8)
    assert begin_at_probe(state, backbone, attached, store, 8)
    assert torch.equal(linear.weight, before), "the backbone's own head stays"
    with torch.no_grad():
        found = []
        for row in state.train:
            inputs: dict[str, Any] = (
                {"pixel_values": row.pixels[None]}
                if row.pixels is not None
                else {"input_ids": torch.tensor([row.prompt])}
            )
            if row.pixels is None:
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with attached.routed("trial", batch_rows=1):
                found.append(attached(**inputs).logits[0])
        scores = torch.stack(found).softmax(-1).numpy()
    labels = np.array([row.label for row in state.train])
    features = read.double().numpy()
    bias = linear.bias is not None
    standard = (features - features.mean(0) * bias) / features.std(0)
    candidates = [
        LogisticRegression(C=C, tol=1e-10, max_iter=20_000, fit_intercept=bias).fit(standard, labels)
        for C in 10.0 ** (np.arange(-8, 7) / 2)
    ]
    gaps = [float(abs(one.predict_proba(standard) - scores).max()) for one in candidates]
    assert min(gaps) < 2e-3, "the solution for one C of the path"
    attached.detach()


def test_a_trial_without_a_trained_head_begins_as_it_is() -> None:
    backbone, attached, state, store = begun("opt", "lora(rank=2)")
    assert not begin_at_probe(state, backbone, attached, store, 8)
    attached.detach()


def test_where_the_head_reads_a_pooled_state_the_kept_features_serve() -> None:
    backbone, attached, state, store = begun("llama/classification", "lora(rank=2)", "head")
    assert begin_at_probe(state, backbone, attached, store, 8)
    assert store.computed == len(state.train)
    assert begin_at_probe(state, backbone, attached, store, 8)
    assert store.computed == len(state.train)
    attached.detach()


def test_weights_before_the_head_are_passed_through() -> None:
    """ModernBERT's decoder has a dense layer and a norm between its last states and the linear that scores classes."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_labels": 3,
    }
    marks = {
        "vocab_size": 99,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    }
    torch.manual_seed(0)
    config = transformers.ModernBertDecoderConfig(**sizes, **marks)
    model = transformers.ModernBertDecoderForSequenceClassification(config).eval()
    backbone = Backbone("small", model, None, anatomy_of(model), "classification")
    attached = Attached(model, backbone.anatomy)
    adapter = attached.add("trial", [build_method("head")], seed=3)
    state = TrialState("trial", adapter, rows_of(backbone), TrainingSettings(batch_size=8), seed=3)
    read = read_features(model.classifier, "trial", backbone, attached, state.train, 8)
    store = FeatureStore()
    assert begin_at_probe(state, backbone, attached, store, 8)
    assert store.computed == 0, "kept features are the last states, which this head does not read"
    assert read.shape == (len(state.train), 32)


def test_a_study_that_begins_at_the_probe_has_trials_of_its_own(tmp_path: Any) -> None:
    def run(start: str) -> tuple[str, float]:
        results = Study(
            name=start,
            backbone="tiny-encoder",
            task="demo_library",
            methods=["head"],
            scales=[64],
            seeds=1,
            training={"epochs": 1, "max_length": 48, "validation_rows": 16, "head_start": start},
            evaluation={"rows": 32, "free_generation": False, "forgetting": False, "inference_cost": False},
            output=str(tmp_path),
        ).run()
        (record,) = results.done()
        return record.id, float(record.training.history[0].validation_loss or 0.0)

    fresh, probe = run("fresh"), run("probe")
    assert fresh[0] != probe[0]
    assert probe[1] < fresh[1], "after one epoch at the default rate the solved head is ahead"
