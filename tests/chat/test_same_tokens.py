"""One question, all ways to ask it: tuning, predicting and serving give the model the same tokens, those of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES, write_chat_backbone

from dollartune.evaluate.predict import predict_rows
from dollartune.export.opening import open_adapter
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.study.api import Study
from dollartune.train.batching import Collator

testclient = pytest.importorskip("fastapi.testclient")

SYSTEM = "Answer with one word."


@contextmanager
def inputs_read(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """The tokens of every prompt that a model reads, without padding."""
    found: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, given: Any) -> None:
        ids = given.get("input_ids", args[0] if args else None)
        if ids is None or ids.shape[1] < 3:  # single tokens after a prompt
            return
        mask = given.get("attention_mask", ids.new_ones(ids.shape))[:, -ids.shape[1] :].bool()
        found.extend(tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@pytest.fixture(scope="module", params=[*sorted(TEMPLATES), "plain"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small adapter tuned on one question after another, what it read in training, and where it is stored."""
    root = tmp_path_factory.mktemp(request.param)
    kind = "chatml" if request.param == "plain" else request.param
    model = write_chat_backbone(root / "model", kind)
    things = ["the film", "my lunch", "this song", "a long walk", "the book", "our trip", "the game", "her speech"]
    rows = [{"text": f"{thing} was {n}", "answer": f"it was {n}"} for n in range(4) for thing in things]
    data = root / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    task = {"data": str(data), "prompt": "What of this: {text}?", "target": "answer", "max_answer_tokens": 4}
    task |= {"chat": "never"} if request.param == "plain" else {"system": SYSTEM}
    read: set[tuple[int, ...]] = set()
    patch = pytest.MonkeyPatch()
    plain_call = Collator.__call__

    def noted(self: Collator, rows: Any, width: int = 0) -> Any:
        batch = plain_call(self, rows, width)
        assert batch.keep is not None
        ids = batch.inputs["input_ids"]
        for row, (encoded, length) in enumerate(zip(rows, batch.prompt_lengths.tolist(), strict=True)):  # type: ignore[union-attr]
            read.add(tuple(ids[row, :length].tolist()))
            assert int(batch.inputs["attention_mask"][row].sum()) == encoded.length - 1
        return batch

    patch.setattr(Collator, "__call__", noted)
    try:
        study = Study(
            name="chats", backbone=str(model), task=task, methods=[{"lora": {"rank": 2}}], scales=[8], seeds=1,
            training={"epochs": 1, "validation_rows": 4}, evaluation={"rows": 2, "forgetting": False, "inference_cost": False},
            keep_adapters="all", output=str(root / "studies"),
        )  # fmt: skip
        (record,) = study.run().done()
    finally:
        patch.undo()
    folder = root / "studies" / "chats" / "trials" / record.id / "adapter"
    texts = [row["text"] for row in rows]
    return {"kind": request.param, "model": model, "read": read, "folder": folder, "texts": texts}


def test_tuning_predicting_and_serving_read_the_same_tokens(tuned: dict[str, Any]) -> None:
    opened = open_adapter(tuned["folder"])
    tokenizer = opened.backbone.processor
    service = build_service(str(tuned["model"]), {"mine": tuned["folder"]}, Limits(batch_rows=1, new_tokens=8), None)
    from dollartune.serve.app import create_app

    trained = 0
    with testclient.TestClient(create_app(service)) as client:
        for text in tuned["texts"]:
            question = f"What of this: {text}?"
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            if tuned["kind"] == "plain":
                expected = tuple(tokenizer(question).input_ids)
            else:
                if tuned["kind"] in ("mistral", "gemma"):
                    turns = [{"role": "user", "content": f"{SYSTEM}\n\n{question}"}]
                expected = tuple(
                    tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
                )
            if expected not in tuned["read"]:
                continue
            trained += 1
            with inputs_read(opened.backbone.model) as predicting:
                (prediction,) = predict_rows(opened, [{"text": text}])
            with inputs_read(service.backbone.model) as serving:
                body = {"model": "mine", "messages": [{"role": "user", "content": question}], "max_tokens": 4}
                answer = client.post("/v1/chat/completions", json={**body, "temperature": 0}).json()
            assert predicting[0] == expected
            assert serving[0] == expected
            assert answer["usage"]["prompt_tokens"] == len(expected)
            assert answer["choices"][0]["message"]["content"].strip() == prediction.predicted
            if trained == 3:
                break
    assert trained == 3


def test_the_adapter_remembers_its_template(tuned: dict[str, Any]) -> None:
    task = json.loads((tuned["folder"] / "adapter.json").read_text())["task"]
    card = (tuned["folder"] / "README.md").read_text()
    if tuned["kind"] == "plain":
        assert "chat_template" not in task
        assert "chat template" not in card
    else:
        assert task["chat_template"] == TEMPLATES[tuned["kind"]]
        assert task["system"] == SYSTEM
        assert "chat template" in card


def test_a_tokenizer_that_lost_its_template_still_asks_by_the_adapters(tuned: dict[str, Any], tmp_path: Path) -> None:
    opened = open_adapter(tuned["folder"])
    with inputs_read(opened.backbone.model) as before:
        predict_rows(opened, [{"text": "the film was 1"}])
    opened.backbone.processor.chat_template = None
    opened.encoder._chats.clear()
    with inputs_read(opened.backbone.model) as after:
        predict_rows(opened, [{"text": "the film was 1"}])
    assert before[0] == after[0]


def test_the_bare_backbone_is_asked_by_the_tokenizers_template(tuned: dict[str, Any]) -> None:
    service = build_service(str(tuned["model"]), {}, Limits(batch_rows=1, new_tokens=8), None)
    from dollartune.serve.app import create_app

    tokenizer = service.backbone.processor
    turns = [
        {"role": "user", "content": "Say hi"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "So"},
    ]
    expected = tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
    with testclient.TestClient(create_app(service)) as client, inputs_read(service.backbone.model) as serving:
        body = {"model": service.pool.base_name, "messages": turns, "max_tokens": 1, "temperature": 0}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        wrong = {**body, "messages": [{"role": "assistant", "content": "hi"}]}
        status = client.post("/v1/chat/completions", json=wrong).status_code
    assert serving[0] == expected
    # Mistral's template refuses a conversation that the assistant begins, and the server says so instead of failing
    assert status == (400 if tuned["kind"] == "mistral" else 200)


def test_a_busy_server_answers_greedily_what_predict_does(tuned: dict[str, Any]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from dollartune.serve.app import create_app

    opened = open_adapter(tuned["folder"])
    expected = [one.predicted for one in predict_rows(opened, [{"text": text} for text in tuned["texts"]])]
    service = build_service(str(tuned["model"]), {"mine": tuned["folder"]}, Limits(batch_rows=8, new_tokens=8), None)
    with testclient.TestClient(create_app(service)) as client:

        def ask(text: str) -> str:
            turns = [{"role": "user", "content": f"What of this: {text}?"}]
            body = {"model": "mine", "messages": turns, "max_tokens": 4, "temperature": 0}
            return str(
                client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
            ).strip()

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, tuned["texts"]))
    assert answers == expected
    assert len(set(expected)) > 1  # one answer to everything would hide rows that are mixed up
