"""SuccessiveHalving on scores whose truth is known: money, seeds, noise, failures, resuming."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.methods.space import Choice, LogUniform
from dollartune.schedule.racing import draw_arms
from dollartune.schedule.successive_halving import Arm, JobOutcome, RaceJob, SuccessiveHalving, ToldJob


def arms(methods: int = 4, per_method: int = 3) -> list[Arm]:
    return [Arm(f"m{m}", {"lr": s}, s) for m in range(methods) for s in range(per_method)]


def cost(job: RaceJob) -> float:
    return 100 * job.fraction + 1


def truth(arm: Arm) -> float:
    return 0.9 - 0.05 * int(arm.method[1:]) - 0.1 * abs(arm.number - 1)


def noisy(noise: float, error: float = 0.01, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = random.Random(seed)

    def evaluate(job: RaceJob) -> JobOutcome:
        return JobOutcome(truth(job.arm) * job.fraction**0.1 + rng.gauss(0, noise), cost(job), error)

    return evaluate


def test_the_best_arm_wins_for_less_than_the_grid() -> None:
    race = SuccessiveHalving(arms(), cost, seconds=12 * 3 * 101 / 3)
    winner = race.run(noisy(0.002))
    assert (winner.arm.method, winner.arm.number) == ("m0", 1)
    assert winner.seeds >= 3
    assert winner.fraction == 1
    assert race.spent_seconds <= race.seconds


def test_every_finalist_gets_its_seeds_and_losers_do_not() -> None:
    race = SuccessiveHalving(arms(), cost, seconds=1500)
    race.run(noisy(0.002))
    full = Counter(told.arm for told in race.told if told.fraction == 1)
    assert len(full) >= 2
    assert all(count >= 3 for count in full.values())
    assert len(full) < 12
    assert all(race.dropped[arm.name] for arm in race.arms if arm.name not in full)


def test_every_method_passes_the_first_rung() -> None:
    race = SuccessiveHalving(arms(), cost, seconds=2000)
    race.run(noisy(0.001))
    second_rung = {
        name.split("#")[0]
        for name, fraction in ((told.arm, told.fraction) for told in race.told)
        if fraction == race.fractions[1]
    }
    assert second_rung == {"m0", "m1", "m2", "m3"}


def test_noise_alone_drops_no_arm() -> None:
    """Scores that differ by less than their error stay as long as the money allows."""
    race = SuccessiveHalving(arms(2, 3), cost, seconds=1e6, most_seeds=3)
    race.run(lambda job: JobOutcome(0.8 + 0.001 * job.arm.number, cost(job), 0.05))
    assert race.dropped == {}


def test_a_slow_starter_is_not_lost() -> None:
    """The best method is behind by three points at a third of its training."""

    def evaluate(job: RaceJob) -> JobOutcome:
        final = {"m0": 0.90, "m1": 0.86, "m2": 0.80, "m3": 0.79}[job.arm.method] - 0.1 * abs(job.arm.number - 1)
        late = 0.105 * (1 - job.fraction) if job.arm.method == "m0" else 0.0
        return JobOutcome(final - late, cost(job), 0.012)

    assert SuccessiveHalving(arms(), cost, seconds=1500).run(evaluate).arm.method == "m0"


def test_close_finalists_get_more_seeds_while_money_lasts() -> None:
    rng = random.Random(0)
    race = SuccessiveHalving(arms(2, 1), cost, seconds=1e5, most_seeds=6)
    race.run(lambda job: JobOutcome(0.8 + rng.gauss(0, 0.01), cost(job), 0.01))
    assert max(place.seeds for place in race.results) == 6


@given(
    budget=st.floats(110, 5000),
    factor=st.floats(0.5, 1.05),
    failing=st.sets(st.integers(0, 11)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_money_and_termination(budget: float, factor: float, failing: set[int], seed: int) -> None:
    """Whatever fails and whatever it costs: it ends, and overspends by no more than one job's estimate was wrong."""
    everyone = arms()
    rng = random.Random(seed)

    def evaluate(job: RaceJob) -> JobOutcome:
        if everyone.index(job.arm) in failing:
            return JobOutcome(None, 1.0)
        return JobOutcome(truth(job.arm) + rng.gauss(0, 0.02), cost(job) * factor, 0.01)

    race = SuccessiveHalving(everyone, cost, budget)
    try:
        place = race.run(evaluate)
        assert everyone.index(place.arm) not in failing
    except UserError:
        assert all(told.outcome.score is None for told in race.told)
    assert race.next() is None
    assert race.spent_seconds <= budget + 101 * max(0.0, factor - 1)
    assert len({(told.arm, told.fraction, told.seed) for told in race.told}) == len(race.told)


