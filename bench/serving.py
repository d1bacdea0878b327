"""The server under load: 32 adapters of seven methods against one adapter, many clients, every answer checked.

    python bench/serving.py --seconds 120 --clients 200

Both servers run the whole time as processes of their own and are asked in turns (single, many, single, many ...); the one that
is not asked sleeps. The ratio of their throughputs is what counts: by the clock, and by the seconds of processor that the
server took, which does not depend on what else the machine does. Answers at temperature 0 are compared with those that the
same server gives to one client alone: completions, streams, chats, classifications of 8 and of 64 rows, and prompts that fill
the context of tiny-decoder, mixed. At both servers one more adapter is added and removed every second: reading its files costs
them the same, and the ratio says what mixing costs. The longest gap is that between two pieces of one stream.

Five prompts come again and again, so that both servers are spared most of the reading where the cache of prompts' beginnings
holds those of all adapters (about a gigabyte here); `--cache-bytes 0` compares what mixing itself costs.

Writes bench/results/serving.json. The exit code is 1 where an answer was wrong, a request failed other than by a stated
refusal, the throughput of the many is below 0.9 of the single one's, or a stream stood still for more than a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.registry import build_method
from dollartune.testing.practice import perturb

KINDS = (
    ["lora(rank=8)"] * 6
    + ["lora(rank=4)"] * 4
    + ["ia3"] * 5
    + ["prompt(tokens=8)"] * 5
    + ["prefix(tokens=8)"] * 4
    + ["bitfit"] * 3
    + ["pfeiffer"] * 3
    + ["houlsby"] * 2
)
PROMPTS = ("Once upon a time", "The cat sat on", "What is it? It is", "In the morning the boy went to the", "She said")
TASK = {
    "name": "moods", "kind": "classification", "prompt": "Review: {text}\nGood or bad?", "metric": "accuracy",
    "label_words": {"good": "good", "bad": "bad"}, "max_answer_tokens": 4,
}  # fmt: skip
FILLER = " and then" * 230
"""460 of tiny-decoder's 512 places; the question, virtual tokens and the answer take 40 more."""
WAYS = ("completion", "stream", "chat", "long prompt", "classes of 8", "classes of 64")
SHARES = (8, 6, 4, 1, 3, 1)
"""How often each way is asked."""
LEAST_RATIO = 0.9
"""Throughput of the many against the single one's."""
LONGEST_GAP = 1.0
"""Seconds that a stream may stand still."""


def write_adapters(root: Path, name: str) -> None:
    backbone = load_backbone(name)
    for number, kind in enumerate(KINDS):
        adapter = Adapter([build_method(kind)], backbone.anatomy, backbone.model, number)
        perturb(adapter, 0.05, number)
        info = {
            "backbone": name,
            "objective": "language",
            "tokenizer": tokenizer_hash(backbone.processor),
            "task": TASK,
        }
        save_adapter(root / f"a{number:02d}", adapter, info)


class Server:
    """`dollartune serve` as a process."""

    def __init__(self, name: str, root: Path, adapters: list[str], clients: int, cache_bytes: int | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.adapters = adapters
        named = [word for adapter in adapters for word in ("--adapter", f"{adapter}={root / adapter}")]
        command = [
            sys.executable,
            "-c",
            "from dollartune.cli import main; main()",
            "serve",
            name,
            *named,
            "--adapter-root",
            str(root),
            "--port",
            str(port),
            "--queue",
            str(4 * clients),
            *([] if cache_bytes is None else ["--cache-bytes", str(cache_bytes)]),
        ]
        self.process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        )
        for _ in range(1200):
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise RuntimeError("the server did not start")

    def processor_seconds(self) -> float:
        """Seconds of processor that it took so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> int:
        """Lets what runs finish; uvicorn ends by the signal itself, so a good end is 0 or -15."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Asked = tuple[str, str, str]
"""(way, adapter, prompt)."""


@dataclass
class Answered:
    """What one request brought."""

    content: object
    """Text, or the label and probability of each row."""
    tokens: int
    gap: float = 0.0
    """Longest time between two pieces of a stream, in seconds."""


def request(asked: Asked) -> tuple[str, dict[str, Any]]:
    """Address and body."""
    way, adapter, prompt = asked
    fields = {"model": adapter, "max_tokens": 16, "temperature": 0}
    if way == "chat":
        return "/v1/chat/completions", {**fields, "messages": [{"role": "user", "content": prompt}]}
    if way.startswith("classes"):
        rows = int(way.rpartition(" ")[2])
        return "/v1/classify", {"model": adapter, "input": [f"{prompt} {'film ' * (row % 7)}" for row in range(rows)]}
    more = {"stream": True, "stream_options": {"include_usage": True}} if way == "stream" else {}
    return "/v1/completions", {**fields, **more, "prompt": prompt + (FILLER if way == "long prompt" else "")}


async def ask(client: httpx.AsyncClient, asked: Asked) -> Answered:
    """Asks, and reads the answer to its end.

    Raises:
        httpx.HTTPError: no connection, or a status other than 200.
    """
    path, body = request(asked)
    if asked[0] == "stream":
        return await _read_stream(client, path, body)
    answer = await client.post(path, json=body)
    answer.raise_for_status()
    found = answer.json()
    if path == "/v1/classify":
        # Probabilities of one row differ in the seventh digit with the rows beside it.
        return Answered([one["label"] for one in found["data"]], 0)
    choice = found["choices"][0]
    content = choice["text"] if "text" in choice else choice["message"]["content"]
    return Answered(content, found["usage"]["completion_tokens"])


