"""An engineer with a messy csv: blank cells, quoted line breaks, a byte order mark, codes for classes, a rare class."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
from walk import Walker

pytestmark = pytest.mark.slow

WORDS = {
    "1": ("refund", "invoice", "charged", "payment"),
    "2": ("crash", "login", "error", "password"),
    "7": ("thanks", "great"),
}


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """140 tickets; every 20th without a text, every 30th without a category; category 7 is rare."""
    chance = random.Random(0)
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["Ticket ID", "Message", "Category", "notes"])
    for number in range(140):
        category = "7" if number % 17 == 5 else chance.choice("12")
        word = chance.choice(WORDS[category])
        message = (
            "" if number % 20 == 9 else f'Order {number}: about the {word}.\n"quoted {chance.choice(WORDS[category])}"'
        )
        writer.writerow([f"T-{number}", message, "" if number % 30 == 11 else category, "n/a"])
    path = tmp_path / "tickets.csv"
    path.write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
    return path


def test_from_a_messy_csv_to_an_adapter_that_is_used(messy: Path, tmp_path: Path) -> None:
    walker = Walker(tmp_path)
    assert "torch" in walker.does("dollartune doctor")
    refused = walker.does("dollartune init tickets.csv", expect=2)
    assert "--on-bad-row skip" in refused
    walker.does("dollartune init tickets.csv --on-bad-row skip")
    assert "skipped" in walker.heard
    walker.follows()  # check, which says what to run
    assert "dollartune run study.yaml" in walker.heard
    walker.does(
        "dollartune run study.yaml --methods zero_shot,bitfit --seeds 1 --budget '30 min per study' "
        "--set search=2 --set training.epochs=1 --set evaluation.rows=20 --set evaluation.free_generation=false "
        "--set evaluation.forgetting=false --set evaluation.inference_cost=false"
    )
    assert "report: " in walker.heard
    walker.does("dollartune status study.yaml")
    walker.does("dollartune trials ls study.yaml")
    # one command, without a model in mind; the adapter is used on the same messy file
    walker.does(
        "dollartune tune tickets.csv --on-bad-row skip --method linear_probe --budget '5 min' --backbone tiny-encoder"
    )
    printed = walker.follows()
    assert any(" predict " in command for command in printed)
    assert any(" doubts " in command for command in printed)
    walker.does("dollartune predict tuned/adapter tickets.csv --out predicted.csv")
    with (tmp_path / "predicted.csv").open(encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 140
    assert {"Ticket ID", "Message"} <= set(rows[0])
    walker.does("dollartune export tuned/adapter --format tar --out x", expect=2)
    walker.does("dollartune tune tickets.csv --budget '$1'", expect=2)
    assert "--price" in walker.heard
