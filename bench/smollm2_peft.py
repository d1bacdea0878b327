"""LoRA on SmolLM2 by the peft library and the transformers Trainer, on the rows of a study, beside what DollarTune reached.

    dollartune run examples/smollm2/tuned.yaml --data-root ../shared/data
    python bench/smollm2_peft.py studies/tuned [--data-root ../shared/data] [--task sst2] [--seeds 0 1 2]

The same training rows, prompts, template, answers, rank, alpha, sites, learning rate, epochs and batch size; theirs are the order
of rows, the schedule's rounding and all code. Test rows are scored by plain transformers (`smollm2_plain.plain_choices`). Prints
the accuracies of both sides and the standard error of their difference on the same rows.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers import collate
from smollm2_plain import plain_choices

from dollartune.backbones.locate import resolve
from dollartune.study.api import open_study
from dollartune.study_file import load_study
from dollartune.tasks.registry import load_task

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tuned_by_peft(
    path: str, tokenizer: Any, task: Any, rows: list[Any], training: Any, method: dict[str, Any], seed: int
) -> Any:
    """The model after peft's LoRA and the Trainer, loss on the answer and the mark that ends its turn."""
    import peft
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(seed)
    wide = (
        torch.bfloat16
        if training.precision != "fp32" and torch.backends.cpu.get_cpu_capability() == "AVX512"
        else torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=wide)
    config = peft.LoraConfig(
        r=method.get("rank", 8), lora_alpha=method.get("alpha", 16), target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, config)
    examples = []
    for row in rows:
        turns = [{"role": "user", "content": task.prompt(row)}]
        question = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        answer = tokenizer(task.answer(row) + "<|im_end|>", add_special_tokens=False).input_ids
        ids = [*question, *answer]
        examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(question) + answer})
    with tempfile.TemporaryDirectory() as room:
        arguments = TrainingArguments(
            output_dir=room, num_train_epochs=training.epochs, per_device_train_batch_size=training.batch_size,
            learning_rate=method["lr"], warmup_ratio=training.warmup, lr_scheduler_type="linear", weight_decay=0.0,
            seed=seed, save_strategy="no", report_to=[], use_cpu=True, logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collate).train()  # type: ignore[arg-type]
    return model.float().eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study that has run examples/smollm2/tuned.yaml")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    from transformers import AutoTokenizer

    settings, results = load_study(given.study / "study.yaml"), open_study(str(given.study))
    path = resolve(settings.backbones[0].name)
    tokenizer = AutoTokenizer.from_pretrained(path)
    spec = next(one for one in settings.tasks if (one if isinstance(one, str) else one["preset"]) == given.task)
    task = load_task(spec, given.data_root)
    splits = task.splits(settings.scales[0], settings.data_seed, settings.evaluation.rows)
    for seed in given.seeds:
        record = next(
            r
            for r in results.done()
            if r.trial.task == task.name and r.trial.seed == seed and r.trial.methods[0]["method"] == "lora"
        )
        ours = {row["example_id"]: row["correct"] for row in results.predictions(record.id)}
        model = tuned_by_peft(
            str(path), tokenizer, task, list(splits.train), settings.training, record.trial.methods[0], seed
        )
        theirs = plain_choices(model, tokenizer, task, list(splits.test))
        pairs = [(ours[row.id], choice == row.label) for row, choice in zip(splits.test, theirs, strict=True)]
        mine, other = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
        error = math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / len(pairs)
        print(
            f"{task.name}, seed {seed}: {mine:.3f} by DollarTune, {other:.3f} by peft; {mine - other:+.3f} ± {error:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
