"""The adapters that a server has, and which rows of a batch each gets.

Adapters of equal structure are stacked: all their rows are one run of the batch, and each edit is computed once for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.device_placement import move_to_backbone
from dollartune.attachment.stacking import GatheredAdapter, RunningRows, StackedAdapters
from dollartune.errors import UserError
from dollartune.export.directory import check_labels, check_tokenizer, load_adapter
from dollartune.export.peft_format import is_peft, read_peft, read_peft_info
from dollartune.methods.stored_adapter import read_info
from dollartune.serve.beginnings import Beginnings
from dollartune.serve.cache import Past, past_of
from dollartune.untrusted_files import check_name

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone


@dataclass
class Served:
    """One adapter in the pool."""

    name: str
    adapter: Adapter
    info: dict[str, Any]
    created: int
    key: str = ""
    """The name under which it is attached; another than `name` where one that is still held has that."""
    group: int = 0
    """Adapters of one group are stacked."""
    rows: int = 0
    """Requests that hold it now."""
    retired: bool = False
    past: Past | None = None
    """What its virtual tokens and prefixes put before every prompt, where that can be kept."""

    @property
    def extra_places(self) -> int:
        """Virtual tokens and prefix places that it puts before a prompt."""
        virtual = sum(edit.length for edits in self.adapter.virtual.values() for edit in edits)
        return virtual + max((sum(e.length for _, e in edits) for edits in self.adapter.prefixes.values()), default=0)


@dataclass
class _Group:
    """Adapters of equal structure; their tensors are stacked when a batch first mixes them."""

    members: list[Served] = field(default_factory=list)
    _stacked: StackedAdapters | None = None

    def add(self, served: Served) -> None:
        """Takes one more member.

        Raises:
            UserError: it has another structure.
        """
        # Tried, not compared: what can be stacked is known to the code that stacks, and to nobody else.
        if self._stacked is None:
            StackedAdapters([self.members[0].adapter, served.adapter])
        else:
            self._stacked = self._stacked.added(served.adapter)
        self.members.append(served)

    def remove(self, served: Served) -> None:
        """Lets a member go. Its numbers stay in the stack until half of that is such: the others' are not copied for it."""
        self.members.remove(served)
        if self._stacked is not None and 2 * len(self.members) < len(self._stacked.adapters):
            self._stacked = None

    @property
    def stacked(self) -> StackedAdapters:
        """The members, and some that were."""
        if self._stacked is None:
            self._stacked = StackedAdapters([member.adapter for member in self.members])
        return self._stacked

    def indices(self, rows: Sequence[Served]) -> list[int]:
        """Which of the stacked adapters is each row's."""
        place = {id(adapter): index for index, adapter in enumerate(self.stacked.adapters)}
        return [place[id(row.adapter)] for row in rows]


