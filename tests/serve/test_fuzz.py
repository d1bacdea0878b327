"""The server under schemathesis: requests made up from its own OpenAPI page. `make fuzz` installs the tool and runs this."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.lora import LoRA
from dollartune.serve.app import create_app
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.testing.directory import write_tiny

TOOL = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")


@pytest.mark.slow
@pytest.mark.skipif(not TOOL, reason="schemathesis is not installed; `make fuzz` installs it and runs this")
def test_made_up_requests_are_answered_as_the_page_says(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", "llama")
    backbone = load_backbone(str(model))
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    info = {"backbone": str(model), "objective": "language", "tokenizer": tokenizer_hash(backbone.processor)}
    save_adapter(tmp_path / "adapters" / "lora", adapter, info)
    service = build_service(
        str(model), {"lora": tmp_path / "adapters" / "lora"}, Limits(new_tokens=20), tmp_path / "adapters"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(service, "key"), port=port, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{port}"
    command = [str(TOOL), "run", f"{url}/openapi.json", "--header", "Authorization: Bearer key", "--seed", "1"]
    command += ["--max-examples", os.environ.get("FUZZ_EXAMPLES", "30"), "--no-color"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    try:
        done = subprocess.run(
            [*command, "--checks", checks], capture_output=True, text=True, cwd=tmp_path, timeout=1200
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    finally:
        server.should_exit = True
        thread.join(20)
