"""What schedulers keep on disk: typed, written before it is acted on, readable where 0.1 wrote it, ignored where nobody did."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from pretend import Pretended, learning_rate

from dollartune.budget.ledger import Ledger
from dollartune.schedule.racing import RaceState
from dollartune.schedule.scheduler import AccountPart, StateFile
from dollartune.schedule.search import SearchState
from dollartune.schedule.successive_halving import Arm, RaceJob
from dollartune.trials.store import Store

OLD = json.loads((Path(__file__).parent / "states_of_0_1.json").read_text())
"""Written by 0.1: a search per method and a race that had ended, and one of each that was killed after some trials."""


@pytest.fixture
def searched(study_of: Any) -> Any:
    evaluation = {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False}

    def settings(name: str, per: str) -> dict[str, Any]:
        budget = {"seconds": 100.0 if per == "method" else 150.0, "per": per}
        methods = ["zero_shot", "lora", "bitfit"]
        return study_of(
            name=name, methods=methods, seeds=3, search=True, keep_adapters="none", evaluation=evaluation, budget=budget
        )

    return settings


def with_states(run: Pretended, states: list[dict[str, Any]]) -> None:
    """Puts states of 0.1 where today's schedulers look for theirs, in the order of the study's methods."""
    for scheduler, state in zip(run.runner.scheduler.schedulers, states, strict=True):  # type: ignore[attr-defined]
        run.study.store.write_state(scheduler._file.name, state)


def test_a_finished_search_of_0_1_keeps_its_choice_and_searches_no_more(searched: Any) -> None:
    first = Pretended(searched("old", "method"), learning_rate)
    states = {len(state["finals"]["values"]): state for state in OLD["search"]["states"]}
    with_states(first, [states[0], states[2], states[1]])
    second = Pretended(searched("old", "method"), learning_rate, at=first.clock.now)
    assert second.labels("search") == []
    finals = [f"{t.variant.label} {t.seed} {t.fraction}" for t in second.runner.finals]
    assert finals == OLD["search"]["finals"]
    assert all(second.study.store.has(trial.identifier) for trial in second.runner.finals)
    assert all(second.seconds(method) <= 100 for method in ("lora", "bitfit"))


def test_a_finished_race_of_0_1_stays_as_it_ended(searched: Any) -> None:
    first = Pretended(searched("old", "study"), learning_rate)
    (scheduler,) = first.runner.scheduler.schedulers  # type: ignore[attr-defined]
    (state,) = OLD["race"]["states"]
    arms = {f"{method}#{number}": Arm(method, setting, number) for method, setting, number in state["arms"]}
    for row in state["log"]:  # trials' names contain the path of the rows, which is another here
        row[6] = scheduler._trial(RaceJob(arms[row[0]], row[1], row[2])).identifier
    with_states(first, [state])
    second = Pretended(searched("old", "study"), learning_rate, at=first.clock.now)
    assert second.engine.cohorts == []
    assert [f"{t.variant.label} {t.seed} {t.fraction}" for t in second.runner.finals] == OLD["race"]["finals"]


@pytest.mark.parametrize(("name", "per"), [("cut", "method"), ("cutrace", "study")])
def test_what_0_1_had_not_finished_is_begun_anew_with_its_records(searched: Any, name: str, per: str) -> None:
    killed = Pretended(searched("old", per), learning_rate, break_after=7)
    recorded = {record.id for record in killed.study.store.records()}
    for scheduler in killed.runner.scheduler.schedulers:  # type: ignore[attr-defined]
        killed.study.store.write_state(scheduler._file.name, OLD[name]["states"][0])
    second = Pretended(searched("old", per), learning_rate, at=killed.clock.now)
    assert second.labels("final")
    run_again = {
        trial.identifier for cohort in second.engine.cohorts for trial in cohort.trials if cohort.purpose == "search"
    }
    assert not run_again & recorded
    assert recorded
    limit = 100 if per == "method" else 150
    assert all(second.seconds(method) <= limit for method in ("lora", "bitfit", None) if per == "study" or method)


@pytest.mark.parametrize(
    "content", [{}, {"version": 2}, {"promise": {}, "over": True, "terms": 3}, {"version": 2, "budget": 1}]
)
def test_a_file_that_is_no_state_is_ignored(tmp_path: Path, content: dict[str, Any]) -> None:
    store = Store(tmp_path)
    for kind in (SearchState, RaceState):
        file = StateFile(store, Ledger(), [kind.__name__], kind, kind.from_version_1)  # type: ignore[attr-defined]
        store.write_state(file.name, content)
        assert file.read() is None
        written = kind(account=AccountPart(float("inf"), 0.0))
        file.write(written)
        assert file.read() == written


def test_a_race_is_written_and_read_as_it_is(searched: Any) -> None:
    run = Pretended(searched("race", "study"), learning_rate, break_after=12)
    (scheduler,) = run.runner.scheduler.schedulers  # type: ignore[attr-defined]
    assert scheduler.state.told
    assert scheduler._file.read() == scheduler.state


@pytest.mark.parametrize("per", ["method", "study"])
@pytest.mark.parametrize("number", [1, 4, 9, 10, 11, 12, 23, 30])
def test_a_kill_after_any_write_changes_nothing(
    searched: Any, unbroken: dict[str, Pretended], monkeypatch: pytest.MonkeyPatch, per: str, number: int
) -> None:
    """Records and states are written one after the other; a kill may come after each of them."""
    if per not in unbroken:
        unbroken[per] = Pretended(searched("whole", per), learning_rate)
    whole = unbroken[per]
    writes = itertools.count(1)

    def kills(name: str) -> Any:
        write = getattr(Store, name)

        def written(self: Store, *arguments: Any) -> None:
            write(self, *arguments)
            if next(writes) == number:
                raise KeyboardInterrupt

        return written

    with monkeypatch.context() as patched:
        for name in ("write", "write_state"):
            patched.setattr(Store, name, kills(name))
        killed = Pretended(searched("killed", per), learning_rate)
    assert killed.killed
    second = Pretended(searched("killed", per), learning_rate, at=killed.clock.now)
    for purpose in ("search", "final"):
        both = dict.fromkeys([*killed.labels(purpose), *second.labels(purpose)])
        assert list(both) == list(dict.fromkeys(whole.labels(purpose)))
    assert [t.identifier for t in second.runner.finals] == [t.identifier for t in whole.runner.finals]
