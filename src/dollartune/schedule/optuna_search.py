"""Hyperparameter search of one method by ask and tell, on Optuna's samplers and pruners.

    search = OptunaSearch({"lr": LogUniform(1e-4, 1e-2)}, seed=0, first={"lr": 1e-3})
    proposal = search.ask()
    search.tell(proposal.number, score)

The whole state is the journal of Optuna's own JournalStorage, a list of plain operations. A search with the same journal
proposes what the unbroken one would have: samplers draw anew from (seed, number of the proposal) each time, because the
state of a random generator is in no journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dollartune.errors import UserError, unknown_name
from dollartune.methods.space import Choice, IntRange, LogUniform, Space, Uniform

if TYPE_CHECKING:
    import optuna
    from optuna.storages.journal import BaseJournalBackend

SAMPLERS = ("tpe", "random", "quasi")
PRUNERS = ("none", "median", "halving")
TPE_STARTUP = 5
"""Settings drawn at random before TPE trusts its model; Optuna's 10 would be a whole search here."""
MEDIAN_STARTUP = 3
"""Search trials that are never pruned: a median of fewer says nothing."""
DIGITS = 3
"""Of a proposed number, as people write them; a sampler's other digits tell nothing."""
_STUDY = "search"


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
        # Optuna stores categories as JSON scalars; options may be lists or selections.
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


