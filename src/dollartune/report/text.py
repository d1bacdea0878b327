"""Sentences for someone who has not met intervals, seeds or adapters before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.report.baselines import nobody_above_chance, of_role

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry, Contents

METRICS = {
    "accuracy": "share of test rows answered correctly",
    "balanced_accuracy": "share answered correctly, taken for each label and then averaged, so that rare labels count as much",
    "f1": "F1, the balance of finding a label's rows and not claiming others, averaged over the labels",
    "matthews": "Matthews correlation: 1 is perfect, 0 is no better than guessing, also where labels are unevenly spread",
    "auc": "area under the ROC curve: the chance that a row of the class is ranked above one of another class",
    "rouge1": "ROUGE-1, the overlap of words with the reference text",
    "rouge2": "ROUGE-2, the overlap of word pairs with the reference text",
    "rougeL": "ROUGE-L, the longest run of words in the same order as in the reference text",
    "bleu": "BLEU, the overlap of one to four words in a row with the reference text",
    "chrf": "chrF, the overlap of letters in a row with the reference text",
    "exact_match": "share of texts that equal the reference",
}

GLOSSARY = (
    (
        "Backbone",
        "The pretrained model that everything starts from. Its weights stay as they are unless a method changes some of them.",
    ),
    (
        "Method",
        "A way to make the backbone do the task: tuning all weights (full), tuning a small addition (LoRA, BitFit ...), "
        "or only asking it well (zero-shot, few-shot).",
    ),
    ("Adapter", "The small file that tuning leaves behind: what must be kept beside the backbone to use the result."),
    (
        "Seed",
        "The number that decides what is left to chance, such as the order of the rows. "
        "Another seed gives a slightly different result, so each method runs with several. Where the data hold more rows than "
        "the scale, each seed also trains on rows of its own.",
    ),
    (
        "95 % interval",
        "The range that holds the true value in 95 of 100 such studies: what other test rows and other seeds would have given.",
    ),
    (
        "Not distinguishable",
        "The difference is small enough to be luck. With more test rows or seeds it might show; "
        "as it stands, price and size may decide.",
    ),
    ("Scale", "How many rows a method was tuned on."),
    (
        "Validation loss",
        "How surprised the model is by the right answers of rows that it was not tuned on; lower is better. "
        "Tuning stops when it no longer falls; the checkpoint with the lowest loss is kept.",
    ),
    (
        "Forgetting",
        "By how much the tuned model is more surprised by general text than the backbone was: what tuning for one task "
        "costs elsewhere.",
    ),
    ("Request", "One question to the tuned model. Tuning is paid once, requests are paid every time."),
    ("Ablation", "The same method with a part of it left out, to see what the part is worth."),
    ("Trained parameters", "How many numbers the method changed or added."),
    ("Dollars", "Booked seconds times the price of the machine: loading, tuning, evaluation and export."),
)


def metric_meaning(name: str) -> str:
    """What a score says, in plain words."""
    if name.startswith("f1:"):
        return f"F1 for the label {name[3:]}: the balance of finding its rows and not claiming others"
    if name.startswith("recall:"):
        return f"recall of the label {name[7:]}: how many of its rows are found"
    for key, meaning in METRICS.items():
        if name.lower().replace("-", "").replace("_", "") == key.lower().replace("_", ""):
            return meaning
    return name.replace("_", " ")


def reached(entry: BoardEntry, metric: str) -> str:
    """`reached accuracy 84.2 % (95 % interval: 80.1 to 87.0 %; 300 test rows, 3 seeds)`; other measures in their own unit."""
    seeds = len(entry.records)
    on = f"{entry.test_rows:,} test rows, {seeds} seed{'s' if seeds > 1 else ''}"
    if metric == "accuracy":
        interval = ""
        if entry.low is not None and entry.high is not None:
            interval = f"95 % interval: {numbers.points(entry.low)} to {numbers.points(entry.high)} %; "
        return f"reached accuracy {numbers.points(entry.score)} % ({interval}{on})"
    interval = f"95 % interval: {numbers.span(entry.low, entry.high)}; " if entry.low is not None else ""
    return f"reached {numbers.score(entry.score)} in {metric} ({interval}{on})"


def headline(board: Board) -> str:
    """Which method is best, and how sure that is, in one sentence; a second one on what could not be compared."""
    beside = [entry.label for entry in board.entries if entry not in board.compared]
    if board.comparison is None or not beside:
        return _headline(board)
    plural = "are" if len(beside) > 1 else "is"
    return f"{_headline(board)} {numbers.listed(beside)} {plural} in no comparison."


def _headline(board: Board) -> str:
    best, metric = board.best, board.metric
    # Before all else: a winner among methods that learned nothing is no finding.
    if nobody_above_chance(board):
        majority = of_role(board, "majority")
        share = numbers.score(majority.score) if majority is not None else ""
        return f"No finding: no method was shown to be above the majority class ({share}). {_highest(board)}."
    if len(board.entries) == 1:
        return f"{best.label} {reached(best, metric)}; no other method has a result to compare it with."
    first = board.highest
    others = [entry.label for entry in board.candidates if entry not in first]
    if board.comparison is None:
        return f"{_highest(board)}. How sure that is cannot be said without a value for each test row."
    if len(board.compared) == 1:
        return f"{best.label} {reached(best, metric)}; nothing else can be compared with it."
    if board.comparison.conditional:
        return _on_one_seed(board, board.comparison.one_seed, others)
    if len(board.candidates) == 1:
        return f"{best.label} is best: it {reached(best, metric)}, more than luck explains."
    if len(board.candidates) == len(board.compared):
        return f"No winner yet: {_highest(board)}{f', but all {len(board.compared)} may be equally good' if others else ''}."
    if not others:
        return f"{_highest(board)}; each of the others scored less by more than luck explains."
    # More names than three are a list, which the table gives better.
    named = numbers.listed(others) if len(others) <= 3 else f"{len(others)} others"
    return f"{_highest(board)}, but {named} may be as good."


def _highest(board: Board) -> str:
    """Which method scored highest and how high, without a word on how sure that is; equal ones are called so."""
    names = numbers.listed([entry.label for entry in board.highest])
    if len(board.highest) > 1:
        return f"{names} tie for the highest score: {board.best.label} {reached(board.best, board.metric)}"
    return f"{names} scored highest and {reached(board.best, board.metric)}"


def _on_one_seed(board: Board, one_seed: str, others: list[str]) -> str:
    """Where a method that another seed would change ran with one: nothing is said over seeds."""
    score = f"{one_seed} {_highest(board)}"
    if len(board.candidates) == 1:
        return (
            f"{score}. The lead is more than luck with the test rows explains; with other seeds the order of the "
            f"{len(board.compared)} methods may be another, so none is called the best."
        )
    if len(board.candidates) == len(board.compared):
        all_of_them = f"the test rows do not tell the {len(board.compared)} methods apart"
        return f"No winner: {score}{', but' if others else ':'} {all_of_them}."
    if not others:
        return f"{score}; other seeds may rank them otherwise."
    named = numbers.listed(others) if len(others) <= 3 else f"{len(others)} others"
    them = "it" if len(board.highest) == 1 else "them"
    return f"{score}, but the test rows do not tell {them} from {named}, and other seeds may rank them otherwise."


def best_as_headline(board: Board, entry: BoardEntry) -> str | None:
    """Why the adapter of `entry` is handed over where the headline names another method; None where it names this one."""
    best = board.best
    if entry.label == best.label:
        return None
    if entry in board.highest:
        return f"It was chosen by its validation score: on the test rows {best.label} scored the same."
    chosen = f"It was chosen by its validation score; {best.label} scored {numbers.score(best.score)} on the test rows against "
    chosen += f"{numbers.score(entry.score)}"
    if entry.standing is None or best.standing is None:
        return f"{chosen}, and the two are in no comparison."
    if entry.may_be_best:
        return f"{chosen}, which does not tell the two apart, and test rows choose nothing."
    luck = "luck with the test rows" if board.comparison is not None and board.comparison.conditional else "luck"
    return f"{chosen}, more than {luck} explains: for {best.label}'s adapter run the study with keep_adapters: all."


def probability(value: float | None) -> str:
    """Of being the best: `62 %`; none where it is below one in a hundred or above 99."""
    if value is None:
        return numbers.NONE
    return "< 1 %" if value < 0.01 else "> 99 %" if value > 0.99 else numbers.percent(round(value, 2))


def for_the_money(board: Board) -> str | None:
    """Which method to take when money counts; None where there is nothing to weigh."""
    if len(board.entries) < 2:
        return None
    best, cheapest = board.best, board.cheapest
    what, currency = ("dollars", "money") if board.priced else ("time", "time")
    if cheapest is None:
        return None
    if cheapest is best:
        if all(board.cost(best) <= board.cost(entry) for entry in board.entries):
            return f"It also costs least in {what}: {board.cost_text(best)} a run."
        # What is in no comparison may be cheaper, and nothing is known of whether it is worse.
        cheaper = [entry for entry in board.compared if board.cost(entry) < board.cost(best)]
        if len(board.candidates) > 1 or not cheaper:
            which = ", the cheapest of those that may be the best," if len(board.candidates) > 1 else ""
            return f"For the {currency}: {best.label}{which} at {board.cost_text(best)} a run."
        least = min(cheaper, key=board.cost)
        return (
            f"For the {currency}: {best.label} at {board.cost_text(best)} a run. Cheaper methods, such as {least.label} at "
            f"{board.cost_text(least)}, scored less by more than luck with the test rows explains."
        )
    scores = numbers.score(cheapest.score), numbers.score(best.score)
    luck = (
        f"Both score {scores[0]}."
        if cheapest in board.highest
        else f"Both score {scores[0]} as rounded here, {best.label} a little more."
        if scores[0] == scores[1]
        else f"Its score of {scores[0]} against {scores[1]} is a difference that luck can explain."
    )
    return (
        f"For the {currency}: {cheapest.label}, the cheapest of those that may be the best, at {board.cost_text(cheapest)} a run "
        f"against {board.cost_text(best)} for {best.label}. {luck}"
    )


def cut_short(board: Board) -> str | None:
    """Which methods the budget stopped before they had learned all they could; None if none."""
    names = []
    for entry in board.entries:
        stopped = [record for record in entry.records if record.stopped == "budget"]
        fewer = dict.fromkeys(record.fewer_rows for record in stopped if record.fewer_rows)
        if stopped:
            names.append(f"{entry.label} ({', '.join([plural(len(stopped), 'seed'), *fewer])})")
    return (
        f"The budget ended the tuning of {numbers.listed(names)}: with more they might score higher." if names else None
    )


def summary(contents: Contents) -> str:
    """What was run, in one sentence."""
    methods = len({entry.label for board in contents.boards for entry in board.entries})
    done = sum(len(entry.records) for board in contents.boards for entry in board.entries)
    tasks = contents.tasks
    what = numbers.listed(list(tasks)) if tasks else "no task"
    backbone = backbone_name(contents)
    sentence = f"{plural(methods, 'method')} on {what}" + (f", starting from {backbone}" if backbone else "")
    spent = ""
    if contents.ledger is not None:
        spent = f", {numbers.seconds(contents.ledger.seconds)}"
        if contents.ledger.dollars:
            spent += f" and {numbers.dollars(contents.ledger.dollars)}"
        spent += " in all"
    failed = f", {len(contents.failures)} failed" if contents.failures else ""
    return f"{sentence}: {plural(done, 'trial')} finished{failed}{spent}."


def backbone_name(contents: Contents) -> str:
    """The backbone's short name; several, if records of several lie in the folder."""
    names = dict.fromkeys(numbers.name_of(record.trial.backbone) for record in contents.results.records)
    return numbers.listed(list(names))


def rows_in_words(rows: tuple[int, int]) -> str:
    """`400 test rows`; `400 to 1,000 test rows` where methods were scored on different numbers of them."""
    least, most = rows
    if not most:  # not recorded
        return "the test rows"
    return f"{most:,} test rows" if least == most else f"{least:,} to {most:,} test rows"


def plural(number: int, word: str) -> str:
    """1 trial, 2 trials."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
