"""Charts: valid specifications in a notebook, and the same color and shape for a method everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricate import METHODS, Made, MadeStudy, make_study

import dollartune.report as report
from dollartune.errors import UserError
from dollartune.report.charts import style as look
from dollartune.report.charts.labels import FURTHER, TRUTH, breakdown_chart, shares
from dollartune.report.charts.pareto import pareto_chart
from dollartune.report.charts.scales import scales_chart
from dollartune.report.contents import collect
from dollartune.study.results import Results

CHARTS = (
    "pareto", "parameters", "learning_curves", "scales", "breakdown", "convergence", "speedup", "requests", "forgetting",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_study(tmp_path_factory.mktemp("study"), MadeStudy(scales=(100, 1000), rows=40))


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_valid_and_draws(name: str, results: Results) -> None:
    import vl_convert

    chart = getattr(report, name)(results)
    spec = chart.to_dict()  # altair checks it against Vega-Lite's schema
    svg = vl_convert.vegalite_to_svg(spec)
    assert svg.startswith("<svg")
    assert svg.count("<path") > 10


def _ranges(spec: Any, channel: str) -> list[dict[str, str]]:
    """Every (method -> value) mapping of a channel in a specification."""
    if isinstance(spec, list):
        return [found for part in spec for found in _ranges(part, channel)]
    if not isinstance(spec, dict):
        return []
    found = [pair for part in spec.values() for pair in _ranges(part, channel)]
    encoding = spec.get("encoding", {}).get(channel, {})
    if encoding.get("field") == "method":
        found.append(dict(zip(encoding["scale"]["domain"], encoding["scale"]["range"], strict=True)))
    return found


def test_a_method_has_one_color_and_shape_in_all_charts(results: Results) -> None:
    specs = [getattr(report, name)(results).to_dict() for name in CHARTS if name != "breakdown"]
    methods = collect(results).series
    for channel, meaning in (("color", look.color), ("shape", look.shape)):
        found = _ranges(specs, channel)
        assert len(found) > 5
        for mapping in found:
            assert mapping == {method: meaning(methods, method) for method in mapping}


def test_no_two_of_many_methods_look_the_same() -> None:
    methods = [f"method {index}" for index in range(40)]
    assert len({(look.color(methods, m), look.shape(methods, m)) for m in methods}) == 40


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("color", look.COLORS)
def test_colors_stand_out_on_white_and_on_dark(color: str) -> None:
    for ground in ("#ffffff", "#14171a"):
        light, dark = sorted((_luminance(color), _luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, f"{color} on {ground}"


@pytest.mark.parametrize("tint", [*look.TINTS, look.OTHER_TINT])
def test_text_on_tints_is_readable(tint: str) -> None:
    assert (_luminance(tint) + 0.05) / (_luminance(look.ON_TINT) + 0.05) >= 4.5


def test_one_board_can_be_chosen(results: Results) -> None:
    assert "vconcat" in report.pareto(results).to_dict()
    assert "vconcat" not in report.pareto(results, task="ag_news", scale=100).to_dict()
    with pytest.raises(UserError, match="Did you mean 'ag_news'"):
        report.pareto(results, task="agnews")


def test_learning_curves_need_something_that_was_tuned(tmp_path: Path) -> None:
    results = make_study(tmp_path, MadeStudy(methods=METHODS[:1]))
    with pytest.raises(UserError, match="nothing to draw"):
        report.learning_curves(results)
    assert report.parameters(results).to_dict()


def test_shares_are_whole_and_stand_beside_the_truth(results: Results) -> None:
    contents = collect(results)
    table = shares(contents, contents.boards[0], "scored")
    assert next(iter(table)) == TRUTH
    assert set(table) == {TRUTH, *(method.label for method in METHODS)}
    assert table[TRUTH]["world"] == pytest.approx(0.25)
    for row in table.values():
        assert sum(row.values()) == pytest.approx(1)


def test_many_labels_are_gathered(tmp_path: Path) -> None:
    made = MadeStudy(methods=METHODS[1:3], labels=tuple(f"label {i:02}" for i in range(30)), rows=90)
    contents = collect(make_study(tmp_path, made))
    chart = breakdown_chart(contents, contents.boards[0], "scored")
    assert chart is not None
    spec = chart.to_dict()
    domain = spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert len(domain) <= len(look.TINTS) + 1
    assert FURTHER in domain


def test_methods_that_train_nothing_stand_apart_on_a_logarithmic_axis(results: Results) -> None:
    spec = report.parameters(results, task="ag_news", scale=100).to_dict()
    rows = next(rows for rows in spec["datasets"].values() if any("position" in r and "label" in r for r in rows))
    nothing = [row["position"] for row in rows if row["trained"] == "nothing"]
    assert nothing
    assert max(nothing) < min(row["position"] for row in rows if row["trained"] != "nothing") / 2


def _ablated(tmp_path: Path) -> Results:
    whole = [Made("lora", 0.8, 8_000), Made("ia3", 0.75, 900)]
    parts = [
        Made(f"{one.label}: {name}", one.skill - drop, one.trainable // 2, group=one.label,
             ablation={"of": one.label, "name": name})
        for one, drops in zip(whole, ((0.0, 0.5), (0.02, 0.6)), strict=True)
        for name, drop in zip(("last 50%", "drop attention"), drops, strict=True)
    ]  # fmt: skip
    return make_study(tmp_path, MadeStudy(methods=(*whole, *parts), rows=100))


def test_ablations_are_a_heat_map_of_changes_by_method(tmp_path: Path) -> None:
    import vl_convert

    spec = report.ablations(_ablated(tmp_path)).to_dict()
    rows = next(iter(spec["datasets"].values()))
    cells = {(row["part"], row["column"]): row for row in rows}
    assert set(cells) == {
        (part, of) for part in ("the whole method", "last 50%", "drop attention") for of in ("lora", "ia3")
    }
    assert cells["drop attention", "ia3"]["change"] < -0.3
    assert cells["drop attention", "ia3"]["sure"]
    assert not cells["last 50%", "lora"]["sure"]
    assert cells["the whole method", "lora"]["change"] is None
    svg = vl_convert.vegalite_to_svg(spec)
    assert "the whole method" in svg
    assert 'font-weight="bold"' in svg


def test_long_histories_are_thinned_and_keep_their_best_point(tmp_path: Path) -> None:
    results = make_study(tmp_path, MadeStudy(methods=(Made("full", 0.8),), seeds=1, history=500))
    spec = report.learning_curves(results).to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    assert len(rows) <= 62
    assert sum(bool(row.get("best")) for row in rows) == 1
    best = next(row for row in rows if row.get("best"))
    assert best["loss"] == min(row["loss"] for row in rows)


def test_no_tooltip_makes_a_score_perfect(tmp_path: Path) -> None:
    """By the words of the tables: a chart's own rounding to three digits writes 0.9996 as 1.000."""
    contents = collect(make_study(tmp_path / "study", MadeStudy(methods=METHODS[:3], scales=(100, 1000), rows=40)))
    board, other = contents.boards
    perfect = (replace(one, standing=None, scores=(0.99962,) * len(one.scores)) for one in board.entries)
    near = replace(board, entries=tuple(perfect))
    for chart in (pareto_chart(near, contents.series), scales_chart([near, other], contents.series)):
        text = json.dumps(chart.to_dict())
        assert '"format": ".3f"' not in text
        assert '"shown": "0.9996"' in text
