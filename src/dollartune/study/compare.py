"""The leaderboard: variants of one task and scale against each other, over seeds and test examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.evaluate.row_outcomes import measure_of
from dollartune.evaluate.seed_outcomes import seed_outcomes
from dollartune.methods.registry import methods
from dollartune.study.varying_settings import shown_labels
from dollartune.trials.record import ForgettingFacts, RequestFacts, Training

if TYPE_CHECKING:
    from dollartune.evaluate.row_outcomes import RowOutcomes
    from dollartune.stats import Comparison, Outcomes, Standing, Summary
    from dollartune.study.results import Results
    from dollartune.trials.record import DoneRecord, TrialRecord

Board = tuple[str, int | None]
"""(task, scale): what is compared with what."""


def boards(results: Results, as_stored: bool = False) -> dict[Board, dict[str, list[DoneRecord]]]:
    """(task, scale) -> variant label, as tables show it -> its records, by seed.

    Args:
        as_stored: labels as records have them: two studies may show the same variant differently.
    """
    by_board: dict[Board, dict[str, list[DoneRecord]]] = defaultdict(lambda: defaultdict(list))
    done = results.done()
    shown = {} if as_stored else shown_labels(done)
    # Seeds are paired by their order.
    for record in sorted(done, key=lambda r: r.trial.seed):
        trial = record.trial
        by_board[trial.task, trial.scale][shown.get(trial.label, trial.label)].append(record)
    return {
        board: dict(variants)
        # None (all rows) sorts after every number of rows.
        for board, variants in sorted(by_board.items(), key=lambda item: (item[0][0], item[0][1] or 10**12))
    }


def outcomes(results: Results, records: Sequence[TrialRecord]) -> Outcomes | None:
    """What one variant did on each test row, seed by seed; None where predictions are not stored or the measure has no
    form per row."""
    metric = measure_of(records[0].metric) if records else None
    seeds = [results.store.outcomes(record) for record in records] if metric is not None else []
    columns = [one for one in seeds if one is not None]
    # All seeds or none: a mean over some of them would be compared with means over all.
    if metric is None or len(columns) != len(records):
        return None
    return seed_outcomes(metric, _on_common_rows(records, columns))


def _on_common_rows(records: Sequence[TrialRecord], columns: list[RowOutcomes]) -> list[RowOutcomes]:
    """Seeds on the first rows that all of them were tested on, where the money of some paid for more than that of others."""
    of = {record.data.test for record in records}
    least = min(one.rows for one in columns)
    # of other test sets they are other rows, which says so where they are paired
    return [one.first(least) for one in columns] if len(of) == 1 and None not in of else columns


def scores_of_seeds(results: Results, records: Sequence[DoneRecord], standing: Standing | None) -> list[float]:
    """The score of each seed on the rows that its variant was compared on, whose mean the table shows."""
    scores = [record.test.score for record in records]
    if standing is None or all(record.test.examples == standing.score.examples for record in records):
        return scores
    outcome = results.outcomes(records)
    return scores if outcome is None else [float(one) for one in outcome.first(standing.score.examples).points()]


def why_not_compared(results: Results, records: Sequence[TrialRecord]) -> str | None:
    """Why a variant is in no comparison, as the end of a sentence; None where it is in one."""
    if results.outcomes(records) is not None:
        return None
    measure, seeds = records[0].metric, [results.store.outcomes(record) for record in records]
    missing = [record.trial.seed for record, one in zip(records, seeds, strict=True) if one is None]
    if missing and measure_of(measure) is not None:
        return f"the predictions of seed {numbers.listed([str(seed) for seed in missing])} are not stored"
    if measure_of(measure) is None or not all(one.rows for one in seeds if one is not None):
        return f"{measure} has no value per test row"
    return "its seeds were tested on different rows"


@dataclass(frozen=True)
class BoardOutcomes:
    """What the variants of one board did on the test rows that all of them saw."""

    methods: dict[str, Outcomes]
    baselines: dict[str, Outcomes]
    rows: int | None
    """Test rows of all, where the money cut some off for others."""
    seedless: tuple[str, ...]
    paired_seeds: bool
    left_out: dict[str, str]
    """Variants that cannot be compared -> why."""


def board_outcomes(results: Results) -> dict[Board, BoardOutcomes]:
    """Of each board some of whose variants have predictions."""
    by_board = {}
    for board, variants in boards(results).items():
        by_label = {label: results.outcomes(records) for label, records in variants.items()}
        usable = {label: outcome for label, outcome in by_label.items() if outcome is not None}
        if any(outcome.groups is None for outcome in usable.values()):  # records of before 0.2 name no groups
            usable = {label: replace(outcome, groups=None) for label, outcome in usable.items()}
        common = rows_of_all([record for label in usable for record in variants[label]])
        if common is not None:
            usable = {label: outcome.first(common) for label, outcome in usable.items()}
        left_out = {
            label: why for label, records in variants.items() if (why := why_not_compared(results, records)) is not None
        }
        baselines = {label: outcome for label, outcome in usable.items() if is_baseline(variants[label])}
        methods_alone = {label: outcome for label, outcome in usable.items() if label not in baselines}
        if not methods_alone:  # baselines are all there is so far
            methods_alone, baselines = baselines, {}
        if methods_alone:
            seedless = tuple(label for label in methods_alone if _seedless(variants[label]))
            paired = draws_rows(record for label in methods_alone for record in variants[label])
            by_board[board] = BoardOutcomes(methods_alone, baselines, common, seedless, paired, left_out)
    return by_board


def comparisons(results: Results) -> dict[Board, Comparison]:
    """The comparison on each board whose variants have predictions; `Results.comparisons` keeps it."""
    from dollartune.stats import compare

    by_board = {}
    for board, had in board_outcomes(results).items():
        compared = compare(had.methods, seedless=had.seedless, baselines=had.baselines, paired_seeds=had.paired_seeds)
        if had.rows is not None:
            said = f"Compared on the first {had.rows:,} test rows: the money did not pay for more of them with every trial."
            compared = replace(compared, warnings=(said, *compared.warnings))
        if had.left_out:
            reasons = [f"{label} is in no comparison: {why}." for label, why in had.left_out.items()]
            compared = replace(compared, warnings=(*reasons, *compared.warnings))
            if len(had.methods) == 1:  # which is then not the only one that was run
                compared = replace(compared, sentence=f"There is nothing that {compared.best} can be compared with.")
        by_board[board] = compared
    return by_board


def summary(results: Results) -> Summary | None:
    """Mean ranks and probabilities of improvement over all boards; None where fewer than two can be compared."""
    from dollartune.stats import TaskScores, summarize

    had = board_outcomes(results)
    # Of one task without methods the baselines are compared; they are no methods on the others.
    return summarize([TaskScores(board[0], one.methods, one.paired_seeds) for board, one in had.items()])


def rows_of_all(records: Sequence[DoneRecord]) -> int | None:
    """How many test rows all were tested on, where money cut some off at the end; None where nothing has to be left out.

    Such a record has seen the first of the test rows that its data had. Records whose data had other numbers of them are of
    different test sets, whose rows cannot be paired.
    """
    tested = {record.test.examples for record in records}
    had = {record.data.test for record in records}
    (of,) = had if len(had) == 1 else (None,)
    return min(tested) if of is not None and min(tested) < of else None


def draws_rows(records: Iterable[TrialRecord]) -> bool:
    """Whether each seed had training rows of its own, which the methods share: the luck of a draw then is in all of them."""
    return any(record.trial.draw is not None for record in records)


def is_baseline(records: Sequence[TrialRecord]) -> bool:
    """Whether these trials stand in the table for others to be held against."""
    return records[0].trial.baseline


def unsearched_rates(results: Results, board: Board) -> str | None:
    """A sentence where methods were compared at rates that nobody searched: that decides more than the method does.

    A rate was searched where a search tried at least two of them; one that the study states, or whose tries the money did not
    pay for, was not.
    """
    here = [record for record in results.everything if (record.trial.task, record.trial.scale) == board]
    shown = [record for record in results.done() if (record.trial.task, record.trial.scale) == board]
    # Solved methods and prompts have no rate, and need no search of one.
    compared = {record.trial.group: record for record in shown if _rates(record) and not record.trial.baseline}
    if len(compared) < 2:
        return None
    unsearched = [
        group for group, record in compared.items()
        if record.search is None or len({_rates(one) for one in here if one.trial.group == group}) < 2
    ]  # fmt: skip
    if all(record.search is None for record in compared.values()):
        return (
            "Learning rates were not searched: each method ran with the settings that the study lists (search: true)."
        )
    if not unsearched:
        return None
    rate, was, it = ("rates", "were", "them") if len(unsearched) > 1 else ("rate", "was", "it")
    return (
        f"The learning {rate} of {numbers.listed(unsearched)} {was} not searched: the study states {it}, or the money paid for "
        "no tries."
    )


def _rates(record: TrialRecord) -> tuple[float, ...]:
    """Learning rates of its methods; empty where nothing is trained by steps."""
    known = methods()
    named = [(known.get(str(method["method"])), method) for method in record.trial.methods]
    # Prompts have the field as well, and nothing that it could be a rate of.
    return tuple(method["lr"] for cls, method in named if "lr" in method and (cls is None or cls.capabilities.trains))


def _seedless(records: Sequence[TrialRecord]) -> bool:
    """Whether nothing in these trials is drawn: zero-shot prompting runs with one seed. A method that is not installed
    here counts as one that draws."""
    known = methods()
    named = [{str(method["method"]) for method in record.trial.methods} for record in records]
    return all(names and all(n in known and not known[n].capabilities.seeded for n in names) for names in named)


def standings(results: Results, compared: Mapping[Board, Comparison] | None = None) -> list[dict[str, Any]]:
    """Rows of the leaderboard, best first within each task and scale.

    Args:
        compared: instead of `results.comparisons`, where these raise and the rows are wanted without intervals.
    """
    rows, not_compared = [], set()
    # Where the boards cannot be compared, they cannot be summed up.
    over_all = _summary_columns(results.summary) if compared is None or compared else {}
    compared = results.comparisons if compared is None else compared
    for board, variants in boards(results).items():
        comparison = compared.get(board)
        by_label = (
            {one.method: one for one in (*comparison.standings, *comparison.baselines)}
            if comparison is not None
            else {}
        )
        for label, records in variants.items():
            standing, costs = by_label.get(label), [results.cost(record) for record in records]
            scores = scores_of_seeds(results, records, standing)
            rows.append(
                {
                    "task": board[0],
                    "scale": board[1],
                    "label": label,
                    "method": records[0].trial.group,
                    "metric": records[0].metric,
                    "score": standing.score.value if standing else fmean(r.test.score for r in records),
                    "low": standing.score.low if standing else None,
                    "high": standing.score.high if standing else None,
                    "difference": standing.difference if standing else None,
                    "difference_low": standing.low if standing else None,
                    "difference_high": standing.high if standing else None,
                    "probability_best": standing.probability if standing else None,
                    "may_be_best": standing.may_be_best if standing and not is_baseline(records) else None,
                    "baseline": is_baseline(records),
                    "seeds": len(records),
                    "sd": stdev(scores) if len(records) > 1 else None,
                    "trainable": records[0].parameters.trainable,
                    "seconds": fmean(cost.seconds for cost in costs),
                    "dollars": _mean([cost.known_dollars for cost in costs]),
                    # The most of any seed: a machine has to hold all of them.
                    "peak_bytes": max(r.memory.peak_bytes for r in records),
                    "peak_trials": max(r.memory.trials or 1 for r in records),
                    **_means(records),
                    **over_all.get(label, {}),
                }
            )
            if comparison is not None and standing is None:
                not_compared.add((*board, label))
    # All rows (no scale) come after any number of them, and what was compared with nothing after what was; of equal scores the
    # label decides, so that two reports are alike.
    return sorted(
        rows,
        key=lambda row: (
            row["task"], row["scale"] or 10**12, (row["task"], row["scale"], row["label"]) in not_compared,
            -row["score"], row["label"],
        ),
    )  # fmt: skip


def _summary_columns(over: Summary | None) -> dict[str, dict[str, float | str | None]]:
    """By label, the same on every board of the study."""
    if over is None:
        return {}
    return {
        one.method: {
            "mean_rank": one.mean_rank.value,
            "mean_rank_low": one.mean_rank.low,
            "mean_rank_high": one.mean_rank.high,
            "improved_by": over.leader if one.improvement else None,
            "improvement": one.improvement.value if one.improvement else None,
            "improvement_low": one.improvement.low if one.improvement else None,
            "improvement_high": one.improvement.high if one.improvement else None,
        }
        for one in over.methods
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    # One trial without a price leaves the sum unknown, not smaller.
    return fmean(known) if known and len(known) == len(values) else None


def _means(records: Sequence[TrialRecord]) -> dict[str, float | None]:
    """Convergence, forgetting and the cost of a request, means over the seeds that have them."""
    rows = [{**convergence_columns(record.training), **measure_columns(record)} for record in records]
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    means = {name: fmean(values) if values else None for name, values in columns.items()}
    return {**means, "dollars_per_1000_requests": request_dollars(records)}


def request_dollars(records: Sequence[TrialRecord]) -> float | None:
    """Of 1,000 requests in batches, mean over the seeds that measured one; None where none did, or one of these had no price."""
    columns = [measure_columns(record) for record in records]
    return _mean([one["dollars_per_1000_requests"] for one in columns if one["request_seconds"] is not None])


def convergence_columns(training: Training | None) -> dict[str, float | None]:
    """When the best validation loss was reached; None where nothing was trained."""
    if training is None:
        return {"epochs_to_best": None, "seconds_to_best": None}
    return {"epochs_to_best": training.best_epoch, "seconds_to_best": training.best_seconds}


def measure_columns(record: TrialRecord) -> dict[str, float | None]:
    """Forgetting (nats per token that the loss on general text rose) and the cost of a request; None where not measured."""
    general, request = record.forgetting or ForgettingFacts(), record.inference or RequestFacts()
    price, seconds = record.cost.price_per_hour, request.seconds
    return {
        "general_loss_before": general.before,
        "general_loss_after": general.after,
        "forgetting": general.rise,
        "request_seconds": seconds,
        "request_alone_seconds": request.alone_seconds,
        "request_tokens": request.prompt_tokens,
        "dollars_per_1000_requests": seconds * 1000 * price / 3600 if seconds is not None and price else None,
    }
