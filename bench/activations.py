"""Activation bytes that training saves per token and layer: LoRA r=8 on all linears, dropout 0.05, bf16, OPT-125m's shape.

    python bench/activations.py

Bytes are counted where autograd saves tensors, each storage once, parameters not at all. Two depths of one shape are
measured; their difference is what a layer costs, without embeddings and head. The floor is the frozen model itself, with
gradients flowing through it to its embeddings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from shapes import opt

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.backbones.loading import anatomy_of
from dollartune.methods.edits import Rows
from dollartune.methods.registry import build_method
from dollartune.train.micro_batch import SavedBytes

ROWS, TOKENS, DEPTHS = 4, 128, (2, 4)
BAR_KILOBYTES = 31.0


def _inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _floor(model: Any) -> int:
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    with SavedBytes(model.parameters()) as saved:
        model.base_model(**_inputs(), use_cache=False)
    return saved.bytes


def _ours(model: Any) -> int:
    attached = Attached(model, anatomy_of(model))
    adapter = attached.add("a", [build_method("lora(rank=8, dropout=0.05, where='all_linear')")])
    keep = torch.arange(ROWS), torch.full((ROWS,), TOKENS - 1)
    route = Assignment(adapter, slice(None), Rows(training=True, seed=1))
    with (
        fast_kernels(attached),
        attached.routed(route),
        SavedBytes([*model.parameters(), *adapter.parameters()]) as saved,
    ):
        attached(keep=keep, **_inputs())
    return saved.bytes


def _peft(model: Any) -> int:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    tuned = get_peft_model(model, LoraConfig(r=8, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM"))
    tuned.train()
    for module in tuned.modules():  # the backbone's own dropout off, as in the other two
        if isinstance(module, torch.nn.Dropout) and module.p != 0.05:
            module.p = 0.0
    tuned.base_model.model.model.decoder.dropout = 0.0
    for layer in tuned.base_model.model.model.decoder.layers:
        layer.dropout = 0.0
        layer.self_attn.dropout = 0.0
    tuned.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    with SavedBytes(tuned.parameters()) as saved:
        tuned.base_model.model.model(**_inputs(), use_cache=False)
    return saved.bytes


def kilobytes(count: Callable[[Any], int]) -> float:
    """kB (1,000 bytes) per token and layer."""
    few, many = (count(opt(layers=depth, dtype=torch.bfloat16)) for depth in DEPTHS)
    return (many - few) / (DEPTHS[1] - DEPTHS[0]) / (ROWS * TOKENS) / 1000


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """One row; `quick` leaves peft out, which takes long to import."""
    ours, floor = kilobytes(_ours), kilobytes(_floor)
    peer = None if quick else kilobytes(_peft)
    return [
        {
            "case": "saved activation kB per token and layer, bf16, all linears, LoRA r=8, dropout 0.05",
            "ours": ours,
            "peer": peer,
            "ratio": None if peer is None else peer / ours,
            "low": ours,
            "high": ours,
            "bar": f"at most {BAR_KILOBYTES:g} kB",
            "passed": ours <= BAR_KILOBYTES,
            "note": f"floor (frozen model) {floor:.1f} kB; exact counts, no spread",
        }
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(measure(parser.parse_args().quick), indent=2))
