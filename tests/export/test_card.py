"""Cards that a stranger can use: the example of each format asks as the adapter was tuned; push looks at the card first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dollartune.attachment import Adapter
from dollartune.backbones.embedded import embedded_names
from dollartune.backbones.loading import load_backbone
from dollartune.errors import UserError
from dollartune.evaluate.predict import predict_rows
from dollartune.evaluate.row_outcomes import OUTCOMES, packed, row_outcomes
from dollartune.export.card import hub_id, write_card
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.handover import export_adapter
from dollartune.export.hub import push
from dollartune.export.opening import open_adapter
from dollartune.export.provenance import study_facts
from dollartune.methods.base import Method
from dollartune.methods.head import Head
from dollartune.methods.lora import LoRA
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb

LABELS = {"a": "w7", "b": "w9", "c": "w3 w11"}


def adapter(
    root: Path, family: str, objective: Any, cost: dict[str, float] | None = None, words: dict[str, str] = LABELS,
    offsets: list[float] | None = None, **more: Any,
) -> Path:  # fmt: skip
    """An adapter where a study leaves it, with its record and that of a baseline."""
    model = family if family in embedded_names() else write_tiny(root / "model", family)
    labels = tuple(words) if objective == "classification" else ()
    backbone = load_backbone(str(model), objective, labels)
    own: list[Method[Any]] = [LoRA(rank=2), *([Head()] if labels else [])]
    made = Adapter(own, backbone.anatomy, backbone.model, 0)
    perturb(made, 0.3, 0)
    if offsets is not None:
        made.shift_labels(offsets)
    task = {
        "name": "colours", "kind": "classification", "prompt": "w1 {text} Answer :", "label_words": words,
        "metric": "accuracy", "max_answer_tokens": 4,
    }  # fmt: skip
    info = {
        "backbone": str(model), "objective": objective, "tokenizer": tokenizer_hash(backbone.processor), "task": task,
        "trial": {"label": "lora", "conditions": {"task": {"data": str(root / "private" / "patients.csv")}}},
        "scores": {"accuracy": 0.8}, "cost": cost or {"seconds": 12.0, "dollars": 0.00004, "price_per_hour": 0.012},
        **more,
    }  # fmt: skip
    trial = root / "study" / "trials" / "one"
    save_adapter(trial / "adapter", made, info)
    for name, method, score, scale, asked in (
        ("one", "lora", 0.8, 50, "tiny"),
        ("two", "majority", 0.55, 50, "other"),
        ("three", "tfidf", 0.6, 50, "other"),
        ("four", "tfidf", 0.9, 1000, "other"),
        ("five", "zero_shot", 0.5, 50, "tiny"),
        ("six", "zero_shot", 0.7, 50, "other"),
    ):
        record = {
            "status": "done", "metric": "accuracy",
            "trial": {"methods": [{"method": method}], "task": "colours", "seed": 3, "scale": scale, "backbone": asked},
            "test": {"score": score, "examples": 200}, "data": {"train": 50, "test": 200},
            "cost": {"seconds": 1.0, "dollars": 0.0, "price_per_hour": 0.0},
        }  # fmt: skip
        (trial.parent / name).mkdir(exist_ok=True)
        (trial.parent / name / "record.json").write_text(json.dumps(record))
    return trial / "adapter"


CASES = [
    ("llama", "language", ("dollartune", "peft", "lora", "merged")),
    ("t5", "language", ("peft", "merged")),
    ("bert/classification", "classification", ("dollartune", "peft", "lora", "merged")),
]


@pytest.mark.parametrize(("family", "objective", "formats"), CASES)
def test_the_example_of_each_format_answers_as_the_adapter_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str, objective: Any,
    formats: tuple[str, ...],
) -> None:  # fmt: skip
    folder = adapter(tmp_path, family, objective)
    expected = answers_alike(tmp_path, folder, formats, monkeypatch, capsys)
    assert len(set(expected)) > 1, "several labels are among the answers, or equal answers would say little"


def answers_alike(
    tmp_path: Path, folder: Path, formats: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:  # fmt: skip
    """The adapter's answers, after the card of each format gave the same."""
    texts = [f"w{5 * i} w{3 * i + 2}" * (1 + i % 3) for i in range(12)]
    expected = [str(one.predicted) for one in predict_rows(open_adapter(folder), [{"text": text} for text in texts])]
    for form in formats:
        out = tmp_path / form
        export_adapter(folder, out, form)
        code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
        assert '"..."' in code
        monkeypatch.chdir(out)
        found = []
        capsys.readouterr()
        for text in texts:
            exec(code.replace('"..."', json.dumps(text)), {})
            found.append(capsys.readouterr().out.split()[0])
        assert found == expected, form
    return expected


