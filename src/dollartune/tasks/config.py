"""The `task:` entry of a study file, when it is more than a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dollartune.errors import UserError, nearest, should_be
from dollartune.tasks.labels import label_text


class TaskConfig(BaseModel):
    """A task as a mapping: a preset with changes, data of your own, or a mixture of tasks.

    Exactly one of `preset`, `data` and `mixture` is given.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    preset: str | None = None
    """Start from this preset (`dollartune tasks ls`) and change what is given beside it."""
    data: str | None = None
    """Training data, or all data: a csv, tsv, jsonl, json (also .gz, .bz2, .xz, .zip) or parquet file, a folder with
    train, validation and test files, a folder or zip of images, or a hub id `owner/name`. A column whose values are train,
    validation and test says the split of each row."""
    mixture: list[str] | None = None
    """Train on several tasks at once (instruction tuning); each is evaluated by itself."""

    name: str | None = None
    """Name in reports; by default the preset's or the file's."""
    config: str | None = None
    """Configuration ("subset") of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    validation: str | None = None
    """Validation file; by default cut from the training data, without inputs in common."""
    test: str | None = None
    """Test file; by default cut from the training data, without inputs in common."""

    kind: Literal["classification", "generation"] | None = None
    """Choose a class or write a text; by default `generation` if `target` is given, else guessed from the columns."""
    text: str | list[str] | None = None
    """Column with the input, or several, when no `prompt` says which columns it uses."""
    label: str | None = None
    """Column with the class label (classification)."""
    target: str | None = None
    """Column with the text to write (generation)."""
    conversation: str | None = None
    """Column with a list of turns (`role` and `content`, or `from` and `value`): the assistant's last turn is the text to write,
    its earlier ones are learned too. By default such a column is recognized."""
    references: str | None = None
    """Column with a list of all acceptable texts (generation)."""
    image: str | None = None
    """Column with the file name of a picture."""
    images: str | None = None
    """Folder or zip in which the `image` column's files lie; by default the folder of the data file."""
    group: str | None = None
    """Column whose equal values must stay in one split (a patient, a page) when the data is cut."""

    prompt: str | None = None
    """Prompt with `{column}` places, for example `"Review: {review}\\nSentiment:"`; the answer follows it."""
    extra_prompts: list[str] | None = None
    """Other wordings, for the spread of zero-shot and few-shot scores."""
    label_words: dict[str, str] | None = None
    """Class label -> word that a language model writes for it, in label order; by default the labels themselves."""
    chat: Literal["auto", "always", "never"] | None = None
    """Ask language models by their chat template, the prompt as the user's turn: `auto` (where the tokenizer has one), `always`
    or `never`."""
    system: str | None = None
    """Text of the system turn before the prompt, where a chat template is used; by default the template's own."""
    max_answer_tokens: int | None = Field(default=None, ge=1)
    """Longest text to generate, in tokens."""
    metric: str | None = None
    """Primary measure; by default accuracy, or rougeL for texts."""
    metrics: list[str] | None = None
    """Further measures to record."""

    on_bad_row: Literal["stop", "skip"] = "stop"
    """What a malformed row does: stop with its line number, or be left out and counted."""

    weights: Literal["equal", "proportional"] | dict[str, float] = "equal"
    """How often each task of a mixture comes up: equally, by its number of rows, or by these numbers."""
    held_out: list[str] = Field(default_factory=list)
    """Tasks that a mixture is tested on and never trained on."""

    @field_validator("label_words", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """Writes keys and words as text: YAML reads `yes: no` as true: false and `1:` as a number."""
        if not isinstance(value, Mapping):
            return value
        # Anything else is left for pydantic to refuse by name.
        plain = (str, int, float, bool)
        return {
            label_text(label) if isinstance(label, plain) else label: (
                word if isinstance(word, str) else label_text(word)
            )
            if isinstance(word, plain)
            else word
            for label, word in value.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # First, because what else may stand in the mapping depends on it.
        given = [name for name in ("preset", "data", "mixture") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of them"
            raise ValueError(f"give exactly one of preset, data and mixture; given: {what}")
        # Refused rather than ignored: a key without effect is a mistake that nobody would notice.
        useless = sorted(self.model_fields_set - _APPLIES[given[0]])
        if useless:
            raise ValueError(f"{given[0]!r} cannot be combined with {', '.join(map(repr, useless))}")
        if self.kind == "classification" and (self.target is not None or self.references is not None):
            raise ValueError("a classification task has a label column, and no target or references")
        columns = ("text", "label", "target", "references", "image", "prompt", "extra_prompts", "label_words")
        if self.conversation is not None and (others := [key for key in columns if getattr(self, key) is not None]):
            raise ValueError(f"a conversation holds question and answer; take out {', '.join(others)}")
        if self.label is not None and self.target is not None:
            raise ValueError("give a label column (classification) or a target column (generation), not both")
        if self.mixture is not None and (not self.mixture or len(set(self.mixture)) < len(self.mixture)):
            raise ValueError("a mixture lists at least one task, and each once")
        return self

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> TaskConfig:
        """Checks a mapping from a study file.

        Raises:
            UserError: unknown key, wrong type or contradicting keys, with the nearest valid key.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError("\n".join(_explained(error.errors()))) from error


_SHARED = {
    *{"name", "prompt", "extra_prompts", "label_words", "chat", "system", "max_answer_tokens", "metric", "metrics"},
}
_APPLIES: dict[str, set[str]] = {
    "preset": {"preset", *_SHARED},
    "mixture": {"mixture", "name", "weights", "held_out"},
    "data": {
        *{
            "data",
            "config",
            "revision",
            "validation",
            "test",
            "kind",
            "text",
            "label",
            "target",
            "references",
            "conversation",
        },
        *{"image", "images", "group", "on_bad_row", *_SHARED},
    },
}


def _explained(problems: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each key of which something is wrong."""
    lines: list[str] = []
    # by key: one that may be a text or a list of texts has a problem for each of the two
    kinds: dict[str, tuple[list[str], Any]] = {}
    for problem in problems:
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = sorted(TaskConfig.model_fields)
            lines.append(f"unknown key {key!r} in task.{nearest(key, known)} Known: {', '.join(known)}.")
        elif problem["type"] == "value_error":
            lines.append(f"task: {problem['ctx']['error']}.")
        else:
            # of an entry of a list or a mapping, `[1]` or `.no`, which says more than the whole of it
            inside = "".join(f".{part}" for part in problem["loc"][1:] if part not in ("str", "list[str]"))
            kinds.setdefault(f"task.{key}{inside}", ([], problem["input"]))[0].append(problem["msg"])
    return lines + [
        should_be(name, messages, given)
        for name, (messages, given) in kinds.items()
        if not any(other.startswith(f"{name}.") for other in kinds)
    ]
