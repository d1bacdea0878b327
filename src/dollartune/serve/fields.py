"""What becomes of every field that OpenAI's and vLLM's clients send: honoured, taken at a value that changes nothing, or refused.

Fields that are honoured are those of the models in `schema`. Here stand the others, each with the values that ask for what
happens anyway; any other value is a 400 with the field's name and the reason. No field is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.errors import nearest
from dollartune.serve.limits import Refused

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Neutral:
    """A field that does nothing here."""

    values: tuple[Any, ...]
    """What is taken besides null; the empty tuple takes everything, since the field asks for nothing that shows."""
    reason: str
    """Why other values are refused, or why all are taken."""


_OLD_TOOLS = "OpenAI's older name; send tools and tool_choice"
_NO_AUDIO = "this server writes text only"
_FORMAT = (
    "send response_format with a json_schema: an enum is a choice, a string with a pattern follows a regular expression"
)
_TEMPLATE = (
    "a chat is asked by the template of its adapter or model; send a text that you wrote yourself to /v1/completions"
)
_CACHE = "a hint for a cache of another kind than this server has; answers are the same"
_NOT_STORED = "requests are not stored; the field is only a note to a service that stores them"

_FORMATS = ("guided_choice", "guided_grammar", "guided_json", "guided_regex", "structured_outputs")

BOTH: Mapping[str, Neutral] = {
    "user": Neutral((), "names the client's user; nothing depends on it"),
    "metadata": Neutral((), _NOT_STORED),
    "safety_identifier": Neutral((), "names the client's user; nothing depends on it"),
    "prompt_cache_key": Neutral((), _CACHE),
    "prompt_cache_options": Neutral((), _CACHE),
    "prompt_cache_retention": Neutral((), _CACHE),
    "request_id": Neutral((), "names the request; nothing depends on it"),
    # A new object equals nothing that JSON holds: any value is refused.
    "moderation": Neutral((object(),), "this server judges no texts"),
    **{name: Neutral((object(),), _FORMAT) for name in _FORMATS},
    "allowed_token_ids": Neutral(
        (object(),), "tokens are forbidden by logit_bias, or by the format of response_format"
    ),
    "bad_words": Neutral(([],), "tokens are forbidden by logit_bias"),
    "cache_salt": Neutral((object(),), "requests of one adapter that begin alike share what was read"),
    "logits_processors": Neutral(([],), "a request brings no code"),
    "return_token_ids": Neutral((False,), "/tokenize gives the tokens of a text"),
    "return_tokens_as_token_ids": Neutral((False,), "/tokenize gives the tokens of a text"),
    "store": Neutral((False,), "requests are not stored"),
    "service_tier": Neutral(("auto", "default"), "there is one tier"),
    "use_beam_search": Neutral((False,), "texts are sampled or greedy; there are no beams"),
    "length_penalty": Neutral((1.0,), "it belongs to beam search, which is not done here"),
    "skip_special_tokens": Neutral((True,), "special tokens are never part of a text here"),
    "spaces_between_special_tokens": Neutral((True, False), "special tokens are never part of a text here"),
    "include_stop_str_in_output": Neutral((False,), "a stop text is never part of the answer"),
    "priority": Neutral((0,), "requests are answered in order"),
    "truncate_prompt_tokens": Neutral((-1,), "a prompt that is too long is refused, not cut"),
    "prompt_logprobs": Neutral((0,), "ask /v1/completions with echo and logprobs"),
}
COMPLETION: Mapping[str, Neutral] = {
    **BOTH,
    "suffix": Neutral(("",), "models here continue a text; they fill no gap"),
    "prompt_embeds": Neutral((object(),), "a prompt is a text or token ids"),
    "add_special_tokens": Neutral(
        (True,), "a prompt is read as the adapter was tuned; send token ids to decide yourself"
    ),
}
CHAT: Mapping[str, Neutral] = {
    **BOTH,
    "functions": Neutral(([],), _OLD_TOOLS),
    "function_call": Neutral(("none",), _OLD_TOOLS),
    "modalities": Neutral((["text"],), _NO_AUDIO),
    "audio": Neutral((object(),), _NO_AUDIO),
    "prediction": Neutral((object(),), "there is no speculative decoding here"),
    "reasoning_effort": Neutral(("none",), "models here have no hidden reasoning"),
    "verbosity": Neutral(("medium",), "length is set by max_tokens"),
    "web_search_options": Neutral((object(),), "this server searches nothing"),
    "add_generation_prompt": Neutral((True,), "an answer always begins after the template's mark"),
    "add_special_tokens": Neutral((False,), "the template writes the special tokens"),
    "continue_final_message": Neutral((False,), "an answer is a turn of its own; /v1/completions goes on with a text"),
    "chat_template": Neutral((object(),), _TEMPLATE),
    "chat_template_kwargs": Neutral(({},), _TEMPLATE),
    "documents": Neutral(([],), "write them into a message"),
    "best_of": Neutral((1,), "OpenAI has it for completions alone; use n"),
    "echo": Neutral((False,), "OpenAI has it for completions alone"),
}


EMBEDDING: Mapping[str, Neutral] = {
    "user": BOTH["user"],
    "dimensions": Neutral((object(),), "embeddings are as wide as the model's states"),
    "truncate_prompt_tokens": Neutral((-1,), "a text that is too long is refused, not cut"),
}
TOKENS: Mapping[str, Neutral] = {
    name: CHAT[name]
    for name in ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs")
}


def without_nulls(data: Any, model: type[BaseModel], notes: Collection[str] = ()) -> Any:
    """An object's fields without nulls, which ask for nothing whatever their names are, and without notes."""
    if not isinstance(data, Mapping):
        return data
    # Required ones stay, null or not: dropped, they would be refused as missing, which they are not.
    required = {field.alias or name for name, field in model.model_fields.items() if field.is_required()}
    return {
        name: value for name, value in data.items() if name in required or (value is not None and name not in notes)
    }


def without_neutral(data: Any, model: type[BaseModel], neutral: Mapping[str, Neutral]) -> Any:
    """A request's fields without nulls and without those that ask for nothing.

    Raises:
        Refused: a field that is not done, or not known, with its name and the reason.
    """
    if not isinstance(data, Mapping):
        return data
    kept = {}
    for name, value in without_nulls(data, model).items():
        if name in model.model_fields:
            kept[name] = value
        elif name not in neutral:
            known = [*model.model_fields, *neutral]
            raise Refused(
                400, f"there is no field {str(name)[:60]!r}.{nearest(str(name), known)}", param=str(name)[:60]
            )
        elif not _asks_for_nothing(value, neutral[name]):
            raise Refused(400, f"{name}: {neutral[name].reason}", param=name)
    return kept


def _asks_for_nothing(value: Any, field: Neutral) -> bool:
    # The type is compared as well, or `true` would pass for 1; 1 and 1.0 are one number in JSON.
    numbers = (int, float)
    return not field.values or any(
        value == other and (type(value) is type(other) or (type(value) in numbers and type(other) in numbers))
        for other in field.values
    )
