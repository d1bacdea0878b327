"""The conformance suite: what every tuning method must do on every family of backbone on which it has a meaning.

    class TestMine(MethodSuite):
        method = Mine(rank=2)

pytest runs each check on each of `families`. A family that the method refuses with a UserError is skipped with that
reason; refusing all of them fails. All checks are in fp32 on tiny random models and take a few milliseconds each.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from dollartune import format as numbers
from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.merging import merge, unmergeable
from dollartune.attachment.stacking import StackedAdapters
from dollartune.backbones.loading import Backbone
from dollartune.errors import UserError
from dollartune.export.directory import check_sizes
from dollartune.export.peft_format import read_peft, write_peft
from dollartune.methods.base import Method, SiteMethodConfig
from dollartune.methods.edits import Delta, Rows
from dollartune.methods.registry import build_method, methods
from dollartune.testing.practice import (
    attached_to,
    by_site,
    finish,
    loss,
    perturb,
    refusal,
    split_by_rows,
    train,
    with_penalties,
)
from dollartune.testing.tiny import TinyBackbone, meta_backbone, select, tiny_backbone

STEPS_UNTIL_ALL_LEARN = 6
"""Steps, each with a seed and rows of its own, in which every trained tensor must have a gradient once. One does for most
methods; a gate that is drawn shut (DiffPruning) or a layer that is dropped (AdapterDrop) passes nothing on in that step."""


class MethodSuite:
    """Inherit, set `method`, and let pytest collect the class."""

    method: ClassVar[Method[Any]]
    """The method under test, with settings that suit models 32 wide."""
    families: ClassVar[tuple[str, ...]] = ("opt", "gpt2", "llama", "t5", "bart", "bert", "vit")
    """Tiny backbones to run on (`dollartune.testing.FAMILIES`); `opt/classification` asks for a classification head."""
    companions: ClassVar[tuple[Method[Any], ...]] = ()
    """Methods that the adapter has beside it, listed after it."""
    overfit_lr: ClassVar[float] = 0.02
    """Learning rate of the overfitting check; groups keep their ratios."""
    overfit_steps: ClassVar[int] = 15
    overfit_drop: ClassVar[float] = 0.02
    """Share of the loss that these steps must take away."""

    @staticmethod
    def pytest_generate_tests(metafunc: Any) -> None:
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", metafunc.cls.families, indirect=True)

    @pytest.fixture
    def backbone(self, request: Any) -> TinyBackbone:
        """The tiny backbone, if the method has a meaning on it."""
        tiny = tiny_backbone(request.param)
        if reason := refusal(self.method, tiny):
            pytest.skip(reason)
        return tiny

    # Helpers that subclasses may want

    def methods(self) -> tuple[Method[Any], ...]:
        return (self.method, *self.companions)

    def new_adapter(self, backbone: TinyBackbone, seed: int = 0, noise: float = 0.0) -> Adapter:
        """An adapter; with `noise`, its trained tensors are moved away from their start."""
        adapter = Adapter(self.methods(), backbone.anatomy, backbone.model, seed)
        if noise:
            perturb(adapter, noise, seed)
        return adapter

    # Checks

    def test_has_a_meaning_somewhere(self) -> None:
        if self.method.capabilities.trains:
            reasons = [refusal(self.method, tiny_backbone(name)) for name in self.families]
            assert not all(reasons), reasons

    def test_settings_describe_the_method(self) -> None:
        settings = self.method.describe()
        assert settings.pop("method") == self.method.name
        assert type(self.method)(**settings).config == self.method.config
        # A method of a test file is in no registry.
        if self.method.name in methods():
            assert type(build_method(self.method.describe())) is type(self.method)

    def test_search_space_names_settings(self) -> None:
        fields = type(self.method.config).model_fields
        assert set(self.method.search) <= set(fields)
        if self.method.capabilities.trains and not self.method.capabilities.solved:
            assert "lr" in self.method.search, "every method that is trained by steps searches its learning rate"

    def test_starts_at_the_backbone(self, backbone: TinyBackbone) -> None:
        if not all(method.capabilities.identity for method in self.methods()):
            pytest.skip("the method does not promise it")
        inputs = backbone.inputs()
        with attached_to(backbone, self.new_adapter(backbone)) as attached, torch.no_grad():
            with attached.routed(None):
                before = backbone.logits(attached, inputs)
            # fp32 rounding of a few hundred sums; an edit that acts moves logits by 1e-2 at least.
            torch.testing.assert_close(backbone.logits(attached, inputs), before, rtol=1e-5, atol=1e-5)

    def test_gradients_reach_what_is_declared(self, backbone: TinyBackbone) -> None:
        if self.method.capabilities.solved:
            pytest.skip("the method is solved, not trained by gradients")
        # Tiny backbones are built once per process and shared.
        backbone.model.zero_grad(set_to_none=True)  # what other tests left
        adapter = self.new_adapter(backbone, noise=0.05)
        trainable = adapter.trainable()
        idle = set(trainable)
        for seed in range(STEPS_UNTIL_ALL_LEARN):
            adapter.zero_grad()
            with attached_to(backbone, adapter, Rows(training=True, seed=seed)) as attached:
                with_penalties(adapter, loss(backbone, attached, backbone.inputs(seed=seed)), 0.0).backward()
            gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
            assert not [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
            idle -= {name for name, gradient in gradients.items() if gradient.any()}
            if not idle:
                break
        assert not idle, f"declared trainable, but in {STEPS_UNTIL_ALL_LEARN} steps no gradient arrives: {sorted(idle)}"
        assert not [name for name, p in backbone.model.named_parameters() if p.grad is not None], (
            "the backbone got a gradient"
        )
        with attached_to(backbone, adapter):
            assert not [name for name, p in backbone.model.named_parameters() if p.requires_grad], (
                "the backbone is not frozen"
            )

    def test_count_formula(self, backbone: TinyBackbone) -> None:
        adapter = self.new_adapter(backbone)
        formula = sum(
            sum(part.method.count(site) for site in part.sites) + part.method.count_shared(part.sites, backbone.anatomy)  # type: ignore[operator, union-attr]
            for part in adapter.parts
        )
        assert formula == adapter.count() == sum(adapter.modules_edited().values())
        if not self.method.capabilities.solved:  # what is solved may be rows that are stored (nearest neighbours)
            assert (formula > 0) == self.method.capabilities.trains

    def test_shapes_without_weights(self, backbone: TinyBackbone) -> None:
        empty = meta_backbone(backbone.name)
        with torch.device("meta"):
            adapter = Adapter(self.methods(), empty.anatomy, empty.model)
        assert {n: p.shape for n, p in adapter.trainable().items()} == {
            n: p.shape for n, p in self.new_adapter(backbone).trainable().items()
        }

    def test_deterministic_by_seed(self, backbone: TinyBackbone) -> None:
        first = self.new_adapter(backbone, seed=3).tensors()
        # Drawing in between: an adapter must depend on its seed and on nothing that happened before.
        state = torch.random.get_rng_state()
        torch.rand(5)
        second = self.new_adapter(backbone, seed=3).tensors()
        torch.random.set_rng_state(state)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_saved_and_loaded_bit_equal(self, backbone: TinyBackbone) -> None:
        self._check_round_trip(backbone, self.new_adapter(backbone, noise=0.05))

    def test_finished_then_saved_and_loaded_bit_equal(self, backbone: TinyBackbone) -> None:
        adapter = self.new_adapter(backbone)
        chooses = any(type(method).finish is not Method.finish for method in self.methods())
        with attached_to(backbone, adapter) as attached:
            # What is chosen at the end depends on what was learned; where nothing is, one step moves all weights.
            train(backbone, attached, adapter, steps=6 if chooses else 1, lr=self.overfit_lr)
        finish(adapter)
        self._check_round_trip(backbone, adapter)

    def _check_round_trip(self, backbone: TinyBackbone, adapter: Adapter) -> None:
        inputs = backbone.inputs()
        with attached_to(backbone, adapter) as attached, torch.no_grad():
            expected = backbone.logits(attached, inputs)
        saved = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
        stored = sum(tensor.numel() for tensor in saved.values())
        check_sizes(
            Path("saved"), adapter.methods, backbone.anatomy, backbone.model, stored
        )  # what opens folders must not refuse it
        # Another seed: whatever is not in the file (a frozen projection) has to come back from the settings.
        other = self.new_adapter(backbone, seed=1)
        other.load(saved)
        assert saved.keys() == other.tensors().keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in other.tensors().items())
        with attached_to(backbone, other) as attached, torch.no_grad():
            assert torch.equal(backbone.logits(attached, inputs), expected)

    def test_loading_keeps_what_an_optimizer_holds(self, backbone: TinyBackbone) -> None:
        adapter = self.new_adapter(backbone)
        before = adapter.trainable()
        adapter.load({name: tensor.clone() for name, tensor in adapter.tensors().items()})
        after = adapter.trainable()
        assert before.keys() == after.keys()
        # States are loaded in the middle of training: a new object in a parameter's place would not be trained any more.
        assert all(after[name] is parameter for name, parameter in before.items())

    def test_merged_equals_adapter(self, backbone: TinyBackbone) -> None:
        adapter = self.new_adapter(backbone, noise=0.05)
        model = copy.deepcopy(backbone.model)
        if unmergeable(adapter):
            with pytest.raises(UserError, match="cannot be merged"):
                merge(model, backbone.anatomy, adapter)
            return
        inputs = backbone.inputs()
        with attached_to(backbone, adapter) as attached, torch.no_grad():
            expected = backbone.logits(attached, inputs)
        merge(model, backbone.anatomy, adapter)
        with torch.no_grad():
            merged_logits = backbone.logits(Attached(model, backbone.anatomy), inputs)
        # By the size of the logits: merged sums are added in another order.
        torch.testing.assert_close(
            # Relative to the largest logit: products in another order differ by fp32's last digits of that.
            merged_logits,
            expected,
            rtol=1e-5,
            atol=1e-5 * max(1.0, float(expected.abs().max())),
        )

    def test_mixed_rows_equal_alone(self, backbone: TinyBackbone) -> None:
        """Two adapters and bare rows in one batch, against each group by itself."""
        # Two and two rows and a bare one between them, so that no border of a piece is the batch's.
        inputs = backbone.inputs(rows=5)
        attached = Attached(backbone.model, backbone.anatomy)
        adapters = [self.new_adapter(backbone, seed, noise=0.1) for seed in (0, 1)]
        for number, adapter in enumerate(adapters):
            attached.put(f"adapter {number}", adapter)
        groups: list[tuple[Adapter | None, slice]] = [
            (adapters[0], slice(0, 2)),
            (None, slice(2, 3)),
            (adapters[1], slice(3, 5)),
        ]
        route = [Assignment(adapter, rows) for adapter, rows in groups]
        try:
            if not all(method.capabilities.mixed_rows for method in self.methods()):
                with pytest.raises(UserError, match="cannot share a batch"), attached.routed(*route):
                    pass
                return
            with torch.no_grad():
                with attached.routed(*route, batch_rows=5):
                    together = split_by_rows(backbone, backbone.logits(attached, inputs), inputs)
                for owner, rows in groups:
                    with attached.routed(Assignment(owner, slice(None))):
                        alone = backbone.logits(attached, select(inputs, rows))
                    # fp32 sums of a batch of five and of one or two rows are made in another order.
                    torch.testing.assert_close(torch.cat(together[rows]), alone, rtol=1e-4, atol=2e-5)
                with attached.routed(None):
                    bare = backbone.logits(attached, select(inputs, slice(0, 2)))
                assert not torch.allclose(torch.cat(together[0:2]), bare, atol=1e-3), "the adapter does nothing"
        finally:
            attached.detach()

    def test_stacked_rows_equal_alone(self, backbone: TinyBackbone) -> None:
        """Three adapters in one batch, applied in one go, against each row by itself."""
        adapters = [self.new_adapter(backbone, seed, noise=0.1) for seed in range(3)]
        if not all(method.capabilities.stackable for method in self.methods()):
            with pytest.raises(UserError, match="cannot be stacked"):
                StackedAdapters(adapters)
            return
        # One of them twice and not in order, as requests come.
        inputs, rows = backbone.inputs(rows=4), [2, 0, 2, 1]
        attached = Attached(backbone.model, backbone.anatomy)
        for number, adapter in enumerate(adapters):
            attached.put(f"adapter {number}", adapter)
        try:
            with torch.no_grad():
                gathered: Any = StackedAdapters(adapters).gather(torch.tensor(rows))
                with attached.routed(Assignment(gathered, slice(None))):
                    together = split_by_rows(backbone, backbone.logits(attached, inputs), inputs)
                for row, number in enumerate(rows):
                    with attached.routed(Assignment(adapters[number], slice(None))):
                        alone = backbone.logits(attached, select(inputs, slice(row, row + 1)))
                    torch.testing.assert_close(together[row].view(alone.shape), alone, rtol=1e-4, atol=2e-5)
        finally:
            attached.detach()

    def test_recomputed_backward_equals_plain(self, backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
        """Outputs and gradients in training mode, dropout included, with activations saved and recomputed."""
        adapter = self.new_adapter(backbone, noise=0.05)
        if not any(isinstance(edit, Delta) for _, edit in adapter.items()):
            pytest.skip("no linear deltas")
        both = []
        for plain in (False, True):
            if plain:
                monkeypatch.setattr(
                    "dollartune.attachment.hooks.add_delta",
                    lambda edit, x, y, rows: y + edit.delta(x, rows).to(y.dtype),
                )
            adapter.zero_grad()
            with attached_to(backbone, adapter, Rows(training=True, seed=7)) as attached:
                value = loss(backbone, attached, backbone.inputs())
                value.backward()
            both.append(
                (value.detach(), {n: p.grad.clone() for n, p in adapter.trainable().items() if p.grad is not None})
            )
        torch.testing.assert_close(both[0], both[1], rtol=1e-5, atol=1e-6)

    def test_last_layer_at_read_places_equals_the_whole_one(self, backbone: TinyBackbone) -> None:
        """A method whose edits need a row's other tokens says so: `Edit.each_token`."""
        adapter = self.new_adapter(backbone, noise=0.05)
        trained = [p for p in adapter.trainable().values() if p.requires_grad]
        inputs = backbone.inputs(4, 9)
        keep = torch.tensor([0, 1, 1, 3]), torch.tensor([3, 0, 7, 6])
        both = []
        with attached_to(backbone, adapter) as attached:
            if attached.last_layer is None:
                pytest.skip("every place of this backbone's last layer is read")
            for skip_unused in (False, True):
                # The same places with and without the fast path.
                with attached.changed(skip_unused=skip_unused):
                    logits = attached(keep=None if backbone.objective == "classification" else keep, **inputs).logits
                gradients = torch.autograd.grad(logits.square().sum(), trained, allow_unused=True) if trained else ()
                both.append((logits, [g for g in gradients if g is not None]))
        torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-4)

    def test_overfits_a_few_rows(self, backbone: TinyBackbone) -> None:
        """Vectors and virtual tokens need rates that would break matrices, so a few are tried until one learns."""
        tried = []
        # Rates of methods lie two orders of magnitude apart.
        for factor in (1, 5, 15):
            adapter = self.new_adapter(backbone)
            # virtual tokens reach an answer through attention alone, which a random backbone hardly uses
            drop = self.overfit_drop / 4 if adapter.virtual else self.overfit_drop
            with attached_to(backbone, adapter) as attached:
                losses = train(
                    backbone, attached, adapter, self.overfit_steps, factor * self.overfit_lr, until=1 - drop
                )
            if min(losses) < losses[0] * (1 - drop):
                return
            tried.append(f"rate {factor * self.overfit_lr:g}: {losses[0]:.4f} -> {min(losses):.4f}")
        raise AssertionError(f"no loss fell by {numbers.percent(drop)}: {'; '.join(tried)}")

    def test_detaching_restores_the_backbone(self, backbone: TinyBackbone) -> None:
        model, inputs = backbone.model, backbone.inputs()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        wanted = {name: p.requires_grad for name, p in model.named_parameters()}
        bare = Attached(model, backbone.anatomy)
        with torch.no_grad():
            expected = backbone.logits(bare, inputs)
        bare.detach()
        adapter = self.new_adapter(backbone, noise=0.05)
        with attached_to(backbone, adapter) as attached:
            train(backbone, attached, adapter, steps=2, lr=self.overfit_lr)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert wanted == {name: p.requires_grad for name, p in model.named_parameters()}
        assert not [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        assert not [n for n, m in model.named_modules() if any("dollartune" in key for key in vars(m))]
        assert not str(model.config._attn_implementation).startswith("dollartune")
        with torch.no_grad():
            assert torch.equal(backbone.logits(Attached(model, backbone.anatomy), inputs), expected)
        model.requires_grad_(True)

    def test_choice_of_layers(self, backbone: TinyBackbone) -> None:
        if not isinstance(self.method.config, SiteMethodConfig):
            pytest.skip("the method has no choice of layers")
        method = type(self.method)(self.method.config.model_copy(update={"layers": "last 1"}))
        last = {stack: count - 1 for stack, count in backbone.anatomy.layer_counts.items()}
        sites = method.sites(backbone.anatomy)
        assert sites
        assert all(site.layer in (None, last[site.stack]) for site in sites)
        if self.method.config.layers == "all" and max(backbone.anatomy.layer_counts.values()) > 1:
            assert len(sites) < len(self.method.sites(backbone.anatomy))

    def test_exchange_with_peft_somewhere(self) -> None:
        """A `peft_type` is a promise: on one family at least, the adapter is written in peft's format."""
        if self.method.capabilities.peft_type is None:
            pytest.skip("the peft library has no such method")
        reasons = []
        for name in self.families:
            backbone = tiny_backbone(name)
            if reason := refusal(self.method, backbone):
                reasons.append(reason)
                continue
            try:
                part = self.new_adapter(backbone).parts[0]
                part.method.to_peft(list(part.items()), backbone.anatomy)  # type: ignore[operator, union-attr]
                return
            except UserError as error:
                reasons.append(str(error))
        raise AssertionError(
            f"peft_type is {self.method.capabilities.peft_type}, and no family can be written: {reasons}"
        )

    def test_exchange_with_peft(self, backbone: TinyBackbone, tmp_path: Path) -> None:
        """Written, loaded by the peft library (where it is installed) and here: the same logits, and the same tensors."""
        if self.method.capabilities.peft_type is None:
            pytest.skip("the peft library has no such method")
        if self.method.name not in methods():
            pytest.skip(
                "an import looks methods up by name, and this one is not registered (entry point dollartune.methods)"
            )
        adapter = self.new_adapter(backbone, noise=0.05)
        finish(adapter)
        wrapped = Backbone(backbone.name, backbone.model, None, backbone.anatomy, backbone.objective)
        try:
            for part in adapter.parts:
                part.method.to_peft(list(part.items()), backbone.anatomy)  # type: ignore[operator, union-attr]
        except UserError as error:  # peft has it, but not on this kind of backbone
            pytest.skip(str(error))
        write_peft(tmp_path / "peft", wrapped, adapter)  # raises unless logits are equal, by peft and by us
        again, notes = read_peft(tmp_path / "peft", wrapped)
        ours, theirs = by_site(adapter), by_site(again)
        names = {method.name for method in adapter.methods}
        # a classifier's checkpoint holds the head as well, trained or not
        if {method.name for method in again.methods if method.name in names or method.saved_whole is None} != names:
            assert notes, f"it came back as {again.methods} without a word"
        elif ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_bf16_stays_bf16(self, backbone: TinyBackbone) -> None:
        model = copy.deepcopy(backbone.model).to(torch.bfloat16)
        attached = Attached(model, backbone.anatomy)
        attached.put("adapter", self.new_adapter(replace(backbone, model=model), noise=0.01))
        inputs = {n: t.bfloat16() if t.is_floating_point() else t for n, t in backbone.inputs().items()}
        with attached.routed("adapter"):
            logits = backbone.logits(attached, inputs)
        # a solved head scores in fp32: it is small, and comes after the layers
        assert logits.dtype == (torch.float32 if self.method.capabilities.solved else torch.bfloat16)
        assert torch.isfinite(logits).all()
