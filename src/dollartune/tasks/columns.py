"""Which column of a user's data is the input, the label and the target: as told, or guessed and said so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest
from dollartune.tasks.base import Template, place
from dollartune.tasks.conversations import columns_beside, conversation_column, conversation_template
from dollartune.tasks.images import LOOKED_AT, bring_pictures, picture_column
from dollartune.tasks.labels import different_values, fold, is_no_label, label_problem
from dollartune.tasks.values import as_text, is_missing

if TYPE_CHECKING:
    from dollartune.tasks.config import TaskConfig
    from dollartune.tasks.rows import Row

LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "topic", "intent", "y")
LABEL_WORDS = {*LABEL_NAMES, "emotion", "polarity", "rating", "stars", "target"} - {"y"}
"""Words by which a name of several (`gold_label`) or a less usual one (`stars`) is preferred among columns of few values."""
ANSWER_NAMES = ("output", "response", "completion")
"""What instruction sets call the text to write; nothing else is called so."""
TARGET_NAMES = (
    "target",
    "summary",
    *ANSWER_NAMES,
    "answer",
    "translation",
    "reference",
    "caption",
    "chosen",
)
ASKED_NAMES = ("instruction", "prompt", "question", "input")
"""What they call the question."""
ABOUT_QUESTION = ("category", "topic", "intent")
"""Of `LABEL_NAMES`, what they also call a property of the question."""
NEVER_SHOWN = ("rejected",)
"""The answer that is not to be given, in sets of preferences."""
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "document", "article", "question", "dialogue", "source", "input"),
    *("prompt", "instruction", "title", "body", "message", "description"),
)
IMAGE_NAMES = ("image", "file", "filename", "file_name", "path")
MOST_LABELS = 50  # a column with more different values than this is not guessed to be a label


@dataclass(frozen=True)
class Columns:
    """The roles of a table's columns."""

    inputs: tuple[str, ...]
    """What the model sees."""
    label: str | None = None
    target: str | None = None
    references: str | None = None
    image: str | None = None
    """Column of file names or loaders of pictures; the only input of an image task."""
    group: str | None = None
    """Column whose equal values stay in one split."""
    conversation: str | None = None
    """Column with a list of turns; the only input of a task of conversations, and its answer."""

    @property
    def answer(self) -> str:
        """The column with the label or the target."""
        column = self.label or self.target or self.conversation
        assert column is not None
        return column


def need_column(template: Template) -> None:
    """Refuses a prompt that is the same for every row.

    Raises:
        UserError: it has no column.
    """
    if not template.columns:
        raise UserError(
            f"the prompt {template.text!r} shows no column, so that every row would ask the same.",
            'Write a column in braces: prompt: "Review: {review}".',
        )


