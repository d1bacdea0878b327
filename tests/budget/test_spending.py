"""What was spent of a budget: `status`, the report and the settings say the same."""

from pathlib import Path
from typing import Any

import pytest
from fabricate import METHODS, MadeStudy, make_study

from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.ledger import Ledger
from dollartune.budget.limit import BudgetSettings, Limit
from dollartune.budget.spending import AccountSpending, spending
from dollartune.budget.totals import Totals
from dollartune.engines.base import EVALUATION_MARGIN, EVALUATION_SECONDS, LEAST_TEST_ROWS, Cohort, EvaluationCost
from dollartune.engines.display import Display
from dollartune.report.contents import collect
from dollartune.report.spending import by_method, spent_of_budget, trials_of
from dollartune.schedule.scheduler import seconds_left
from dollartune.study.api import Study
from dollartune.study.runner import BASELINE_SHARE, StudyRunner
from dollartune.study.status import status_of
from dollartune.study_file import load_study

TOTALS = Totals(
    100.0, 1.0, {"tune": 70.0, "load": 30.0}, {"lora": 50.0, "bitfit": 20.0}, {}, 30.0, {"lora": 0.5, "bitfit": 0.2},
    {}, {},
)  # fmt: skip


def test_a_study_of_one_sum_has_one_account() -> None:
    (one,) = spending(BudgetSettings(seconds=200.0, per="study"), TOTALS, ["lora", "bitfit"], 6)
    assert (one.account, one.seconds, one.share_of_budget) == ("the study", 100.0, 0.5)


def test_trials_pool_what_each_gets() -> None:
    (one,) = spending(BudgetSettings(seconds=20.0, per="trial"), TOTALS, ["lora", "bitfit"], 6)
    assert (one.limit, one.share_of_budget) == (Limit(120.0, None), pytest.approx(100 / 120))


def test_methods_bear_equal_parts_of_what_is_shared() -> None:
    lora, bitfit = spending(BudgetSettings(seconds=50.0, dollars=2.0), TOTALS, ["lora", "bitfit"], 6)
    assert (lora.alone_seconds, lora.shared_seconds, lora.seconds) == (50.0, 15.0, 65.0)
    assert lora.dollars == pytest.approx(0.65)
    assert lora.share_of_budget == pytest.approx(65 / 50), "the larger of the two shares"
    assert bitfit.share_of_budget == pytest.approx(35 / 50)
    assert sum(one.seconds for one in (lora, bitfit)) == TOTALS.seconds
    assert lora.sentence == "lora: used 1:05 of the 0:50 budget and $0.65 of the $2.00 budget (130 %)."


def test_nothing_limited_is_no_account() -> None:
    assert spending(None, TOTALS, ["lora"], 6) == []
    assert spending(BudgetSettings(price="2/h"), TOTALS, ["lora"], 6) == []
    assert AccountSpending("lora", 1.0, 0.0, 0.0).sentence is None


def test_a_budget_written_as_a_text_is_the_same_in_status_and_report(tmp_path: Path) -> None:
    results = make_study(tmp_path / "study", MadeStudy(budget=None))
    asked = {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"], "budget": "60 s per study"}
    (tmp_path / "study" / "study.yaml").write_text(load_study(asked).model_dump_json(exclude={"output"}))
    (told,) = status_of(results.store).spent_of_budget
    contents = collect(results)
    assert contents.ledger is not None
    assert told.account == "the study"
    assert told.share_of_budget == pytest.approx(contents.ledger.seconds / 60)
    sentence = spent_of_budget(contents)
    assert sentence is not None
    assert "60 s for the whole study" in sentence
    assert f"{told.share_of_budget * 100:.0f} %" in sentence
    assert "each method" not in sentence


def test_methods_that_are_still_to_come_bear_their_part_of_what_is_shared(tmp_path: Path) -> None:
    """The ledger divides among all methods of the study from its first second on."""
    budget = {"seconds": 60.0, "per": "method"}
    results = make_study(tmp_path / "study", MadeStudy(methods=METHODS[:2], seeds=1, budget=budget))
    store, names = results.store, ["zero_shot", "full", "lora", "bitfit"]
    store.write_accounts(names)
    with Ledger(path=store.ledger, limit_seconds=60.0, per="method", methods=names, heartbeat_seconds=0) as ledger:
        kept = {name: ledger.spent_seconds(name) for name in names}
    assert {one.account: one.seconds for one in status_of(store).spent_of_budget} == pytest.approx(kept)
    shown = {one.account: one.seconds for one in by_method(collect(results))}
    assert shown == pytest.approx({name: kept[name] for name in names[:2]}), "those with time of their own"
    store.clear()
    assert store.accounts() is None


def test_a_run_writes_down_who_shares(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot", "bitfit"], seeds=1, budget={"seconds": 100.0, "per": "method"}))
    study.run(display=Display())
    assert study.store.accounts() == ["zero_shot", "bitfit"]


def test_baselines_add_nothing_to_what_trials_pool(study_of: Any) -> None:
    """Their own budget has none: `status` and the report name the limit that the ledger kept."""
    study = Study(study_of(methods=["bitfit"], baselines=True, budget={"seconds": 100.0, "per": "trial"}))
    results = study.run(display=Display())
    assert sum(record.trial.baseline for record in results.everything) > 0
    (told,) = status_of(results.store).spent_of_budget
    kept = {record.budget.seconds for record in results.everything if record.budget is not None}
    assert {told.limit.seconds} == kept == {100.0}
    assert trials_of(collect(results)) == 1


def test_a_baseline_that_is_slow_is_scored_on_the_rows_that_its_part_pays_for(study_of: Any) -> None:
    settings = study_of(methods=["bitfit"], baselines=True, budget={"seconds": 600.0, "per": "study"})
    study = Study(settings)
    runner = StudyRunner(study.settings, study.store)
    cohort = Cohort((runner.baselines[0],))
    part = BASELINE_SHARE * seconds_left(runner.ledger, None)

    def rows(seconds_per_row: float) -> tuple[int | None, int | None]:
        limit = runner.time_limit(cohort, EvaluationCost(872, 100, seconds_per_row, seconds_per_row))
        return limit.test_rows, limit.validation_rows

    assert rows(1e-4) == (None, None), "all"
    some, validation = rows(0.1)
    assert validation == 100
    assert some is not None
    assert LEAST_TEST_ROWS < some < 872
    assert EVALUATION_MARGIN * 0.1 * (some + 100) + EVALUATION_SECONDS == pytest.approx(part, abs=0.3)
    fewer, beside = rows(0.2)
    assert fewer == beside < 100
    with pytest.raises(BudgetSpent):
        rows(part)
    runner.ledger.close()
