"""Answers in a format, and calls of tools: by constrained decoding on a model that has learnt neither."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from dollartune.backbones.embedded import embedded_path
from dollartune.serve.app import create_app
from dollartune.serve.constraint import closed
from dollartune.serve.limits import Limits
from dollartune.serve.response import ResponseFormat
from dollartune.serve.run import build_service
from dollartune.serve.schema import ChatRequest
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.tools import ToolUse, read_calls

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["mood", "stars", "tags"],
    "additionalProperties": False,
}
IN_SCHEMA = {"type": "json_schema", "json_schema": {"name": "review", "schema": SCHEMA, "strict": True}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town",
        "parameters": {"properties": {"town": {"enum": ["Paris", "Rome"]}}, "required": ["town"]},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


# As Hermes' and Qwen's: the tools before the conversation, calls in marks.
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}<tool>{{ tool | tojson }}</tool>{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n"
    "{% endfor %}[assistant]"
)


def client_of(folder: Path, template: str | None) -> Any:
    model = Path(shutil.copytree(embedded_path("tiny-decoder"), folder / "model"))
    if template is not None:
        file = model / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return TestClient(create_app(build_service(str(model), {}, Limits(new_tokens=80))))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with client_of(tmp_path_factory.mktemp("plain"), None) as client:
        yield client


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with client_of(tmp_path_factory.mktemp("taught"), TEMPLATE) as client:
        yield client


def chat(client: Any, status: int = 200, **fields: Any) -> Any:
    body = {"model": "model", "messages": [{"role": "user", "content": "How was it?"}], "max_tokens": 80, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["choices"][0] if status == 200 else answer.json()["error"]


def streamed(client: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": "How was it?"}],
        "max_tokens": 80,
        "stream": True,
    }
    lines = client.post("/v1/chat/completions", json={**body, **fields}).text.split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return [event["choices"][0] for event in events]


def valid(found: Any) -> bool:
    return (
        set(found) == set(SCHEMA["required"])
        and found["mood"] in ("good", "bad")
        and found["stars"] in range(1, 6)
        and set(found["tags"]) <= {"a", "b"}
    )


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.5, "seed": 3}, {"logit_bias": {"38": 100}}])
def test_an_answer_follows_its_schema(plain: Any, settings: dict[str, Any]) -> None:
    choice = chat(plain, response_format=IN_SCHEMA, **settings)
    assert choice["finish_reason"] == "stop"
    assert valid(json.loads(choice["message"]["content"]))
    body = {
        "model": "model",
        "prompt": ["It was", "They are"],
        "max_tokens": 80,
        "response_format": IN_SCHEMA,
        **settings,
    }
    answers = plain.post("/v1/completions", json=body).json()["choices"]
    assert all(valid(json.loads(answer["text"])) for answer in answers)


def test_an_answer_is_an_object_or_is_cut_short(plain: Any) -> None:
    choice = chat(plain, response_format={"type": "json_object"}, temperature=0)
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert chat(plain, response_format=IN_SCHEMA, max_tokens=3)["finish_reason"] == "length"


def test_objects_have_no_properties_but_those_they_name() -> None:
    named = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}, "properties": {"enum": [{}]}}}
    found = closed(named)
    assert found["additionalProperties"] is found["properties"]["a"]["additionalProperties"] is False
    assert found["properties"]["properties"] == {"enum": [{}]}
    assert set(found["properties"]) == {"a", "properties"}
    for open_one in ({**named, "additionalProperties": True}, {"type": "object"}, {"allOf": [named, named]}):
        assert closed(open_one).get("additionalProperties") is not False
    assert closed({"allOf": [named]}) == {"allOf": [found]}, "one schema is a reference with a description beside it"


@pytest.mark.parametrize(
    "properties",
    [{"not": {"enum": [1]}, "if": {"enum": [2]}}, {"x": {"enum": [{"allOf": [1, 2]}]}}, {"anyOf": {}, "$ref": {}}],
    ids=["names", "values", "branches"],
)
def test_names_and_values_are_no_words_of_a_schema(properties: dict[str, Any]) -> None:
    found = closed({"type": "object", "properties": properties})
    assert found == {"type": "object", "properties": properties, "additionalProperties": False}


def test_a_property_that_is_demanded_and_not_described_is_written(plain: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a", "b"], "maxProperties": 2}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    choice = chat(plain, response_format=wanted, temperature=0)
    assert choice["message"]["content"].startswith('{"a": 1, "b": ')
    described = {"a": {"enum": [1]}, "b": {}}
    assert closed(schema) == {**schema, "properties": described, "additionalProperties": False}


@pytest.mark.parametrize("name", ["path", "password", "binary", "date"])
def test_a_format_that_nobody_knows_is_a_note(plain: Any, name: str) -> None:
    text = {"type": "string", "format": name, "maxLength": 4} if name != "date" else {"type": "string", "format": name}
    schema = {"type": "object", "properties": {"format": text}, "required": ["format"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    value = json.loads(chat(plain, response_format=wanted, temperature=0)["message"]["content"])["format"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", value) if name == "date" else len(value) <= 4


A_OR_B = {"enum": ["a", "b"]}
WITH_X = {"type": "object", "properties": {"x": A_OR_B}, "required": ["x"]}


@pytest.mark.parametrize(
    "schema",
    [
        {**WITH_X, "anyOf": [{"properties": {name: A_OR_B}, "required": [name]} for name in ("y", "z")]},
        {"$defs": {"with_x": WITH_X}, "$ref": "#/$defs/with_x", "properties": {"y": A_OR_B}, "required": ["y"]},
        {"$defs": {"y": {"properties": {"y": A_OR_B}}}, "anyOf": [WITH_X], "$ref": "#/$defs/y"},
    ],
)
def test_what_an_object_s_other_schemas_ask_for_is_not_forbidden(plain: Any, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    choice = chat(plain, response_format=wanted, temperature=0)
    assert '"x": ' in choice["message"]["content"]


def test_formats_stream_beside_free_texts(plain: Any) -> None:
    pieces = streamed(plain, response_format=IN_SCHEMA, temperature=0)
    assert len(pieces) > 3
    text = "".join(piece["delta"].get("content") or "" for piece in pieces)
    assert text == chat(plain, response_format=IN_SCHEMA, temperature=0)["message"]["content"]
    assert "logprobs" in chat(plain, response_format=IN_SCHEMA, logprobs=True, top_logprobs=2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {**IN_SCHEMA, "json_schema": {"name": "a", "schema": {"type": "no"}}}}, "response_format"),
        ({"response_format": IN_SCHEMA, "min_tokens": 5}, "min_tokens"),
        ({"response_format": IN_SCHEMA, "ignore_eos": True}, "ignore_eos"),
        ({"tools": [TIME]}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME, TIME], "tool_choice": "required"}, "tools"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "else"}}}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "time"}}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": allowed("required", "else")}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": allowed("auto", "time")}, "tool_choice"),
        ({"tools": [{"type": "web"}]}, "tools"),
        (
            {
                "tools": [{**TIME, "function": {"name": "time", "parameters": {"type": "array"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_what_cannot_be_done_is_a_400_with_its_field(plain: Any, fields: dict[str, Any], param: str) -> None:
    assert chat(plain, 400, **fields)["param"] == param


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "(a|b)*a(a|b){200}", "^((a+)+)+$"])
def test_a_schema_that_is_too_much_ends_its_own_request(plain: Any, pattern: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": "model", "prompt": "a", "response_format": wanted, "max_tokens": 12}
    assert plain.post("/v1/completions", json=body).status_code in (200, 400)
    assert chat(plain)["finish_reason"] in ("stop", "length")


def test_a_named_tool_is_called_by_its_schema_on_every_model(plain: Any) -> None:
    fields = {"tools": [WEATHER, TIME], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    choice = chat(plain, temperature=0, **fields)
    (call,) = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "stop")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["town"] in ("Paris", "Rome")
    pieces = [
        p["delta"]["tool_calls"][0] for p in streamed(plain, temperature=0, **fields) if "tool_calls" in p["delta"]
    ]
    assert (pieces[0]["function"]["name"], pieces[0]["id"][:5]) == ("weather", "call_")
    assert "".join(p["function"]["arguments"] for p in pieces) == call["function"]["arguments"]
    fields["tool_choice"]["function"]["name"] = "time"  # it has no arguments
    assert chat(plain, **fields)["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


PARAMETERS: dict[str, dict[str, Any]] = {
    "string": {"type": "string", "maxLength": 5},
    "string of a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "words": {"type": "string", "enum": ["Paris", "New York", 'a "quoted" one', "Zürich"]},
    "constant": {"const": "celsius"},
    "integer": {"type": "integer", "minimum": -9, "maximum": 99},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "boolean": {"type": "boolean"},
    "nothing": {"type": "null"},
    "string or nothing": {"type": ["string", "null"], "maxLength": 4},
    "one of two kinds": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"enum": ["all"]}]},
    "list": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
    "object": {
        "type": "object",
        "properties": {"x": {"type": "boolean"}},
        "required": ["x"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_named_tool_takes_parameters_of_every_simple_type(plain: Any, kind: str, strict: bool | None) -> None:
    import jsonschema

    parameters = {
        "type": "object",
        "properties": {"town": {**PARAMETERS[kind], "description": "What is asked for"}},
        "required": ["town"],
        "additionalProperties": False,
    }
    function = {"name": "look_up", "parameters": parameters, **({} if strict is None else {"strict": strict})}
    named = {"type": "function", "function": {"name": "look_up"}}
    for settings in ({"temperature": 0}, {"temperature": 1.0, "seed": 5}):
        choice = chat(plain, tools=[{"type": "function", "function": function}], tool_choice=named, **settings)
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(call["function"]["arguments"]), parameters)


def test_a_tool_whose_text_has_no_end_is_cut_at_the_length_asked_for(plain: Any) -> None:
    tool = {
        "name": "say",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    }
    named = {"type": "function", "function": {"name": "say"}}
    fields = {"tools": [{"type": "function", "function": tool}], "tool_choice": named, "logit_bias": {"5": -100}}
    choice = chat(plain, temperature=0, **{**fields, "max_tokens": 12})
    (call,) = choice["message"]["tool_calls"]
    arguments = call["function"]["arguments"]
    assert choice["finish_reason"] in ("stop", "length")
    assert arguments.startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(arguments)["text"], str)


def test_a_required_tool_is_one_of_those_given(plain: Any) -> None:
    choice = chat(plain, tools=[WEATHER, TIME], tool_choice="required", temperature=0)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in ("weather", "time")
    last = streamed(plain, tools=[WEATHER, TIME], tool_choice="required", temperature=0)
    assert [call["function"] for piece in last for call in piece["delta"].get("tool_calls", [])] == [call["function"]]
    assert last[-1]["finish_reason"] == "tool_calls"


def test_of_the_tools_that_are_shown_those_that_are_allowed_are_called(plain: Any) -> None:
    for seed in range(4):  # of two, four draws would bring the other one
        fields = {"tools": [WEATHER, TIME], "tool_choice": allowed("required", "weather"), "seed": seed}
        (call,) = chat(plain, **fields)["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"


def test_a_demanded_call_leaves_no_text_to_be_in_a_format(plain: Any) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        fields = {"tools": [WEATHER], "tool_choice": choice, "response_format": IN_SCHEMA, "temperature": 0}
        (call,) = chat(plain, **fields)["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["town"] in ("Paris", "Rome")


DEFINED = {"$defs": {"review": SCHEMA}, "$ref": "#/$defs/review"}
IN_DEFINED = {"type": "json_schema", "json_schema": {"name": "review", "schema": DEFINED}}


@pytest.mark.parametrize("wanted", [IN_SCHEMA, IN_DEFINED], ids=["plain", "by reference"])
def test_who_may_call_answers_in_the_format_or_calls(taught: Any, wanted: dict[str, Any]) -> None:
    said, called = 0, 0
    for seed in range(12):
        choice = chat(taught, tools=[WEATHER], response_format=wanted, seed=seed, temperature=2.0)
        for call in choice["message"].get("tool_calls", []):
            assert json.loads(call["function"]["arguments"])["town"] in ("Paris", "Rome")
            assert choice["finish_reason"] == "tool_calls"
            called += 1
        if text := choice["message"]["content"]:
            assert valid(json.loads(text))
            said += 1
    assert said, "the format is among what may be written"
    assert called, "a call is among what may be written"
    malformed = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}
    assert chat(taught, 400, tools=[WEATHER], response_format=malformed)["param"] == "response_format"


def test_the_developer_speaks_as_the_system_where_a_template_knows_no_developer(tmp_path: Path) -> None:
    known = "{% for m in messages if m.role in ROLES %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    for name, roles in {"old": ["system", "user"], "new": ["developer", "system", "user"]}.items():
        (tmp_path / name).mkdir()
        with client_of(tmp_path / name, known.replace("ROLES", json.dumps(roles))) as client:
            text = {}
            for role in ("developer", "system"):
                messages = [{"role": role, "content": "Be brief"}, {"role": "user", "content": "Say hi"}]
                ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
                text[role] = client.post("/detokenize", json={"tokens": ids}).json()["prompt"]
        assert "[system] Be brief" in text["system"]
        assert f"[{'system' if name == 'old' else 'developer'}] Be brief" in text["developer"]


def test_references_of_a_tool_s_schema_count_from_that_schema(plain: Any) -> None:
    parameters = {
        "$defs": {"With": WITH_X},
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/With"}, "rest": {"anyOf": [{"$ref": "#"}, {"const": None}]}},
        "required": ["first"],
    }
    tool = {"type": "function", "function": {"name": "nested", "parameters": parameters}}
    for choice in ("required", {"type": "function", "function": {"name": "nested"}}):
        (call,) = chat(plain, tools=[tool], tool_choice=choice, temperature=0)["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["first"]["x"] in ("a", "b")


def test_schemas_of_two_tools_may_have_one_name(plain: Any) -> None:
    def tool(name: str, values: list[str]) -> dict[str, Any]:
        parameters = {
            "$id": "https://example.org/arguments",
            "$defs": {"Value": {"enum": values}},
            "type": "object",
            "properties": {"value": {"$ref": "#/$defs/Value"}},
            "required": ["value"],
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = [tool("first", ["a"]), tool("second", ["b"])]
    values = {
        (call["function"]["name"], call["function"]["arguments"])
        for seed in range(8)
        for call in chat(plain, tools=tools, tool_choice="required", temperature=1.5, seed=seed)["message"][
            "tool_calls"
        ]
    }
    assert values == {("first", '{"value": "a"}'), ("second", '{"value": "b"}')}


def test_a_template_with_tools_is_shown_them_and_may_choose(taught: Any) -> None:
    def read(**fields: Any) -> int:
        body = {"model": "model", "messages": [{"role": "user", "content": "How?"}], "max_tokens": 3, "temperature": 0}
        answer = taught.post("/v1/chat/completions", json={**body, **fields})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens"])

    assert read(tools=[TIME]) > read() == read(tools=[TIME], tool_choice="none")
    call = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    assert read(messages=history, tools=[TIME]) > read(messages=history[:1], tools=[TIME])
    counted = taught.post("/tokenize", json={"model": "model", "messages": history}).json()["count"]
    assert counted == read(messages=history), "what is counted is what is read"
    assert chat(taught, tools=[TIME], temperature=0)["message"]["content"], "a text that is no call stays text"


def test_tokens_of_a_chat_with_tools_are_those_that_it_is_asked_by(taught: Any) -> None:
    messages = [{"role": "user", "content": "How was it?"}]
    asked = {"model": "model", "messages": messages}
    body = {**asked, "tools": [WEATHER, TIME]}
    read = taught.post("/v1/chat/completions", json={**body, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    assert taught.post("/tokenize", json=body).json()["count"] == read
    assert taught.post("/tokenize", json=asked).json()["count"] < read
    refused = taught.post("/tokenize", json={"model": "model", "prompt": "w1", "tools": [TIME]})
    assert (refused.status_code, "tools go with messages" in refused.text) == (400, True)


def test_a_beginning_mark_that_the_template_writes_is_there_once(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    messages = [{"role": "user", "content": "Say hi"}]
    with client_of(tmp_path, template) as client:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        mark = tokenizer.bos_token_id
        assert tokenizer("a").input_ids[0] == mark, "of a plain text it is the tokenizer that writes it"
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert expected.count(mark) == 1
        assert client.post("/tokenize", json={"model": "model", "messages": messages}).json()["tokens"] == expected
        body = {"model": "model", "messages": messages, "max_tokens": 1}
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        assert usage["prompt_tokens"] == len(expected)


def test_turns_of_tools_are_read_without_a_template_that_knows_them(plain: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Rome"}'}}
    asked = [{"role": "user", "content": "How is it?"}]
    answered = [
        *asked,
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    counted = [
        plain.post("/tokenize", json={"model": "model", "messages": messages}).json()["count"]
        for messages in (asked, answered[:2], answered)
    ]
    assert counted == sorted(set(counted)), "each turn is read"
    assert chat(plain, messages=answered, tools=[WEATHER], tool_choice="none", temperature=0)["message"]["content"]
    named = {"type": "function", "function": {"name": "weather"}}
    (again,) = chat(plain, messages=answered, tools=[WEATHER], tool_choice=named, temperature=0)["message"][
        "tool_calls"
    ]
    assert json.loads(again["function"]["arguments"])["town"] in ("Paris", "Rome")


def test_calls_are_read_in_the_forms_that_models_are_taught() -> None:
    use = ToolUse(("time", "weather"), None, None)
    town = '{"name": "weather", "arguments": {"town": "Rome"}}'
    for text, rest, names in (
        (f"Well.\n<tool_call>\n{town}\n</tool_call>", "Well.", ["weather"]),
        (f'<tool_call>{town}</tool_call><tool_call>{{"name": "time"}}</tool_call>', "", ["weather", "time"]),
        (f"<tool_call>{town}", "", ["weather"]),
        (f"[TOOL_CALLS] [{town}]", "", ["weather"]),
        (town.replace("arguments", "parameters"), "", ["weather"]),
        ('{"name": "else", "arguments": {}}', '{"name": "else", "arguments": {}}', []),
        ("<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
        ("noon", "noon", []),
    ):
        found = read_calls(text, use)
        assert (found[0], [call.name for call in found[1]]) == (rest, names)
        assert all(json.loads(call.arguments) in ({"town": "Rome"}, {}) for call in found[1])
    one = ToolUse(("time", "weather"), None, None, several=False)
    assert len(read_calls(f"<tool_call>{town}</tool_call><tool_call>{town}</tool_call>", one)[1]) == 1


def test_a_stream_tells_each_call_in_an_event_of_its_own() -> None:
    body = ChatRequest.model_validate({"model": "a", "messages": [{"role": "user", "content": "How?"}], "stream": True})
    row = Sequence(None, (1,), Sampling(), lambda *_: None, None, 0.0)
    response = ResponseFormat(body, [row], 1, [None], ToolUse(("time", "weather"), None, None))
    text = "Well. " + "".join(f'<tool_call>{{"name": "{name}"}}</tool_call>' for name in ("time", "weather", "time"))
    events = [chunk["choices"][0] for chunk in response.chunks(0, text, "stop", True)]  # type: ignore[index]
    assert events[0]["delta"] == {"role": "assistant", "content": "Well."}
    calls = [event["delta"]["tool_calls"] for event in events[1:]]
    assert [[call["index"] for call in one] for one in calls] == [[0], [1], [2]]
    assert [one[0]["function"]["name"] for one in calls] == ["time", "weather", "time"]
    assert [event["finish_reason"] for event in events] == [None, None, None, "tool_calls"]


def test_without_the_library_the_answer_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with client_of(tmp_path, None) as client:
        error = chat(client, 501, response_format=IN_SCHEMA)
    assert "pip install 'dollartune[serve]'" in error["message"]
    assert error["param"] == "response_format"
