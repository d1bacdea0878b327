"""A second model of the same weights, with the same adapters attached, for another thread.

What a pass changes lies in the modules and in `Attached`: hooks, kernels, the route. A twin has its own of each, while every
parameter and buffer is the very tensor of the first model, so it takes next to no memory.
"""

from __future__ import annotations

import copy

from dollartune.attachment.attached import Attached


def twin(attached: Attached) -> Attached:
    """The twin of a model as it is now, without a trunk. What is attached to one later, the other does not know."""
    model = attached.model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    with attached.bare():
        other = copy.deepcopy(model, shared)
    for module in other.modules():
        module.__dict__.pop("forward", None)  # kernels of the moment, which work on the first model's modules
    found = Attached(other, attached.anatomy, attached.processor)
    for name, adapter in attached.adapters.items():
        found.put(name, adapter)
    return found
