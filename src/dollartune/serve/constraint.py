"""Constrained decoding: answers that follow a JSON schema, token by token, whatever the model would rather say.

    schema -> Grammar (compiled once per request) -> Constraint (one per sequence) -> tokens that may follow

llguidance (MIT licence) holds the grammar and tells the tokens: of the libraries for it, it alone has no dependencies, and
its mask takes less than a millisecond per token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor

from dollartune.serve.limits import Refused

_AS_JSON_DUMPS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Spaces as `json.dumps` writes them. Free ones let a small model write blanks until its tokens are used up."""


_OPEN_WORDS = ("if", "not", "unevaluatedProperties", "dependentSchemas", "$dynamicRef")
"""Words by which one object answers to several schemas: none of them may then forbid what the others want."""
_BRANCHES = ("anyOf", "oneOf", "$ref")
"""Words that name other schemas for the same object; two of them, or one beside properties of its own, are like those."""
_OWN_WORDS = ("additionalProperties", "patternProperties", "minProperties")
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Words whose value holds schemas under names of the user's, which may be called like words."""
_NO_SCHEMAS = ("enum", "const", "default", "examples", "required")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""Of texts, those that llguidance knows."""


def closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that they name, where it does not say otherwise.

    What follows it follows the schema as given. Left open, a small model goes on with properties that nobody asked for until
    its tokens are used up; OpenAI demands the same of its strict schemas, and vLLM does it by default.
    """
    return schema if _overlaps(schema) else _each(schema, _without_others)


def _overlaps(schema: Any) -> bool:
    """Whether an object in it answers to several schemas."""
    if not isinstance(schema, Mapping):
        return False
    every = schema.get("allOf", [])
    alone = isinstance(every, list) and len(every) == 1  # as pydantic before 2.9 put a description beside a reference
    branches = sum(word in schema for word in _BRANCHES) + alone
    own = any(word in schema for word in ("properties", *_OWN_WORDS))
    several = branches > 1 or (branches == 1 and own) or any(word in schema for word in _OPEN_WORDS)
    return several or (bool(every) and not alone) or any(_overlaps(inner) for inner in _inside(schema))


def _inside(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that stand in a schema, besides values that are none."""
    for word, value in schema.items():
        if word in _BY_NAME and isinstance(value, Mapping):
            yield from value.values()
        elif word not in _NO_SCHEMAS:
            yield from value if isinstance(value, list) else [value]


def _each(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema in which each schema is changed, those inside it first."""
    if isinstance(schema, list):
        return [_each(value, change) for value in schema]
    if not isinstance(schema, Mapping):
        return schema
    changed: dict[str, Any] = {}
    for word, value in schema.items():
        if word in _BY_NAME and isinstance(value, Mapping):
            changed[word] = {name: _each(one, change) for name, one in value.items()}
        else:
            changed[word] = value if word in _NO_SCHEMAS else _each(value, change)
    return change(changed)


def _without_others(schema: dict[str, Any]) -> dict[str, Any]:
    """An object with the properties that it names, and no others."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or any(word in schema for word in _OWN_WORDS):
        return schema
    # What is demanded and not described may be anything, but it must be there.
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return {
        **schema,
        "properties": {**properties, **{name: {} for name in names if name not in properties}},
        "additionalProperties": False,
    }


def _without_notes(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without a format that is not followed: to a reader who does not know it, it is a note to others, by JSON Schema's
    own words. pydantic writes such for paths, secrets and bytes."""
    name = schema.get("format")
    return (
        {k: v for k, v in schema.items() if k != "format"} if isinstance(name, str) and name not in FORMATS else schema
    )


class TooComplex(Exception):
    """A grammar whose next tokens cannot be told within llguidance's limits."""


class Constraint:
    """Which tokens may follow in one answer.

    Args:
        matcher: an LLMatcher at the answer's beginning, not shared with others.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) with minus infinity at tokens that cannot follow.

        Raises:
            TooComplex: they cannot be told.
        """
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        if self._matcher.is_error():
            raise self._too_complex()
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        # Embeddings are often padded to a round number of rows; no token of the tokenizer is there.
        flags = torch.from_numpy(numpy.unpackbits(bits, bitorder="little")[: len(logits)]).bool()
        allowed[: len(flags)] = flags
        return logits.masked_fill(~allowed, -torch.inf)

    def take(self, token: int) -> None:
        """Goes on by a token.

        Raises:
            TooComplex: what may follow cannot be told any more.
        """
        if not self._matcher.consume_token(token):
            raise self._too_complex()

    def _too_complex(self) -> TooComplex:
        return TooComplex(self._matcher.get_error().partition("\n")[0])  # the rest is the state of its parser

    @property
    def complete(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())


@dataclass(frozen=True)
class Grammar:
    """What an answer may be."""

    matcher: Any
    """An LLMatcher at the beginning; copied for each answer."""

    def begin(self) -> Constraint:
        """A constraint for one answer."""
        return Constraint(self.matcher.deep_copy())


class Grammars:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer.
        end_tokens: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, end_tokens: Iterable[int]) -> None:
        self._tokenizer, self._end_tokens = tokenizer, sorted(end_tokens)

    @cached_property
    def _tokens(self) -> Any:
        # Built when it is first needed: a vocabulary of 150,000 takes a second.
        try:
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise Refused(
                501,
                "answers in a format need llguidance on the server: pip install 'dollartune[serve]'",
                "not_implemented",
                "response_format",
            ) from None
        try:
            return from_tokenizer(self._tokenizer, eos_token=self._end_tokens)
        except ValueError as error:
            raise Refused(
                501, f"answers in a format need a fast tokenizer: {error}", "not_implemented", "response_format"
            ) from None

    def json(self, schema: Mapping[str, Any], param: str = "response_format") -> Grammar:
        """JSON that a schema describes. Takes milliseconds to seconds, without the interpreter's lock.

        Args:
            param: the request's field that holds the schema, for errors.

        Raises:
            Refused: 400 where the schema is malformed, too large or has what cannot be followed; 501 without llguidance.
        """
        # First: without llguidance this refuses in words, where the import below would fail as a fault of ours.
        tokens = self._tokens
        from llguidance import LLMatcher

        try:
            followed = _each(closed(schema), _without_notes)
            text = LLMatcher.grammar_from_json_schema(json.dumps(followed), overrides=_AS_JSON_DUMPS)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the schema cannot be read: {error}", param=param) from None
        # Silent: warnings are of a client's schema, and what cannot be followed is asked for below.
        matcher = LLMatcher(tokens, text, log_level=0)
        if matcher.is_error():
            raise Refused(400, f"the schema cannot be followed: {matcher.get_error()[:300]}", param=param)
        return Grammar(matcher)
