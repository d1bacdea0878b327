"""One trial from data to a tuned adapter, in plain torch and `attach`: what DollarTune does, without any of its fast paths.

    rows ─> prompt + label word ─> token ids ─> padded batches ─> logits ─> loss at the answer ─> AdamW ─> best adapter ─> scores

    python examples/recipes/one_trial.py                        a decoder writes the label word
    python examples/recipes/one_trial.py --backbone tiny-encoder    an encoder scores the classes

The real trainer (dollartune/train/) trains many such trials in one pass, caches what frozen layers give, skips positions that
nobody reads, and stops when the money is spent. `tests/train/test_one_trial.py` holds its losses equal to these to 1e-5.

Shapes: B rows of a batch, T tokens of the longest, V vocabulary, C classes, A answer tokens of the whole batch.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dollartune import attach, load_backbone, load_task
from dollartune.attachment import Assignment, Attached
from dollartune.backbones.loading import Backbone
from dollartune.export.directory import save_adapter
from dollartune.methods import Head, LoRA
from dollartune.methods.base import Method
from dollartune.methods.edits import Rows

BATCH_ROWS = 16  # rows per optimizer step
CLIP = 1.0  # largest norm of the gradient: one odd batch must not undo a hundred good ones
WARMUP = 0.06  # share of the steps in which the rate rises: AdamW's second moment is a guess at first
PATIENCE = 3  # validations without a better loss, after which training ends
MAX_TOKENS = 512  # longer prompts are cut at their beginning, so that the question at the end stays
WINDOW = 16  # batches whose rows are sorted by length together: little padding, and still random batches


@dataclass(frozen=True)
class Row:
    """A row of the data."""

    text: str
    label: str


@dataclass(frozen=True)
class Encoded:
    """A row as numbers. `answer`: tokens to write, the end mark included; empty where a head scores classes."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    label: int

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass
class Tuned:
    """What training gives."""

    attached: Attached
    losses: list[float] = field(default_factory=list)  # of each step, before the step
    validation: list[float] = field(default_factory=list)  # after each epoch
    best_epoch: int = 0


# 1. Text to numbers ------------------------------------------------------------------------------------------------------


def answer_tokens(backbone: Backbone, word: str) -> tuple[int, ...]:
    """Tokens of a label word as it follows a prompt. After a text, because tokenizers join the space to the word: `▁good`."""
    before = backbone.processor("Answer:", add_special_tokens=False).input_ids
    whole = backbone.processor(f"Answer: {word}", add_special_tokens=False).input_ids
    return tuple(whole[len(before) :])


def encode(backbone: Backbone, rows: Sequence[Row], prompt: str, label_words: dict[str, str]) -> list[Encoded]:
    """Rows to token ids. `prompt` has the place `{text}`; `label_words` maps each label to the word that is written for it."""
    tokenizer, labels = backbone.processor, list(label_words)
    encoded = []
    for row in rows:
        index = labels.index(row.label)
        if backbone.objective == "classification":  # the head sees the text itself: a prompt would only take positions
            ids = tokenizer(row.text, truncation=True, max_length=MAX_TOKENS).input_ids
            encoded.append(Encoded(tuple(ids), (), index))
            continue
        ids = tokenizer(prompt.format(text=row.text)).input_ids
        if ids[-1] == tokenizer.eos_token_id:  # an end mark would say that nothing follows
            ids = ids[:-1]
        answer = (*answer_tokens(backbone, label_words[row.label]), tokenizer.eos_token_id)
        encoded.append(Encoded(tuple(ids[-(MAX_TOKENS - len(answer)) :]), answer, index))
    return encoded


# 2. Batches --------------------------------------------------------------------------------------------------------------


def batches_of(rows: Sequence[Encoded], seed: int, epoch: int) -> Iterator[list[Encoded]]:
    """One epoch in a random order; every row once. A function of (seed, epoch), so that a run that was interrupted goes on
    with the batches that it would have had."""
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(rows)))
    generator.shuffle(order)
    batches = []
    for start in range(0, len(order), WINDOW * BATCH_ROWS):
        window = sorted(order[start : start + WINDOW * BATCH_ROWS], key=lambda i: rows[i].tokens)
        batches += [window[i : i + BATCH_ROWS] for i in range(0, len(window), BATCH_ROWS)]
    generator.shuffle(batches)  # else every epoch would go from short rows to long ones
    for batch in batches:
        yield [rows[i] for i in batch]


