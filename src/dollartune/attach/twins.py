"""A second model of the same weights, with the same adapters attached, for another thread.

What a pass changes lies in the modules and in `Attached`: hooks, kernels, the route. A twin has its own of each, while every
parameter and buffer is the very tensor of the first model, so it takes next to no memory.
"""

from __future__ import annotations

import copy

from dollartune.attach.attached import Attached
from dollartune.attach.attention import restore_attention


def twin(attached: Attached) -> Attached:
    """The twin of a model as it is now, without a trunk. What is attached to one later, the other does not know."""
    model = attached.model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, {**shared, id(attached): attached})
    for module in other.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            for hooks in (name, f"{name}_with_kwargs"):
                getattr(module, hooks).clear()
    found = Attached(other, attached.anatomy, attached.processor)
    restore_attention(found)
    for name, adapter in attached.adapters.items():
        found.put(name, adapter)
    return found
