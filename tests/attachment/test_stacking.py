"""Stacked adapters: different ranks, refusals, and a cost that does not grow with their number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dollartune.attachment import Adapter, Assignment, Attached
from dollartune.attachment.stacking import RunningRows, StackedAdapters
from dollartune.errors import UserError
from dollartune.methods.adalora import AdaLoRA
from dollartune.methods.gates import Gated
from dollartune.methods.head import Head
from dollartune.methods.ia3 import IA3
from dollartune.methods.intrinsic import Intrinsic
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.vera import VeRA
from dollartune.testing import TinyBackbone, tiny, tiny_backbone
from dollartune.testing.practice import finish, perturb, split_by_rows, train


def adapters_of(backbone: TinyBackbone, *settings: Sequence[Any]) -> list[Adapter]:
    found = []
    for seed, methods in enumerate(settings):
        found.append(Adapter(methods, backbone.anatomy, backbone.model, seed))
        perturb(found[-1], 0.1, seed)
    return found


def assert_rows_equal_alone(
    backbone: TinyBackbone, adapters: list[Adapter], rows: list[int], rtol: float = 1e-4, atol: float = 2e-5
) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    for number, adapter in enumerate(adapters):
        attached.put(str(number), adapter)
    inputs = backbone.inputs(rows=len(rows))
    try:
        with torch.no_grad():
            gathered: Any = StackedAdapters(adapters).gather(torch.tensor(rows))
            with attached.routed(Assignment(gathered, slice(None))):
                together = split_by_rows(backbone, backbone.logits(attached, inputs), inputs)
            for row, number in enumerate(rows):
                with attached.routed(Assignment(adapters[number], slice(None))):
                    alone = split_by_rows(backbone, backbone.logits(attached, inputs), inputs)[row]
                torch.testing.assert_close(together[row], alone, rtol=rtol, atol=atol)
    finally:
        attached.detach()


def test_ranks_and_scales_may_differ() -> None:
    backbone = tiny_backbone("opt")
    adapters = adapters_of(
        backbone, [LoRA(rank=2)], [LoRA(rank=8, alpha=4.0)], [LoRA(rank=3, rank_stabilized=True, dropout=0.1)]
    )
    assert_rows_equal_alone(backbone, adapters, [1, 0, 2, 1])


@pytest.fixture
def changed_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models that may be changed: no other test gets them."""
    monkeypatch.setattr(tiny, "BUILT", {})


@pytest.mark.usefixtures("changed_backbones")
@pytest.mark.parametrize("init", ["zero", "pissa"])
def test_scales_may_differ_in_half_precision_too(init: Any) -> None:
    backbone = tiny_backbone("llama")
    backbone.model.to(torch.bfloat16)
    adapters = adapters_of(backbone, [LoRA(rank=2, init=init)], [LoRA(rank=2, alpha=4.0, init=init)])
    assert_rows_equal_alone(backbone, adapters, [1, 0, 1], rtol=0.0, atol=0.1)


class ScaleNorm(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.g = nn.Parameter(torch.ones(features)), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x, dim=-1) * self.weight * self.g


@pytest.mark.usefixtures("changed_backbones")
def test_single_numbers_are_stacked_too() -> None:
    backbone = tiny_backbone("opt")
    model: Any = backbone.model
    model.model.decoder.layers[0].self_attn_layer_norm = ScaleNorm(32)
    assert_rows_equal_alone(backbone, adapters_of(backbone, [Norm()], [Norm()]), [1, 0, 1])


def test_pruned_ranks_may_differ() -> None:
    backbone = tiny_backbone("opt")
    adapters = []
    for seed in (0, 1):
        adapters.append(Adapter([AdaLoRA(rank=4, target_rank=2)], backbone.anatomy, backbone.model, seed))
        attached = Attached(backbone.model, backbone.anatomy)
        attached.put("a", adapters[-1])
        with attached.routed("a"):
            train(backbone, attached, adapters[-1], 8, 0.05)
        attached.detach()
        finish(adapters[-1])
    ranks = [[edit.get_parameter("Q").shape[0] for _, edit in adapter.items()] for adapter in adapters]
    assert ranks[0] != ranks[1]
    assert_rows_equal_alone(backbone, adapters, [0, 1, 1, 0])