def padded(backbone: Backbone, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T). Padding goes to the right, where a decoder's tokens never look."""
    longest = max(map(len, sequences))
    pad = backbone.processor.pad_token_id or 0
    ids = torch.tensor([[*sequence, *[pad] * (longest - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences])
    return {"input_ids": ids.to(backbone.device), "attention_mask": mask.to(backbone.device)}


# 3. Loss -----------------------------------------------------------------------------------------------------------------


def loss_sum(backbone: Backbone, attached: Attached, rows: Sequence[Encoded]) -> tuple[Tensor, int]:
    """Summed cross-entropy of a batch in fp32, and how many targets it has. The prompt's tokens are no targets: they are
    given, and a model that learns to write prompts has less room for the answer."""
    if backbone.objective == "classification":
        logits = attached(**padded(backbone, [row.prompt for row in rows])).logits  # (B, C)
        targets = torch.tensor([row.label for row in rows], device=logits.device)  # (B,)
        return functional.cross_entropy(logits.float(), targets, reduction="sum"), len(rows)
    inputs = padded(backbone, [row.prompt + row.answer[:-1] for row in rows])  # nothing is predicted from the end mark
    logits = attached(**inputs).logits  # (B, T, V)
    # the logits at position t say what token t + 1 is, so the first answer token is read at the prompt's last one
    at = [(b, len(row.prompt) - 1 + i) for b, row in enumerate(rows) for i in range(len(row.answer))]
    picked = logits[[b for b, _ in at], [t for _, t in at]]  # (A, V)
    targets = torch.tensor([token for row in rows for token in row.answer], device=logits.device)  # (A,)
    return functional.cross_entropy(picked.float(), targets, reduction="sum"), len(targets)


@torch.no_grad()
def validation_loss(backbone: Backbone, attached: Attached, rows: Sequence[Encoded]) -> float:
    """Mean loss per target."""
    sums = [loss_sum(backbone, attached, rows[i : i + 32]) for i in range(0, len(rows), 32)]
    return sum(loss.item() for loss, _ in sums) / sum(targets for _, targets in sums)


# 4. Training -------------------------------------------------------------------------------------------------------------


def rate_factor(step: int, total: int) -> float:
    """Factor of the peak learning rate: it rises over the warm-up, then falls in a straight line to 0 after the last step."""
    warmup = int(total * WARMUP)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(1, total - warmup)


def steps_for(rows: int) -> int:
    """More rows need more steps, but fewer passes over each; at least one pass."""
    return max(math.ceil(4.5 * rows**0.6 * 16 / BATCH_ROWS), math.ceil(rows / BATCH_ROWS))


def tune(
    backbone: Backbone,
    methods: Sequence[Method],
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    seed: int = 0,
) -> Tuned:
    """Trains one adapter to its end or its patience; it then holds the tensors of its best validation."""
    attached = attach(backbone.model, *methods, seed=seed, processor=backbone.processor)  # freezes the backbone
    tuned = Tuned(attached)
    adapter = attached.adapters["default"]
    groups = [group for part in adapter.parts for group in part.method.parameter_groups(part)]  # LoRA+ has two rates
    optimizer = torch.optim.AdamW(groups)
    peak_rates = [group["lr"] for group in groups]
    total, per_epoch = steps_for(len(train)), math.ceil(len(train) / BATCH_ROWS)
    backbone.model.eval()  # the backbone's own dropout stays off: frozen layers then compute the same thing each time
    step, best_loss, best_tensors, without_gain = 0, math.inf, None, 0
    for epoch in range(math.ceil(total / per_epoch)):
        for batch in itertools.islice(
            batches_of(train, seed, epoch), total - step
        ):  # the last pass may end in the middle
            # dropout inside edits draws from a seed of its own, so that trials do not disturb each other
            context = Rows(training=True, seed=(seed * 1_000_003 + step) * 64)
            with attached.routed(Assignment(adapter, slice(None), context), batch_rows=len(batch)):
                loss, targets = loss_sum(backbone, attached, batch)
            loss = loss / targets  # a mean over targets, not over rows: long answers count by their tokens
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), CLIP)
            if not math.isfinite(loss.item()) or not torch.isfinite(norm):
                raise FloatingPointError(f"the loss is {loss.item()} and the gradient {norm.item()} at step {step + 1}")
            for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = peak * rate_factor(step, total)
            optimizer.step()
            optimizer.zero_grad()
            tuned.losses.append(loss.item())
            step += 1
        tuned.validation.append(validation_loss(backbone, attached, validation))
        if tuned.validation[-1] < best_loss:  # the loss, not the score: it moves long before any answer changes
            best_loss, tuned.best_epoch, without_gain = tuned.validation[-1], epoch + 1, 0
            best_tensors = copy.deepcopy(adapter.tensors())
        else:
            without_gain += 1
            if without_gain == PATIENCE:
                break
    if best_tensors is not None:
        adapter.load(best_tensors)
    return tuned


