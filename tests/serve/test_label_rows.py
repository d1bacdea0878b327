"""Label rows of all adapters share passes: each row's probabilities are those of its adapter alone, the plain way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.evaluate.predict import Tuned, predict_rows
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.base import Method
from dollartune.methods.full import Full
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.pfeiffer import Pfeiffer
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.methods.reft import ReFT
from dollartune.serve import label_rows
from dollartune.serve.label_rows import LabelRow, score_labels, shares_passes
from dollartune.serve.limits import Refused
from dollartune.serve.service import Service
from dollartune.serve.streaming import while_connected
from dollartune.testing.practice import perturb

WORDS = (
    {"good": "good", "bad": "bad"},
    {"yes": "yes", "no": "not at all", "maybe": "it may well be so"},
    {"a": "he", "b": "she"},
)
METHODS: dict[str, list[Method[Any]]] = {
    "lora": [LoRA(rank=2)],
    "wider_lora": [LoRA(rank=8)],
    "ia3": [IA3()],
    "prompt": [PromptTuning(tokens=3)],
    "prefix": [Prefix(tokens=5)],
    "pfeiffer": [Pfeiffer()],
    "both": [LoRA(rank=2), PromptTuning(tokens=2)],
}
ALONE: dict[str, list[Method[Any]]] = {
    "full": [Full()],
    "reft": [ReFT()],
    "half_prefix": [Prefix(tokens=4, layers="first 50%")],
}
"""Adapters whose rows are computed by themselves."""
LONG = "Read the review below with care, think about what whoever wrote it felt while writing, and say in one word what that is. "


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root, backbone = tmp_path_factory.mktemp("adapters"), load_backbone("tiny-decoder")
    served = Service(backbone, "tiny-decoder")
    for seed, (name, methods) in enumerate({**METHODS, **ALONE}.items()):
        adapter = Adapter(methods, backbone.anatomy, backbone.model, seed)
        perturb(adapter, 0.01 if name == "full" else 0.1, seed)
        words = WORDS[seed % len(WORDS)]
        if name == "ia3":
            adapter.label_offsets = torch.linspace(-1, 1, len(words))
        task = {
            "name": name,
            "kind": "classification",
            "prompt": f"{LONG if seed % 2 else ''}Review: {{text}}\nHow is it?",
            "metric": "accuracy",
            "label_words": words,
            "max_answer_tokens": 8,
        }
        info = {"backbone": "tiny-decoder", "objective": "language", "tokenizer": tokenizer_hash(backbone.processor)}
        save_adapter(root / name, adapter, {**info, "task": task})
        served.add_now(name, root / name)
    served.engine.start()
    yield served
    served.engine.stop(0)


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": "once upon a time " * (number % 4) + f"number {number}"} for number in range(count)]


def plainly(service: Service, name: str, rows: list[dict[str, str]]) -> list[dict[str, float] | None]:
    return [row.probabilities for row in predict_rows(service._tuned(service.pool.get(name)), rows)]  # type: ignore[arg-type]


def asked(service: Service, name: str, rows: list[dict[str, str]]) -> list[LabelRow]:
    served = service.pool.get(name)
    assert served is not None
    tuned = service._tuned(served)
    answers = tuple(tuned.encoder.label_answers(tuned.task))
    return [LabelRow(served, prompt, answers) for prompt in tuned.prompts(rows)]


def test_rows_of_all_adapters_in_one_pass_are_those_of_each_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(5)
    mixed = [row for number in range(5) for name in METHODS for row in asked(service, name, rows[number : number + 1])]
    passes = []
    reading = label_rows.Reading
    monkeypatch.setattr(label_rows, "Reading", lambda pool, own: passes.append(len(own)) or reading(pool, own))  # type: ignore[func-returns-value]
    scores = iter(score_labels(service.pool, mixed))
    found = {name: [] for name in METHODS}  # type: ignore[var-annotated]
    for _ in rows:
        for name in METHODS:
            found[name].append(next(scores).softmax(-1).tolist())
    assert max(passes) > len(rows)  # rows of several adapters
    for name in METHODS:
        for probabilities, expected in zip(found[name], plainly(service, name, rows), strict=True):
            assert expected is not None
            assert probabilities == pytest.approx(list(expected.values()), abs=1e-5), name


def test_requests_for_all_adapters_at_once_get_what_each_gets_alone(service: Service) -> None:
    rows = texts(6)

    async def ask() -> list[Any]:
        names = [*METHODS, *ALONE]
        return await asyncio.gather(*(service.classify(name, list(rows)) for name in names))

    for name, (labels, probabilities) in zip([*METHODS, *ALONE], asyncio.run(ask()), strict=True):
        expected = plainly(service, name, rows)
        for label, own, plain in zip(labels, probabilities, expected, strict=True):
            assert plain is not None
            assert own == pytest.approx(plain, abs=1e-5), name
            assert label == max(plain, key=lambda one: plain[one])


def test_what_cannot_share_a_pass_is_computed_by_itself(service: Service) -> None:
    shares = {name: shares_passes(service.pool, service.pool.get(name)) for name in [*METHODS, *ALONE]}  # type: ignore[arg-type]
    assert {name for name, can in shares.items() if can} == set(METHODS)


def test_an_instruction_that_all_prompts_begin_with_is_read_once(service: Service) -> None:
    own = asked(service, "wider_lora", texts(4))
    assert len(own[0].prompt) > 32
    served = own[0].served
    service.pool.beginnings.forget(served)
    score_labels(service.pool, own)
    spared = service.pool.beginnings.tokens_spared
    score_labels(service.pool, asked(service, "wider_lora", texts(3)))
    beginning = service.pool.beginnings.known(served, own[0].prompt)
    assert beginning >= 20
    assert service.pool.beginnings.tokens_spared - spared >= 3 * beginning


def test_many_labels_of_many_tokens_are_scored_in_pieces(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = asked(service, "prompt", texts(3)) + asked(service, "wider_lora", texts(3))
    whole = score_labels(service.pool, rows)
    monkeypatch.setattr(label_rows, "ROWS", 2)
    for some, same in zip(score_labels(service.pool, rows), whole, strict=True):
        torch.testing.assert_close(some, same, atol=1e-5, rtol=1e-5)


def test_a_broken_adapter_is_refused_and_its_neighbours_are_answered(service: Service, tmp_path: Path) -> None:
    backbone = service.backbone
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model, 0)
    perturb(adapter, 0.1, 0)
    served = service.pool.get("lora")
    assert served is not None
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(1e30)
    save_adapter(tmp_path / "broken", adapter, served.info)
    service.add_now("broken", tmp_path / "broken")

    async def ask() -> list[Any]:
        names = ("lora", "broken", "prompt")
        return await asyncio.gather(*(service.classify(n, list(texts(3))) for n in names), return_exceptions=True)

    good, broken, other = asyncio.run(ask())
    assert good[1][0] == pytest.approx(plainly(service, "lora", texts(3))[0], abs=1e-5)
    assert other[1][0] == pytest.approx(plainly(service, "prompt", texts(3))[0], abs=1e-5)
    assert getattr(broken, "status", 200) == 400
    service.remove("broken")


def test_rows_are_read_beside_the_event_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    read_on: list[int] = []
    prompts = Tuned.prompts

    def noted(self: Tuned, rows: Any) -> Any:
        read_on.append(threading.get_ident())
        return prompts(self, rows)

    monkeypatch.setattr(Tuned, "prompts", noted)
    asyncio.run(service.classify("lora", list(texts(2))))  # type: ignore[arg-type]
    assert read_on
    assert threading.get_ident() not in read_on


def test_nothing_is_begun_for_who_has_left() -> None:
    class Left:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    begun: list[int] = []

    async def work() -> None:
        begun.append(1)

    with pytest.raises(Refused, match="has left"):
        asyncio.run(while_connected(Left(), work()))  # type: ignore[arg-type]
    assert not begun
