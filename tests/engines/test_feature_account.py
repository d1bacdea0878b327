"""What a trial would have to pay for alone: features of the frozen backbone, and what its frozen layers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.budget.totals import read_totals
from dollartune.study.api import Study


def test_a_later_trial_gets_the_outputs_of_frozen_layers_for_no_present(tmp_path: Path) -> None:
    """Who runs the second method alone pays for its frozen layers too; methods that train the first layer read nothing."""
    last: dict[str, Any] = {"layers": "last 1"}
    results = Study(
        name="s", backbone="tiny-encoder", task="demo_library",
        methods=[{"bitfit": last}, {"lora": {**last, "rank": 2}}, "ia3"], scales=[32], seeds=1, output=str(tmp_path),
        training={"max_length": 64, "validation_rows": 16, "epochs": 1, "cohort_size": 1}, keep_adapters="all",
        evaluation={"rows": 24, "free_generation": False, "forgetting": False, "inference_cost": False},
    ).run()  # fmt: skip
    records = {record.trial.group: record for record in results.done()}
    first, second, whole = (records[name].cost for name in ("bitfit", "lora", "ia3"))
    assert first.features_seconds > 0
    assert first.features_booked_seconds == pytest.approx(first.features_seconds), "what it has computed it has paid"
    assert first.earlier_seconds == pytest.approx(0)
    assert second.features_seconds == pytest.approx(first.features_seconds), "the same rows, the same layers"
    assert second.features_booked_seconds == 0
    assert whole.features_seconds == 0
    rows = {row["method"]: row for row in results.leaderboard().to_dict("records")}
    for name, record in records.items():
        assert rows[name]["seconds"] == pytest.approx(record.cost.seconds + record.cost.earlier_seconds)
    booked = read_totals(results.store.ledger).by_trial
    assert booked[records["lora"].id] == pytest.approx(second.seconds), "and no more is booked"
