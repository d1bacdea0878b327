"""Free text read as a label, the breakdown of predictions, loss and the registry."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.metrics import bits_per_byte, breakdown, get, label_from_text, mean_loss, names, perplexity

YES_NO = {"no": "No", "yes": "Yes"}


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("Yes", "yes"),
        (" yes.", "yes"),
        ("YES, because the passage says so", "yes"),
        ("\n\nno\n", "no"),
        ("**No**", "no"),
        ("yesterday", None),
        ("nothing", None),
        ("I think yes", None),
        ("", None),
        ("...", None),
    ],
)
def test_label_word_at_the_start(said: str, label: str | None) -> None:
    assert label_from_text(said, YES_NO) == label


def test_the_longer_word_wins_and_signs_are_words_too() -> None:
    words = {"entails": "true", "unknown": "true or false", "plus": "+", "minus": "-"}
    assert label_from_text("True or false, who knows", words) == "unknown"
    assert label_from_text("true", words) == "entails"
    assert label_from_text(" + ", words) == "plus"
    assert label_from_text("-", words) == "minus"
    assert label_from_text("Sci/Tech news", {"sci/tech": "sci/tech"}) == "sci/tech"


@settings(deadline=None)
@given(st.sampled_from(["world", "sports", "sci/tech"]), st.sampled_from(["", ".", "\n", " it is", "!? "]))
def test_every_label_word_reads_back(word: str, tail: str) -> None:
    assert (
        label_from_text(f" {word.upper()}{tail}", {"world": "world", "sports": "sports", "sci/tech": "sci/tech"})
        == word
    )


def test_breakdown_counts_every_prediction_once() -> None:
    assert breakdown(["yes", None, "yes", "maybe"], ["no", "yes"]) == {"no": 0, "yes": 2, "other": 2}
    assert breakdown(["other", None], ["other", "yes"]) == {"other": 1, "yes": 0, "(no label)": 1}


def test_loss_is_weighted_by_tokens() -> None:
    loss = mean_loss([2.0, 6.0], [1, 3])
    assert loss == 2.0
    assert perplexity(loss) == pytest.approx(math.exp(2))
    assert perplexity(1e6) == math.inf
    assert bits_per_byte(math.log(2), tokens=10, text_bytes=40) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="at least one token"):
        mean_loss([], [])
    with pytest.raises(ValueError, match="2 losses, but 1"):
        mean_loss([1.0, 2.0], [1])


def test_unknown_measure_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        get("acuracy")
    with pytest.raises(UserError, match="unknown measure"):
        get("f1:")


def test_every_measure_says_what_it_is() -> None:
    wanted = {"accuracy", "balanced_accuracy", "f1", "matthews", "auc", "rouge1", "rouge2", "rougeL", "bleu", "chrf"}
    assert wanted | {"exact_match", "rouge1_precision", "rougeL_recall"} <= set(names())
    for name in names():
        metric = get(name)
        assert metric.name == name
        assert metric.kind in ("classification", "generation")
        assert metric.lowest in (0.0, -1.0)
    assert get("mcc") is get("matthews")


def test_importing_the_measures_loads_no_heavy_library() -> None:
    heavy = ("torch", "numpy", "sklearn", "sacrebleu", "datasets", "pandas", "pyarrow", "PIL")
    code = f"import sys, dollartune.metrics, dollartune.tasks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
