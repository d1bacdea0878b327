"""What one forward pass needs to know, as one frozen object: `PassState`.

Hooks sit in the model for as long as an adapter is attached; what they do in a pass is decided by the state that the pass runs
under. A state is never changed: `RoutedModel` puts another one in its place, and the one before comes back at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from dollartune.attachment.routing import Assignment, covering

if TYPE_CHECKING:
    from dollartune.attachment.batch_layout import Layout
    from dollartune.attachment.fast.decode_cache import DecodeCache


class FrozenPrefixStates(Protocol):
    """Who knows what leading layers give that no adapter of a route touches."""

    def states(
        self, attached: Any, inputs: Mapping[str, Any], prompt_lengths: Tensor | None
    ) -> tuple[Mapping[str, int], Mapping[str, Tensor]] | None:
        """Stack -> number of those layers under the current route, and stack -> what they give for these inputs (rows,
        tokens, d_model); None: they are to be run. `attached` is the `RoutedModel`, which stands above this file."""


class HookedLastLayer(Protocol):
    """What of the last layer a pass computes; see `fast.last_layer_rows`."""

    def hooked(self) -> AbstractContextManager[None]:
        """Within the block, the last layer computes no more than that."""


@dataclass(frozen=True)
class PassState:
    """What a forward pass runs under."""

    route: tuple[Assignment, ...] = ()
    """Which rows belong to which adapter. Rows that nobody claims are the bare backbone's."""
    batch_rows: int = 0
    """Rows of the batch; 0 where that is not known. Generation may have several rows of the model's for each."""
    layout: Layout | None = None
    """Padding of the batch that passes; None: a pass looks at the batch itself."""
    visible_tokens: Tensor | None = None
    """(rows, tokens) bool, where rows of images have different numbers of virtual tokens."""
    replaced_parameters: tuple[tuple[nn.Module, str, Tensor], ...] = ()
    """(module, parameter name, value) of what holds other values just now (full tuning)."""
    skip_unused: bool = False
    """Leave out what nobody reads: masks that hide nothing, the last layer's work at positions that were not asked for.
    Results there then mean nothing."""
    whole_last_layer: bool = False
    """Compute the last layer at every position, also where `skip_unused` would leave some out."""
    last_layer: HookedLastLayer | None = None
    """What of the last layer this pass computes; None: all of it."""
    frozen_prefix: FrozenPrefixStates | None = None
    """Who knows the outputs of the leading layers that no adapter touches; None: they are computed at every pass."""
    decode_cache: DecodeCache | None = None
    """What a server computes once for all steps of one route; None: everything is computed at every pass."""
    kernels_of: str = "cpu"
    """Kind of device whose kernels a model on the meta device is passed with; any other model has its own device's."""
    captured_inputs: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Module -> its input in this pass, where a sublayer begins. The one thing that changes during a pass: scratch, made anew
    for every pass, so that no pass sees another's tensors nor keeps them alive."""

    def covering(self, rows: int) -> Iterator[Assignment]:
        """The route as pieces that make up a whole batch of `rows`."""
        return covering(self.route, self.batch_rows, rows)

    def editing(self, where: str, name: str, rows: int) -> Iterator[Assignment]:
        """Those pieces whose adapters edit the `inputs` or `outputs` of a module."""
        for assignment in self.covering(rows):
            if assignment.adapter is not None and name in getattr(assignment.adapter, where):
                yield assignment

    def batched(self, tensor: Tensor) -> Tensor:
        """(rows, tokens, d) view of what a module got; some families flatten rows and tokens before the feed-forward."""
        if tensor.dim() >= 3:
            return tensor
        return tensor.view(self.batch_rows, -1, tensor.shape[-1]) if self.batch_rows else tensor.unsqueeze(0)
