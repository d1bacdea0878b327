"""`dollartune serve` as a process: it starts, and a signal lets what runs finish."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from commands import Command

from dollartune.backbones.loading import load_backbone
from dollartune.cli.export import serve
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service, dtype_notes, served_dtype
from dollartune.testing.directory import write_tiny


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are POSIX here")
def test_a_signal_lets_a_running_answer_finish() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = Command("serve", "tiny-decoder", "--port", str(port))
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.TransportError:
                assert command.running(), command.ended(0)
                assert time.monotonic() < deadline
                time.sleep(0.05)
        wanted = {"model": "tiny-decoder", "prompt": "Return the", "max_tokens": 100, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=wanted, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            assert command.process.pid is not None
            os.kill(command.process.pid, signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        code, out, _ = command.ended(30)
        assert code in (0, -signal.SIGTERM)
        assert out.startswith("serving tiny-decoder at")
    finally:
        command.kill()


def test_options_are_the_server_s_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Limits] = []

    def build(backbone: str, adapters: object, limits: Limits, *rest: object) -> None:
        given.append(limits)

    monkeypatch.setattr("dollartune.serve.run.build_service", build)
    monkeypatch.setattr("dollartune.serve.run.serve", lambda *args: None)
    monkeypatch.setattr("dollartune.serve.run.dtype_notes", lambda *args: [])
    serve("tiny-decoder")
    serve("tiny-decoder", queue=3, request_seconds=4.0, body_bytes=5000, cache_bytes=0, new_tokens=6, batch_rows=2)
    assert given[0] == Limits(), "what is not said is as in the library"
    told = Limits(queue=3, request_seconds=4.0, body_bytes=5000, shared_bytes=0, new_tokens=6, batch_rows=2)
    assert given[1] == told


@pytest.mark.parametrize(
    ("tuned", "weights"),
    [
        ([], "float32"),
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["bfloat16", "float32"], "float32"),
        ([None], "float32"),
        (["float9"], "float32"),
    ],
)
def test_adapters_are_served_with_the_weights_that_they_were_tuned_with(tuned: list[str | None], weights: str) -> None:
    infos = {str(number): {} if one is None else {"dtype": one} for number, one in enumerate(tuned)}
    assert served_dtype(infos) == weights


def test_a_processor_serves_weights_of_half_precision_in_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the values that they were tuned with, rounding included, and not with those of the checkpoint."""
    folder = write_tiny(tmp_path / "model", "llama")
    monkeypatch.setattr("dollartune.serve.run.served_dtype", lambda infos: "bfloat16")
    served = build_service(str(folder), {}, Limits(), device="cpu").backbone.model
    tuned = load_backbone(str(folder), dtype=torch.bfloat16).model
    assert served.dtype == torch.float32
    for name, weight in tuned.named_parameters():
        assert torch.equal(served.get_parameter(name), weight.float())


def test_another_number_format_than_the_tuned_one_is_said() -> None:
    service: Any = SimpleNamespace(backbone=SimpleNamespace(model=SimpleNamespace(dtype=torch.float32)))
    (note,) = dtype_notes(service, {"a": {"dtype": "bfloat16"}, "b": {"dtype": "float32"}, "c": {}})
    assert note.startswith("a: tuned in bfloat16, served in float32")


def test_rotary_tables_are_those_of_predict_where_weights_are_bf16(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")
    loaded = load_backbone(str(folder), dtype=torch.bfloat16).model
    served = build_service(str(folder), {}, Limits(), dtype="bfloat16").backbone.model
    assert served.dtype == loaded.dtype == torch.bfloat16
    tables = {name: buffer for name, buffer in loaded.named_buffers() if name.endswith("inv_freq")}
    assert tables
    for name, table in tables.items():
        found = served.get_buffer(name)
        assert found.dtype == table.dtype == torch.float32
        assert torch.equal(found, table)
