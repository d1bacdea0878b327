"""A study's folder made up for tests: records and predictions as a run writes them, without training anything."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dollartune.budget.ledger import Ledger
from dollartune.evaluate.evaluation import Prediction
from dollartune.metrics import breakdown
from dollartune.study.results import Results
from dollartune.study_file import load_study
from dollartune.trials.record import RECORD_VERSION, record_of
from dollartune.trials.store import Store

LABELS = ("world", "sports", "business", "sci/tech")
PRICE = 2.9


@dataclass(frozen=True)
class Made:
    """One method of a made-up study."""

    label: str
    skill: float
    """Share of answers that will be right."""
    trainable: int = 10_000
    seconds: float = 30.0
    group: str = ""
    ablation: Mapping[str, str] | None = None
    baseline: bool = False

    @property
    def method(self) -> str:
        return self.group or self.label.split("(")[0]


METHODS = (
    Made("zero_shot", 0.30, 0, 4.0),
    Made("full", 0.84, 260_000, 60.0),
    Made("lora(rank=2)", 0.80, 2_240, 33.0),
    Made("lora(rank=8)", 0.83, 8_960, 35.0),
    Made("bitfit", 0.79, 3_000, 25.0),
    Made("prompt(tokens=16)", 0.55, 1_024, 40.0),
)


@dataclass(frozen=True)
class MadeStudy:
    """What to make up."""

    methods: Sequence[Made] = METHODS
    tasks: Sequence[str] = ("ag_news",)
    scales: Sequence[int | None] = (100,)
    seeds: int = 3
    rows: int = 120
    kind: str = "classification"
    labels: Sequence[str] = LABELS
    price: float = PRICE
    failures: Sequence[tuple[str, str, str]] = ()
    """(method label, class, message)."""
    predictions: bool = True
    free_generation: bool = True
    hostile: str = ""
    """Text that a model is made to write everywhere."""
    budget: Mapping[str, Any] | None = field(
        default_factory=lambda: {"dollars": 1.0, "per": "method", "price": "2.9/h"}
    )
    history: int = 8


def make_study(folder: Path, made: MadeStudy | None = None) -> Results:
    """Writes a study's folder and opens it."""
    made = made or MadeStudy()
    store = Store(folder)
    names = list(dict.fromkeys(method.method for method in made.methods))
    asked: dict[str, Any] = {
        "backbone": "tiny-decoder",
        "tasks": list(made.tasks),
        "seeds": made.seeds,
        "search": False,
    }
    asked |= {"methods": names or ["full"], "scales": ["all" if scale is None else scale for scale in made.scales]}
    settings = load_study({**asked, "budget": dict(made.budget)} if made.budget else asked)
    with Ledger(price_per_hour=made.price, path=store.ledger, heartbeat_seconds=0) as ledger:
        ledger.add("load", 3.0)
        for task in made.tasks:
            for scale in made.scales:
                for method in made.methods:
                    seeds = 1 if method.trainable == 0 else made.seeds
                    for seed in range(seeds):
                        _write_trial(store, ledger, made, method, task, scale, seed)
        for label, kind, message in made.failures:
            _write_failure(store, made, label, kind, message)
    trials = [record.id for record in store.records()]
    store.create(settings.model_dump_json(indent=1, exclude={"output"}), trials)
    return Results(store)


def _trial(made: MadeStudy, method: Made, task: str, scale: int | None, seed: int) -> dict[str, Any]:
    return {
        "backbone": "tiny-decoder",
        "objective": "language",
        "methods": [{"method": method.method}],
        "group": method.method,
        **({"baseline": True} if method.baseline else {}),
        "label": method.label,
        "ablation": dict(method.ablation) if method.ablation else None,
        "task": task,
        "scale": scale,
        "seed": seed,
        "conditions": {},
    }


