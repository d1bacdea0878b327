"""Chat templates: how a model was taught to be asked, and the tokens of a question and its answer in that form.

    <|im_start|>user                             <- user turn: the task's prompt
    Review: a fine film. Sentiment:<|im_end|>
    <|im_start|>assistant                        <- the prompt ends where the assistant's turn begins
    positive<|im_end|>                           <- answer, and the mark that ends its turn

`chat_format` decides whether a model is asked so; `ChatFormat` renders. Everything that asks a model (training, evaluation,
prediction, serving) goes through it, so that all of them give the model the same tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dollartune.backbones.locate import resolve
from dollartune.errors import UserError
from dollartune.hub_access import without_waiting

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone

ChatMode = Literal["auto", "always", "never"]
"""`auto`: by the tokenizer's template where there is one and the model writes text; `always`: an error where there is none."""

Turn = tuple[str, str]
"""(role, text): `system`, `user` or `assistant`, and what is said; where there are tools also `tools`, `calls` and `tool`, whose
texts are JSON: the functions, the assistant's message with its calls, and the message of a tool."""

SAID = ("assistant", "calls")
"""Roles of what the assistant says."""

_PROBE = "zebra"
"""Stands for an answer while a template is looked at: a word that no template writes by itself."""


class ChatFormat:
    """A chat template of a tokenizer.

    Args:
        template: Jinja source, as tokenizers keep it.
        system: text of a system turn before every conversation that has none; empty leaves it to the template.
    """

    def __init__(self, tokenizer: Any, template: str, system: str = "") -> None:
        self.tokenizer, self.template, self.system = tokenizer, template, system

    def text(self, turns: Sequence[Turn]) -> str:
        """Turns as text, up to where the assistant's next turn begins.

        Raises:
            UserError: the template refuses these turns.
        """
        return self._rendered(self._with_system(turns), True)

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Tokens of turns up to the assistant's next one: those of `apply_chat_template(..., add_generation_prompt=True)`."""
        return self.ids_of(self.text(turns))

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows the model which functions it may call."""
        return re.search(r"\btools\b", self.template) is not None

    @cached_property
    def takes_developer(self) -> bool:
        """Whether the template knows the developer's role, OpenAI's newer name of the system's."""
        return "developer" in self.template

    def message_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Tokens of messages with calls and results of tools, up to the assistant's next turn.

        Args:
            messages: as transformers' templates read them (`role`, `content`, `tool_calls`).
            tools: the functions, as OpenAI describes them.

        Raises:
            UserError: the template refuses them.
        """
        if self.system and not (messages and messages[0]["role"] == "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # as in `_rendered`: what a template raises is its own
            raise self._refused(error) from None
        return self.ids_of(str(rendered))

    def ids_of(self, rendered: str) -> tuple[int, ...]:
        """Tokens of rendered text; the marks that a tokenizer adds by itself are the template's business here."""
        # verbose: the tokenizer would warn of texts longer than the model's positions, which are cut afterwards.
        return tuple(self.tokenizer(rendered, add_special_tokens=False, verbose=False).input_ids)

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Tokens of an answer where the assistant's turn begins, without the mark that ends it.

        ` positive` after `[/INST]`, `positive` after a new line: as the template writes it, and as the tokenizer cuts the
        whole text.
        """
        before, gap, _ = self._around_answer
        ids = self.ids_of(before)
        whole = self.ids_of(before + gap + answer)
        if whole[: len(ids)] == ids and len(whole) > len(ids):
            return whole[len(ids) :]
        # The tokenizer joins across the border (a space into the word): then the answer is cut by itself.
        return self.ids_of(gap + answer)

    @cached_property
    def end(self) -> tuple[int, ...]:
        """The token that ends the assistant's turn: the template's mark, or the tokenizer's end of text where it has none."""
        _, _, after = self._around_answer
        ids = self.ids_of(after)
        # A template without a mark of its own goes on with text (a new line, the next turn's heading).
        if ids and ids[0] in self._marks:
            return ids[:1]
        end = self.tokenizer.eos_token_id
        return () if end is None else (int(end),)

    def spoken(self, turns: Sequence[Turn]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens of a conversation up to the assistant's next turn, and which of them the assistant has said.

        Returns:
            the tokens, and the places among them that belong to its earlier turns, end marks included.

        Raises:
            UserError: the template changes what was said, or the tokenizer does not tell where its tokens lie.
        """
        turns = self._with_system(turns)
        text = self.text(turns)
        spans, at = [], 0
        for index, (role, said) in enumerate(turns):
            if role not in SAID:
                continue
            # the head, not a search alone: an answer like `yes` may stand in the question before it
            head = self.text(turns[:index])
            if role == "calls":
                spans.append(self._span_of_calls(text, head, turns[: index + 1]))
                at = spans[-1][1]
                continue
            if text.startswith(head):
                at = len(head)
            # stripped, as many templates write it so
            start = text.find(said.strip(), at)
            if start < 0:
                raise UserError(f"the tokenizer's chat template changes what the assistant says: {said[:60]!r}.")
            begin = at if text.startswith(head) and not text[at:start].strip() else start
            at = start + len(said.strip())
            if self._end_text and text.startswith(self._end_text, at):
                at += len(self._end_text)
            spans.append((begin, at))
        return tokens_in(self.tokenizer, text, spans, add_special_tokens=False)

    def _span_of_calls(self, text: str, head: str, turns: Sequence[Turn]) -> tuple[int, int]:
        """Where in a conversation's text its template has written calls, the mark that ends the turn included."""
        whole = self._rendered(turns, False)
        stop = whole.rindex(self._end_text) + len(self._end_text) if self._end_text in whole else len(whole.rstrip())
        if not whole.startswith(head) or stop <= len(head) or not text.startswith(whole[:stop]):
            raise UserError(
                "the tokenizer's chat template writes calls of tools otherwise where something follows them."
            )
        return len(head), stop

    @cached_property
    def _around_answer(self) -> tuple[str, str, str]:
        """The text before an answer, the gap between the two, and the text after the answer."""
        question: list[Turn] = [("user", "Question")]
        before = self.text(question)
        # One question and a known answer: what stands around the answer is the template's.
        whole = self._rendered([*self._with_system(question), ("assistant", _PROBE)], False)
        head, _, after = whole.rpartition(_PROBE)
        gap = head[len(before) :] if head.startswith(before) else ""
        # Qwen3 writes an empty thought before an answer in its history: that is no part of what is asked for
        return before, "" if gap.strip() else gap, after

    @cached_property
    def _end_text(self) -> str:
        """The end mark as the template writes it; empty where it writes none."""
        _, _, after = self._around_answer
        ids = self.ids_of(after)
        if not ids or ids[0] not in self._marks:
            return ""
        mark = self.tokenizer.convert_ids_to_tokens(ids[0])
        return str(mark) if after.startswith(str(mark)) else ""

    @cached_property
    def _marks(self) -> frozenset[int]:
        """Tokens that stand for no text of a language."""
        return frozenset((*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder))

    def _with_system(self, turns: Sequence[Turn]) -> list[Turn]:
        if turns and turns[0][0] == "tools":
            return [turns[0], *self._with_system(turns[1:])]
        has_one = bool(turns) and turns[0][0] == "system"
        return [*([("system", self.system)] if self.system and not has_one else []), *turns]

    def _rendered(self, turns: Sequence[Turn], answer_follows: bool) -> str:
        """Turns as the template writes them; the system's text in the user's turn where the template knows no system."""
        try:
            return self._render(turns, answer_follows)
        except Exception as error:  # templates raise errors of their own for roles and orders that they do not know
            joined = _system_in_user(turns)
            if joined is None:
                raise self._refused(error) from None
        # Gemma's and Mistral's first templates: their makers advise to begin the user's turn with the system's text
        try:
            return self._render(joined, answer_follows)
        except Exception as error:
            raise self._refused(error) from None

    def _render(self, turns: Sequence[Turn], answer_follows: bool) -> str:
        tools = json.loads(turns[0][1]) if turns and turns[0][0] == "tools" else None
        messages = [_message(turn) for turn in turns[bool(tools) :]]
        if tools and not self.takes_tools:
            raise ValueError("it shows no tools that may be called")
        if any("tool_calls" in message for message in messages) and "tool_calls" not in self.template:
            raise ValueError("it does not write calls of tools")
        return str(
            self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self.template, tokenize=False, add_generation_prompt=answer_follows
            )
        )

    @staticmethod
    def _refused(error: Exception) -> UserError:
        return UserError(
            f"the tokenizer's chat template refuses these turns: {error}", "Set `chat: never` in the task."
        )


