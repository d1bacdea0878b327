"""The server under load: 32 adapters of six methods against one adapter, many clients, every answer checked.

    python bench/serving.py --seconds 60 --clients 200

Two servers run one after the other in turns (single, many, single, many ...), as processes of their own; the ratio of their
throughputs is what counts. Answers at temperature 0 are compared with those that the same server gives to one client alone.
While the many are served, one more adapter is added and removed every second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from dollartune.attach import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.registry import build_method
from dollartune.testing.suite import perturb

KINDS = (
    ["lora(rank=8)"] * 8
    + ["lora(rank=4)"] * 4
    + ["ia3"] * 5
    + ["prompt(tokens=8)"] * 5
    + ["prefix(tokens=8)"] * 4
    + ["bitfit"] * 3
    + ["pfeiffer"] * 3
)
PROMPTS = ("Once upon a time", "The cat sat on", "What is it? It is", "In the morning the boy went to the", "She said")


def write_adapters(root: Path, name: str) -> None:
    backbone = load_backbone(name)
    for number, kind in enumerate(KINDS):
        adapter = Adapter([build_method(kind)], backbone.anatomy, backbone.model, number)
        perturb(adapter, 0.05, number)
        info = {
            "backbone": name,
            "objective": "language",
            "tokenizer": tokenizer_hash(backbone.processor),
            "task": None,
        }
        save_adapter(root / f"a{number:02d}", adapter, info)


class Server:
    """`dollartune serve` as a process."""

    def __init__(self, name: str, root: Path, adapters: list[str], clients: int) -> None:
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

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def request(adapter: str, prompt: str) -> dict[str, Any]:
    return {"model": adapter, "prompt": prompt, "max_tokens": 16, "temperature": 0}


async def alone(server: Server) -> dict[tuple[str, str], str]:
    """The answers that one client gets."""
    found = {}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for adapter in server.adapters:
            for prompt in PROMPTS:
                answer = await client.post("/v1/completions", json=request(adapter, prompt))
                found[adapter, prompt] = answer.json()["choices"][0]["text"]
    return found


async def load(
    server: Server, expected: dict[tuple[str, str], str], clients: int, seconds: float, hot: bool
) -> dict[str, Any]:
    """Clients that ask again as soon as they are answered."""
    end = time.perf_counter() + seconds
    times: list[float] = []
    tokens = wrong = changes = 0
    refused: dict[int, int] = {}

    async def one(number: int) -> None:
        nonlocal tokens, wrong
        generator = random.Random(number)
        async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
            while time.perf_counter() < end:
                key = generator.choice(server.adapters), generator.choice(PROMPTS)
                started = time.perf_counter()
                answer = await client.post("/v1/completions", json=request(*key))
                if answer.status_code != 200:
                    refused[answer.status_code] = refused.get(answer.status_code, 0) + 1
                    continue
                times.append(time.perf_counter() - started)
                body = answer.json()
                wrong += body["choices"][0]["text"] != expected[key]
                tokens += body["usage"]["completion_tokens"]

    async def change() -> None:
        nonlocal changes
        async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
            while time.perf_counter() < end:
                (await client.post("/v1/adapters", json={"name": f"hot{changes}", "folder": "a03"})).raise_for_status()
                await client.post("/v1/completions", json=request(f"hot{changes}", PROMPTS[0]))
                (await client.delete(f"/v1/adapters/hot{changes}")).raise_for_status()
                changes += 1
                await asyncio.sleep(1)

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(clients)), *([change()] if hot else []))
    spent = time.perf_counter() - began
    times.sort()
    return {
        "answers": len(times),
        "wrong": wrong,
        "refused": refused,
        "adapters_changed": changes,
        "tokens_per_second": tokens / spent,
        "p50_seconds": statistics.median(times),
        "p95_seconds": times[int(0.95 * (len(times) - 1))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="tiny-decoder")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_adapters(root, options.backbone)
        everyone = [f"a{number:02d}" for number in range(len(KINDS))]
        ratios = []
        for round_number in range(options.rounds):
            speeds = {}
            for label, adapters in (("single", everyone[:1]), ("many", everyone)):
                server = Server(options.backbone, root, adapters, options.clients)
                expected = asyncio.run(alone(server))
                found = asyncio.run(load(server, expected, options.clients, options.seconds, hot=label == "many"))
                code = server.stop()
                speeds[label] = found["tokens_per_second"]
                print(
                    json.dumps(
                        {
                            "round": round_number,
                            "server": label,
                            "exit": code,
                            "different_answers": len(set(expected.values())),
                            **found,
                        }
                    ),
                    flush=True,
                )
            ratios.append(speeds["many"] / speeds["single"])
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
