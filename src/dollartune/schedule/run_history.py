"""The runs of one cell as trials, and what came of them: how the anytime scheduler looks at its state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.backbones.loading import read_config
from dollartune.methods.rules import Facts
from dollartune.planner.trial_cost import LEAST_STEPS
from dollartune.schedule.first_settings import Setting, variant_of
from dollartune.trials.best import index_of_best

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.schedule.anytime_state import AnytimeState, Run, RunOutcome
    from dollartune.schedule.cells import Cell
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.trial import Trial

CAUTION = 1.0
"""Standard errors that a setting's mean is lowered by before it is compared: of equally good ones that which is better known."""
PRIOR_DEGREES = 2
"""Degrees of freedom that the validation score's own error is worth beside the spread of seeds: as much as three runs say."""
ALIKE = 1.5
"""Runs whose steps are within such a factor are of one length."""
ROWS_OF_ALL = 1000
"""What `scales: [all]` counts as before a run has told how many rows there are: the study file's default."""


class RunHistory:
    """What was run in a cell, and which of it is best. Reads the scheduler's state and changes nothing."""

    def __init__(
        self, settings: StudySettings, cell: Cell, spaces: Mapping[str, SearchSpace], state: AnytimeState
    ) -> None:
        self.settings, self.cell, self.spaces, self.state = settings, cell, spaces, state
        self._trials: dict[Run, Trial] = {}

    # Which

    def waiting(self) -> list[Run]:
        """Decided, and without a record yet."""
        return [run for run in self.state.runs if self.name(run) not in self.state.outcomes]

    def trained(self) -> list[Run]:
        """Runs that settings are compared by."""
        return [run for run in self.state.runs if run.stage not in ("probe", "early", "average")]

    def incumbent(self) -> Run | None:
        """The best run so far, by its validation score; of equal ones the earlier, but of one probe that of more rows."""
        best = self.best(self.state.runs)
        if best is None or best.stage != "probe":
            return best
        alike = [
            run
            for run in self.state.runs
            if replace(run.setting, rows_share=1.0) == replace(best.setting, rows_share=1.0)
        ]
        return max(
            (run for run in alike if self.score(run) == self.score(best)), key=lambda run: self.outcome(run).rows_share
        )

    def best_trained(self) -> Run | None:
        """Of whole runs where there are any: a short one that scored higher was lucky, or will be trained whole yet."""
        whole = [run for runs in self.seed_groups().values() for run in runs if run.steps is not None]
        return self.best(whole or [run for run in self.state.runs if run.steps is not None])

    def best(self, runs: Sequence[Run]) -> Run | None:
        best = index_of_best([self.score(run) for run in runs])
        return None if best is None else runs[best]

    def choice(self) -> Run | None:
        """The run that is handed over: the incumbent, where no race gave settings several seeds.

        A score that several seeds agree on is worth more than a lucky one: settings are compared by the mean of their seeds less
        `CAUTION` standard errors of it, and of the best setting the best run is taken. Short runs of a rung chose who is trained
        whole; many of them have a high score by luck, so that they count only where nothing else came about.
        """
        groups = self.seed_groups() if self.state.rungs is not None else {}
        best = self.best([run for runs in groups.values() for run in runs])
        if best is None:
            return self.incumbent()
        means = {key: sum(self._scores(runs)) / len(runs) for key, runs in groups.items()}
        spread = sum((score - means[key]) ** 2 for key, runs in groups.items() for score in self._scores(runs))
        known = sum(len(runs) - 1 for runs in groups.values())
        # All runs are scored on the same rows, whose luck they share: about half of a score's variance is its own.
        own = 0.5 * self.outcome(best).standard_error ** 2
        noise = (PRIOR_DEGREES * own + spread) / (PRIOR_DEGREES + known)
        cautious = {key: means[key] - CAUTION * math.sqrt(noise / len(runs)) for key, runs in groups.items()}
        return self.best(groups[max(groups, key=lambda key: cautious[key])])

    def seed_groups(self) -> dict[tuple[Setting, int], list[Run]]:
        """Runs that differ in their seed alone, by setting and by about how many steps they have; without short ones."""
        groups: dict[tuple[Setting, int], list[Run]] = {}
        for run in self.state.runs:
            short = run.stage == "early" or (run.stage == "rung" and not self.whole_of_rungs(run))
            if self.score(run) is not None and run.stage != "average" and not short:
                length = round(math.log(max(1, self.outcome(run).steps), ALIKE))
                groups.setdefault((run.setting, length), []).append(run)
        return groups

    def whole_of_rungs(self, run: Run) -> bool:
        """Whether it is a run of a race's last rung."""
        return run.stage == "rung" and self.state.rungs is not None and run.steps == self.state.rungs.steps

    def _scores(self, runs: Sequence[Run]) -> list[float]:
        return [self.score(run) or 0.0 for run in runs]

    def averaged(self) -> Run | None:
        """The average, if it has come about."""
        return next((run for run in self.state.runs if run.averaged_with and self.score(run) is not None), None)

    # What came of them

    def outcome(self, run: Run) -> RunOutcome:
        return self.state.outcomes[self.name(run)]

    def score(self, run: Run) -> float | None:
        outcome = self.state.outcomes.get(self.name(run))
        return None if outcome is None else outcome.score

    def seen(self, method: str) -> RunOutcome | None:
        """The latest run of a method that had enough steps to tell what one costs."""
        for run in reversed(self.state.runs):
            outcome = self.state.outcomes.get(self.name(run))
            if run.setting.method == method and outcome is not None and outcome.steps >= LEAST_STEPS:
                return outcome
        return None

    def impossible(self) -> set[tuple[str, int]]:
        """Methods and choices of their variants that failed for what they take, whatever their rate."""
        outcomes = ((run.setting, self.state.outcomes.get(self.name(run))) for run in self.state.runs)
        return {(setting.method, setting.choice) for setting, one in outcomes if one is not None and one.impossible}

    def latest_trained(self) -> RunOutcome | None:
        """The latest run of whichever method that had steps, however few."""
        outcomes = [self.state.outcomes.get(self.name(run)) for run in reversed(self.state.runs)]
        return next((one for one in outcomes if one is not None and one.steps and one.training_seconds), None)

    def rows(self) -> int:
        """Training rows."""
        known = [outcome.rows for outcome in self.state.outcomes.values() if outcome.rows]
        return known[0] if known else self._rows_beforehand

    def parameters(self) -> int:
        """Of the backbone; 0 before any run has told."""
        return max((outcome.parameters for outcome in self.state.outcomes.values()), default=0)

    # As trials, and in words

    def seeds(self, method: str) -> tuple[int, ...]:
        return self.cell.seeds[method]

    def trial(self, run: Run) -> Trial:
        if run not in self._trials:
            trial = self.trial_of(run.setting, run.seed, run.steps)
            if run.averaged_with is not None:
                trial = replace(trial, averaged_with=run.averaged_with, more=", average of two")
            self._trials[run] = replace(trial, length=run.length)
        return self._trials[run]

    def trial_of(self, setting: Setting, seed: int, steps: int | None) -> Trial:
        variant = variant_of(setting, self.spaces[setting.method], self._facts)
        trial = self.cell.trial(variant, seed, 1.0)
        return trial if steps is None else replace(trial, steps=steps)

    def name(self, run: Run) -> str:
        return self.trial(run).identifier

    def label(self, run: Run) -> str:
        return self.trial(run).variant.label

    def words(self, setting: Setting) -> str:
        return variant_of(setting, self.spaces[setting.method], self._facts).label

    def score_words(self, run: Run) -> str:
        outcome = self.outcome(run)
        score = f"{numbers.score(outcome.score)} ± {numbers.score(outcome.standard_error)}"
        rows = f", {outcome.fewer_rows}," if outcome.fewer_rows else ""
        return f"{self.label(run)}{rows} with {score} on the validation rows"

    @cached_property
    def _facts(self) -> Facts:
        """What the rules for first settings read: the width of the backbone's states and the rows.

        Of the rows only what is known before anything has run, so that a setting is the same trial whenever it is asked for;
        all rows count as a thousand.
        """
        backbone = self.settings.backbones[next(iter(self.cell.templates.values())).backbone_index]
        config = read_config(backbone.name, backbone.trust_remote_code)
        width = getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0)
        return Facts(int(width or 0), self._rows_beforehand)

    @property
    def _rows_beforehand(self) -> int:
        return next(iter(self.cell.templates.values())).scale or ROWS_OF_ALL
