"""Goes through a trial's work once on a backbone without weights: what it will keep in memory and compute.

    Bare(backbone's config) --attach--> one training step, one validation pass, one scoring or writing pass, all traced

The passes are the real ones (`CohortTrainer`, `label_log_probabilities`, `Attached`), at the shape of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attached import Assignment, Attached
from dollartune.backbones.loading import Backbone, anatomy_of, empty_model
from dollartune.backbones.miniature import image_shape
from dollartune.evaluate.labels import class_log_probabilities, label_log_probabilities
from dollartune.planner.nf4_meta import pack_linears
from dollartune.planner.op_trace import Tracer, Work
from dollartune.train.batching import Collator
from dollartune.train.encoding import Encoded, collate_prompts
from dollartune.train.loop import CohortTrainer
from dollartune.train.optimizers import paged_bytes
from dollartune.train.trial import TrialState

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy
    from dollartune.backbones.kind import Objective
    from dollartune.methods.base import Method
    from dollartune.methods.edits import Rows
    from dollartune.train.settings import TrainingSettings


@dataclass(frozen=True)
class BatchShape:
    """One batch, as long as its longest row."""

    rows: int
    prompt: int
    """Tokens before the answer (classification: all tokens; images: none)."""
    answer: int = 1
    """Tokens of the answer, its end mark included (classification: none)."""


@dataclass(frozen=True)
class PassCost:
    """What one pass came to."""

    memory: Mapping[str, int]
    """Bytes by part at the worst moment: `weights`, `trained`, `gradients`, `optimizer` (without what `paged_adamw` has in the
    host's memory then), `activations`, `logits`, `kernels` (what oneDNN compiles on a processor)."""
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
    # Dropout of the backbone is off while tuning too: our edits bring their own.
    model.eval()
    return Bare(name, model, None, anatomy_of(model), objective)


_DryPass = TypeVar("_DryPass", bound=Callable[..., Any])


def _once(make: _DryPass) -> _DryPass:
    """A pass of the same shape is run dry once."""

    @wraps(make)
    def remembered(self: DryRun, *args: Any, **kwargs: Any) -> Any:
        given = signature(make).bind(self, *args, **kwargs)
        given.apply_defaults()
        # Without self: what it stands for is in the cache's file name.
        values = list(given.arguments.values())[1:]
        key = repr((make.__name__, *(tuple(value) if isinstance(value, list) else value for value in values)))
        if key not in self.known:
            self.known[key] = make(self, *args, **kwargs)
        return self.known[key]

    return cast(_DryPass, remembered)


class DryRun:
    """Rehearses one adapter's passes.

    Args:
        backbone: without weights.
        methods: as the trial attaches them; none for a trial that trains nothing.
        settings: how it is trained.
        known: dry runs that were made before with the same methods and settings; new ones are added.
        device: kind of device whose kernels it is passed with.
    """

    def __init__(
        self,
        backbone: Bare,
        methods: Sequence[Method[Any]],
        settings: TrainingSettings,
        known: dict[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        self.backbone, self.settings, self.known = backbone, settings, {} if known is None else known
        self.device = device
        self.attached = Attached(backbone.model, backbone.anatomy, kernels_of=device)
        self.adapter: Adapter | None = None
        if methods:
            # Else a billion-parameter adapter (full tuning) would be drawn for real.
            with torch.device("meta"):
                self.adapter = Adapter(methods, backbone.anatomy, backbone.model)
            self.attached.put("planned", self.adapter)
        config = backbone.model.config
        self.vocabulary = int(getattr(config, "vocab_size", 0) or 0)

    @property
    def anatomy(self) -> Anatomy:
        return self.backbone.anatomy

    def close(self) -> None:
        """Takes the adapter out of the backbone, for the next one."""
        self.attached.detach()

    @_once
    def training_step(self, shape: BatchShape, repeats: bool = False) -> PassCost:
        """One optimizer step (forward, backward, update): what it computes and what it keeps. Arguments as below."""
        return PassCost(self.training_memory(shape, repeats), self.training_work(shape, repeats))

    @_once
    def training_work(self, shape: BatchShape, repeats: bool = False) -> Work:
        """What an optimizer step computes.

        Args:
            repeats: whether rows are passed more than once, so that frozen leading layers are computed in advance.
        """
        return self._step_as_made(shape, repeats).work

    @_once
    def training_memory(self, shape: BatchShape, repeats: bool = False) -> Mapping[str, int]:
        """Bytes by part at the worst moment of an optimizer step, as if the last layer were computed whole.

        What narrowing it saves is not saved in a process: its small tensors come to lie in gaps of the heap, which grows
        elsewhere (in seven of the settings of `make bench-planner` the measured peak was the same or a few percent higher).
        What is compiled is that of the step as it is made: the narrow layer's products have shapes of their own, which nearly
        doubles the kernels of a decoder.
        """
        made = self._step_as_made(shape, repeats).memory
        with self.attached.changed(whole_last_layer=True):
            whole = self._training_step(shape, repeats).memory
        return {**whole, "kernels": made.get("kernels", 0)}

    @_once
    def _step_as_made(self, shape: BatchShape, repeats: bool) -> PassCost:
        return self._training_step(shape, repeats)

    def _training_step(self, shape: BatchShape, repeats: bool) -> PassCost:
        """Of many micro-batches two are passed, the second one beside the gradients of the first, as all that follow."""
        assert self.adapter is not None
        # All passes but the first are alike, so two are traced and the second one is counted for the rest.
        micro = min(self.settings.micro_batch_size or shape.rows, shape.rows)
        passes = -(-shape.rows // micro)
        rows = rows_of_shape(self.backbone, replace(shape, rows=min(shape.rows, 2 * micro)))
        settings = self.settings.model_copy(update={"epochs": 2 if repeats else 1, "batch_size": len(rows)})
        # Traced before the first step, but with the optimizer's state full, as it is from the second one on.
        state = _OneStep("planned", self.adapter, rows, settings, 0)
        _fill_optimizer(state)
        held = [t for slots in _optimizer_state(state) for t in slots.values() if t.is_meta]
        tracer = state.tracer = self._tracer(optimizer=held)

        def before_the_step() -> bool:
            tracer.forget()  # what was computed in advance
            return False

        trainer = CohortTrainer(self.backbone, self.attached, [state], rows[:1], out_of_time=before_the_step)
        with tracer, _Gradients(tracer, self.adapter):
            trainer.run()
        work = tracer.work()
        for _ in range(passes - 2):
            work += state.last_pass
        # The next dry run begins without gradients, as a step does.
        self.adapter.zero_grad(set_to_none=True)
        self.attached.use_frozen_prefix(None)
        memory = self._memory(tracer)
        if away := paged_bytes(state.optimizer, settings.optimizer):  # when all are alive, the host holds these
            # Pages of `paged_adamw` wander to the host when the device is full, which is when the peak is.
            memory["optimizer"] = memory.get("optimizer", 0) - away
        return PassCost(memory, work)

    @_once
    def validation(self, shape: BatchShape) -> PassCost:
        """One batch of the validation during training."""
        assert self.adapter is not None
        rows = rows_of_shape(self.backbone, shape)
        state = TrialState("planned", self.adapter, rows, self.settings, 0)
        trainer = CohortTrainer(self.backbone, self.attached, [state], rows)
        # One batch: a validation has many, and the planner multiplies.
        trainer.validation = [Collator(self.backbone)(rows)]
        tracer = self._tracer()
        with tracer:
            trainer.validation_losses([state])
        self.backbone.model.eval()
        self.attached.use_frozen_prefix(None)
        return PassCost(self._memory(tracer), tracer.work())

    @_once
    def scoring(self, shape: BatchShape, answers: Sequence[int]) -> PassCost:
        """One batch of label scoring. `answers`: tokens of each label word; for a classification head its classes."""
        tracer = self._tracer()
        rows = rows_of_shape(self.backbone, shape)
        name = "planned" if self.adapter is not None else None
        with tracer:
            if self.backbone.objective == "classification":
                class_log_probabilities(self.backbone, self.attached, name, rows, shape.rows)
            else:
                # Token ids that differ: labels of equal tokens would be computed once.
                words = [(3 + index,) * length for index, length in enumerate(answers)]
                label_log_probabilities(self.backbone, self.attached, name, rows, words, shape.rows)
        return PassCost(self._memory(tracer), tracer.work())

    @_once
    def writing(self, shape: BatchShape, tokens: int) -> tuple[PassCost, Work]:
        """Free generation for one batch: reading the prompts, and writing one token after half of `tokens`."""
        kind = self.backbone.kind
        rows = rows_of_shape(self.backbone, shape)
        # As generation pads: a decoder's texts end at the right edge.
        inputs = collate_prompts(rows, 1, left=kind == "decoder")
        tracer = self._tracer()
        route = Assignment(self.adapter, slice(None))
        with torch.inference_mode(), tracer, self.attached.routed(route, batch_rows=shape.rows):
            more: dict[str, Any] = {"use_cache": True}
            if kind == "encoder_decoder":
                # Half of the answer is there on average when a token is written.
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
        return PassCost(self._memory(tracer), read), tracer.work()

    def _memory(self, tracer: Tracer) -> dict[str, int]:
        """Bytes by part at the worst moment, with all that the pass compiles: the next pass has it from its beginning."""
        # A device's kernels come compiled, in its context.
        return tracer.peak() | ({"kernels": tracer.compiled_bytes()} if self.device == "cpu" else {})

    def _tracer(self, **known_too: list[torch.Tensor]) -> Tracer:
        model = self.backbone.model
        known: dict[str, list[torch.Tensor]] = {"weights": [*model.parameters(), *model.buffers()]}
        if self.adapter is not None:
            known["trained"] = [*self.adapter.parameters(), *self.adapter.buffers()]
        known |= known_too
        return Tracer({name: [t for t in tensors if t.is_meta] for name, tensors in known.items()}, self._label)

    def _label(self, tensor: torch.Tensor) -> str | None:
        # By shape: whoever makes them (head, cast, softmax), a tensor as wide as the vocabulary is logits.
        wide = self.vocabulary and tensor.dim() >= 2 and tensor.shape[-1] == self.vocabulary
        return "logits" if wide and tensor.is_floating_point() else None


def rows_of_shape(backbone: Backbone, shape: BatchShape) -> list[Encoded]:
    """Rows of a batch: the first is shorter, so that there is padding, as there nearly always is."""
    config = backbone.model.config
    if backbone.kind == "vision":
        # Not zeros: the gradients of a blank picture are beyond all numbers where positions begin at zero (DeiT).
        size = image_shape(config)
        pixels = torch.linspace(-1, 1, math.prod(size)).view(size)
        return [Encoded(str(i), label=0, pixels=pixels) for i in range(shape.rows)]
    full = Encoded("", (3,) * max(1, shape.prompt), (4,) * shape.answer, label=0)
    if backbone.objective == "classification":
        end = getattr(config, "eos_token_id", None)
        full = replace(full, prompt=(*full.prompt[:-1], int(end) if isinstance(end, int) else 3), answer=())
    short = replace(full, prompt=full.prompt[1:]) if shape.rows > 1 and len(full.prompt) > 1 else full
    return [replace(short, example_id="0"), *(replace(full, example_id=str(i)) for i in range(1, shape.rows))]


class _OneStep(TrialState):
    """A trial that ends after its first step, and measures what its last pass computes."""

    tracer: Tracer
    last_pass = Work()

    wants_validation = False

    @property
    def done(self) -> bool:
        return self.progress.step > 0

    def context(self, micro: int) -> Rows:
        self._before = self.tracer.work()
        return super().context(micro)

    def step(self, loss: float) -> None:
        self.last_pass = self.tracer.work() - self._before
        super().step(loss)

    def finish(self) -> None:
        return


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
                # Optimizers make their state at the first step of a parameter that has a gradient.
                parameter.grad = torch.zeros_like(parameter)
        with Tracer():  # its step asks for numbers, which tensors without contents have not
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)


def _optimizer_state(state: TrialState) -> Iterator[dict[str, Any]]:
    if state.optimizer is not None:
        yield from state.optimizer.state.values()


@contextmanager
def dry_run_of(
    backbone: Bare,
    methods: Sequence[Method[Any]],
    settings: TrainingSettings,
    known: dict[str, Any] | None = None,
    device: str = "cpu",
) -> Iterator[DryRun]:
    """A dry run that leaves the backbone as it was; see `DryRun`."""
    dry = DryRun(backbone, methods, settings, known, device)
    try:
        yield dry
    finally:
        dry.close()
