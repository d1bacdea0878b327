"""Continuous batching: whatever shares its batch and whenever it joins, each answer equals its answer alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dollartune.attachment import Adapter
from dollartune.backbones.chat import end_tokens
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.base import Method
from dollartune.methods.full import Full
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.pfeiffer import Pfeiffer
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.serve.batch import RunningBatch
from dollartune.serve.encoder_decoder_batch import EncoderDecoderBatch, shares_pass
from dollartune.serve.limits import Limits, Refused
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.service import Service
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb
from dollartune.testing.tiny import END, PAD, VOCABULARY

METHODS: dict[str, list[Method[Any]]] = {
    "lora_a": [LoRA(rank=2)],
    "lora_b": [LoRA(rank=4)],
    "ia3": [IA3()],
    "prompt": [PromptTuning(tokens=3)],
    "longer_prompt": [PromptTuning(tokens=7)],
    "prefix": [Prefix(tokens=4)],
    "longer_prefix": [Prefix(tokens=6), LoRA(rank=2)],
    "half_prefix": [Prefix(tokens=4, layers="first 50%")],
    "pfeiffer": [Pfeiffer()],
    "norm": [Norm()],
    "both": [LoRA(rank=2), PromptTuning(tokens=2)],
    "full": [Full()],
}


def write_adapters(backbone: Backbone, root: Path, methods: dict[str, list[Method[Any]]]) -> dict[str, Path]:
    for seed, (name, own) in enumerate(methods.items()):
        adapter = Adapter(own, backbone.anatomy, backbone.model, seed)
        perturb(adapter, 0.02 if name == "full" else 0.2, seed)
        save_adapter(
            root / name,
            adapter,
            {
                "backbone": backbone.name,
                "objective": "language",
                "tokenizer": tokenizer_hash(backbone.processor),
                "task": None,
            },
        )
    return {name: root / name for name in methods}


class Caught:
    """Collects what a sequence emits."""

    def __init__(self) -> None:
        self.text, self.reason = "", ""
        self.done = threading.Event()

    def __call__(self, piece: str, reason: str | None) -> None:
        self.text += piece
        if reason is not None:
            self.reason = reason
            self.done.set()


def ask(service: Service, model: str, prompt: str, **settings: Any) -> Caught:
    caught = Caught()
    asyncio.run(service.generate(model, [prompt], Sampling(**{"max_tokens": 8, **settings}), lambda index: caught))
    return caught


@pytest.fixture(params=["llama", "opt", "gpt2", "bloom"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    without = (
        {"half_prefix"} if request.param == "bloom" else set()
    )  # its own attention code takes prefixes in all layers
    yield from running(request.param, tmp_path, methods={n: own for n, own in METHODS.items() if n not in without})


def running(
    family: str, folder: Path, limits: Limits | None = None, methods: dict[str, list[Method[Any]]] | None = None
) -> Iterator[Service]:
    backbone = load_backbone(str(write_tiny(folder / "model", family)))
    service = Service(backbone, "base", limits or Limits(batch_rows=6, new_tokens=40), folder)
    for name, path in write_adapters(backbone, folder / "adapters", METHODS if methods is None else methods).items():
        service.add_now(name, path)
    service.engine.start()
    yield service
    service.engine.stop(1.0)


def alone(service: Service, model: str, prompt: str, tokens: int) -> str:
    """The answer by transformers' own generation, one row at a time."""
    backbone, attached = service.backbone, service.pool.attached
    ids = torch.tensor([service.prompts.encoder.prompt_ids(prompt)])
    with attached.routed(None if model == "base" else model, batch_rows=1):
        written = attached.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=backbone.processor.pad_token_id,
            eos_token_id=sorted(end_tokens(backbone)),  # no stored setting says where texts end
        )
    return str(backbone.processor.decode(written[0], skip_special_tokens=True))


