"""Connections that say nothing: each must send a whole request in time, and too many never keep a new one out.

uvicorn times out connections between two requests only, and only while no byte arrives; a socket that is opened and says
nothing, or sends one header line a second, is held for ever. Its `limit_concurrency` counts such sockets as requests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from dollartune.serve.limits import Limits


def guarded_protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP with limits on idle connections, for one server."""
    idle: dict[_Guarded, None] = {}  # ordered: the first waits longest
    return type("Guarded", (_Guarded,), {"limits": limits, "idle": idle})


class _Guarded(H11Protocol):  # type: ignore[misc, unused-ignore]
    limits: Limits
    idle: dict[_Guarded, None]
    """Connections on which no request is being answered, longest waiting first."""
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    """Until when a client that does not read what was written may take it."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()
        # Who is being answered is not cut off for a newcomer, even where all are.
        while len(self.connections) > self.limits.connections and self.idle:
            next(iter(self.idle))._give_up()

    def data_received(self, data: bytes) -> None:
        # Before the look at it: uvicorn begins a cycle when the head of a request is whole.
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """What was written waits to be read, 64 kB of it: whoever reads nothing more in time is cut off."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.limits.idle_seconds, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Starts the time when no request is being answered, and ends it when one is; bytes alone change nothing."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self not in self.idle and not self.transport.is_closing():
            self.idle[self] = None
            self._deadline = self.loop.call_later(self.limits.idle_seconds, self._give_up)

    def _forget(self) -> None:
        self.idle.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        # On an open connection the stall goes on: what a client sends says nothing of what it reads.
        if self._stalled is not None and self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        self._forget()
        self.connections.discard(self)  # now: the transport says so one turn of the loop later
        # Not close(): that waits until what was written is read, which a client that holds sockets does not do.
        self.transport.abort()
