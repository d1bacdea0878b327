"""Which class label a value of the data means: one rule makes the classes, matches rows to them, and says what is none."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dollartune.tasks.values import as_text, is_missing

TRUE, FALSE = ("yes", "true"), ("no", "false")
_TRUTH = {**dict.fromkeys((*TRUE, "1"), True), **dict.fromkeys((*FALSE, "0"), False)}

NO_LABEL_WORDS = frozenset({"nan", "<na>", "#n/a", "nat", "null"})
"""What tables write where there is no value; no language has such a class. `None` and `N/A` may be classes: see DOUBTFUL."""
DOUBTFUL = frozenset({"-1", "none", "na", "n/a", "?", "-", "unknown", "unlabeled", "unlabelled"})
"""Published sets mark withheld labels by these, and others mean a class by them: they stay, with a note."""

_WHOLE = re.compile(r"([+-]?)0*(\d+)(?:\.0*)?")
# Joiners, soft hyphens, direction and variation marks: nobody sees them, and copying from web pages brings them along.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")


def is_no_label(value: Any) -> bool:
    """Whether a value of a label column means that the row has no label."""
    value = _single(value)
    return is_missing(value) or (isinstance(value, str) and value.strip().casefold() in NO_LABEL_WORDS)


def label_problem(value: Any) -> str | None:
    """Why a value cannot be a label, in words that follow "the label"; None if it can."""
    value = _single(value)
    if isinstance(value, list | tuple | set):
        return f"is a list of {len(value)} values ({as_text(value)[:60]}); one class for each row is needed"
    if isinstance(value, dict):
        return f"is an object ({as_text(value)[:60]}); a text, a number or a truth value is needed"
    if isinstance(value, bytes):
        return "is bytes; a text, a number or a truth value is needed"
    return None


def label_text(value: Any) -> str:
    """How a value is written as a label: truth values as yes and no, whole numbers without `.0`, a list of one as its one."""
    value = _single(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return as_text(value).strip()


def fold(value: Any) -> str:
    """The key under which spellings of one label are equal: case, white space, invisible marks, composed letters, and
    whole numbers by value (`1`, `1.0`, `+1`)."""
    # casefold, not lower: ß and ss are one spelling. NFC: an é of one character or of two.
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", label_text(value)).casefold())
    text = " ".join(text.split())
    # 01 stays apart from 1: codes have leading zeros that mean something.
    number = _WHOLE.fullmatch(text)
    if number and not re.match(r"[+-]?0\d", text):
        return number[2] if number[1] != "-" or number[2] == "0" else f"-{number[2]}"
    return text


def match_label(value: Any, labels: Iterable[str]) -> str | None:
    """The label that a value stands for: exactly, else by `fold`, else by truth value.

    The last step is there because YAML reads a bare `yes` or `no` as true or false, csv files write `True` where
    JSON has true, and a data set's booleans are labels called yes and no, or 1 and 0.

    Args:
        value: what the data holds: a text, a number or a truth value.
        labels: the known labels.

    Returns:
        One of `labels`, or None.
    """
    # Three steps, the surest first: an exact label must never be taken for another by a rule.
    known = list(labels)
    text = label_text(value)
    if text in known:
        return text
    # Reversed, so that of two labels that fold alike the first one is meant.
    folded = {fold(label): label for label in reversed(known)}
    plain = fold(value)
    if plain in folded:
        return folded[plain]
    for words in (TRUE, FALSE):
        if plain in words and (named := [folded[word] for word in words if word in folded]):
            return named[0]
    # Only where every label is a truth value: a `1` among five stars is a number.
    if plain in _TRUTH and all(key in _TRUTH for key in folded):
        return next((label for key, label in folded.items() if _TRUTH[key] == _TRUTH[plain]), None)
    return None


def different_values(values: Iterable[Any]) -> list[tuple[Any, int]]:
    """Values and how often each comes, in the order of their first row: what is asked of a label is asked once, as a hundred
    thousand rows have few different ones."""
    counted: dict[Any, tuple[Any, int]] = {}
    for number, value in enumerate(values):
        key = _key(value) or (None, number)
        first, count = counted.get(key, (value, 0))
        counted[key] = first, count + 1
    return list(counted.values())


def _key(value: Any) -> tuple[type, Any] | None:
    """By which two values are the same in all ways; None where nothing says it (lists, arrays)."""
    # With the type: for Python True, 1 and 1.0 are one key, and as labels they are two.
    return (type(value), value) if isinstance(value, str | int | float) else None


class LabelReader:
    """The labels that values of a column mean, each different one looked at once.

    Args:
        labels: the known ones.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(labels)
        self._read: dict[Any, tuple[str | None, str | None]] = {}

    def __call__(self, value: Any) -> tuple[str | None, str | None]:
        """(label, None), or (None, why the value can be no label); (None, None) where it is a label that is not known."""
        key = _key(value)
        if key is not None and key in self._read:
            return self._read[key]
        problem = label_problem(value)
        read = (None, problem) if problem is not None else (match_label(value, self.labels), None)
        if key is not None:
            self._read[key] = read
        return read


