"""What a request asks, as tokens: texts, token ids, and chats by the template that the adapter was tuned with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dollartune.backbones.chat import ChatFormat, chat_format, template_of
from dollartune.backbones.positions import position_limit
from dollartune.backbones.token_table import vocabulary_size
from dollartune.errors import UserError
from dollartune.export.opening import stored_task
from dollartune.serve.limits import Refused
from dollartune.train.encoding import Encoder

if TYPE_CHECKING:
    from dollartune.backbones.chat import Turn
    from dollartune.backbones.loading import Backbone
    from dollartune.serve.pool import Served
    from dollartune.tasks.base import Task

_LONGEST = "this model's maximum context length is {} tokens"
"""OpenAI's words: litellm, and with it dspy, tells by them that a prompt was too long."""
_TOKENS_WITHOUT_LIMIT = 4096
"""Tokens of a request where a backbone's positions set no limit (T5, BLOOM): one request must not take the whole memory."""


@dataclass(frozen=True)
class Chat:
    """A conversation up to the turn that is asked for."""

    turns: tuple[Turn, ...]
    messages: tuple[Mapping[str, Any], ...] = ()
    """The same with calls of tools, where the template shall see them."""
    tools: tuple[Mapping[str, Any], ...] = ()


Prompt = str | list[int] | Chat


class PromptReader:
    """Makes tokens of prompts.

    Args:
        backbone: whose tokenizer and template are asked.
    """

    def __init__(self, backbone: Backbone) -> None:
        # Of its own: transformers keeps whether texts are cut within the tokenizer, and rows of classes are cut on the engine's
        # thread while prompts are read on others.
        self.backbone = replace(backbone, processor=copy.deepcopy(backbone.processor))
        self.encoder = Encoder(self.backbone)

    def ids(self, prompt: Prompt, served: Served | None, new_tokens: int, param: str = "prompt") -> tuple[int, ...]:
        """Tokens of a prompt that has room for so many new ones.

        Args:
            param: the request's field that it stands in.

        Raises:
            Refused: too long, ids outside of the vocabulary, or turns that the template refuses.
        """
        room = self.room(served)
        if isinstance(prompt, list):
            if not all(0 <= token < self.vocabulary for token in prompt):
                raise Refused(
                    400,
                    f"{param} has token ids outside 0 to {self.vocabulary - 1}; send the text itself, or ids of this model's "
                    "own tokenizer (/tokenize gives them)",
                    param=param,
                )
            return self._fitting(tuple(prompt), room, new_tokens, param)
        self._tokenizer()  # a text needs one
        texts = [prompt] if isinstance(prompt, str) else [text for _, text in prompt.turns]
        characters = sum(len(text) for text in texts)
        # The longest tokens of common vocabularies (runs of spaces or dashes) rarely pass 40 characters.
        if characters > 40 * room + 1000:  # no tokenizer makes so few tokens of so much text; do not even try
            raise Refused(
                400,
                f"{_LONGEST.format(room)}; the prompt has {characters:,} characters",
                "context_length_exceeded",
                _field(prompt, param),
            )
        ids = self.encoder.prompt_ids(prompt) if isinstance(prompt, str) else self._chat_ids(prompt, served)
        if not ids:
            start = self.backbone.processor.bos_token_id
            # A decoder needs one token to begin from; an empty prompt means the beginning of a text.
            ids = (start if start is not None else (self.backbone.processor.eos_token_id or 0),)
        return self._fitting(ids, room, new_tokens, _field(prompt, param))

    def room(self, served: Served | None) -> int:
        """Places of a prompt and its answer beside what an adapter puts before them."""
        return self.places - (served.extra_places if served is not None else 0)

    @property
    def places(self) -> int:
        """Places of a prompt and its answer."""
        return position_limit(self.backbone.model.config) or _TOKENS_WITHOUT_LIMIT

    @property
    def vocabulary(self) -> int:
        """Token ids end below it."""
        return vocabulary_size(self.backbone.model)

    def takes_tools(self, served: Served | None) -> bool:
        """Whether the chat template shows the model which tools there are."""
        chat = self._format(self._task(served))
        return chat is not None and chat.takes_tools

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Tokens of a text, with the marks that a prompt gets or without.

        Raises:
            Refused: the backbone reads no text.
        """
        tokenizer = self._tokenizer()
        return list(self.encoder.prompt_ids(text) if special else tokenizer.encode(text, add_special_tokens=False))

    def pieces(self, tokens: list[int]) -> list[str]:
        """Tokens as the vocabulary writes them."""
        return list(self._tokenizer().convert_ids_to_tokens(tokens))

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            Refused: ids that it has not, or it reads no text.
        """
        tokenizer = self._tokenizer()
        if not all(0 <= token < self.vocabulary for token in tokens):
            raise Refused(400, f"tokens are ids from 0 to {self.vocabulary - 1}", param="tokens")
        return str(tokenizer.decode(tokens))

    def tokenizer_info(self) -> dict[str, object]:
        """The tokenizer's marks and template, as vLLM names them.

        Raises:
            Refused: the backbone reads no text.
        """
        tokenizer = self._tokenizer()
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        marks = {name: str(mark) for name in names if (mark := getattr(tokenizer, name, None)) is not None}
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "model_max_length": self.places,
            "add_bos_token": bool(getattr(tokenizer, "add_bos_token", False)),
            **marks,
            "chat_template": template_of(tokenizer),
        }

    def _tokenizer(self) -> Any:
        if not hasattr(self.backbone.processor, "get_vocab"):
            raise Refused(400, "this server's model reads no text")
        return self.backbone.processor

    def _fitting(self, ids: tuple[int, ...], room: int, new_tokens: int, param: str) -> tuple[int, ...]:
        new_tokens = new_tokens if self.backbone.kind == "decoder" else 0  # an encoder-decoder writes elsewhere
        if len(ids) + new_tokens > room:
            raise Refused(
                400,
                f"{_LONGEST.format(room)}; {len(ids)} of the prompt and {new_tokens} new ones do not fit",
                "context_length_exceeded",
                param,
            )
        return ids

    @staticmethod
    def _task(served: Served | None) -> Task | None:
        try:
            return stored_task(served.info) if served is not None and served.info.get("task") else None
        except UserError as error:
            raise Refused(400, error.message) from None

    def _format(self, task: Task | None) -> ChatFormat | None:
        return chat_format(self.backbone) if task is None else self.encoder.chat(task)

    def _chat_ids(self, prompt: Chat, served: Served | None) -> tuple[int, ...]:
        task = self._task(served)
        try:
            chat = self._format(task)
            if chat is None or not chat.takes_developer:
                prompt = _by_system(prompt)
            if prompt.messages and chat is not None and chat.takes_tools:
                return chat.message_ids(prompt.messages, prompt.tools)
            return self.encoder.chat_ids(task, prompt.turns)
        except UserError as error:  # of the template, which may refuse roles and orders that it does not know
            raise Refused(400, error.message, param="messages") from None


def _field(prompt: Prompt, param: str) -> str:
    """The request's field that a prompt stands in."""
    return "messages" if isinstance(prompt, Chat) else param


def _by_system(prompt: Chat) -> Chat:
    """What the developer says as said by the system: OpenAI's newer name of that role, which few templates know, and which some
    leave out with what it says."""

    def known(role: str) -> str:
        return "system" if role == "developer" else role

    return replace(
        prompt,
        turns=tuple((known(role), text) for role, text in prompt.turns),
        messages=tuple({**message, "role": known(message["role"])} for message in prompt.messages),
    )