def test_mixed_rows_that_come_and_go_equal_alone(service: Service) -> None:
    names = ["base", *(name for name in METHODS if service.pool.get(name) is not None)]
    prompts = [" ".join(f"w{(7 * i + j) % 80}" for j in range(2 + i % 5)) for i in range(22)]
    asked = []
    for index, prompt in enumerate(prompts):
        model, tokens = names[index % len(names)], 3 + (5 * index) % 11
        asked.append((model, prompt, tokens, ask(service, model, prompt, max_tokens=tokens)))
        if index % 4 == 3:
            time.sleep(0.01)
    for *_, caught in asked:
        assert caught.done.wait(60)
    found = [(model, caught.text, caught.reason in ("stop", "length")) for model, _, _, caught in asked]
    expected = service.engine.call(
        lambda: [(model, alone(service, model, prompt, n), True) for model, prompt, n, _ in asked]
    ).result(60)
    assert found == expected
    assert len({text for _, text, _ in found}) > 8  # the adapters do differ


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_are_answered_in_mixed_batches(family: str, tmp_path: Path) -> None:
    methods = {name: METHODS[name] for name in ("lora_a", "lora_b", "prompt", "prefix")}
    methods["inside"] = [PromptTuning(tokens=2, stacks="decoder")] if family == "t5" else [IA3()]
    methods |= {"like_peft": [Prefix(tokens=4, like_peft=True)]} if family == "t5" else {}
    for service in running(family, tmp_path, methods=methods):
        # BART's config ends texts that are cut short with an end mark; answers here are what the weights say
        service.backbone.model.generation_config.forced_eos_token_id = None
        asked = []
        for i, name in enumerate(["base", *methods] * 3):
            prompt, tokens = f"w{i} w{i + 3}" * (1 + i % 3), 3 + (5 * i) % 11
            asked.append((name, prompt, tokens, ask(service, name, prompt, max_tokens=tokens)))
            if i % 4 == 3:
                time.sleep(0.01)  # rows join while others generate
        for name, prompt, tokens, caught in asked:
            assert caught.done.wait(60)
            expected = service.engine.call(lambda s=service, n=name, p=prompt, k=tokens: alone(s, n, p, k)).result(60)
            assert caught.text == expected, name
        texts = []
        for _ in range(2):
            drawn = ask(service, "base", "w1", temperature=1.0, seed=3, logprobs=1)
            assert drawn.done.wait(30)
            texts.append(drawn.text)
        assert texts[0] == texts[1], "rows are sampled by their own seeds"
        with pytest.raises(Refused, match="does not begin with the prompt"):
            ask(service, "base", "w1", echo=True)


def test_classifiers_with_heads_give_what_predict_gives(tmp_path: Path) -> None:
    from dollartune.evaluate.predict import predict_rows
    from dollartune.export.opening import open_adapter
    from dollartune.methods.head import Head
    from dollartune.serve.run import build_service

    model = write_tiny(tmp_path / "model", "bert/classification")
    backbone = load_backbone(str(model), "classification", ("a", "b", "c"))
    task = {
        "name": "colours",
        "kind": "classification",
        "prompt": "{text}",
        "label_words": {"a": "yes", "b": "no", "c": "w1"},
        "metric": "accuracy",
        "max_answer_tokens": 4,
    }
    folders = {}
    for seed, (name, own) in enumerate(
        {"lora": [LoRA(rank=2), Head()], "prompt": [PromptTuning(tokens=3), Head()]}.items()
    ):
        adapter = Adapter(own, backbone.anatomy, backbone.model, seed)
        perturb(adapter, 0.3, seed)
        folders[name] = tmp_path / name
        info = {
            "backbone": str(model),
            "objective": "classification",
            "tokenizer": tokenizer_hash(backbone.processor),
            "task": task,
        }
        save_adapter(folders[name], adapter, info)
    service = build_service(str(model), folders, Limits(), None)
    service.engine.start()
    try:
        for name, folder in folders.items():
            rows: list[Any] = [{"text": "w3 w4"}, {"text": "w50 w6 w7"}]
            labels, probabilities = asyncio.run(service.classify(name, rows))
            expected = predict_rows(open_adapter(folder), rows)
            assert labels == [row.predicted for row in expected]
            for found, row in zip(probabilities, expected, strict=True):
                assert found == pytest.approx(row.probabilities, abs=1e-5)
        with pytest.raises(Refused, match="use /v1/classify"):
            ask(service, "lora", "w1")
    finally:
        service.engine.stop(1.0)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Service]:
    yield from running(
        "llama", tmp_path, Limits(batch_rows=2, queue=3, new_tokens=40, request_seconds=20), {"lora": [LoRA(rank=2)]}
    )


