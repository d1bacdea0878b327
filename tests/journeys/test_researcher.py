"""A researcher with a table to publish: two ranks of one method, seeds, one more method later, LaTeX and figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from walk import Walker

pytestmark = pytest.mark.slow

STUDY = """
backbone: tiny-encoder
task: {data: reviews.csv, label: mood, text: text}
methods: [{lora: {rank: [2, 8]}}, bitfit]
scales: [40]
seeds: 2
training: {epochs: 1}
evaluation: {rows: 16, forgetting: false, inference_cost: false}
baselines: true
"""


def test_from_a_study_file_to_a_paper(reviews: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    walker = Walker(tmp_path)
    (tmp_path / "reviews.csv").write_bytes(reviews.read_bytes())
    (tmp_path / "ranks.yaml").write_text(STUDY.replace("seeds", "sceds"))
    assert "Did you mean 'seeds'" in walker.does("dollartune check ranks.yaml", expect=2)
    (tmp_path / "ranks.yaml").write_text(STUDY)
    walker.does("dollartune check ranks.yaml --full")
    walker.follows()
    assert "report: " in walker.heard
    # one method and one seed more: only what is missing is run
    walker.does("dollartune run ranks.yaml --dry-run --methods 'lora(rank=2),lora(rank=8),bitfit,norm' --seeds 3")
    assert "trials would be run" in walker.heard
    walker.does("dollartune run ranks.yaml --methods 'lora(rank=2),lora(rank=8),bitfit,norm' --seeds 3 --no-report")
    assert "have their record already" in walker.heard
    latex = walker.does("dollartune results ranks.yaml --latex")
    for word in (r"\begin{table}", r"$\pm$", " & rank & ", "norm", "@software{dollartune", "held-out test rows"):
        assert word in latex, latex
    walker.does("dollartune report ranks.yaml --figures svg --figures pdf --without-rows")
    folder = tmp_path / "studies" / "ranks" / "report"
    assert (folder / "figures" / "pareto.svg").read_text().startswith("<svg")
    assert (folder / "figures" / "pareto.pdf").is_file()
    page = (folder / "report.html").read_text()
    text = reviews.read_text().splitlines()[1].split(",")[0]
    assert text not in page, "no row of the data is in a report without rows"
    # a second study, held against the first and merged with it
    (tmp_path / "again.yaml").write_text(STUDY.replace("[{lora: {rank: [2, 8]}}, bitfit]", "[ia3]"))
    walker.does("dollartune run again.yaml -q")
    walker.does("dollartune compare ranks.yaml again.yaml")
    assert "ia3" in walker.heard
    walker.does("dollartune merge ranks.yaml again.yaml --out studies/all")
    walker.follows()
    assert "ia3" in walker.heard
    assert "norm" in walker.heard
