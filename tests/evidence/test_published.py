"""Published figures beside the settings that repeat them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dollartune.errors import UserError
from dollartune.evidence import PublishedFigures, paid, source_machine
from dollartune.study.downscale import shrink
from dollartune.study_file import load_study
from dollartune.trials.record import Ablation, TrialFacts
from dollartune.trials.trial import ablated, variants

SOURCES = Path(__file__).parents[2] / "examples" / "sources"


def trials(name: str, small: bool) -> list[tuple[TrialFacts, PublishedFigures]]:
    """What records of a source's study would say of their trials."""
    settings = load_study(SOURCES / f"{name}.yaml")
    settings = shrink(settings) if small else settings
    figures = PublishedFigures(settings)
    whole = variants(settings.methods)
    return [
        (
            TrialFacts(
                backbone=settings.backbones[0].name,
                label=v.label,
                group=v.group,
                task=task if isinstance(task, str) else task["preset"],
                scale=scale,
                ablation=Ablation(of=v.ablation[0], name=v.ablation[1]) if v.ablation else None,
                seed=0,
            ),
            figures,
        )
        for task in settings.tasks
        for scale in settings.scales
        for v in [*whole, *ablated(whole, settings.ablations)]
    ]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("000_opt_125m", "accuracy"),
        ("000_opt_350m", "accuracy"),
        ("001_table1", None),
        ("001_ablations_ia3", None),
        ("001_ablations_lora", None),
        ("002_prompt", "accuracy"),
        ("002_lora", "accuracy"),
        ("003_tables_t5", "rougeL"),
        ("003_tables_bart", "rougeL"),
        ("003_vit", "accuracy"),
    ],
)
def test_every_trial_has_its_published_score(name: str, metric: str | None, small: bool) -> None:
    for trial, figures in trials(name, small):
        scores = {"ag_news": "accuracy", "cola": "accuracy", "e2e_nlg": "rougeL", "samsum": "rougeL"}
        found = figures.of(trial, metric or scores[trial.task])
        assert len(found) == 1, (trial, found)
        assert found[0].other_model == small or "/" not in found[0].finding.model


def test_the_right_cell_is_found() -> None:
    by_label = {t.label: f.of(t, "accuracy")[0].finding.value for t, f in trials("000_opt_125m", True)}
    assert by_label["lora(lr=0.003)"] == 0.6061, "rank 8, alpha 16"
    assert by_label["prompt(lr=0.3, tokens=48)"] == 0.5957, "192 virtual tokens, cut to 48"
    grid = [(t.scale, f.of(t, "accuracy")[0].finding.value) for t, f in trials("002_prompt", True)]
    assert grid[0] == (22, 0.649)
    assert grid[-1] == (81, 0.9615)


def test_what_was_paid() -> None:
    cost = paid(load_study(SOURCES / "000_opt_125m.yaml"))
    assert cost is not None
    assert cost.dollars == pytest.approx(0.97 + 0.93 + 0.93 + 0.92 + 0.98 + 0.95 + 0.96 + 1.05 + 0.93 + 0.87 + 0.86)
    cost = paid(load_study(SOURCES / "001_table1.yaml"))
    assert cost is not None
    assert "only" in cost.covers
    assert cost.dollars == pytest.approx(5.672 * (cost.seconds or 0) / 3600)
    cost = paid(load_study(SOURCES / "003_mt0.yaml"))
    assert cost is not None
    assert (cost.dollars, cost.seconds) == (None, 900)
    assert paid(load_study(SOURCES / "002_prompt.yaml")) is None
    assert source_machine(load_study(SOURCES / "002_best_70b.yaml")) == "4xa100-80gb"
    assert source_machine(load_study(SOURCES / "003_vit.yaml")) is None


def test_an_unknown_table_is_named() -> None:
    study = load_study(
        {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"], "source": {"tables": ["001.t"]}}
    )
    with pytest.raises(UserError, match=r"001\.t"):
        PublishedFigures(study)
