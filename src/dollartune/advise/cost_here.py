"""What an advised method costs on a machine, roughly: for the third line of an advice, before there is a study to plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dollartune import format as numbers
from dollartune.advise.framework import FULL
from dollartune.budget.prices import machine as find_machine
from dollartune.methods.registry import methods, reference
from dollartune.planner.backbone_choice import ACHIEVED, TOKENS, TRAINING_PASSES, matrix_flops
from dollartune.train.settings import TrainingSettings

FROZEN_PASSES = 2
"""Forward, and backward through activations alone: the gradients of frozen weights, a third of the work, are not computed."""


@dataclass(frozen=True)
class RoughCost:
    """Seconds and dollars of one training, to within a factor of two or three."""

    seconds: float
    dollars: float | None
    where: str

    @property
    def sentence(self) -> str:
        """For people."""
        money = f", {numbers.dollars(self.dollars)}" if self.dollars is not None else ""
        return f"about {numbers.seconds(self.seconds)}{money} per training on {self.where} (rows of {TOKENS} tokens)"

    @property
    def budget(self) -> str:
        """What to give for it: half as much again for loading, validating and testing, in whole minutes, and 5 at least."""
        return f"{max(5, math.ceil(1.5 * self.seconds / 60))} min"


def beside_a_probe(method: str, parameters: int, examples: int, machine: str | None = None) -> str:
    """What the cheapest way to a classifier takes, for the end of that sentence; empty where it is the method itself."""
    probe = reference("probe").name
    if method == probe:
        return ""
    seconds = numbers.seconds(rough_cost(probe, parameters, examples, machine).seconds)
    return f"; {probe}, a classifier fitted on the frozen model's features, about {seconds}"


def rough_cost(method: str, parameters: int, examples: int, machine: str | None = None) -> RoughCost:
    """Passes x rows x tokens x 2 FLOP per parameter, by the machine's speed.

    Args:
        method: a registered name; one that trains by no steps takes one pass.
        parameters: of the backbone.
        machine: a row of the table of machines; None is this one, whose speed is measured.

    Raises:
        UserError: there is no such machine.
    """
    known = methods().get(method)
    # A published method that is not installed here is taken for one that is trained by steps.
    trains = known is None or known.capabilities.trains
    by_steps = trains and (known is None or "lr" in known.Config.model_fields)
    training = TrainingSettings()
    rows = training.steps_for(examples) * training.batch_size if by_steps else examples
    passes = 1 if not by_steps else TRAINING_PASSES if method == FULL else FROZEN_PASSES
    flop = 2.0 * parameters * rows * TOKENS * passes
    if machine is None:
        return RoughCost(flop / (ACHIEVED * matrix_flops()), None, "this machine")
    priced = find_machine(machine)
    peak = priced.half_flops if priced.kind == "cuda" else priced.single_flops
    seconds = flop / (ACHIEVED * peak)
    return RoughCost(seconds, seconds * priced.dollars_per_hour / 3600, machine)