@dataclass(frozen=True)
class Classes:
    """The classes of a label column."""

    labels: tuple[str, ...]
    """In a fixed order: numbers by value, words by alphabet."""
    notes: tuple[str, ...]
    """Spellings that were taken as one, values that may mean "no label", and such as join several labels."""


def classes_of(values: Sequence[Any]) -> Classes:
    """The classes that the labels of the training rows make; spellings of one label are one class.

    Args:
        values: what the label column holds; values that are no label are left out.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for value, count in different_values(values):
        if not is_no_label(value) and label_problem(value) is None:
            # The text as it stands, outer space included: a note quotes what the file has.
            shown = value if isinstance(value, str) and _single(value) == value else label_text(value)
            spellings[fold(value)][shown] += count
    # yes, True and 1 in one column are two classes written in several ways; two spellings alone stay as they are
    # written.
    if len(spellings) > 2 and all(key in _TRUTH for key in spellings):
        merged: dict[str, Counter[str]] = {}
        for key, counts in spellings.items():
            merged.setdefault("1" if _TRUTH[key] else "0", Counter()).update(counts)
        spellings = defaultdict(Counter, merged)
    names, notes = [], []
    for counts in spellings.values():
        stripped: Counter[str] = Counter()
        for spelling, count in counts.items():
            stripped[spelling.strip()] += count
        # The spelling of most rows names the class; of equally many, the first in the alphabet, whatever the file's order.
        name = min(stripped, key=lambda text: (-stripped[text], text))
        names.append(name)
        if len(counts) > 1:
            listed = ", ".join(f"{text!r} {count}" for text, count in counts.most_common(6))
            notes.append(
                f"one label in {len(counts)} spellings is taken as {name!r} (rows: {listed}); "
                "to keep them apart, list them in `label_words`"
            )
        if name.casefold() in DOUBTFUL and len(spellings) > 2:
            notes.append(
                f"the label {name!r} stands on {sum(counts.values())} rows and is taken as a class; where it means that a row "
                "has no label, take it out of `label_words` and set `on_bad_row: skip`"
            )
    notes += _joined(names)
    # By value, or class 10 would stand between 1 and 2.
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return Classes(tuple(sorted(names, key=int) if numbers else sorted(names)), tuple(notes))


def _joined(names: Sequence[str]) -> list[str]:
    """A note on labels that are other labels joined by a mark: several classes of one row."""
    folded = {fold(name) for name in names}
    for mark in ",;|/+&":
        joined = [name for name in names if mark in name and {fold(part) for part in name.split(mark)} <= folded]
        if joined:
            more = f" and {len(joined) - 3} more" if len(joined) > 3 else ""
            return [
                f"labels that join others by {mark!r} are taken as classes of their own: {', '.join(map(repr, joined[:3]))}{more}"
            ]
    return []


_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_AMOUNT = re.compile(r"[$€£¥]?\s*([+-]?)(\d{1,3}(?:[.,]\d{3})+|\d+)(?:[.,](\d+))?\s*[$€£¥%]?")
"""A number as people write amounts: with a currency or a percent sign, `1,5` and `1.234,50`."""

MOST_STEPS = 12
"""Different numbers with a fraction that may still be classes: half stars from 0 to 5 are eleven."""


def number_to_predict(labels: Sequence[str], rows: int) -> str | None:
    """Says that the labels look like a number to predict, or returns None.

    Fractions in more than `MOST_STEPS` values, or whole numbers that hardly two rows share: ratings and class numbers
    repeat, measurements do not.
    """
    read = [_number(label) for label in labels]
    numbers = [number for number in read if number is not None]
    if not labels or len(numbers) < len(labels):
        return None
    fractions = any(not number.is_integer() for number in numbers)
    # More than 20: a file of ten rows may well have ten classes.
    few_share = len(labels) > 20 and 2 * len(labels) > rows
    if not (fractions and len(labels) > MOST_STEPS) and not few_share:
        return None
    low, high = labels[numbers.index(min(numbers))], labels[numbers.index(max(numbers))]
    return f"looks like a number to predict ({low} to {high}, {len(labels)} different values on {rows} rows)"


def _number(label: str) -> float | None:
    """The number that a label writes; None where it is none."""
    if _DECIMAL.fullmatch(label):
        return float(label)
    amount = _AMOUNT.fullmatch(label)
    if amount is None:
        return None
    return float(f"{amount[1]}{re.sub(r'[.,]', '', amount[2])}.{amount[3] or 0}")


def _single(value: Any) -> Any:
    """A list of one element as that element: exporters of several labels write them so, into csv files as text."""
    for name in ("tolist", "as_py"):
        if hasattr(value, name):
            value = getattr(value, name)()
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        value = _listed(value)
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _listed(text: str) -> Any:
    """The list that a text spells as JSON or Python do; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        # MemoryError and RecursionError: thousands of brackets.
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, list) else text
    return text
