"""lm-eval's `local-completions`: a multiple-choice task of local rows, scored through the server.

    python client_lm_eval.py http://127.0.0.1:8000/v1 MODEL ROWS.jsonl PROMPT LABEL_WORDS OUT.json

PROMPT has Jinja's fields (`{{text}}`); LABEL_WORDS is JSON, label -> word. Writes which label each row got.
"""

from __future__ import annotations

import json
import sys

import lm_eval


def main(base_url: str, model: str, rows: str, prompt: str, label_words: str, out: str) -> None:
    words = json.loads(label_words)
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": rows}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": prompt,
        "doc_to_choice": list(words.values()),
        "doc_to_target": "{{" + json.dumps(list(words)) + ".index(label)}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    }
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": model, "base_url": f"{base_url}/completions", "num_concurrent": 4, "max_length": 512},
        tasks=[task],
        batch_size=8,
        log_samples=True,
        bootstrap_iters=0,
    )
    chosen = {}
    for sample in found["samples"]["local"]:
        scores = [float(one[0]) for one in sample["filtered_resps"]]
        chosen[sample["doc_id"]] = list(words)[scores.index(max(scores))]
    accuracy = found["results"]["local"]["acc,none"]
    with open(out, "w", encoding="utf8") as file:
        json.dump({"accuracy": accuracy, "predicted": [chosen[i] for i in sorted(chosen)]}, file)


if __name__ == "__main__":
    main(*sys.argv[1:7])
