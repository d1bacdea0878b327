"""The findings page: what counts as held, and a plot that is well-formed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from blocks import ROOT


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    """bench/findings.py as a module."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        spec = importlib.util.spec_from_file_location("findings", ROOT / "bench" / "findings.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["findings"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "bench"))


@pytest.mark.parametrize(
    ("intervals", "expected", "outcome"),
    [
        ([], 1, "not run"),
        ([(-0.1, 0.1), (-0.2, 0.01)], 1, "cannot be told"),
        ([(0.1, 0.3), (-0.1, 0.2)], 1, "held"),
        ([(0.1, 0.3)] * 3 + [(-0.1, 0.2)] * 9, 1, "held in part"),
        ([(0.1, 0.3)] + [(-0.1, 0.2)] * 5, 1, "cannot be told"),  # one of six is luck
        ([(-0.1, 0.1)] * 10, -1, "cannot be told"),  # no interval above zero does not show that nothing is there
        ([(-0.3, -0.1), (-0.1, 0.2)], 1, "did not hold"),
        ([(0.1, 0.3), (-0.3, -0.1)], 1, "mixed"),
        ([(-0.1, 0.1), (-0.3, -0.1)], -1, "held"),
        ([(-0.1, 0.1), (0.1, 0.3)], -1, "did not hold"),
    ],
)
def test_a_finding_is_judged_by_intervals(
    findings: ModuleType, intervals: list[tuple[float, float]], expected: int, outcome: str
) -> None:
    estimates = [findings.Estimate("x", (low + high) / 2, low, high) for low, high in intervals]
    assert findings.Verdict("f", "t", "c", estimates, "axis", expected=expected).outcome == outcome


def test_the_plot_is_well_formed_and_says_everything(findings: ModuleType) -> None:
    rows = [findings.Estimate("late <b> early", 0.1, 0.05, 0.15), findings.Estimate("other", -0.02, -0.2, 0.2)]
    root = ElementTree.fromstring(findings.forest(rows, "Title & more", "difference"))
    texts = [element.text for element in root.iter() if element.text]
    assert {"late <b> early", "other", "Title & more", "difference"} <= set(texts)
    circles = [element.get("fill") for element in root.iter() if element.tag.endswith("circle")]
    assert circles == ["#2b5fd9", "#fff"], "filled where the interval leaves zero out"


def test_a_folder_without_studies_makes_a_page_that_says_so(findings: ModuleType, tmp_path: Path) -> None:
    text = findings.page(findings.Studies(tmp_path), tmp_path)
    assert "Not run yet: findings_vision, 000_opt_125m-small" in text
    assert "**not run**" in text