@pytest.mark.parametrize(
    ("family", "formats", "added"), [("llama", ("peft", "lora", "merged"), 4.7), ("t5", ("merged",), 4.2)]
)
def test_the_example_scores_label_words_as_the_adapter_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str,
    formats: tuple[str, ...], added: float,
) -> None:  # fmt: skip
    """One word begins the other, so that both are scored with an end mark; without it some of these answers are others. Without
    what is added to the longer one, all of them are the shorter one."""
    folder = adapter(tmp_path, family, "language", words={"short": "w3", "long": "w3 w11"}, offsets=[0.0, added])
    assert set(answers_alike(tmp_path, folder, formats, monkeypatch, capsys)) == {"short", "long"}
    for form in formats:
        text = (tmp_path / form / "README.md").read_text()
        assert "No part of the weights" in text
        assert f"(short +0.00, long +{added:.2f})" in text


@pytest.mark.parametrize("form", ["dollartune", "peft", "lora"])
def test_a_backbone_with_a_name_of_ours_is_found_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    folder = adapter(tmp_path, "tiny-decoder", "language")
    text = "what a day it was"
    expected = str(predict_rows(open_adapter(folder), [{"text": text}])[0].predicted)
    export_adapter(folder, tmp_path / form, form)
    card = (tmp_path / form / "README.md").read_text()
    assert "dollartune" in next(line for line in card.splitlines() if line.startswith("pip install"))
    monkeypatch.chdir(tmp_path / form)
    exec(card.split("```python\n")[1].split("```")[0].replace('"..."', json.dumps(text)), {})
    assert capsys.readouterr().out.split()[-1] == expected


def test_a_short_name_is_the_hubs_model_and_an_embedded_one_is_nowhere_else() -> None:
    assert hub_id({"backbone": "smollm2-135m"}) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id({"backbone": "tiny-decoder"}) is None


@pytest.mark.parametrize("form", ["dollartune", "peft", "lora"])
def test_what_is_handed_over_names_no_data_of_this_machine(tmp_path: Path, form: str) -> None:
    export_adapter(adapter(tmp_path, "llama", "language"), tmp_path / form, form)
    files = [path for path in (tmp_path / form).rglob("*") if path.is_file()]
    assert len(files) > 1
    assert not [path.name for path in files if b"patients" in path.read_bytes()]


def test_the_card_says_rows_seeds_interval_and_baselines(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "llama", "language")
    export_adapter(folder, tmp_path / "out", "peft", base_model="owner/model", license="apache-2.0")
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["license"], data["base_model"], data["pipeline_tag"]) == (
        "apache-2.0",
        "owner/model",
        "text-generation",
    )
    assert "Tuned on 50 rows with seed 3, scored on 200 test rows, 95 % interval 0.7" in text
    # Of this scale alone, and of this backbone where it matters.
    for line in ("| majority | 0.5500 |", "| tfidf | 0.6000 |", "| zero_shot | 0.5000 |"):
        assert line in text
    assert "< $0.0001 at $0.012 per hour" in text
    assert "$0.0000 " not in text
    assert str(tmp_path) not in "".join(
        p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix in (".json", ".md")
    )
    free = adapter(tmp_path / "free", "llama", "language", {"seconds": 12.0, "dollars": 0.0, "price_per_hour": 0.0})
    assert "no price given" in (free / "README.md").read_text()


