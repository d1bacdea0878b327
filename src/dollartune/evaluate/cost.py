"""What answering costs once a model is tuned: seconds of one request, alone and in batches.

The same requests for every method (the first test rows), as the method asks them: few-shot prompts with their solved
examples, virtual tokens and prefixes, added layers. An adapter that was merged into the weights costs what the bare
backbone costs.

    dollars per 1,000 requests = seconds per request in batches x price per hour / 3.6
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from dollartune.budget.peak_memory import PeakMemory
from dollartune.evaluate.evaluation import Evaluator
from dollartune.evaluate.fp32_passes import in_fp32, rounds
from dollartune.evaluate.generation import generate_texts
from dollartune.evaluate.labels import class_log_probabilities, label_log_probabilities
from dollartune.methods.base import prompting_of
from dollartune.tasks.mixture import Mixture

if TYPE_CHECKING:
    from dollartune.methods.base import Method
    from dollartune.tasks.base import Example
    from dollartune.train.encoding import Encoded

# Eight short prompts fill two cores and take under a second on a small backbone; more would only lengthen every trial.
REQUESTS = 8
"""Rows that are asked, and the size of the batch."""


@dataclass(frozen=True)
class RequestCost:
    """Measured on the machine that ran the trial; reading and tokenizing the text is not in it."""

    requests: int
    """How many were asked; also the size of the batch."""
    seconds: float
    """Of one request where they come in batches: the fastest of several passes, divided by the requests."""
    alone_seconds: float
    """Of one request alone, the median."""
    prompt_tokens: float
    """Mean tokens of a request, virtual ones included."""
    virtual_tokens: int
    """Of them, tokens that the adapter adds."""
    peak_bytes: int = 0
    """The weights, the adapter, and what answering a batch adds to them at most."""

    def dollars(self, price_per_hour: float, requests: int = 1000) -> float:
        """Of that many requests, in batches."""
        return self.seconds * requests * price_per_hour / 3600


def request_cost(
    evaluator: Evaluator,
    adapter: str | None,
    methods: Sequence[Method[Any]],
    examples: Sequence[Example],
    seed: int = 0,
    seconds: float = 1.0,
) -> RequestCost:
    """Measures an adapter (None: the bare backbone) as these methods prompt it.

    Args:
        examples: the requests; the first `REQUESTS` are asked. Of a mixture of tasks, those of its first task.
        seconds: stop repeating after this long; every measurement is made at least once.
    """
    if isinstance(evaluator.task, Mixture):
        task, rows = next(iter(evaluator.task.groups(examples)))
        pool = [example for example in evaluator.pool if example.task == task.name]
        part = Evaluator(evaluator.backbone, evaluator.attached, task, evaluator.encoder, pool, False)
        return request_cost(part, adapter, methods, rows, seed, seconds)
    prompting = prompting_of(methods)
    asked = evaluator.encode(examples[:REQUESTS], prompting, seed)
    answer = _answerer(evaluator, adapter)
    # A user's request is a new text: what a study has computed before of its own rows does not make it cheaper.
    # Servers answer in fp32 on a processor.
    served = evaluator.backbone.device.type == "cpu" and rounds(evaluator.attached)
    with evaluator.attached.every_layer(), in_fp32(evaluator.attached) if served else nullcontext():
        alone, passes = _measure(evaluator, answer, asked, seconds)
        peak = _peak_bytes(evaluator, adapter, lambda: answer(asked))
    virtual = _virtual_tokens(evaluator, adapter)
    lengths = [len(row.prompt) if row.pixels is None else 0 for row in asked]
    return RequestCost(
        len(asked), min(passes) / len(asked), median(alone), sum(lengths) / len(lengths) + virtual, virtual, peak
    )  # fmt: skip


def _measure(
    evaluator: Evaluator, answer: Callable[[Sequence[Encoded]], object], asked: Sequence[Encoded], seconds: float
) -> tuple[list[float], list[float]]:
    """(seconds of requests alone, seconds of passes over all of them)."""
    # The first pass allocates buffers and chooses kernels, which no later request pays for.
    answer(asked[:1])  # warms up
    # Half of the time for requests alone, half for batches, so that the budget pays at most `seconds` and a pass each.
    end = time.perf_counter() + seconds / 2
    alone = [_timed(evaluator, answer, asked[:1])]
    for row in asked[1:]:
        if time.perf_counter() > end:
            break
        alone.append(_timed(evaluator, answer, [row]))
    end = time.perf_counter() + seconds / 2
    passes = [_timed(evaluator, answer, asked)]
    # The fastest of many: noise of a shared machine only ever adds time. After 20 passes the minimum hardly moves.
    while time.perf_counter() < end and len(passes) < 20:
        passes.append(_timed(evaluator, answer, asked))
    return alone, passes


def _peak_bytes(evaluator: Evaluator, adapter: str | None, answer: Callable[[], object]) -> int:
    """Tensors that serving holds, and what a pass adds to them."""
    on_gpu = evaluator.backbone.device.type == "cuda"
    before = int(torch.cuda.memory_allocated()) if on_gpu else 0
    with PeakMemory() as memory:
        answer()
    added = sum(memory.device_peak_bytes.values()) - before if on_gpu else memory.added_bytes
    held = [*evaluator.backbone.model.parameters(), *evaluator.backbone.model.buffers()]
    held += evaluator.attached.adapters[adapter].tensors().values() if adapter is not None else []
    # By storage: tied weights are held once.
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return int(sum(sizes.values()) + max(0, added))


def _answerer(evaluator: Evaluator, adapter: str | None) -> Callable[[Sequence[Encoded]], object]:
    """Answers encoded requests the way the task is answered: a text, a class or the likeliest label word."""
    backbone, attached, task = evaluator.backbone, evaluator.attached, evaluator.task
    if task.kind == "generation":
        return lambda rows: generate_texts(backbone, attached, adapter, rows, task.max_answer_tokens, REQUESTS)
    if backbone.objective == "classification":
        return lambda rows: class_log_probabilities(backbone, attached, adapter, rows, REQUESTS)
    labels = evaluator.encoder.label_answers(task)
    return lambda rows: label_log_probabilities(backbone, attached, adapter, rows, labels, REQUESTS)


def _timed(evaluator: Evaluator, answer: Callable[[Sequence[Encoded]], object], rows: Sequence[Encoded]) -> float:
    on_gpu = evaluator.backbone.device.type == "cuda"
    # Kernels are queued: without waiting for them the clock would time the queueing.
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    answer(rows)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _virtual_tokens(evaluator: Evaluator, adapter: str | None) -> int:
    """Virtual tokens of the stack that reads the request, and the longest prefix, which attention reads as well."""
    if adapter is None:
        return 0
    tuned = evaluator.attached.adapters[adapter]
    stack = "decoder" if evaluator.backbone.kind == "decoder" else "encoder"
    prefixes = [sum(e.length for site, e in placed if site.stack == stack) for placed in tuned.prefixes.values()]
    return sum(edit.length for edit in tuned.virtual.get(stack, [])) + max(prefixes, default=0)
