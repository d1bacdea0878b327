"""What a server accepts before it refuses, with words that say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one server."""

    # A compromise, not tuned on a GPU: more rows are cheaper each, and each row's keys and values take memory.
    batch_rows: int = 32
    """Sequences that generate at the same time."""
    # Rows that join together wait for the last of them.
    prefill_tokens: int = 4096
    """Prompt tokens that join together, padding included; a longer prompt is read alone."""
    # 16 rows of 600 more places than they need are as much memory to read in each step as the weights of SmolLM2-135M.
    short_tokens: int = 512
    """Prompts up to this length generate together whatever their lengths; longer ones with those up to four times as long."""
    # Prompts and labels are computed in pieces between the steps; a reader of a stream notices a second without a word. A piece
    # may take twice what it was sized for, and a step of some dozen rows comes on top.
    pause_seconds: float = 0.25
    """Longest time for which pieces of prompts, or a slice of rows, keep the texts that run from their next token; where both
    wait, they take turns."""
    shared_bytes: int | None = None
    """Keys and values of earlier prompts that are kept for prompts that begin alike; 0 keeps none, None as many as take a tenth
    of the memory that is free once the backbone is there."""
    # 1,024 places times a vocabulary of 150,000 are 600 MB of logits.
    scored_tokens: int = 1024
    """Prompt tokens read in one pass where each one's log-probability is wanted."""
    queue: int = 256
    """Requests that may wait; more are refused with 429."""
    # 64 prompts of 4,096 tokens at 4 characters each come to about 1 MB.
    body_bytes: int = 1_000_000
    """Largest request body; more is refused with 413."""
    body_seconds: float = 15.0
    """Longest time in which a body must arrive; slower is refused with 408."""
    request_seconds: float = 120.0
    """Longest time a request may wait and run; after that it is refused with 504, or its stream ends."""
    # Reading a request's head takes one round trip; a minute would let one client hold a thousand sockets.
    idle_seconds: float = 10.0
    """Longest time without a whole request on a connection, whatever bytes drip in; then it is closed."""
    # A process may often open 1,024 files; what is above is taken from those that wait longest.
    connections: int = 900
    """Connections at a time; of more, the one that is idle longest is closed."""
    labels: int = 1000
    """Most labels of an adapter: scoring takes time and memory for each of them, at every row."""
    new_tokens: int = 512
    """Most tokens that one request may ask for."""
    prompts: int = 64
    """Most prompts or rows in one request."""
    # Below the 30 s after which container schedulers kill a process that was told to stop.
    drain_seconds: float = 20.0
    """How long running requests may take to finish when the server stops."""


class Refused(Exception):
    """A request that the server does not do, with its HTTP status."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param
