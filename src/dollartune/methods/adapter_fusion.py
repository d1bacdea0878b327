"""AdapterFusion: frozen adapters of several tasks, mixed by attention; only the attention is trained.

y ──┬──> adapter of task 1 ──> u_1 ─┐
    ├──> adapter of task 2 ──> u_2 ─┤ weights s_i = softmax_i( (Q y) · (K u_i) )
    └──────────────────────────────(+) y + Σ_i s_i V u_i
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, MethodConfig
from dollartune.methods.bottleneck import Bottleneck, BottleneckConfig
from dollartune.methods.edits import Rows, Transform, zeros
from dollartune.methods.registry import build_method
from dollartune.methods.space import LogUniform
from dollartune.methods.stored_adapter import WEIGHTS, read_info
from dollartune.untrusted_files import read_tensors

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class AdapterFusionConfig(MethodConfig):
    """Attention over trained adapters."""

    lr: float = 1e-4
    adapters: list[str] = Field(default_factory=list)
    """Directories of trained single-task adapters: houlsby, pfeiffer, parallel, compacter and their kin, at the same
    sites."""
    parts: list[dict[str, Any] | str] = Field(default_factory=list)
    """Methods and settings of the fused adapters; filled in from `adapters`. Given alone, the adapters are random: a
    control."""


class Fusion(Transform):
    """Q, K (d, d) with biases (1, d), V (d, d), over frozen bottlenecks."""

    def __init__(self, d_model: int, adapters: list[Bottleneck]) -> None:
        super().__init__()
        # Inside the module, so that they are stored with it; frozen, so that they are neither trained nor counted.
        self.adapters: Iterable[Bottleneck] = nn.ModuleList(adapters).requires_grad_(False)  # type: ignore[assignment]
        self.query = nn.Parameter(torch.randn(d_model, d_model) * 0.02)
        self.key_matrix = nn.Parameter(torch.randn(d_model, d_model) * 0.02)
        self.value = nn.Parameter(torch.eye(d_model))  # V (d, d)
        self.query_bias = zeros(1, d_model)
        self.key_bias = zeros(1, d_model)

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        query, key, value = (matrix.to(y.dtype).mT for matrix in (self.query, self.key_matrix, self.value))
        asked = y @ query + self.query_bias.to(y.dtype)  # (rows, tokens, d)
        # u_i, each (rows, tokens, d)
        changes = [adapter.change(x if adapter.beside else y) for adapter in self.adapters]
        scores = [(asked * (u @ key + self.key_bias.to(y.dtype))).sum(-1) for u in changes]
        # In fp32: sums of d products are too coarse in bf16 for a difference that decides between adapters.
        weights = torch.stack(scores, dim=-1).float().softmax(-1).to(y.dtype)  # (rows, tokens, adapters)
        mixed = torch.stack([weights[..., i : i + 1] * u for i, u in enumerate(changes)]).sum(0)
        return y + mixed @ value


class AdapterFusion(Method[AdapterFusionConfig]):
    """y <- y + Σ_i s_i V u_i, s = softmax_i((Q y + b_Q) · (K u_i + b_K)), u_i what adapter i would add to y.

    Two stages: train one adapter per task (say `pfeiffer`), then fuse them: `adapter_fusion(adapters=["runs/a",
    "runs/b"])`. Trainable: 3 d² + 2 d per site, whatever the number of adapters. V starts as the identity, so training
    starts at a mixture of the adapters. The stored adapter holds the fused ones and needs their directories no more.

    Source: Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", section 3.2;
    residual connection and initial values as in the authors' library, without its penalty on V.
    """

    name = "adapter_fusion"
    aliases = ("adapterfusion", "fusion")
    branch = "addition"
    Config = AdapterFusionConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities(identity=False)
    tiny: ClassVar[Mapping[str, Any]] = {"parts": ["pfeiffer(reduction=4)", "pfeiffer(reduction=8)"]}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-5, 3e-3)}
    trained: tuple[dict[str, Tensor], ...] = ()
    """Tensors of the fused adapters, as read from their directories."""

    def resolve(self, processor: Any) -> Self:
        if self.config.parts:
            return self
        read = [read_bottlenecks(Path(folder)) for folder in self.config.adapters]
        resolved = type(self)(self.config.model_copy(update={"parts": [settings for settings, _ in read]}))
        resolved.trained = tuple(tensors for _, tensors in read)
        return resolved

    def fused(self) -> list[Method[Any]]:
        """The methods of the fused adapters; before `resolve`, as their directories say."""
        parts = self.config.parts or [bottleneck_of(Path(folder))[1] for folder in self.config.adapters]
        if len(parts) < 2:
            raise UserError(
                f"adapter_fusion needs at least two trained adapters to fuse, got {len(parts)}.",
                hint="Train one per task with pfeiffer, then adapter_fusion(adapters=['DIRECTORY', 'DIRECTORY']).",
            )
        return [build_method(part) for part in parts]

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        chosen = [method.sites(anatomy) for method in self.fused()]
        for number, sites in enumerate(chosen):
            if sites != chosen[0]:
                raise UserError(
                    f"adapter_fusion: adapter {number} is at {len(sites)} modules ({sites[0].name} ...), the first at "
                    f"{len(chosen[0])} ({chosen[0][0].name} ...); fused adapters must be at the same ones."
                )
        return chosen[0]

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> nn.Module | None:
        by_part = {str(i): method.shared(sites, anatomy) for i, method in enumerate(self.fused())}
        modules = nn.ModuleDict({i: module for i, module in by_part.items() if module is not None})
        for i, module in modules.items():
            self._fill(int(i), "shared.", module)
        return modules.requires_grad_(False) if modules else None

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Fusion:
        rules: Mapping[str, nn.Module] = dict(shared.items()) if isinstance(shared, nn.ModuleDict) else {}
        adapters = []
        for i, method in enumerate(self.fused()):
            edit = method.edit(site, rules.get(str(i)), module)
            if not isinstance(edit, Bottleneck):
                raise UserError(f"adapter_fusion fuses bottleneck adapters; {method.name!r} is none.")
            self._fill(i, f"edits.{site.name.replace('.', '/')}.", edit)
            adapters.append(edit)
        return Fusion(site.out_features, adapters)

    @torch.no_grad()
    def _fill(self, number: int, prefix: str, module: nn.Module) -> None:
        """Trained values for the tensors of one fused adapter; random ones where there are none."""
        for name, parameter in module.named_parameters():
            if not self.trained:
                # Of the size of a fresh transformer's weights: between adapters that do nothing there would be nothing to choose.
                parameter.add_(torch.randn(parameter.shape) * 0.02 if parameter.device.type != "meta" else 0.0)
            elif prefix + name in self.trained[number]:  # rules that sites share are stored once, and filled once
                parameter.copy_(self.trained[number][prefix + name])

    def count(self, site: Site) -> int:
        return 3 * site.out_features**2 + 2 * site.out_features


def bottleneck_of(folder: Path) -> tuple[int, dict[str, Any]]:
    """Number and settings of the bottleneck adapter in a directory; other parts (a classification head) are left out.

    Raises:
        UserError: no adapter directory, or none or several bottleneck adapters in it.
    """
    described = read_info(folder)["methods"]
    bottlenecks = [
        i for i, settings in enumerate(described) if isinstance(build_method(settings).config, BottleneckConfig)
    ]
    if len(bottlenecks) != 1:
        names = [settings["method"] for settings in described]
        raise UserError(
            f"adapter_fusion: {str(folder)!r} holds {names}; it needs exactly one bottleneck adapter, such as pfeiffer."
        )
    return bottlenecks[0], dict(described[bottlenecks[0]])


def read_bottlenecks(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of the bottleneck adapter in a directory. Errors as `bottleneck_of`."""
    number, settings = bottleneck_of(folder)
    prefix = f"parts.{number}."
    stored = read_tensors(folder, WEIGHTS)
    return settings, {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
