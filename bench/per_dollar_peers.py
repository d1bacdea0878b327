"""The competitors of `bench/per_dollar.py`: what anyone would do with the same rows and the same seconds.

    python bench/per_dollar_peers.py NAME FOLDER --model MODEL --seconds 120 [--format bf16]

FOLDER holds train.jsonl, test.jsonl and meta.json (columns, label). The process prints one JSON line: score on the test
rows, seconds from its start to a usable model, what was reached. The clock starts when the process does, so importing
libraries and loading the model count, as they do for `dollartune tune`. Scoring the test rows does not count.

They were written down before the first run and are not tuned to the grid:

| name | what |
|---|---|
| tfidf | words and pairs of words, sublinear; logistic regression, C of {0.1, 1, 10, 100} by five-fold cross-validation |
| frozen | mean-pooled last layer (images: its first token), logistic regression with the same C by the same folds |
| lora_default | peft's LoraConfig as it comes (r 8, alpha 8, its default target modules), the learning rate 1e-3 of peft's own
  quick tour, transformers' Trainer as it comes (3 epochs, batches of 8, linear decay) |
| lora_all | the same on all linear layers, at the rate that was best on MNLI, which is not in the grid |
| full | full tuning with the Trainer at 1e-4, otherwise as it comes |

Weights are read as fp32, whatever they are stored in (transformers keeps that otherwise, and a processor takes ten times as
long in fp16); `--format bf16` computes in bf16, as ours does.

Each runs once and is stopped at the wall clock; what it holds then is scored. One that holds nothing predicts the class
that is most frequent among the training rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

C_VALUES = (0.1, 1.0, 10.0, 100.0)
FOLDS = 5
LORA_RATE = 1e-3
LORA_ALL_RATE = 1e-3
"""Best of 3e-4 (0.345), 1e-3 (0.482) and 3e-3 (0.325) on 1,024 rows of MNLI with MiniLM in 120 s:
`python bench/per_dollar.py --rate`."""
FULL_RATE = 1e-4
MAX_LENGTH = 256
"""What all-MiniLM advises; longer texts are cut, for every competitor alike."""
NAMES = ("tfidf", "frozen", "lora_default", "lora_all", "full")


def process_start() -> float:
    """Seconds since the epoch at which this process began, interpreter included."""
    import psutil

    return float(psutil.Process(os.getpid()).create_time())


class Data:
    """Rows of a cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_text())
        self.columns: list[str] = meta["columns"]
        self.label: str = meta["label"]
        self.image: str | None = meta.get("image")
        self.metric: str = meta["metric"]
        self.train = [json.loads(line) for line in (folder / "train.jsonl").open(encoding="utf8")]
        self.test = [json.loads(line) for line in (folder / "test.jsonl").open(encoding="utf8")]
        self.classes = sorted({str(row[self.label]) for row in self.train})

    def labels(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        return [self.classes.index(str(row[self.label])) for row in rows]

    def joined(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        return ["\n".join(str(row[column]) for column in self.columns) for row in rows]

    def majority(self) -> int:
        return Counter(self.labels(self.train)).most_common(1)[0][0]

    def pictures(self, rows: Sequence[dict[str, Any]]) -> list[Any]:
        from PIL import Image

        return [Image.open(self.folder / str(row[self.image])).convert("RGB") for row in rows]


def score(data: Data, predicted: Sequence[int]) -> float:
    """Accuracy, or Matthews' correlation."""
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    truth = data.labels(data.test)
    return float(matthews_corrcoef(truth, predicted) if data.metric == "matthews" else accuracy_score(truth, predicted))


def logistic(features: Any, labels: Sequence[int]) -> Any:
    """Logistic regression with C by five-fold cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": list(C_VALUES)}, cv=FOLDS)
    return search.fit(features, labels)


def tfidf(data: Data, _: argparse.Namespace) -> tuple[Any, str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = logistic(vectors.fit_transform(data.joined(data.train)), data.labels(data.train))
    return lambda: model.predict(vectors.transform(data.joined(data.test))), f"C {model.best_params_['C']:g}"


def frozen(data: Data, given: argparse.Namespace) -> tuple[Any, str]:
    import torch

    if data.image:
        from transformers import AutoImageProcessor, AutoModel

        processor, model = (
            AutoImageProcessor.from_pretrained(given.model),
            AutoModel.from_pretrained(given.model, dtype=torch.float32).eval(),
        )

        @torch.no_grad()
        def features(rows: Sequence[dict[str, Any]]) -> Any:
            out = []
            for start in range(0, len(rows), 32):
                batch = processor(images=data.pictures(rows[start : start + 32]), return_tensors="pt")
                with torch.autocast("cpu", torch.bfloat16, enabled=given.format == "bf16"):
                    out.append(model(**batch).last_hidden_state[:, 0].float())
            return torch.cat(out).numpy()
    else:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(given.model)
        model = AutoModel.from_pretrained(given.model, dtype=torch.float32).eval()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        @torch.no_grad()
        def features(rows: Sequence[dict[str, Any]]) -> Any:
            texts = data.joined(rows)
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            out: list[Any] = [None] * len(texts)
            for start in range(0, len(order), 32):
                at = order[start : start + 32]
                batch = tokenizer(
                    [texts[i] for i in at], padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
                )
                with torch.autocast("cpu", torch.bfloat16, enabled=given.format == "bf16"):
                    states = model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"][..., None]
                for i, vector in zip(at, (states * mask).sum(1) / mask.sum(1), strict=True):
                    out[i] = vector
            return torch.stack(out).numpy()

    model_of = logistic(features(data.train), data.labels(data.train))
    return lambda: model_of.predict(features(data.test)), f"C {model_of.best_params_['C']:g}"


def trained(data: Data, given: argparse.Namespace) -> tuple[Any, str]:
    """The Trainer's three ways."""
    import tempfile

    import torch
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    classes = len(data.classes)
    if data.image:
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(given.model)
        model = AutoModelForImageClassification.from_pretrained(
            given.model, num_labels=classes, ignore_mismatched_sizes=True, dtype=torch.float32
        )

        def encode(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            pixels = processor(images=data.pictures(rows), return_tensors="pt")["pixel_values"]
            return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, data.labels(rows), strict=True)]

        collator = None
    else:
        from transformers import AutoTokenizer, DataCollatorWithPadding

        tokenizer = AutoTokenizer.from_pretrained(given.model)
        model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=classes, dtype=torch.float32)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id

        def encode(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            columns = [[str(row[column]) for row in rows] for column in data.columns[:2]]
            encoded = tokenizer(*columns, truncation=True, max_length=MAX_LENGTH)
            return [
                {**{key: values[i] for key, values in encoded.items()}, "labels": label}
                for i, label in enumerate(data.labels(rows))
            ]

        collator = DataCollatorWithPadding(tokenizer)
    if given.name != "full":
        from peft import LoraConfig, TaskType, get_peft_model

        defaults = (
            None if AutoConfig.from_pretrained(given.model).model_type in ("bert", "llama") else ["q_proj", "v_proj"]
        )
        targets = "all-linear" if given.name == "lora_all" else defaults  # peft knows no default for every family
        heads = ["score"] if hasattr(model, "score") else ["classifier"]
        kind = None if data.image else TaskType.SEQ_CLS
        model = get_peft_model(model, LoraConfig(task_type=kind, target_modules=targets, modules_to_save=heads))
    rate = given.rate or {"lora_default": LORA_RATE, "lora_all": LORA_ALL_RATE, "full": FULL_RATE}[given.name]
    deadline = process_start() + given.seconds

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = control.should_training_stop or time.time() >= deadline
            return control

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, learning_rate=rate, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
            use_cpu=True, bf16=given.format == "bf16", dataloader_pin_memory=False, remove_unused_columns=False,
            seed=given.seed,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=encode(data.train), data_collator=collator, callbacks=[Stop()]
        )
        trainer.train()
        epochs = trainer.state.epoch or 0.0

        def predict() -> Any:
            with torch.no_grad():
                return trainer.predict(encode(data.test)).predictions.argmax(-1)

        return predict, f"{epochs:.1f} epochs, rate {rate:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--format", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rate", type=float, help="instead of the one written down")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = process_start()
    data = Data(given.folder)
    predict, reached = {"tfidf": tfidf, "frozen": frozen}.get(given.name, trained)(data, given)
    seconds = time.time() - started
    late = given.name in ("tfidf", "frozen") and seconds > given.seconds  # nothing to use at the stop
    predicted = [data.majority()] * len(data.test) if late else [int(one) for one in predict()]
    print(
        json.dumps(
            {
                "score": score(data, predicted),
                "seconds": min(seconds, given.seconds) if late else seconds,
                "reached": f"not ready in time ({seconds:.0f} s)" if late else reached,
                "right": [int(p == t) for p, t in zip(predicted, data.labels(data.test), strict=True)],
                "predicted": predicted,
            }
        )
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