def choose_columns(
    config: TaskConfig, rows: Sequence[Row], source: str, notes: list[str]
) -> tuple[Columns, Template | None]:
    """Reads the roles and the prompt from `config`; guesses what is missing and writes each guess into `notes`.

    Args:
        config: the task entry.
        rows: at least one row of training data.
        source: the data's name, for messages.
        notes: gets a sentence per guess.

    Returns:
        the roles, and the prompt (None for images).

    Raises:
        UserError: a named column is not there, or nothing can be guessed; with the nearest name and all columns.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    template = None if config.prompt is None else Template(config.prompt)
    named = {
        key: getattr(config, key) for key in ("text", "label", "target", "references", "image", "group", "conversation")
    }
    for key, given in named.items():
        for name in (given,) if isinstance(given, str) else given or ():
            if name in names:
                continue
            raise UserError(f"{source} has no column {name!r} ({key}); it has {names}.{nearest(name, names)}")
    for name in template.columns if template else ():
        if name not in names:
            raise UserError(f"the prompt uses column {name!r}; {source} has {names}.{nearest(name, names)}")
    conversation = config.conversation or _recognized(config, rows, notes)
    if conversation is not None:
        notes += [f"column {name!r} is read with the conversation" for name in columns_beside(rows, conversation)]
        return Columns((conversation,), group=config.group, conversation=conversation), conversation_template(
            conversation
        )
    image = config.image or _image_column(config, rows, names, notes)
    # Columns that are asked for as input cannot be the answer: they are taken out before the answer is guessed.
    taken = {name for name in (image, config.group, config.references, *(template.columns if template else ())) if name}
    asked = (config.text,) if isinstance(config.text, str) else config.text or ()
    label, target = _answer(
        config, rows, [name for name in names if name not in taken and name not in asked], source, notes
    )
    if label is not None and config.group == label:
        raise UserError(
            f"{source}: column {label!r} is the label and the group: each split would have labels of its own.",
            "Name the column of what must stay together (a patient, a page), or leave `group` out.",
        )
    if image is not None:
        if label is None:
            raise UserError(f"{source} describes images, which need a label column; it has {names}.", NAME_ANSWER)
        return Columns((image,), label=label, image=image, group=config.group), None
    if template is not None:
        need_column(template)
    else:
        rest = [name for name in names if name not in taken | {label, target}]
        template = _default_prompt(config, rows, rest, label, label or target, source, notes)
    # Checked after every guess: a prompt that shows the answer scores 1.0, and nobody would notice.
    leaked = [name for name in template.columns if name in (label, target)]
    if leaked:
        raise UserError(
            f"the prompt shows the answer: it uses column {leaked[0]!r}, which is the {'label' if label else 'target'}."
        )
    return Columns(template.columns, label, target, config.references, group=config.group), template


def _recognized(config: TaskConfig, rows: Sequence[Row], notes: list[str]) -> str | None:
    """The column of conversations, unless the task says which columns are input or answer."""
    if config.kind == "classification" or any((config.text, config.label, config.target, config.prompt, config.image)):
        return None
    column = conversation_column(rows)
    if column is not None:
        notes.append(
            f"column {column!r} is taken as a conversation, the assistant's last turn as the text to write and its earlier ones "
            "as learned too (guessed; to choose: `conversation:` in a study file)"
        )
    return column


def _image_column(config: TaskConfig, rows: Sequence[Row], names: Sequence[str], notes: list[str]) -> str | None:
    """The column of pictures: it holds loaders or names of image files, or has a usual name and `images` is given."""
    values = [row.values for row in rows[:LOOKED_AT]]
    column = picture_column(values)
    # Pictures of the hub are functions that load them: nothing is guessed.
    if column is not None and bring_pictures(values, column):
        return column
    if column is None and config.images is not None:
        column = _by_name(names, IMAGE_NAMES)
    if column is None:
        if config.images is None:
            return None
        raise UserError(f"no column names the image files; there are {list(names)}.", "Name it: `image: COLUMN`.")
    notes.append(f"column {column!r} is taken as the image file (guessed; in a study file `image:` chooses)")
    return column


def _answer(
    config: TaskConfig, rows: Sequence[Row], names: Sequence[str], source: str, notes: list[str]
) -> tuple[str | None, str | None]:
    """Returns (label column, target column), one of which is None."""
    if config.label is not None:
        return config.label, None
    if config.target is not None:
        return None, config.target
    # A usual name counts more than what the values look like: a column `label` with many values is one all the same.
    label = _by_name(names, LABEL_NAMES) if config.kind != "generation" else None
    # Instruction sets have a `category` of the question beside its answer (Dolly).
    if label is not None and config.kind is None and _by_name(names, ASKED_NAMES) is not None:
        answer = _by_name(names, ANSWER_NAMES)
        if answer is not None and not _few_values(rows, answer):
            label = _by_name(names, [name for name in LABEL_NAMES if name not in ABOUT_QUESTION])
    target = _by_name(names, TARGET_NAMES) if config.kind != "classification" and label is None else None
    # A column `answer` may hold yes and no, which are classes, or sentences, which are texts to write.
    if label is None and target is not None and config.kind is None and _few_values(rows, target):
        label, target = target, None
    candidates: list[str] = []
    if label is None and target is None and config.kind != "generation":
        candidates = _like_labels(rows, names)
        label = candidates[0] if candidates else None
    if label is not None:
        beside = f"; {', '.join(map(repr, candidates[1:]))} might be it too" if len(candidates) > 1 else ""
        notes.append(f"column {label!r} is taken as the class label (guessed{beside}; to choose: {CHOOSE_LABEL})")
    elif target is not None:
        notes.append(f"column {target!r} is taken as the text to write (guessed; to choose: {CHOOSE_TARGET})")
    else:
        raise UserError(
            f"cannot guess which column of {source} is the answer; it has {list(dict.fromkeys(names))}.",
            NAME_ANSWER,
        )
    return label, target


def _like_labels(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Columns of few values that come back, the likeliest label first."""
    few = [name for name in names if _few_values(rows, name)]
    if few and all(re.fullmatch(r"column\d+", name) for name in few):
        # No names: a source or a year has more different values than the label (CoLA).
        return sorted(few, key=lambda name: len({fold(row.values.get(name)) for row in rows}))
    return sorted(few, key=lambda name: LABEL_WORDS.isdisjoint(re.split(r"[\W_]+", name.lower())))