def chat_format(
    backbone: Backbone, mode: ChatMode = "auto", system: str = "", template: str | None = None
) -> ChatFormat | None:
    """How this backbone is asked as a chat; None: plainly, as it stands.

    Args:
        template: to use in place of the tokenizer's, as a stored adapter remembers it.

    Raises:
        UserError: `always`, and there is no template or the backbone writes no text.
    """
    if mode == "never":
        return None
    writes = backbone.objective == "language" and backbone.kind in ("decoder", "encoder_decoder")
    if writes and template is None:
        template = template_of(backbone.processor)
    if writes and template is not None:
        return ChatFormat(backbone.processor, template, system)
    if mode == "always":
        why = "its tokenizer has no chat template" if writes else "it is not used as a language model"
        raise UserError(f"backbone {backbone.name!r} cannot be asked as a chat: {why}.", "Set `chat: auto` or `never`.")
    return None


def template_of(tokenizer: Any) -> str | None:
    """A tokenizer's chat template; where it has several, its default one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # several, and none is the default
        return None


@cache
def stored_template(name: str) -> str | None:
    """The chat template of a backbone by its files alone, without loading its tokenizer; None where there is none."""
    return _written_template(Path(resolve(name)), name)


def template_in(folder: Path) -> str | None:
    """The chat template in a folder that need not be a backbone's: an adapter may bring one along."""
    return _written_template(folder, str(folder))


