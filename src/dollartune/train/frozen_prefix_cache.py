"""A cache of what leaves the frozen prefix (the layers below the lowest edited one): once per example, for all epochs, seeds
and trials.

    rows ── key: tokens (pixels), stack, layers ──> known? ──yes──> states, padded again for this batch
                                                       └──no──> run_frozen_prefix, store unpadded

Exact: a row's states depend on its own tokens alone (padding is to the right and masked), so they are what the plain pass
computes, within the rounding of differently shaped matrix products. They are stored in the backbone's number format, in memory
up to a limit, then in a file without a name, which the system removes however the process ends.

There is nothing to store where the backbone uses its own dropout, where the first layer is edited already, or where every row
is passed once.

Trials after the first get for nothing what each of them would have to pay for alone: `noting` tells what it took, as that of
features does.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.batch_layout import right_padded
from dollartune.attachment.fast.frozen_layers import LayerCounts, decoder_is_fed, shared_layers
from dollartune.attachment.fast.frozen_prefix import run_frozen_prefix
from dollartune.train.distributed import processes
from dollartune.train.free_memory import free_host_bytes

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.attachment.routed_model import RoutedModel
    from dollartune.attachment.routing import Assignment
    from dollartune.train.batching import Batch

_UNDERSTOOD = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
    "pixel_values",
}
"""With any other input (a cache, positions, embeddings) the states may depend on more than the key says."""

_MEMORY_PART = 4
"""A quarter of the memory that is free when the cache is made: training needs the rest, as saved activations take up to half."""
_DISK_PART = 2
"""Half of the disk's free space: checkpoints, adapters and other processes write there too."""


@dataclass(frozen=True)
class _InFile:
    """Where states lie in the file."""

    offset: int
    shape: tuple[int, int]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False, slots=True)
class KnownStates:
    """What leaves the frozen prefix for one row in one stack."""

    states: Tensor | _InFile
    """(real tokens, d_model)"""
    seconds: float
    """What they took when they were computed: an equal part of their batch."""
    booking: str
    """Of the study's ledger, which paid for them; empty where nothing was booked."""


