"""What DollarTune's own studies say (`evidence/studies/`): small backbones, several seeds or tasks, every method alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.advise.answer import Recommendation
from dollartune.advise.boards import Overall, overall
from dollartune.advise.own_study import MethodResult, Priority, cost_in_words

if TYPE_CHECKING:
    from dollartune.evidence.ours import RecordedStudy, StudyRow

# Two thirds of a decade: a study at 1,000 rows speaks for 215 to 4,642 rows, so that neighbouring decades overlap a little.
FURTHEST = 10 ** (2 / 3)
"""A board counts if its number of training rows is within this factor: 1,000 for 215 to 4,642."""


def _boards(
    studies: Mapping[str, RecordedStudy], task_kind: str, n_examples: int
) -> dict[str, tuple[RecordedStudy, list[dict[str, object]]]]:
    """Boards of that kind of task at about that many training rows: name -> (study, rows)."""
    rows_of_study: dict[str, tuple[RecordedStudy, list[dict[str, object]]]] = {}
    for study in studies.values():
        for row in study.rows:
            if row.task_kind != task_kind or not _near(row, n_examples):
                continue
            name = f"{row.task} with {row.scale:,} rows on {study.backbone}"
            rows_of_study.setdefault(name, (study, []))[1].append({**asdict(row), "n_examples": row.scale})
    return {name: board for name, board in rows_of_study.items() if len({row["method"] for row in board[1]}) > 1}


def _near(row: StudyRow, n_examples: int) -> bool:
    return row.scale is not None and abs(math.log(row.scale / max(1, n_examples))) <= math.log(FURTHEST)


def ranking_from_studies(
    studies: Mapping[str, RecordedStudy], task_kind: str, n_examples: int, priority: Priority
) -> list[Recommendation]:
    """Methods over the studies' boards of that kind of task and scale, best first; empty where there are none.

    Recommended are those that are good enough on at least half of their boards (what may be the best, by the studies'
    own statistics); for a priority other than quality the first of them.
    """
    boards = _boards(studies, task_kind, n_examples)
    ranked = overall({name: rows for name, (_, rows) in boards.items()}, priority)
    most = max((len(one.boards) for one in ranked), default=0)
    cited = {name: study.citation for name, (study, _) in boards.items()}
    recommendations = []
    for one in ranked:
        # One board may be luck: it must have been on at least half as many as the method with most.
        use = one.good_enough and 2 * len(one.boards) >= most
        citations = tuple(dict.fromkeys(cited[name] for name, _ in one.boards))
        recommendations.append(Recommendation(one.method, use, "study", (reason(one),), citations))
    if priority == "quality":
        return recommendations
    first = next((one for one in recommendations if one.recommended), None)
    return [Recommendation(o.method, o is first, o.basis, o.reasons, o.citations) for o in recommendations]


def reason(one: Overall) -> str:
    """Where it stood, in words."""
    shown = [f"{one_board(task, result)}" for task, result in one.boards[:2]]
    more = f"; and on {len(one.boards) - 2} more" if len(one.boards) > 2 else ""
    verdict = (
        f"may be the best on {one.good} of {len(one.boards)}" if len(one.boards) > 1 else _verdict(one.boards[0][1])
    )
    return f"{verdict}: {', '.join(shown)}{more}"


def one_board(name: str, result: MethodResult) -> str:
    cost = cost_in_words(result)
    return f"{numbers.score(result.score)} on {name}" + (f" ({cost})" if cost else "")


def _verdict(result: MethodResult) -> str:
    return "may be the best" if result.good_enough else "below the best"


def small(studies: Sequence[RecordedStudy]) -> str:
    """How large the backbones of studies are, in words."""
    sizes = sorted({study.parameters for study in studies})
    shown = [f"{size / 1e6:.0f} M" for size in sizes]
    return f"{shown[0]} to {shown[-1]} parameters" if len(shown) > 1 else f"{shown[0]} parameters"
