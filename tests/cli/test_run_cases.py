"""Study files that went wrong without a word, run from end to end on small models."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dollartune.study.api import open_study
from dollartune.study.results import Results
from dollartune.trials.record import DoneRecord

CASES = Path(__file__).parents[1] / "cases" / "files"
TOOLS = Path(__file__).parents[2] / "tools" / "architectures"
QUICK = {"rows": 9, "free_generation": False, "forgetting": False, "inference_cost": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """name -> folder of a small random model of an architecture, whose tokenizer knows `w0`, `w1`, ..."""
    sys.path.insert(0, str(TOOLS))
    try:
        import make_models

        root = tmp_path_factory.mktemp("models")

        def made(name: str) -> Path:
            if not (root / name).is_dir():
                make_models.make(make_models.RECIPES[name], root / name)
            return root / name

        yield made
    finally:
        sys.path.remove(str(TOOLS))
        sys.modules.pop("make_models", None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """60 rows of 3 to 40 words, below and beyond a window of 8; labels of one word and of three."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(40)]
    made = [
        {"text": " ".join(draw.choices(words, k=draw.randrange(3, 40))), "label": "w50" if n % 2 else "w51 w52 w53"}
        for n in range(60)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(made))
    return path


@pytest.fixture
def run(command: Any, tmp_path: Path) -> Any:
    """Runs a study of one scale and seed: exit code, what was said, its results."""

    def run(backbone: Any, task: dict[str, Any], methods: list[Any], name: str = "s", **more: Any) -> Any:
        training = {"epochs": 1, "batch_size": 8, "max_length": 96}
        study = {
            "name": name, "backbone": backbone, "task": task, "methods": methods, "scales": [30], "seeds": 1,
            "training": training, "evaluation": QUICK, "search": False, "output": str(tmp_path / "studies"), **more,
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        code, out, error = command("run", tmp_path / f"{name}.yaml")
        assert "Traceback" not in out + error
        folder = tmp_path / "studies" / name
        return code, out + error, open_study(folder) if (folder / "trials").is_dir() else None

    return run


def by_method(results: Results) -> dict[str, DoneRecord]:
    return {record.trial.group: record for record in results.done()}


@pytest.mark.parametrize("name", ["mistral_sliding", "llama"])
def test_the_batch_size_of_an_evaluation_moves_no_probability(run: Any, model: Any, rows: Path, name: str) -> None:
    task = {"data": str(rows), "label": "label", "prompt": "w1 {text} w2"}
    scored = []
    for size in (1, 32):
        evaluation = {**QUICK, "batch_size": size}
        methods = ["zero_shot", {"few_shot": {"examples": 2}}, {"lora": {"rank": 2}}]
        code, said, results = run(str(model(name)), task, methods, f"in{size}", evaluation=evaluation)
        assert code == 0, said
        scored.append({group: results.predictions(record.id) for group, record in by_method(results).items()})
    one, many = scored
    assert one.keys() == many.keys() == {"zero_shot", "few_shot", "lora"}
    for group, predictions in one.items():
        for alone, together in zip(predictions, many[group], strict=True):
            assert together["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-3), group


@pytest.mark.parametrize("name", ["pegasus", "m2m_100", "t5"])
def test_an_encoder_decoder_is_tuned_as_one(run: Any, model: Any, rows: Path, name: str) -> None:
    given = [{"text": row["text"], "target": row["label"]} for row in json.loads(rows.read_text())]
    rows.write_text(json.dumps(given))
    task = {"data": str(rows), "text": "text", "target": "target", "max_answer_tokens": 6}
    code, said, results = run(str(model(name)), task, ["zero_shot", {"lora": {"rank": 2}}])
    assert code == 0, said
    assert by_method(results).keys() == {"zero_shot", "lora"}


@pytest.mark.parametrize("name", ["bigbird", "rembert"])
def test_an_encoder_with_a_class_for_language_scores_classes(run: Any, model: Any, rows: Path, name: str) -> None:
    task = {"data": str(rows), "label": "label", "text": "text"}
    code, said, results = run(str(model(name)), task, [{"lora": {"rank": 2}}])
    assert code == 0, said
    assert by_method(results)["lora"].trial.objective == "classification"
    code, said, _ = run({"name": str(model(name)), "objective": "language"}, task, ["zero_shot", "lora"], "text")
    assert code in (1, 2)
    assert "language" in said


def test_stored_decoding_settings_decide_no_score(run: Any, local_backbone: Any, tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn"
    shutil.copytree(local_backbone("llama"), stubborn)
    settings = {"min_length": 200, "no_repeat_ngram_size": 2, "repetition_penalty": 1.8}
    (stubborn / "generation_config.json").write_text(json.dumps(settings))
    task = {"data": str(CASES / "alpaca_gen.json"), "text": "instruction", "target": "output", "max_answer_tokens": 12}
    written = []
    for name, folder in (("plain", local_backbone("llama")), ("stubborn", stubborn)):
        code, said, results = run(str(folder), task, ["zero_shot"], name)
        assert code == 0, said
        written.append([row["predicted"] for row in results.predictions(by_method(results)["zero_shot"].id)])
    assert written[0] == written[1]


def test_columns_that_are_empty_in_some_rows_stop_nothing(run: Any) -> None:
    task = {
        "data": str(CASES / "alpaca_mixed.json"),
        "prompt": "{instruction}\n{input}\nAnswer:",
        "label": "output",
    }
    code, said, results = run("tiny-decoder", task, ["zero_shot"])
    assert code == 0, said
    assert len(by_method(results)) == 1


def test_a_damaged_picture_costs_its_row(run: Any) -> None:
    task = {"data": str(CASES / "images_one_truncated"), "on_bad_row": "skip"}
    code, said, results = run("tiny-vit", task, ["linear_probe"], scales=["all"])
    assert code == 0, said
    assert by_method(results).keys() == {"linear_probe"}
    assert "skipped" in said


def test_a_budget_is_read_in_one_way(run: Any, command: Any, model: Any, rows: Path) -> None:
    task = {"data": str(rows), "label": "label", "text": "text"}
    methods = [{"bitfit": {}}, {"ia3": {}}]
    code, said, results = run(str(model("llama")), task, methods, budget="600 s per study")
    assert code == 0, said
    code, out, error = command("status", results.store.root)
    assert code == 0, error
    code, _, error = command("report", results.store.root)
    assert code == 0, error
    report = (results.store.root / "report" / "report.md").read_text()
    for text in (said, out):
        assert re.search(r"the study: used .* of the 10:00 budget", text)
    assert "10 min 00 s for the whole study" in report
    assert "for each method" not in said + out + report


def test_a_counter_is_never_above_its_total(run: Any, model: Any, rows: Path) -> None:
    task = {"data": str(rows), "label": "label", "text": "text"}
    code, said, _ = run(str(model("llama")), task, ["lora", "bitfit", "zero_shot"], seeds=2)
    assert code == 0, said
    counted = [(int(done), int(total)) for done, total in re.findall(r"\[(\d+)/(\d+)\]", said)]
    assert counted
    assert all(0 < done <= total for done, total in counted)


@pytest.mark.parametrize(
    ("family", "objective", "method", "form"),
    [
        ("t5", "language", {"lora": {"rank": 4, "rank_pattern": {"*.q": 2}, "alpha_pattern": {"*.v": 4.0}}}, "peft"),
        ("albert", "classification", {"prefix": {"tokens": 3}}, "peft"),
        ("llama", "language", "bitfit", "merged"),
        ("llama", "classification", {"prompt": {"tokens": 4}}, "peft"),
    ],
)
def test_an_export_gives_one_answer(
    run: Any, command: Any, local_backbone: Any, tmp_path: Path, family: str, objective: str, method: Any, form: str
) -> None:
    """Written, or refused with the reason; what is refused is not said to be possible in the same breath."""
    backbone = {"name": str(local_backbone(family)), "objective": objective}
    task = {"data": str(CASES / "plain.csv"), "text": "text", "label": "label"}
    code, said, results = run(backbone, task, [method], keep_adapters="all")
    assert code == 0, said
    (record,) = results.done()
    adapter, target = results.store.folder(record.id) / "adapter", tmp_path / "out"
    code, out, error = command("export", adapter, "--format", form, "--out", target)
    text = out + error
    assert "Traceback" not in text
    able = "transformers" if form == "merged" else form
    if code:
        assert code == 2
        assert f"{able}: yes" not in text
        assert not target.exists()
    if family == "t5":
        assert code == 0, text
        assert "vLLM: no, it has no LoRA for encoder-decoders" in text
