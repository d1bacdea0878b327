"""Charts inline in a notebook: each takes `Results` and returns an altair chart.

    from dollartune.report import pareto
    results = Study("study.yaml").results()
    pareto(results, task="ag_news", scale=1000)

Without a task or scale, all of them are shown one below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dollartune.errors import UserError
from dollartune.report.contents import Board, Contents, collect

if TYPE_CHECKING:
    from dollartune.study.results import Results

WIDTH = 560
"""Pixels; notebooks tell charts no width of their own."""


def require_altair() -> None:
    """Raises a `UserError` that names the extra, unless altair and vl-convert are installed."""
    from importlib.util import find_spec

    missing = [name for name in ("altair", "vl_convert") if find_spec(name) is None]
    if missing:
        names = " and ".join({"vl_convert": "vl-convert-python"}.get(name, name) for name in missing)
        raise UserError(f"charts need {names}, which the extra `report` installs.", "pip install 'dollartune[report]'")


def pareto(results: Results, task: str | None = None, scale: int | None = None) -> Any:
    """Score against dollars (seconds without a price), with intervals and the Pareto front."""
    require_altair()
    from dollartune.report.charts.pareto import pareto_chart

    return _each_board(results, task, scale, lambda contents, board: pareto_chart(board, contents.series))


def parameters(results: Results, task: str | None = None, scale: int | None = None) -> Any:
    """Score against the number of trained parameters."""
    require_altair()
    from dollartune.report.charts.pareto import parameters_chart

    return _each_board(results, task, scale, lambda contents, board: parameters_chart(board, contents.series))


def money(results: Results, task: str | None = None, scale: int | None = None) -> Any:
    """The best validation score as the study's dollars (seconds without a price) were spent."""
    require_altair()
    from dollartune.report.charts.score_over_money import money_chart

    return _each_board(
        results, task, scale, lambda contents, board: money_chart(contents.score_over_money(board), board.priced)
    )


def learning_curves(
    results: Results, task: str | None = None, scale: int | None = None, over: Literal["epoch", "seconds"] = "epoch"
) -> Any:
    """Validation loss over epochs or seconds, one small chart per method, each seed a line."""
    require_altair()
    from dollartune.report.charts.curves import learning_curves_chart

    return _each_board(
        results, task, scale, lambda contents, board: learning_curves_chart(board, contents.series, over)
    )


def breakdown(
    results: Results, task: str | None = None, scale: int | None = None, mode: Literal["scored", "written"] = "scored"
) -> Any:
    """The share of each label among the predictions, beside the truth: by label scoring, or as freely written."""
    require_altair()
    from dollartune.report.charts.labels import breakdown_chart

    return _each_board(results, task, scale, lambda contents, board: breakdown_chart(contents, board, mode))


def scales(results: Results, task: str | None = None) -> Any:
    """Score over the number of training rows."""
    require_altair()
    from dollartune.report.charts.scales import scales_chart

    return _each_task(results, task, scales_chart)


def convergence(results: Results, task: str | None = None) -> Any:
    """Seconds and epoch at the best validation loss."""
    require_altair()
    from dollartune.report.charts.scales import convergence_chart

    return _each_task(results, task, convergence_chart)


def speedup(results: Results, task: str | None = None) -> Any:
    """By how much full tuning was sooner at its best than each method."""
    require_altair()
    from dollartune.report.charts.speedup import speedup_chart

    return _each_task(results, task, speedup_chart)


def requests(results: Results, task: str | None = None, scale: int | None = None) -> Any:
    """What a request costs with each method."""
    require_altair()
    from dollartune.report.charts.serving_cost import requests_chart

    return _each_board(results, task, scale, lambda contents, board: requests_chart(board, contents.series))


def forgetting(results: Results, task: str | None = None, scale: int | None = None) -> Any:
    """How much worse general text is predicted after tuning."""
    require_altair()
    from dollartune.report.charts.serving_cost import forgetting_chart

    return _each_board(results, task, scale, lambda contents, board: forgetting_chart(board, contents.series))


def ablations(results: Results) -> Any:
    """The change of the score when a part of a method is left out."""
    require_altair()
    from dollartune.report.ablation import ablations as find
    from dollartune.report.charts.ablations import ablations_chart

    chart = ablations_chart(find(collect(results)))
    return _stacked([] if chart is None else [("", chart)])


def _each_board(results: Results, task: str | None, scale: int | None, draw: Callable[[Contents, Board], Any]) -> Any:
    contents = collect(results)
    return _stacked([(board.title, draw(contents, board)) for board in contents.chosen(task, scale)])


def _each_task(results: Results, task: str | None, draw: Callable[[Sequence[Board], Sequence[str]], Any]) -> Any:
    contents = collect(results)
    tasks = dict.fromkeys(board.task for board in contents.chosen(task, None))
    return _stacked([(name, draw(contents.of_task(name), contents.series)) for name in tasks])


def _stacked(charts: list[tuple[str, Any]]) -> Any:
    """One chart, or several one below the other.

    Raises:
        UserError: there is nothing to draw, such as learning curves where nothing was tuned.
    """
    import altair

    drawn = [_sized(chart, title) for title, chart in charts if chart is not None]
    if not drawn:
        raise UserError("there is nothing to draw: the results hold no such measurements.", "dollartune results STUDY")
    return (
        drawn[0] if len(drawn) == 1 else altair.vconcat(*drawn).resolve_scale(color="independent", shape="independent")
    )


def _sized(chart: Any, title: str) -> Any:
    import altair

    # A facet has no width of its own, its panels have.
    if isinstance(chart, altair.FacetChart):
        return chart.properties(title=title) if title else chart
    return chart.properties(width=WIDTH, title=title) if title else chart.properties(width=WIDTH)