async def _read_stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Answered:
    text, tokens, gap, last = "", 0, 0.0, None
    async with client.stream("POST", path, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            piece = event["choices"][0]["text"] if event["choices"] else ""
            if piece:
                now = time.perf_counter()
                gap, last = max(gap, 0.0 if last is None else now - last), now
                text += piece
    return Answered(text, tokens, gap)


async def alone(server: Server) -> dict[Asked, object]:
    """The answers that one client gets."""
    everything = itertools.product(WAYS, server.adapters, PROMPTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        # Streams are compared with the text in one piece.
        return {
            asked: (await ask(client, ("completion", *asked[1:]) if asked[0] == "stream" else asked)).content
            for asked in everything
        }


class Load:
    """What clients found in all turns of one server."""

    def __init__(self, server: Server, expected: dict[Asked, object]) -> None:
        self.server, self.expected = server, expected
        self.times: list[float] = []
        self.wrong = self.tokens = self.changes = 0
        self.refused: dict[int, int] = {}
        self.failed: list[str] = []
        self.seconds = self.processor = self.gap = 0.0
        self.ways: Counter[str] = Counter()

    async def turn(self, clients: int, seconds: float) -> None:
        """Clients that ask again as soon as they are answered."""
        began, processor = time.perf_counter(), self.server.processor_seconds()
        self._end = began + seconds
        tasks = [self._client(number) for number in range(clients)]
        await asyncio.gather(*tasks, self._change())
        self.seconds += time.perf_counter() - began
        self.processor += self.server.processor_seconds() - processor

    async def _client(self, number: int) -> None:
        generator = random.Random(number + 1000 * len(self.times))
        async with httpx.AsyncClient(base_url=self.server.url, timeout=180) as client:
            while time.perf_counter() < self._end:
                (way,) = generator.choices(WAYS, SHARES)
                asked = way, generator.choice(self.server.adapters), generator.choice(PROMPTS)
                started = time.perf_counter()
                try:
                    answer = await ask(client, asked)
                except httpx.HTTPStatusError as error:
                    status = error.response.status_code
                    if status in (429, 503):
                        self.refused[status] = self.refused.get(status, 0) + 1
                    else:
                        self.failed.append(f"{status}: {asked}")
                    continue
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                self.times.append(time.perf_counter() - started)
                self.ways[way] += 1
                self.wrong += answer.content != self.expected[asked]
                self.tokens += answer.tokens
                self.gap = max(self.gap, answer.gap)

    async def _change(self) -> None:
        async with httpx.AsyncClient(base_url=self.server.url, timeout=180) as client:
            while time.perf_counter() < self._end:
                name = f"hot{self.changes}"
                (await client.post("/v1/adapters", json={"name": name, "folder": "a03"})).raise_for_status()
                await ask(client, ("completion", name, PROMPTS[0]))
                (await client.delete(f"/v1/adapters/{name}")).raise_for_status()
                self.changes += 1
                await asyncio.sleep(1)

    def found(self) -> dict[str, Any]:
        """Figures of all turns."""
        self.times.sort()
        return {
            "adapters": len(self.server.adapters),
            "answers": len(self.times),
            "asked": dict(self.ways),
            "different_answers": len({str(one) for one in self.expected.values()}),
            "wrong": self.wrong,
            "failed": self.failed[:20],
            "refused": self.refused,
            "adapters_added_and_removed": self.changes,
            "longest_gap_seconds": round(self.gap, 3),
            "answers_per_second": round(len(self.times) / self.seconds, 2),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "tokens_per_processor_second": round(self.tokens / self.processor, 1),
            "p50_seconds": round(statistics.median(self.times), 3),
            "p95_seconds": round(self.times[int(0.95 * (len(self.times) - 1))], 3),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="tiny-decoder")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="how long each server is asked, all turns together"
    )
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument(
        "--cache-bytes", type=int, help="for prompts' beginnings, of each server; by default its own default"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_adapters(root, options.backbone)
        everyone = [f"a{number:02d}" for number in range(len(KINDS))]
        loads = {}
        for label, adapters in (("single", everyone[:1]), ("many", everyone)):
            server = Server(options.backbone, root, adapters, options.clients, options.cache_bytes)
            loads[label] = Load(server, asyncio.run(alone(server)))
        for _ in range(options.turns):
            for one in loads.values():
                asyncio.run(one.turn(options.clients, options.seconds / options.turns))
        codes = [one.server.stop() for one in loads.values()]
    found = {label: one.found() for label, one in loads.items()}
    ratios = {
        by: round(found["many"][by] / found["single"][by], 3)
        for by in ("tokens_per_second", "tokens_per_processor_second")
    }
    result = {
        "clients": options.clients,
        "seconds": options.seconds,
        "cache_bytes": options.cache_bytes,
        "methods": sorted(set(KINDS)),
        "ratios": ratios,
        **found,
        "exit_codes": codes,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processors": os.cpu_count(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    broken = any(one.wrong or one.failed for one in loads.values())
    stood_still = max(one.gap for one in loads.values()) > LONGEST_GAP
    return int(broken or stood_still or ratios["tokens_per_second"] < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
