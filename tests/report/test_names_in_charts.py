"""Names beside points: none lies on another or on a mark; a baseline that costs nearly nothing does not stretch the axis."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from fabricate import METHODS, Made, MadeStudy, make_study

pytest.importorskip("altair")

from dollartune.report.charts.pareto import HEIGHT, LETTER, LINE, MARK, WIDTH, _placed, pareto_chart
from dollartune.report.contents import collect


def boxes(
    placed: Any, costs: tuple[float, float], scores: tuple[float, float]
) -> list[tuple[float, float, float, float]]:
    found = []
    for (place, _), rows in placed.items():
        for row in rows:
            x = WIDTH * (row["cost"] - costs[0]) / (costs[1] - costs[0])
            y = HEIGHT * (scores[1] - row["score"]) / (scores[1] - scores[0])
            width = LETTER * len(row["name"])
            left = x + 9 if place.align == "left" else x - 9 - width
            found.append((left, y + place.dy - LINE / 2, left + width, y + place.dy + LINE / 2))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_no_name_lies_on_another_or_on_a_mark(seed: int) -> None:
    chance = random.Random(seed)
    rows = [
        {"name": f"method {n}", "cost": chance.random(), "score": chance.choice((0.5, 0.52, 0.9)), "grey": n % 3 == 0}
        for n in range(8)
    ]
    placed = _placed(rows, rows, (0, 1), "linear", (0, 1))
    found = boxes(placed, (0, 1), (0, 1))
    assert found
    for index, one in enumerate(found):
        assert one[0] >= 0
        assert one[2] <= WIDTH
        for other in found[index + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        for row in rows:
            x, y = WIDTH * row["cost"], HEIGHT * (1 - row["score"])
            assert not (one[0] < x + MARK and x - MARK < one[2] and one[1] < y + MARK and y - MARK < one[3])


def test_the_axis_belongs_to_the_methods(tmp_path: Path) -> None:
    cheap = Made("majority", 0.25, 0, 0.0001, baseline=True)
    made = make_study(tmp_path / "study", MadeStudy(methods=(*METHODS[1:4], cheap), rows=40))
    contents = collect(made)
    (board,) = contents.boards
    spec = pareto_chart(board, contents.series).to_dict()
    least = min(board.cost(entry) for entry in board.entries)
    domains = [layer["encoding"]["x"]["scale"]["domain"] for layer in spec["layer"] if "x" in layer.get("encoding", {})]
    assert all(low > least / 10 for low, _ in domains)
    names = [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]
    assert any(name.startswith("majority (< $") for name in names), "what it costs is said beside it"


def test_variants_of_one_method_are_told_apart(tmp_path: Path) -> None:
    contents = collect(make_study(tmp_path / "study", MadeStudy(methods=METHODS[2:4], rows=40)))
    spec = pareto_chart(contents.boards[0], contents.series).to_dict()
    colors = [layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "color" in layer.get("encoding", {})]
    for scale in colors:
        assert scale["domain"] == ["lora(rank=2)", "lora(rank=8)"]
        assert len(set(scale["range"])) == 2
