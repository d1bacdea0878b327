"""Where every second is booked: loading, tuning, evaluation, export, failures.

    elapsed      |-----------------------------------------------|
    other        |==|                                         |==|     the outermost booking
    tune            |=======|           |======|
    evaluate                |===========|      |==============|

A booking inside another interrupts it, so that each second belongs to exactly one booking: the one opened last. Wrap a
whole run in `ledger.book("other")` and the sum of all bookings is the run's wall time.

dollars = booked seconds x price per hour / 3600
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, get_args

from dollartune.budget.deadline import BudgetSpent, Deadline
from dollartune.budget.journal import FailedBooking, Journal, Piece
from dollartune.budget.limit import in_seconds
from dollartune.budget.totals import RunningSums, Totals, totals
from dollartune.errors import UserError, unknown_name

Category = Literal["load", "tune", "evaluate", "export", "failure", "plan", "report", "other", "train"]
"""What time is spent on. `train` is accepted and booked as `tune`."""
CATEGORIES: tuple[str, ...] = tuple(name for name in get_args(Category) if name != "train")


class Elsewhere(Protocol):
    """Work on another machine whose time is booked here (see `engines.worker_account`)."""

    def running(self) -> Sequence[Piece]:
        """What it has spent that is not final yet."""


@dataclass(frozen=True)
class Share:
    """A part of a booking that several trials share, such as a cohort trained in one pass."""

    trial: str | None
    method: str | None
    weight: float = 1.0


@dataclass
class Booking:
    """What `Ledger.book` hands out. `shares` may be changed while it runs; pieces settled from then on follow it."""

    identifier: str
    category: str
    shares: Sequence[Share]
    price_per_hour: float
    seconds: float = 0.0
    """Own time settled so far, without that of nested bookings."""


@dataclass(eq=False)
class Ledger:
    """The account of one study on one machine.

    Args:
        price_per_hour: dollars per hour of this machine.
        limit_seconds: the budget; `None` for no limit. With `per="method"` it holds for each method alone.
        limit_dollars: the same in money, where several machines with different prices are booked.
        per: whom the limit binds: the whole study, or each method.
        methods: those among whom shared time (loading, planning) is divided in equal parts; without them a method
            is charged for its own time alone.
        path: JSON-lines file to keep the account in; opening an existing one resumes it. `None`: in memory only.
        clock: seconds that never run backwards.
        own_price: dollars per hour of this process, where the work is done and paid for elsewhere; `price_per_hour` then
            only turns seconds into money where a budget is divided.
        heartbeat_seconds: how much time a `kill -9` may lose; 0 leaves the heartbeat to the caller.
        kept_seconds: of the whole study, for what follows it (the report): `remaining` leaves them out.
        earlier: pieces of another ledger (`bookings_of`) for trials that go on here: part of what these have cost (`totals`), not
            of what is spent here.

    Raises:
        UserError: a negative price or limit, or another process writing the same file.
    """

    price_per_hour: float = 0.0
    limit_seconds: float | None = None
    path: Path | None = None
    limit_dollars: float | None = None
    per: Literal["study", "method"] = "study"
    methods: Sequence[str] = ()
    clock: Callable[[], float] = time.monotonic
    heartbeat_seconds: float = 1.0
    own_price: float | None = None
    kept_seconds: float = 0.0
    earlier: Sequence[Piece] = ()
    session: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __post_init__(self) -> None:
        for name in ("price_per_hour", "limit_seconds", "limit_dollars"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} must not be negative, got {value}.")
        # Reentrant: whoever books several pieces as one (`keep` of a worker's account) holds it around calls that take it too.
        self.lock = threading.RLock()
        """Held while anything is booked."""
        self._stack: list[Booking] = []
        self._elsewhere: list[Elsewhere] = []
        self._mark = 0.0
        self._mark_wall = 0.0
        self._number = 0
        self._journal = Journal(Path(self.path)) if self.path is not None else None
        here = self._journal.pieces if self._journal else []
        self._pieces: list[Piece] = [*self.earlier, *here]
        self._failed: set[str] = self._journal.failed if self._journal else set()
        self._attempts: dict[str, int] = {}
        for piece in self._pieces:
            self._note_attempt(piece)
        self._sums = RunningSums(here)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- booking ------------------------------------------------------------------------------------------------

    @contextmanager
    def book(
        self,
        category: Category,
        *,
        trial: str | None = None,
        method: str | None = None,
        shares: Sequence[Share] | None = None,
        price_per_hour: float | None = None,
    ) -> Iterator[Booking]:
        """Books the time inside the `with` block, less that of bookings nested in it.

        A block left by an error (an `Exception` other than `BudgetSpent`) counts as `failure`; the error passes on.

        Args:
            category: one of `CATEGORIES`.
            trial: for which trial.
            method: for which method; with neither, the time is shared.
            shares: for several trials at once, in proportion to their weights; excludes `trial` and `method`.
            price_per_hour: when this time costs another price than the ledger's.
        """
        category = self._check(category, trial, method, shares)
        price = self._price(price_per_hour)
        # Twelve digits, 48 bits: unique over all processes and machines of a study, short in a file of thousands of
        # lines.
        booking = Booking(uuid.uuid4().hex[:12], category, shares or (Share(trial, method),), price)
        try:
            self._begin(booking)
            yield booking
        # Money that ran out is no failure: what was done until then is kept and goes on later.
        except BudgetSpent:
            raise
        except Exception:
            self.fail(booking.identifier)
            raise
        finally:
            self._end(booking)

    def add(
        self,
        category: Category,
        seconds: float,
        *,
        trial: str | None = None,
        method: str | None = None,
        price_per_hour: float | None = None,
    ) -> None:
        """Books time that another machine spent (a remote worker reports it); it is not taken from this clock."""
        category = self._check(category, trial, method, None)
        if not seconds >= 0:
            raise UserError(f"booked seconds must not be negative, got {seconds}.")
        price = self._price(price_per_hour)
        with self.lock:
            self._store(Booking(uuid.uuid4().hex[:12], category, (Share(trial, method),), price), seconds, time.time())

    def begin_attempt(self, trial: str) -> None:
        """What is booked for a trial from now on is all that it has cost (`Totals.by_trial`): it begins anew, and nothing of
        what was booked before is in what it leaves. The account keeps all of it."""
        with self.lock:
            self._settle()
            if trial in self._attempts:  # else nothing was booked that would have to be left out
                self._attempts[trial] += 1
                # A piece of no length, so that a kill does not forget it and `by_trial` knows it at once.
                self._store(Booking(uuid.uuid4().hex[:12], "other", (Share(trial, None),), 0.0), 0.0, time.time())

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Books nothing inside: this process waits for work that is booked on the machines that do it."""
        waiting = Booking(uuid.uuid4().hex[:12], "other", (), 0.0)
        try:
            self._begin(waiting)
            yield
        finally:
            self._end(waiting)

    def follow(self, work: Elsewhere) -> None:
        """Counts the running time of work on another machine from now on."""
        with self.lock:
            self._elsewhere.append(work)
        self._start_heartbeat()

    def unfollow(self, work: Elsewhere) -> None:
        """Ends that; what it has spent must be final."""
        with self.lock:
            self._elsewhere.remove(work)

    def settled(self, after: int) -> tuple[list[Piece], frozenset[str]]:
        """Ends the running piece and begins another: all pieces of this ledger but the first `after`, and the bookings that
        failed."""
        with self.lock:
            self._settle()
            return self._pieces[len(self.earlier) + after :], frozenset(self._failed)

    def append(self, piece: Piece) -> None:
        """Books a finished piece of another machine's ledger, once: it keeps its session and number."""
        with self.lock:
            self._keep(self._of_now(piece))

    def fail(self, booking: str) -> None:
        """Notes that a booking ended with an error; its time counts as `failure`, whenever it was booked."""
        with self.lock:
            if booking not in self._failed:
                self._failed.add(booking)
                if self._journal:
                    self._journal.append(FailedBooking(booking))

    def booking_now(self) -> bool:
        """Whether this thread is in the middle of booking something: a bad moment for an interruption."""
        return bool(self.lock._is_owned())  # type: ignore[attr-defined]  # documented for conditions only

    def innermost(self) -> str:
        """Identifier of the booking that time is given to now; empty where there is none."""
        with self.lock:
            return self._stack[-1].identifier if self._stack else ""

    def heartbeat(self) -> None:
        """Writes down the running piece. Called by a thread every `heartbeat_seconds`; tests call it themselves."""
        with self.lock:
            self._beat()

    def close(self) -> None:
        """Settles what is open and closes the file. Use the ledger as a context manager to have this called."""
        self._stop.set()
        # A thread cannot join itself.
        if self._thread is not None and self._thread is not threading.current_thread():
            # It waits on an event that was just set; five seconds are for a machine that swaps.
            self._thread.join(timeout=5)
        with self.lock:
            try:
                self._settle()
                if self._journal:
                    self._journal.end()
            finally:  # a full disk keeps no lock
                journal, self._journal = self._journal, None
                if journal:
                    journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Everything booked so far, the running piece included."""
        return totals(*self.pieces())

    def pieces(self) -> tuple[list[Piece], frozenset[str]]:
        """Every piece so far, the running one included, and the bookings that failed."""
        with self.lock:
            return [*self._pieces, *self._running()], frozenset(self._failed)

    def spent_seconds(self, method: str | None = None) -> float:
        """Seconds of the study, or of one method with its equal part of the shared time (see `methods`)."""
        return self._spent(method)[0]

    def spent_dollars(self, method: str | None = None) -> float:
        """The same in dollars, at each machine's own price."""
        return self._spent(method)[1]

    def shares_of(self, trial: str) -> dict[str, float]:
        """Booking -> which part of it is in what a trial has cost (`Totals.by_trial`): 1 of one for this trial alone. Those of
        earlier attempts are not there."""
        own: dict[str, list[float]] = {}
        every: dict[str, list[float]] = {}
        for piece in self.bookings_of([trial]):
            every.setdefault(piece.booking, []).append(piece.seconds)
            if piece.trial == trial and piece.attempt == self._attempt(trial):
                own.setdefault(piece.booking, []).append(piece.seconds)
        # Where no time has passed, as by a clock that stands still, by the number of those who share it.
        return {
            booking: sum(own[booking]) / sum(all_of) if sum(all_of) else len(own[booking]) / len(all_of)
            for booking, all_of in every.items()
        }

    def bookings_of(self, trials: Iterable[str]) -> list[Piece]:
        """The pieces of all bookings in which the newest attempts at these trials have a part, those of other trials too."""
        with self.lock:
            attempts = {trial: self._attempt(trial) for trial in trials}
            pieces = [*self._pieces, *self._running()]
        bookings = {p.booking for p in pieces if p.trial is not None and attempts.get(p.trial) == p.attempt}
        return [piece for piece in pieces if piece.booking in bookings]

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.limit_seconds is not None or self.limit_dollars is not None

    def remaining(self, method: str | None = None) -> float:
        """Seconds left of the limit at this machine's price, without what is kept: negative when overspent, infinity without a
        limit.

        With `per="method"` and no method named: what is left of the study's sum, that is, limit x number of methods.
        """
        # One limit for the study binds whoever works, so the method asked for makes no difference.
        seconds, dollars = self._spent(method if self.per == "method" else None)
        # Nobody's seconds in particular: the study has the limits of all its methods together.
        several = len(self.methods) or 1 if self.per == "method" and method is None else 1
        seconds_left = None if self.limit_seconds is None else self.limit_seconds * several - seconds
        dollars_left = None if self.limit_dollars is None else self.limit_dollars * several - dollars
        # what is kept is shared time, of which each method bears an equal part
        kept = self.kept_seconds / (len(self.methods) or 1 if self.per == "method" and method is not None else 1)
        return in_seconds(seconds_left, dollars_left, self.price_per_hour) - kept

    def deadline(self, reserve: float, method: str | None = None) -> Deadline:
        """Until when training may go on, so that `reserve` seconds are left for evaluating and writing."""
        return Deadline(self, reserve, method)

    # -- inside -------------------------------------------------------------------------------------------------

    def _price(self, given: float | None) -> float:
        price = self.price_per_hour if self.own_price is None else self.own_price
        return price if given is None else given

    @staticmethod
    def _check(category: Category, trial: str | None, method: str | None, shares: Sequence[Share] | None) -> Category:
        if category == "train":
            category = "tune"
        if category not in CATEGORIES:
            raise unknown_name("ledger category", category, CATEGORIES)
        if shares is not None:
            if trial is not None or method is not None:
                raise ValueError("give either shares or trial and method, not both")
            if not shares or sum(share.weight for share in shares) <= 0 or min(s.weight for s in shares) < 0:
                raise ValueError("shares need weights of at least 0 with a positive sum")
        return category

    def _begin(self, booking: Booking) -> None:
        with self.lock:
            self._settle()
            self._stack.append(booking)
            self._beat()
        self._start_heartbeat()

    def _end(self, booking: Booking) -> None:
        """Ends a booking, and with it those inside it that an interruption kept from ending."""
        with self.lock:
            # The outer booking gets its seconds up to here before the inner one begins to count.
            self._settle()
            if booking in self._stack:
                # An alarm may leave a nested block before its own `finally` has begun.
                del self._stack[self._stack.index(booking) :]
            self._beat()

    def _settle(self) -> None:
        """Gives the time since the last mark to the innermost booking, and moves the mark."""
        now, mark, mark_wall = self.clock(), self._mark, self._mark_wall
        # First: what cannot be written, as the disk is full, is not booked a second time.
        self._mark, self._mark_wall = now, time.time()
        if self._stack:
            booking = self._stack[-1]
            # A clock that a test or a suspended machine sets back must not give time back.
            elapsed = max(0.0, now - mark)
            booking.seconds += elapsed
            self._store(booking, elapsed, mark_wall)

    def _cut(self, booking: Booking, seconds: float, started: float) -> list[Piece]:
        weight = sum(share.weight for share in booking.shares)  # without shares (`elsewhere`) there is no piece
        return [
            Piece(
                self.session, self._number + offset, booking.identifier, booking.category, share.trial, share.method,
                seconds * share.weight / weight, booking.price_per_hour, started, attempt=self._attempt(share.trial),
            )
            for offset, share in enumerate(booking.shares)
        ]  # fmt: skip

    def _store(self, booking: Booking, seconds: float, started: float) -> None:
        pieces = self._cut(booking, seconds, started)
        self._number += len(pieces)
        for piece in pieces:
            self._keep(piece)

    def _attempt(self, trial: str | None) -> int:
        return 0 if trial is None else self._attempts.get(trial, 0)

    def _note_attempt(self, piece: Piece) -> None:
        if piece.trial is not None:
            self._attempts[piece.trial] = max(piece.attempt, self._attempt(piece.trial))

    def _of_now(self, piece: Piece) -> Piece:
        """A piece of another machine, which knows nothing of earlier attempts."""
        now = self._attempt(piece.trial)
        return piece if piece.attempt == now else replace(piece, attempt=now)

    def _keep(self, piece: Piece) -> None:
        self._note_attempt(piece)
        self._pieces.append(piece)
        self._sums.add(piece)
        if self._journal:
            self._journal.append(piece)

    def _running(self) -> list[Piece]:
        elsewhere = [self._of_now(piece) for work in self._elsewhere for piece in work.running()]
        if not self._stack:
            return elsewhere
        return [*elsewhere, *self._cut(self._stack[-1], max(0.0, self.clock() - self._mark), self._mark_wall)]

    def _spent(self, method: str | None) -> tuple[float, float]:
        with self.lock:
            # Final pieces are summed as they come; only the few that run are added anew for each question, of which
            # training asks one per step.
            sums = RunningSums(self._running())
            seconds, dollars = self._sums.of(method, len(self.methods))
            running_seconds, running_dollars = sums.of(method, len(self.methods))
            return seconds + running_seconds, dollars + running_dollars

    def _beat(self) -> None:
        if self._journal:
            # What has ended is in the journal; for want of room a kill loses more of what runs, and no work ends for that.
            with suppress(OSError):
                self._journal.beat(self._running())

    def _start_heartbeat(self) -> None:
        if self._journal is None or self.heartbeat_seconds <= 0 or self._thread is not None:
            return
        # A daemon: it must not keep a process alive that has ended without closing the ledger.
        self._thread = threading.Thread(target=self._keep_beating, name="dollartune-ledger", daemon=True)
        self._thread.start()

    def _keep_beating(self) -> None:
        owner = os.getpid()
        while not self._stop.wait(self.heartbeat_seconds):
            # A forked child (a loader's worker) has a copy of this thread's ledger, and would write into the parent's
            # file.
            if os.getpid() != owner:
                return
            self.heartbeat()