@pytest.mark.parametrize("family", ["bert", "roberta", "bart/classification", "vit", "gpt2/classification"])
def test_heads_and_norms_are_stacked_too(family: str) -> None:
    backbone = tiny_backbone(family)
    methods = [LoRA(rank=2, where="self_attn.o"), Norm(), Head()]
    assert_rows_equal_alone(backbone, adapters_of(backbone, methods, methods, methods), [2, 0, 1, 2])


def test_frozen_projections_are_not_copied() -> None:
    backbone = tiny_backbone("opt")
    stacked = StackedAdapters(adapters_of(backbone, [VeRA(rank=16)], [VeRA(rank=16)]))
    assert {name for tensors in stacked.tensors(stacked.blocks).values() for name in tensors} == {"d", "b"}
    with pytest.raises(UserError, match="projection_seed"):
        StackedAdapters(adapters_of(backbone, [VeRA(rank=16)], [VeRA(rank=16, projection_seed=1)]))


def test_refusals_say_why() -> None:
    backbone = tiny_backbone("opt")
    with pytest.raises(UserError, match="they change different modules"):
        StackedAdapters(adapters_of(backbone, [LoRA(rank=2)], [LoRA(rank=2, where="mlp")]))
    with pytest.raises(UserError, match=r"methods \['norm'\], the first has \['lora'\]"):
        StackedAdapters(adapters_of(backbone, [LoRA(rank=2)], [Norm()]))
    with pytest.raises(
        UserError, match=r"they differ in \['inner.scale'\]"
    ):  # of which the first's would be taken for all
        StackedAdapters(adapters_of(backbone, [Gated(inner="lora(alpha=8)")], [Gated(inner="lora(alpha=32)")]))
    with pytest.raises(UserError, match="'intrinsic' cannot be stacked"):
        StackedAdapters(adapters_of(backbone, [Intrinsic(dimension=20)]))


