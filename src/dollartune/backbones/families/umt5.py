"""UMT5 (Chung et al., 2023): T5 in which every layer has a position bias of its own."""

from dataclasses import replace

from dollartune.backbones.families import t5

FAMILY = replace(
    t5.FAMILY,
    model_types=("umt5",),
    stacks={name: replace(stack, beside=None) for name, stack in t5.FAMILY.stacks.items()},
)
