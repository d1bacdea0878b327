"""Results of a study as frames: one row per trial, a leaderboard with intervals, predictions per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError
from dollartune.trials.record import Cost, DoneRecord, FailedRecord, TrialRecord, whole_cost

if TYPE_CHECKING:
    import pandas

    from dollartune.evaluate.evaluation import StoredPrediction
    from dollartune.stats import Comparison, Outcomes, Summary
    from dollartune.study.compare import Board
    from dollartune.trials.store import Store


class Results:
    """What a study has found.

    Args:
        store: its folder.
        trials: restrict to these identifiers; by default all that have a record.
    """

    def __init__(self, store: Store, trials: Sequence[str] | None = None) -> None:
        self.store = store
        wanted = set(trials) if trials is not None else None
        self.everything = list(store.records())
        """All records of the folder, those of an earlier version of the study and a search's tries among them."""
        self.records = [r for r in self.everything if wanted is None or r.id in wanted]
        self._outcomes: dict[tuple[str, ...], Outcomes | None] = {}

    def done(self) -> list[DoneRecord]:
        """Records of trials that ended with a score."""
        return [record for record in self.records if isinstance(record, DoneRecord)]

    def failed(self) -> list[FailedRecord]:
        """Records of trials that failed."""
        return [record for record in self.records if isinstance(record, FailedRecord)]

    def frame(self) -> pandas.DataFrame:
        """One row per trial: what it was, its scores, its cost, scores per parameter, second and dollar, convergence,
        forgetting and the cost of a request."""
        import pandas

        from dollartune.study.varying_settings import shown_labels, varying_settings

        settings, shown = varying_settings(self.done()), shown_labels(self.done())
        rows = []
        for record in self.records:
            row, label = trial_row(record, self.cost(record)), record.trial.label
            rows.append({**row, "label": shown.get(label, label), **_beside(settings.get(label, {}), row)})
        return pandas.DataFrame(rows)

    @cached_property
    def _by_name(self) -> dict[str, TrialRecord]:
        return {record.id: record for record in self.everything}

    def cost(self, record: TrialRecord) -> Cost:
        """What a trial's adapter has cost, with the trials that it went on from or was averaged with."""
        return whole_cost(record, self._by_name)

    @cached_property
    def comparisons(self) -> dict[Board, Comparison]:
        """By (task, scale): which of its variants may be the best. Computed once: leaderboard, sentences and report share
        it.

        Raises:
            UserError: records in one folder cannot be compared, such as those of two differently cut test sets.
        """
        from dollartune.study.compare import comparisons

        return comparisons(self)

    @cached_property
    def summary(self) -> Summary | None:
        """Mean rank and probability of improvement over all tasks and scales; None where there is one, or one method."""
        from dollartune.study.compare import summary

        return summary(self)

    def outcomes(self, records: Sequence[TrialRecord]) -> Outcomes | None:
        """What one variant did on each test row, seed by seed; None where predictions are not stored. Read once."""
        from dollartune.study.compare import outcomes

        key = tuple(record.id for record in records)
        if key not in self._outcomes:
            self._outcomes[key] = outcomes(self, records)
        return self._outcomes[key]

    def leaderboard(self) -> pandas.DataFrame:
        """One row per task, scale and method variant, best first: mean score with its interval, paired difference to
        the best, whether it may be the best, seconds, dollars, parameters; where there are several tasks or scales, the
        method's mean rank over all of them and the probability that the leading one improves on it."""
        import pandas

        from dollartune.study.compare import standings
        from dollartune.study.varying_settings import shown_labels, varying_settings

        shown = shown_labels(self.done())
        settings = {shown[label]: values for label, values in varying_settings(self.done()).items()}
        rows = [{**row, **_beside(settings.get(row["label"], {}), row)} for row in standings(self)]
        return pandas.DataFrame(
            rows, columns=None if rows else list(SHOWN)
        )  # a program asks for a column before there is a row

    def predictions(self, trial: str) -> list[StoredPrediction]:
        """Predictions of one trial."""
        return self.store.predictions(trial)

    def best(self) -> DoneRecord | None:
        """Of the adapters that were kept, the one to use: of a method that may be the best on its task, by validation score.

        A method that the comparison rules out is handed over only where no other adapter is there.
        """
        from dollartune.study.varying_settings import shown_labels

        # By the folder and not by the record: adapters are dropped after their records were written.
        kept = [r for r in self.done() if (self.store.folder(r.id) / "adapter").is_dir()]
        try:
            compared = self.comparisons
        except UserError:  # no comparison is no reason to hand over nothing
            compared = {}
        # The comparison has the labels that tables show, which tell settings apart that two variants of a method share.
        shown = shown_labels(self.done())

        def rank(record: DoneRecord) -> tuple[bool, float]:
            board = compared.get((record.trial.task, record.trial.scale))
            left_out = (
                board is not None and shown.get(record.trial.label, record.trial.label) not in board.indistinguishable
            )
            # Among these by validation rows: the best of many by test rows would be chosen by luck.
            score = record.validation_score
            return not left_out, float("-inf") if score is None else score

        return max(kept, key=rank, default=None)

    def plot(self, kind: str = "pareto", **options: Any) -> Any:
        """A chart that shows inline in a notebook, without a network; `.save("x.pdf")` writes it.

        Args:
            kind: pareto, parameters, learning_curves, scales, convergence, requests, forgetting, breakdown, ablations.
            options: `task=` and `scale=`, where a study has several.

        Raises:
            UserError: there is no such chart, nothing was measured for it, or the extra `report` is not installed.
        """
        # The reports stand above studies and know them; this is the one name of theirs that a study knows.
        return import_module(DRAWN_BY).plot(self, kind, **options)

    def __repr__(self) -> str:
        best = self.best()
        kept = f", best adapter by validation: {best.trial.label}" if best is not None else ""
        return f"Results({self.store.root}: {len(self.done())} trials done, {len(self.failed())} failed{kept})"

    def _repr_html_(self) -> str:
        """Of a notebook: what one looks at first. `leaderboard()` has all columns."""
        frame = self.leaderboard()
        if frame.empty:
            return f"<p>{self!r}</p>"
        shown = [name for name in SHOWN if name in frame and frame[name].notna().any()]
        table = str(frame[shown].to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
        from dollartune.study.compare import boards, unsearched_rates

        said = dict.fromkeys(sentence for board in boards(self) if (sentence := unsearched_rates(self, board)))
        return "".join([*(f"<p>{sentence}</p>" for sentence in said), table])


DRAWN_BY = "dollartune.report.paper"
SHOWN = (
    "task",
    "scale",
    "label",
    "score",
    "low",
    "high",
    "may_be_best",
    "seeds",
    "sd",
    "trainable",
    "seconds",
    "dollars",
)
"""Columns of the leaderboard that a notebook shows."""


def _beside(settings: Mapping[str, object], row: Mapping[str, object]) -> dict[str, object]:
    """Settings as further columns; one that is called as a column of ours gets `setting_` before its name."""
    return {f"setting_{key}" if key in row else key: value for key, value in settings.items()}


def trial_row(record: TrialRecord, whole: Cost | None = None) -> dict[str, object]:
    """A record as a flat row: its seconds and dollars are its own, its score is held against all that it took.

    Args:
        whole: with what it goes on from (`Results.cost`); by default there is nothing.
    """
    from dollartune.study.compare import convergence_columns, measure_columns

    trial, cost = record.trial, record.cost
    row = {
        "trial": record.id,
        "status": record.status,
        "task": trial.task,
        "scale": trial.scale,
        "method": trial.group,
        "label": trial.label,
        "seed": trial.seed,
        "seconds": cost.seconds,
        "dollars": cost.known_dollars,
    }
    if not isinstance(record, DoneRecord):
        return {**row, "error": record.error.kind if record.error is not None else None}
    whole = cost if whole is None else whole
    test, training, trainable = record.test, record.training, record.parameters.trainable
    return {
        **row,
        "metric": record.metric,
        "score": test.score,
        "validation_score": record.validation_score,
        "trainable": trainable,
        "total": record.parameters.total,
        "peak_bytes": record.memory.peak_bytes,
        "peak_trials": record.memory.trials,
        "adapter_bytes": record.adapter.bytes if record.adapter is not None else None,
        **convergence_columns(training),
        "validation_loss": training.best_validation_loss if training is not None else None,
        "score_per_million_parameters": test.score / trainable * 1e6 if trainable else None,
        "score_per_second": test.score / whole.seconds if whole.seconds else None,
        "score_per_dollar": test.score / whole.dollars if whole.dollars else None,
        "prompt_tokens": test.prompt_tokens,
        **measure_columns(record),
        **test.scores,
        **{f"generated_{name}": value for name, value in test.generation.scores.items()},
    }