def test_the_interval_of_a_card_is_that_of_its_rows(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "llama", "language")
    stored = folder.parent / OUTCOMES

    def interval(groups: int) -> list[float]:
        rows = [
            {
                "predicted": "a" if n % 5 else "b",
                "expected": "a",
                "correct": n % 5 > 0,
                "group": f"patient {n % groups}" if groups else None,
            }
            for n in range(200)
        ]
        stored.write_bytes(packed(row_outcomes(rows, "accuracy")))
        found: list[float] = study_facts(folder).get("interval", [])
        return found

    alone, by_patient = interval(0), interval(5)  # the rows of one patient in five are wrong
    assert alone[0] < 0.8 < alone[1]
    assert by_patient[1] - by_patient[0] > 2 * (alone[1] - alone[0])
    assert interval(1) == []  # all of one patient
    stored.write_bytes(stored.read_bytes()[:50])
    assert study_facts(folder)["interval"][0] > 0.7  # cut short: that of a share of so many rows


def test_baselines_that_were_scored_on_other_rows_are_not_said_to_be_on_the_same(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "llama", "language")
    text = write_card({"study": study_facts(folder)}, "one")
    assert "| baseline on the same test rows | accuracy | dollars |\n|---|---|---|\n" in text
    record = folder.parent / "record.json"
    mine = json.loads(record.read_text())
    mine["test"]["examples"] = 80  # what the money paid for
    record.write_text(json.dumps(mine))
    text = write_card({"study": study_facts(folder)}, "one")
    assert "scored on 80 test rows" in text
    assert "| baseline | accuracy | test rows | dollars |\n|---|---|---|---|\n" in text
    assert "| majority | 0.5500 | 200 |" in text


def test_a_card_says_on_how_many_rows_something_was_solved(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "llama", "language")
    record = folder.parent / "record.json"
    mine = json.loads(record.read_text())
    record.write_text(json.dumps({**mine, "training": {"rows_share": 0.43}}))
    assert "Tuned on 21 rows with seed 3" in write_card({"study": study_facts(folder)}, "one")