class Pool:
    """Adapters by name. Loading may happen on any thread; changing what is attached, on the engine's alone.

    Args:
        backbone: what all adapters share.
        base_name: the name under which the bare backbone is served.
        shared_bytes: of keys and values that are kept of prompts that were read.
    """

    def __init__(self, backbone: Backbone, base_name: str, shared_bytes: int = 0) -> None:
        self.backbone, self.base_name = backbone, base_name
        self.attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
        self.beginnings = Beginnings(backbone, shared_bytes)
        self._served: dict[str, Served] = {}
        self._retired: list[Served] = []
        """Removed or replaced; attached until the last request that holds them ends."""
        self._keys = itertools.count(1)
        self._groups: dict[int, _Group] = {}
        self._next_group = 1
        self._lock = threading.Lock()

    # Looking up

    def names(self) -> list[str]:
        """Names that a request may give as its model, the backbone's first."""
        with self._lock:
            return [self.base_name, *self._served]

    def acquire(self, name: str) -> Served | None:
        """The adapter of that name, held until `release`; None is the bare backbone.

        Raises:
            KeyError: there is none.
        """
        if name == self.base_name:
            return None
        with self._lock:
            served = self._served[name]
            served.rows += 1
            return served

    def release(self, served: Served | None) -> None:
        """Ends a request's hold."""
        if served is not None:
            with self._lock:
                served.rows -= 1

    def get(self, name: str) -> Served | None:
        """The adapter of that name, if there is one."""
        with self._lock:
            return self._served.get(name)

    def changes_backbone(self) -> bool:
        """Whether an adapter is served whose passes put other values into the backbone (full tuning)."""
        with self._lock:
            return any(served.adapter.exclusive for served in (*self._served.values(), *self._retired))

    # Changing

    def load(self, name: str, folder: Path, created: int) -> Served:
        """Reads an adapter from its directory; it is not served before `add`.

        Raises:
            UserError: a name or directory that is refused, or an adapter that does not fit the backbone.
        """
        check_name(name)
        # The small JSON file first: a folder that is refused by its name or task costs no reading of tensors.
        peft = is_peft(folder)
        info = read_peft_info(folder) if peft else read_info(folder)
        objective = info.get("objective", self.backbone.objective)
        if objective != self.backbone.objective:
            raise UserError(f"adapter {name!r} was tuned for {objective}; this server runs {self.backbone.objective}.")
        if peft:
            check_tokenizer(folder, info, self.backbone)
            adapter = move_to_backbone(read_peft(folder, self.backbone)[0], self.backbone.model)
            check_labels(folder, info, adapter, self.backbone)
        else:
            adapter = load_adapter(folder, self.backbone)
        return Served(name, adapter, info, created)

    def add(self, served: Served, replace: bool = False) -> None:
        """Serves an adapter from now on; requests that hold one of the same name finish with that.

        Raises:
            UserError: the name is taken.
        """
        with self._lock:
            if (served.name in self._served and not replace) or served.name == self.base_name:
                raise UserError(f"there is an adapter called {served.name!r} already.")
        # Else every pass would keep its activations for a backward pass that never comes.
        served.adapter.requires_grad_(False)
        taken = served.name in self.attached.adapters
        served.key = f"{served.name}/{next(self._keys)}" if taken else served.name
        self.attached.put(served.key, served.adapter)
        try:
            # Computed once here, under no lock: it is a pass of the model, and requests for others must not wait for it.
            served.past = past_of(self.attached, served.adapter)
        except UserError:
            self.attached.remove(served.key)
            raise
        self._join_group(served)
        with self._lock:
            # Looked up again: it may have been retired while the past was computed.
            if (old := self._served.get(served.name)) is not None:
                self._retire(old)
            self._served[served.name] = served

    def retire(self, name: str) -> None:
        """Takes no new requests for an adapter; `sweep` removes it when the last one ends.

        Raises:
            KeyError: there is none.
        """
        with self._lock:
            self._retire(self._served[name])

    def _retire(self, served: Served) -> None:
        served.retired = True
        del self._served[served.name]
        self._retired.append(served)

    def sweep(self) -> None:
        """Removes retired adapters that nobody holds."""
        with self._lock:
            gone = [served for served in self._retired if served.rows == 0]
            self._retired = [served for served in self._retired if served.rows > 0]
        # Outside the lock, on the engine's thread: no pass runs that could still use the tensors.
        for served in gone:
            self.attached.remove(served.key)
            self.beginnings.forget(served)
            group = self._groups[served.group]
            group.remove(served)
            if not group.members:
                del self._groups[served.group]

    def _join_group(self, served: Served) -> None:
        """Stacks the adapter with the first group whose structure it has."""
        for number, group in self._groups.items():
            try:
                group.add(served)
            except UserError:  # another structure: the next group, or one of its own
                continue
            served.group = number
            return
        served.group = self._next_group
        self._next_group += 1
        self._groups[served.group] = _Group([served])

    # Routing

    @staticmethod
    def order(rows: Sequence[Served | None]) -> list[int]:
        """Indices of rows such that those that are computed together lie together."""
        # Rows of one group lie together: each group costs a product per site, so fewer runs of rows are fewer products.
        return sorted(range(len(rows)), key=lambda i: (0, "") if (s := rows[i]) is None else (s.group, s.key))

    @staticmethod
    def arranged(rows: Sequence[Served | None], stay: Sequence[int]) -> list[int]:
        """As `order`, for rows of which some stay: each that can keeps its place, since moving one copies its cache."""
        groups: dict[int, list[int]] = {}
        for index in stay:
            served = rows[index]
            groups.setdefault(0 if served is None else served.group, []).append(index)
        order: list[int] = []
        for _, members in sorted(groups.items()):
            places = range(len(order), len(order) + len(members))
            moving = [index for index in members if index not in places]
            order += [place if place in members else moving.pop() for place in places]
        return order

    def assignments(
        self, rows: Sequence[Served | None], prompts: bool = True, running: dict[int, RunningRows] | None = None
    ) -> list[Assignment]:
        """The route of a batch whose rows are in the pool's order.

        Args:
            prompts: the pass reads prompts; else single tokens follow a cache that holds virtual tokens and prefixes already.
            running: group -> what the last route of this batch was made of, which this one goes on from and voids.
        """
        assignments: list[Assignment] = []
        if running is not None:
            there = {row.group for row in rows if row is not None}
            for group in running.keys() - there:
                del running[group]
        start = 0
        while start < len(rows):
            first = rows[start]
            stop = start
            while stop < len(rows) and _together(first, rows[stop]):
                stop += 1
            adapter = self._adapter_of(rows[start:stop], prompts, start, running)
            assignments.append(Assignment(adapter, slice(start, stop)))
            start = stop
        return assignments

    def _adapter_of(
        self, rows: Sequence[Served | None], prompts: bool, start: int, running: dict[int, RunningRows] | None
    ) -> Any:
        first = rows[0]
        if first is None:
            return None
        own = first.adapter
        in_cache = first.past is not None or not (prompts or own.prefixes)
        if in_cache and not (own.inputs or own.outputs or own.exclusive):
            return None  # the cache holds all that it does
        gathered = self._gathered(first, rows, start, running)
        # What the cache holds must not be put before the rows a second time.
        return dataclasses.replace(gathered, prefixes={}, virtual={}) if first.past is not None else gathered

    def _gathered(
        self, first: Served, rows: Sequence[Any], start: int, running: dict[int, RunningRows] | None
    ) -> GatheredAdapter:
        if all(row is first for row in rows):
            return GatheredAdapter.of(first.adapter)
        group = self._groups[first.group]
        indices = group.indices(rows)
        if running is None:
            return group.stacked.gather(torch.tensor(indices, device=self.backbone.device))
        kept = running.get(first.group)
        if kept is None or not kept.goes_on_with(group.stacked):
            kept = running[first.group] = RunningRows(group.stacked)
        return kept.gather(start, indices)


def _together(first: Served | None, other: Served | None) -> bool:
    if first is None or other is None:
        return first is other
    return first.group == other.group
