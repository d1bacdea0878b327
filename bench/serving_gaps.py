"""How long a stream waits for its next token while classifications of 64 rows and prompts as long as the context come in.

    python bench/serving_gaps.py [--backbone tiny-decoder] [--streams 16] [--seconds 30] [--prompt-tokens 400]

Gaps are by the clock and in seconds of processor of the engine's thread, which do not depend on what else the machine does.
The same streams run alone before, for comparison. Prints a line for each; nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.registry import build_method
from dollartune.serve.limits import Limits, Refused
from dollartune.serve.sequence import Sampling
from dollartune.serve.service import Service
from dollartune.testing.practice import perturb

KINDS = ("lora(rank=8)", "ia3", "prompt(tokens=8)", "prefix(tokens=8)", "bitfit", "pfeiffer", "lora(rank=4)")
TASK = {
    "name": "moods", "kind": "classification", "prompt": "Review: {text}\nGood or bad?", "metric": "accuracy",
    "label_words": {"good": "good", "bad": "bad"}, "max_answer_tokens": 4,
}  # fmt: skip


class Stream:
    """Takes a stream's pieces and the times between them."""

    def __init__(self) -> None:
        self.gaps: list[tuple[float, float]] = []
        """(clock, processor) seconds before each piece but the first."""
        self.done = threading.Event()
        self._last: tuple[float, float] | None = None

    def __call__(self, piece: str, reason: str | None) -> None:
        now = (time.monotonic(), time.thread_time())  # called on the engine's thread
        if self._last is not None and piece:
            self.gaps.append((now[0] - self._last[0], now[1] - self._last[1]))
        if piece:
            self._last = now
        if reason is not None:
            self.done.set()


def build(backbone_name: str, root: Path) -> tuple[Service, list[str]]:
    backbone = load_backbone(backbone_name)
    service = Service(backbone, "base", Limits(new_tokens=512, request_seconds=3600))
    for number, kind in enumerate(KINDS):
        adapter = Adapter([build_method(kind)], backbone.anatomy, backbone.model, number)
        perturb(adapter, 0.02, number)
        info = {
            "backbone": backbone_name, "objective": "language", "tokenizer": tokenizer_hash(backbone.processor), "task": TASK,
        }  # fmt: skip
        save_adapter(root / str(number), adapter, info)
        service.add_now(f"a{number}", root / str(number))
    return service, [f"a{number}" for number in range(len(KINDS))]


def run(
    service: Service, names: list[str], streams: int, seconds: float, prompt_tokens: int, loaded: bool
) -> list[Stream]:
    """Keeps so many streams going; beside them, if `loaded`, one classification and one long prompt at a time."""
    generator, end = random.Random(0), time.monotonic() + seconds
    vocabulary = service.prompts.vocabulary
    everyone: list[Stream] = []

    def ask(tokens: int, new: int) -> Stream:
        prompt = [generator.randrange(10, vocabulary - 10) for _ in range(tokens)]
        caught = Stream()
        chosen = Sampling(max_tokens=new, ignore_end=True)
        asyncio.run(service.generate(generator.choice(names), [prompt], chosen, lambda index: caught))
        return caught

    def beside() -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            rows = [f"a film of {number} and {i} parts, " * (1 + i % 8) for i in range(64)]
            caught = ask(prompt_tokens, 1)
            try:
                asyncio.run(service.classify(names[number % len(names)], list(rows)))
            except Refused:
                continue
            caught.done.wait(60)

    helper = threading.Thread(target=beside, daemon=True)
    if loaded:
        helper.start()
    running: list[Stream] = []
    while time.monotonic() < end:
        running = [one for one in running if not one.done.is_set()]
        while len(running) < streams:
            running.append(ask(generator.randrange(2, 30), 60))
            everyone.append(running[-1])
        time.sleep(0.02)
    for one in running:
        one.done.wait(120)
    if loaded:
        helper.join(120)
    return everyone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-decoder")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=400)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        service, names = build(given.backbone, Path(root))
        service.engine.start()
        for loaded in (False, True):
            found = run(service, names, given.streams, given.seconds, given.prompt_tokens, loaded)
            clock, processor = zip(*(gap for one in found for gap in one.gaps), strict=True)
            print(
                f"{'beside classifications and long prompts' if loaded else 'streams alone':40s} {len(clock)} tokens; gaps by "
                f"the clock: median {statistics.median(clock):.3f} s, longest {max(clock):.2f} s; of the engine's processor: "
                f"median {statistics.median(processor):.3f} s, longest {max(processor):.2f} s",
                flush=True,
            )
        service.engine.stop(5.0)


if __name__ == "__main__":
    main()
