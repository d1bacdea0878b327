r"""Results as a paper needs them: a table in LaTeX, the sentences of its statistics section, a citation, figures as files.

\begin{table} ... \toprule Method & rank & Accuracy ... \end{table}      booktabs; mean and standard deviation over seeds
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any, Literal

from dollartune import format as numbers
from dollartune.errors import UserError, unknown_name
from dollartune.report import notebook
from dollartune.report.baselines import called, nobody_above_chance
from dollartune.report.contents import collect
from dollartune.report.text import rows_in_words
from dollartune.study.varying_settings import shown_labels, varying_settings

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry, Contents
    from dollartune.study.results import Results

# LaTeX's ten special characters and the two that the default font prints as others.
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
FigureFormat = Literal["svg", "pdf", "png"]
FIGURES: Mapping[str, Callable[[Results], Any]] = {
    "pareto": notebook.pareto,
    "parameters": notebook.parameters,
    "money": notebook.money,
    "learning_curves": notebook.learning_curves,
    "scales": notebook.scales,
    "convergence": notebook.convergence,
    "requests": notebook.requests,
    "forgetting": notebook.forgetting,
    "breakdown": notebook.breakdown,
    "ablations": notebook.ablations,
}


def latex(text: str) -> str:
    """Text with LaTeX's special letters written out."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def latex_tables(results: Results) -> str:
    """A table for each task and number of training rows, to be put into a paper as it stands; it needs the package booktabs."""
    contents = collect(results)
    return "\n\n".join(_table(contents, board) for board in contents.boards) + "\n"


