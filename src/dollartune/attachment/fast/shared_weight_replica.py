"""A second model of the same weights, with the same adapters attached, for another thread.

What a pass changes lies in the modules and in `Attached`: hooks, kernels, the pass's state. A replica has its own of each, while
every parameter and buffer is the very tensor of the first model, so it takes next to no memory.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached


def replica(attached: Attached) -> Attached:
    """The model as it is now, without a frozen-prefix cache. What is attached to one later, the other does not know."""
    model = attached.model
    # given to deepcopy as what it has copied already: it then takes the tensors themselves
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    with attached.bare():  # hooks hold the first model's `Attached`; a copy of them would route by it
        copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        module.__dict__.pop("forward", None)  # kernels of the moment, which work on the first model's modules
    other = type(attached)(copied, attached.anatomy, attached.processor)
    for name, adapter in attached.adapters.items():
        other.put(name, adapter)
    return other
