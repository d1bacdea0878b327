"""Trains one text backbone: a schedule over time, Muon and AdamW, averaged weights; resumes after a kill."""

from __future__ import annotations

import ctypes
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pretrain.models import distance_bias, fast_tokenizer, new_model, write_backbone
from pretrain.objectives import Causal, Masked, Spans, batches
from pretrain.prepare import functions

EVALUATE_EVERY = 240.0  # seconds; also saves the state and exports the averaged weights


def keep_freed_memory() -> None:
    """Tells glibc not to hand freed activations back to the kernel at every step; nothing elsewhere."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def warm_start(model: Any, path: Path) -> None:
    """Gives the encoder and the seq2seq model the decoder's token embeddings, as far as it is trained by now.

    T5 as it is drawn has embeddings of size one, which AdamW moves too slowly; so its matrices start small and its last
    norm makes up for the factor d_model^-1/2 before the tied output.
    """
    kind = model.config.model_type
    if kind == "llama" or not path.exists():
        return
    table = torch.load(path, weights_only=True)["average"]["model.embed_tokens.weight"]
    with torch.no_grad():
        if kind == "t5":
            for name, value in model.named_parameters():
                if value.ndim == 2:
                    value.normal_(std=0.0025 if name.endswith(".q.weight") else 0.02)
            for stack, both_ways in ((model.encoder, True), (model.decoder, False)):
                bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
                bias.copy_(distance_bias(*bias.shape, bidirectional=both_ways))
            model.decoder.final_layer_norm.weight.fill_(model.config.d_model**0.5)
        model.get_input_embeddings().weight.copy_(table)


class Trainer:
    """State of one run; everything that a resumed run needs is in the state file.

    Args:
        again: the log of an earlier run, whose exported weights are the start; settings under `again` in the config hold.
    """

    def __init__(
        self, name: str, config: dict[str, Any], work: Path, export: Path, threads: int, again: Path | None = None
    ) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.name, self.work, self.export, self.threads = name, work, export, threads
        self.settings = {**config["text"], **config["models"][name]}
        self.settings |= self.settings.pop("again", {}) if again is not None else {}
        self.sentinels = config["tokenizer"]["sentinels"]
        vocabulary = config["tokenizer"]["vocabulary"]
        self.model = new_model(name, vocabulary, self.sentinels)
        if again is None:
            warm_start(self.model, work / "tiny-decoder.state.pt")
        else:
            self.model.load_state_dict(
                type(self.model).from_pretrained(export / name, dtype=torch.float32).state_dict()
            )
        self.average = {key: value.detach().clone() for key, value in self.model.named_parameters()}
        self.tokenizer = fast_tokenizer(name, work / "tokenizer.json", self.sentinels)
        self.objective, self.heldout = (
            self._objective(np.load(work / f"{split}.npy"), vocabulary) for split in ("train", "heldout")
        )
        self.optimizers = self._optimizers()
        self.step = self.tokens = 0
        self.seconds = self.seconds_before = 0.0
        self.log: list[dict[str, float]] = []
        if again is not None:
            self.log = json.loads(again.read_text())["curve"]
            self.step, self.tokens = (int(self.log[-1][key]) for key in ("step", "tokens"))
            self.seconds_before = self.log[-1]["seconds"]
        self.path = work / f"{name}.state.pt"
        if self.path.exists():
            self._load()

    def _objective(self, ids: np.ndarray, vocabulary: int) -> Any:
        kinds = {"causal": Causal, "masked": Masked, "spans": Spans}
        options = {
            key: self.settings[key]
            for key in ("masked_share", "mixture_from", "causal_until", "tasks_from", "tasks_share", "answer_weight")
            if key in self.settings
        }
        return kinds[self.settings["objective"]](
            ids=ids,
            tasks=np.load(self.work / "tasks.npy"),
            vocabulary=vocabulary,
            functions=functions(self.work),
            tokenizer=self.tokenizer,
            **options,
        )

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        matrices, queries, others = [], [], []
        for key, value in self.model.named_parameters():
            apart = ("embed", "shared", "bias", "seq_relationship")
            hidden = value.ndim == 2 and not any(word in key for word in apart)
            (queries if hidden and key.endswith(".q.weight") else matrices if hidden else others).append(value)
        groups: list[dict[str, Any]] = [{"params": matrices, "scale": 1.0}]
        if queries:  # T5 does not divide its scores by the root of the head's width (8): its queries must stay small
            groups.append({"params": queries, "scale": 0.125})
        weight_decay = self.settings["weight_decay"]
        return [
            torch.optim.Muon(groups, lr=1.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def _clock(self) -> float:
        """Seconds of processor time per thread, so that a busy machine delays the schedule and does not cut it."""
        return time.process_time() / self.threads

    @property
    def progress(self) -> float:
        """Share of the training time that has passed."""
        return self.seconds / (60 * self.settings["minutes"])

    def factor(self) -> float:
        """Warm-up, constant, then linear to zero (a trapezoid over the time)."""
        warm, start = self.settings["warm_up"], self.settings["decay_from"]
        down = max(0.0, (1 - self.progress) / (1 - start))
        return min(1.0, (self.progress + 0.001) / warm, down)

    def run(self) -> None:
        """Trains until the time is used up."""
        evaluated = self.seconds
        while self.progress < 1:
            begin = self._clock()
            length = next(tokens for until, tokens in self.settings["phases"] if self.progress < until)
            rows = self.settings["batch_tokens"] // length
            draw = np.random.default_rng((1, self.step))
            batch = self.objective.batch(draw, rows, length, self.progress)
            loss = self._update(batch)
            self.step, self.tokens = self.step + 1, self.tokens + rows * length
            self.seconds += self._clock() - begin
            if self.step % 10 == 0:
                self._note(train_loss=loss, tokens_per_second=round(rows * length / (self._clock() - begin)))
            if self.seconds - evaluated > EVALUATE_EVERY or self.progress >= 1:
                evaluated = self.seconds
                self._checkpoint()

    def _update(self, batch: dict[str, torch.Tensor]) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.objective.loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = self.factor()
        for optimizer, key in zip(self.optimizers, ("learning_rate", "adam_learning_rate"), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = self.settings[key] * factor * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        weight = min(self.settings["average"], self.step / (self.step + 10))
        with torch.no_grad():
            for key, value in self.model.named_parameters():
                self.average[key].lerp_(value, 1 - weight)
        return float(loss.detach())

    def _note(self, **values: float) -> None:
        entry = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds_before + self.seconds, 1)}
        entry |= values
        self.log.append(entry)
        print(json.dumps({key: round(value, 4) for key, value in entry.items()}), flush=True)

    def averaged(self) -> Any:
        """A copy of the model with the averaged weights."""
        vocabulary = self.model.config.vocab_size
        model = new_model(self.name, vocabulary, self.sentinels)
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(self.average[key])
        return model.eval()

    def _checkpoint(self) -> None:
        model = self.averaged()
        shown = self.progress if self.settings["objective"] == "masked" else 0.0  # 0: no mixture, no tasks
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses = [self.heldout.loss(model, batch) for batch in batches(self.heldout, 0, 4, 32, 128, shown)]
        self._note(heldout_loss=float(torch.stack(losses).mean()))
        write_backbone(model, self.tokenizer, self.export / self.name)
        temporary = self.path.with_suffix(".tmp")
        state = {
            "model": self.model.state_dict(), "average": self.average, "log": self.log, "step": self.step,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers], "tokens": self.tokens,
            "seconds": self.seconds, "seconds_before": self.seconds_before,
        }  # fmt: skip
        torch.save(state, temporary)
        temporary.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average, self.log = state["average"], state["log"]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.seconds_before = state.get("seconds_before", 0.0)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"resumed at step {self.step}", flush=True)
