"""A pass runs under one frozen state; the model alone sets it, and what was before comes back."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import dollartune
from dollartune.attachment.attached import Attached
from dollartune.attachment.pass_state import PassState
from dollartune.backbones.swapped_forward import swapped_forward
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.train.activation_checkpointing import recomputed_layers

SOURCE = Path(dollartune.__file__).parent


@pytest.fixture
def attached() -> Iterator[Attached]:
    tiny = tiny_backbone("llama")
    attached = Attached(tiny.model, tiny.anatomy)
    attached.add("a", [build_method("adapter")])
    yield attached
    attached.detach()


def test_nobody_writes_it_from_outside(attached: Attached) -> None:
    with pytest.raises(AttributeError):
        attached.state = PassState()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        attached.state.route = ()  # type: ignore[misc]
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
            for target in flat:
                owner = target.value if isinstance(target, ast.Attribute) else None
                named = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                assert named != "attached", f"{path.name}:{node.lineno} writes to an attached model"


def test_blocks_nest_and_what_was_before_comes_back(attached: Attached) -> None:
    before = attached.state
    with suppress(RuntimeError), attached.changed(skip_unused=True), attached.routed("a", batch_rows=4):
        assert attached.state.skip_unused
        assert attached.state.batch_rows == 4
        with attached.changed(route=()):
            assert attached.state.route == ()
            assert attached.state.skip_unused
        assert len(attached.state.route) == 1
        raise RuntimeError
    assert attached.state is before


def test_an_unknown_field_is_refused(attached: Attached) -> None:
    with pytest.raises(TypeError, match="lean"), attached.changed(lean=True):
        pass


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_tensor_of_a_pass_outlives_it(attached: Attached, checkpointing: bool) -> None:
    """Captured inputs of sublayers would keep every layer's activations alive, which checkpointing is there to drop."""
    states: list[PassState] = []
    filled: list[int] = []

    def look(*_: object) -> None:
        states.append(attached.state)
        filled.append(len(attached.state.captured_inputs))

    handle = attached.model.get_output_embeddings().register_forward_hook(look)  # type: ignore[operator]
    try:
        with attached.routed("a"), recomputed_layers(attached, checkpointing):
            loss = attached(**tiny_backbone("llama").inputs()).logits.sum()
        assert filled[0] > 0
        assert all(not state.captured_inputs for state in states)
        loss.backward()
    finally:
        handle.remove()
    assert not attached.state.captured_inputs


def test_swapped_functions_nest_and_leave_nothing() -> None:
    linear = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = linear(x)
    with swapped_forward([(linear, lambda x: x + 1)]):
        assert torch.equal(linear(x), x + 1)
        with suppress(RuntimeError), swapped_forward([(linear, lambda x: x + 2), (linear, lambda x: x + 3)]):
            assert torch.equal(linear(x), x + 3)
            raise RuntimeError
        assert torch.equal(linear(x), x + 1)
    assert "forward" not in linear.__dict__
    assert torch.equal(linear(x), plain)
