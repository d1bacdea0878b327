"""Turns a task's examples into token ids (or pixels) for one backbone."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dollartune.backbones.chat import SAID, ChatFormat, Turn, chat_format, headings, plain_lines, plain_turn, tokens_in
from dollartune.backbones.positions import position_limit
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.tasks.base import Example, Task, Template

CONTENT_BYTES = 16
"""Of a row's hash: two rows of a thousand million share one with a probability of 1e-21."""


ENCODED_AT_ONCE = 256
"""Texts that a tokenizer is given at once: a tenth of a second, after which a budget that is spent is heard."""
TOKEN_CHARACTERS = 8
"""Of a token, at most, in nearly all texts: English has four or five, other languages fewer."""


@dataclass(frozen=True)
class Encoded:
    """One example for one backbone.

    Language: `prompt` are the tokens before the answer (the encoder's input in an encoder-decoder), `answer` the tokens
    to write, its end mark included. Classification: `prompt` is the whole input and `label` the class index.
    """

    example_id: str
    prompt: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    label: int = -1
    pixels: Tensor | None = None
    """(channels, height, width)."""
    token_types: tuple[int, ...] | None = None
    spoken: tuple[int, ...] = ()
    """Places of the prompt, from 1 up, whose tokens are learned like the answer's: the assistant's earlier turns."""

    def rest(self, beginning: int) -> Encoded:
        """What follows the first `beginning` tokens of the prompt, with room for a token of the answer: for a pass that goes
        on where a cache ends."""
        # The answer's token is a placeholder: who goes on from a cache reads what the model predicts there.
        return Encoded(self.example_id, self.prompt[beginning:], (0,))

    @cached_property
    def content(self) -> bytes:
        """A hash of all that the row gives the backbone: what was computed of it is found by that.

        Kept, as it is asked for a dozen times and that of a picture takes a millisecond.
        """
        whole = hashlib.blake2b(digest_size=CONTENT_BYTES)
        if self.pixels is not None:
            whole.update(self.pixels.contiguous().numpy().tobytes())
        else:
            whole.update(np.array(self.prompt, dtype=np.int64).tobytes())
            if self.token_types is not None:
                whole.update(b"/" + np.array(self.token_types, dtype=np.int64).tobytes())
        return whole.digest()

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return len(self.spoken) + len(self.answer)

    @property
    def length(self) -> int:
        """Tokens that the batch has to hold for it."""
        # Images of a task all have one size: 1 makes batches by their number.
        return len(self.prompt) + len(self.answer) if self.pixels is None else 1


