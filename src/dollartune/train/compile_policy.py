"""When layers are compiled: where enough training is left to pay for it, and for as long as it is seen to be faster.

    plain ── 12 steps timed ──> is what is left worth it? ──yes──> compiled ── 12 steps timed ──> faster? ──yes──> stays
                                        └──no──> plain                                               └──no──> plain

CompilePolicy is paid like everything else: its seconds are the trial's. What was learned of a backbone holds for all later
trials of the process, which then compile at once (pieces that were compiled already are ready) or never.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from dollartune.attachment.fast.compile import compiled_layers

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached

log = logging.getLogger("dollartune")

Mode = Literal["auto", "always", "never"]
_TIMED = 12
"""Steps that are timed before a decision; the first of them warm up."""
_SETTLING = 4
"""First steps of each kind, which are not representative: libraries set themselves up, pieces are compiled."""
_COST_SECONDS = 60.0
"""What compiling may take; two CPU cores, with code for a processor, take 20 to 110 s (`python bench/compiled.py`)."""
_WORTH = 10
"""What is left must be so many times that cost: a wrong guess then costs a tenth at most, a gain of a tenth pays."""
# less than 3 % is within what two runs of the same code differ by
_FASTER = 1.03


class CompilePolicy:
    """Decides for one trainer, and remembers for the process.

    Args:
        attached: whose layers are compiled.
        mode: `auto` as above, on a GPU; `always` from the first step; `never`.
        name: of the backbone, under which what was learned is remembered.
        device: where it runs. On a CPU compiled layers are slower than this package's kernels, so `auto` leaves them.
        seconds_left: until the money is spent.
        layers: makes the block within which layers are compiled.
    """

    known: ClassVar[dict[tuple[str, str, str], bool]] = {}
    """(backbone, device, number format) -> whether compiled layers were faster."""

    def __init__(
        self,
        attached: Attached,
        mode: Mode,
        name: str,
        device: torch.device,
        seconds_left: Callable[[], float],
        layers: Callable[[Attached], AbstractContextManager[None]] = compiled_layers,
    ) -> None:
        self.attached, self.mode, self.seconds_left, self.layers = attached, mode, seconds_left, layers
        self.key = name, device.type, str(attached.model.dtype)
        self.looks = mode == "auto" and device.type == "cuda"
        """Whether a decision is still to be made."""
        self.on = False
        """Whether layers are compiled just now."""
        self.seconds = 0.0
        """What compiling took: the first compiled steps' time beyond that of plain ones."""
        self._block = ExitStack()
        self._steps: list[tuple[int, float]] = []
        """(tokens, seconds) of steps since the last change."""
        self._plain = 0.0
        """Tokens per second of plain steps."""

    def begin(self) -> None:
        """Before the first step."""
        if self.mode == "always" or (self.looks and self.known.get(self.key, False)):
            self.looks = False
            self._compile()
        elif self.key in self.known:
            self.looks = False

    def stepped(self, tokens: int, seconds: float, steps_left: int) -> None:
        """After each step, with what it was."""
        if not self.looks:
            return
        self._steps.append((tokens, seconds))
        if len(self._steps) < _TIMED:
            return
        settled = self._steps[_SETTLING:]
        # the median: one long row or a checkpoint between two steps must not decide
        rate = statistics.median(t / s for t, s in settled)
        if not self.on:
            self._plain = rate
            left = steps_left * statistics.fmean(s for _, s in settled)
            self.looks = min(left, self.seconds_left()) >= _WORTH * _COST_SECONDS
            if self.looks:
                self._compile()
            return
        # only what goes beyond the plain steps is the compiler's
        self.seconds += sum(max(0.0, s - t / self._plain) for t, s in self._steps[:_SETTLING])
        self.looks = False
        self.known[self.key] = rate >= _FASTER * self._plain
        log.debug("compiled layers: %.2f times the tokens per second, after %.0f s", rate / self._plain, self.seconds)
        if not self.known[self.key]:
            self.end()

    def gave_up(self, error: Exception) -> bool:
        """After a step that failed: whether it was a compiled one, which is now to be done again by plain layers."""
        # numbers that break are the trial's own fault, compiled or not
        if not self.on or isinstance(error, FloatingPointError):
            return False
        self._without(error)
        return True

    def _without(self, error: Exception) -> None:
        log.warning("compiled layers failed and are not used: %s", str(error).partition("\n")[0])
        self.known[self.key] = self.looks = False
        self.end()

    def end(self) -> None:
        """Gives the layers back."""
        self._block.close()
        self.on = False

    def _compile(self) -> None:
        self._steps.clear()
        try:
            self._block.enter_context(self.layers(self.attached))
            self.on = True
        except Exception as error:  # no compiler, no Triton: training does not depend on it
            self._without(error)