class FrozenPrefixCache:
    """States of one backbone.

    Args:
        memory_bytes: limit of what is stored in memory; by default a quarter of what is free now.
        folder: where the file goes, which takes half of the disk's free space at most; None stores in memory only.
    """

    def __init__(self, memory_bytes: int | None = None, folder: Path | None = None) -> None:
        self.memory_bytes = free_host_bytes() // _MEMORY_PART if memory_bytes is None else memory_bytes
        self.folder = folder
        self.reuse = False
        """Whether rows that are new now will be seen again: then they are stored, else only what is stored already is used."""
        self.memory_used = self.disk_used = self.disk_bytes = 0
        self.computed_tokens = self.reused_tokens = 0
        self._stored: dict[bytes, KnownStates] = {}
        self._prefixes: dict[bytes, tuple[bytes, int]] = {}
        """Key of a prompt -> key of the longer row that begins with it, and the prompt's tokens."""
        self._file: IO[bytes] | None = None
        self._read_by: dict[str, set[KnownStates]] | None = None
        self._booking: Callable[[], str] = str

    @contextmanager
    def noting(self, booking: Callable[[], str]) -> Iterator[Mapping[str, set[KnownStates]]]:
        """Gives, by name of the adapter, the states that its passes inside began with, each once.

        Args:
            booking: by which what is computed inside is paid, asked when that begins.
        """
        read_by: dict[str, set[KnownStates]] = defaultdict(set)
        self._read_by, self._booking = read_by, booking
        try:
            yield read_by
        finally:
            self._read_by, self._booking = None, str

    def clear(self) -> None:
        """Forgets everything."""
        self._stored.clear()
        self._prefixes.clear()
        self.memory_used = self.disk_used = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    # What a pass asks

    def layers(self, attached: RoutedModel, route: Iterable[Assignment]) -> dict[str, int]:
        """The frozen prefix that all adapters of a route share; empty where none of them leaves a layer alone."""
        adapters = [a.adapter for a in route if a.adapter is not None]
        # in training mode the backbone's dropout makes other states each time; processes know different rows
        if not adapters or attached.model.training or processes().size > 1:  # processes know different rows
            return {}
        shared = shared_layers(adapter.untouched(attached.anatomy) for adapter in adapters)
        return {stack: count for stack, count in shared.items() if count}

    def states(
        self, attached: Attached, inputs: Mapping[str, Any], prompt_lengths: Tensor | None
    ) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        """Layers of the current route's frozen prefix and its states (rows, tokens, d_model) by stack; None: compute plainly."""
        counts = self.layers(attached, attached.state.route)
        tensors = {name: value for name, value in inputs.items() if value is not None}
        if not decoder_is_fed(attached.anatomy.kind, tensors):
            counts.pop("decoder", None)
        if (
            not counts
            or not tensors.keys() <= _UNDERSTOOD
            or not all(right_padded(tensors[name]) for name in tensors if name.endswith("attention_mask"))
        ):
            return None
        keys = _keys(tensors, counts, attached.anatomy.kind)
        new = self._new(keys)
        # every row is new and will not come again: storing would cost and bring nothing
        if len(new) == len(next(iter(keys.values()))) and not self.reuse:
            return None  # nothing to gain
        fresh = self._compute(attached, counts, tensors, new, keys, prompt_lengths) if new else {}
        routed = [one.adapter for one in attached.state.route]
        self._note((name for name, one in attached.adapters.items() if any(one is other for other in routed)), keys)
        device = next(iter(tensors.values())).device
        states = {}
        for stack, row_keys in keys.items():
            rows = [fresh[key] if key in fresh else self._read(key) for key in row_keys]
            # (rows, tokens, d_model); zeros at padding, which is masked above.
            states[stack] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device, non_blocking=True)
            self.reused_tokens += sum(row.shape[0] for row in rows)
        self.reused_tokens -= sum(row.shape[0] for row in fresh.values())
        widths = _widths(tensors, attached.anatomy.kind)
        return counts, {stack: _widened(one, widths.get(stack)) for stack, one in states.items()}

    def fill(self, attached: RoutedModel, counts: LayerCounts, batch: Batch, adapters: Iterable[str]) -> None:
        """Computes and stores what a batch lacks, for the adapters of these names."""
        counts = {stack: count for stack, count in counts.items() if count}
        keys = _keys(batch.inputs, counts, attached.anatomy.kind)
        if new := self._new(keys):
            self._compute(attached, counts, batch.inputs, new, keys, batch.prompt_lengths)
        self._note(adapters, keys)

    def _note(self, adapters: Iterable[str], keys: Mapping[str, list[bytes]]) -> None:
        if self._read_by is None:
            return
        # What found no room is computed again each time, by whoever needs it.
        every = {
            key if key in self._stored else self._prefixes.get(key, (key, 0))[0] for k in keys.values() for key in k
        }
        known = {self._stored[key] for key in every if key in self._stored}
        for name in adapters:
            self._read_by[name] |= known

    def _new(self, keys: Mapping[str, list[bytes]]) -> list[int]:
        """Rows of which not all is stored."""
        rows = range(len(next(iter(keys.values()))))
        return [r for r in rows if not all(k[r] in self._stored or k[r] in self._prefixes for k in keys.values())]

    def _compute(
        self,
        attached: RoutedModel,
        counts: LayerCounts,
        tensors: Mapping[str, Tensor],
        rows: Sequence[int],
        keys: Mapping[str, list[bytes]],
        prompt_lengths: Tensor | None,
    ) -> dict[bytes, Tensor]:
        """Runs the frozen prefix for some rows of a batch, without the padding that other rows need, and stores what it gives."""
        rows = list({tuple(k[row] for k in keys.values()): row for row in rows}.values())  # equal rows once
        index = torch.tensor(rows, device=next(iter(tensors.values())).device)
        part = _trimmed({name: tensor[index] for name, tensor in tensors.items()})
        computed: dict[bytes, Tensor] = {}
        prompts: dict[bytes, tuple[bytes, int]] = {}
        booking, started = self._booking(), time.perf_counter()
        for stack, states in run_frozen_prefix(attached, counts, part).items():
            lengths = _lengths(part, stack, attached.anatomy.kind)
            for index_in_part, row in enumerate(rows):
                one = states[index_in_part]
                one = one if lengths is None else one[: lengths[index_in_part]]  # (real tokens, d_model)
                one = one.to("cpu", copy=True)  # a view would keep the whole batch alive
                computed[keys[stack][row]] = one
                self.computed_tokens += one.shape[0]
                # a decoder's states of a prompt do not know the answer behind it, so scoring finds them by the prompt alone
                if attached.anatomy.kind == "decoder" and prompt_lengths is not None:
                    length = int(prompt_lengths[row])
                    prompt = _digest(stack, counts[stack], _bytes(part["input_ids"][index_in_part, :length]))
                    prompts[prompt] = keys[stack][row], length
        # After the last copy to the host, which a GPU's work has to come before.
        each = (time.perf_counter() - started) / max(1, len(computed))
        for key, one in computed.items():
            if key not in self._stored:  # of two stacks one may have found room
                self._store(key, one, each, booking)
        self._prefixes |= {
            prompt: of for prompt, of in prompts.items() if prompt not in self._stored and of[0] in self._stored
        }
        return computed

    # Memory and disk

    def _store(self, key: bytes, states: Tensor, seconds: float, booking: str) -> None:
        size = states.numel() * states.element_size()
        if self.memory_used + size <= self.memory_bytes:
            self._stored[key] = KnownStates(states, seconds, booking)
            self.memory_used += size
            return
        # What finds no room is computed again each time.
        if self.folder is None or not self._write(states.contiguous().view(torch.uint8).numpy().tobytes(), self.folder):
            return
        place = _InFile(self.disk_used, (states.shape[0], states.shape[1]), states.dtype)
        self._stored[key] = KnownStates(place, seconds, booking)
        self.disk_used += size

    def _write(self, data: bytes, folder: Path) -> bool:
        """Appends bytes (numpy has no bf16) to the file; False where there is no room for them."""
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                # Without a buffer: what it could not write later would be missing from what counts as stored.
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # it lives as long as this object
                self.disk_bytes = shutil.disk_usage(folder).free // _DISK_PART
            if self.disk_used + len(data) > self.disk_bytes:
                return False
            self._file.seek(self.disk_used)
            if self._file.write(data) == len(data):
                return True
        except OSError:  # others have filled the disk, or nothing may be written there
            pass
        self.folder = None  # no more of it; what is there is read
        return False

    def _read(self, key: bytes) -> Tensor:
        length = None
        if key not in self._stored:
            key, length = self._prefixes[key]
        states = self._stored[key].states
        if isinstance(states, _InFile):
            assert self._file is not None
            self._file.seek(states.offset)
            # a bytearray: of bytes it would be memory that torch may not write to
            data = bytearray(self._file.read(states.shape[0] * states.shape[1] * states.dtype.itemsize))
            states = torch.frombuffer(data, dtype=states.dtype).view(states.shape)
        return states if length is None else states[:length]


