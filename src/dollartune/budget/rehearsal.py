"""Goes through a trial's work once on a backbone without weights: what it will keep in memory and compute.

    Bare(backbone's config) --attach--> one training step, one validation pass, one scoring or writing pass, all traced

The passes are the real ones (`CohortTrainer`, `label_log_probabilities`, `Attached`), at the shape of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dollartune.attach.adapter import Adapter
from dollartune.attach.attached import Assignment, Attached
from dollartune.backbones.anatomy import Anatomy
from dollartune.backbones.loading import Backbone, Objective, anatomy_of, empty_model
from dollartune.budget.packed import pack_linears
from dollartune.budget.tracing import Tracer, Work
from dollartune.evaluate.labels import class_log_probabilities, label_log_probabilities
from dollartune.methods.base import Method
from dollartune.train.batching import Collator
from dollartune.train.encoding import Encoded, collate_prompts
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState


@dataclass(frozen=True)
class Shape:
    """One batch, as long as its longest row."""

    rows: int
    prompt: int
    """Tokens before the answer (classification: all tokens; images: none)."""
    answer: int = 1
    """Tokens of the answer, its end mark included (classification: none)."""


@dataclass(frozen=True)
class Rehearsed:
    """What one pass came to."""

    memory: Mapping[str, int]
    """Bytes by part at the worst moment: `weights`, `trained`, `gradients`, `optimizer`, `activations`, `logits`."""
    work: Work

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


class Bare(Backbone):
    """A backbone on the meta device; its inputs stay on the processor, where code can look at them."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def bare_backbone(
    name: str,
    objective: Objective,
    dtype: torch.dtype,
    quantize: str = "none",
    classes: int = 0,
    trust_remote_code: bool = False,
) -> Bare:
    """A backbone from its config alone, in the format it would be loaded in."""
    model = empty_model(name, objective, trust_remote_code, classes or None).to(dtype)
    return bare(model, name, objective, quantize)


def bare(model: nn.Module, name: str, objective: Objective, quantize: str = "none") -> Bare:
    """The same from a model on the meta device."""
    if quantize == "nf4":
        pack_linears(model)
    model.eval()
    return Bare(name, model, None, anatomy_of(model), objective)