@pytest.mark.parametrize("budget", [134, 190, 204, 288])
def test_a_run_that_breaks_at_once_does_not_make_the_method_look_cheap(budget: float) -> None:
    race = SuccessiveHalving(arms(2, 3), cost, budget)
    race.run(
        lambda job: JobOutcome(None, 1.0) if job.arm.number in {0, 2} else JobOutcome(truth(job.arm), cost(job), 0.01)
    )
    assert race.spent_seconds <= budget


@pytest.mark.parametrize("cut", [0, 1, 9, 15])
def test_a_killed_race_resumes_identically(cut: int) -> None:
    unbroken = SuccessiveHalving(arms(), cost, 1500)
    unbroken.run(noisy(0.01, seed=4))
    resumed = SuccessiveHalving(arms(), cost, 1500)
    resumed.tell_again(unbroken.told[:cut])
    for told in unbroken.told[cut:]:
        job = next(job for job in resumed.batch() if job.key == (told.arm, told.fraction, told.seed))
        resumed.tell(job, told.outcome.score, told.outcome.seconds, told.outcome.standard_error)
    assert resumed.next() is None
    assert resumed.results == unbroken.results


def test_jobs_may_come_back_in_any_order() -> None:
    race = SuccessiveHalving(arms(), cost, 1500)
    evaluate = noisy(0.0)
    while batch := race.batch():
        job = batch[-1]
        outcome = evaluate(job)
        race.tell(job, outcome.score, outcome.seconds, outcome.standard_error)
    assert race.winner.arm.name == "m0#1"


def test_short_money_leaves_no_method_out() -> None:
    race = SuccessiveHalving(arms(), cost, 400)
    assert {job.arm.method for job in race.batch()} == {"m0", "m1", "m2", "m3"}


def test_wrong_estimates_are_corrected() -> None:
    """Runs cost three times what was expected: the race notices and keeps to its money but for the first wrong one."""
    race = SuccessiveHalving(arms(), cost, 1500)
    race.run(lambda job: JobOutcome(truth(job.arm), 3 * cost(job), 0.01))
    assert race.spent_seconds <= 1500
    assert race.winner.arm.method == "m0"


@pytest.mark.parametrize(("factor", "begun"), [(1.0, 6), (0.5, 12)])
def test_a_rung_takes_in_more_where_runs_are_cheaper_than_expected(factor: float, begun: int) -> None:
    """Of 250 s the final keeps two thirds, or what three whole runs take."""
    race = SuccessiveHalving(arms(24, 1), cost, seconds=250, seeds=1, fractions=(1 / 9, 1.0))
    while (job := race.next()) is not None:
        race.tell(job, truth(job.arm), cost(job) * factor, 0.01)
    short = [told.outcome.seconds for told in race.told if told.fraction < 1]
    assert len(short) == begun
    assert sum(short) <= 250 - min(3 * 101 * factor, 250 * 2 / 3)
    assert any(told.fraction == 1 for told in race.told)