def _default_prompt(
    config: TaskConfig,
    rows: Sequence[Row],
    names: Sequence[str],
    label: str | None,
    answer: str | None,
    source: str,
    notes: list[str],
) -> Template:
    """The prompt that shows the columns of text: one alone, several in the file's order under their names."""
    shown = [config.text] if isinstance(config.text, str) else list(config.text or ())
    telling: list[str] = []
    if not shown:
        known = [name for name in names if name.lower() not in NEVER_SHOWN]
        telling = [name for name in known if answer is not None and _ends_with_answer(rows, name, answer)]
        if telling:
            notes.append(
                f"{', '.join(map(repr, telling))} ends with the answer in nearly every row, so it is not shown"
            )
        shown = _texts(rows, [name for name in known if name not in telling])
        if not shown:
            raise UserError(f"{source} has no column of text left to be the input.", NAME_INPUT)
        what = f"column {shown[0]!r} is" if len(shown) == 1 else f"columns {', '.join(map(repr, shown))} are"
        notes.append(f"{what} taken as the input (guessed; to choose: {CHOOSE_INPUT})")
    # Braces of the label's name are doubled, so that they are not read as places of the template.
    question = _heading((label or "").replace("{", "{{").replace("}", "}}")) or "Answer"
    if len(shown) == 1:
        template = Template(f"{place(shown[0])}\n\n{question}:")
    else:
        headed = (f"{_heading(name.replace('{', '{{').replace('}', '}}'))}: {place(name)}" for name in shown)
        template = Template("\n".join(headed) + f"\n\n{question}:")
    notes.append(f"the prompt is {template.text!r} (to choose: {CHOOSE_PROMPT})")
    unused = [name for name in names if name not in (*shown, *telling)]
    if unused:
        notes.append(f"not shown to the model: {', '.join(map(repr, unused))} (to show them: {CHOOSE_INPUT})")
    return template


def _heading(name: str) -> str:
    return name.replace("_", " ").strip().capitalize()


