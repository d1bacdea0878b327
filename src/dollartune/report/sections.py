"""The sections of the page, from the answer to how it was run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.report import baselines, provenance, tables
from dollartune.report import figures as words
from dollartune.report import serving_cost as use
from dollartune.report import text as wording
from dollartune.report.ablation import ablations
from dollartune.report.charts.ablations import ablations_chart
from dollartune.report.charts.classes import calibration_chart, confusion_chart
from dollartune.report.charts.curves import MOST_POINTS, learning_curves_chart
from dollartune.report.charts.labels import Mode, breakdown_chart, shares
from dollartune.report.charts.pareto import parameters_chart, pareto_chart
from dollartune.report.charts.scales import convergence_chart, scales_chart
from dollartune.report.charts.score_over_money import money_chart
from dollartune.report.charts.serving_cost import forgetting_chart, requests_chart
from dollartune.report.charts.speedup import speedup_chart
from dollartune.report.charts.tries import tries_chart
from dollartune.report.class_scores import calibration, calibration_error, class_scores
from dollartune.report.elements import Child, Html, escape, tag
from dollartune.report.examples import Sample, samples
from dollartune.report.published import TITLE as PUBLISHED
from dollartune.report.published import published_table
from dollartune.report.spending import spent_of_budget
from dollartune.report.svg_marks import mark_definitions, method_mark, score_range
from dollartune.report.task_facts import picture_data
from dollartune.report.tries import importances

if TYPE_CHECKING:
    from dollartune.report.contents import Board, Contents
    from dollartune.report.figures import Figures
    from dollartune.report.tables import Table
    from dollartune.report.task_facts import TaskFacts
    from dollartune.trials.record import TrialRecord

POINTS = 6_000
"""Of all learning curves together; a large study's are drawn with fewer each, so that the page stays below 1 MB."""
NARROW, WIDE = 24, 80
"""Cells with more characters than this may wrap: in a narrow column, as a leaderboard has ten others, or in a wide one."""

BREAKDOWNS: tuple[tuple[Mode, str, str], ...] = (
    (
        "scored",
        "Answers, choosing among the labels",
        "Which labels were predicted, beside how often they are right. A bar of one color means that the method says the "
        "same to everything.",
    ),
    (
        "written",
        "Answers, writing freely",
        "The same when the model may write what it likes; grey is whatever names no label.",
    ),
)


