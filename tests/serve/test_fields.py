"""Every field of OpenAI's requests: honoured, taken where it asks for nothing, or refused with its name and the reason."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from openai.types import chat
from openai.types import completion_create_params as completion_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params

from dollartune.serve.app import create_app
from dollartune.serve.field_table import table
from dollartune.serve.fields import CHAT, COMPLETION, EMBEDDING
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.serve.schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GivenCall,
    StreamOptions,
    TextPart,
    Tool,
)
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.service import Service
from dollartune.testing.directory import write_tiny

SAY = {"role": "user", "content": "w1"}


class Asked:
    """A server without a socket."""

    def __init__(self, client: TestClient, service: Service) -> None:
        self.client, self.service = client, service

    def complete(self, status: int = 200, **fields: Any) -> Any:
        body = {"model": "model", "prompt": "w1 w2 w3", "max_tokens": 4, "temperature": 0, **fields}
        answer = self.client.post("/v1/completions", json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]

    def chat(self, status: int = 200, **fields: Any) -> Any:
        body = {"model": "model", "messages": [SAY], "max_tokens": 4, "temperature": 0, **fields}
        answer = self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.service.backbone.model(input_ids=torch.tensor([ids])).logits
        return logits[0].float().log_softmax(-1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("fields")
    service = build_service(str(write_tiny(folder / "model", "llama")), {}, Limits(new_tokens=40))
    with TestClient(create_app(service, cors_origins=["https://example.org"])) as client:
        yield Asked(client, service)


@pytest.mark.parametrize("address", ["complete", "chat"])
def test_values_that_ask_for_nothing_change_nothing(server: Asked, address: str) -> None:
    ask, neutral = (server.complete, COMPLETION) if address == "complete" else (server.chat, CHAT)
    plain = ask()["choices"]
    fields = CompletionRequest if address == "complete" else ChatRequest
    kept = {"max_tokens", "temperature"}
    optional = {name for name, field in fields.model_fields.items() if not field.is_required()} - kept
    unknown = "a_field_of_tomorrow"
    assert ask(**dict.fromkeys([*neutral, *optional, unknown]))["choices"] == plain, "null is absent"
    for name, field in neutral.items():
        for value in field.values or ("anything", {"any": "thing"}):
            if type(value) is not object:
                assert ask(**{name: value})["choices"] == plain, (name, value)
    honoured: dict[str, Any] = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1, "top_k": -1, "min_p": 0.0, "stop": [],
        "repetition_penalty": 1.0, "min_tokens": 0, "stop_token_ids": [], "ignore_eos": False, "top_p": 1, "seed": 3,
    }  # fmt: skip
    if address == "chat":  # who may call none of no tools writes a text
        honoured |= {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    for name, value in honoured.items():
        assert ask(**{name: value})["choices"] == plain, (name, value)


@pytest.mark.parametrize("address", ["complete", "chat"])
def test_what_is_not_done_is_refused_with_its_name_and_the_reason(server: Asked, address: str) -> None:
    ask, neutral = (server.complete, COMPLETION) if address == "complete" else (server.chat, CHAT)
    for name, field in neutral.items():
        if field.values:
            error = ask(400, **{name: [{"type": "function"}]})
            assert (error["param"], error["message"]) == (name, f"{name}: {field.reason}")
    error = ask(400, temperatur=1)
    assert error["param"] == "temperatur"
    assert "temperature" in error["message"]
    assert ask(400, top_p=7)["param"] == "top_p"
    for token in ("5000", "-1", "05", " 5 ", "1_0", "\uff15", "five"):
        assert ask(400, logit_bias={token: 1})["param"] == "logit_bias", token


def test_every_field_of_openai_s_client_has_an_answer() -> None:
    for params, model, neutral in (
        (chat_params.CompletionCreateParamsBase, ChatRequest, CHAT),
        (completion_params.CompletionCreateParamsBase, CompletionRequest, COMPLETION),
        (embedding_params.EmbeddingCreateParams, EmbeddingRequest, EMBEDDING),
    ):
        assert set(params.__annotations__) <= {*model.model_fields, *neutral}
    for params, part in (
        (chat.ChatCompletionAssistantMessageParam, ChatMessage),
        (chat.ChatCompletionToolMessageParam, ChatMessage),
        (chat.ChatCompletionUserMessageParam, ChatMessage),
        (chat.ChatCompletionContentPartTextParam, TextPart),
        (chat.ChatCompletionMessageFunctionToolCallParam, GivenCall),
        (chat.ChatCompletionFunctionToolParam, Tool),
        (chat.ChatCompletionStreamOptionsParam, StreamOptions),
    ):
        assert set(params.__annotations__) <= {*part.model_fields, *part.notes}


@pytest.mark.parametrize("unknown", ["Label", "str", "list", "dict"])
def test_an_unknown_field_is_named_even_where_it_reads_like_a_type(server: Asked, unknown: str) -> None:
    answer = server.client.post("/v1/adapters", json={"name": "m", "folder": "x", unknown: 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, unknown)
    assert answer.json()["error"]["message"].startswith(f"{unknown}: ")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/classify", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_nulls_and_unknown_fields_are_the_same_at_every_address(
    server: Asked, path: str, fields: dict[str, Any]
) -> None:
    def post(**more: Any) -> Any:
        answer = server.client.post(path, json={"model": "model", **fields, **more})
        return answer.status_code, answer.json()

    (name,) = fields
    status, error = post(**{f"{name}s": 1})
    assert (status, error["error"]["param"]) == (400, f"{name}s")
    assert f"Did you mean {name!r}?" in error["error"]["message"]
    if path == "/tokenize":
        plain = post()[1]
        assert post(messages=None, tools=None, add_generation_prompt=True) == (200, plain)
        assert post(return_token_strs=True)[1] == {**plain, "token_strs": ["<unk>"]}
        assert post(continue_final_message=True)[1]["error"]["param"] == "continue_final_message"


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/v1/responses", 404, "send `messages` to /v1/chat/completions"),
        ("POST", "/v1/messages", 404, "send `messages` to /v1/chat/completions"),
        ("POST", "/chat/completions", 404, "Did you mean '/v1/chat/completions'?"),
        ("GET", "/models", 404, "Did you mean '/v1/models'?"),
        ("POST", "/v1/embedding", 404, "Did you mean '/v1/embeddings'?"),
        ("GET", "/v1/chat/completions", 405, "does not take GET, but POST"),
        ("PUT", "/v1/adapters/x", 405, "does not take PUT, but DELETE"),
    ],
)
def test_an_address_that_is_not_there_says_where_it_is(
    server: Asked, method: str, path: str, status: int, said: str
) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "place", "said"),
    [
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b"}}]}],
            "messages.0.content.1.type", "text",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "messages.0.content.0.text", "string"),
        ([SAY, {"role": "function", "content": "a"}], "messages.1.role", "user"),
        ("w1", "messages", "list"),
    ],
)  # fmt: skip
def test_of_a_value_of_several_types_the_part_that_is_wrong_is_named(
    server: Asked, messages: Any, place: str, said: str
) -> None:
    error = server.chat(400, messages=messages)
    assert error["param"] == "messages"
    assert error["message"].startswith(f"{place}: ")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "more", "status", "said"),
    [
        (b'{"model": "model"', {}, 400, "no JSON: Expecting ',' delimiter at character 17"),
        ('{"model": "\u00fc"}'.encode("latin-1"), {}, 400, "no JSON in UTF-8"),
        (gzip.compress(b"{}", mtime=0), {"Content-Encoding": "gzip"}, 415, "packed"),
        (b'{"model": "model", "prompt": []}', {}, 400, "prompt: List should have at least 1 item"),
    ],
)
def test_bodies_that_are_no_json_are_told_why(
    server: Asked, body: bytes, more: dict[str, str], status: int, said: str
) -> None:
    answer = server.client.post("/v1/completions", content=body, headers={"Content-Type": "application/json", **more})
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_options_of_a_stream_without_one_are_refused(server: Asked) -> None:
    assert server.chat(400, stream_options={"include_usage": True})["param"] == "stream_options"


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf8")
    assert "\n".join(table()) in page, "write it again: python -m dollartune.serve.field_table"


def test_prompts_as_token_ids(server: Asked) -> None:
    ids = list(server.service.prompts.encoder.prompt_ids("w1 w2 w3"))
    text = server.complete()["choices"][0]["text"]
    assert server.complete(prompt=ids)["choices"][0]["text"] == text
    assert [c["text"] for c in server.complete(prompt=[ids, ids])["choices"]] == [text, text]
    assert server.complete(400, prompt=[10**6])["param"] == "prompt"


def test_log_probabilities_are_those_of_the_model(server: Asked) -> None:
    ids = list(server.service.prompts.encoder.prompt_ids("w1 w2 w3"))
    (choice,) = server.complete(echo=True, max_tokens=0, logprobs=2)["choices"]
    assert choice["text"] == "w1 w2 w3"
    found, expected = choice["logprobs"], server.logits(ids)
    assert found["tokens"] == ["w1", "w2", "w3"]
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx([expected[i, ids[i + 1]].item() for i in range(2)], abs=1e-4)
    assert max(found["top_logprobs"][2].values()) == pytest.approx(expected[1].max().item(), abs=1e-4)
    # beside a longer prompt, which pads this one
    both = server.complete(prompt=["w1 w2 w3", "w5 w6 w7 w8 w9 w10"], echo=True, max_tokens=1, logprobs=2)["choices"]
    assert both[0]["logprobs"]["token_logprobs"][1:3] == pytest.approx(found["token_logprobs"][1:], abs=1e-4)
    written = server.complete(logprobs=0, ignore_eos=True)["choices"][0]["logprobs"]
    assert written["token_logprobs"][0] == pytest.approx(expected[2].max().item(), abs=1e-4), "greedy: the likeliest"
    said = server.chat(logprobs=True, top_logprobs=3, ignore_eos=True)["choices"][0]["logprobs"]["content"]
    assert len(said) == 4
    assert said[0]["top_logprobs"][0]["logprob"] == said[0]["logprob"], "greedy: the likeliest"
    assert server.chat(400, top_logprobs=3)["param"] == "top_logprobs"


def test_several_answers(server: Asked) -> None:
    drawn = {"temperature": 1.0, "seed": 5, "max_tokens": 8, "ignore_eos": True}
    three = server.complete(n=3, **drawn)["choices"]
    assert [choice["index"] for choice in three] == [0, 1, 2]
    assert len({choice["text"] for choice in three}) == 3
    assert three[1]["text"] == server.complete(**{**drawn, "seed": 6})["choices"][0]["text"]
    assert len(server.chat(n=2, **drawn)["choices"]) == 2
    all_of_them = server.complete(n=4, logprobs=0, **drawn)["choices"]
    best = max(all_of_them, key=lambda choice: math.fsum(choice["logprobs"]["token_logprobs"]))
    assert server.complete(best_of=4, **drawn)["choices"][0]["text"] == best["text"]
    assert server.complete(400, best_of=2, stream=True)["param"] == "best_of"
    usage = server.complete(n=3, **drawn)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 24)


def test_several_answers_without_a_seed_differ_whatever_the_clock_says(
    server: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1)  # as clocks of some systems stand still for 16 ms
    drawn = server.complete(n=4, temperature=1.5, max_tokens=12, ignore_eos=True)["choices"]
    assert len({choice["text"] for choice in drawn}) > 1


def test_what_shapes_the_next_token(server: Asked) -> None:
    ids = list(server.service.prompts.encoder.prompt_ids("w1 w2 w3"))
    first = int(server.logits(ids)[-1].argmax())

    def tokens(**fields: Any) -> list[str]:
        answer = server.complete(ignore_eos=True, logprobs=0, **fields)
        return list(answer["choices"][0]["logprobs"]["tokens"])

    assert tokens()[0] not in tokens(logit_bias={str(first): -100})
    stopped = server.complete(stop_token_ids=[first])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")
    for one in ({"top_k": 1}, {"min_p": 1.0}):
        assert tokens(temperature=2.0, **one) == tokens()
    end = {"2": 100}
    assert server.complete(logit_bias=end)["usage"]["completion_tokens"] == 0
    assert server.complete(logit_bias=end, min_tokens=3)["usage"]["completion_tokens"] == 3


def test_penalties_by_hand() -> None:
    row = Sequence(
        None,
        (1, 2),
        Sampling(frequency_penalty=0.5, presence_penalty=1.0, repetition_penalty=2.0),
        lambda *_: None,
        None,
        0.0,
    )
    row.tokens = [3, 3, 1]
    logits = torch.tensor([4.0, 4.0, -4.0, 4.0, 4.0])
    # seen in the prompt or the answer: halved if positive, doubled if negative; then what the answer's own counts cost
    assert row._adjusted(logits, frozenset()).tolist() == [4.0, 2.0 - 1.5, -8.0, 2.0 - 2.0, 4.0]


def test_a_chat_without_a_length_writes_as_much_as_fits(server: Asked) -> None:
    places = server.service.prompts.places
    long = [{"role": "user", "content": "w1 " * (places - 20)}]
    usage = server.chat(messages=long, max_tokens=None, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == places
    assert server.chat(max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 40, "this server's most"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "w1"}]}],
        [SAY, {"role": "assistant", "content": "w2", "refusal": None, "tool_calls": None, "annotations": []}, SAY],
        [SAY, {"role": "assistant", "content": None}, SAY],
        [{**SAY, "name": "customer"}],
        [{"role": "developer", "content": "w3"}, SAY],
        [SAY, {"role": "tool", "content": "w4", "tool_call_id": "1"}],
        [{"role": "user", "content": [{"type": "text", "text": "w1", "cache_control": {"type": "ephemeral"}}]}],
        [{**SAY, "a_field_of_tomorrow": None}],
    ],
    ids=range(8),
)
def test_messages_as_clients_send_them(server: Asked, messages: list[dict[str, Any]]) -> None:
    assert server.chat(messages=messages)["choices"][0]["message"]["role"] == "assistant"


def test_what_clients_note_on_an_answer_changes_nothing(server: Asked) -> None:
    said = {"role": "assistant", "content": "w2", "refusal": None}
    noted = {
        **said, "annotations": [{"type": "url_citation"}], "parsed": {"mood": "good"}, "function_call": None,
        "provider_specific_fields": {"refusal": None}, "reasoning_content": "w9 w9 w9", "thinking_blocks": None,
    }  # fmt: skip
    function = {"name": "f", "arguments": None, "parsed_arguments": {"a": 1}}
    called = {**said, "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    plainly = {**called, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    for given, expected in ((noted, said), (called, plainly)):
        first, second = (server.chat(messages=[SAY, one, SAY])["usage"] for one in (given, expected))
        assert first["prompt_tokens"] == second["prompt_tokens"], "it is not read"
    assert "messages.1" in server.chat(400, messages=[SAY, {**said, "contents": "w2"}])["message"]


def test_an_address_with_a_slash_at_its_end_is_the_same(server: Asked) -> None:
    for address in ("/v1/models", "/v1/models/model", "/health"):
        assert server.client.get(f"{address}/").json() == server.client.get(address).json(), address
    body = {"model": "model", "messages": [SAY], "max_tokens": 2}
    assert server.client.post("/v1/chat/completions/", json=body).status_code == 200


def test_too_long_is_said_in_openai_s_words_and_by_the_field(server: Asked) -> None:
    places = server.service.prompts.places
    words = f"this model's maximum context length is {places} tokens"  # by these litellm tells what is wrong
    long = "w1 " * places
    for error, param in (
        (server.chat(400, messages=[{"role": "user", "content": long}]), "messages"),
        (server.chat(400, messages=[{"role": "user", "content": long * 50}]), "messages"),
        (server.complete(400, prompt=long), "prompt"),
        (server.complete(400, prompt=[1] * places), "prompt"),
    ):
        assert words in error["message"]
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    for name in ("max_tokens", "max_completion_tokens"):
        error = server.chat(400, **{"max_tokens": None, name: 41})
        assert error["param"] == name
        assert "--new-tokens" in error["message"]


def test_the_smallest_top_p_is_greedy(server: Asked) -> None:
    greedy = server.complete(max_tokens=8)["choices"][0]["text"]
    assert server.complete(max_tokens=8, temperature=1.5, top_p=0, seed=4)["choices"][0]["text"] == greedy


def test_models_tokens_and_web_pages(server: Asked) -> None:
    server.service.pool.base_name = "owner/model"
    try:
        assert server.client.get("/v1/models/owner/model").json()["id"] == "owner/model"
        assert server.client.get("/v1/models/owner%2Fmodel").json()["id"] == "owner/model"
    finally:
        server.service.pool.base_name = "model"
    assert server.client.get("/v1/models/model").json()["max_model_len"] == server.service.prompts.places
    assert server.client.get("/version").json()["version"]
    found = server.client.post("/tokenize", json={"model": "model", "prompt": "w1 w2"}).json()
    assert found["count"] == len(found["tokens"]) == 2
    text = server.client.post("/detokenize", json={"model": "model", "tokens": found["tokens"]}).json()["prompt"]
    assert text == "w1 w2"
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert server.client.options("/v1/completions", headers=asked).status_code == 200
    assert server.client.options("/v1/completions", headers={**asked, "Origin": "https://other.org"}).status_code == 400