def _table(contents: Contents, board: Board) -> str:
    done = contents.results.done()
    shown = shown_labels(done)
    settings = {shown[label]: values for label, values in varying_settings(done).items()}
    # Settings that differ get columns; those that are equal belong into the text.
    here = [settings.get(entry.label, {}) for entry in board.entries]
    keys = list(dict.fromkeys(key for values in here for key in values))
    priced = board.priced
    columns = [
        "Method",
        *keys,
        "Trained",
        _metric(board),
        "Seeds",
        r"\$" if priced else "Seconds",
    ]
    head = " & ".join(column if column.startswith("\\") else latex(column) for column in columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(board)}}}",
        rf"\label{{tab:{_slug(board.title)}}}",
        rf"\begin{{tabular}}{{l{'l' * len(keys)}rrr{'r'}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    for entry in board.entries:
        values = [_value(settings.get(entry.label, {}).get(key)) for key in keys]
        # With its settings in columns the method's name alone.
        name = latex(entry.method if any(values) else entry.label)
        lines.append(" & ".join([name, *values, *_figures(board, entry, entry in board.highest)]) + r" \\")
    if board.baselines:
        lines.append(r"\midrule")
        for entry in board.baselines:
            lines.append(" & ".join([latex(called(entry)), *[""] * len(keys), *_figures(board, entry, False)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _metric(board: Board, capital: bool = True) -> str:
    """`Macro f1`; a label behind a colon stays as the data write it."""
    name, colon, label = board.metric.partition(":")
    words = name.replace("_", " ")
    return f"{words.capitalize() if capital else words}{colon}{label}"


def _caption(board: Board) -> str:
    rows = rows_in_words(board.test_rows)
    several = any(len(entry.records) > 1 for entry in board.entries)
    spread = "mean $\\pm$ standard deviation over seeds; " if several else ""
    marked = (
        " Bold: highest score."
        if board.comparison is None or len(board.compared) < 2
        else " Bold: highest score; $^*$: cannot be distinguished from the best (paired, family-wise 95\\,\\%)."
        if len(board.candidates) > 1
        else " Bold: distinguishable from every other method with an interval (paired, family-wise 95\\,\\%)."
    )
    # With one seed the comparison holds for that seed.
    one_seed = "" if board.comparison is None else board.comparison.one_seed
    marked += f" {latex(one_seed)} variation between seeds is not covered." if one_seed else ""
    marked += " No method was shown to be above the majority class." if nobody_above_chance(board) else ""
    marked += f" {latex(board.unsearched)}" if board.unsearched else ""
    cost = "dollars" if board.priced else "seconds"
    marked += f" {cost.capitalize()}: one trial{', mean over seeds' if several else ''}, with tuning and evaluation."
    metric = latex(_metric(board, capital=False))
    return f"{latex(board.title)}: {metric} on {rows}, {spread}brackets: 95\\,\\% interval.{marked}"


def _figures(board: Board, entry: BoardEntry, best: bool) -> list[str]:
    scores = entry.scores
    shown = numbers.score(entry.score)
    # The sample's deviation (n - 1), as papers give it over a few seeds.
    shown += rf" $\pm$ {numbers.score(stdev(scores))}" if len(scores) > 1 else ""
    shown += (
        f" [{numbers.score(entry.low)}, {numbers.score(entry.high)}]"
        if numbers.known(entry.low) and numbers.known(entry.high)
        else ""
    )
    several = board.comparison is not None and len(board.candidates) > 1
    shown = rf"\textbf{{{shown}}}" if best else shown
    shown += "$^*$" if several and entry.may_be_best and not entry.baseline else ""
    # The unit stands in the heading; `< $0.0001` has two letters that mean something to LaTeX.
    money = numbers.dollars(entry.dollars).replace("$", "") if board.priced else numbers.ratio(entry.seconds)
    return [numbers.short_count(entry.trainable) if entry.trainable else "0", shown, str(len(scores)), latex(money)]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return latex(f"{value:g}" if isinstance(value, float) else str(value))


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def methods_paragraph(results: Results) -> str:
    """What a paper's section on statistics says of this study: design, intervals, correction, software."""
    contents = collect(results)
    if not contents.boards:
        return f"No trial ended with a score. The study was run with DollarTune {version('dollartune')}."
    seeds = sorted({len(entry.records) for board in contents.boards for entry in board.entries})
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "seed" if seeds == [1] else "seeds"
    tests = sorted({rows for board in contents.boards for rows in board.test_rows if rows})
    rows = f"{tests[0]:,}" if len(tests) == 1 else f"{tests[0]:,} to {tests[-1]:,}" if tests else "the"
    compared = [board for board in contents.boards if board.comparison is not None]
    sentences = [
        f"Each method was run with {many} {plural} and scored on {rows} held-out test rows that took no part in the choice of "
        "hyperparameters or checkpoints."
    ]
    if (
        contents.settings is not None
        and contents.settings.search is not None
        and not any(board.unsearched for board in contents.boards)
    ):
        budget = contents.settings.budget
        within = " within its own budget" if budget is not None and budget.limited and budget.per == "method" else ""
        sentences.append(f"Hyperparameters were chosen for each method{within}, by validation score alone.")
    if compared:
        sentences.append(
            "Scores have 95 % intervals over test rows"
            + (" and seeds" if seeds[-1] > 1 else "; with one seed they do not cover variation between seeds")
            + "."
        )
    if any(len(board.compared) > 1 for board in compared):
        sentences.append(
            "Each method was held against the others on the same rows, corrected for their number (max-t, family-wise 95 %); "
            "a method that is not distinguishable from the best is said to be so."
        )
    if contents.settings is not None and contents.settings.budget is not None and contents.settings.budget.limited:
        from dollartune.budget.spending import budget_in_words

        sentences.append(f"The budget was {budget_in_words(contents.settings.budget)}, with every second booked.")
    sentences.append(f"The study was run with DollarTune {version('dollartune')}.")
    return " ".join(sentences)


def citation() -> str:
    """BibTeX of this program."""
    return (
        "@software{dollartune,\n  title = {{DollarTune}: what can fine-tuning accomplish for a dollar?},\n"
        f"  author = {{{{The DollarTune authors}}}},\n  version = {{{version('dollartune')}}},\n  license = {{Apache-2.0}}\n}}"
    )


def write_figures(
    results: Results, folder: Path, kinds: Sequence[FigureFormat] = ("svg", "pdf"), names: Sequence[str] | None = None
) -> list[Path]:
    """Writes a study's charts as files; returns their paths. A chart for which nothing was measured is left out.

    Args:
        kinds: svg, pdf, png.
        names: of `FIGURES`; by default all.

    Raises:
        UserError: an unknown figure or format, or nothing can be drawn.
    """
    for kind in kinds:
        if kind not in ("svg", "pdf", "png"):
            raise unknown_name("format of figures", kind, ("svg", "pdf", "png"))
    for name in names or ():
        if name not in FIGURES:
            raise unknown_name("figure", name, FIGURES)
    notebook.require_altair()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names or FIGURES:
        try:
            chart = FIGURES[name](results)
        except UserError:
            # One that was asked for by name must be there; of all, those that something was measured for.
            if names is not None:
                raise
            continue
        for kind in kinds:
            path = folder / f"{name}.{kind}"
            chart.save(str(path), **({"scale_factor": 2} if kind == "png" else {}))
            written.append(path)
    if not written:
        raise UserError("there is nothing to draw: no trial was tuned yet.", hint="dollartune status STUDY")
    return written


class InlinePlot:
    """A chart that shows as a picture in a notebook, drawn here: nothing is fetched, and it stays in the saved notebook."""

    def __init__(self, chart: Any) -> None:
        self.chart = chart
        """altair's, to be changed as its documentation says."""

    def _repr_svg_(self) -> str:
        import vl_convert

        return str(vl_convert.vegalite_to_svg(self.chart.to_dict()))

    def save(self, path: str | Path) -> None:
        """As .svg, .png, .pdf, .json or .html, by the name's ending."""
        self.chart.save(str(path))


def plot(results: Results, kind: str = "pareto", **options: Any) -> InlinePlot:
    """A chart of `FIGURES` for a notebook; `Results.plot` calls this.

    Raises:
        UserError: there is no such chart, or nothing to draw.
    """
    if kind not in FIGURES:
        raise unknown_name("plot", kind, FIGURES)
    draw: Callable[..., Any] = FIGURES[kind]
    return InlinePlot(draw(results, **options))