def _digest(stack: str, count: int, *parts: bytes) -> bytes:
    # 16 bytes: two rows of a study never share a key, and a million keys take 16 MB
    whole = hashlib.blake2b(f"{stack}/{count}".encode(), digest_size=16)
    for part in parts:
        whole.update(b"/" + part)
    return whole.digest()


def _bytes(tensor: Tensor) -> bytes:
    # As bytes: numpy has no bf16, which pixels may have.
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _keys(tensors: Mapping[str, Tensor], counts: LayerCounts, kind: str) -> dict[str, list[bytes]]:
    """Stack -> a key for each row, from everything that its states depend on."""
    host = {name: tensor.cpu() for name, tensor in tensors.items()}
    rows = next(iter(host.values())).shape[0]
    read: dict[str, list[bytes]] = {}
    for prefix in ("", "decoder_"):
        ids = host.get(f"{prefix}input_ids")
        if ids is not None:
            lengths = _mask_lengths(host.get(f"{prefix}attention_mask"), ids)
            types = host.get("token_type_ids") if not prefix else None
            read[prefix] = [
                _bytes(ids[row, :n]) + (b"" if types is None else b"+" + _bytes(types[row, :n]))
                for row, n in enumerate(lengths)
            ]
    if kind == "vision":
        read[""] = [_bytes(host["pixel_values"][row]) for row in range(rows)]
    keys = {}
    for stack, count in counts.items():
        inner = kind == "encoder_decoder" and stack == "decoder"  # it reads the encoder's rows too
        keys[stack] = [
            _digest(stack, count, read[""][row], *((read["decoder_"][row],) if inner else ())) for row in range(rows)
        ]
    return keys


def _mask_lengths(mask: Tensor | None, ids: Tensor) -> list[int]:
    return [ids.shape[1]] * ids.shape[0] if mask is None else mask.sum(1).tolist()


def _lengths(tensors: Mapping[str, Tensor], stack: str, kind: str) -> list[int] | None:
    """Real tokens of each row in a stack; None for images."""
    if kind == "vision":
        return None
    prefix = "decoder_" if kind == "encoder_decoder" and stack == "decoder" else ""
    return _mask_lengths(tensors.get(f"{prefix}attention_mask"), tensors[f"{prefix}input_ids"])


def _widths(tensors: Mapping[str, Tensor], kind: str) -> dict[str, int]:
    """Stack -> positions of the batch, padding included."""
    if kind == "vision":
        return {}
    if kind == "encoder_decoder":
        encoder = {"encoder": tensors["input_ids"].shape[1]}
        return encoder | ({"decoder": tensors["decoder_input_ids"].shape[1]} if "decoder_input_ids" in tensors else {})
    return {kind: tensors["input_ids"].shape[1]}


def _widened(states: Tensor, width: int | None) -> Tensor:
    missing = 0 if width is None else width - states.shape[1]
    return torch.nn.functional.pad(states, (0, 0, 0, missing)) if missing else states


def _trimmed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without positions that are padding in every row."""
    trimmed = dict(tensors)
    for prefix, followers in (("", ("token_type_ids",)), ("decoder_", ())):
        mask = tensors.get(f"{prefix}attention_mask")
        if mask is not None:
            longest = int(mask.sum(1).max())
            for name in (f"{prefix}input_ids", f"{prefix}attention_mask", *followers):
                if name in trimmed:
                    trimmed[name] = trimmed[name][:, :longest]
    return trimmed