# 5. Label scoring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def label_scores(backbone: Backbone, attached: Attached, row: Encoded, label_words: dict[str, str]) -> Tensor:
    """(C,) log-probability of each label: of its class, or of all tokens of its word after the prompt. The answer is the
    label that scores highest, so a model can only give answers that exist."""
    if backbone.objective == "classification":
        return attached(**padded(backbone, [row.prompt])).logits[0].float().log_softmax(-1)
    scores = []
    for word in label_words.values():
        answer = answer_tokens(backbone, word)
        logits = attached(**padded(backbone, [row.prompt + answer[:-1]])).logits[0]  # (T, V)
        log_p = logits[len(row.prompt) - 1 :].float().log_softmax(-1)  # (tokens of the word, V)
        scores.append(sum(log_p[i, token] for i, token in enumerate(answer)))
    return torch.stack(scores)


def accuracy(backbone: Backbone, attached: Attached, rows: Sequence[Encoded], label_words: dict[str, str]) -> float:
    """Share of rows whose label scores highest."""
    right = [int(label_scores(backbone, attached, row, label_words).argmax()) == row.label for row in rows]
    return sum(right) / len(right)


# 6. All together ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Tunes LoRA on the embedded task and saves the adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tiny-decoder", help="an embedded backbone, a hub id or a folder")
    parser.add_argument("--rows", type=int, default=64, help="training rows")
    parser.add_argument("--output", type=Path, default=Path("one_trial"), help="where the adapter goes")
    options = parser.parse_args()
    task = load_task("demo_library")  # the summary of a function -> its library; any rows with a text and a label do
    splits = task.splits(options.rows, 0, 100)
    column, label_words = task.template.columns[0], dict(task.label_words)
    classifies = "encoder" in options.backbone
    backbone = load_backbone(options.backbone, "classification" if classifies else "language", task.labels)
    train, validation, test = (
        encode(
            backbone,
            [Row(str(example.fields[column]), str(example.label)) for example in rows],
            task.template.text.replace(f"{{{column}}}", "{text}"),
            label_words,
        )
        for rows in (splits.train, splits.validation, splits.test)
    )
    # a head alone is new, so it is trained; the rest of the backbone is reached through LoRA
    tuned = tune(backbone, [Head(), LoRA()] if classifies else [LoRA()], train, validation)
    print(
        f"{len(tuned.losses)} steps, loss {tuned.losses[0]:.3f} -> {tuned.losses[-1]:.3f}, best epoch {tuned.best_epoch}"
    )
    print(f"accuracy on {len(test)} test rows: {accuracy(backbone, tuned.attached, test, label_words):.3f}")
    info = {"backbone": options.backbone, "objective": backbone.objective, "dtype": "float32"}
    size = save_adapter(options.output, tuned.attached.adapters["default"], info)
    print(f"{options.output}: {tuned.attached.adapters['default'].count():,} trained numbers, {size:,} bytes")


if __name__ == "__main__":
    main()