def _journal_backend(journal: list[dict[str, Any]]) -> BaseJournalBackend:
    """Keeps the journal in that list. Whoever owns the list writes it to the disk together with what was decided from it,
    in one file at one moment: a file of Optuna's own could end in the middle of a proposal."""
    from optuna.storages.journal import BaseJournalBackend

    class ListBackend(BaseJournalBackend):  # type: ignore[misc]  # optuna's classes have no types here
        def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
            return journal[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            # A copy, as JSON gives it back: Optuna changes its dictionaries later, and tuples must be lists now as they
            # will be when read.
            journal.extend(json.loads(json.dumps(logs)))

    return ListBackend()


def load_libraries() -> None:
    """Imports what asking needs. It takes a moment, which should not come when money is divided."""
    # Optuna imports it inside the first quasi-random draw.
    import scipy.stats.qmc  # noqa: F401


class OptunaSearch:
    """Proposes settings; learns from their scores (higher is better).

    Args:
        space: ranges by hyperparameter; an empty one proposes `{}` each time.
        seed: of the sampler.
        sampler: `tpe` (learns from the scores), `random`, or `quasi` (covers the space evenly, best for few trials).
        first: the setting or settings to begin with, such as the method's default; names outside `space` are left out.
        pruner: what `report` says about a run in progress: `none`, `median`, or `halving`.
        journal: of a search with the same arguments, which goes on; see `journal`.

    Raises:
        UserError: unknown sampler or pruner, a range that is none, or a journal of another space.
    """

    def __init__(
        self,
        space: Mapping[str, Space],
        seed: int = 0,
        sampler: Literal["tpe", "random", "quasi"] = "tpe",
        *,
        first: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        pruner: Literal["none", "median", "halving"] = "none",
        journal: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if sampler not in SAMPLERS:
            raise unknown_name("sampler", sampler, SAMPLERS)
        if pruner not in PRUNERS:
            raise unknown_name("pruner", pruner, PRUNERS)
        self.space, self.seed, self.sampler, self.pruner = dict(space), seed, sampler, pruner
        begin = [first] if isinstance(first, Mapping) else first
        self.first = [{name: one[name] for name in one if name in self.space} for one in begin]
        self._distributions = {name: distribution(name, range_) for name, range_ in self.space.items()}
        self._journal: list[dict[str, Any]] = [dict(operation) for operation in journal]
        self._open()

    # -- asking and telling -------------------------------------------------------------------------------------

    def ask(self) -> Proposal:
        """The next setting. May be called again before the last one is told."""
        with _quiet():
            # set anew for each proposal, so that it depends on the journal alone and not on how often this process drew
            self._study.sampler = self._new_sampler(number=len(self._storage.get_all_trials(self._id, deepcopy=False)))
            trial = self._study.ask(self._distributions)
        return self._proposal(trial.number, trial.params)

    def tell(self, number: int, score: float | None, pruned: bool = False) -> None:
        """The score of a proposal; None when its trial failed, or was stopped by the pruner after what it reported.

        Raises:
            ValueError: a number that was never asked, or was told before.
        """
        from optuna.trial import TrialState

        if number not in {proposal.number for proposal in self.waiting}:
            raise ValueError(f"proposal {number} is not waiting for a score")
        # PRUNED keeps what was reported, which TPE and the pruners learn from; FAIL is forgotten.
        state = None if score is not None else TrialState.PRUNED if pruned else TrialState.FAIL
        with _quiet():
            self._study.tell(number, score, state=state)

    def report(self, number: int, step: int, score: float) -> bool:
        """A score on the way, after `step` steps of training; True when the pruner would stop this trial.

        What was reported before an interruption may be reported again: the first score stands.
        """
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        # A resumed trial repeats its steps; Optuna would overwrite the value, and with it what later trials were
        # compared with.
        if step not in self._storage.get_trial(trial_id).intermediate_values:
            self._storage.set_trial_intermediate_value(trial_id, step, score)
        with _quiet():
            # The pruner itself: Optuna's `Trial.should_prune` belongs to the process that asked, which may be another.
            return bool(self._study.pruner.prune(self._study, self._storage.get_trial(trial_id)))

    @property
    def history(self) -> tuple[tuple[Proposal, float | None], ...]:
        """All told proposals with their scores, in the order they were asked."""
        return tuple(
            (self._proposal(trial.number, trial.params), trial.value if trial.state.name == "COMPLETE" else None)
            for trial in self._trials()
            if trial.state.is_finished()
        )

    @property
    def waiting(self) -> tuple[Proposal, ...]:
        """Asked, not yet told: what a resumed study has to run again."""
        return tuple(self._proposal(t.number, t.params) for t in self._trials() if t.state.name == "RUNNING")

    @property
    def best(self) -> tuple[Proposal, float] | None:
        """The proposal with the highest score; the earlier one of equals."""
        scored = [(proposal, score) for proposal, score in self.history if score is not None]
        return max(scored, key=lambda pair: pair[1]) if scored else None

    @property
    def journal(self) -> list[dict[str, Any]]:
        """Every operation on the storage so far, ready for JSON."""
        return list(self._journal)

    # -- inside -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        import optuna
        from optuna.storages.journal import JournalStorage

        with _quiet():
            self._storage = JournalStorage(_journal_backend(self._journal))
            begun = bool(self._journal)
            self._study = optuna.create_study(
                storage=self._storage, study_name=_STUDY, direction="maximize", load_if_exists=begun,
                sampler=self._new_sampler(0), pruner=self._new_pruner(),
            )  # fmt: skip
            self._id = self._storage.get_study_id_from_name(_STUDY)
            if not begun:
                for one in self.first:
                    if one:
                        self._study.enqueue_trial({name: self._index(name, value) for name, value in one.items()})
        for trial in self._trials():
            # Enqueued settings have no parameters until they are asked.
            if trial.state.name != "WAITING" and set(trial.params) != set(self.space):
                raise UserError(
                    f"the recorded search is over {sorted(trial.params)}, the method's is over {sorted(self.space)}.",
                    "The search space has changed since; run with --fresh.",
                )

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        trials: list[optuna.trial.FrozenTrial] = self._storage.get_all_trials(self._id, deepcopy=False)
        return trials

    def _proposal(self, number: int, params: Mapping[str, Any]) -> Proposal:
        return Proposal(number, {name: self._value(name, params[name]) for name in self.space})

    def _new_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna import samplers
        from optuna.exceptions import ExperimentalWarning

        # Neighbouring seeds of a generator give correlated first draws; their digests do not.
        digest = hashlib.sha256(json.dumps([self.seed, number]).encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.sampler == "tpe":
            # Univariate, Optuna's default: spaces here have two to four dimensions and a dozen trials, too few for
            # joint densities.
            return samplers.TPESampler(seed=seed, n_startup_trials=TPE_STARTUP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=ExperimentalWarning)
            # one sequence for all proposals: its scramble depends on the search's seed, its place is in the journal
            return samplers.QMCSampler(
                seed=self.seed,
                scramble=True,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )

    def _new_pruner(self) -> optuna.pruners.BasePruner:
        from optuna import pruners

        if self.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=MEDIAN_STARTUP)
        return pruners.SuccessiveHalvingPruner() if self.pruner == "halving" else pruners.NopPruner()

    def _value(self, name: str, drawn: Any) -> Any:
        space = self.space[name]
        if isinstance(space, Choice):
            return space.options[drawn]
        if isinstance(drawn, float):
            # Rounding may step over an end of the range.
            return min(max(float(f"{drawn:.{DIGITS}g}"), space.low), space.high)
        return drawn

    def _index(self, name: str, value: Any) -> Any:
        space = self.space[name]
        if not isinstance(space, Choice):
            return value
        if value not in space.options:
            raise UserError(f"{name}={value!r} is not among the options {space.options} of its search space.")
        return space.options.index(value)
