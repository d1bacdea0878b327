"""Head only: the backbone's own classification head, trained by steps. Every classification trial trains it as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, MethodConfig
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, copies, saved_modules
from dollartune.methods.full import Unfreeze
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site

# Of decoders, T5 and RoBERTa; of BERT; of ALBERT and the models for pretraining.
LANGUAGE_HEADS = ("lm_head", "cls", "predictions")
"""Names of heads that score the vocabulary."""


class HeadConfig(MethodConfig):
    """Train the classification head alone."""

    # A hundred times full tuning's: a head of d · classes numbers starts from noise and has no pretrained values to
    # lose.
    lr: float = 5e-3
    fresh: bool = True
    """Draw a new head by the trial's seed; False continues from the head that the backbone came with."""


class FreshHead(Unfreeze):
    """Trained copies of the head's parameters, drawn anew so that each trial's start depends on its own seed alone."""

    def __init__(self, module: nn.Module, fresh: bool) -> None:
        super().__init__(module)
        if fresh:
            for name, parameter in self.copies.items():
                # The deviation and the zero biases of transformers' own heads (`initializer_range`), so that a trial's
                # head is like one that the library would have drawn; a norm's scale in it stays one.
                if parameter.dim() > 1 and not parameter.is_meta:
                    # Drawn on the processor: the copy is on the backbone's device, where the numbers would be others.
                    parameter.data.copy_(torch.empty(parameter.shape, device="cpu").normal_(std=0.02))
                elif parameter.dim() < 2 and not name.endswith("weight"):
                    nn.init.zeros_(parameter)

    def fit(self, tensors: dict[str, Tensor]) -> None:
        """Takes the number of classes of a stored head: one server may have adapters of tasks with different numbers."""
        last = self.names[-1].rpartition(".")[0]
        for name in self.names:
            copied, stored = self.copies[name.replace(".", "/")], tensors.get(f"copies.{name.replace('.', '/')}")
            # A tensor that fits stays the same object: the optimizer of a training that loads a state holds it.
            if stored is None or stored.shape == copied.shape:
                continue
            # The last layer alone scores classes; of its weight (classes, d), only the classes may differ.
            if name.rpartition(".")[0] == last and stored.shape[1:] == copied.shape[1:]:
                self.copies[name.replace(".", "/")] = nn.Parameter(copied.new_zeros(stored.shape))


def classification_head(anatomy: Anatomy, method: str) -> tuple[Site, ...]:
    """The head's site.

    Raises:
        UserError: there is none, or it writes text.
    """
    sites = anatomy.at("head")
    if not sites:
        raise UserError(f"{method}: this backbone has no head to train.")
    if sites[0].exit.rpartition(".")[2] in LANGUAGE_HEADS:
        raise UserError(
            f"{sites[0].exit} is a language-model head, which `{method}` has no use for; it needs a classification head.",
            hint="Set objective: classification, or tune with bitfit, lora or full.",
        )
    return sites


class Head(Method[HeadConfig]):
    """A linear classifier W (classes, d) on the backbone's pooled output; all else is frozen. `linear_probe` solves one.

    Trainable: d · classes (+ classes), more where the family's head has a hidden layer, inside the head's module or before it
    (`pooler`: where the checkpoint has none, as DistilBERT's pre_classifier). It is added by itself to every
    trained method when the objective is classification.

    Source: the linear probe of reference 003's images; peft's `modules_to_save`.
    """

    name = "head"
    # `linear_probe` is a method of its own: the same head, solved instead of trained by steps.
    aliases = ("head_only",)
    branch = "specification"
    Config = HeadConfig
    kinds = ("head",)
    # Not the identity: a fresh head answers otherwise than the backbone's, before any training.
    capabilities = Capabilities(mergeable=True, identity=False)
    saved_whole = "head"
    reference = "head"
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-1)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        classification_head(anatomy, self.name)
        return anatomy.heads

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> FreshHead:
        return FreshHead(module, self.config.fresh)

    def count(self, site: Site) -> int:
        return site.parameters

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """`modules_to_save`, beside another method."""
        return saved_modules(items)

    @classmethod
    def from_saved(cls, checkpoint: PeftCheckpoint, values: Mapping[str, Mapping[str, Tensor]]) -> list[ImportedPart]:
        tensors = {site.name: copies(values[path]) for path in values for site in checkpoint.sites(path, ("head",))}
        return [ImportedPart("head", {"fresh": False}, tensors)]
