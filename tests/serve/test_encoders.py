"""Encoders served: adapters of tasks with different numbers of classes in one server, embeddings, peft's folders."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.evaluate.predict import predict_rows
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.handover import export_adapter
from dollartune.export.opening import open_adapter
from dollartune.methods.head import Head
from dollartune.methods.lora import LoRA
from dollartune.serve.app import create_app
from dollartune.serve.limits import Limits, Refused
from dollartune.serve.pool import Served
from dollartune.serve.prompts import Chat, PromptReader
from dollartune.serve.run import build_service
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb

LABELS = {"two": ("a", "b"), "four": ("a", "b", "c", "d")}


def write(root: Path, model: Path, name: str) -> Path:
    backbone = load_backbone(str(model), "classification", LABELS[name])
    adapter = Adapter([LoRA(rank=2), Head()], backbone.anatomy, backbone.model, len(name))
    perturb(adapter, 0.3, len(name))
    task = {
        "name": name, "kind": "classification", "prompt": "{text}", "metric": "accuracy", "max_answer_tokens": 4,
        "label_words": {label: label for label in LABELS[name]},
    }  # fmt: skip
    info = {
        "backbone": str(model),
        "objective": "classification",
        "tokenizer": tokenizer_hash(backbone.processor),
        "task": task,
    }
    save_adapter(root / name, adapter, info)
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    model = write_tiny(folder / "model", "bert/classification")
    for name in LABELS:
        write(folder / "adapters", model, name)
    export_adapter(folder / "adapters" / "four", folder / "adapters" / "as_peft", "peft")
    return folder


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Any]:
    served = {name: root / "adapters" / name for name in LABELS}
    service = build_service(str(root / "model"), served, Limits(), root / "adapters")
    with TestClient(create_app(service)) as found:
        yield found


def labels(client: Any, name: str, texts: list[str]) -> list[dict[str, float]]:
    answer = client.post("/v1/classify", json={"model": name, "input": texts})
    assert answer.status_code == 200, answer.text
    return [row["probabilities"] for row in answer.json()["data"]]


def test_tasks_of_two_and_of_four_classes_share_a_server(client: Any, root: Path) -> None:
    texts = [f"w{i} w{3 * i + 1}" for i in range(5)]
    for name, own in LABELS.items():
        expected = predict_rows(open_adapter(root / "adapters" / name), [{"text": text} for text in texts])
        found = labels(client, name, texts)
        assert [tuple(row) for row in found] == [own] * 5
        for row, prediction in zip(found, expected, strict=True):
            assert row == pytest.approx(prediction.probabilities, abs=1e-5)


def test_a_replaced_adapter_s_labels_are_those_of_the_new_one(client: Any) -> None:
    texts = ["w1 w2", "w3"]
    for folder in ("two", "four", "two"):
        added = client.post("/v1/adapters", json={"name": "changing", "folder": folder, "replace": True})
        assert added.status_code == 201, added.text
        assert labels(client, "changing", texts) == labels(client, folder, texts)
    client.delete("/v1/adapters/changing")


def test_a_peft_folder_is_loaded_by_vllm_s_address(client: Any, root: Path) -> None:
    path = str(root / "adapters" / "as_peft")
    answer = client.post("/v1/load_lora_adapter", json={"lora_name": "peft", "lora_path": path})
    assert answer.status_code == 200, answer.text
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'peft' added successfully.")
    assert labels(client, "peft", ["w1 w2"])[0] == pytest.approx(labels(client, "four", ["w1 w2"])[0], abs=1e-5)
    assert client.post("/v1/load_lora_adapter", json={"lora_name": "peft", "lora_path": path}).status_code == 409
    again = {"lora_name": "peft", "lora_path": "as_peft", "load_inplace": True}
    assert client.post("/v1/load_lora_adapter", json=again).status_code == 200
    outside = {"lora_name": "out", "lora_path": str(root / "model")}
    assert client.post("/v1/load_lora_adapter", json=outside).status_code == 400
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "peft", "lora_int_id": 3}).status_code == 200
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "peft"}).status_code == 404


def test_a_row_whose_text_is_null_is_refused_and_an_empty_one_is_read(client: Any) -> None:
    refused = client.post("/v1/classify", json={"model": "two", "input": [{"text": "w1"}, {"text": None}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    assert len(labels(client, "two", ["", "w1"])) == 2


def test_a_value_that_is_no_text_is_read_as_predicting_reads_it(client: Any, root: Path) -> None:
    value = {"w1": ["w2", None, True]}
    answer = client.post("/v1/classify", json={"model": "two", "input": {"text": value}}).json()["data"]
    (expected,) = predict_rows(open_adapter(root / "adapters" / "two"), [{"text": value}])
    assert answer[0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_embeddings_are_pooled_states_of_length_one(client: Any) -> None:
    texts = ["w1 w2 w3", "w5"]
    answer = client.post("/v1/embeddings", json={"model": "model", "input": texts}).json()
    vectors = torch.tensor([row["embedding"] for row in answer["data"]])
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    alone = client.post("/v1/embeddings", json={"model": "model", "input": "w5", "encoding_format": "base64"}).json()
    packed = base64.b64decode(alone["data"][0]["embedding"])
    assert struct.unpack(f"{len(packed) // 4}f", packed) == pytest.approx(vectors[1].tolist(), abs=1e-5)
    tuned = client.post("/v1/embeddings", json={"model": "two", "input": texts}).json()
    assert torch.tensor(tuned["data"][0]["embedding"]).sub(vectors[0]).abs().max() > 1e-3, (
        "an adapter's states are others"
    )
    unknown = client.post("/v1/embeddings", json={"model": "model", "input": [[1, 10**6]]})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "input")
    refused = client.post("/v1/embeddings", json={"model": "model", "input": "w1", "dimensions": 4})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": {"type": "json_object"}}, {"tools": [{"type": "function", "function": {"name": "f"}}]}],
)
def test_whoever_asks_an_encoder_for_text_is_told_what_it_does(client: Any, fields: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "w1"}]
    answer = client.post("/v1/chat/completions", json={"model": "model", "messages": messages, **fields})
    assert (answer.status_code, "/v1/classify" in answer.text) == (400, True), answer.text


def test_tokens_without_a_model_and_what_the_tokenizer_is(client: Any) -> None:
    tokens = client.post("/tokenize", json={"prompt": "w1 w2", "add_special_tokens": False}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "w1 w2"
    messages = [{"role": "user", "content": "w1"}]
    assert client.post("/tokenize", json={"model": "model", "messages": messages}).json()["count"] > 1
    assert client.post("/tokenize", json={"model": "model"}).status_code == 400
    assert client.get("/tokenizer_info").json()["eos_token"]


def test_reading_a_prompt_leaves_what_the_engine_set_on_its_tokenizer(root: Path) -> None:
    service = build_service(str(root / "model"), {"two": root / "adapters" / "two"}, Limits())
    text = "w1 w2 w3 " * 40
    whole = service.prompts.tokenize(text, True)
    engines = service.backbone.processor._tokenizer
    engines.enable_truncation(3)  # as it stands while the engine encodes rows of a classification
    try:
        assert service.prompts.tokenize(text, True) == whole
        assert engines.truncation is not None
    finally:
        engines.no_truncation()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"prompt": "w1"}),
        ("/tokenize", {"messages": [{"role": "user", "content": "w1"}]}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/embeddings", {"model": "tiny-vit", "input": "w1"}),
    ],
)
def test_a_model_of_pictures_says_that_it_reads_no_text(path: str, fields: dict[str, Any]) -> None:
    with TestClient(create_app(build_service("tiny-vit", {}, Limits())), raise_server_exceptions=False) as client:
        answer = client.post(path, json=fields)
    assert (answer.status_code, "reads no text" in answer.text) == (400, True), answer.text


def test_a_task_that_cannot_be_read_is_told_and_not_a_fault(root: Path) -> None:
    adapter = Adapter([LoRA(rank=2)], (backbone := load_backbone(str(root / "model"))).anatomy, backbone.model)
    reader = PromptReader(backbone)
    with pytest.raises(Refused, match="the adapter's task is malformed"):
        reader.ids(Chat((("user", "w1"),)), Served("a", adapter, {"task": {"name": "cut"}}, 0), 1)
