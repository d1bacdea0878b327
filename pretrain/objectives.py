"""What each text backbone learns from: batches and losses for next token, masked tokens and corrupted spans."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dollartune.tasks.docstrings import LIBRARIES, Documented
from pretrain.models import END, FIRST_SENTINEL, MASK, PAD, START

CHUNK = 512
GUIDE_SHARE = 0.35  # of the time, from the end of the causal part


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of tied output weights, computed in chunks that stay in the cache: no full logits in memory.

    loss = mean_i w_i ( logsumexp(W h_i) - (W h_i)[t_i] ); both gradients are formed in the forward pass.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor | None = None) -> Tensor:
        """Args: hidden (tokens, d_model) bf16; weight (vocabulary, d_model) fp32; targets and shares w (tokens,)."""
        narrow = weight.to(torch.bfloat16)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        total, count = 0.0, targets.numel()
        for begin in range(0, count, CHUNK):
            rows, wanted = hidden[begin : begin + CHUNK], targets[begin : begin + CHUNK]
            logits = (rows @ narrow.t()).float()  # (chunk, vocabulary)
            normalizer = logits.logsumexp(-1, keepdim=True)
            losses = (normalizer - logits.gather(1, wanted[:, None]))[:, 0]
            share = None if shares is None else shares[begin : begin + CHUNK]
            total += float(losses.sum() if share is None else (losses * share).sum())
            logits.sub_(normalizer).exp_()
            logits[torch.arange(len(wanted)), wanted] -= 1
            if share is not None:
                logits.mul_(share[:, None])
            gradient = (logits / count).to(torch.bfloat16)
            hidden_gradient[begin : begin + CHUNK] = gradient @ narrow
            weight_gradient += (gradient.t() @ rows).float()
        context.save_for_backward(hidden_gradient, weight_gradient)
        return torch.tensor(total / count)

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scales the stored gradients."""
        hidden_gradient, weight_gradient = context.saved_tensors
        return hidden_gradient * outer[0].to(hidden_gradient.dtype), weight_gradient * outer[0], None, None