class CountedOperations(TorchDispatchMode):
    """Counts the operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_the_last_of_32_costs_what_the_first_does() -> None:
    """Counted in operations and FLOPs of one batch of 32 rows: all of one adapter, against each of its own."""
    backbone = tiny_backbone("opt")
    adapters = adapters_of(backbone, *[[LoRA(rank=2, where="all_linear")] for _ in range(32)])
    attached = Attached(backbone.model, backbone.anatomy)
    for number, adapter in enumerate(adapters):
        attached.put(str(number), adapter)
    stacked = StackedAdapters(adapters)
    inputs = backbone.inputs(rows=32)
    costs = []
    try:
        for rows in (torch.zeros(32, dtype=torch.long), torch.arange(32)):
            gathered: Any = stacked.gather(rows)
            with torch.no_grad(), attached.routed(Assignment(gathered, slice(None))), CountedOperations() as operations:
                attached(**inputs)
            with (
                torch.no_grad(),
                attached.routed(Assignment(gathered, slice(None))),
                FlopCounterMode(display=False) as flops,
            ):
                attached(**inputs)
            costs.append((operations.count, flops.get_total_flops()))
        with torch.no_grad(), attached.routed("0"), FlopCounterMode(display=False) as flops:
            attached(**inputs)
    finally:
        attached.detach()
    assert costs[0] == costs[1]
    assert costs[1][1] == flops.get_total_flops()


def test_an_adapter_s_seed_is_not_given_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_backbone("bert/classification")  # which is seeded itself
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    Adapter([Head()], tiny.anatomy, tiny.model, 3)
    assert not seeded


def test_rows_of_a_gathered_matrix_are_read_along_its_longer_side() -> None:
    # A product of one token with B (out, r) as it is trained takes several times as long.
    backbone = tiny_backbone("opt")
    adapters = adapters_of(backbone, [LoRA(rank=2)], [LoRA(rank=4)])
    gathered: Any = StackedAdapters(adapters).gather(torch.tensor([1, 0, 1]))
    ((_, edit),) = next(iter(gathered.outputs.values()))
    assert edit.A.stride(-1) == 1
    assert edit.A.shape[:2] == (3, 4)
    assert edit.B.stride(-2) == 1
    assert edit.B.shape == (3, 32, 4)


def test_rows_that_come_and_go_have_the_tensors_that_they_would_have_anew() -> None:
    backbone = tiny_backbone("opt")
    adapters = adapters_of(backbone, *([LoRA(rank=rank), IA3()] for rank in (2, 4, 3, 4)))
    stacked = StackedAdapters(adapters)
    running = RunningRows(stacked)
    generator = random.Random(0)
    start, rows = 5, [0, 1, 2]
    for _ in range(40):
        change = generator.choice(["leave", "join", "shift", "replace", "many"])
        if change == "leave" and len(rows) > 1:
            rows.pop(generator.randrange(len(rows)))
        elif change == "join":
            rows.insert(generator.randrange(len(rows) + 1), generator.randrange(4))
        elif change == "shift":
            start = max(0, start + generator.randrange(-3, 4))
        elif change == "many":
            rows = [generator.randrange(4) for _ in range(generator.randrange(1, 30))]
        else:
            rows[generator.randrange(len(rows))] = generator.randrange(4)
        kept, anew = running.gather(start, rows), stacked.gather(torch.tensor(rows))
        for where in ("inputs", "outputs"):
            for module, pairs in getattr(anew, where).items():
                for (_, own), (_, expected) in zip(getattr(kept, where)[module], pairs, strict=True):
                    tensors = {name: value for name, value in vars(expected).items() if isinstance(value, torch.Tensor)}
                    assert tensors
                    for name, value in tensors.items():
                        assert torch.equal(getattr(own, name), value)


def test_a_row_that_stays_is_not_copied_again() -> None:
    backbone = tiny_backbone("opt")
    adapters = adapters_of(backbone, *([LoRA(rank=2)] for _ in range(3)))
    running = RunningRows(StackedAdapters(adapters))
    running.gather(2, [0, 1, 2, 2])
    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.index_copy_.default:
                copied.append(len(args[2]))
            return func(*args, **(kwargs or {}))

    with Copies():
        running.gather(3, [1, 2, 2])  # the first one left: the others are where they were
        assert copied == []
        running.gather(3, [1, 0, 2, 1])
    assert copied == [2]


def test_a_stack_grows_by_what_is_added() -> None:
    backbone = tiny_backbone("opt")
    adapters = adapters_of(backbone, [LoRA(rank=4)], [LoRA(rank=4)], [LoRA(rank=3, alpha=1.0)], [LoRA(rank=8)])
    small = StackedAdapters(adapters[:2])
    assert small.added(adapters[1]).extends(small)
    # Another scale than all before, and a higher rank: neither has a place in the layout.
    grown = small
    for adapter in adapters[2:]:
        before, grown = grown, grown.added(adapter)
        assert not grown.extends(before)
    again = grown.added(adapters[1]).added(adapters[2])
    assert again.extends(grown)
    rows = torch.tensor([0, 1, 2, 3, 4, 5])
    whole = StackedAdapters([*adapters, adapters[1], adapters[2]]).gather(rows)
    for module, pairs in again.gather(rows).outputs.items():
        for (_, edit), (_, expected) in zip(pairs, whole.outputs[module], strict=True):
            for name in ("A", "B", "scale"):
                assert torch.equal(getattr(edit, name), getattr(expected, name))
    with pytest.raises(UserError, match="cannot be stacked"):
        grown.added(adapters_of(backbone, [IA3()])[0])


def test_running_rows_go_on_with_a_stack_that_grew() -> None:
    backbone = tiny_backbone("opt")
    adapters = adapters_of(backbone, *([LoRA(rank=2)] for _ in range(3)))
    stacked = StackedAdapters(adapters[:2])
    running = RunningRows(stacked)
    first = running.gather(0, [0, 1, 1])
    grown = stacked.added(adapters[2])
    assert running.goes_on_with(grown)
    assert running.gather(0, [0, 1, 2]) is first  # the same views, other numbers in the last row
    ((_, edit),) = next(iter(first.outputs.values()))
    ((_, own),) = next(iter(adapters[2].outputs.values()))
    assert torch.equal(edit.A[2], own.A)
    assert not running.goes_on_with(StackedAdapters(adapters))
