"""torch.compile for the layers of one backbone, for a while: what stands between their linears is fused.

    norm ─ q k v ─ rotary, attention ─ o ─ + norm ─ gate up ─ act · ─ down ─ +        one layer
    └───┘          └───────────────┘       └──────┘           └─────┘        └┘       compiled, each once for all layers

Edits sit at linears. Their hooks are kept from the compiler, so that a piece of a layer knows nothing of trials and rows:
it is compiled once for every layer and every trial of a process, for any number of tokens.
Twin of the plain layers; `tests/attach/test_compiled.py` holds them equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dollartune.attachment.attached import Attached

_VARIANTS = 64
"""Most compiled forms of one piece: with and without gradients, masks, narrowing; torch's default of 8 is too few."""


@contextmanager
def compiled_layers(attached: Attached, backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Within the block, layers are compiled as they are first called. Results are the same within rounding.

    Args:
        backend: torch.compile's.
    """
    import torch._dynamo.config

    names = dict.fromkeys(site.exit for site in attached.anatomy.at("layer"))
    layers = [attached.model.get_submodule(name) for name in names]
    inner = [m for layer in layers for m in layer.modules() if m is not layer and "forward" in m.__dict__]
    kernels = [(module, module.__dict__["forward"]) for module in inner]
    before = [layer.__dict__.get("forward") for layer in layers]
    with torch._dynamo.config.patch(recompile_limit=_VARIANTS), attached.sealing(torch.compiler.disable):
        try:
            for module, kernel in kernels:  # this package's own
                object.__setattr__(module, "forward", torch.compiler.disable(kernel))
            for layer in layers:
                object.__setattr__(layer, "forward", torch.compile(layer.forward, dynamic=True, backend=backend))
            yield
        finally:
            for module, kernel in kernels:
                object.__setattr__(module, "forward", kernel)
            for layer, own in zip(layers, before, strict=True):
                del layer.__dict__["forward"]
                if own is not None:
                    object.__setattr__(layer, "forward", own)
