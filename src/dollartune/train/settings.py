"""How trials are trained. The same for every method of a study; only learning rate and weight decay are theirs."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dollartune.train.length import epochs_of_reference_001, steps_by_rows

_COHORT_ON_GPU = 8
"""Trials that `cohort_size: auto` lets share a pass on a GPU; memory may split them into several passes."""


class TrainingSettings(BaseModel):
    """Training settings of a study."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    epochs: Annotated[int, Field(ge=1)] | Literal["reference_001"] | None = None
    """Passes over the training rows. By default training has 4.5 rows^0.6 steps of 16 rows, or as many as a budget pays for;
    `reference_001` is that source's rule: 10 up to 100 rows, 5 up to 1,000 and 1 beyond."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows per forward pass; gradients are accumulated up to `batch_size`. By default all of them."""
    schedule: Literal["auto", "linear", "cosine", "constant", "wsd"] = "auto"
    """Scheduler of the learning rate after the warm-up. `auto` is `linear`, and `wsd` (stable, then a decay over the last fifth)
    where the length comes from money, as its end can be moved."""
    optimizer: Literal["adamw", "paged_adamw"] = "adamw"
    """`paged_adamw` lets what AdamW keeps of large trained tensors go to the host's memory when a GPU has no room for it;
    the same steps, within rounding (needs CUDA and bitsandbytes)."""
    warmup: float = Field(0.06, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from 0."""
    head_start: Literal["fresh", "probe"] = "fresh"
    """Where a trained classification head begins: `fresh`, drawn by the trial's seed; `probe`, solved on the frozen features that
    it reads, C by cross-validation (Kumar et al. 2022). Which is better depends on how long training is."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the loss of a classification head. `balanced` lets every class count the same, however rare: for
    macro-F1, balanced accuracy or the recall of a rare class."""
    class_offsets: Literal["none", "validation", "training_rows"] = "none"
    """`validation`: once trained, add to each class's score what makes the task's measure best on the validation rows (thresholds
    for more than two classes), where held-out halves of them gain by it and the measure counts rare classes as much as common
    ones. They become part of the head's bias, so that predictions, exports and servers have them. `training_rows`: take off
    what each class gets on average over 64 training rows, whose labels are not looked at, where the validation rows gain by it.
    Offsets of label words are stored beside the adapter: evaluation, predictions and servers add them, exports to others
    cannot."""
    train_on_validation: bool = False
    """Once its validation score is known, solve a solved method again on training and validation rows together, which is what is
    handed over (`tune` does); an anytime search averages its best trained run with a second one on all of them. The validation
    score stays that of the first; test rows are never trained on."""
    clip: float = Field(1.0, gt=0.0)
    """Largest norm of a trial's gradient; longer ones are scaled down."""
    patience: int | None = Field(3, ge=1)
    """Stop after this many validations without a better validation loss; null trains to the end."""
    validations_per_epoch: int = Field(1, ge=1)
    """How often the validation loss is measured."""
    validation_rows: int = Field(500, ge=1)
    """Most validation rows used for early stopping (the first ones, the same for every method)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the backbone; trained tensors are always fp32. `auto` takes bf16 where the processor has it and
    the backbone is wide enough to gain."""
    max_length: int | None = Field(None, ge=8)
    """Longest input in tokens; by default what the backbone allows, at most 512."""
    group_by_length: bool = True
    """Batches of similar length: less padding, the same examples."""
    cohort_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Most trials trained side by side in one pass over the backbone. `auto` takes eight on a GPU, or as many of them as
    memory allows at a time, and one on a processor, whose cores a cohort divides among its trials."""
    gradient_checkpointing: bool = False
    """Layers above the lowest trained one keep their input alone and run again in the backward pass: much less memory
    for up to a third more time. The losses are the same."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile for what stands between the linears of a layer. `auto` does it on a GPU where at least ten minutes of
    training are left, and goes back where it is no faster; on a processor it is slower. Losses are equal within rounding."""
    backbone_dropout: bool = False
    """Use the dropout that the backbone was pretrained with. Off, frozen layers compute the same thing each time."""

    @model_validator(mode="after")
    def _one_way_per_layer(self) -> Self:
        if self.compile == "always" and self.gradient_checkpointing:
            raise ValueError(
                "`compile: always` and `gradient_checkpointing: true` do not go together: a compiled layer decides by itself"
                " what it keeps for the backward pass. Leave one of them out."
            )
        return self

    def most_together(self, device: str) -> int:
        """Most trials of a cohort on a kind of device."""
        if self.cohort_size == "auto":
            return _COHORT_ON_GPU if device == "cuda" else 1
        return self.cohort_size

    def steps_for(self, rows: int) -> int:
        """Optimizer steps for a number of training rows, where no budget decides."""
        if self.epochs is None:
            return steps_by_rows(rows, self.batch_size)
        epochs = epochs_of_reference_001(rows) if self.epochs == "reference_001" else self.epochs
        return math.ceil(rows / self.batch_size) * epochs
