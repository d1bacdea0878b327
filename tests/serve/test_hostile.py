"""Clients that read nothing, a thousand silent sockets, thousands of requests, files that lie: nothing shuts the server."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from test_app import Running

from dollartune.serve.connections import guarded_protocol
from dollartune.serve.limits import Limits
from dollartune.serve.run import listen


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = Running(tmp_path_factory.mktemp("hostile"), Limits(batch_rows=8, new_tokens=40))
    yield found
    found.stop()


def header(rest: bytes = b"\0" * 4, **entry: Any) -> bytes:
    """A safetensors file with one entry."""
    text = json.dumps({"a": {"dtype": "F32", **entry}}).encode()
    return struct.pack("<Q", len(text)) + text + rest


BYTES = {
    "a header of 2e60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header that lies about shapes": header(shape=[10**9, 10**9], data_offsets=[0, 4]),
    "a header that lies about places": header(shape=[1], data_offsets=[10**12, 10**12 + 4]),
    "an empty file": b"",
}
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
SETTINGS: dict[str, dict[str, Any]] = {
    "a chat template of its own": {"chat_template": LOOPS},
    "an answer of 1e9 tokens": {"max_answer_tokens": 10**10},
}


@pytest.mark.parametrize("what", [*BYTES, *SETTINGS, "a pipe", "zeros without end"])
def test_files_that_lie_are_refused_by_what_they_say(running: Running, what: str) -> None:
    folder = running.root / "adapters" / "lying"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(running.root / "adapters" / "spare", folder)
    file = folder / "adapter.safetensors"
    if what in BYTES:
        file.write_bytes(BYTES[what])
    elif what in SETTINGS:
        info = json.loads((folder / "adapter.json").read_text())
        info["task"].update(SETTINGS[what])
        (folder / "adapter.json").write_text(json.dumps(info))
    else:
        file.unlink()
        if what == "a pipe":
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/zero")
    before = psutil.Process().memory_info().rss
    answer = running.http.post("/v1/adapters", json={"name": "lying", "folder": "lying"})
    assert answer.status_code == 400, answer.text
    assert str(running.root) not in answer.text, "where the adapters lie is nobody's business"
    assert psutil.Process().memory_info().rss - before < 500 * 2**20
    assert (
        running.http.post("/v1/completions", json={"model": "lora", "prompt": "w1", "max_tokens": 2}).status_code == 200
    )


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    gone = threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def write() -> None:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

        writing = asyncio.create_task(write())
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()
        gone.set()

    limits = Limits(idle_seconds=0.5)
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, http=guarded_protocol(limits), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    client = socket.create_connection(listening.getsockname())
    try:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert gone.wait(60), "a client that takes nothing holds its connection for ever"
    finally:
        client.close()
        server.should_exit = True
        thread.join(20)


def test_a_thousand_silent_sockets_leave_health_at_200(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"a process may open {hard} files here; both ends of 1,024 sockets are more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    found = Running(tmp_path, Limits())
    held = []
    try:
        for _ in range(1024):
            held.append(socket.create_connection(("127.0.0.1", found.port)))
        assert httpx.get(f"{found.url}/health", timeout=30).status_code == 200
        body = {"model": "lora", "prompt": "w1", "max_tokens": 2}
        assert found.http.post("/v1/completions", json=body).status_code == 200
    finally:
        for one in held:
            one.close()
        found.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_requests(running: Running) -> None:
    def ask(number: int) -> None:
        name = ("lora", "ia3", "prompt", "model")[number % 4]
        text = " ".join(f"w{(number * 7 + i) % 80}" for i in range(1 + number % 30))
        body: dict[str, Any] = {"model": name, "prompt": text, "max_tokens": 1 + number % 5}
        address = "completions"
        if number % 4 == 2:
            address, body = "classify", {"model": "lora", "input": [text] * (1 + number % 3)}
        assert running.http.post(f"/v1/{address}", json=body).status_code == 200

    process = psutil.Process()
    with ThreadPoolExecutor(8) as clients:  # side by side they share passes, which is most of the time
        list(clients.map(ask, range(300)))  # caches fill
        before = process.memory_info().rss
        list(clients.map(ask, range(300, 2300)))
        grown = (process.memory_info().rss - before) / 2**20
    assert grown < 48, f"{grown:.0f} MB more after 2,000 requests"
    deadline = time.monotonic() + 20
    while running.service.engine.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(served.rows == 0 for name in ("lora", "ia3", "prompt") if (served := running.service.pool.get(name)))