def test_sampling_is_repeatable_by_seed(small: Service) -> None:
    texts = []
    for seed in (1, 1, 2):
        caught = ask(small, "lora", "w1 w2", temperature=2.0, seed=seed, max_tokens=20)
        assert caught.done.wait(20)
        texts.append(caught.text)
    assert texts[0] == texts[1] != texts[2]


def test_stop_texts_end_an_answer_before_them(small: Service) -> None:
    whole = ask(small, "lora", "w1 w2", max_tokens=12)
    assert whole.done.wait(20)
    words = whole.text.split()
    assert len(words) > 2
    stop = words[2]
    cut = ask(small, "lora", "w1 w2", max_tokens=12, stop=(stop,))
    assert cut.done.wait(20)
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.reason == "stop"


@pytest.mark.parametrize("least", [0, 2, 3, 12])
def test_a_stop_text_counts_only_after_the_least_number_of_tokens(small: Service, least: int) -> None:
    whole = ask(small, "lora", "w1 w2", max_tokens=12)
    assert whole.done.wait(20)
    # a word is a token here, and any of the words so far may come again
    stop = whole.text.split()[2]
    longer = ask(small, "lora", "w1 w2", max_tokens=12, stop=(stop,), min_tokens=least)
    assert longer.done.wait(20)
    allowed = len(" ".join(whole.text.split()[:least]))
    place = whole.text.find(stop, allowed)
    assert longer.text == (whole.text if place < 0 else whole.text[:place])


def test_limits_are_refused_with_their_numbers(small: Service) -> None:
    with pytest.raises(Refused, match="max_tokens 41 is above"):
        ask(small, "lora", "w1", max_tokens=41)
    with pytest.raises(Refused, match="maximum context length is 64 tokens; 60 of the prompt"):
        ask(small, "lora", "w1 " * 60)
    with pytest.raises(Refused, match="maximum context length is 64 tokens; the prompt has"):
        ask(small, "lora", "w1 " * 4_000_000)
    with pytest.raises(Refused, match="there is no model 'other'"):
        ask(small, "other", "w1")
    release = threading.Event()
    blocked = small.engine.call(release.wait)
    refused = 0
    for _ in range(6):
        try:
            ask(small, "lora", "w1")
        except Refused as error:
            refused += error.status == 429
    release.set()
    blocked.result(10)
    assert refused >= 2
    assert small.pool.get("lora").rows <= 4  # type: ignore[union-attr]  # what was refused holds nothing


def test_adapters_come_and_go_while_others_generate(small: Service) -> None:
    folder = small.adapter_root / "adapters" / "lora"  # type: ignore[operator]
    for round_number in range(5):
        caught = ask(small, "lora", "w1 w2", max_tokens=30)
        name = f"hot{round_number}"
        asyncio.run(small.add(name, str(folder)))
        hot = ask(small, name, "w1 w2", max_tokens=30)
        small.remove(name)
        with pytest.raises(Refused, match="there is no model"):
            ask(small, name, "w1")
        assert caught.done.wait(20)
        assert hot.done.wait(20)
        assert hot.text == caught.text  # the one that was removed finished, and equals its twin
    deadline = time.monotonic() + 10
    while len(small.pool.attached.adapters) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(small.pool.attached.adapters) == ["lora"]


def test_a_failing_batch_ends_its_rows_and_not_the_server(small: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: RunningBatch) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "step", fails)
        caught = ask(small, "lora", "w1 w2")
        assert caught.done.wait(20)
        assert caught.reason == "error"
    again = ask(small, "lora", "w1 w2")
    assert again.done.wait(20)
    assert again.reason in ("stop", "length")


