"""Hyperparameter search of one method by ask and tell, on Optuna's samplers and pruners.

    search = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, seed=0, first={"lr": 1e-3})
    proposal = search.ask()
    search.tell(proposal.number, score)

The whole state is the list of what was asked and told. A killed study is rebuilt by replaying it, and then proposes
what the unbroken one would have.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dollartune.errors import UserError, unknown_name
from dollartune.methods.space import Choice, IntRange, LogUniform, Space, Uniform

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "quasi")
PRUNERS = ("none", "median", "halving")


@dataclass(frozen=True)
class Proposal:
    """One setting to try."""

    number: int
    """To be given back to `tell`."""
    values: Mapping[str, Any]
    """Hyperparameters by name."""


def distribution(name: str, space: Space) -> optuna.distributions.BaseDistribution:
    """The same range in Optuna's terms. A `Choice` becomes the index of its option, so that options may be anything.

    Raises:
        UserError: an empty or reversed range.
    """
    from optuna import distributions

    if isinstance(space, Choice):
        if not space.options:
            raise UserError(f"the choice of {name!r} has no options.")
        return distributions.CategoricalDistribution(list(range(len(space.options))))
    if not isinstance(space, LogUniform | Uniform | IntRange):
        raise UserError(f"{name!r} must be LogUniform, Uniform, IntRange or Choice, got {type(space).__name__}.")
    log = isinstance(space, LogUniform) or (isinstance(space, IntRange) and space.log)
    if not space.low <= space.high or (log and space.low <= 0):
        raise UserError(f"the range of {name!r}, {space.low} to {space.high}, is reversed or has no logarithm.")
    if isinstance(space, IntRange):
        return distributions.IntDistribution(space.low, space.high, log=log)
    return distributions.FloatDistribution(space.low, space.high, log=log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs every new study; the console belongs to the progress view."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class OptunaSearch:
    """Proposes settings; learns from their scores (higher is better).

    Args:
        space: ranges by hyperparameter; an empty one proposes `{}` each time.
        seed: of the sampler.
        sampler: `tpe` (learns from the scores), `random`, or `quasi` (covers the space evenly, best for few trials).
        first: the setting or settings to begin with, such as the method's default; names outside `space` are left out.
        pruner: what `report` says about a run in progress: `none`, `median`, or `halving`.
        startup: settings drawn at random before `tpe` trusts its model.

    Raises:
        UserError: unknown sampler or pruner, or a range that is none.
    """

    def __init__(
        self,
        space: Mapping[str, Space],
        seed: int = 0,
        sampler: Literal["tpe", "random", "quasi"] = "tpe",
        *,
        first: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        pruner: Literal["none", "median", "halving"] = "none",
        startup: int = 5,
    ) -> None:
        if sampler not in SAMPLERS:
            raise unknown_name("sampler", sampler, SAMPLERS)
        if pruner not in PRUNERS:
            raise unknown_name("pruner", pruner, PRUNERS)
        self.space, self.seed, self.sampler, self.pruner, self.startup = dict(space), seed, sampler, pruner, startup
        begin = [first] if isinstance(first, Mapping) else first
        self.first = [{name: one[name] for name in one if name in self.space} for one in begin]
        self._distributions = {name: distribution(name, range_) for name, range_ in self.space.items()}
        self._events: list[list[Any]] = []
        self._scores: dict[int, float | None] = {}
        self._proposals: dict[int, Proposal] = {}
        self._trials: dict[int, optuna.Trial] = {}
        self._verdicts: dict[tuple[int, int], bool] = {}
        self._study = self._new_study()

    # -- asking and telling -------------------------------------------------------------------------------------

    def ask(self) -> Proposal:
        """The next setting. May be called again before the last one is told."""
        trial = self._study.ask(self._distributions)
        proposal = Proposal(trial.number, {name: self._value(name, trial.params[name]) for name in self.space})
        self._trials[trial.number], self._proposals[trial.number] = trial, proposal
        self._events.append(["ask", trial.params])
        return proposal

    def tell(self, number: int, score: float | None) -> None:
        """The score of a proposal; None when its trial failed, or was stopped by the pruner after what it reported.

        Raises:
            ValueError: a number that was never asked, or was told before.
        """
        if number not in self._trials or number in self._scores:
            raise ValueError(f"proposal {number} is not waiting for a score")
        self._tell(number, score)
        self._scores[number] = score
        self._events.append(["tell", number, score])

    def report(self, number: int, step: int, score: float) -> bool:
        """A score on the way, after `step` cohorts of training; True when the pruner would stop this trial.

        What was reported before an interruption may be reported again; the first answer stands.
        """
        if (number, step) not in self._verdicts:
            self._trials[number].report(score, step)
            self._events.append(["report", number, step, score])
            with _quiet():
                self._verdicts[number, step] = bool(self._trials[number].should_prune())
        return self._verdicts[number, step]

    @property
    def history(self) -> tuple[tuple[Proposal, float | None], ...]:
        """All told proposals with their scores, in the order they were told."""
        return tuple((self._proposals[number], score) for number, score in self._scores.items())

    @property
    def waiting(self) -> tuple[Proposal, ...]:
        """Asked, not yet told: what a resumed study has to run again."""
        return tuple(proposal for number, proposal in self._proposals.items() if number not in self._scores)

    @property
    def best(self) -> tuple[Proposal, float] | None:
        """The proposal with the highest score; the earlier one of equals."""
        scored = [(proposal, score) for proposal, score in self.history if score is not None]
        return max(scored, key=lambda pair: pair[1]) if scored else None

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> list[list[Any]]:
        """What was asked and told, ready for JSON."""
        return [list(event) for event in self._events]

    def replay(self, state: Sequence[Sequence[Any]]) -> None:
        """Brings a new search to the state of another with the same arguments.

        Where the sampler would propose something else now (another version of Optuna), the recorded proposals are kept
        and the search goes on from them.

        Raises:
            ValueError: this search is not new.
            UserError: the state belongs to another space.
        """
        if self._events:
            raise ValueError("only a new search can take over a state")
        for event in state:
            if event[0] == "ask" and set(event[1]) != set(self.space):
                raise UserError(
                    f"the recorded search is over {sorted(event[1])}, the method's is over {sorted(self.space)}.",
                    "The search space has changed since; run with --fresh.",
                )
        if not self._replay(state, forced=False):
            self._study, self._trials = self._new_study(), {}
            self._events, self._scores, self._proposals, self._verdicts = [], {}, {}, {}
            self._replay(state, forced=True)

    # -- inside -------------------------------------------------------------------------------------------------

    def _replay(self, state: Sequence[Sequence[Any]], *, forced: bool) -> bool:
        for event in state:
            if event[0] == "ask":
                if forced:
                    self._study.enqueue_trial(dict(event[1]))
                self.ask()
                if self._events[-1][1] != event[1]:
                    return False
            elif event[0] == "tell":
                self.tell(event[1], event[2])
            else:
                self.report(event[1], event[2], event[3])
        return True

    def _new_study(self) -> optuna.Study:
        import optuna

        with _quiet():
            study = optuna.create_study(direction="maximize", sampler=self._new_sampler(), pruner=self._new_pruner())
        for one in self.first:
            if one:
                study.enqueue_trial({name: self._index(name, value) for name, value in one.items()})
        return study

    def _new_sampler(self) -> optuna.samplers.BaseSampler:
        from optuna import samplers
        from optuna.exceptions import ExperimentalWarning

        if self.sampler == "random":
            return samplers.RandomSampler(seed=self.seed)
        if self.sampler == "tpe":
            return samplers.TPESampler(seed=self.seed, n_startup_trials=self.startup)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=ExperimentalWarning)
            return samplers.QMCSampler(
                seed=self.seed,
                scramble=True,
                independent_sampler=samplers.RandomSampler(seed=self.seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )

    def _new_pruner(self) -> optuna.pruners.BasePruner:
        from optuna import pruners

        if self.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=3)
        return pruners.SuccessiveHalvingPruner() if self.pruner == "halving" else pruners.NopPruner()

    def _tell(self, number: int, score: float | None) -> None:
        import optuna

        pruned = any(verdict for (trial, _), verdict in self._verdicts.items() if trial == number)
        states = optuna.trial.TrialState
        state = None if score is not None else states.PRUNED if pruned else states.FAIL
        with _quiet():
            self._study.tell(self._trials[number], score, state=state)

    def _value(self, name: str, drawn: Any) -> Any:
        space = self.space[name]
        if isinstance(space, Choice):
            return space.options[drawn]
        if isinstance(drawn, float):  # three digits, as people write them; a sampler's others tell nothing
            return min(max(float(f"{drawn:.3g}"), space.low), space.high)
        return drawn

    def _index(self, name: str, value: Any) -> Any:
        space = self.space[name]
        if not isinstance(space, Choice):
            return value
        if value not in space.options:
            raise UserError(f"{name}={value!r} is not among the options {space.options} of its search space.")
        return space.options.index(value)