def test_what_was_run_before_is_not_run_again() -> None:
    whole, *rest = arms(4, 1)
    known = {
        RaceJob(whole, 1.0, 0): JobOutcome(0.95, 101, 0.01),
        RaceJob(rest[0], 1 / 9, 0): JobOutcome(0.9, 12, 0.01),
    }
    race = SuccessiveHalving(rest, cost, seconds=1e4, seeds=1, most_seeds=1, known=known)
    race.run(noisy(0.0))
    jobs = [(told.arm, told.fraction) for told in race.told]
    assert (rest[0].name, 1 / 9) not in jobs
    assert (rest[0].name, 1.0) in jobs
    assert whole.name not in {name for name, _ in jobs}
    assert race.winner.arm == whole


def test_a_failed_winner_is_replaced() -> None:
    race = SuccessiveHalving(arms(2, 1), cost, 1e4)
    race.run(lambda job: JobOutcome(None if job.arm.method == "m0" and job.fraction == 1 else 0.5, cost(job)))
    assert race.dropped["m0#0"] == "failed"
    assert race.winner.arm.method == "m1"


@pytest.mark.parametrize(
    "make",
    [
        lambda: SuccessiveHalving([], cost, 100),
        lambda: SuccessiveHalving([Arm("a"), Arm("a")], cost, 100),
        lambda: SuccessiveHalving(arms(), cost, 5),
        lambda: SuccessiveHalving(arms(), cost, 500, fractions=(1.0, 0.5)),
        lambda: SuccessiveHalving(arms(), cost, 500, fractions=(0.5,)),
        lambda: SuccessiveHalving(arms(), cost, 500).tell_again([ToldJob("zz#0", 1.0, 0, JobOutcome(0.5, 1.0))]),
    ],
)
def test_mistakes_are_named(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError):
        make()


def test_a_job_that_was_not_given_out_is_refused() -> None:
    race = SuccessiveHalving(arms(), cost, 1500)
    with pytest.raises(ValueError, match="not waiting"):
        race.tell(RaceJob(Arm("m0", number=0), 1.0, 7), 0.5, 1.0)


def test_arms_are_drawn_evenly_with_the_default_first() -> None:
    spaces = {"lora": {"lr": LogUniform(1e-4, 1e-2), "rank": Choice(2, 8)}, "zero_shot": {}}
    drawn = draw_arms(spaces, per_method=4, seed=1, first={"lora": {"lr": 1e-3, "rank": 8}})
    assert [arm.name for arm in drawn] == ["lora#0", "lora#1", "lora#2", "lora#3", "zero_shot#0"]
    assert drawn[0].setting == {"lr": 1e-3, "rank": 8}
    assert drawn == draw_arms(spaces, per_method=4, seed=1, first={"lora": {"lr": 1e-3, "rank": 8}})


def test_where_money_is_short_of_a_seed_for_all_that_are_close_the_best_get_one() -> None:
    race = SuccessiveHalving(arms(3, 1), cost, seconds=5.5 * 101, fractions=(1.0,), seeds=1, most_seeds=2)
    race.run(lambda job: JobOutcome(0.8 - 0.001 * int(job.arm.method[1:]), cost(job), 0.01))
    assert Counter(told.arm for told in race.told) == {"m0#0": 2, "m1#0": 2, "m2#0": 1}


@pytest.mark.parametrize(("first", "whole"), [(0.2, {"m0#0", "m1#0", "m2#0"}), (0.4, {"m0#0", "m1#0"})])
def test_before_a_third_of_the_training_methods_are_not_compared(first: float, whole: set[str]) -> None:
    scores = {"m0": 0.9, "m1": 0.8, "m2": 0.5}
    race = SuccessiveHalving(arms(3, 1), cost, seconds=1e5, fractions=(first, 1.0), seeds=1, most_seeds=1)
    race.run(lambda job: JobOutcome(scores[job.arm.method], cost(job), 0.01))
    assert {told.arm for told in race.told if told.fraction == 1} == whole