def test_stopping_lets_what_runs_finish(tmp_path: Path) -> None:
    for service in running("llama", tmp_path, methods={"lora": [LoRA(rank=2)]}):
        caught = ask(service, "lora", "w1 w2", max_tokens=30)
        service.engine.stop(20.0)
        assert caught.done.is_set()
        assert caught.reason in ("stop", "length")
        with pytest.raises(Refused, match="stopping"):
            ask(service, "lora", "w1")


def test_wrong_objectives_and_names_are_refused(small: Service, tmp_path: Path) -> None:
    folder = small.adapter_root / "adapters" / "lora"  # type: ignore[operator]
    with pytest.raises(UserError, match="not allowed"):
        small.pool.load("../x", folder, 0)
    info = (folder / "adapter.json").read_text()
    (folder / "adapter.json").write_text(info.replace('"objective": "language"', '"objective": "classification"'))
    with pytest.raises(UserError, match="tuned for classification; this server runs language"):
        small.pool.load("x", folder, 0)


def sliding_model(name: str, folder: Path) -> Path:
    """A tiny model whose attention reaches back over eight places, in all layers or in every other one; all differ in cache."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.15, "pad_token_id": PAD,
        "eos_token_id": END, "bos_token_id": 0,
    }  # fmt: skip
    chunked = {"attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"], "head_dim": 16}
    chunked |= {"intermediate_size_mlp": 64, "num_local_experts": 2, "pad_token_id": PAD}
    configs: dict[str, Any] = {
        "mistral": lambda: transformers.MistralConfig(**common, sliding_window=8),
        "gemma2": lambda: transformers.Gemma2Config(**common, sliding_window=8, head_dim=16, query_pre_attn_scalar=16),
        "gpt_oss": lambda: transformers.GptOssConfig(
            **common, sliding_window=8, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "llama4": lambda: transformers.Llama4TextConfig(**common | chunked),
    }  # fmt: skip
    path = write_tiny(folder, "llama")  # for its tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(5)
        transformers.AutoModelForCausalLM.from_config(configs[name]()).save_pretrained(path)
    return path


Asked = list[tuple[str, str, Sequence]]
"""(model, prompt, row)."""


def go_on_by_hand(service: Service, batch: RunningBatch, models: list[str], temperature: float = 0.0) -> Asked:
    """Rows that join a batch every three steps, until all have ended: by hand and not by the engine's thread, since who joins
    when must not depend on how busy the machine is."""
    asked: Asked = []
    for turn in range(12):
        if turn % 3 == 0:
            new: Asked = []
            for model in models:
                words = 1 + (5 * len(asked) + 7 * len(new)) % 23
                prompt = " ".join(f"w{(len(asked) + len(new) + k) % 80}" for k in range(words))
                number = len(asked) + len(new)
                sampling = Sampling(temperature, max_tokens=5 + (3 * number) % 14, seed=number, ignore_end=True)
                served = service.pool.acquire(model)
                row = Sequence(served, (), sampling, Caught(), service.backbone.processor, time.monotonic() + 600)
                row.prompt = service.prompts.encoder.prompt_ids(prompt)
                new.append((model, prompt, row))
            batch.begin([row for _, _, row in new])
            while batch.waits:
                batch.read(32)
            asked += new
        batch.step()
    while batch.rows:
        batch.step()
    return asked


def require_alone(service: Service, asked: Asked) -> None:
    """Each row's tokens are those that transformers' own generation gives it alone."""
    for model, prompt, row in asked:
        ids = torch.tensor([service.prompts.encoder.prompt_ids(prompt)])
        with service.pool.attached.routed(None if model == "base" else model, batch_rows=1):
            written = service.pool.attached.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=row.sampling.max_tokens,
                do_sample=False, pad_token_id=PAD, eos_token_id=-1,
            )  # fmt: skip
        assert row.tokens == written[0].tolist(), (model, prompt)


def by_hand(backbone: Backbone, root: Path, methods: dict[str, list[Method[Any]]]) -> Service:
    """A service whose engine does not run."""
    service = Service(backbone, "base", Limits(batch_rows=6, new_tokens=40), root)
    for name, path in write_adapters(backbone, root / "adapters", methods).items():
        service.add_now(name, path)
    return service


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "llama4"])
def test_rows_that_join_a_running_batch_keep_their_window(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(sliding_model(family, tmp_path / "model")))
    methods: dict[str, list[Method[Any]]] = {"lora": [LoRA(rank=2)], "prompt": [PromptTuning(tokens=3)]}
    if backbone.anatomy.at("self_attn.core"):
        methods["prefix"] = [Prefix(tokens=4)]
    service = by_hand(backbone, tmp_path, methods)
    require_alone(service, go_on_by_hand(service, RunningBatch(service.pool, frozenset()), ["base", *methods]))


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_row_that_is_not_finite_leaves_nothing_to_who_takes_its_place(place: int, tmp_path: Path) -> None:
    service = by_hand(load_backbone(str(write_tiny(tmp_path / "model", "llama"))), tmp_path, {"lora": [LoRA(rank=2)]})

    class Broken(RunningBatch):
        steps = 0

        @torch.inference_mode()
        def step(self) -> None:
            self.steps += 1
            if self.steps == 7:
                for layer in self._cache.layers:
                    layer.values[place] = torch.nan
            super().step()

    asked = go_on_by_hand(service, Broken(service.pool, frozenset()), ["lora", "base", "lora"])
    broken = [one for one in asked if one[2].finished == "not_finite"]
    assert len(broken) == 1
    require_alone(service, [one for one in asked if one not in broken])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_rows_join_a_running_encoder_decoder(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(write_tiny(tmp_path / "model", family)))
    methods = {name: METHODS[name] for name in ("lora_a", "lora_b", "prompt", "prefix", "longer_prefix")}
    service = by_hand(backbone, tmp_path, methods)
    # Drawn, since this model's likeliest tokens are the same for most prompts.
    asked = go_on_by_hand(service, EncoderDecoderBatch(service.pool, frozenset()), ["base", *methods], 1.0)
    assert len({tuple(row.tokens) for _, _, row in asked}) == len(asked)
    for model, prompt, row in asked:
        again = Sequence(row.served, row.prompt, row.sampling, Caught(), backbone.processor, time.monotonic() + 600)
        batch = EncoderDecoderBatch(service.pool, frozenset())
        batch.begin([again])
        batch.read(32)
        while batch.rows:
            batch.step()
        assert row.tokens == again.tokens, (model, prompt)


@pytest.mark.parametrize(("family", "kind"), [("llama", RunningBatch), ("t5", EncoderDecoderBatch)])
def test_an_empty_batch_keeps_no_adapter_that_is_gone(family: str, kind: type[RunningBatch], tmp_path: Path) -> None:
    backbone = load_backbone(str(write_tiny(tmp_path / "model", family)))
    service = by_hand(backbone, tmp_path, {name: METHODS[name] for name in ("lora_a", "lora_b", "ia3")})
    batch, pool = kind(service.pool, frozenset()), service.pool
    asked = go_on_by_hand(service, batch, ["lora_a", "lora_b", "ia3"])
    trained = [weakref.ref(p) for row in asked if row[2].served for p in row[2].served.adapter.parameters()]
    for _, _, row in asked:
        pool.release(row.served)
    for name in ("lora_a", "lora_b", "ia3"):
        pool.retire(name)
    del row, asked
    pool.sweep()
    gc.collect()
    assert trained
    assert not any(one() is not None for one in trained)


@pytest.mark.parametrize(
    ("family", "method", "shares"),
    [("t5", Prefix(tokens=2), True), ("t5", Prefix(tokens=2, like_peft=True), False), ("bart", LoRA(rank=2), True)],
)
def test_what_counts_places_from_the_beginning_of_a_pass_has_one_of_its_own(
    family: str, method: Method[Any], shares: bool, tmp_path: Path
) -> None:
    backbone = load_backbone(str(write_tiny(tmp_path / "model", family)))
    service = by_hand(backbone, tmp_path, {"one": [method]})
    rows = [Sequence(service.pool.get("one"), (), Sampling(), Caught(), backbone.processor, 0.0)]
    assert shares_pass(service.pool, rows) is shares