def _written_template(path: Path, name: str) -> str | None:
    try:
        written = _file(path, name, "chat_template.jinja")
        if written is not None:
            return written.read_text(encoding="utf8")
        settings = _file(path, name, "tokenizer_config.json")
        stored = json.loads(settings.read_text(encoding="utf8")).get("chat_template") if settings is not None else None
    except (OSError, ValueError):
        return None
    if isinstance(stored, list):  # several: [{"name": ..., "template": ...}]
        stored = {one.get("name"): one.get("template") for one in stored if isinstance(one, Mapping)}.get("default")
    return stored if isinstance(stored, str) and stored else None


def _file(path: Path, name: str, file: str) -> Path | None:
    """A file of a backbone's folder, or of its repository on the hub."""
    if path.is_dir():
        return path / file if (path / file).is_file() else None
    from transformers.utils.hub import cached_file

    with without_waiting(resolve(name)):
        cached = cached_file(
            resolve(name),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if cached is None else Path(cached)


def tokens_in(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], add_special_tokens: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a text, and which of them lie in spans of its characters.

    Raises:
        UserError: a tokenizer that does not say where its tokens lie.
    """
    if not spans:
        return tuple(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids), ()
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("conversations need a tokenizer that tells where its tokens lie (a fast one).")
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    positions = tuple(
        index
        for index, (first, last) in enumerate(encoded.offset_mapping)
        # Any overlap: a token that begins with a space before the answer belongs to the answer.
        if any(first < stop and last > start for start, stop in spans)
    )
    return tuple(encoded.input_ids), positions


def end_tokens(backbone: Backbone) -> frozenset[int]:
    """Tokens that end a text: by the model's config, its tokenizer and its chat template.

    Not by stored generation settings: scores are of the weights, and `evaluate.generation` neutralises all of those.
    """
    configured = getattr(backbone.model.config, "eos_token_id", None)
    ends = {*(configured if isinstance(configured, list) else [configured]), backbone.processor.eos_token_id}
    chat = chat_format(backbone)
    if chat is not None:
        with suppress(UserError):  # a template that refuses a question with an answer gives no mark either
            ends.update(chat.end)
    return frozenset(int(token) for token in ends if token is not None)


def _system_in_user(turns: Sequence[Turn]) -> list[Turn] | None:
    """The system's text at the head of the first user turn; None where there is no system turn or no user turn after it."""
    if len(turns) < 2 or turns[0][0] != "system" or turns[1][0] != "user":
        return None
    return [("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]]


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates read messages."""
    role, text = turn
    if role in ("calls", "tool"):
        return {"role": "assistant" if role == "calls" else role, **json.loads(text)}
    return {"role": role, "content": text}


def plain_turn(turn: Turn) -> Turn:
    """A turn as a line for a model without a template; calls are JSON that the assistant says."""
    role, text = turn
    if role == "tool":
        return role, str(json.loads(text)["content"])
    return ("assistant", text) if role == "calls" else turn


def headings(turns: Sequence[Turn]) -> int:
    """How many turns stand before the conversation itself: the functions that may be called, and the system's text."""
    return next((index for index, (role, _) in enumerate(turns) if role not in ("tools", "system")), len(turns))


def plain_lines(turns: Sequence[Turn]) -> str:
    """Turns for a model without a template: `role: text` lines, up to where the assistant's next one begins."""
    return "\n".join([*(f"{role}: {text}" for role, text in map(plain_turn, turns)), "assistant:"])
