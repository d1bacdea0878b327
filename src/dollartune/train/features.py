"""Features of rows by a frozen backbone, computed once: for each trial, each seed, each evaluation and each later run.

    rows ── key: tokens (pixels) ──> known, in memory or in the folder? ──yes──> its vector
                                                └──no──> batches of similar length ──> pooled states ──> kept

    <folder>/<hash of backbone, number format, pooling>/<hash of rows>.safetensors
        features (rows, width), keys (rows, 16), seconds (rows,): what each row took; in the metadata the booking it was paid by

Whoever reads features that were there already got for nothing what others would have to pay for: `noting` tells what they took.
Exact within rounding: a row's features depend on its own tokens alone. Files are only added, whole, each under a name of its
content, so that processes may share a folder; one that is damaged, or does not say what
its rows took, counts as not there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.pooling import pooled_states
from dollartune.files import write_atomically
from dollartune.train.batching import Collator
from dollartune.train.encoding import CONTENT_BYTES
from dollartune.train.micro_batch import evaluation_batches

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.edits import Readout
    from dollartune.train.encoding import Encoded


@dataclass(frozen=True, eq=False, slots=True)
class KnownRow:
    """Features of one row."""

    vector: Tensor
    """(width,)"""
    seconds: float
    """What they took when they were computed: an equal part of its batch."""
    booking: str
    """Of a study's ledger, which paid for them; empty where nothing was booked."""


class FeatureStore:
    """Features of one backbone's rows.

    Args:
        identity: everything that decides the backbone's weights: the hash of its files or its revision, quantization.
        folder: where they are kept for later runs; None keeps them in memory only.
    """

    def __init__(self, identity: str = "", folder: Path | None = None) -> None:
        self.identity, self.folder = identity, folder
        self.computed = 0
        """Rows that were passed through the backbone."""
        self._known: dict[str, dict[bytes, KnownRow]] = {}
        """Backbone, number format and pooling -> row's key -> its features."""
        self._read: set[KnownRow] | None = None
        self._booking: Callable[[], str] = str

    @contextmanager
    def noting(self, booking: Callable[[], str]) -> Iterator[set[KnownRow]]:
        """Gives the rows that are read inside, each once.

        Args:
            booking: by which what is computed inside is paid, asked when that begins.
        """
        read: set[KnownRow] = set()
        self._read, self._booking = read, booking
        try:
            yield read
        finally:
            self._read, self._booking = None, str

    def missing(self, backbone: Backbone, rows: Sequence[Encoded], pooling: tuple[str, ...]) -> list[Encoded]:
        """Rows that would have to be computed, each once."""
        if not pooling:
            return []
        known = self._known_of(self._kind(backbone, pooling))
        return list({key: row for row in rows if (key := row.content) not in known}.values())

    def features(
        self,
        backbone: Backbone,
        attached: Attached,
        rows: Sequence[Encoded],
        pooling: tuple[str, ...],
        batch_size: int = 32,
    ) -> Tensor:
        """(rows, width) in fp32 on the processor, in the order of the rows."""
        if not pooling:
            return torch.zeros(len(rows), 0)
        kind = self._kind(backbone, pooling)
        known = self._known_of(kind)
        missing = self.missing(backbone, rows, pooling)
        fresh: dict[bytes, KnownRow] = {}
        booking = self._booking() if missing else ""
        started = time.perf_counter()
        try:
            for batch, vectors in passes(backbone, attached, missing, pooling, batch_size):
                now = time.perf_counter()
                each, started = (now - started) / len(batch), now
                fresh |= {row.content: KnownRow(one, each, booking) for row, one in zip(batch, vectors, strict=True)}
        finally:  # money may end in the middle: what was paid for is there for the next run
            known |= fresh
            self.computed += len(fresh)
            self._write(kind, booking, fresh)
        read = [known[row.content] for row in rows]
        if self._read is not None:
            self._read.update(read)
        return torch.stack([row.vector for row in read])

    def of(
        self,
        readout: Readout,
        backbone: Backbone,
        attached: Attached,
        rows: Sequence[Encoded],
        batch_size: int = 32,
    ) -> Tensor:
        """What a readout reads of rows, (rows, width)."""
        return self.features(backbone, attached, read_of(readout, rows), readout.pooling, batch_size)

    # In the folder

    def _kind(self, backbone: Backbone, pooling: tuple[str, ...]) -> str:
        # The number format too: bf16 features differ from fp32 ones in the third digit.
        text = f"{self.identity}/{backbone.dtype}/{'+'.join(pooling)}"
        return hashlib.blake2b(text.encode(), digest_size=CONTENT_BYTES).hexdigest()

    def _known_of(self, kind: str) -> dict[bytes, KnownRow]:
        if kind not in self._known:
            self._known[kind] = {}
            for path in sorted((self.folder / kind).glob("*.safetensors")) if self.folder is not None else ():
                try:
                    with safe_open(path, framework="pt") as file:
                        booking = (file.metadata() or {})["booking"]
                        keys, features, seconds = (file.get_tensor(name) for name in ("keys", "features", "seconds"))
                # Damaged, or another process is deleting it: these rows are computed again.
                except (OSError, KeyError, SafetensorError):
                    continue
                self._known[kind] |= {
                    key.tobytes(): KnownRow(vector, took, booking)
                    for key, vector, took in zip(keys.numpy(), features, seconds.tolist(), strict=True)
                }
        return self._known[kind]

    def _write(self, kind: str, booking: str, fresh: dict[bytes, KnownRow]) -> None:
        if self.folder is None or not fresh:
            return
        # copied: of bytes it would be memory that torch may not write to
        keys = torch.from_numpy(np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, CONTENT_BYTES).copy())
        name = hashlib.blake2b(b"".join(fresh), digest_size=CONTENT_BYTES).hexdigest()
        features = torch.stack([row.vector for row in fresh.values()])
        seconds = torch.tensor([row.seconds for row in fresh.values()])
        content = save({"keys": keys, "features": features, "seconds": seconds}, metadata={"booking": booking})
        with suppress(OSError):  # a disk that is full costs the time of later runs
            write_atomically(self.folder / kind / f"{name}.safetensors", content, durable=False)  # it can be made again


def read_of(readout: Readout, rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """Rows as a readout reads them: their first tokens, where it reads no more."""
    most = readout.most_tokens
    if most is None:
        return rows
    return [
        row
        if len(row.prompt) <= most
        else replace(
            row, prompt=row.prompt[:most], token_types=None if row.token_types is None else row.token_types[:most]
        )
        for row in rows
    ]


@torch.no_grad()
def passes(
    backbone: Backbone, attached: Attached, rows: Sequence[Encoded], pooling: tuple[str, ...], batch_size: int
) -> Iterator[tuple[list[Encoded], Tensor]]:
    """Yields batches of similar length, each with its features (rows, width), fp32 on the processor."""
    collate = Collator(backbone)
    with fast_kernels(attached):
        for indices in evaluation_batches(backbone, [row.length for row in rows], batch_size):
            batch = [rows[index] for index in indices]
            inputs = collate(batch).to(backbone.device).inputs
            yield batch, pooled_states(attached, inputs, pooling).cpu()
