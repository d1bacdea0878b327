"""Writing the report is booked."""

from __future__ import annotations

from pathlib import Path

import pytest

from dollartune.budget.totals import read_totals
from dollartune.study.booked_report import booked_report
from dollartune.study_file import load_study
from dollartune.trials.store import Store


def test_the_time_of_writing_stands_in_the_ledger_also_where_it_fails(tmp_path: Path) -> None:
    study = {"backbone": "tiny-decoder", "task": "demo_library", "methods": ["lora"], "budget": {"price": "3.6/h"}}
    settings, store = load_study(study), Store(tmp_path / "study")
    store.create("{}", [])
    with booked_report(settings, store):
        pass
    with pytest.raises(RuntimeError), booked_report(settings, store):
        raise RuntimeError
    totals = read_totals(store.ledger)
    assert set(totals.by_category) == {"report"}
    assert totals.dollars == pytest.approx(totals.seconds / 1000)
