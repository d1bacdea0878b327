"""OptunaSearch by ask and tell: ranges, learning, and resuming identically."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.methods.space import Choice, IntRange, LogUniform, Uniform
from dollartune.schedule.optuna_search import OptunaSearch

SPACE = {
    "lr": LogUniform(1e-5, 1e-1),
    "dropout": Uniform(0.0, 0.5),
    "tokens": IntRange(1, 100, log=True),
    "where": Choice("self_attn.q", ["self_attn.q", "self_attn.v"], None),
}


def score(values: Any) -> float:
    return -abs(math.log10(values["lr"]) + 3) - values["dropout"]


def run(search: OptunaSearch, trials: int) -> None:
    for _ in range(trials):
        proposal = search.ask()
        search.tell(proposal.number, score(proposal.values))


def asked(space: Any) -> list[dict[str, Any]]:
    """The journal of a search that proposed once."""
    search = OptunaSearch(space)
    search.ask()
    return search.journal


@pytest.mark.parametrize("sampler", ["tpe", "random", "quasi"])
def test_proposals_lie_in_the_space(sampler: Any) -> None:
    search = OptunaSearch(SPACE, seed=1, sampler=sampler)
    run(search, 20)
    seen = [proposal.values for proposal, _ in search.history]
    for values in seen:
        assert 1e-5 <= values["lr"] <= 1e-1
        assert 0 <= values["dropout"] <= 0.5
        assert isinstance(values["tokens"], int)
        assert values["where"] in SPACE["where"].options
    assert len({values["lr"] for values in seen}) > 10


def test_the_default_comes_first() -> None:
    first = {"lr": 1e-3, "where": ["self_attn.q", "self_attn.v"], "rank": 8}
    values = OptunaSearch(SPACE, first=first).ask().values
    assert values["lr"] == 1e-3
    assert values["where"] == ["self_attn.q", "self_attn.v"]
    assert "rank" not in values


def test_learning_from_scores_beats_chance() -> None:
    learned, drawn = OptunaSearch(SPACE, seed=0), OptunaSearch(SPACE, seed=0, sampler="random")
    for search in (learned, drawn):
        run(search, 60)

    def last(search: OptunaSearch) -> float:
        return sum(value for _, value in search.history[-20:] if value is not None)

    assert last(learned) > last(drawn) + 5


@pytest.mark.parametrize("sampler", ["tpe", "random", "quasi"])
@pytest.mark.parametrize("cut", [0, 1, 7, 12])
def test_a_killed_search_resumes_identically(sampler: Any, cut: int) -> None:
    unbroken = OptunaSearch(SPACE, seed=3, sampler=sampler, first={"lr": 1e-3})
    run(unbroken, 15)
    killed = OptunaSearch(SPACE, seed=3, sampler=sampler, first={"lr": 1e-3})
    run(killed, cut)
    journal = json.loads(json.dumps(killed.journal))
    resumed = OptunaSearch(SPACE, seed=3, sampler=sampler, first={"lr": 1e-3}, journal=journal)
    run(resumed, 15 - cut)
    assert resumed.history == unbroken.history


def test_what_was_asked_but_not_told_is_waiting_after_resuming() -> None:
    search = OptunaSearch(SPACE, seed=0)
    first, second = search.ask(), search.ask()
    search.tell(first.number, 0.5)
    resumed = OptunaSearch(SPACE, seed=0, journal=search.journal)
    assert resumed.waiting == (second,)
    resumed.tell(second.number, 0.7)
    assert resumed.best == (second, 0.7)


def test_proposals_of_another_sampler_version_are_kept() -> None:
    search = OptunaSearch(SPACE, seed=0)
    run(search, 3)
    other = OptunaSearch(SPACE, seed=99, journal=search.journal)
    assert other.history == search.history
    run(other, 2)


def test_failed_trials_are_no_best() -> None:
    search = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)})
    search.tell(search.ask().number, None)
    assert search.best is None
    search.tell(search.ask().number, -3.0)
    assert search.best is not None
    assert search.best[1] == -3.0


def test_the_pruner_stops_what_lags() -> None:
    search = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, pruner="median")
    for _ in range(4):
        proposal = search.ask()
        assert not any(search.report(proposal.number, step, 0.8 + step / 100) for step in range(3))
        search.tell(proposal.number, 0.83)
    lagging = search.ask()
    assert search.report(lagging.number, 0, 0.1)
    resumed = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, pruner="median", journal=search.journal)
    assert resumed.waiting == (lagging,)
    assert resumed.report(lagging.number, 0, 0.9)  # the first answer stands


def test_a_method_without_a_space() -> None:
    search = OptunaSearch({})
    assert search.ask().values == {}


def test_telling_twice_or_unasked_is_a_mistake() -> None:
    search = OptunaSearch(SPACE)
    proposal = search.ask()
    search.tell(proposal.number, 1.0)
    with pytest.raises(ValueError, match="not waiting"):
        search.tell(proposal.number, 1.0)
    with pytest.raises(ValueError, match="not waiting"):
        search.tell(7, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OptunaSearch({"lr": LogUniform(0, 1)}),
        lambda: OptunaSearch({"lr": Uniform(2, 1)}),
        lambda: OptunaSearch({"lr": Choice()}),
        lambda: OptunaSearch({"lr": 3}),  # type: ignore[dict-item]
        lambda: OptunaSearch({}, sampler="tp"),  # type: ignore[arg-type]
        lambda: OptunaSearch({}, pruner="mean"),  # type: ignore[arg-type]
        lambda: OptunaSearch({"rank": Choice(1, 2)}, first={"rank": 3}),
        lambda: OptunaSearch({"rank": Choice(1, 2)}, journal=asked({"lr": LogUniform(1e-4, 1e-2)})),
    ],
)
def test_mistakes_are_named(make: Any) -> None:
    with pytest.raises(UserError):
        make()


def test_numbers_are_proposed_with_three_digits_inside_their_range() -> None:
    search = OptunaSearch({"lr": LogUniform(1.2345e-4, 1.2355e-4)}, sampler="random")
    values = [search.ask().values["lr"] for _ in range(5)]
    assert all(1.2345e-4 <= value <= 1.2355e-4 for value in values)
    wide = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, sampler="random")
    assert all(float(f"{value:.3g}") == value for value in (wide.ask().values["lr"] for _ in range(5)))
