"""Every margin and factor of the schedulers whose effect shows without a study: what goes wrong without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dollartune.budget.ledger import Ledger
from dollartune.methods.space import LogUniform
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule import scheduler as scheduler_module
from dollartune.schedule.optuna_search import OptunaSearch
from dollartune.schedule.race_plan import affordable_plan
from dollartune.schedule.scheduler import Account
from dollartune.schedule.search_plan import affordable_search
from dollartune.schedule.search_space import SearchSpace
from dollartune.schedule.successive_halving import Arm, JobOutcome, RaceJob, SuccessiveHalving

# What is left of an account


def test_plans_leave_what_is_spent_between_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "closing_seconds", lambda: 0.0)
    now = [0.0]
    ledger = Ledger(limit_seconds=100.0, clock=lambda: now[0])
    account = Account(ledger, None, Account.take(ledger, None, 1.0))
    with ledger.book("tune"):
        now[0] += account.plannable()
    with ledger.book("other"):
        now[0] += 0.03 * 100 + 0.3  # three hundredths, and some tenths even in the shortest study
    assert account.left() == pytest.approx(0.0, abs=1e-6)  # not overspent, and nothing kept from the plan for no reason


def test_an_account_keeps_the_time_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "closing_seconds", lambda: 2.0)
    ledger = Ledger(limit_seconds=100.0)
    assert Account(ledger, None, Account.take(ledger, None, 0.5)).left() == pytest.approx(48.0)


# What a search is planned for

COST = TrialCost(
    steps=1000, seconds_per_step=0.1, validations=1, seconds_per_validation=0.0, try_seconds=1, final_seconds=1
)


def test_two_settings_are_no_search_and_three_are() -> None:
    finals = 3 * COST.final(1.0)
    assert affordable_search(COST, 2 * finals, 3, 2, 0.0).search_trials == 2  # where the study wants no more
    dear = TrialCost(8, 1.0, 1.0, 0.0, 10.0, 1.0)  # no run can be shorter: a search trial costs 22.5 s
    trial, finals = dear.tried(1.0), 3 * dear.final(1.0)
    assert affordable_search(dear, 3 * trial + finals + 0.01, 3, 50, 0.0).search_trials == 3
    assert affordable_search(dear, 3 * trial + finals - 0.01, 3, 50, 0.0).search_trials == 0


def test_half_of_the_money_is_for_the_final_trials() -> None:
    plan = affordable_search(COST, 200.0, 3, 50, 0.0)
    assert plan.finals.seconds(COST, 0.0) == pytest.approx(100.0, rel=0.01)


def test_search_trials_are_a_third_as_long_as_final_trials_or_longer() -> None:
    plan = affordable_search(COST, 120.0, 3, 50, 0.0)
    assert plan.fraction == pytest.approx(plan.finals.fraction / 3)


def test_beyond_eight_settings_money_makes_search_trials_longer() -> None:
    finals = 3 * COST.final(1.0)
    plan = affordable_search(COST, finals + 8 * COST.tried(0.6) + 0.1, 3, 50, 0.0)
    assert (plan.search_trials, plan.fraction) == (8, pytest.approx(0.6, abs=0.002))


# What a race is planned for


def plan_of(cost: TrialCost, seconds: float, methods: int = 3, settings: int = 4) -> Any:
    costs = {f"m{number}": cost for number in range(methods)}
    spaces = {name: SearchSpace(name, (), {"lr": LogUniform(1e-4, 1e-2)}) for name in costs}
    return affordable_plan(costs, spaces, settings, 3, seconds, 0.0)


def test_settings_are_given_up_before_runs_get_shorter_than_a_third() -> None:
    plans = [plan_of(COST, seconds) for seconds in range(100, 1500, 20)]
    lengths = {plan.whole for plan in plans if plan.settings > 1}
    assert min(lengths) == 0.35
    assert any(plan.whole < 0.35 for plan in plans if plan.settings == 1)


def test_a_rung_that_must_choose_is_half_of_a_short_run() -> None:
    short = TrialCost(12, 0.1, 1.0, 0.0, 1.0, 1.0)
    assert plan_of(short, 1e6).fractions == (0.5, 1.0)


# Who stays in a race


def race_of(settings: Sequence[Arm], seconds: float = 1e6, **arguments: Any) -> SuccessiveHalving:
    return SuccessiveHalving(settings, lambda job: 90 * job.fraction + 10, seconds, seeds=3, most_seeds=3, **arguments)


def rung(race: SuccessiveHalving, scores: dict[str, float], error: float) -> set[str]:
    """Tells a rung its scores; those that run at the next one."""
    fraction = race.batch()[0].fraction
    for job in race.batch():
        race.tell(job, scores[job.arm.name], 1.0, error)
    assert all(job.fraction > fraction for job in race.batch())
    return {job.arm.name for job in race.batch()}


def arms_of(method: str, count: int) -> list[Arm]:
    return [Arm(method, {"lr": number}, number) for number in range(count)]


def test_rungs_are_a_ninth_a_third_and_all() -> None:
    assert race_of([Arm("a")]).fractions == (pytest.approx(1 / 9), pytest.approx(1 / 3), 1.0)


def test_one_setting_in_three_stays_within_a_method() -> None:
    scores = {f"a#{number}": 0.9 - 0.1 * number for number in range(9)}
    assert rung(race_of(arms_of("a", 9)), scores, 0.001) == {"a#0", "a#1", "a#2"}


@pytest.mark.parametrize(("errors", "stays"), [(1.4, True), (1.6, False)])
def test_one_and_a_half_standard_errors_are_noise(errors: float, stays: bool) -> None:
    noise = 0.01 * 2**0.5  # of the difference of two scores
    assert ("a#1" in rung(race_of(arms_of("a", 2)), {"a#0": 0.8, "a#1": 0.8 - errors * noise}, 0.01)) == stays


@pytest.mark.parametrize(("behind", "stays"), [(0.013, True), (0.014, False)])
def test_a_slower_method_may_still_gain_two_points_in_a_whole_training(behind: float, stays: bool) -> None:
    race = race_of([Arm("a"), Arm("b"), Arm("c")])
    scores = {"a#0": 0.8, "b#0": 0.8, "c#0": 0.8 - behind}
    rung(race, scores, 1e-6)
    assert ("c#0" in rung(race, scores, 1e-6)) == stays


def test_the_second_best_method_stays_and_the_third_goes() -> None:
    race = race_of([Arm("a"), Arm("b"), Arm("c")])
    scores = {"a#0": 0.9, "b#0": 0.5, "c#0": 0.4}
    rung(race, scores, 1e-6)
    assert rung(race, scores, 1e-6) == {"a#0", "b#0"}


def test_the_final_of_three_methods_is_a_reserve_of_two_thirds_at_most() -> None:
    settings = [Arm(name) for name in "abcd"]
    assert race_of(settings).reserve() == pytest.approx(3 * 3 * 100)
    assert race_of(settings, seconds=600).reserve() == pytest.approx(400)


# Samplers and pruners


def proposals(sign: float, count: int) -> list[float]:
    search = OptunaSearch({"lr": LogUniform(1e-5, 1e-1)}, seed=1)
    for _ in range(count):
        proposal = search.ask()
        search.tell(proposal.number, sign * proposal.values["lr"])
    return [proposal.values["lr"] for proposal, _ in search.history]


def test_scores_guide_proposals_after_the_first_five() -> None:
    one, other = proposals(1.0, 7), proposals(-1.0, 7)
    assert one[:5] == other[:5]
    assert one[5:] != other[5:]


def test_the_median_pruner_waits_for_three_trials() -> None:
    search = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, pruner="median")
    hopeless = []
    for _ in range(5):
        lagging = search.ask()
        hopeless.append(search.report(lagging.number, 0, -float(lagging.number)))
        search.tell(lagging.number, 0.5)
    assert hopeless == [False, False, False, True, True]


def test_proposals_have_three_digits() -> None:
    search = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, sampler="random")
    values = [search.ask().values["lr"] for _ in range(8)]
    assert all(value == float(f"{value:.3g}") for value in values)
    assert any(value != float(f"{value:.2g}") for value in values)


def test_a_job_is_costed_by_its_fraction() -> None:
    race = race_of([Arm("a")])
    assert race.expected(RaceJob(Arm("a"), 1.0, 0)) == 100
    race.tell(race.batch()[0], *(0.5, 40.0))
    assert race.expected(RaceJob(Arm("a"), 1.0, 0)) == 200  # twice as slow as expected so far
    assert JobOutcome(0.5, 1.0).standard_error == 0.0
