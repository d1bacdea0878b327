"""torch.compile for the layers of one backbone, for a while: what stands between their linears is fused.

    norm ─ q k v ─ rotary, attention ─ o ─ + norm ─ gate up ─ act · ─ down ─ +        one layer
    └───┘          └───────────────┘       └──────┘           └─────┘        └┘       compiled, each once for all layers

Edits sit at linears. Their hooks are kept from the compiler, so that a piece of a layer knows nothing of trials and rows:
it is compiled once for every layer and every trial of a process, for any number of tokens.
The plain layers are the reference; `tests/attachment/fast/test_compile.py` holds them equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dollartune.backbones.swapped_forward import swapped_forward

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached

_VARIANTS = 64
"""Most compiled forms of one piece: with and without gradients, masks, last-layer rows; torch's default of 8 is too few."""


@contextmanager
def compiled_layers(attached: Attached, backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Within the block, layers are compiled as they are first called. Results are the same within rounding.

    Args:
        backend: torch.compile's.
    """
    import torch._dynamo.config

    # layer by layer, not the whole model: one compiled form serves all layers, and hooks between them stay Python's
    layers = attached.layers()
    inner = [m for layer in layers for m in layer.modules() if m is not layer and "forward" in m.__dict__]
    # this package's kernels call operators that the compiler does not know: it must not look inside
    kernels = [(module, torch.compiler.disable(module.__dict__["forward"])) for module in inner]
    # dynamic: batches differ in length all the time, and each new length would compile again.
    compiled = [(layer, torch.compile(layer.forward, dynamic=True, backend=backend)) for layer in layers]
    with (
        torch._dynamo.config.patch(recompile_limit=_VARIANTS),
        attached.sealing(torch.compiler.disable),
        swapped_forward([*kernels, *compiled]),
    ):
        yield
