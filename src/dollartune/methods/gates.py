"""Gates: what another method changes, let through in an amount that each token decides.

x ──┬──> σ(w x + c) = g ──────┐
    └──> the method's change ─·──+──> y          g in (0, 1), one number per token
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, MethodConfig, ParameterGroup
from dollartune.methods.edits import Delta, Edit, Gate, InputEdit, KeyValuePrefix, Rows, Transform
from dollartune.methods.registry import build_method
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class GatedConfig(MethodConfig):
    """A method whose changes are gated."""

    lr: float = 1e-3
    """Peak learning rate of the gates; the gated method keeps its own."""
    inner: dict[str, object] | str = "lora"
    """The method that is gated, as its name, `name(setting=value)`, or a mapping."""
    start: float = Field(0.5, gt=0.0, lt=1.0)
    """How far all gates are open at the start."""


class GatedDelta(Delta):
    """y + g(x) · delta(x)."""

    def __init__(self, inner: Delta, gate: Gate) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        # its dropout draws by the key, which attaching gives to this edit alone
        self.inner.key = self.key
        return self.gate(x) * self.inner.delta(x, rows)  # type: ignore[no-any-return]


class GatedTransform(Transform):
    """y + g(x) · (transform(x, y) − y)."""

    def __init__(self, inner: Transform, gate: Gate) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        self.inner.key = self.key
        return y + self.gate(x).to(y.dtype) * (self.inner.transform(x, y, rows) - y)  # type: ignore[no-any-return]


class GatedInput(InputEdit):
    """x + g(x) · (edit_input(x) − x)."""

    def __init__(self, inner: InputEdit, gate: Gate) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate

    def edit_input(self, x: Tensor, rows: Rows) -> Tensor:
        self.inner.key = self.key
        return x + self.gate(x) * (self.inner.edit_input(x, rows) - x)  # type: ignore[no-any-return]


class Gated(Method[GatedConfig]):
    """h <- h + σ(w x + c) · (the inner method's change of h), x the input of the edited module, w (in,), c a number.

    UniPELT is a list of gated methods: `[gated(inner="lora"), gated(inner="prefix"), gated(inner="pfeiffer")]`.
    A gated prefix has its share of each query's attention multiplied by g, so that a closed gate is no prefix at all.
    Trainable: the inner method's, and in + 1 per site.

    Source: Mao et al. 2022, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", section 3.2.
    Deviations: there, a gate is averaged over the tokens of a text, and multiplies a prefix's keys and values. Here
    each token has its own, so that padding and the text still to be written change nothing. The gates start at σ(0), w
    = 0.
    """

    name = "gated"
    aliases = ("gate", "unipelt")
    branch = "addition"
    Config = GatedConfig
    capabilities: Capabilities = Capabilities()  # type: ignore[misc]
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2)}

    def __init__(self, config: GatedConfig | None = None, /, **settings: Any) -> None:
        super().__init__(config, **settings)
        self.inner = build_method(self.config.inner)
        # These look for their own edits in the part, which are wrapped here, and would act on half of what they know.
        for hook in ("penalty", "after_backward", "after_step", "finish"):
            if getattr(type(self.inner), hook) is not getattr(Method, hook):
                raise UserError(f"gated: {self.inner.name!r} has a schedule or penalty of its own and cannot be gated.")
        theirs = self.inner.capabilities
        self.capabilities = replace(theirs, mergeable=False, peft_type=None, vllm=False)

    def resolve(self, processor: Any) -> Self:
        inner = self.inner.resolve(processor)
        resolved = type(self)(self.config.model_copy(update={"inner": inner.describe()}))
        resolved.inner = inner  # with whatever it read (AdapterFusion's trained adapters)
        return resolved

    def check(self, anatomy: Anatomy) -> None:
        self.inner.check(anatomy)
        kinds = {site.kind for site in self.inner.sites(anatomy)}
        if refused := kinds & {"input", "model", "head", "embedding"}:
            raise UserError(
                f"gated: {self.inner.name!r} edits the {sorted(refused)[0]}, where no hidden state can set a gate."
            )
        if "attention" in kinds and not anatomy.family.attention_interface:
            name = anatomy.family.model_types[0]
            raise UserError(
                f"gated: {name} has attention code of its own, in which no prefix can be gated; take the gate off."
            )

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return self.inner.sites(anatomy)

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> nn.Module | None:
        return self.inner.shared(sites, anatomy)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Edit:
        edit = self.inner.edit(site, shared, module)
        gate = Gate(site.in_features, self.config.start)
        if isinstance(edit, KeyValuePrefix):
            edit.gate = gate
            return edit
        if isinstance(edit, Delta):
            return GatedDelta(edit, gate)
        if isinstance(edit, Transform):
            return GatedTransform(edit, gate)
        if isinstance(edit, InputEdit):
            return GatedInput(edit, gate)
        raise UserError(f"gated: {self.inner.name!r} replaces parameters, which no gate can scale token by token.")

    def count(self, site: Site) -> int:
        return self.inner.count(site) + site.in_features + 1

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        return self.inner.count_shared(sites, anatomy)

    def parameter_groups(self, part: nn.Module) -> list[ParameterGroup]:
        gates = [p for module in part.modules() if isinstance(module, Gate) for p in module.parameters()]
        ids = {id(p) for p in gates}
        groups = self.inner.parameter_groups(part)
        for group in groups:
            # The inner method takes all parameters of the part for its own, the gates among them.
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        return [*groups, {"params": gates, "lr": self.config.lr, "weight_decay": self.config.weight_decay}]
