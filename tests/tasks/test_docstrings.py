"""The demo's text tasks: harvest, splits by module, prompts, no leak into pretraining."""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from dollartune.errors import UserError
from dollartune.tasks import docstrings
from dollartune.tasks.docstrings import (
    LIBRARIES,
    LIMITS,
    TASKS,
    demo_library,
    demo_match,
    demo_summary,
    documented_in,
    harvest,
    library_root,
    signature_of,
    split_of,
    summary_of,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[docstrings.Documented]]:
    """The whole harvest (cached between runs)."""
    return harvest()


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the sum of all values. Ignores NaN.\n\nParameters\n---", "Return the sum of all values."),
        ("Wraps\n  :class:`~torch.Tensor` in a box.", "Wraps Tensor in a box."),
        ("Use [`~pkg.mod.Thing`] to load all the data", "Use pkg.mod.Thing to load all the data"),
        ("Too short.", None),
        (">>> one two three four five", None),
        ("Deprecated since 1.2, use another function.", None),
        ("count (int, optional): how many of them there are", None),
        ("Takes one of the following things:", None),
    ],
)
def test_summary_of(docstring: str, expected: str | None) -> None:
    assert summary_of(docstring) == expected


def test_signature_shows_arguments_without_self_and_annotations() -> None:
    source = "class A:\n  def f(self, x: int, /, y=1, *, z=2): ...\n  def __init__(self, size): ..."
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    assert isinstance(node.body[0], ast.FunctionDef)
    assert signature_of(node.body[0], ("A",)) == "A.f(x, y, z)"
    assert signature_of(node) == "A(size)"


def test_documented_in_skips_private_names_and_broken_source() -> None:
    source = 'def _f():\n  "Does one thing very well."\ndef g(a):\n  "Does another thing very well."\n'
    found = list(documented_in(source, "lib", "lib.mod"))
    assert [(item.signature, item.summary) for item in found] == [("g(a)", "Does another thing very well.")]
    assert list(documented_in("def broken(:", "lib", "lib.mod")) == []


def test_split_depends_on_the_name_alone() -> None:
    """Fixed values: a change of the hash would let pretraining text into the test split of the shipped backbones."""
    assert split_of("torch.nn.functional") == split_of("networkx.algorithms.cycles") == "train"
    assert split_of("numpy.lib._npyio_impl") == "validation"
    shares = Counter(split_of(f"library.module_{index}") for index in range(5000))
    assert shares["train"] / 5000 == pytest.approx(0.70, abs=0.03)
    assert shares["test"] / 5000 == pytest.approx(0.15, abs=0.03)


def test_harvest_splits_by_module_and_repeats_no_summary(rows: dict[str, list[docstrings.Documented]]) -> None:
    everything = [item for items in rows.values() for item in items]
    summaries = [" ".join(item.summary.lower().split()) for item in everything]
    assert len(summaries) == len(set(summaries))
    for split, items in rows.items():
        assert items
        assert all(split_of(item.module) == split for item in items)
        counts = Counter(item.library for item in items)
        assert set(counts) == set(LIBRARIES)
        assert max(counts.values()) <= LIMITS[split]
    assert len(rows["train"]) > 4000
    assert len(rows["test"]) > 800


def test_no_summary_names_a_library(rows: dict[str, list[docstrings.Documented]]) -> None:
    for items in rows.values():
        for item in items:
            assert not any(library in item.summary.lower() for library in LIBRARIES)


def test_harvest_is_the_same_from_sources_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(docstrings, "LIMITS", {"train": 20, "validation": 5, "test": 5})
    first = harvest(["networkx"])
    (path,) = tmp_path.glob("docstrings-*.json")
    assert harvest(["networkx"]) == first
    path.write_text(path.read_text()[:100])  # a cache cut short is thrown away
    assert harvest(["networkx"]) == first
    assert json.loads(path.read_text())["train"][0]["library"] == "networkx"


def test_missing_library_is_named() -> None:
    with pytest.raises(UserError, match="no_such_library"):
        library_root("no_such_library")


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tasks_keep_the_contract(name: str) -> None:
    task = TASKS[name]()
    assert task.name == name
    loaded = task.load()
    assert set(loaded) == {"train", "validation", "test"}
    assert len(loaded["train"]) <= 10_000
    assert max(len(loaded["validation"]), len(loaded["test"])) <= 2500
    for example in loaded["test"][:200]:
        prompt, answer = task.prompt(example), task.answer(example)
        assert prompt == prompt.rstrip()
        assert answer == answer.strip()
        assert answer
        for template in task.extra_templates:
            assert task.prompt(example, template)
    identifiers = [example.id for examples in loaded.values() for example in examples]
    assert len(identifiers) == len(set(identifiers))
    assert task.load()["test"][7] == loaded["test"][7]


def test_prompts_read_naturally() -> None:
    library = demo_library()
    example = library.load()["train"][0]
    assert library.prompt(example) == f"Summary: {example.fields['summary']}\nLibrary:"
    assert library.answer(example) in LIBRARIES
    summary = demo_summary()
    assert summary.prompt(summary.load()["train"][0]).endswith("\nSummary:")


def test_match_is_balanced_and_wrong_summaries_are_wrong(rows: dict[str, list[docstrings.Documented]]) -> None:
    examples = demo_match().load()["test"]
    share = sum(example.label == "yes" for example in examples) / len(examples)
    assert 0.45 < share < 0.55
    for example, item in zip(examples, rows["test"], strict=True):
        assert (example.fields["summary"] == item.summary) == (example.label == "yes")


def test_pretraining_reads_no_validation_or_test_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from pretrain.corpus import Guard, pretraining_modules

    held_out = {item.module for split in ("validation", "test") for item in harvest()[split]}  # type: ignore[index]
    for library in LIBRARIES:
        names = {name for name, _ in pretraining_modules(library)}
        assert names
        assert not names & held_out
    summary = harvest()["test"][0].summary
    assert not Guard().passes(summary + " It also does more.")
    assert Guard().passes("A sentence that stands in no docstring of any library whatever.")
    sys.modules.pop("pretrain.corpus", None)
