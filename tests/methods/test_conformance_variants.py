"""The suite again: other settings of methods, methods together, and the families that the main run leaves out."""

from __future__ import annotations

from typing import Any

from dollartune.methods.registry import build_method
from dollartune.testing import MethodSuite

OTHERS = ("gpt_neo", "bloom", "roberta", "albert", "deit")
"""Families beside the suite's seven: own attention code, interleaved q/k/v, shared layers."""
COMMON = ("opt", "gpt2", "t5", "bert", "vit")

ON_OTHER_FAMILIES = (
    "lora(rank=2, where='all_linear')",
    "dora(rank=2, where='all_linear')",
    "vera(rank=64)",
    "adalora(rank=4, target_rank=2)",
    "ia3",
    "bitfit(where='all_linear norm')",
    "norm",
    "full",
    "intrinsic(dimension=100)",
    "diff_pruning(keep=0.2, lr=0.02)",
    "layer_freezing(train='last 1')",
)

OTHER_SETTINGS = (
    "lora(rank=2, init='pissa', where='attention')",
    "lora(rank=2, rank_stabilized=True, lr_ratio=4.0, rank_pattern={'mlp.*': 3}, where='all_linear', dropout=0.3)",
    "lora(rank=2, where='mlp', stacks='all', layers='first 50%')",
    "dora(rank=2, where='attention', dropout=0.3)",
    "adalora(rank=3, target_rank=1, every=2, orthogonality=0.0, where='attention')",
    "ia3(two_vectors=True)",
    "bitfit(create=False, where='all_linear norm')",
    "intrinsic(dimension=100, structure_aware=False)",
    "diff_pruning(keep=0.3, lr=0.02, group='row', final=0.0)",
    "diff_pruning(keep=0.3, lr=0.02, group='none')",
    "layer_freezing(train='first 50%', embeddings=True)",
    "norm(where='norm -norm.final')",
)


def _suite(name: str, spec: str, families: tuple[str, ...], companions: tuple[str, ...] = ()) -> None:
    method = build_method(spec)
    attributes: dict[str, Any] = {
        "method": method,
        "families": families,
        "companions": tuple(build_method(other) for other in companions),
    }
    globals()[name] = type(name, (MethodSuite,), attributes)


def _in_turns(families: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Two families for a setting. The main run has every method on all of its own; here a family only has to meet each kind of
    edit, and each setting a family with and without separate linears."""
    return tuple(families[(number + step) % len(families)] for step in (0, 2))


for _number, _spec in enumerate(ON_OTHER_FAMILIES):
    _suite(f"TestOtherFamilies_{_number}_{build_method(_spec).name}", _spec, _in_turns(OTHERS, _number))
for _number, _spec in enumerate(OTHER_SETTINGS):
    _suite(f"TestOtherSettings_{_number}_{build_method(_spec).name}", _spec, _in_turns(COMMON, _number))

_suite(
    "TestLoRAWithHeadAndNorm",
    "lora(rank=2)",
    ("bert", "vit", "opt/classification", "gpt2/classification"),
    ("norm", "head"),
)
_suite("TestDoRAWithBitFitAndIA3", "bitfit", ("opt", "t5", "gpt2"), ("dora(rank=2, where='all_linear')", "ia3"))
