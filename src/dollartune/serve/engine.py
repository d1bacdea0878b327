"""The engine: one thread that owns the model, takes work from a queue, and steps the running batches.

Adapters that change the backbone's own values (full tuning) get batches of their own; all others share one.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from dollartune.attachment.fast.kernels import fast_linears
from dollartune.backbones.chat import end_tokens
from dollartune.errors import UserError
from dollartune.serve.batch import RunningBatch
from dollartune.serve.beginnings import LEAST
from dollartune.serve.encoder_decoder_batch import EncoderDecoderBatch, shares_pass
from dollartune.serve.joining import choose, common_length, length_class
from dollartune.serve.limits import Limits, Refused
from dollartune.serve.piece_size import PieceSize
from dollartune.serve.row_by_row import RowByRowBatch
from dollartune.serve.slices import Slices
from dollartune.train.micro_batch import overhead_tokens

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.serve.pool import Pool
    from dollartune.serve.sequence import Sequence
    from dollartune.serve.slices import RowWork

log = logging.getLogger("dollartune")
ResultT = TypeVar("ResultT")


def kind_of_batch(backbone: Backbone) -> type[RunningBatch]:
    """How a backbone's rows generate together."""
    if backbone.kind == "encoder_decoder":
        return EncoderDecoderBatch
    if backbone.kind == "decoder" and backbone.objective == "language" and not backbone.anatomy.rows_join:
        return RowByRowBatch
    return RunningBatch


