"""What `attach` returns is trained by a plain loop, by accelerate and by transformers' Trainer; and comes off without a trace."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune import attach, load_backbone
from dollartune.errors import UserError
from dollartune.methods import IA3, LoRA, PromptTuning
from dollartune.testing.tiny import tiny_backbone


@pytest.fixture
def model() -> Any:
    # Of its own: training modes and dtypes of a shared one would reach other tests.
    return copy.deepcopy(tiny_backbone("llama").model)


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.arange(rows * 6).reshape(rows, 6) % 20 + 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def trained(tuned: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", [LoRA(rank=2), IA3(), PromptTuning(tokens=3)], ids=repr)
def test_a_plain_loop_trains_the_adapter_alone(model: Any, method: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = attach(model, method)
    assert isinstance(tuned, torch.nn.Module)
    names = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert names
    assert all(name.startswith("adapters.") for name in names)
    assert tuned.trainable_parameters() == sum(p.numel() for p in tuned.adapter.parameters())
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    tuned.train()
    losses = []
    for _ in range(4):
        loss = tuned(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not tuned.eval().training
    assert tuned.detach() is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_transformers_trainer_trains_and_saves_it(model: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    tuned = attach(model, LoRA(rank=2))
    before = trained(tuned)
    rows = [{key: value[0] for key, value in batch(1).items()} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], save_steps=2, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=tuned, args=arguments, train_dataset=rows).train()
    after = trained(tuned)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert set(tuned.state_dict()) == {name.removeprefix("adapters.") for name in after}


def test_accelerate_prepares_it(model: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    tuned = attach(model, LoRA(rank=2))
    before = trained(tuned)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(
        tuned, torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    )
    accelerator.backward(prepared(**batch()).loss)
    optimizer.step()
    assert any(not torch.equal(before[name], tensor) for name, tensor in trained(tuned).items())


def test_saved_and_filled_again_it_answers_the_same(model: Any, tmp_path: Path) -> None:
    tuned = attach(model, LoRA(rank=2), seed=1)
    with torch.no_grad():
        for parameter in tuned.adapter.parameters():
            parameter.add_(0.1)
    expected = tuned(**batch()).logits
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.detach()
    again = attach(model, LoRA(rank=2)).load_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**batch()).logits, expected)
    state = again.state_dict()
    again.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})
    assert not torch.equal(again(**batch()).logits, expected)
    again.detach()
    with pytest.raises(UserError, match="attached is"):
        attach(model, LoRA(rank=4)).load_pretrained(tmp_path / "adapter")


def test_what_it_shows_of_itself(model: Any) -> None:
    tuned = attach(model, LoRA(rank=2))
    shown = repr(tuned)
    assert "LoRA(rank=2)" in shown
    assert "parameters are trained" in shown
    assert tuned.config is model.config
    # what is not a module's is that of the attachment
    with tuned.routed(None):
        assert tuned.attached.state.route[0].adapter is None
    assert tuned.to(torch.float64).device.type == "cpu"
    assert next(tuned.adapter.parameters()).dtype == torch.float64


def test_a_copy_is_refused_as_it_would_answer_with_the_original_adapter(model: Any) -> None:
    tuned = attach(model, LoRA(rank=2))
    with pytest.raises(UserError, match="cannot be copied"):
        copy.deepcopy(tuned)
    tuned.detach()


def test_what_cannot_be_attached_is_told(model: Any) -> None:
    for given, told in (
        ((), "no method is given, so nothing would be trained"),
        (("lora",), "attach takes methods, one after another; got 'lora'"),
        ((LoRA,), "attach takes methods, one after another; got <class"),
        (([LoRA(rank=2)],), "attach takes methods, one after another; got [LoRA"),
    ):
        with pytest.raises(UserError) as caught:
            attach(model, *given)  # type: ignore[arg-type]
        assert told in caught.value.message
        assert "LoRA(rank=8)" in str(caught.value.hint)
    for wrong, told in (
        ("tiny-encoder", "got str."),
        (torch.nn.Linear(2, 2), "got Linear."),
        (load_backbone("tiny-encoder"), "got Backbone (its `.model` is one)."),
    ):
        with pytest.raises(UserError) as caught:
            attach(wrong, LoRA(rank=2))  # type: ignore[arg-type]
        assert caught.value.message.endswith(told)
