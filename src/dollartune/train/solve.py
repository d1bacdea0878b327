"""Trains a trial whose method is solved: features of the frozen backbone, then the method's own solution; no steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import scipy.optimize  # noqa: F401  # what solving imports: when a worker starts, and not in seconds booked for a trial
import torch

from dollartune.errors import UserError
from dollartune.methods.features import LabelledFeatures
from dollartune.train.batching import typical_rows
from dollartune.train.features import read_of
from dollartune.train.free_memory import need_free
from dollartune.train.length import Replan
from dollartune.train.rows_in_time import SecondsLeft, pass_in_time, share_of

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded
    from dollartune.train.features import FeatureStore
    from dollartune.train.trial import TrialState

FEATURE_ROWS = 32
"""Rows per forward pass, as in evaluating: without a backward pass more of them are no faster on a processor."""

TRIED_ROWS = 48
"""Rows whose features are timed before a trial is paid for; they are kept, so nothing is lost."""

TRIED_BATCH = 16
"""In batches of so many: one to warm up, two to be timed."""

TRIED_SECONDS, LEAST_TRIED_ROWS = 2.0, 2
"""Fewer rows where all would take longer than that: of a backbone of a billion numbers 48 take all of a short budget, to say that
it is too slow for features."""

OPERATIONS_PER_SECOND = 3e10
"""Of a solution, in double precision on one core of a server of our time: 4e10 to 1.4e11 were seen from 500 rows on. Too low a
figure is dear: features are then taken of fewer rows than the money pays for."""


def solve(
    state: TrialState,
    backbone: Backbone,
    attached: Attached,
    store: FeatureStore,
    batch_size: int = FEATURE_ROWS,
    seconds_left: SecondsLeft | None = None,
    seconds_per_row: float = 0.0,
) -> None:
    """Fills the trial's adapter and counts what it took as one step over its rows.

    Args:
        seconds_left: where time is limited; the share of the rows that it paid for is then the trial's.
        seconds_per_row: of a row forwards, as it was measured beforehand.

    Raises:
        UserError: the method stands beside others, which would change the features that it is solved on.
    """
    if state.adapter.readout is None or len(state.parts) != 1:
        raise UserError(
            f"{' + '.join(method.name for method in state.adapter.methods)}: a solved method reads the frozen backbone and "
            "cannot be combined with others.",
            hint="To begin a trained head at the solved one: training: {head_start: probe}.",
        )
    started = time.perf_counter()
    part, readout, progress = state.parts[0], state.adapter.readout, state.progress
    planned = readout.rows_share
    if state.repeat is not None and state.repeat.rows_share is not None:
        readout.rows_share = state.repeat.rows_share
    elif seconds_left is not None:
        readout.rows_share, progress.seconds_per_row = pass_in_time(
            readout, read_of(readout, state.train), backbone, attached, store, batch_size, seconds_left, seconds_per_row
        )
    progress.rows_share = readout.rows_share
    if readout.rows_share < planned:
        progress.stopped = "budget"
    train = solved_rows(state.adapter, state.train)
    progress.solution_seconds = _solve_on(state, train, backbone, attached, store, batch_size)
    progress.step = progress.best_step = 1
    progress.plan = [Replan(0, 1)]
    # A solution is final: patience and looks have nothing to wait for.
    progress.settled = True
    progress.examples, progress.tokens = len(train), sum(row.length for row in train)
    progress.best_epoch = 1.0  # each row was read once
    progress.seconds = progress.best_seconds = time.perf_counter() - started
    progress.best_loss = part.method.report(part).get("held_out_log_loss", progress.best_loss)


def solve_on_all(
    state: TrialState,
    validation: Sequence[Encoded],
    backbone: Backbone,
    attached: Attached,
    store: FeatureStore,
    batch_size: int = FEATURE_ROWS,
) -> None:
    """Solves a trial again, on training and validation rows, once its validation score is known.

    Whether what is chosen (regularization, neighbours) is chosen anew or stays, the method decides.
    """
    _solve_on(state, [*solved_rows(state.adapter, state.train), *validation], backbone, attached, store, batch_size)


def solve_on_all_seconds(
    state: TrialState, validation: Sequence[Encoded], backbone: Backbone, store: FeatureStore, seconds_per_row: float
) -> float:
    """What `solve_on_all` will take: features that are not known yet, and as many times the first solution's seconds as it has
    operations more.

    Args:
        seconds_per_row: of a pass for one row.
    """
    part, readout, rows = state.parts[0], state.adapter.readout, solved_rows(state.adapter, state.train)
    assert readout is not None
    width, classes = part.sites[0].in_features * len(readout.pooling), part.sites[0].out_features
    before, now = (
        part.method.solve_operations(count, width, classes) for count in (len(rows), len(rows) + len(validation))
    )
    passes = len(store.missing(backbone, read_of(readout, validation), readout.pooling)) * seconds_per_row
    solution: float = state.progress.solution_seconds * now / max(1.0, before)
    return passes + solution


def solved_rows(adapter: Adapter, train: Sequence[Encoded]) -> Sequence[Encoded]:
    """The training rows that a readout is solved on: all, or a share of each class, at least one where there is room."""
    return share_of(train, adapter.readout.rows_share if adapter.readout is not None else 1.0)


def _solve_on(
    state: TrialState,
    rows: Sequence[Encoded],
    backbone: Backbone,
    attached: Attached,
    store: FeatureStore,
    batch_size: int,
) -> float:
    """Gives the seconds of the solution, without the features."""
    (part,), readout = state.parts, state.adapter.readout
    assert readout is not None
    width, classes = part.sites[0].in_features * len(readout.pooling), part.sites[0].out_features
    need_free(part.method.solve_bytes(len(rows), width, classes), f"solving {part.method.name} on {len(rows):,} rows")
    features = store.of(readout, backbone, attached, rows, batch_size)
    labels = torch.tensor([row.label for row in rows])
    tokens = [row.prompt for row in rows] if readout.counts_tokens else None
    started = time.perf_counter()
    part.method.solve(part, LabelledFeatures(features, labels, classes, state.seed, tokens))
    return time.perf_counter() - started


def solve_seconds(adapter: Adapter, rows: int) -> float:
    """What the solution alone takes, without the features."""
    part: Any = adapter.parts[0]
    site = part.sites[0]
    width = site.in_features * len(adapter.readout.pooling) if adapter.readout is not None else 0
    operations: float = part.method.solve_operations(rows, width, site.out_features)
    return operations / OPERATIONS_PER_SECOND


def training_seconds(
    adapter: Adapter,
    backbone: Backbone,
    attached: Attached,
    store: FeatureStore,
    rows: Sequence[Encoded],
    seconds_per_row: float = 0.0,
) -> float:
    """What a trial's training will take: passes for rows whose features are not known, timed on a few, and the solution.

    Args:
        seconds_per_row: of a pass for one row, as far as it is known.
    """
    assert adapter.readout is not None
    pooling = adapter.readout.pooling
    rows = solved_rows(adapter, rows)
    missing = store.missing(backbone, read_of(adapter.readout, rows), pooling)
    lengths = [row.length for row in missing]
    most = TRIED_SECONDS / seconds_per_row if seconds_per_row > 0 else TRIED_ROWS
    tried = typical_rows(lengths, int(min(TRIED_ROWS, max(LEAST_TRIED_ROWS, most))))
    per_token: list[float] = []
    for begin in range(0, len(tried), TRIED_BATCH):
        part = tried[begin : begin + TRIED_BATCH]
        started = time.perf_counter()
        store.features(backbone, attached, [missing[index] for index in part], pooling)
        per_token.append((time.perf_counter() - started) / sum(lengths[index] for index in part))
    # The first pass also pays for what only first passes pay for. Of the others the quicker one counts: the slower one was
    # disturbed.
    each = min(per_token[1:] or per_token, default=0.0)
    tokens = sum(lengths) - sum(lengths[index] for index in tried)
    return each * tokens + solve_seconds(adapter, len(rows))