class Causal:
    """Next-token prediction; later a share of the rows comes from the task-like documents.

    In those rows the answers (yes, no, package names) count `answer_weight` times: they are one token in forty.
    """

    def __init__(
        self,
        ids: np.ndarray,
        tasks: np.ndarray,
        tokenizer: Any,
        tasks_from: float = 1.0,
        tasks_share: float = 0.0,
        answer_weight: float = 1.0,
        **_: Any,
    ) -> None:
        self.answer_weight = answer_weight
        self.answers = torch.tensor(tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in ("yes", "no", *LIBRARIES)]))
        self.ids, self.tasks, self.tasks_from, self.tasks_share = ids, tasks, tasks_from, tasks_share

    def batch(self, draw: np.random.Generator, rows: int, length: int, progress: float) -> dict[str, Tensor]:
        """(rows, length + 1) windows at random places."""
        later = round(rows * self.tasks_share) if progress >= self.tasks_from else 0
        parts = [_windows(self.ids, draw, rows - later, length + 1)]
        if later:
            parts.append(_windows(self.tasks, draw, later, length + 1))
        return {"ids": torch.cat(parts), "later": torch.tensor(later)}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood per token, nats."""
        ids = batch["ids"]
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        flat = hidden.reshape(-1, hidden.shape[-1]).to(torch.bfloat16)
        targets, shares = ids[:, 1:], torch.ones(ids[:, 1:].shape)
        first = len(ids) - int(batch["later"])
        shares[first:][torch.isin(targets[first:], self.answers)] = self.answer_weight
        return ChunkedCrossEntropy.apply(flat, model.lm_head.weight, targets.reshape(-1), shares.reshape(-1))


class Masked:
    """Masked tokens, and whether the second half follows the first (it trains the pooler).

    Until `causal_until` of the time it predicts next tokens under a causal mask instead, since every position gives
    a signal. Then a bias that points some heads at their neighbours fades out: learned absolute positions alone keep a
    small encoder on the plateau of word frequencies for thousands of steps.
    """

    def __init__(
        self,
        ids: np.ndarray,
        vocabulary: int,
        tokenizer: Any,
        functions: list[Documented],
        masked_share: float = 0.2,
        causal_until: float = 0.0,
        tasks_share: float = 0.0,
        **_: Any,
    ) -> None:
        self.ids, self.vocabulary, self.share, self.causal_until = ids, vocabulary, masked_share, causal_until
        self.functions, self.tokenizer, self.tasks_share = functions, tokenizer, tasks_share
        self.newline = tokenizer.convert_tokens_to_ids("Ċ")

    def batch(self, draw: np.random.Generator, rows: int, length: int, progress: float) -> dict[str, Tensor]:
        """Rows `<s> A </s> B </s>`; of the masked share, 80 % are masked, 10 % random, 10 % as they were."""
        if progress < self.causal_until:
            return {"next": _windows(self.ids, draw, rows, length + 1)}
        if draw.random() < self.tasks_share and self.functions:
            return self._pairs(draw, rows * length // 48, progress)
        half = (length - 3) // 2
        text = _windows(self.ids, draw, rows, 2 * half)
        text[(text == START) | (text == END)] = self.newline  # a border inside the text is no border of the input
        first, second = text[:, :half], text[:, half:]
        follows = torch.from_numpy(draw.random(rows) < 0.5)
        second = torch.where(follows[:, None], second, second.roll(1, 0))
        column = torch.ones(rows, 1, dtype=torch.long)
        ids = torch.cat([column * START, first, column * END, second, column * END], 1)
        types = (torch.arange(ids.shape[1]) >= half + 2).long().expand_as(ids)
        attention = self._attention(torch.ones_like(ids), progress)
        return {**self._masked(ids, draw), "types": types, "attention": attention, "follows": follows.long()}

    def _attention(self, present: Tensor, progress: float) -> Tensor:
        """The padding mask (rows, tokens), or while the guide lasts an additive one (rows, heads, tokens, tokens)."""
        guide = 1 - (progress - self.causal_until) / GUIDE_SHARE
        if guide <= 0 or self.causal_until == 0:
            return present
        place = torch.arange(present.shape[1])
        offset = (place[None, :] - place[:, None]).float()  # key minus query
        heads = [-2.0 * (offset + 1).abs(), -2.0 * (offset - 1).abs(), -0.3 * offset.abs(), 0.0 * offset]
        bias = guide * torch.stack(heads).clamp(min=-30)
        return bias[None].masked_fill(present[:, None, None, :] == 0, -1e4)

    def _pairs(self, draw: np.random.Generator, rows: int, progress: float) -> dict[str, Tensor]:
        """Signatures with their own or another function's summary, in place of two segments of text."""
        source = random.Random(int(draw.integers(1 << 30)))
        made = [signature_and_summary(source, self.functions) for _ in range(rows)]
        firsts, seconds, follows = zip(*made, strict=True)
        found = self.tokenizer(
            list(firsts), list(seconds), truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        masked = self._masked(found["input_ids"], draw)
        types, attention = found["token_type_ids"], self._attention(found["attention_mask"], progress)
        return {**masked, "types": types, "attention": attention, "follows": torch.tensor(follows)}

    def _masked(self, ids: Tensor, draw: np.random.Generator) -> dict[str, Tensor]:
        ordinary = (ids != START) & (ids != END) & (ids != PAD)
        chosen = torch.from_numpy(draw.random(ids.shape) < self.share) & ordinary
        kind = torch.from_numpy(draw.random(ids.shape))
        noise = torch.from_numpy(draw.integers(40, self.vocabulary, ids.shape))
        inputs = torch.where(chosen & (kind < 0.8), MASK, torch.where(chosen & (kind < 0.9), noise, ids))
        return {"ids": ids, "inputs": inputs, "chosen": chosen}

    def loss(self, model: Any, batch: dict[str, Tensor], parts: bool = False) -> Any:
        """Cross-entropy at the masked positions plus half of the pair loss."""
        if "next" in batch:
            ids = batch["next"]
            mask = torch.ones(ids.shape[1] - 1, ids.shape[1] - 1, dtype=torch.bool).tril()[None, None]
            hidden = model.bert(input_ids=ids[:, :-1], attention_mask=mask).last_hidden_state
            hidden = model.cls.predictions.transform(hidden)
            flat = hidden.reshape(-1, hidden.shape[-1]).to(torch.bfloat16)
            return ChunkedCrossEntropy.apply(flat, model.cls.predictions.decoder.weight, ids[:, 1:].reshape(-1))
        output = model.bert(
            input_ids=batch["inputs"], token_type_ids=batch["types"], attention_mask=batch.get("attention")
        )
        chosen = batch["chosen"]
        logits = model.cls.predictions(output.last_hidden_state[chosen]).float()
        masked = nn.functional.cross_entropy(logits, batch["ids"][chosen])
        pairs = nn.functional.cross_entropy(
            model.cls.seq_relationship(output.pooler_output).float(), 1 - batch["follows"]
        )
        if parts:
            return masked, (logits.argmax(-1) == batch["ids"][chosen]).float().mean(), pairs
        return masked + 0.5 * pairs


class Spans:
    """Span corruption in half of the rows, in the others the rest of a text from its first quarter.

    Later half of the rows are signatures, summaries and questions of train modules instead.
    """

    def __init__(
        self, ids: np.ndarray, functions: list[Documented], tokenizer: Any, mixture_from: float = 0.5, **_: Any
    ) -> None:
        self.ids, self.functions, self.tokenizer, self.mixture_from = ids, functions, tokenizer, mixture_from

    def batch(self, draw: np.random.Generator, rows: int, length: int, progress: float) -> dict[str, Tensor]:
        """Padded inputs and labels (-100 where padded)."""
        text = _windows(self.ids, draw, rows, length).numpy()
        pairs = [
            corrupt_spans(row, draw) if index % 2 or not self.functions else continuation(row)
            for index, row in enumerate(text)
        ]
        if progress >= self.mixture_from:
            source = random.Random(int(draw.integers(1 << 30)))
            made = [instruction(source, self.functions) for _ in range(rows)]
            prompts = self.tokenizer([prompt for prompt, _ in made])["input_ids"]
            answers = self.tokenizer([answer for _, answer in made])["input_ids"]
            pairs = pairs[: rows // 2] + list(zip(prompts, answers, strict=True))
        inputs, mask = _padded([pair[0][:length] for pair in pairs], PAD)
        labels, _ = _padded([pair[1][:length] for pair in pairs], -100)
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood per target token, nats."""
        return model(**batch).loss


def corrupt_spans(row: np.ndarray, draw: np.random.Generator, share: float = 0.2) -> tuple[list[int], list[int]]:
    """Replaces spans of one to five tokens by sentinels; returns the input and the target that names what was cut."""
    inputs: list[int] = []
    target: list[int] = []
    place = sentinel = 0
    gap = 3 * (1 - share) / share
    while place < len(row):
        keep = 1 + int(draw.exponential(gap - 1))
        inputs.extend(int(token) for token in row[place : place + keep])
        place += keep
        if place >= len(row) or sentinel == 32:
            inputs.extend(int(token) for token in row[place:])
            break
        width = int(draw.integers(1, 6))
        inputs.append(FIRST_SENTINEL + sentinel)
        target.append(FIRST_SENTINEL + sentinel)
        target.extend(int(token) for token in row[place : place + width])
        place, sentinel = place + width, sentinel + 1
    return [*inputs, END], [*target, END]


def continuation(row: np.ndarray) -> tuple[list[int], list[int]]:
    """The first quarter of a text, marked at its end, and the rest as the target."""
    half = len(row) // 4
    first, second = row[:half].tolist(), row[half:].tolist()
    return [*first, FIRST_SENTINEL, END], [FIRST_SENTINEL, *second]


def instruction(draw: random.Random, functions: list[Documented]) -> tuple[str, str]:
    """One prompt and answer of the multi-task mixture."""
    place = draw.randrange(len(functions))
    row = functions[place]
    kind = draw.choice((0, 1, 2, 3, 3))
    if kind == 0:
        return f"describe: {row.module} {row.signature}", f"{row.summary}"
    if kind == 1:
        return f"package: {row.summary}", f" {row.library}"
    if kind == 2:
        return f"name: {row.summary}", f" {row.signature.split('(')[0]}"
    signature, summary, same = signature_and_summary(draw, functions)
    return f"same: {signature} | {summary}", " yes" if same else " no"


def signature_and_summary(draw: random.Random, functions: list[Documented]) -> tuple[str, str, int]:
    """A signature, a summary, and 1 if they belong together; the others come from the same module in 40 of 100."""
    place = draw.randrange(len(functions))
    row = other = functions[place]
    if draw.random() < 0.5:
        near = functions[(place + draw.randint(-40, 40)) % len(functions)]
        other = near if draw.random() < 0.4 else draw.choice(functions)
    return row.signature, other.summary, int(other is row)


def _windows(ids: np.ndarray, draw: np.random.Generator, rows: int, length: int) -> Tensor:
    """(rows, length) pieces of the stream; three quarters begin where a document begins."""
    places = draw.integers(0, len(ids) - length - 400, rows)
    picked = []
    for place in places:
        if draw.random() < 0.75:
            starts = np.flatnonzero(ids[place : place + 400] == START)
            place = place + int(starts[0]) if len(starts) else place
        picked.append(ids[place : place + length])
    return torch.from_numpy(np.stack(picked).astype(np.int64))


def _padded(rows: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    values = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return values, mask


def batches(
    objective: Any, seed: int, count: int, rows: int, length: int, progress: float = 0.0
) -> Iterator[dict[str, Tensor]]:
    """Fixed batches for evaluation."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield objective.batch(draw, rows, length, progress)