class BatchingEngine:
    """Runs sequences and jobs on a thread of its own.

    Args:
        pool: the backbone and its adapters.
        limits: sizes and times.
    """

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self._waiting: deque[Sequence] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any], float]] = deque()
        self._batches: dict[str, RunningBatch] = {}
        self.slices = Slices(limits.pause_seconds)
        # 512 tokens to begin with: a fraction of a second on a processor for models that are served there.
        self._piece = PieceSize(limits.pause_seconds, 512, least=32)
        self._kind = kind_of_batch(pool.backbone)
        # Without a backward pass a token costs half of what is counted there.
        self._spare_padding = 2 * overhead_tokens(pool.backbone)
        self._end_tokens = end_tokens(pool.backbone) if pool.backbone.objective == "language" else frozenset()
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._stopping = False
        self._draining = False
        self._rows_turn = False
        """The last turn did a slice of rows."""
        self._busy = False
        """A step is being done: what it took from the queue may not be in a batch yet."""
        self.generated = 0
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="dollartune-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    # For other threads

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting) + len(self._jobs) + len(self.slices)

    @property
    def running(self) -> int:
        """Sequences that generate now, or whose prompts are read."""
        return sum(len(batch.holds) for batch in list(self._batches.values()))

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes work."""
        return self._thread.is_alive() and not self._draining

    def submit(self, sequences: list[Sequence]) -> None:
        """Queues sequences, all or none.

        Raises:
            Refused: the queue is full (429), or the server stops (503).
        """
        with self._wake:
            self._admit(len(sequences))
            self._waiting.extend(sequences)
            self._wake.notify()

    def call(self, job: Callable[[], ResultT], urgent: bool = False) -> Future[ResultT]:
        """Runs a function on the engine's thread between two steps.

        Raises:
            Refused: as `submit`; urgent jobs (adding adapters) do not count against the queue.
        """
        future: Future[ResultT] = Future()
        with self._wake:
            # An adapter must be addable while the queue is full: that may be how an operator relieves it.
            self._admit(0 if urgent else 1)
            self._jobs.append((job, future, time.monotonic() + self.limits.request_seconds))
            self._wake.notify()
        return future

    def add_rows(self, work: RowWork) -> None:
        """Queues rows to be labelled or embedded, in slices between the steps.

        Raises:
            Refused: as `submit`.
        """
        with self._wake:
            self._admit(1)
            self.slices.add(work)
            self._wake.notify()

    def _admit(self, count: int) -> None:
        if self._draining or not self._thread.is_alive():
            raise Refused(503, "the server is stopping", "service_unavailable")
        if count and self.waiting + count > self.limits.queue:
            raise Refused(
                429, f"{self.waiting} requests wait already; at most {self.limits.queue} may", "rate_limit_exceeded"
            )

    def stop(self, drain_seconds: float | None = None) -> None:
        """Takes no new work, lets what runs finish for a while, and ends the thread."""
        with self._wake:
            self._draining = True
            self._wake.notify()
        end = time.monotonic() + (self.limits.drain_seconds if drain_seconds is None else drain_seconds)
        # Polled, not signalled: stopping happens once, and a condition held here would slow every step of the engine's
        # thread.
        while (self._busy or self.running or self.waiting) and time.monotonic() < end and self._thread.is_alive():
            # 20 ms: far below what a person notices, far above what a check costs.
            time.sleep(0.02)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            # The step that runs cannot be interrupted, and 30 s is far more than it should take. After that the process may
            # end anyway: the thread is a daemon.
            self._thread.join(timeout=30)

    # The thread

    def _run(self) -> None:
        with fast_linears(self.pool.attached):
            self._serve()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._jobs or self.slices or self._stopping or self.running):
                    # Woken twice a second without work, so that adapters that were removed while held are freed on an idle
                    # server, too.
                    self._wake.wait(timeout=0.5)
                    self.pool.sweep()
                if self._stopping:
                    break
                self._busy = True
            try:
                self._turn()
            except Exception:  # a fault of this program's ends what runs and waits, never the server
                log.exception("the engine failed between two steps")
                for sequence in self._all():
                    self._end(sequence, "error")
                with self._wake:
                    self._waiting = deque([sequence for sequence in self._waiting if sequence.finished is None])
                self._batches.clear()
            self._busy = False
        for sequence in self._all():
            self._end(sequence, "cancelled")
        self.slices.cancel()
        for _, future, _ in self._jobs:
            future.cancel()

    def _turn(self) -> None:
        """A piece of all that is to be done, and a step of each batch."""
        # Jobs first: adding an adapter would else wait for every text that runs. Then expiry, so that rows whose time is up do
        # not take part in one more step.
        self._do_jobs()
        self._expire()
        # Prompts and rows take turns: half of a pause for each would be twice as many passes over all weights.
        self._rows_turn = bool(self.slices) and not (self._rows_turn and self._prompts_wait())
        if self._rows_turn:
            self.slices.step()
        else:
            self._take_in()
        for batch in list(self._batches.values()):
            self._guarded(batch, batch.step, list(batch.rows))
            self.generated += len(batch.rows)
        for lane in [lane for lane, batch in self._batches.items() if lane != "+0" and not batch.holds]:
            del self._batches[lane]
        self.steps += 1
        self.pool.sweep()

    def _do_jobs(self) -> None:
        for _ in range(len(self._jobs)):
            job, future, deadline = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            # Checked when it begins, not only by who waits: work whose client has given up must not delay the others.
            if time.monotonic() > deadline:
                future.set_exception(Refused(504, "the request waited too long", "timeout"))
                continue
            try:
                future.set_result(job())
            except Exception as error:  # whatever it is belongs to the caller, who waits for it; the engine goes on
                future.set_exception(error)

    def _expire(self) -> None:
        """Ends sequences whose time is up or whose client has gone."""
        now = time.monotonic()
        for sequence in self._all():
            if sequence.cancelled.is_set():
                self._end(sequence, "cancelled")
            elif now > sequence.deadline:
                self._end(sequence, "timeout")
        with self._wake:
            self._waiting = deque([sequence for sequence in self._waiting if sequence.finished is None])
        for batch in self._batches.values():
            batch.leave()

    def _all(self) -> list[Sequence]:
        """Sequences that wait, are read, or generate."""
        with self._wake:
            arrived = list(self._waiting)
        return [*arrived, *(row for batch in self._batches.values() for row in batch.holds)]

    def _fill(self) -> None:
        """Lets waiting sequences join: those of one lane that are about as long as the one that waits longest."""
        room = self._room()
        reading = {lane for lane, batch in self._batches.items() if batch.waits}
        with self._wake:  # other threads add to it while it is looked at
            arrived = list(self._waiting)
        waiting = [(self._lane(sequence), sequence) for sequence in arrived]
        # One group of prompts is read at a time in each lane, in pieces; others wait until it has joined.
        lane = next((lane for lane, _ in waiting if lane not in reading), None)
        if lane is None or room <= 0:
            return
        # Far more candidates than can join make the group even; all of a long queue would make looking at them the work.
        candidates = [sequence for own, sequence in waiting if own == lane][: 4 * self.limits.batch_rows]
        if candidates[0].scores_prompt:  # logits at every place take a vocabulary's width of memory for each token
            candidates = [sequence for sequence in candidates if sequence.scores_prompt]
            most = self.limits.scored_tokens
        else:
            candidates = [sequence for sequence in candidates if not sequence.scores_prompt]
            most = self.limits.prefill_tokens
        known = self.pool.beginnings.known
        lengths = [len(s.prompt) - (0 if s.scores_prompt else known(s.served, s.prompt)) for s in candidates]
        joining = self._without_twins([candidates[i] for i in choose(lengths, room, most, self._spare_padding)])
        taken = {id(sequence) for sequence in joining}
        with self._wake:
            self._waiting = deque([sequence for sequence in self._waiting if id(sequence) not in taken])
        if self._kind is EncoderDecoderBatch and not shares_pass(self.pool, joining):
            lane = f"{lane}/{next(self._numbers)}"  # rows that join later are a batch of their own there
        batch = self._batches.setdefault(lane, self._kind(self.pool, self._end_tokens))
        self._guarded(batch, lambda: batch.begin(joining), joining)

    def _without_twins(self, group: list[Sequence]) -> list[Sequence]:
        """Of rows that begin alike for long, the first: the others wait until its keys and values are there."""
        kept: list[Sequence] = []
        for sequence in group:
            begins = self.pool.beginnings
            alike = (
                common_length(sequence.prompt, other.prompt) - begins.known(sequence.served, sequence.prompt)
                for other in kept
                if other.served is sequence.served
            )
            waits = not sequence.scores_prompt and begins.takes(sequence.served) and begins.fits(len(sequence.prompt))
            if not waits or max(alike, default=0) < 2 * LEAST:
                kept.append(sequence)
        return kept

    def _lane(self, sequence: Sequence) -> str:
        """Sequences of one lane share a batch."""
        served = sequence.served
        # Adapters that cannot share a batch (gates over several parts) get a batch of their own, named after them.
        lane = served.key if served is not None and not served.adapter.mixed_rows else ""
        if self._kind is EncoderDecoderBatch and served is not None:
            # Virtual tokens in the decoder come before its first token: rows with equal numbers of them are read together.
            lane += f"+{sum(edit.length for edit in served.adapter.virtual.get('decoder', []))}"
        elif self._kind is RunningBatch and (longer := length_class(len(sequence.prompt), self.limits.short_tokens)):
            lane += f"~{longer}"
        return lane or "+0"

    def _room(self) -> int:
        """Rows that may join now."""
        room = self.limits.batch_rows - self.running
        # Reading prompts costs a pass of its own, so that under load several rows join at a time.
        return 0 if self.running and room < min(self.limits.batch_rows // 8, len(self._waiting)) else room

    def _prompts_wait(self) -> bool:
        """Whether there are prompts that can be read now."""
        return any(batch.waits for batch in self._batches.values()) or (bool(self._waiting) and self._room() > 0)

    def _take_in(self) -> None:
        """Reads prompts of sequences that wait: all that there is room for, since steps of many rows cost little more than
        those of few; where a reader of a stream waits for its next token, for no longer than a pause."""
        tokens, seconds = 0, 0.0  # read while somebody waited
        while True:
            start = time.monotonic()  # letting rows join stacks their adapters
            self._fill()
            watched = self._watched()
            most = self._piece.most() - tokens if watched else self.limits.prefill_tokens
            # Each piece is a pass over all weights: a small rest is left for the next turn.
            if tokens and watched and (most < self._piece.least or seconds >= self.limits.pause_seconds):
                break
            read = self._read(most)
            if watched:
                tokens, seconds = tokens + read, seconds + time.monotonic() - start
            if not read or self._jobs:
                break
        if tokens:
            self._piece.took(tokens, seconds)

    def _watched(self) -> bool:
        """Whether somebody waits for the next token of a text, or for rows of a classification."""
        return bool(self.slices) or any(row.streams for batch in self._batches.values() for row in batch.rows)

    def _read(self, most: int) -> int:
        """Reads a piece of the prompts that are on their way into each batch; gives the tokens read."""
        total = 0
        for batch in list(self._batches.values()):
            rows = list(batch.waits)
            if not rows:
                continue
            if total and self._watched():  # the batch before may have rows since it was read
                most = min(most, total + self._piece.most())

            def read(batch: RunningBatch = batch, most: int = most) -> None:
                nonlocal total
                total += batch.read(max(1, most - total))

            self._guarded(batch, read, rows)
            # A prompt may be answered in full by the pass that reads it; such rows never reach a step, where others are
            # released.
            for sequence in rows:
                if sequence.finished is not None:
                    self._release(sequence)
        return total

    def _guarded(self, batch: RunningBatch, work: Callable[[], None], rows: list[Sequence]) -> None:
        """Does a batch's work; if it fails, its rows end with an error and the server goes on."""
        before = list(batch.rows)
        try:
            work()
        except Exception as error:
            level = logging.WARNING if isinstance(error, UserError) else logging.ERROR
            log.log(level, "a batch of %d rows failed: %s", len(rows), error, exc_info=not isinstance(error, UserError))
            for sequence in list(rows):  # where rows were joining, those that run already go on
                self._end(sequence, "error")
            batch.leave()
            return
        for sequence in before:
            if sequence.finished is not None:
                self._release(sequence)

    def _end(self, sequence: Sequence, reason: str) -> None:
        if sequence.finished is None:
            sequence.finish(reason)
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Lets go of the adapter, once."""
        if not sequence.released:
            sequence.released = True
            self.pool.release(sequence.served)
