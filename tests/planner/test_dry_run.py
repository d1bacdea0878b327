"""Passes on tensors without contents: what is exactly computable comes out exactly."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from dollartune.methods.registry import build_method
from dollartune.planner import op_trace as tracing
from dollartune.planner.dry_run import Bare, BatchShape, bare, dry_run_of
from dollartune.testing.tiny import meta_backbone
from dollartune.train.settings import TrainingSettings

SETTINGS = TrainingSettings()
KINDS = ("direct", "matrix")


def backbone(family: str, dtype: torch.dtype = torch.float32, quantize: str = "none") -> Bare:
    tiny = meta_backbone(family)
    return bare(copy.deepcopy(tiny.model).to(dtype), family, tiny.objective, quantize)


def weight_bytes(model: torch.nn.Module) -> int:
    storages = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    return sum(storages.values())


@pytest.mark.parametrize("family", ["opt", "t5", "llama"])
def test_weights_and_what_is_trained_are_exact(family: str) -> None:
    tiny = backbone(family, torch.bfloat16)
    with dry_run_of(tiny, [build_method("lora")], SETTINGS) as dry:
        assert dry.adapter is not None
        count = dry.adapter.count()
        found = dry.training_step(BatchShape(4, 12, 2))
    assert found.memory["weights"] == weight_bytes(tiny.model)
    assert found.memory["trained"] == 4 * count
    moments = found.memory["optimizer"]
    assert moments == 2 * 4 * count, "AdamW keeps two numbers in fp32 for each that is trained"


def test_full_tuning_holds_copies_gradients_and_moments() -> None:
    tiny = backbone("opt", torch.bfloat16)
    with dry_run_of(tiny, [build_method("full")], SETTINGS) as dry:
        assert dry.adapter is not None
        count = dry.adapter.count()
        found = dry.training_step(BatchShape(2, 4, 1))
    assert found.memory["trained"] == 4 * count
    assert found.memory["gradients"] == 4 * count
    assert found.memory["optimizer"] == 8 * count


def test_products_are_counted_as_two_operations_per_weight_and_token() -> None:
    tiny = backbone("opt")
    rows, tokens = 3, 10
    with dry_run_of(tiny, [], SETTINGS) as dry:
        found = dry.scoring(BatchShape(rows, tokens, 1), [1, 1])
    last = tiny.anatomy.layer_counts["decoder"] - 1
    # of the last layer one token of each row is computed, but for its keys and values
    read = ("self_attn.q", "self_attn.o", "mlp.up", "mlp.down")
    linears = sum(
        s.in_features * s.out_features * (1 if s.layer == last and s.role in read else tokens)
        for s in tiny.anatomy.sites
        if s.kind == "linear"
    )
    head = tiny.anatomy.at("head")[0]
    expected = 2 * rows * linears + 2 * rows * head.in_features * head.out_features
    matrix = sum(k.flops * n for k, n in found.work.calls.items() if k.kind == "matrix")
    assert matrix == expected


def test_longer_inputs_and_more_rows_take_more() -> None:
    tiny = backbone("llama")
    with dry_run_of(tiny, [build_method("lora")], SETTINGS) as dry:
        small, long, many = (
            dry.training_step(shape) for shape in (BatchShape(2, 8, 1), BatchShape(2, 16, 1), BatchShape(4, 8, 1))
        )
    for larger in (long, many):
        assert larger.memory["activations"] > small.memory["activations"]
        assert larger.work.flops > small.work.flops
    assert small.memory["weights"] == long.memory["weights"]


def test_micro_batches_need_less_memory_for_the_same_products() -> None:
    tiny = backbone("opt")
    whole = TrainingSettings()
    parts = TrainingSettings(micro_batch_size=2)
    found = []
    for settings in (whole, parts):
        with dry_run_of(tiny, [build_method("lora")], settings) as dry:
            found.append(dry.training_step(BatchShape(8, 16, 1)))
    assert found[1].memory["activations"] < found[0].memory["activations"]


def test_layers_below_the_lowest_trained_one_are_not_computed_again() -> None:
    tiny = backbone("opt")
    with dry_run_of(tiny, [build_method("lora(layers='last 1')")], SETTINGS) as dry:
        once, again = (dry.training_step(BatchShape(4, 12, 1), repeats=r) for r in (False, True))
    assert again.work.flops < 0.7 * once.work.flops


def test_four_bits_take_an_eighth_of_fp32() -> None:
    plain, packed = (backbone("llama", torch.float32, quantize) for quantize in ("none", "nf4"))
    linears = sum(s.in_features * s.out_features for s in plain.anatomy.sites if s.kind == "linear")
    saved = weight_bytes(plain.model) - weight_bytes(packed.model)
    assert saved == pytest.approx(linears * (4 - 0.516), rel=0.02)
    with dry_run_of(packed, [build_method("lora")], SETTINGS) as dry:
        assert dry.training_step(BatchShape(2, 8, 1)).memory["weights"] == pytest.approx(weight_bytes(packed.model))


def test_the_backbone_is_left_as_it_was() -> None:
    tiny = backbone("bert")
    hooks = [len(m._forward_hooks) for m in tiny.model.modules()]
    with dry_run_of(tiny, [build_method("lora"), build_method("head")], SETTINGS) as dry:
        dry.training_step(BatchShape(4, 12, 0))
    assert [len(m._forward_hooks) for m in tiny.model.modules()] == hooks


def test_images_and_writing() -> None:
    vision = backbone("vit")
    with dry_run_of(vision, [build_method("lora"), build_method("head")], SETTINGS) as dry:
        assert dry.training_step(BatchShape(4, 1, 0)).work.flops > 0
    writer = backbone("t5")
    with dry_run_of(writer, [build_method("lora")], SETTINGS) as dry:
        read, one = dry.writing(BatchShape(4, 12, 1), 8)
    assert 0 < one.flops < read.work.flops


class Forgetful(dict[Any, Any]):
    """Remembers nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        return


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *itertools.product(["opt"], ["lora(dropout=0.1)", "full", "prefix", "houlsby", "dora", "ia3"]),
        *itertools.product(["t5", "llama"], ["lora(dropout=0.1)", "prefix"]),
    ],
)
def test_what_is_remembered_of_kernels_equals_what_they_give(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    kept: dict[Any, Any] = {}
    for known in (Forgetful(), kept, kept):  # each time computed; computed and kept; as it was kept
        monkeypatch.setattr(tracing, "_KNOWN", known)
        with dry_run_of(backbone(family, torch.bfloat16), [build_method(method)], SETTINGS) as dry:
            found.append((dry.training_step(BatchShape(4, 12, 2)), dry.scoring(BatchShape(4, 12, 1), [1, 1])))
    assert kept
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_a_pass_has_the_kernels_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dollartune.attachment.fast.cpu_linear._gains", lambda weight, bias: not weight.requires_grad)
    flops = {}
    for device in ("cpu", "cuda"):
        with dry_run_of(backbone("opt"), [build_method("lora")], SETTINGS, device=device) as dry:
            work = dry.training_step(BatchShape(64, 64, 1)).work
        flops[device] = {kind: sum(k.flops * n for k, n in work.calls.items() if k.kind == kind) for kind in KINDS}
    assert flops["cpu"]["direct"] > flops["cpu"]["matrix"] > 0
    assert flops["cuda"]["direct"] == 0
    assert sum(flops["cpu"].values()) == flops["cuda"]["matrix"]


def test_what_onednn_compiles_is_counted_once_for_each_unlike_product() -> None:
    tracer = tracing.Tracer()
    with tracer, torch.device("meta"):
        for dtype, rows in ((torch.bfloat16, 4), (torch.bfloat16, 6), (torch.bfloat16, 4), (torch.float32, 5)):
            torch.empty(rows, 8, dtype=dtype) @ torch.empty(8, 16, dtype=dtype)
    assert tracer.compiled_bytes() == 2 * tracing.COMPILED_BYTES, (
        "of 4 and of 6 rows; what is called again is there, and fp32 products of torch go to MKL"
    )


def test_a_step_holds_the_kernels_of_the_last_layer_as_it_is_made() -> None:
    shape, found = BatchShape(4, 12, 2), {}
    tiny = backbone("opt", torch.bfloat16)
    for device in ("cpu", "cuda"):
        with dry_run_of(tiny, [build_method("lora")], SETTINGS, device=device) as dry:
            found[device] = dry.training_memory(shape)
    with dry_run_of(tiny, [build_method("lora")], SETTINGS) as dry, dry.attached.changed(whole_last_layer=True):
        whole = dry.training_memory(shape)
    assert found["cpu"]["activations"] == whole["activations"]
    assert found["cpu"]["kernels"] > whole["kernels"] > 0, (
        "the last layer's products are of fewer rows, unlike the others'"
    )
    assert not found["cuda"].get("kernels"), "a GPU's kernels come compiled"
