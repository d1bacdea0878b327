"""What a task is: data, a prompt template, label words or generation targets, and a metric.

A task knows nothing of models, methods or studies. It turns rows into prompts and answers, as text (or images);
tokenization happens later, in `dollartune.train.encoding`, because it depends on the backbone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dollartune.errors import UserError, nearest
from dollartune.tasks.values import as_text, is_missing

TaskKind = Literal["classification", "generation"]
Modality = Literal["text", "image"]
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Example:
    """One row of a task."""

    id: str
    """Stable within the task, for example `test/17`; predictions are stored and paired by it."""
    fields: Mapping[str, Any]
    """The columns that the template may name; an image task has a function that reads a `PIL.Image` under `image`."""
    label: str | None = None
    """Class label (classification)."""
    target: str | None = None
    """Text to write (generation)."""
    references: tuple[str, ...] = ()
    """Every acceptable text (generation); `target` is one of them."""
    task: str = ""
    """In a mixture, the name of the task that the row comes from; empty otherwise."""
    turns: tuple[tuple[str, str], ...] = ()
    """A conversation as (role, text) in place of a prompt, roles `system`, `user` and `assistant`, and those of
    `conversations.Turn` where there are tools; the last turn is the assistant's, and its text is `target`."""


@dataclass(frozen=True)
class Splits:
    """The rows that one scale trains, validates and tests on."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


class Template:
    """A prompt with `{column}` places; an image task has none.

    A name with a brace, colon, exclamation mark or backtick is quoted by backticks: ``{`text{0}`}``; `place` writes it so.
    Missing columns are reported against the columns that exist, with the nearest name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.parts = _parts(text)
        self.columns = tuple(dict.fromkeys(name for _, name, _ in self.parts if name is not None))

    def __call__(self, fields: Mapping[str, Any]) -> str:
        """Returns the prompt for one row; a column without a value is left empty."""
        for name in self.columns:
            if name not in fields:
                raise UserError(
                    f"the prompt template uses column {name!r}; the data has {sorted(fields)}.{nearest(name, fields)}",
                    None if name.isidentifier() else "Write a literal brace as {{ or }}.",
                )
        pieces: list[str] = []
        # By hand, because str.format reads `a.b` and `a[0]` as lookups and not as column names.
        for literal, column, specification in self.parts:
            pieces.append(literal)
            if column is None:
                continue
            # Blank text is written as it stands; a format suits no value that is not there.
            if not specification or is_missing(fields[column]):
                pieces.append(as_text(fields[column]))
                continue
            try:
                pieces.append(format(fields[column], specification))
            except (ValueError, TypeError) as error:
                written = f"{{{column}:{specification}}}"
                raise UserError(f"the prompt template has {written}, which does not suit the data: {error}.") from error
        return "".join(pieces)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def place(column: str) -> str:
    """How a template names a column, whatever characters its name has."""
    if re.search(r"[{}:!`]", column) is None:
        return "{" + column + "}"
    return "{`" + column.replace("`", "``") + "`}"


def _parts(text: str) -> tuple[tuple[str, str | None, str], ...]:
    """(literal text, column, format) for each place, and the text after the last one with None for a column."""
    parts: list[tuple[str, str | None, str]] = []
    literal, at = "", 0

    def wrong(why: str, hint: str = "Write a literal brace as {{ or }}.") -> UserError:
        return UserError(f"prompt template {text!r} is not valid: {why}. {hint}")

    while at < len(text):
        if text[at : at + 2] in ("{{", "}}"):
            literal, at = literal + text[at], at + 2
        elif text[at] == "}":
            raise wrong("a single '}'")
        elif text[at] != "{":
            literal, at = literal + text[at], at + 1
        elif quoted := _QUOTED.match(text, at):
            parts.append((literal, quoted[1].replace("``", "`"), _format(quoted[2] or "")))
            literal, at = "", quoted.end()
        else:
            end = text.find("}", at)
            if end < 0:
                raise wrong("a '{' without its '}'")
            name, _, specification = text[at + 1 : end].partition(":")
            if "{" in text[at + 1 : end]:
                raise wrong(
                    "a '{' inside a place", "Write a literal brace as {{ or }}, a column's name as {`name{0}`}."
                )
            plain, mark, conversion = name.partition("!")
            if mark:
                if not conversion:
                    raise wrong("a '!' without a conversion")
                raise UserError(
                    f"prompt template {text!r}: write {{{plain}}} without !{conversion}.",
                    f"A column of that name: {{`{name}`}}.",
                )
            parts.append((literal, name, _format(specification)))
            literal, at = "", end + 1
    return (*parts, (literal, None, ""))


def _format(specification: str) -> str:
    # An adapter from elsewhere brings its prompt along: a width of a billion would take the memory of whoever uses it.
    if any(int(number) > WIDEST for number in re.findall(r"\d+", specification)):
        raise UserError(f"a prompt's place has the format {specification!r}; widths go up to {WIDEST}.")
    return specification