class Hub:
    """What of the hub's client a push uses."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def create_repo(self, repository: str, **settings: Any) -> None:
        self.made.append(repository)

    def upload_folder(self, **settings: Any) -> str:
        return "https://hub/" + str(settings["repo_id"])


def test_push_looks_at_the_card_before_it_makes_a_repository(tmp_path: Path) -> None:
    folder, hub = adapter(tmp_path, "llama", "language"), Hub()
    export_adapter(folder, tmp_path / "local", "peft")
    export_adapter(folder, tmp_path / "unlicensed", "peft", base_model="owner/model")
    export_adapter(folder, tmp_path / "good", "peft", base_model="owner/model", license="MIT")
    export_adapter(folder, tmp_path / "spaced", "peft", base_model="owner/model", license="Apache 2.0")
    refused = (
        ("local", "names no base model"),
        ("unlicensed", "no licence"),
        ("spaced", "licence 'apache 2.0' is no name"),
    )
    for name, why in refused:
        with pytest.raises(UserError, match=why):
            push(tmp_path / name, "me/tuned", client=hub)
    card = tmp_path / "unlicensed" / "README.md"
    for text, why in (("# no metadata", "has no metadata"), ("---\na: [\n---\n", "is no YAML")):
        card.write_text(text)
        with pytest.raises(UserError, match=why):
            push(card.parent, "me/tuned", client=hub)
    assert not hub.made
    assert push(tmp_path / "good", "me/tuned", client=hub) == "https://hub/me/tuned"
    assert hub.made == ["me/tuned"]


@pytest.mark.parametrize(
    ("name", "written"),
    [("my reviews: ü?", "my-reviews"), ("glue/sst2", "glue/sst2"), ("moods_2.csv", "moods_2.csv"), ("é", "task")],
)
def test_the_card_names_data_as_the_hub_takes_it(name: str, written: str) -> None:
    info = {"backbone": "owner/model", "methods": [], "task": {"name": name, "prompt": "{text}"}, "scores": {"f1": 0.5}}
    data = yaml.safe_load(write_card(info, "title").split("---\n")[1])
    assert data["model-index"][0]["results"][0]["dataset"] == {"name": name, "type": written}


@pytest.mark.parametrize("form", ["dollartune", "peft"])
def test_what_is_published_has_no_hashes_of_rows(tmp_path: Path, form: str) -> None:
    folder = adapter(tmp_path, "llama", "language", rows_seen={"trained": "AAAAAAAA", "chosen_by": ""})
    kept = export_adapter(folder, tmp_path / "kept", form).lines
    lines = export_adapter(folder, tmp_path / "public", form, published=True).lines
    assert next(line for line in lines if line not in kept).startswith("not in it: hashes of the rows")
    for name, there in (("kept", True), ("public", False)):
        assert any("rows_seen" in path.read_text() for path in (tmp_path / name).glob("*.json")) == there


def test_one_wrong_row_in_thousands_is_no_perfect_score_on_a_card() -> None:
    facts = {
        "rows": {"train": 50, "test": 50_000}, "seed": 0, "metric": "accuracy", "interval": [0.99991, 0.99997],
        "baselines": [{"name": "majority", "score": 0.00002, "rows": 50_000, "dollars": None}],
    }  # fmt: skip
    text = write_card({"scores": {"accuracy": 0.99998}, "study": facts}, "one")
    for shown in ("| accuracy | 0.99998 |", "interval 0.9999 to 0.99997", "| majority | 0.00002 |"):
        assert shown in text


def test_facts_of_a_card_are_not_rounded_before_they_are_written(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "llama", "language")
    other = folder.parent.parent / "two" / "record.json"
    record = json.loads(other.read_text())
    record["test"]["score"] = 0.99998
    other.write_text(json.dumps(record))
    assert "| majority | 0.99998 |" in write_card({"study": study_facts(folder)}, "one")


def test_dollars_of_a_baseline_are_those_of_one_trial(tmp_path: Path) -> None:
    """A mean over its seeds, as its score is and as leaderboards have it; unknown where one of them had no price."""
    folder = adapter(tmp_path, "llama", "language")
    trials = folder.parent.parent

    def written(name: str, seed: int, dollars: float, price: float) -> None:
        record = json.loads((trials / "five" / "record.json").read_text())
        record["trial"]["seed"] = seed
        record["test"]["score"] = 0.5 + seed / 10
        record["cost"] = {"seconds": 36.0, "dollars": dollars, "price_per_hour": price}
        (trials / name).mkdir(exist_ok=True)
        (trials / name / "record.json").write_text(json.dumps(record))

    written("five", 0, 0.04, 4.0)
    written("seven", 1, 0.02, 2.0)
    assert "| zero_shot | 0.5500 | $0.030 |" in write_card({"study": study_facts(folder)}, "one")
    written("eight", 2, 0.0, 0.0)
    text = write_card({"study": study_facts(folder)}, "one")
    assert "| zero_shot | 0.6000 | no price given |" in text
    assert "those of one trial" in text


def test_each_setting_of_a_baseline_has_a_line_and_what_an_earlier_study_file_asked_has_none(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "llama", "language")
    trials = folder.parent.parent

    def written(name: str, label: str, score: float, rows: int) -> None:
        record = json.loads((trials / "five" / "record.json").read_text())
        record["trial"] |= {"label": label, "conditions": {"evaluation": {"rows": rows}}}
        record["test"]["score"] = score
        (trials / name).mkdir(exist_ok=True)
        (trials / name / "record.json").write_text(json.dumps(record))

    mine = json.loads((trials / "one" / "record.json").read_text())
    mine["trial"]["conditions"] = {"evaluation": {"rows": 200}, "backbone": {"quantize": "nf4"}}
    (trials / "one" / "record.json").write_text(json.dumps(mine))
    written("five", "zero_shot", 0.3, 200)
    written("seven", "zero_shot(calibrate=True)", 0.7, 200)
    written("eight", "zero_shot", 0.9, 100)
    text = write_card({"study": study_facts(folder)}, "one")
    assert "| zero_shot | 0.3000 |" in text
    assert "| zero_shot(calibrate=True) | 0.7000 |" in text
    assert "0.9000" not in text
