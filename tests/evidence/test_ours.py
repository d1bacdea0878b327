"""Studies as evidence: a finished study becomes a file, and the file says the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dollartune.errors import UserError
from dollartune.evidence import from_study, studies
from dollartune.study.compare import standings
from dollartune.study.results import Results
from dollartune.trials.store import Store

ROOT = Path(__file__).parents[2]


def _loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Results:
    fabricate = _loaded(ROOT / "tests" / "report" / "fabricate.py")
    methods = (
        *fabricate.METHODS,
        fabricate.Made(
            "lora(rank=8): drop q", 0.5, 4_480, group="lora", ablation={"of": "lora(rank=8)", "name": "drop q"}
        ),
    )
    found: Results = fabricate.make_study(
        tmp_path_factory.mktemp("study"), fabricate.MadeStudy(methods=methods, scales=(100, 1000), rows=60)
    )
    return found


def test_a_study_becomes_a_file_that_says_the_same(
    made: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _loaded(ROOT / "bench" / "evidence_from_study.py")
    monkeypatch.setattr(sys, "argv", ["evidence", str(made.store.root), "made up for a test", "dollartune run x.yaml"])
    script.main()
    text = capsys.readouterr().out
    assert str(made.store.root) not in text
    (tmp_path / "made_up.yaml").write_text(text)
    (study,) = studies(tmp_path).values()
    assert (study.key, study.title, study.backbone, study.parameters) == (
        "made_up", "made up for a test", "tiny-decoder", 1_200_000,
    )  # fmt: skip
    assert "made up for a test" in study.citation
    whole = [row for row in standings(made) if ":" not in row["label"]]
    assert len(study.rows) == len(whole) == 12  # six methods, two scales; the ablation is left out
    for row, told in zip(study.rows, whole, strict=True):
        assert (row.task, row.scale, row.label, row.may_be_best) == (
            told["task"], told["scale"], told["label"], told["may_be_best"],
        )  # fmt: skip
        assert row.score == pytest.approx(told["score"], rel=1e-3)
        assert row.task_kind == "classification"
    tuned = next(row for row in study.rows if row.method == "full")
    assert tuned.forgetting == pytest.approx(0.82, abs=0.2)
    assert tuned.request_seconds
    assert tuned.adapter_bytes == 4 * 260_000 + 1000


def test_a_study_without_results_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished trial"):
        from_study(Results(Store(tmp_path)), "nothing", "none")


def test_the_files_that_ship() -> None:
    for study in studies().values():
        assert study.rows
        assert study.parameters > 0
        assert "/" not in study.backbone or not study.backbone.startswith("/")
        boards: dict[tuple[str, int | None], list[bool | None]] = {}
        for row in study.rows:
            assert row.task_kind in ("classification", "generation", "image_classification")
            boards.setdefault((row.task, row.scale), []).append(row.may_be_best)
        for told in boards.values():
            assert any(told) or set(told) == {None}
    assert all(
        yaml.safe_load(path.read_text())["command"]
        for path in (ROOT / "src/dollartune/evidence/studies").glob("*.yaml")
    )
