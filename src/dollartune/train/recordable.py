"""What transformers does in a pass that no recording can hold, done with the same result by what one can.

    a number put on the device     copied from the host, which waits for it (GPT-Neo's mask, a cache that begins): filled there
    the end-of-text places         looked for by a mask, whose count the host must know (classifiers of BART, T5 and their like):
                                   gathered

Only while a pass is recorded: what is replayed is compared with a plain pass before it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dollartune.backbones.swapped_forward import swapped_forward


@contextmanager
def recordable(model: nn.Module) -> Iterator[None]:
    """Within the block, passes of a model neither copy numbers from the host nor ask the device for a count."""
    with swapped_forward(_gathering_ends(model)), _FilledNumbers():
        yield


class _FilledNumbers(TorchFunctionMode):
    """`torch.tensor(number, device=...)` as `torch.full`, and an empty list as `torch.empty`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and args and kwargs.get("device") is not None:
            if isinstance(args[0], bool | int | float):
                return torch.full((), *args, **kwargs)
            if isinstance(args[0], list) and not args[0]:  # a cache's beginning
                return torch.empty(0, **kwargs)
        return function(*args, **kwargs)


def _gathering_ends(model: Any) -> list[tuple[nn.Module, Any]]:
    """The classifier that reads the last end-of-text token of each row, with another way to it; nothing for other models."""
    if not model.config.is_encoder_decoder or getattr(model, "classification_head", None) is None:
        return []
    base = getattr(model, model.base_model_prefix)

    @functools.wraps(model.forward)
    def forward(input_ids: Tensor, **inputs: Any) -> Any:
        from transformers.modeling_outputs import Seq2SeqSequenceClassifierOutput

        if "decoder_input_ids" not in inputs and hasattr(model, "_shift_right"):  # T5's; BART's base does it by itself
            inputs["decoder_input_ids"] = model._shift_right(input_ids)
        states: Tensor = base(input_ids=input_ids, **inputs)[0]
        ends = input_ids.eq(model.config.eos_token_id)
        last = (ends * torch.arange(1, ends.shape[1] + 1, device=ends.device)).argmax(1)
        rows = torch.arange(len(states), device=states.device)
        return Seq2SeqSequenceClassifierOutput(logits=model.classification_head(states[rows, last]))

    return [(model, forward)]