class Page:
    """Puts the page's body together.

    Args:
        contents: the study.
        facts: what is known of its tasks, by name.
        figures: collects the charts.
    """

    def __init__(self, contents: Contents, facts: Mapping[str, TaskFacts], figures: Figures) -> None:
        self.contents, self.facts, self.figures = contents, facts, figures
        self._links: list[tuple[str, str]] = []
        # One line per trial: its points are what makes a page of a large study heavy.
        lines = sum(len(entry.records) for board in contents.boards for entry in board.entries if entry.trained)
        # Six still show how a loss fell.
        self._points = max(6, min(MOST_POINTS, POINTS // max(1, lines)))

    def body(self) -> Html:
        """Header, sections, footer."""
        contents = self.contents
        # Built before the header, because the sections fill the list of links that it shows.
        sections = [self._overview(), *(self._task(task) for task in contents.tasks)]
        sections += [
            self._ablations(),
            self._published(),
            self._spending(),
            self._failures(),
            self._how(),
            self._glossary(),
        ]
        links = tag("ul", [tag("li", tag("a", title, href=f"#{name}")) for name, title in self._links])
        header = tag(
            "header",
            tag("h1", contents.name),
            tag("p", wording.summary(contents), class_="soft"),
            [tag("p", note, class_="warn") for note in contents.notes],
            tag("nav", links, aria_label="Sections"),
        )
        noscript = tag(
            "noscript", tag("p", "The charts need JavaScript; the tables hold the same numbers.", class_="warn")
        )
        footer = tag(
            "footer",
            tag(
                "p",
                "Written by DollarTune. Beside this page: report.md, results.csv (one row per trial), leaderboard.csv.",
            ),
        )
        skip = tag("a", "Skip to the results", href="#results", class_="skip")
        return escape(
            [mark_definitions(contents.series), skip, header, tag("main", noscript, sections, id="results"), footer]
        )

    # The answer

    def _overview(self) -> Html:
        # One board is its own summary.
        if len(self.contents.boards) < 2:
            return Html("")
        over = self.contents.summary
        return self._section(
            "In short",
            self._table(tables.overview(self.contents)),
            self._table(tables.over_boards(over)) if over is not None else None,
        )

    def _task(self, task: str) -> Html:
        boards, facts = self.contents.of_task(task), self.facts.get(task)
        about: list[Child] = []
        if facts is not None and facts.description:
            about.append(tag("p", facts.description))
        metric = boards[0].metric
        about.append(
            tag(
                "p",
                "Score: ",
                tag("strong", metric),
                f", the {wording.metric_meaning(metric)}. Higher is better.",
                class_="soft",
            )
        )
        return self._section(
            task, about, [self._board(board) for board in boards], self._across(boards), self._about(facts)
        )

    def _board(self, board: Board) -> Html:
        contents = self.contents
        what = "dollars" if board.priced else "seconds"
        money = self.figures.figure(
            pareto_chart(board, contents.series), f"Score against {what}",
            "Up is better, left is cheaper. The dashed line is the Pareto front. Lines are 95 % intervals, faint dots seeds, "
            "grey crosses baselines. Click a name below to single it out.",
            words.cost_in_words(board),
        )  # fmt: skip
        size = self.figures.figure(
            parameters_chart(board, contents.series), "Score against trained parameters",
            "How much has to be trained for the score, on a scale where equal steps are equal ratios.",
            words.parameters_in_words(board),
        )  # fmt: skip
        # Drawings are matched to the table's rows by index.
        listed = (*board.entries, *board.baselines)  # in the order of the leaderboard's rows
        ranges = [score_range(board, entry, contents.series) for entry in listed]
        trained = tables.trained(board)
        return tag(
            "section",
            tag("h3", numbers.rows(board.scale).capitalize(), id=_slug(board.title)),
            self._verdict(board),
            tag("p", board.unsearched, class_="notes") if board.unsearched else None,
            self._table(tables.leaderboard(board), {2: ranges}),
            tag("div", money, size, class_="charts"),
            self._as_it_happened(board),
            self._curves(board),
            self._tries(board),
            self._predictions(board),
            self._classes(board),
            self._in_use(board),
            _more("Score for what it takes: per parameter, second and dollar", self._table(tables.value(board))),
            _more("What was trained, and where", self._table(trained)) if trained is not None else None,
            aria_labelledby=_slug(board.title),
        )

    def _as_it_happened(self, board: Board) -> Html:
        """The best score as the money was spent, and what more of it would buy."""
        points = self.contents.score_over_money(board)
        told = self.contents.more_money(board)
        drawn = self.figures.figure(
            money_chart(points, board.priced), "Validation score as the money was spent",
            "Steps: the best until then; dots: what each trial scored when this task and number of rows had cost so much.",
            told or "What more money would buy cannot be told from these trials.",
        )  # fmt: skip
        return escape([drawn, tag("p", told, class_="notes") if told else None]) if drawn else Html("")

    def _verdict(self, board: Board) -> Html:
        money = wording.for_the_money(board)
        parts: list[Child] = [tag("p", wording.headline(board)), tag("p", money) if money else None]
        parts += [tag("p", sentence, class_="sure warn") for sentence in baselines.sentences(board)]
        if board.comparison is not None:
            explanation, warnings = board.comparison.explanation, board.comparison.warnings
            parts.append(tag("p", f"How sure: {explanation}", class_="sure") if explanation else None)
            parts += [tag("p", f"Beware: {warning}", class_="sure warn") for warning in warnings]
        stopped = wording.cut_short(board)
        parts.append(tag("p", f"Beware: {stopped}", class_="sure warn") if stopped else None)
        sizes = provenance.data_sizes(board)
        parts.append(tag("p", f"Data: {sizes}.", class_="sure") if sizes else None)
        return tag("div", parts, class_="verdict")

    def _curves(self, board: Board) -> Html:
        methods = self.contents.series
        meaning = "One line per seed; the diamond marks the checkpoint kept. Other methods in grey. Lower is better."
        alternative = words.curves_in_words(board)
        by_epoch, by_second = (
            learning_curves_chart(board, methods, over, self._points) for over in ("epoch", "seconds")
        )
        panels = [
            ("over epochs", self.figures.figure(by_epoch, "Validation loss over epochs", meaning, alternative)),
            ("over seconds", self.figures.figure(by_second, "Validation loss over seconds", meaning, alternative)),
        ]
        # Both charts have the same data, which is in the page once.
        return _tabs("How the methods learned", panels, f"curves-{_slug(board.title)}") if by_epoch else Html("")

    def _predictions(self, board: Board) -> Html:
        contents, facts = self.contents, self.facts.get(board.task)
        charts = [
            self.figures.figure(
                breakdown_chart(contents, board, mode),
                title,
                meaning,
                words.shares_in_words(shares(contents, board, mode)),
            )
            for mode, title, meaning in BREAKDOWNS
        ]
        sampled = samples(contents, board, facts.inputs if facts is not None else None)
        parts: list[Child] = [tag("div", charts, class_="charts") if any(charts) else None]
        if sampled is not None and sampled.samples:
            title = f"Predictions of {sampled.entry.label} (seed {sampled.seed})"
            parts += [
                tag("h4", title),
                tag("p", sampled.how, class_="notes"),
                tag("ul", [_sample(one, facts) for one in sampled.samples], class_="samples"),
            ]
        return escape(parts)

    def _tries(self, board: Board) -> Html:
        """The settings that a search tried, for each method that has some."""
        by_method: dict[str, list[TrialRecord]] = {}
        for record in self.contents.results.everything:
            trial = record.trial
            if (trial.task, trial.scale) == (board.task, board.scale) and not trial.baseline:
                by_method.setdefault(trial.group, []).append(record)
        parts: list[Child] = []
        for method, records in by_method.items():
            if not any(record.status == "tried" for record in records):
                continue
            chart, shares_of = tries_chart(records), importances(records)
            told = "; ".join(f"{key} {numbers.percent(share)}" for key, share in shares_of.items())
            drawn = self.figures.figure(
                chart, f"{method}: settings tried",
                "One line per trial across its settings, coloured by its validation score.",
                f"Share of the variance of the scores that each setting explains alone: {told or 'unknown'}.",
            )  # fmt: skip
            table = tables.tries(f"{board.title}, {method}", records)
            explains = f"Share of the variance of the scores that each setting explains alone: {told}."
            explained = tag("p", explains, class_="notes") if told else None
            parts += [drawn, explained, _more(f"{method}: every setting that was tried", self._table(table))]
        return escape([tag("h4", "Settings that the search tried"), parts]) if parts else Html("")

    def _classes(self, board: Board) -> Html:
        """Which class is taken for which by the best method, scores per class, and whether its probabilities can be believed."""
        record = board.best.records[0]
        rows = self.contents.results.predictions(record.id) if record.labels else []
        if not rows:
            return Html("")
        of = f"{board.best.label}, seed {record.trial.seed}"
        scores = class_scores(rows, record.labels)
        weakest = min(scores, key=lambda one: one.f1)
        bins = calibration(rows)
        error = calibration_error(bins)
        matrix = self.figures.figure(
            confusion_chart(rows, record.labels), f"Confusion matrix ({of})",
            "Rows of the test set: expected class down, predicted class across.",
            f"Lowest F1: {weakest.label}, {numbers.score(weakest.f1)}.",
        )  # fmt: skip
        believed = self.figures.figure(
            calibration_chart(rows), f"Calibration ({of})",
            f"On the dashed line 8 of 10 rows of probability 0.8 are right. Expected calibration error: {numbers.score(error)}.",
            "; ".join(f"{numbers.score(b.confidence)}: {numbers.score(b.accuracy)} right" for b in bins) + ".",
        )  # fmt: skip
        return escape(
            [
                tag("h4", "Class by class"),
                tag("div", matrix, believed, class_="charts") if matrix or believed else None,
                _more(f"Scores per class ({of})", self._table(tables.classes(f"{board.title}, {of}", scores))),
            ]
        )

    def _in_use(self, board: Board) -> Html:
        """What a request costs, and what was forgotten."""
        methods, why_not = self.contents.series, use.why_not(board)
        if not use.measured(board):
            return tag("p", why_not, class_="notes") if why_not else Html("")
        cost = self.figures.figure(
            requests_chart(board, methods), "What a request costs",
            "Tuning is paid once, this with every request: long prompts, virtual tokens and added layers all take time.",
            use.requests_in_words(use.requests(board)),
        )  # fmt: skip
        forgot = self.figures.figure(
            forgetting_chart(board, methods), "What was forgotten",
            "How much worse the tuned model predicts general text than the backbone did. Right of the dashed line something "
            "was lost; faint dots are single seeds.",
            use.forgetting_in_words(use.forgetting(board)),
        )  # fmt: skip
        measured = [table for table in (use.requests_table(board), use.forgetting_table(board)) if table is not None]
        return escape(
            [
                tag("h4", "In use: the cost of a request, and what was forgotten"),
                tag("div", cost, forgot, class_="charts") if cost or forgot else None,
                [self._table(table) for table in measured],
                tag("p", why_not, class_="notes") if why_not else None,
            ]
        )

    def _across(self, boards: Sequence[Board]) -> Html:
        """What holds for all scales of a task: what more data brings, and how soon methods are at their best."""
        methods, table = self.contents.series, tables.convergence(boards)
        growth = self.figures.figure(
            # Of one task alone: scores of two tasks share no axis.
            scales_chart(boards, methods),
            "Score over the number of training rows",
            "What more data brings each method.",
            words.scales_in_words(boards),
        )
        speed = self.figures.figure(
            convergence_chart(boards, methods), "Time until the validation loss was best",
            "Means over seeds. Further left learned sooner; speed only, not quality.", words.convergence_in_words(boards),
        )  # fmt: skip
        sooner = self.figures.figure(
            speedup_chart(boards, methods), "Full tuning against each method",
            "How much sooner full tuning had its best validation loss. Positive: full tuning converged first. 70 %: in 30 % of "
            "the other method's time.", words.speedup_in_words(boards),
        )  # fmt: skip
        if not growth and not speed:
            return Html("")
        title = "Across scales" if len(boards) > 1 else "How soon methods converged"
        name = _slug(f"{boards[0].task} {title}")
        return tag(
            "section", tag("h3", title, id=name), tag("div", growth, speed, sooner, class_="charts"),
            self._table(table) if table is not None else None, aria_labelledby=name,
        )  # fmt: skip

    def _about(self, facts: TaskFacts | None) -> Html:
        if facts is None:
            return Html("")
        pairs = [
            ("Beware", facts.leaks),
            ("Data", facts.source),
            ("Prompt", facts.prompt),
            ("Notes", " ".join(facts.notes)),
        ]
        listed = [(name, value) for name, value in pairs if value]
        return _more("About the data: source, leaks, prompt", _facts(listed)) if listed else Html("")

    # The rest

    def _ablations(self) -> Html:
        changes = ablations(self.contents)
        table = tables.ablation(changes)
        if table is None:
            return Html("")
        chart = self.figures.figure(
            ablations_chart(changes),
            "Change of the score when a method is put at fewer places",
            "The top row is the score of the whole method; below, what each change did to it. Orange: worse, so what is "
            "missing matters. Blue: better without. Bold: more than luck explains (the 95 % interval does not reach over 0).",
            "; ".join(f"{row.of}, {row.name}, {row.board.title}: {numbers.change(row.change)}" for row in changes) + ".",
        )  # fmt: skip
        return self._section("What each part is worth", chart, self._table(table))

    def _published(self) -> Html:
        table = published_table(self.contents)
        return self._section(PUBLISHED, self._table(table)) if table is not None else Html("")

    def _spending(self) -> Html:
        on, by, sentence = (
            tables.spent_on(self.contents),
            tables.spent_by(self.contents),
            spent_of_budget(self.contents),
        )
        if on is None and by is None:
            return Html("")
        parts = [tag("p", sentence or "There was no budget; this is what was spent.")]
        parts += [self._table(table) for table in (on, by) if table is not None]
        return self._section("Spent of the budget", parts)

    def _failures(self) -> Html:
        table = tables.failures(self.contents)
        if table is None:
            return Html("")
        lead = tag("p", "A trial that fails is recorded and stops nothing. These are missing from everything above.")
        return self._section("Trials that failed", lead, self._table(table))

    def _how(self) -> Html:
        contents = self.contents
        parts = [
            tag("h3", "What was asked for"),
            _facts(provenance.asked(contents)),
            tag("h3", "Machine and versions"),
            _facts(provenance.machine(contents)),
        ]
        return self._section("How it was run", parts)

    def _glossary(self) -> Html:
        pairs = [(tag("dt", word), tag("dd", meaning)) for word, meaning in wording.GLOSSARY]
        return self._section("Words", tag("dl", pairs, class_="words"))

    # Parts

    def _section(self, title: str, *children: Child) -> Html:
        """A section with a heading, listed at the top of the page."""
        name = f"section-{_slug(title)}"
        self._links.append((name, title))
        return tag("section", tag("h2", title, id=name), children, aria_labelledby=name)

    def _table(self, table: Table, drawings: Mapping[int, Sequence[Html]] | None = None) -> Html:
        """A table in a frame that scrolls sideways on narrow screens."""
        drawings = drawings or {}
        head = [
            tag("th", text, scope="col", class_=None if i in table.numeric else "text")
            for i, text in enumerate(table.headings)
        ]
        body = []
        for index, row in enumerate(table.rows):
            method = table.methods[index] if table.methods else None
            mark = method_mark(self.contents.series, method) if method in self.contents.series else None
            cells = [tag("th", mark, _breakable(row[0]), scope="row", class_="marked" if mark else None)]
            for column, text in enumerate(row[1:], 1):
                wraps = "wide" if len(text) > WIDE else "text narrow" if len(text) > NARROW else "text"
                kind = None if column in table.numeric else wraps
                # Inside the cell, so that it is read with the number that it draws.
                drawing = drawings[column][index] if column in drawings else None
                # The interval below its number keeps columns narrow on a phone.
                cells.append(tag("td", text if kind else _in_two_lines(text), drawing, class_=kind))
            body.append(tag("tr", cells, class_="strong" if index in table.strong else None))
        whole = tag(
            "table", tag("caption", tag("span", table.caption)), tag("thead", tag("tr", head)), tag("tbody", body)
        )
        # Focusable, or a keyboard could not scroll it.
        frame = tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {table.caption}")
        return escape([frame, tag("p", " ".join(table.notes), class_="notes") if table.notes else None])


def _breakable(text: str) -> Html:
    """A method's label, with places at which narrow screens may break it: lora( rank=8, where= all_linear)."""
    # After the sign, so that a line ends with what opens or joins and the next begins with a word.
    parts = re.split(r"(?<=[(=_/])", text)
    return escape([[tag("wbr") if index else None, part] for index, part in enumerate(parts)])


def _in_two_lines(text: str) -> Html:
    """A number, with what is in parentheses behind it on a line below."""
    number, bracket, rest = text.partition(" (")
    return escape([number, tag("small", f"({rest}")] if bracket else number)


def _tabs(title: str, panels: Sequence[tuple[str, Html]], name: str) -> Html:
    """Figures of which one is shown at a time; both are printed."""
    choices = [
        tag("label", tag("input", type="radio", name=name, checked=index == 0), label)
        for index, (label, _) in enumerate(panels)
    ]
    return tag("fieldset", tag("legend", title), choices, [panel for _, panel in panels], class_="tabs")


def _more(title: str, content: Html) -> Html:
    return tag("details", tag("summary", title), content)


def _facts(pairs: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def _sample(sample: Sample, facts: TaskFacts | None) -> Html:
    read = facts.pictures.get(sample.example) if facts is not None else None
    picture = None
    if read is not None:
        alternative = f"the picture of test row {sample.example}, expected: {sample.expected}"
        picture = tag("img", src=picture_data(read), alt=alternative, class_="picture")
    pairs = [("Predicted", sample.predicted), ("Expected", sample.expected)]
    if sample.probability is not None:
        pairs[0] = ("Predicted", f"{sample.predicted} ({numbers.percent(sample.probability)} sure)")
    if sample.generated is not None:
        pairs.append(("Wrote", sample.generated.strip() or "(nothing)"))
    if sample.score is not None:
        pairs.append(("Score of this text", numbers.score(sample.score)))
    return tag(
        "li",
        # A mark and a word: color alone would say nothing to some readers.
        tag("p", {"right": "✓ ", "wrong": "✗ "}.get(sample.kind, "") + sample.kind, class_="kind"),
        picture,
        tag("pre", sample.input, tabindex=0, aria_label="Input") if sample.input else None,
        tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs]),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
