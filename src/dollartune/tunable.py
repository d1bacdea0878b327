"""What `dollartune.attach` returns: a `torch.nn.Module` that any loop can train.

model = AutoModelForCausalLM.from_pretrained(...)
tuned = attach(model, LoRA(rank=8))
Trainer(model=tuned, args=..., train_dataset=...).train()      # or accelerate, or a loop of your own
tuned.save_pretrained("adapter")                               # what `dollartune predict` and `export` take
model = tuned.detach()                                         # the backbone again, bit for bit
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dollartune.attachment.attached import Attached
from dollartune.attachment.attached import attach as attach_plain
from dollartune.errors import UserError
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.stored_adapter import WEIGHTS, read_info
from dollartune.untrusted_files import read_tensors

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.methods.base import Method


class TunableModel(nn.Module):
    """A backbone with an adapter. Call it as the model is called; give it `labels` and it returns the model's own loss.

    Only the adapter's tensors require gradients. `state_dict` holds them alone, so that checkpoints are small. What is no method
    of a module (`routed`, `activate`, `generate`, `detach` ...) is that of `attachment.attached.Attached`, in `attached`.

    A method whose rule goes beyond gradients (AdaLoRA drops ranks while it trains) trains in DollarTune's own loop only as its
    paper says; in another loop its tensors are trained and no rank is dropped.
    """

    def __init__(self, attached: Attached, name: str) -> None:
        super().__init__()
        self.name = name
        self.backbone = attached.model
        # A module, so that `parameters()`, `to()` and optimizers find what is trained.
        self.adapters = nn.ModuleDict({name: attached.adapters[name]})
        # not a module: its parameters are those of the two above
        object.__setattr__(self, "attached", attached)
        asked = inspect.signature(self.backbone.forward)

        def forward(*given: Any, **inputs: Any) -> Any:
            return attached(**{**dict(zip(asked.parameters, given, strict=False)), **inputs})

        # Trainer drops the columns that a model's forward does not name
        forward.__signature__ = asked  # type: ignore[attr-defined]
        self.forward = forward

    @property
    def adapter(self) -> Adapter:
        """The adapter that is trained."""
        adapter: Adapter = self.attached.adapters[self.name]
        return adapter

    @property
    def config(self) -> Any:
        """The backbone's config; Trainer asks for it."""
        return self.backbone.config

    @property
    def device(self) -> Any:
        """Where the backbone is."""
        return next(self.backbone.parameters()).device

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "attached":  # before __init__ has set it, as in unpickling
                raise
            return getattr(self.__dict__["attached"], name)

    def trainable_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """As transformers has it; inputs get gradients, without which no layer below the first edit would pass any on."""
        backbone: Any = self.backbone
        # A checkpointed layer whose input needs no gradient passes none on, and the embeddings are frozen.
        backbone.enable_input_require_grads()
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter's tensors alone."""
        # Trainer saves this: a checkpoint of a 7 B model is then some megabytes.
        return dict(self.adapters.state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The adapter's tensors, as `state_dict` gives them."""
        return self.adapters.load_state_dict(state_dict, strict=strict, assign=assign)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Writes the adapter as a folder that `dollartune.open_adapter`, `dollartune export` and `serve` read.

        It has no task, since none was named: predictions need `dollartune import`'s `--task`, or a study.
        """
        processor = self.attached.processor
        save_adapter(
            Path(folder),
            self.adapter,
            {
                "backbone": str(getattr(self.config, "_name_or_path", "") or ""),
                "objective": "classification" if "Classification" in type(self.backbone).__name__ else "language",
                "tokenizer": tokenizer_hash(processor),
            },
        )

    def load_pretrained(self, folder: str | Path) -> TunableModel:
        """Fills the adapter with tensors that were saved.

        Raises:
            UserError: they belong to other methods or settings.
        """
        described = [method.describe() for method in self.adapter.methods]
        stored = read_info(Path(folder))["methods"]
        # Before any tensor: settings that differ (a scale, a place) may have the same shapes.
        if stored != described:
            raise UserError(f"{str(folder)!r} holds {stored}; attached is {described}.")
        self.adapter.load(read_tensors(Path(folder), WEIGHTS))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TunableModel:
        """Refused: hooks of the copy would ask the adapter of the original."""
        raise UserError(
            "a model with an adapter on it cannot be copied.",
            hint="Load the model once more, attach the same methods to it, and load_state_dict(tuned.state_dict()).",
        )

    def detach(self) -> nn.Module:
        """Takes the adapter out and gives the backbone back, bit for bit as it was."""
        backbone: nn.Module = self.attached.detach()
        return backbone

    def __repr__(self) -> str:
        total = sum(p.numel() for p in self.backbone.parameters())
        trained = self.trainable_parameters()
        methods = ", ".join(map(repr, self.adapter.methods)) if self.name in self.attached.adapters else "detached"
        return (
            f"TunableModel({methods} on {type(self.backbone).__name__}: {trained:,} of {total:,} parameters are trained "
            f"({100 * trained / max(1, total):.3g} %), on {self.device})"
        )


def attach(
    model: nn.Module, *methods: Method[Any], name: str = "default", seed: int = 0, processor: Any = None
) -> TunableModel:
    """Attaches one adapter made of these methods to a transformers model, active for every row.

    Args:
        model: any model of transformers; it is frozen while the adapter is on it.
        methods: from `dollartune.methods`, such as `LoRA(rank=8)`; several are combined.
        name: of the adapter.
        seed: of its initialization.
        processor: the model's tokenizer; only methods whose settings hold text need it.

    Returns:
        a module to train, to ask and to save.

    Examples:
        >>> tuned = attach(model, LoRA(rank=8, where="self_attn.q self_attn.v"))
        >>> tuned(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    """
    return TunableModel(attach_plain(model, *methods, name=name, seed=seed, processor=processor), name)