class Rehearsal:
    """Rehearses one adapter's passes.

    Args:
        backbone: without weights.
        methods: as the trial attaches them; none for a trial that trains nothing.
        settings: how it is trained.
    """

    def __init__(self, backbone: Bare, methods: Sequence[Method[Any]], settings: TrainingSettings) -> None:
        self.backbone, self.settings = backbone, settings
        self.attached = Attached(backbone.model, backbone.anatomy)
        self.adapter: Adapter | None = None
        if methods:
            with torch.device("meta"):
                self.adapter = Adapter(methods, backbone.anatomy, backbone.model)
            self.attached.put("rehearsed", self.adapter)
        config = backbone.model.config
        self.vocabulary = int(getattr(config, "vocab_size", 0) or 0)

    @property
    def anatomy(self) -> Anatomy:
        return self.backbone.anatomy

    def close(self) -> None:
        """Takes the adapter out of the backbone, for the next one."""
        self.attached.detach()

    def training_step(self, shape: Shape, repeats: bool = False) -> Rehearsed:
        """One optimizer step (forward, backward, update), in micro-batches where the settings ask for them.

        Args:
            repeats: whether rows are passed more than once, so that frozen leading layers are computed in advance.
        """
        assert self.adapter is not None
        settings = self.settings.model_copy(update={"epochs": 2 if repeats else 1, "batch_size": shape.rows})
        rows = rehearsal_rows(self.backbone, shape)
        state = TrialState("rehearsed", self.adapter, [*rows, *rows], settings, 0)
        _fill_optimizer(state)
        held = [t for found in _optimizer_state(state) for t in found.values() if t.is_meta]
        tracer = self._tracer(optimizer=held)
        works: list[Work] = []

        def after_one_step() -> bool:
            """Asked before every step: the trainer ends after the first, with a validation that is not counted."""
            if not state.progress.step:
                tracer.forget()  # what was computed in advance
            if state.progress.step:
                works.append(tracer.work())
            return bool(state.progress.step)

        trainer = CohortTrainer(self.backbone, self.attached, [state], rows[:1], out_of_time=after_one_step)
        with tracer, _Gradients(tracer, self.adapter):
            trainer.run()
        self.adapter.zero_grad(set_to_none=True)
        self.attached.trunk = None
        return Rehearsed(tracer.peak(), works[0])

    def validation(self, shape: Shape) -> Rehearsed:
        """One batch of the validation during training."""
        assert self.adapter is not None
        rows = rehearsal_rows(self.backbone, shape)
        state = TrialState("rehearsed", self.adapter, rows, self.settings, 0)
        trainer = CohortTrainer(self.backbone, self.attached, [state], rows)
        trainer.validation = [Collator(self.backbone)(rows)]
        tracer = self._tracer()
        with tracer:
            trainer.validation_losses([state])
        self.backbone.model.eval()
        self.attached.trunk = None
        return Rehearsed(tracer.peak(), tracer.work())

    def scoring(self, shape: Shape, answers: Sequence[int]) -> Rehearsed:
        """One batch of label scoring. `answers`: tokens of each label word; for a classification head its classes."""
        tracer = self._tracer()
        rows = rehearsal_rows(self.backbone, shape)
        name = "rehearsed" if self.adapter is not None else None
        with tracer:
            if self.backbone.objective == "classification":
                class_log_probabilities(self.backbone, self.attached, name, rows, shape.rows)
            else:
                words = [(3 + index,) * length for index, length in enumerate(answers)]
                label_log_probabilities(self.backbone, self.attached, name, rows, words, shape.rows)
        return Rehearsed(tracer.peak(), tracer.work())

    def writing(self, shape: Shape, tokens: int) -> tuple[Rehearsed, Work]:
        """Free generation for one batch: reading the prompts, and writing one token after half of `tokens`."""
        kind = self.backbone.kind
        rows = rehearsal_rows(self.backbone, shape)
        inputs = collate_prompts(rows, 1, left=kind == "decoder")
        tracer = self._tracer()
        route = Assignment(self.adapter, slice(None))
        with torch.inference_mode(), tracer, self.attached.routed(route, batch_rows=shape.rows):
            more: dict[str, Any] = {"use_cache": True}
            if kind == "encoder_decoder":
                more["decoder_input_ids"] = torch.full((shape.rows, max(1, tokens // 2)), 3)
                keep = torch.arange(shape.rows), torch.full((shape.rows,), max(1, tokens // 2) - 1)
            else:
                keep = torch.arange(shape.rows), torch.full((shape.rows,), shape.prompt - 1)
            out = self.attached(keep=keep, **inputs, **more)
            read = tracer.work()
            tracer.forget()
            with self.attached.exclusive_values():
                one = torch.full((shape.rows, 1), 3)
                cache = out.past_key_values
                if kind == "encoder_decoder":
                    encoded = (out.encoder_last_hidden_state,)
                    self.backbone.model(
                        encoder_outputs=encoded, attention_mask=None, decoder_input_ids=one, past_key_values=cache
                    )
                else:
                    seen = torch.ones(shape.rows, cache.get_seq_length() + 1, dtype=torch.long)
                    self.backbone.model(input_ids=one, attention_mask=seen, past_key_values=cache, use_cache=True)
        return Rehearsed(tracer.peak(), read), tracer.work()

    def _tracer(self, **known_too: list[torch.Tensor]) -> Tracer:
        model = self.backbone.model
        known: dict[str, list[torch.Tensor]] = {"weights": [*model.parameters(), *model.buffers()]}
        if self.adapter is not None:
            known["trained"] = [*self.adapter.parameters(), *self.adapter.buffers()]
        known |= known_too
        return Tracer({name: [t for t in tensors if t.is_meta] for name, tensors in known.items()}, self._label)

    def _label(self, tensor: torch.Tensor) -> str | None:
        wide = self.vocabulary and tensor.dim() >= 2 and tensor.shape[-1] == self.vocabulary
        return "logits" if wide and tensor.is_floating_point() else None


def rehearsal_rows(backbone: Backbone, shape: Shape) -> list[Encoded]:
    """Rows of a batch: the first is shorter, so that there is padding, as there nearly always is."""
    config = backbone.model.config
    if backbone.kind == "vision":
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        pixels = torch.zeros(int(config.num_channels), size, size)
        return [Encoded(str(i), label=0, pixels=pixels) for i in range(shape.rows)]
    full = Encoded("", (3,) * max(1, shape.prompt), (4,) * shape.answer, label=0)
    if backbone.objective == "classification":
        end = getattr(config, "eos_token_id", None)
        full = replace(full, prompt=(*full.prompt[:-1], int(end) if isinstance(end, int) else 3), answer=())
    short = replace(full, prompt=full.prompt[1:]) if shape.rows > 1 and len(full.prompt) > 1 else full
    return [replace(short, example_id="0"), *(replace(full, example_id=str(i)) for i in range(1, shape.rows))]


class _Gradients:
    """Marks gradients as they come: at the end of the step they are gone."""

    def __init__(self, tracer: Tracer, adapter: Adapter) -> None:
        self.tracer, self.adapter = tracer, adapter

    def __enter__(self) -> None:
        def mark(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.tracer.mark("gradients", [parameter.grad])

        self.handles = [
            p.register_post_accumulate_grad_hook(mark) for p in self.adapter.parameters() if p.requires_grad
        ]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _fill_optimizer(state: TrialState) -> None:
    """Makes the optimizer take the memory that it holds from its first step on."""
    if state.optimizer is not None:
        for group in state.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        with Tracer():  # its step asks for numbers, which tensors without contents have not
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)


def _optimizer_state(state: TrialState) -> Iterator[dict[str, Any]]:
    if state.optimizer is not None:
        yield from state.optimizer.state.values()


@contextmanager
def rehearsing(backbone: Bare, methods: Sequence[Method[Any]], settings: TrainingSettings) -> Iterator[Rehearsal]:
    """A rehearsal that leaves the backbone as it was."""
    rehearsal = Rehearsal(backbone, methods, settings)
    try:
        yield rehearsal
    finally:
        rehearsal.close()
