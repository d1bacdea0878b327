"""Requests of mixed lengths: the server's engine against transformers' continuous batching and `generate`, and against peft.

    python bench/serving_throughput.py [--backbone smollm2-135m] [--requests 96] [--rounds 3]

Prompts of 1 to 300 words and answers of 1 to 128 tokens, greedy, all requests there at the beginning. The sides take turns in one
process, each on a copy of the model of its own; what counts is the median over rounds of the seconds of processor that the whole
process took, beside it those of the clock. First the bare model:

    ours          the engine as `dollartune serve` runs it
    continuous    transformers' `continuous_batching_context_manager`, with each request's own `max_new_tokens`
    generate      batches of similar prompts, each written as far as its longest answer
    foreseeing    batches of similar answers: nobody knows these before they are written, so this is a bound

then four LoRAs mixed in one batch, ours against peft's `generate(adapter_names=...)`. Prints each side's tokens per second and
how many answers are those of `generate`, token by token. The exit code is 1 where ours is below 1.3 times the best of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.backbones.locate import resolve
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.peft_format import write_peft
from dollartune.methods.lora import LoRA
from dollartune.serve.limits import Limits
from dollartune.serve.sequence import Sampling
from dollartune.serve.service import Service
from dollartune.testing.practice import perturb

BATCH_ROWS = 32
ADAPTERS = 4
WORDS = (
    "the", "a", "film", "was", "not", "so", "fine", "as", "long", "and", "dull", "in", "parts", "it", "had", "some", "people",
    "who", "went", "home", "early", "but", "others", "said", "that", "music", "made", "up", "for", "what", "story", "lacked",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    new_tokens: int
    adapter: str | None


def requests_of(
    tokenizer: Any, count: int, longest_words: int, longest_answer: int, names: Sequence[str]
) -> list[Request]:
    generator = random.Random(0)
    found = []
    for number in range(count):
        text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, longest_words)))
        new = generator.randint(1, longest_answer)
        found.append(Request(tuple(tokenizer(text).input_ids), new, names[number % len(names)] if names else None))
    return found


Side = Callable[[Sequence[Request]], list[list[int]]]


def ours(service: Service) -> Side:
    def answer(requests: Sequence[Request]) -> list[list[int]]:
        done = threading.Semaphore(0)

        def emit(index: int) -> Callable[[str, str | None], None]:
            return lambda piece, reason: done.release() if reason is not None else None

        sequences = []
        for one in requests:
            sampling = Sampling(max_tokens=one.new_tokens, temperature=0.0, ignore_end=True)
            begun = service.generate(one.adapter or "base", [list(one.prompt)], sampling, emit, streams=False)
            sequences += asyncio.run(begun)
        for _ in requests:
            done.acquire()
        return [list(one.tokens) for one in sequences]

    return answer


def continuous(model: Any) -> Side:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def answer(requests: Sequence[Request]) -> list[list[int]]:
        settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=128)
        # Without sizes it takes most of the memory for its cache, and a pass of 8,192 tokens has a mask of as many squared.
        sizes = ContinuousBatchingConfig(
            max_batch_tokens=512,
            num_blocks=256,
            page_size=32,
            max_requests_per_batch=BATCH_ROWS,
            allow_block_sharing=False,
        )
        found: dict[str, list[int]] = {}
        with model.continuous_batching_context_manager(settings, continuous_batching_config=sizes) as manager:
            names = [manager.add_request(list(one.prompt), max_new_tokens=one.new_tokens) for one in requests]
            while len(found) < len(requests):
                one = manager.get_result(timeout=1)
                if one is not None and one.is_finished():
                    found[one.request_id] = list(one.generated_tokens)
                elif one is None and not manager.is_running():
                    raise RuntimeError("transformers' continuous batching ended before its requests")
        return [found[name] for name in names]

    return answer


def in_batches(model: Any, by: Callable[[Request], int]) -> Side:
    """`generate` in batches of requests that are next to each other by a key; of peft too, where requests name adapters."""

    @torch.inference_mode()
    def answer(requests: Sequence[Request]) -> list[list[int]]:
        order = sorted(range(len(requests)), key=lambda index: by(requests[index]))
        found: list[list[int]] = [[] for _ in requests]
        for start in range(0, len(order), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            width = max(len(requests[row].prompt) for row in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                prompt = requests[row].prompt
                ids[place, width - len(prompt) :] = torch.tensor(prompt)
                mask[place, width - len(prompt) :] = 1
            named = {} if requests[0].adapter is None else {"adapter_names": [requests[row].adapter for row in rows]}
            most = max(requests[row].new_tokens for row in rows)
            written = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=-1, pad_token_id=0, **named
            )  # fmt: skip
            for place, row in enumerate(rows):
                found[row] = written[place, width : width + requests[row].new_tokens].tolist()
        return found

    return answer


def service_of(backbone_name: str, root: Path, adapters: bool) -> tuple[Service, list[str]]:
    backbone = load_backbone(backbone_name)
    limits = Limits(batch_rows=BATCH_ROWS, queue=10_000, request_seconds=36_000)
    service = Service(backbone, "base", limits)
    names = [f"a{number}" for number in range(ADAPTERS)] if adapters else []
    for number, name in enumerate(names):
        adapter = Adapter([LoRA(rank=8)], backbone.anatomy, backbone.model, number)
        perturb(adapter, 0.02, number)
        facts = {"backbone": backbone_name, "objective": "language", "tokenizer": tokenizer_hash(backbone.processor)}
        save_adapter(root / name, adapter, {**facts, "task": None})
        write_peft(root / "peft" / name, backbone, adapter, {**facts, "task": None})
    for name in names:  # after all are written: peft's files are compared with a backbone that has nothing attached
        service.add_now(name, root / name)
    service.engine.start()
    return service, names


def compare(sides: dict[str, Side], reference: str, requests: Sequence[Request], rounds: int) -> dict[str, float]:
    """Tokens per second of processor of each side; prints a line for each."""
    tokens = sum(one.new_tokens for one in requests)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    for number in range(rounds + 1):
        # The first round warms up: kernels are chosen, memory is taken.
        asked = requests if number else requests[: max(4, len(requests) // 8)]
        for name, side in list(sides.items()):
            processor, clock = time.process_time(), time.perf_counter()
            try:
                found = side(asked)
            except Exception as error:
                print(f"{name:12s} does not run here: {type(error).__name__}: {str(error)[:200]}", flush=True)
                del sides[name], seconds[name]
                continue
            if number:
                seconds[name].append((time.process_time() - processor, time.perf_counter() - clock))
                answers[name] = found
    found_rates = {}
    for name, own in seconds.items():
        processor, clock = (statistics.median(values) for values in zip(*own, strict=True))
        found_rates[name] = tokens / processor
        same = sum(one == other for one, other in zip(answers[name], answers[reference], strict=True))
        print(
            f"{name:12s} {tokens / processor:8.1f} tokens per second of processor, {tokens / clock:8.1f} by the clock; "
            f"{same} of {len(requests)} answers as {reference}'s",
            flush=True,
        )
    return found_rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=300, help="of the longest prompt")
    parser.add_argument("--answer", type=int, default=128, help="tokens of the longest answer")
    given = parser.parse_args()
    path = str(resolve(given.backbone))
    print(
        f"{given.backbone}, {given.requests} requests, {torch.get_num_threads()} threads of {os.cpu_count()} processors"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for adapters in (False, True):
            root = Path(folder) / ("mixed" if adapters else "bare")
            service, names = service_of(path, root, adapters)
            requests = requests_of(service.backbone.processor, given.requests, given.words, given.answer, names)
            peer: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            if adapters:
                import peft

                peer = peft.PeftModel.from_pretrained(peer, str(root / "peft" / names[0]), adapter_name=names[0])
                for name in names[1:]:
                    peer.load_adapter(str(root / "peft" / name), adapter_name=name)
                peer.eval()
            sides = {
                "ours": ours(service),
                "generate": in_batches(peer, lambda one: len(one.prompt)),
                "foreseeing": in_batches(peer, lambda one: one.new_tokens),
            }
            if not adapters:
                own: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
                sides["continuous"] = continuous(own)
            print(
                f"{len(names)} LoRAs in a batch, peft's generate with adapter_names" if adapters else "the bare model"
            )
            rates = compare(sides, "generate", requests, given.rounds)
            service.engine.stop(5.0)
            fair = {name: rate for name, rate in rates.items() if name not in ("ours", "foreseeing")}
            best = max(fair, key=lambda name: fair[name])
            ratios.append(rates["ours"] / fair[best])
            print(
                f"ours is {ratios[-1]:.2f} times {best}, {rates['ours'] / rates['foreseeing']:.2f} times what foresees answers",
                flush=True,
            )
    return int(min(ratios) < 1.3)


if __name__ == "__main__":
    sys.exit(main())
