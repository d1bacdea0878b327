"""The server's addresses: OpenAI's client, streams, labels, hot adapters, keys, limits, and hostile requests."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.errors import UserError
from dollartune.evaluate.predict import predict_rows
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.opening import open_adapter
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.prompt import PromptTuning
from dollartune.serve.app import create_app
from dollartune.serve.connections import guarded_protocol
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service, listen
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb

TASK = {
    "name": "colours",
    "kind": "classification",
    "prompt": "w1 {text} Answer :",
    "label_words": {"a": "yes", "b": "no"},
    "metric": "accuracy",
    "max_answer_tokens": 4,
}
KEY = "a secret"


class Running:
    """A server on a thread, with its address."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.root = root
        model = write_tiny(root / "model", "llama")
        backbone = load_backbone(str(model))
        methods = {"lora": [LoRA(rank=2)], "ia3": [IA3()], "prompt": [PromptTuning(tokens=3)], "spare": [LoRA(rank=4)]}
        for seed, (adapter_name, own) in enumerate(methods.items()):
            adapter = Adapter(own, backbone.anatomy, backbone.model, seed)
            perturb(adapter, 0.2, seed)
            info = {
                "backbone": str(model),
                "objective": "language",
                "tokenizer": tokenizer_hash(backbone.processor),
                "task": TASK,
            }
            save_adapter(root / "adapters" / adapter_name, adapter, info)
        served = {name: root / "adapters" / name for name in ("lora", "ia3", "prompt")}
        self.service = build_service(str(model), served, limits, root / "adapters")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server = uvicorn.Server(
            uvicorn.Config(
                create_app(self.service, KEY),
                port=self.port,
                log_level="error",
                access_log=False,
                http=guarded_protocol(limits),
            )
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def stop(self) -> None:
        self.http.close()
        self.openai.close()
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = Running(
        tmp_path_factory.mktemp("server"),
        Limits(
            batch_rows=4,
            new_tokens=40,
            body_bytes=100_000,
            body_seconds=1.0,
            idle_seconds=1.0,
            connections=60,
            labels=100,
        ),
    )
    yield found
    found.stop()


def test_openai_client_completes_and_streams(running: Running) -> None:
    names = {model.id for model in running.openai.models.list()}
    assert {"lora", "ia3", "prompt"} <= names
    for name in ("lora", "ia3", "prompt", "model"):
        whole = running.openai.completions.create(model=name, prompt="w1 w2 w3", max_tokens=9, temperature=0)
        text = whole.choices[0].text
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == 3
        pieces = list(
            running.openai.completions.create(model=name, prompt="w1 w2 w3", max_tokens=9, temperature=0, stream=True)
        )
        assert "".join(piece.choices[0].text for piece in pieces) == text
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    both = running.openai.completions.create(model="lora", prompt=["w1 w2 w3", "w9"], max_tokens=9, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]


def test_openai_client_chats(running: Running) -> None:
    messages: Any = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    whole = running.openai.chat.completions.create(model="lora", messages=messages, max_tokens=9, temperature=0)
    stream = running.openai.chat.completions.create(
        model="lora",
        messages=messages,
        max_tokens=9,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        running.openai.chat.completions.create(model="other", messages=messages)


def test_classify_equals_predict(running: Running) -> None:
    rows = [{"text": "w3 w4"}, {"text": "w50"}]
    answer = running.http.post("/v1/classify", json={"model": "lora", "input": rows}).json()
    expected = predict_rows(open_adapter(running.root / "adapters" / "lora"), rows)
    for found, wanted in zip(answer["data"], expected, strict=True):
        assert found["label"] == wanted.predicted
        assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    (alone,) = running.http.post("/v1/classify", json={"model": "lora", "input": "w3 w4"}).json()["data"]
    assert alone["label"] == answer["data"][0]["label"]
    assert alone["probabilities"] == pytest.approx(answer["data"][0]["probabilities"], abs=1e-5)  # of a batch of one
    assert running.http.post("/v1/classify", json={"model": "lora", "input": {"other": "x"}}).status_code == 400
    assert running.http.post("/v1/classify", json={"model": "model", "input": "x"}).status_code == 400


def test_adapters_are_added_and_removed(running: Running) -> None:
    added = running.http.post("/v1/adapters", json={"name": "hot", "folder": "spare"})
    assert added.status_code == 201, added.text
    assert added.json()["methods"] == ["lora"]
    assert running.http.post("/v1/adapters", json={"name": "hot", "folder": "spare"}).status_code == 409
    assert running.openai.completions.create(model="hot", prompt="w1", max_tokens=3).model == "hot"
    assert running.http.delete("/v1/adapters/hot").status_code == 200
    assert running.http.delete("/v1/adapters/hot").status_code == 404


@pytest.mark.parametrize(
    ("name", "folder"),
    [("../x", "spare"), ("x", "../model"), ("x", "/etc"), ("x", "nothing"), ("x", "."), ("x", "a\0b"), ("", "spare")],
)
def test_hostile_names_and_folders_are_refused(running: Running, name: str, folder: str) -> None:
    answer = running.http.post("/v1/adapters", json={"name": name, "folder": folder})
    assert answer.status_code == 400, answer.text
    assert str(running.root) not in answer.text


@pytest.mark.parametrize("hostile", ["pickle", "code", "nan", "shape", "tokenizer", "json"])
def test_hostile_adapters_are_refused_and_the_server_stays_up(running: Running, hostile: str) -> None:
    folder = running.root / "adapters" / f"hostile_{hostile}"
    shutil.copytree(running.root / "adapters" / "spare", folder)
    weights, config = folder / "adapter.safetensors", folder / "adapter.json"
    tensors, info = load_file(weights), json.loads(config.read_text())
    name = next(iter(tensors))
    if hostile == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif hostile in ("nan", "shape"):
        save_file(
            {**tensors, name: torch.full((3, 3) if hostile == "shape" else tensors[name].shape, torch.nan)}, weights
        )
    info |= {"code": {"auto_map": {"AutoModel": "evil.Model"}}, "tokenizer": {"tokenizer": "0000"}}.get(hostile, {})
    config.write_text("[" * 50_000 if hostile == "json" else json.dumps(info))
    answer = running.http.post("/v1/adapters", json={"name": "hostile", "folder": folder.name})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert "hostile" not in {model.id for model in running.openai.models.list()}
    assert httpx.get(f"{running.url}/health").status_code == 200


def settings(**values: Any) -> Any:
    """Changes an adapter's first method."""
    return lambda info, tensors: info["methods"][0].update(values)


def task(**values: Any) -> Any:
    """Changes an adapter's task."""
    return lambda info, tensors: info["task"].update(values)


def weights(change: Any) -> Any:
    """Changes every tensor."""
    return lambda info, tensors: tensors.update({name: change(tensor) for name, tensor in tensors.items()})


FOREIGN = {
    "a rank of two millions": settings(rank=2_000_000),
    "a rank of ten to the thirtieth": settings(rank=10**30),
    "5,000 methods": lambda info, tensors: info.update(methods=info["methods"] * 5000),
    "virtual tokens": lambda info, tensors: info.update(methods=[{"method": "prompt", "tokens": 10**9}]),
    "20,000 labels": task(label_words={str(i): f"w{i}" for i in range(20_000)}),
    "a scale that is no number": settings(alpha=float("nan")),
    "a length that is a text": lambda info, tensors: info.update(max_length="a"),
    "a negative length": lambda info, tensors: info.update(max_length=-5),
    "a negative answer": task(max_answer_tokens=-1),
    "a prompt that pads": task(prompt="{text:>2000000000}"),
    "a prompt with a directive": task(prompt="{text:>20}"),
    "a prompt that is a number": task(prompt=5),
    "label words that are numbers": task(label_words={"a": 1, "b": 2}),
    "int8": weights(lambda t: (t * 100).to(torch.int8)),
    "bool": weights(lambda t: t > 0),
    "float8": weights(lambda t: t.to(torch.float8_e4m3fn)),
    "a tensor too few": lambda info, tensors: tensors.pop(next(iter(tensors))),
    "a tensor too many": lambda info, tensors: tensors.update({"x.y": torch.zeros(3)}),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_adapters_are_refused_with_the_reason(running: Running, what: str) -> None:
    folder = running.root / "adapters" / "foreign"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(running.root / "adapters" / "spare", folder)
    info, tensors = json.loads((folder / "adapter.json").read_text()), load_file(folder / "adapter.safetensors")
    FOREIGN[what](info, tensors)
    save_file(tensors, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(json.dumps(info))
    answer = running.http.post("/v1/adapters", json={"name": "foreign", "folder": "foreign"})
    assert answer.status_code == 400, answer.text
    assert "server's log" not in answer.json()["error"]["message"], "refused by a check, not by what went wrong"


def test_a_field_of_a_foreign_prompt_is_a_column_and_looks_nothing_up(running: Running) -> None:
    folder = running.root / "adapters" / "looking up"
    shutil.copytree(running.root / "adapters" / "spare", folder)
    info = json.loads((folder / "adapter.json").read_text())
    info["task"]["prompt"] = "w1 {text.__class__.__init__.__globals__} Answer :"
    (folder / "adapter.json").write_text(json.dumps(info))
    for name in ("looking-up", "plain"):
        put = {"name": name, "folder": "looking up" if name == "looking-up" else "spare"}
        assert running.http.post("/v1/adapters", json=put).status_code == 201
    asked = [{"model": name, "input": "w3 w4"} for name in ("looking-up", "plain")]
    same, expected = (running.http.post("/v1/classify", json=body).json()["data"] for body in asked)
    assert same == expected, "the row's text stands where the field is"
    body = {"model": "looking-up", "input": {"text": "w3"}}
    assert "a row lacks text.__class__" in running.http.post("/v1/classify", json=body).text
    for name in ("looking-up", "plain"):
        assert running.http.delete(f"/v1/adapters/{name}").status_code == 200


def test_sizes_are_compared_before_memory_is_taken(running: Running) -> None:
    folder = running.root / "adapters" / "sizes"
    shutil.copytree(running.root / "adapters" / "spare", folder)
    info = json.loads((folder / "adapter.json").read_text())
    # 10**13 values: no machine of ours could build them, so that only a check before it can answer
    info["methods"][0]["rank"] = 10**11
    (folder / "adapter.json").write_text(json.dumps(info))
    answer = running.http.post("/v1/adapters", json={"name": "sizes", "folder": "sizes"})
    assert answer.status_code == 400
    assert "do not belong together" in answer.text


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_links_out_of_the_folder_are_refused(running: Running, tmp_path: Path, name: str) -> None:
    folder = running.root / "adapters" / f"linked {name}"
    shutil.copytree(running.root / "adapters" / "spare", folder)
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    answer = running.http.post("/v1/adapters", json={"name": "linked", "folder": folder.name})
    assert answer.status_code == 400
    assert "symbolic link" in answer.text
    (running.root / "adapters" / f"loop of {name}").symlink_to(f"loop of {name}")
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    for looped in (f"loop of {name}", folder.name, "a" * 5000):
        answer = running.http.post("/v1/adapters", json={"name": "x", "folder": looped})
        assert answer.status_code == 400
        assert "the server's log says why" not in answer.text


@pytest.mark.parametrize("huge", ["tensors", "scale"])
def test_values_that_overflow_are_an_error_and_not_an_empty_text(running: Running, huge: str) -> None:
    folder = running.root / "adapters" / f"huge {huge}"
    shutil.copytree(running.root / "adapters" / "spare", folder)
    info, tensors = json.loads((folder / "adapter.json").read_text()), load_file(folder / "adapter.safetensors")
    if huge == "scale":
        info["methods"][0]["alpha"] = 1e308
        (folder / "adapter.json").write_text(json.dumps(info))
    else:
        tensors = {name: torch.full_like(tensor, 1e38) for name, tensor in tensors.items()}
        save_file(tensors, folder / "adapter.safetensors")
    assert running.http.post("/v1/adapters", json={"name": "huge", "folder": folder.name}).status_code == 201
    body = {"model": "huge", "prompt": "w1", "max_tokens": 4, "temperature": 0}
    for answer in (
        running.http.post("/v1/completions", json=body),
        running.http.post("/v1/classify", json={"model": "huge", "input": "w1"}),
        running.http.post("/v1/embeddings", json={"model": "huge", "input": "w1"}),
    ):
        assert answer.status_code == 400
        assert "not finite" in answer.json()["error"]["message"]
    assert running.http.delete("/v1/adapters/huge").status_code == 200


def test_an_adapter_is_replaced_while_it_runs(running: Running) -> None:
    def ask(**more: Any) -> str:
        return str(
            running.openai.completions.create(model="new", prompt="w1 w2", max_tokens=20, temperature=0, **more)
            .choices[0]
            .text
        )

    put = {"name": "new", "folder": "lora"}
    assert running.http.post("/v1/adapters", json=put).status_code == 201
    first = ask()
    body = {"model": "new", "prompt": "w1 w2", "max_tokens": 20, "temperature": 0, "stream": True}
    with running.http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        read = [next(lines)]
        other = {"name": "new", "folder": "ia3", "replace": True}
        assert (
            httpx.post(f"{running.url}/v1/adapters", json=other, headers={"Authorization": f"Bearer {KEY}"}).status_code
            == 201
        )
        read += list(lines)
    events = [json.loads(line[6:]) for line in read if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == first, (
        "what runs ends with the adapter it began with"
    )
    expected = running.openai.completions.create(model="ia3", prompt="w1 w2", max_tokens=20, temperature=0)
    assert ask() == expected.choices[0].text
    assert running.http.delete("/v1/adapters/new").status_code == 200
    assert running.http.post("/v1/adapters", json=put).status_code == 201, "a name is free at once"
    assert ask() == first
    assert running.http.delete("/v1/adapters/new").status_code == 200


@pytest.mark.parametrize(
    "opening", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "headers that drip in"]
)
def test_sockets_that_say_nothing_keep_nobody_out(running: Running, opening: bytes) -> None:
    sockets = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(80)]  # 60 connections are allowed
    try:
        for silent in sockets:
            silent.sendall(opening)
        assert httpx.get(f"{running.url}/health").status_code == 200
        last, closed, deadline = sockets[-1], False, time.monotonic() + 30
        last.settimeout(0.1)
        while not closed and time.monotonic() < deadline:
            try:
                if opening:
                    last.sendall(b"X-A: b\r\n")
                closed = last.recv(100) == b""
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                closed = True
        assert closed, "the server waits a second for a whole request, whatever bytes drip in"
    finally:
        for silent in sockets:
            silent.close()


def test_half_a_character_is_refused(running: Running) -> None:
    for address, body in {
        "completions": b'{"model": "lora", "prompt": "\\ud800"}',
        "chat/completions": b'{"model": "lora", "messages": [{"role": "user", "content": "\\udc00 a"}]}',
        "classify": b'{"model": "lora", "input": {"text": "\\ud800"}}',
    }.items():
        answer = running.http.post(f"/v1/{address}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert "surrogate" in answer.json()["error"]["message"]


def test_the_port_is_taken_before_anything_is_said() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_keys(running: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": "Bearer \xff"}):
        for address in ("/v1/models", "/metrics"):
            answer = httpx.get(running.url + address, headers={k: v.encode("latin-1") for k, v in headers.items()})  # type: ignore[misc]
            assert answer.status_code == 401
    assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"null", 400),
        (b"[" * 5000, 400),
        (b'{"model": "lora"}', 400),
        (b'{"model": "lora", "prompt": 5}', 400),
        (b'{"model": "lora", "prompt": "w1", "max_tokens": 0}', 400),
        (b'{"model": "lora", "prompt": "w1", "max_tokens": 41}', 400),
        (b'{"model": "lora", "prompt": "w1", "temperature": 1e400}', 400),
        (b'{"model": "lora", "prompt": "w1", "suffix": "w2"}', 400),
        (b'{"model": "../lora", "prompt": "w1"}', 404),
        (b'{"model": "lora", "prompt": "w1", "stream": 1}', 400),
        (b'{"model": "lora", "prompt": "w1", "n": 2, "best_of": 1}', 400),
        (b'{"model": "lora", "prompt": "' + b"w1 " * 30_000 + b'"}', 400),
        (b" " * 200_000, 413),
        (b'{"model": "lora", "prompt": "' + b"w" * 10_000_000 + b'"}', 413),
    ],
    ids=range(17),
)
def test_hostile_bodies_are_refused(running: Running, body: bytes, status: int) -> None:
    answer = running.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert httpx.get(f"{running.url}/health").status_code == 200


@pytest.mark.parametrize(
    "settings", [{"top_p": 5e-324}, {"temperature": 5e-324}, {"temperature": 1e-40, "top_p": 1e-30}]
)
def test_the_smallest_settings_are_greedy(running: Running, settings: dict[str, Any]) -> None:
    greedy = (
        running.openai.completions.create(model="lora", prompt="w1 w2", max_tokens=9, temperature=0).choices[0].text
    )
    assert (
        running.openai.completions.create(model="lora", prompt="w1 w2", max_tokens=9, **settings).choices[0].text
        == greedy
    )


def test_slow_clients_are_refused(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.settimeout(20)
        client.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 50\r\n\r\n{{".encode()
        )
        assert b"408" in client.recv(1000)


@pytest.mark.parametrize("address", ["completions", "chat/completions"])
def test_a_client_that_leaves_without_a_stream_frees_its_rows(running: Running, address: str) -> None:
    asked = {"prompt": ["w1 w2"] * 8} if address == "completions" else {"messages": [{"role": "user", "content": "w1"}]}
    body = json.dumps({"model": "lora", "max_tokens": 40, "n": 8, "temperature": 0, **asked}).encode()
    head = (
        f"POST /v1/{address} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    )
    engine = running.service.engine
    held = threading.Event()
    blocked = engine.call(lambda: held.wait(60))  # the engine waits, so that the client surely leaves before it is done
    deadline = time.monotonic() + 60
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not engine._waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        waiting, written = list(engine._waiting), engine.generated
    while not all(sequence.cancelled.is_set() for sequence in waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    held.set()
    blocked.result(60)
    served = running.service.pool.get("lora")
    assert served is not None
    while served.rows and time.monotonic() < deadline:
        time.sleep(0.01)
    assert waiting
    assert served.rows == 0
    assert engine.generated == written, "nothing was written for a client that had left"


def test_a_client_that_leaves_frees_its_row(running: Running) -> None:
    body = {"model": "lora", "prompt": "w1 w2", "max_tokens": 40, "stream": True, "temperature": 0}
    with running.http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 10
    served = running.service.pool.get("lora")
    assert served is not None
    while (running.service.engine.running or served.rows) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (running.service.engine.running, served.rows) == (0, 0)


def test_metrics_count_what_was_answered(running: Running) -> None:
    running.openai.completions.create(model="lora", prompt="w1", max_tokens=3)
    families = {family.name: family for family in text_string_to_metric_families(running.http.get("/metrics").text)}
    values = {
        (s.name, *dict(sorted(s.labels.items())).values()): s.value
        for family in families.values()
        for s in family.samples
    }
    answered = values["dollartune_requests_total", "/v1/completions", "200"]
    assert answered >= 1
    assert values["dollartune_request_seconds_count", "/v1/completions"] >= answered, "refused ones are timed, too"
    assert values["dollartune_request_seconds_bucket", "+Inf", "/v1/completions"] >= answered
    assert values["dollartune_adapters",] == 3
    assert 1 <= values["dollartune_generated_tokens_total",] <= running.service.engine.generated
    assert 1 <= values["dollartune_steps_total",] <= running.service.engine.steps
    assert families["dollartune_running_sequences"].type == "gauge"


def test_load_balancers_ask_for_health_without_a_body(running: Running) -> None:
    answer = running.http.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_openapi_page_names_every_address(running: Running) -> None:
    paths = running.http.get("/openapi.json").json()["paths"]
    expected = {
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/classify",
        "/v1/adapters",
    }
    assert expected <= paths.keys()


def test_many_clients_at_once_get_what_they_get_alone(running: Running) -> None:
    def ask(index: int) -> str:
        name = ("lora", "ia3", "prompt", "model")[index % 4]
        body = {"model": name, "prompt": f"w{index % 6} w2", "max_tokens": 6, "temperature": 0}
        answer = httpx.post(
            f"{running.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        return str(json.loads(answer.text)["choices"][0]["text"])

    alone = {index: ask(index) for index in range(12)}
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: ask(i)})) for i in range(36)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(found[index] == alone[index % 12] for index in range(36))