WIDEST = 1000
"""Characters that a place of a prompt may ask to be padded to."""
_QUOTED = re.compile(r"\{`((?:[^`]|``)+)`(?::([^{}]*))?\}")


def left_behind() -> Mapping[SplitName, Sequence[Example]]:
    """The rows of a task that came without them."""
    raise RuntimeError("this task came without its rows (`Task.without_rows`)")


@dataclass(frozen=True)
class Task:
    """A task with its data, ready to be asked for splits.

    `load` returns all rows of the three splits; `splits` cuts them to a scale, always the same way for the same seed.
    """

    name: str
    kind: TaskKind
    load: Callable[[], Mapping[SplitName, Sequence[Example]]]
    template: Template | None = None
    """The prompt; None for images."""
    label_words: Mapping[str, str] = field(default_factory=dict)
    """Verbalizer: class label -> the word that a language model writes for it, in label order (classification)."""
    metric: str = "accuracy"
    """Primary metric, higher is better: a name in `dollartune.metrics`."""
    metrics: tuple[str, ...] = ()
    """Further metrics to record."""
    modality: Modality = "text"
    extra_templates: tuple[Template, ...] = ()
    """Other wordings ("verbalizers" in reference 004), for the spread of zero-shot and few-shot scores."""
    max_answer_tokens: int = 64
    """Longest answer to generate (generation), in tokens."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Whether a language model is asked by its chat template, the prompt as the user's turn; `auto`: where it has one."""
    system: str = ""
    """Text of the system turn before it; empty leaves that to the template."""
    chat_template: str | None = None
    """A template in place of the tokenizer's: what a stored adapter was tuned with."""
    description: str = ""
    source: str = ""
    """Citation and licence of the data."""
    leaks: str = ""
    """What to beware of when scores are compared: overlaps, repeated rows, label noise."""
    answer_column: str = ""
    """Column of the label or target in the data; an adapter's hold-out is read by it."""
    group_column: str = ""
    """Column that says which rows come together, such as a patient; empty where each row is on its own."""
    references_column: str = ""
    """Column with all acceptable texts, where there is one."""
    notes: tuple[str, ...] = ()
    """What was guessed, skipped or split while the data was read; the command line prints them."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class labels in their fixed order; empty for generation."""
        return tuple(self.label_words)

    def prompt(self, example: Example, template: Template | None = None) -> str:
        """The text before the answer."""
        chosen = template or self.template
        if chosen is None:
            raise UserError(
                f"task {self.name!r} has no prompt: it is an image task, which needs a vision backbone (ViT)."
            )
        return chosen(example.fields)

    def answer(self, example: Example) -> str:
        """The text that a language model should write: the label word or the target."""
        if self.kind == "classification":
            assert example.label is not None
            return self.label_words[example.label]
        assert example.target is not None
        return example.target

    def group_of(self, example: Example) -> str | None:
        """Short name of the group that a row comes in; None where it is on its own."""
        value = example.fields.get(self.group_column) if self.group_column else None
        # Hashed: a group is often a person, and identifiers end up in stored predictions. 48 bits tell some thousand
        # groups apart.
        return None if is_missing(value) else hashlib.sha256(as_text(value).encode()).hexdigest()[:12]

    def without_rows(self) -> Task:
        """The same for a machine that gets its rows otherwise."""
        return replace(self, load=left_behind)

    def owner(self, example: Example) -> Task:
        """The task that an example comes from: a mixture has several."""
        return self

    def groups(self, examples: Sequence[Example]) -> list[tuple[Task, tuple[Example, ...]]]:
        """The task that scores each example, with its examples; a single task scores all of them itself."""
        return [(self, tuple(examples))]

    def splits(self, scale: int | None = None, seed: int = 0, cap: int = 2500, draw: int | None = None) -> Splits:
        """Cuts the data to `scale` training rows and at most `cap` validation and test rows (reference 001, A.2).

        The same (scale, seed, cap, draw) always gives the same rows, whatever method asks; a smaller scale's training rows
        are the first of a larger scale's, so learning curves are nested.

        Args:
            draw: another draw of the training rows alone; validation and test rows stay. None is the first.
        """
        import random

        rows = self.load()

        def cut(split: SplitName, limit: int | None) -> tuple[Example, ...]:
            chosen = list(rows[split])
            order = f"{self.name}/{split}/{seed}"
            # Seeded by a text, which Python hashes by SHA-512: the same on every machine and in every version.
            random.Random(order if draw is None or split != "train" else f"{order}/{draw}").shuffle(chosen)
            return tuple(chosen if limit is None else chosen[:limit])

        # Cut after shuffling, so that a smaller scale is the beginning of a larger one's rows.
        return Splits(cut("train", scale), cut("validation", cap), cut("test", cap))
