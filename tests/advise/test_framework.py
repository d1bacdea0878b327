"""Reference 001's statements (sections 3.2 and 3.3) come out of its own tables."""

from __future__ import annotations

import pytest

from dollartune.advise import framework
from dollartune.evidence import findings


def test_time_full_tuning_on_little_data_and_peft_on_much() -> None:
    assert framework.time("low").methods == ("full",)
    assert framework.time("medium").methods == ("full",)
    high = framework.time("high")
    assert set(high.methods) == {"bitfit", "ia3", "lora"}
    assert high.extrapolated
    assert "trend" in high.reason


def test_memory_bitfit_and_ia3_then_ia3() -> None:
    assert set(framework.memory("low").methods) == {"bitfit", "ia3"}
    assert framework.memory("medium").methods == ("ia3",)
    assert framework.memory("high").methods == ("ia3",)


def test_performance_peft_on_low_and_medium_full_on_high() -> None:
    low, medium = framework.performance("low").methods, framework.performance("medium").methods
    assert set(low) | set(medium) == {"ia3", "lora", "bitfit"}
    assert framework.performance("high").methods == ("full",)
    # the refinement: the tables do not support (IA)3 at low scale
    assert "ia3" not in low
    assert "ia3" in medium


def test_no_method_is_always_best() -> None:
    for scale in framework.SCALES:
        assert max(one.wins for one in framework.performance(scale).ranking) < 4


def test_late_layers_beat_early_ones_with_half_the_parameters() -> None:
    """Section 3.3: of (IA)3's and LoRA's halves the later one keeps the quality."""
    score: dict[tuple[str, str], list[float]] = {}
    for cell in findings(table="001.table2"):
        score.setdefault((cell.method, cell.setting["ablation"]), []).append(cell.value)
    mean = {key: sum(values) / len(values) for key, values in score.items()}
    for method in ("ia3", "lora"):
        assert mean[method, "late_layers"] > mean[method, "early_layers"]
        assert mean[method, "late_layers"] == pytest.approx(mean[method, "all"], abs=0.01)
    assert mean["ia3", "all"] - mean["ia3", "drop_attention"] > 0.1
    assert mean["ia3", "all"] - mean["ia3", "drop_dense"] < 0.01
    assert mean["lora", "drop_self_attention"] == min(mean["lora", name] for (m, name) in mean if m == "lora")


@pytest.mark.parametrize(
    ("examples", "scale"),
    [(1, "low"), (100, "low"), (400, "medium"), (1000, "medium"), (5000, "high"), (10**6, "high")],
)
def test_scales(examples: int, scale: str) -> None:
    assert framework.scale_of(examples) == scale


def test_ties_share_their_places() -> None:
    rows = findings(table="001.table1", n_examples=100, data="cola")
    doubled = [*rows, *findings(table="001.table1", n_examples=100, data="ag_news")]
    ranked = framework.rank(doubled)
    assert sum(one.mean_rank for one in ranked) == pytest.approx(15)