class Encoder:
    """Encodes a task for a backbone.

    Args:
        backbone: gives the tokenizer or image processor, the kind and the objective.
        max_length: longest prompt plus answer, in tokens; by default what the backbone's positions allow, at most 512.
        reserve: positions of the backbone to leave free, for example for virtual tokens.
    """

    def __init__(self, backbone: Backbone, max_length: int | None = None, reserve: int = 0) -> None:
        self.backbone = backbone
        self.kind = backbone.kind
        limit = position_limit(backbone.model.config)
        self.positions = sys.maxsize if limit is None else limit - reserve
        """Tokens of a row that the backbone has positions for."""
        # 512 by default: attention and activations grow with it, and few classification texts are longer
        self.max_length = min(max_length or 512, self.positions)
        self.tokenizer = backbone.processor
        if self.tokenizer is None:
            raise UserError(
                f"backbone {backbone.name!r} has no {'image processor' if self.kind == 'vision' else 'tokenizer'}.",
                hint="Copy its files from where the model came from into the model's folder: "
                + (
                    "preprocessor_config.json" if self.kind == "vision" else "tokenizer.json, or vocab.txt and its like"
                ),
            )
        self.shortened = 0
        """How many inputs did not fit and were shortened."""
        self._told_apart: dict[int, Task] = {}
        """Tasks whose label words are known to differ, kept alive so that no other gets their number."""
        self._chats: dict[tuple[str, str, str | None], ChatFormat | None] = {}

    # Whole tasks

    def encode(self, task: Task, examples: Sequence[Example], template: Template | None = None) -> list[Encoded]:
        """Encodes examples of a task; the longest column of an example that does not fit is shortened at its end."""
        if task.chat == "always":
            self.chat(task)  # refuses a backbone that cannot be asked so, also where it reads no prompt
        if self.kind == "vision":
            return [self._image(task, example) for example in examples]
        if task.modality == "image":
            raise UserError(f"task {task.name!r} has images, which a {self.kind} backbone cannot read; give it a ViT.")
        if self.backbone.objective == "classification":
            return [
                row
                for start in range(0, len(examples), ENCODED_AT_ONCE)
                for row in self._classifications(task, examples[start : start + ENCODED_AT_ONCE])
            ]
        for part in {id(owner): owner for owner in map(task.owner, examples)}.values():
            if part.kind == "classification" and id(part) not in self._told_apart:
                self.label_answers(part)  # before anything is paid: training on equal answers teaches nothing
                self._told_apart[id(part)] = part
        return [self._language(task, example, template) for example in examples]

    def label_answers(self, task: Task) -> list[tuple[int, ...]]:
        """Answer tokens of each label word, in label order; with the end mark only where one word begins another.

        Raises:
            UserError: two words are the same tokens, so that no score could tell them apart.
        """
        answers = self._words(task)
        first: dict[tuple[int, ...], str] = {}
        for (label, word), answer in zip(task.label_words.items(), answers, strict=True):
            other = first.setdefault(answer, label)
            if not answer:
                raise UserError(f"task {task.name!r}: for {self.backbone.name!r} the answer {word!r} has no tokens.")
            if other != label:
                raise UserError(
                    f"task {task.name!r}: for {self.backbone.name!r} the answers {task.label_words[other]!r} and {word!r} are "
                    f"the same tokens ({self.tokenizer.decode(list(answer))}), so no score tells them apart.",
                    f"Give them words that its tokenizer knows: label_words: {{{other!r}: ..., {label!r}: ...}}; or "
                    "score classes: objective: classification.",
                )
        end = self._end_of_words(task, answers)
        return [a + end for a in answers]

    def label_end(self, task: Task) -> tuple[int, ...]:
        """Tokens that end every label word where labels are scored: the end mark where one word begins another, else none."""
        return self._end_of_words(task, self._words(task))

    def _words(self, task: Task) -> list[tuple[int, ...]]:
        return [self._answer_ids(task, word) for word in task.label_words.values()]

    def _end_of_words(self, task: Task, answers: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        # `good` before `goodness`: without an end mark the shorter one could never lose
        prefix = any(a != b and b[: len(a)] == a for a in answers for b in answers)
        return self._end(task) if prefix else ()

    def label_notes(self, task: Task) -> list[str]:
        """Sentences on label words that the tokenizer does not know in part.

        Raises:
            UserError: two words are the same tokens.
        """
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        words = list(task.label_words.values())
        lost = [word for word, answer in zip(words, self.label_answers(task), strict=True) if unknown in answer]
        if unknown is None or not lost:
            return []
        listed = ", ".join(map(repr, lost[:5])) + (" ..." if len(lost) > 5 else "")
        return [
            f"the tokenizer does not know all of the answers {listed} and reads them in part as {self.tokenizer.unk_token}"
        ]

    def chat(self, task: Task) -> ChatFormat | None:
        """The chat template by which this task is asked; None: its prompts as they stand.

        Raises:
            UserError: the task demands one, and there is none.
        """
        key = (task.chat, task.system, task.chat_template)
        if key not in self._chats:
            self._chats[key] = chat_format(self.backbone, *key)
        return self._chats[key]

    # One example

    def question_ids(
        self,
        task: Task,
        example: Example,
        template: Template | None = None,
        solved: Sequence[Example] = (),
        separator: str = "\n\n",
    ) -> tuple[int, ...]:
        """Tokens of a question, at whatever length: the one way in which training, evaluation, prediction and serving ask.

        Args:
            solved: examples with their answers before it: turns of a chat, or texts.
            separator: between those texts.
        """
        task = task.owner(example)
        chat = self.chat(task)
        if chat is None and not example.turns:
            texts = [f"{task.prompt(shot, template)} {task.answer(shot)}" for shot in solved]
            return self.prompt_ids(separator.join([*texts, task.prompt(example, template)]))
        turns = _turns(task, example, template)
        shots: list[Turn] = []
        for shot in solved:
            # a system turn stands at the very beginning or nowhere
            said = _turns(task, shot, template)
            shots += said[headings(said) :]
            shots.append(("assistant", task.answer(shot)))
        first = headings(turns)
        turns = [*turns[:first], *shots, *turns[first:]]
        return self.prompt_ids(plain_lines(turns)) if chat is None else chat.prompt_ids(turns)

    def chat_ids(self, task: Task | None, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Tokens of a conversation up to the assistant's next turn, as a task's adapter was tuned to read it.

        Args:
            task: None for the bare backbone.
        """
        chat = chat_format(self.backbone) if task is None else self.chat(task)
        if chat is not None:
            return chat.prompt_ids(turns)
        # tuned on prompts as they stand: a single question is such a prompt
        plain = task is not None and len(turns) == 1 and turns[0][0] == "user"
        return self.prompt_ids(turns[0][1] if plain else plain_lines(turns))

    def _language(self, task: Task, example: Example, template: Template | None) -> Encoded:
        owner = task.owner(example)
        answer, end = self._answer_ids(owner, task.answer(example)), self._end(owner)
        if self.kind == "encoder_decoder":
            # A decoder's own sequence in an encoder-decoder, so the prompt takes nothing from it; 1 for the end mark.
            answer = answer[: self.max_length - 1] + end
            return self._asked(owner, example, template, self.max_length, answer)
        # at most half is the answer's: a prompt that is cut to nothing teaches nothing
        answer = answer[: self.max_length // 2]
        written = max(len(answer), task.max_answer_tokens if task.kind == "generation" else 0)
        # free generation writes up to `max_answer_tokens`, which must have positions too
        room = min(self.max_length - len(answer), self.positions - written) - 1
        return self._asked(owner, example, template, max(room, self.max_length // 4), answer + end)

    def _asked(
        self, task: Task, example: Example, template: Template | None, limit: int, answer: tuple[int, ...]
    ) -> Encoded:
        """An example with its prompt, at most `limit` tokens, and its answer."""
        if not example.turns:
            return Encoded(example.id, self._fit(task, example, template, limit), answer)
        prompt, spoken = self._conversation(task, list(example.turns[:-1]), limit)
        return Encoded(example.id, prompt, answer, spoken=() if self.kind == "encoder_decoder" else spoken)

    def _conversation(self, task: Task, turns: list[Turn], limit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens of a conversation, and places of the assistant's; the oldest turns give way, and never the system's."""
        ids, spoken = self._spoken(task, turns)
        if len(ids) <= limit:
            return ids, spoken
        self.shortened += 1
        first = headings(turns)
        # from question to question: templates refuse a conversation that begins with an answer
        for start in [i for i in range(first + 1, len(turns)) if turns[i][0] == "user"]:
            ids, spoken = self._spoken(task, [*turns[:first], *turns[start:]])
            if len(ids) <= limit:
                return ids, spoken
        cut = max(0, len(ids) - limit)
        # nothing comes before the first token that could predict it
        return ids[cut:], tuple(position - cut for position in spoken if position > cut)

    def _spoken(self, task: Task, turns: Sequence[Turn]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        chat = self.chat(task)
        if chat is not None:
            return chat.spoken(turns)
        # Without a chat template the turns are lines of one text, and spans are characters of it.
        text, spans = plain_lines(turns), []
        for index, turn in enumerate(turns):
            if turn[0] in SAID:
                start = len(plain_lines(turns[:index]))
                spans.append((start, start + 1 + len(plain_turn(turn)[1])))  # with the space before it
        ids, positions = tokens_in(self.tokenizer, text, spans, add_special_tokens=True)
        return self._without_end(ids), positions

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a prompt: with the tokenizer's own start mark, and with its end mark only for encoders."""
        return self._without_end(tuple(self.tokenizer(text, verbose=False).input_ids))

    def _without_end(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if self.kind == "decoder" and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            return ids[:-1]
        return ids

    def _answer_ids(self, task: Task, answer: str) -> tuple[int, ...]:
        """Tokens that follow the prompt when the answer is written after it, in its turn or after a space."""
        if self.kind == "encoder_decoder":
            # `text_target`, because some families (mBART, Marian) write another language than they read.
            return tuple(self.tokenizer(text_target=answer, add_special_tokens=False).input_ids)
        chat = self.chat(task)
        if chat is not None:
            return chat.answer_ids(answer)
        # after a text, as tokenizers join the space to the word
        prompt = "Answer:"
        before = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        whole = self.tokenizer(f"{prompt} {answer}", add_special_tokens=False, verbose=False).input_ids
        if whole[: len(before)] == before and len(whole) > len(before):
            return tuple(whole[len(before) :])
        return tuple(self.tokenizer(f" {answer}", add_special_tokens=False).input_ids)

    def _end(self, task: Task) -> tuple[int, ...]:
        chat = self.chat(task) if self.kind == "decoder" else None
        if chat is not None:
            return chat.end
        # BERT-like tokenizers have no eos; their sep ends a text.
        end = self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.tokenizer.sep_token_id
        return (end,) if end is not None else ()

    def _fit(self, task: Task, example: Example, template: Template | None, limit: int) -> tuple[int, ...]:
        """The prompt's tokens, at most `limit`: its longest text column gives way, so the question at the end stays."""
        ids = self.question_ids(task, example, template)
        if len(ids) <= limit:
            return ids
        self.shortened += 1
        chosen = template or task.template
        # columns that the prompt does not show have nothing to give
        shown = chosen.columns if chosen is not None else tuple(example.fields)
        texts = {name: value for name in shown if isinstance(value := example.fields.get(name), str)}
        # characters per token differ between texts: two rounds nearly always do, four are the end of it
        for _ in range(4):
            if not texts or len(ids) <= limit:
                break
            name = max(texts, key=lambda column: len(texts[column]))
            # a few tokens too many, as cutting inside a word can make two tokens of one
            share = len(texts[name]) * (len(ids) - limit + 8) / max(1, len(ids))
            keep = max(0, len(texts[name]) - int(share) - 8)
            texts[name] = texts[name][:keep]
            ids = self.question_ids(task, replace(example, fields={**example.fields, **texts}), template)
        # the last resort keeps the end: the question stands there
        return ids if len(ids) <= limit else ids[-limit:]

    def _classifications(self, task: Task, examples: Sequence[Example]) -> list[Encoded]:
        """One text column is encoded alone and two as a pair; with more, the prompt is the input."""
        columns = task.template.columns if task.template else ()
        inputs: list[list[str]] = []
        for example in examples:
            if example.label is None:
                raise UserError(f"example {example.id!r} has no label; a classification head needs one.")
            texts = [str(example.fields[name]) for name in columns if name in example.fields]
            inputs.append(texts if 1 <= len(texts) <= 2 else [task.prompt(example)])
        begun = [[self._beginning(text) for text in texts] for texts in inputs]
        rows: dict[int, Encoded] = {}
        # Many at once, which fast tokenizers divide among the cores.
        for count in {len(texts) for texts in begun}:
            at = [index for index, texts in enumerate(begun) if len(texts) == count]
            each = [[begun[index][column] for index in at] for column in range(count)]
            encoded = self.tokenizer(*each, truncation=True, max_length=self.max_length)
            # of a single text all are 0, which is what models take without any
            types = encoded.get("token_type_ids") if count == 2 else None
            for place, index in enumerate(at):
                # transformers' truncation takes tokens off the longer text of a pair.
                ids, example = encoded.input_ids[place], examples[index]
                if len(ids) >= self.max_length and self._is_longer(inputs[index], begun[index], len(ids)):
                    self.shortened += 1
                rows[index] = Encoded(
                    example.id,
                    tuple(ids),
                    label=task.labels.index(str(example.label)),
                    token_types=tuple(types[place]) if types else None,
                )
        return [rows[index] for index in range(len(examples))]

    def _is_longer(self, texts: Sequence[str], begun: Sequence[str], tokens: int) -> bool:
        """Whether a row has more tokens than were kept: one that has just as many lost nothing."""
        return texts != begun or len(self.tokenizer(*texts, verbose=False).input_ids) > tokens

    def _beginning(self, text: str) -> str:
        """What of a text can be read at all: of 2,000 words the first 500 give the same tokens in a quarter of the time, as
        tokenizers cut text into words first. Of a pair of two such texts the odd token may be the other one's."""
        if len(text) <= 2 * TOKEN_CHARACTERS * self.max_length or self.tokenizer.truncation_side != "right":
            return text
        begun = text[: TOKEN_CHARACTERS * self.max_length]
        # The last word may go on; some languages have one alone. A text may begin with pages of white space.
        begun = next(iter(begun.rsplit(None, 1)), "")
        if len(self.tokenizer(begun, add_special_tokens=False, verbose=False).input_ids) <= self.max_length:
            return text
        return begun

    def _image(self, task: Task, example: Example) -> Encoded:
        image = example.fields["image"]
        image = image() if callable(image) else image
        # (channels, height, width) after [0]
        pixels = self.tokenizer(images=image.convert(self.image_mode), return_tensors="pt")["pixel_values"][0]
        assert example.label is not None
        return Encoded(example.id, label=task.labels.index(example.label), pixels=pixels)

    @property
    def image_mode(self) -> str:
        """Pillow's mode that pictures are read in: palettes, CMYK and alpha become what the model was trained on."""
        return "L" if self.backbone.model.config.num_channels == 1 else "RGB"


def _turns(task: Task, example: Example, template: Template | None) -> list[Turn]:
    """What is said before an example's answer."""
    return list(example.turns[:-1]) if example.turns else [("user", task.prompt(example, template))]


def collate_prompts(encoded: Sequence[Encoded], pad: int, left: bool, device: Any = "cpu") -> dict[str, Tensor]:
    """Prompts alone, padded on one side, as input_ids and attention_mask (rows, tokens)."""
    longest = max(len(e.prompt) for e in encoded)
    ids = torch.full((len(encoded), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, e in enumerate(encoded):
        # Decoders write after the last token, so their padding stands on the left; encoders count positions from the
        # left.
        filled = slice(longest - len(e.prompt), longest) if left else slice(0, len(e.prompt))
        ids[row, filled] = torch.tensor(e.prompt)
        mask[row, filled] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