def _environment() -> dict[str, Any]:
    versions = {"dollartune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
    return {"versions": versions, "python": "3.11.7", "device": "a made-up machine", "threads": 2}


def _write_trial(
    store: Store, ledger: Ledger, made: MadeStudy, method: Made, task: str, scale: int | None, seed: int
) -> None:
    chance = random.Random(f"{task}/{scale}/{method.label}/{seed}")
    name = hashlib.sha256(f"{task}/{scale}/{method.label}/{seed}".encode()).hexdigest()[:12]
    seconds = method.seconds * (0.5 + (scale or 1000) / 200) * chance.uniform(0.9, 1.1)
    ledger.add("tune", seconds * 0.7, trial=name, method=method.method)
    ledger.add("evaluate", seconds * 0.3, trial=name, method=method.method)
    skill = min(0.97, method.skill + (0.05 if (scale or 1000) > 500 else 0.0)) * chance.uniform(0.97, 1.03)
    rows = _labelled(made, skill, chance) if made.kind == "classification" else _written(made, skill, chance)
    if made.kind == "classification":
        metric, score = "accuracy", sum(bool(row.correct) for row in rows) / len(rows)
        counts = breakdown([row.predicted for row in rows], made.labels)
    else:
        from dollartune import metrics

        metric, counts = "rougeL", {}
        score = metrics.get(metric).score([row.predicted for row in rows], [row.references for row in rows])
    written = breakdown([row.generated_label for row in rows], made.labels) if _free(made) else {}
    free_score = sum(row.generated_label == row.expected for row in rows) / len(rows)
    record: dict[str, Any] = {
        "version": RECORD_VERSION,
        "id": name,
        "trial": _trial(made, method, task, scale, seed),
        "status": "done",
        "metric": metric,
        "labels": list(made.labels) if made.kind == "classification" else [],
        "test": {
            "score": score,
            "scores": {metric: score},
            "breakdown": counts,
            "generation": {"scores": {metric: free_score} if _free(made) else {}, "breakdown": written},
            "examples": len(rows),
            "seconds": seconds * 0.3,
            "prompt_tokens": 120.0,
        },
        "validation": {"score": score - 0.01, "examples": 100},
        "training": _training(made, method, scale, seconds, chance) if method.trainable else None,
        "parameters": {
            "trainable": method.trainable,
            "total": 1_200_000,
            "modules": {f"decoder.{i}.self_attn.q": method.trainable // 4 for i in range(4)}
            if method.trainable
            else {},
        },
        "cost": {"seconds": seconds, "dollars": seconds * made.price / 3600, "price_per_hour": made.price},
        "environment": _environment(),
        "memory": {"peak_bytes": 600_000_000 if method.trainable else 0},
        "data": {"train": scale or 5000, "validation": 100, "test": len(rows), "shortened": 2},
    }
    tokens = 420.0 if method.method == "few_shot" else 120.0
    record["inference"] = {
        "requests": 8, "seconds": 0.004 * tokens / 100 * chance.uniform(1, 1.2), "alone_seconds": 0.012 * tokens / 100,
        "prompt_tokens": tokens, "virtual_tokens": 0,
    }  # fmt: skip
    if method.trainable:
        lost = method.trainable / 260_000 * chance.uniform(0.7, 0.9) + 0.02
        record["forgetting"] = {"before": 4.2, "after": 4.2 + lost, "tokens": 2_500}
        record["adapter"] = {"folder": "adapter", "bytes": 4 * method.trainable + 1000}
    store.write(name, record_of(record), rows if made.predictions else ())


def _free(made: MadeStudy) -> bool:
    return made.kind == "classification" and made.free_generation


def _labelled(made: MadeStudy, skill: float, chance: random.Random) -> list[Prediction]:
    hard = random.Random("how hard each test row is")
    rows = []
    for index in range(made.rows):
        expected = made.labels[index % len(made.labels)]
        right = 0.7 * hard.random() + 0.3 * chance.random() < skill
        predicted = expected if right else chance.choice([label for label in made.labels if label != expected])
        sure = chance.uniform(0.5, 0.99)
        spread = {label: (1 - sure) / max(1, len(made.labels) - 1) for label in made.labels}
        said = made.hostile or (predicted if chance.random() < skill else "I do not know")
        rows.append(
            Prediction(
                f"test/{index}", predicted, expected, right, {**spread, predicted: sure},
                said if made.free_generation else None, said if said in made.labels else None,
            )
        )  # fmt: skip
    return rows


def _written(made: MadeStudy, skill: float, chance: random.Random) -> list[Prediction]:
    words = (
        "a pub by the river",
        "cheap Italian food",
        "near the old mill",
        "families are welcome",
        "rated five of five",
    )
    rows = []
    for index in range(made.rows):
        reference = f"{words[index % 5]}, {words[(index + 1) % 5]}, {words[(index + 2) % 5]}"
        kept = [word if chance.random() < skill else "thing" for word in reference.split()]
        text = made.hostile or " ".join(kept)
        rows.append(Prediction(f"test/{index}", text, reference, generated=text, references=(reference,)))
    return rows


def _training(
    made: MadeStudy, method: Made, scale: int | None, seconds: float, chance: random.Random
) -> dict[str, Any]:
    history, best = [], (9.9, 0)
    for step in range(1, made.history + 1):
        loss = 0.4 + 2.0 * 0.6 ** (step * method.skill * 2) + 0.02 * max(0, step - 5) + chance.uniform(0, 0.05)
        point = {"epoch": float(step), "step": step, "seconds": seconds * 0.7 * step / made.history}
        history.append({**point, "train_loss": loss * 0.9, "validation_loss": loss})
        best = min(best, (loss, step))
    at = history[best[1] - 1]
    return {
        "steps": made.history, "examples": (scale or 5000) * made.history, "tokens": 1000, "seconds": seconds * 0.7,
        "stopped": "finished", "best_validation_loss": best[0], "best_epoch": at["epoch"], "best_step": best[1],
        "best_seconds": at["seconds"], "history": history,
    }  # fmt: skip


def _write_failure(store: Store, made: MadeStudy, label: str, kind: str, message: str) -> None:
    method = Made(label, 0.0)
    record = {
        "version": RECORD_VERSION,
        "id": f"failed-{label}",
        "trial": _trial(made, method, made.tasks[0], made.scales[0], 0),
        "status": "failed",
        "error": {"class": kind, "message": message, "traceback": None},
        "cost": {"seconds": 2.0, "dollars": 2.0 * made.price / 3600, "price_per_hour": made.price},
        "environment": _environment(),
    }
    store.write(str(record["id"]), record_of(record))
