"""Backbones whose rows cannot share a cache (state-space layers, short convolutions): each answer equals its answer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_engine import METHODS, Caught, alone, ask, write_adapters

from dollartune.backbones.loading import load_backbone
from dollartune.serve.limits import Limits
from dollartune.serve.row_by_row import RowByRowBatch
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.service import Service
from dollartune.testing.directory import write_tiny
from dollartune.testing.tiny import END, PAD, VOCABULARY

MARKS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "pad_token_id": PAD, "eos_token_id": END}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "states alone": lambda: transformers.MambaConfig(**MARKS, hidden_size=32, num_hidden_layers=2, state_size=8),
    "states and keys": lambda: transformers.Lfm2Config(
        **MARKS, **WIDTH, num_hidden_layers=2, layer_types=["conv", "full_attention"], initializer_range=0.2
    ),
}
STEPPED: dict[str, Any] = {
    **CONFIGS,
    "mamba2": lambda: transformers.Mamba2Config(
        **MARKS, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8
    ),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**MARKS, hidden_size=32, num_hidden_layers=2, state_size=8),
    "jamba": lambda: transformers.JambaConfig(
        **MARKS, **WIDTH, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=2, num_experts_per_tok=1,
        mamba_d_state=8, use_mamba_kernels=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_goes_on_from_what_is_kept_as_if_all_were_read_anew(name: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")  # for its tokenizer
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(STEPPED[name]()).save_pretrained(folder)
    backbone = load_backbone(str(folder))
    service = Service(backbone, "base", Limits(), tmp_path)
    for adapter, path in write_adapters(backbone, tmp_path / "adapters", {"prompt": METHODS["prompt"]}).items():
        service.add_now(adapter, path)
    attached = service.pool.attached
    batch = RowByRowBatch(service.pool, frozenset())
    for served in (None, service.pool.get("prompt")):
        row = Sequence(served, tuple(range(5, 15)), Sampling(max_tokens=9), Caught(), backbone.processor, 0.0)
        batch.begin([row])
        batch.read(100)
        while row.finished is None:
            written = torch.tensor([[*row.prompt, *row.tokens]])
            lengths = torch.tensor([len(row.prompt)])
            with torch.no_grad(), attached.routed(None if served is None else "prompt", batch_rows=1):
                whole = attached(input_ids=written, attention_mask=torch.ones_like(written), prompt_lengths=lengths)
            with torch.inference_mode():
                logits = batch._go_on(row)
            torch.testing.assert_close(logits[0], whole.logits[0, -1], atol=1e-4, rtol=1e-4)
            row.append(int(logits.argmax()), frozenset(), logits[0])
        batch.leave()


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_come_and_go_equal_alone(name: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")  # for its tokenizer
    torch.manual_seed(0)  # other weights may have two tokens that are equally likely within rounding
    transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(folder)
    backbone = load_backbone(str(folder))
    assert not backbone.anatomy.rows_join
    service = Service(backbone, "base", Limits(batch_rows=4, new_tokens=40), tmp_path)
    linears = {"lora_a": METHODS["lora_a"], "prompt": METHODS["prompt"]}
    if name == "states alone":  # no attention to edit by default
        linears = {"prompt": METHODS["prompt"]}
    for adapter, path in write_adapters(backbone, tmp_path / "adapters", linears).items():
        service.add_now(adapter, path)
    service.engine.start()
    try:
        names = ["base", *linears]
        asked = []
        for index in range(7):
            model, tokens = names[index % len(names)], 3 + (5 * index) % 7
            prompt = " ".join(f"w{(7 * index + j) % 80}" for j in range(2 + index % 5))
            asked.append((model, prompt, tokens, ask(service, model, prompt, max_tokens=tokens)))
        for *_, caught in asked:
            assert caught.done.wait(60)
            assert caught.reason in ("stop", "length")
        expected = service.engine.call(lambda: [alone(service, m, p, n) for m, p, n, _ in asked]).result(60)
        assert [caught.text for *_, caught in asked] == expected
        assert isinstance(service.engine._kind(service.pool, frozenset()), RowByRowBatch)
        scored = ask(service, "base", "w1 w2 w3", max_tokens=2, logprobs=1, echo=True)
        assert scored.done.wait(60)
        assert scored.reason in ("stop", "length")
    finally:
        service.engine.stop(1.0)