def _texts(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The columns to show: all that hold texts, or the longest where none does (one-word inputs)."""
    some = rows[:MOST_READ]
    texts = {
        name: [value for row in some if isinstance(value := row.values.get(name), str) and value.strip()]
        for name in names
    }
    filled = {name: values for name, values in texts.items() if values}
    shown = [name for name, values in filled.items() if _reads_as_text(name, values)]
    if shown or not filled:
        return shown
    usual = _by_name(list(filled), TEXT_NAMES)
    return [usual or max(filled, key=lambda name: sum(map(len, filled[name])))]


def _reads_as_text(name: str, values: Sequence[str]) -> bool:
    """Whether a column holds texts rather than identifiers, dates, numbers, addresses or a few words that repeat.

    Two words on average make a text, unless the column repeats itself as classes do; a usual name (`instruction`) makes
    up for that.
    """
    # text1 and text_2 are usual names too.
    usual = name.lower() in TEXT_NAMES or name.lower().rstrip("0123456789_") in TEXT_NAMES
    words = sum(len(value.split()) for value in values) / len(values)
    letters = sum(character.isalpha() for value in values for character in value)
    characters = sum(len(value) for value in values)
    # Dates, numbers and codes have fewer letters than other marks. Chinese and Japanese write no spaces: length speaks there.
    texts = letters > 0.5 * characters and (words >= 2 or (words < 1.5 and not all(map(str.isascii, values[:50]))))
    # Each value twice on average, and few of them: classes.
    repeats = len(set(values)) * 2 <= len(values) and len(set(values)) <= MOST_LABELS
    addresses = sum(value.startswith(("http://", "https://", "www.")) for value in values) * 2 > len(values)
    return not addresses and (texts or (usual and characters >= 10 * len(values))) and (usual or not repeats)


MOST_READ = 1000
"""Rows by which columns are told apart: a thousand do it as surely as all of them."""
CHOOSE_LABEL = "`--label`, in a study file `label:`"
CHOOSE_TARGET = "`--label target:COLUMN`, in a study file `target:`"
CHOOSE_INPUT = "`--text`, in a study file `text:`"
CHOOSE_PROMPT = "`--prompt`, in a study file `prompt:`"
NAME_INPUT = "Name it: `--text COLUMN` with init and tune, `text: COLUMN` under `task:` in a study file."
NAME_ANSWER = (
    "Name it: `--label COLUMN` for classes or `--label target:COLUMN` for texts to write, with init and tune; in a study file "
    "`label: COLUMN` or `target: COLUMN`."
)


def _by_name(names: Sequence[str], usual: Sequence[str]) -> str | None:
    # Reversed, so that of two names that differ in case alone the first one wins.
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def _ends_with_answer(rows: Sequence[Row], name: str, answer: str) -> bool:
    """Whether a column holds question and answer in one, as the `text` of Alpaca's files: the prompt would tell the answer.

    The end decides, since a text that answers a question has the answer somewhere in it.
    """
    some = [row.values for row in rows[:MOST_READ]]
    given = [v for v in some if isinstance(v.get(name), str) and not is_missing(v.get(answer))]
    pairs = [(_without_end_marks(v[name]), as_text(v[answer]).strip()) for v in given]
    # A word of its own: the answer `day` is not told by `Monday`.
    tells = [end for text, end in pairs if end and text.endswith(end) and re.match(r"\W", text[: -len(end)][-1:])]
    # One answer in all rows says nothing; a row may have been cut to some length.
    return len(set(tells)) > 1 and len(tells) >= 0.9 * len(pairs)


_END_MARK = re.compile(r"</?\|?\w+\|?>")


def _without_end_marks(text: str) -> str:
    """A text without the marks of its end (`</s>`, `<|im_end|>`) and the space around them."""
    # From the end: one expression for all of it would try every place of a long run of spaces.
    end = len(text.rstrip())
    while (start := text.rfind("<", 0, end)) >= 0 and _END_MARK.fullmatch(text, start, end):
        end = start
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]


def _few_values(rows: Sequence[Row], name: str) -> bool:
    """Whether a column looks like a label: short values, few of them, each met twice on average."""
    values: list[Any] = [row.values.get(name) for row in rows]
    different: set[str] = set()
    for value, _ in different_values(values):
        if is_no_label(value):
            continue
        if label_problem(value) is not None or callable(value):
            return False
        different.add(folded := fold(value))
        # A class name is a word or a phrase; sentences are longer than 40 characters. Of texts the first one tells it.
        if len(folded) > 40:
            return False
    # Each label on at least two rows on average: a column of names or ids has nearly as many values as rows.
    return 2 <= len(different) <= min(MOST_LABELS, len(values) // 2)
