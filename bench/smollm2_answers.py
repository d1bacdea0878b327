"""One adapter, four ways to ask it greedily: is the text the same?

    python bench/smollm2_answers.py studies/tuned/trials/ID/adapter [--data-root ../shared/data] [--rows 200]

predict     free answers, as evaluation and `dollartune predict` make them
server      requests to `/v1/chat/completions`, several at a time
merged      `export --format merged`, loaded and asked by transformers alone: `apply_chat_template` and `generate`
peft        `export --format peft`, loaded by the peft library, asked in the same way (where peft is installed)

Prints on how many rows each gives predict's text; exit code 1 where one does not on all. Weights are fp32 throughout: in bf16
two tokens may tie.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dollartune.backbones.chat import end_tokens
from dollartune.backbones.locate import resolve
from dollartune.evaluate.generation import generate_texts
from dollartune.export.merged import write_merged
from dollartune.export.opening import open_adapter
from dollartune.export.peft_format import write_peft
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.tasks.registry import load_task

TOKENS = 8
"""Of an answer: label words have one or two, and what follows them must be the end."""
AT_A_TIME = 8


def by_server(opened: Any, folder: Path, questions: list[str], system: str) -> list[str]:
    """Answers of the server to chat requests, in order."""
    from fastapi.testclient import TestClient

    from dollartune.serve.app import create_app

    service = build_service(
        opened.backbone.name, {"mine": folder}, Limits(batch_rows=AT_A_TIME, new_tokens=TOKENS), None
    )
    turns = [{"role": "system", "content": system}] if system else []
    with TestClient(create_app(service)) as client:

        def ask(question: str) -> str:
            body = {"model": "mine", "messages": [*turns, {"role": "user", "content": question}]}
            answer = client.post("/v1/chat/completions", json={**body, "max_tokens": TOKENS, "temperature": 0})
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"]).strip()

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return list(pool.map(ask, questions))


@torch.no_grad()
def by_transformers(model: Any, tokenizer: Any, questions: list[str], system: str, ends: list[int]) -> list[str]:
    """Greedy answers, one question after the other, with nothing of ours."""
    texts = []
    for question in questions:
        turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": TOKENS, "do_sample": False}
        tokens = model.generate(ids, **given, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        texts.append(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=200)
    given = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened = open_adapter(given.adapter)
    opened.backbone.model.float()
    task = opened.task
    rows = load_task(task.name, given.data_root).splits(None, 0, given.rows).test
    questions = [task.prompt(row) for row in rows]
    encoded = opened.encoder.encode(task, rows)
    ends = sorted(end_tokens(opened.backbone))
    expected = generate_texts(opened.backbone, opened.attached, opened.name, encoded, TOKENS)
    found = {"server": by_server(opened, given.adapter, questions, task.system)}
    adapter = opened.attached.adapters[opened.name]
    opened.attached.detach()
    with tempfile.TemporaryDirectory() as room:
        write_merged(Path(room) / "merged", opened.backbone, adapter)
        tokenizer = AutoTokenizer.from_pretrained(Path(room) / "merged")
        merged = AutoModelForCausalLM.from_pretrained(Path(room) / "merged", dtype=torch.float32).eval()
        found["merged"] = by_transformers(merged, tokenizer, questions, task.system, ends)
        if importlib.util.find_spec("peft") is not None:
            from peft import PeftModel

            write_peft(Path(room) / "peft", opened.backbone, adapter)
            bare = AutoModelForCausalLM.from_pretrained(resolve(opened.backbone.name), dtype=torch.float32)
            tuned = PeftModel.from_pretrained(bare, Path(room) / "peft").eval()
            found["peft"] = by_transformers(tuned, tokenizer, questions, task.system, ends)
    for way, texts in found.items():
        same = sum(a == b for a, b in zip(texts, expected, strict=True))
        print(f"{way}: {same} of {len(expected)} texts are predict's")
        for question, a, b in [row for row in zip(questions, texts, expected, strict=True) if row[1] != row[2]][:3]:
            print(f"    {question[:60]!r}: {a!r}, predict {b!r}")
    print(f"for example {expected[0]!r}; {len(set(expected))} different texts")
    return int(any(texts != expected for texts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
