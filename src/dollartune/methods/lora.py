"""LoRA: a low-rank update of chosen linear layers.

x (tokens, in) ──> W (out, in) ───────────────+──> y (tokens, out)
      └──> dropout ──> A (r, in) ──> B (out, r) · scale
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.backbones.device_map import tensor_of
from dollartune.errors import UserError
from dollartune.methods.base import HIGHEST_RATE, Capabilities, Method, MethodConfig, ParameterGroup, SiteMethodConfig
from dollartune.methods.edits import Delta, Override, Rows, dropout, kaiming_uniform, zeros
from dollartune.methods.exchange import Factors, ImportedPart, PeftCheckpoint, PeftPart, low_rank, selections
from dollartune.methods.rules import LORA_ALPHA, Facts, lora_rank, lora_rate
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site, SiteKind


class LoRAConfig(SiteMethodConfig):
    """A low-rank update B A of each chosen linear."""

    lr: float = 5e-4
    where: str = "self_attn.q self_attn.v cross_attn.q cross_attn.v"
    """Linear layers to update."""
    rank: int = Field(8, ge=1)
    """Rank r of the update."""
    alpha: float = Field(16.0, gt=0.0)
    """Numerator of the scale alpha / r."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the update's input, in training."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023)."""
    lr_ratio: float = Field(1.0, gt=0.0)
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024)."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Site, role or pattern -> rank, where it differs from `rank`: `{"mlp.*": 4, "decoder.0.self_attn.q": 16}`."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0.0)]] = Field(default_factory=dict)
    """Site, role or pattern -> alpha, where it differs from `alpha`."""
    init: Literal["zero", "pissa"] = "zero"
    """`zero`: B starts at 0; `pissa`: A and B start as the principal singular vectors of W (Meng et al. 2024)."""


ValueT = TypeVar("ValueT", int, float)


def by_pattern(pattern: Mapping[str, ValueT], site: Site, default: ValueT) -> ValueT:
    """The value for a site: by its name, else its role, else the first pattern that fits either."""
    for key in (site.name, site.role):
        if key in pattern:
            return pattern[key]
    fitting = (value for key, value in pattern.items() if fnmatchcase(site.name, key) or fnmatchcase(site.role, key))
    return next(fitting, default)


def above_all_matrices(ranks: Sequence[tuple[Site, int]]) -> str | None:
    """What is wrong where no matrix has so high a rank as its update; that of narrow keys and values alone may be."""
    if not ranks or any(rank <= min(site.in_features, site.out_features) for site, rank in ranks):
        return None
    site, rank = max(ranks, key=lambda one: min(one[0].in_features, one[0].out_features))
    return (
        f"rank {rank:,} is above that of every matrix it updates; the largest, {site.name}, is {site.out_features} x "
        f"{site.in_features}."
    )


class LowRank(Delta):
    """scale · dropout(x) Aᵀ Bᵀ."""

    zero_padded = True
    scalars = ("scale",)

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.A = kaiming_uniform(rank, in_features)  # (r, in)
        self.B = zeros(out_features, rank)  # (out, r)
        self.scale = scale
        self.dropout = dropout

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        # The narrow product first, r (in + out) operations per token; B A would be in · out. The scale goes onto B (out, r),
        # not onto the output of all tokens.
        return self._product(dropout(x, self.dropout, rows, self.key), self.A, self.B)

    def _product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        # (rows, tokens, r), then (rows, tokens, out)
        z, B = x @ A.to(x.dtype).mT, B.to(x.dtype).mT
        # Where each row has a B of its own, there are more numbers in them than in z; a scale for each row is fp32.
        return (z * self.scale).to(x.dtype) @ B if self.batched else z @ (B * self.scale)

    def gradients(self, x: Tensor, gradient: Tensor, rows: Rows, of_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """With z = dropout(x), g the gradient: dA = (s g B)ᵀ z, dB = s gᵀ (z Aᵀ), dz = s g B A."""
        # Drawn again from the same seed: the mask is not kept between the passes.
        z = dropout(x, self.dropout, rows, self.key).flatten(0, -2)
        g, A = gradient.flatten(0, -2), self.A.to(x.dtype)  # g (tokens, out), A (r, in)
        gB = g @ (self.B.to(x.dtype) * self.scale)  # (tokens, r), as is z Aᵀ
        dA, dB = gB.mT @ z, (((z @ A.mT) * self.scale).mT @ g).mT  # (r, in), (out, r)
        # the mask once more, as z = mask · x
        dx = dropout((gB @ A).view(x.shape), self.dropout, rows, self.key) if of_x else None
        return dx, [dA.to(self.A.dtype), dB.to(self.B.dtype)]

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.B @ self.A), bias

    def factors(self) -> list[Factors]:
        """The update as terms scale · B A."""
        return [(self.A.detach(), self.B.detach(), self.scale)]


class PrincipalLowRank(LowRank):
    """PiSSA: A and B start as the top r singular triplets of W.

    The paper subtracts their product from the frozen W. Here W stays untouched and the start is subtracted from the
    output instead, which is the same function; A0 and B0 are kept as buffers.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, rank, scale, dropout)
        if weight.device.type != "meta":
            # In fp32: no decomposition in half precision exists, and 4-bit weights were unpacked before.
            u, s, vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
            # half of each singular value to A and half to B, so that scale · B A is theirs
            root = (s[:rank] / scale).sqrt()
            with torch.no_grad():
                self.A.copy_(root[:, None] * vh[:rank])
                self.B.copy_(u[:, :rank] * root)
        self.A0 = nn.Buffer(self.A.detach().clone())
        self.B0 = nn.Buffer(self.B.detach().clone())

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        # without dropout: it is part of the backbone
        return super().delta(x, rows) - self._product(x, self.A0, self.B0)

    def gradients(self, x: Tensor, gradient: Tensor, rows: Rows, of_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        dx, gradients = super().gradients(x, gradient, rows, of_x)
        if dx is not None:
            dx = dx - gradient @ (self.B0.to(x.dtype) * self.scale) @ self.A0.to(x.dtype)
        return dx, gradients

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.B @ self.A - self.B0 @ self.A0), bias

    def factors(self) -> list[Factors]:
        return [*super().factors(), (self.A0, -self.B0, self.scale)]


class LowRankOfTensor(Override):
    """W + scale · B A for a tensor that no linear holds: for each expert its own, or for a convolution seen as a matrix.

    Args:
        module: the backbone's, which holds W.
        site: of kind `weights`; W is (matrices, out, in) in the shape that the module keeps.
        rank, scale: as in `LowRank`. There is no dropout: what enters the experts is not at hand.
    """

    def __init__(self, module: nn.Module, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.base = [(module, site.parameter)]  # in a list: the backbone's module is no part of this one
        self.shape = (site.matrices, site.out_features, site.in_features)
        self.A = nn.Parameter(
            torch.stack([kaiming_uniform(rank, site.in_features).detach() for _ in range(site.matrices)])
        )
        self.B = zeros(site.matrices, site.out_features, rank)  # (matrices, out, r)
        self.scale = scale

    def values(self) -> dict[str, Tensor]:
        module, name = self.base[0]
        weight: Tensor = tensor_of(module, name)
        return {name: weight + (self.scale * (self.B @ self.A)).view(weight.shape).to(weight.dtype)}


class LoRA(Method[LoRAConfig]):
    """Low-rank adaptation: y = W x + scale · B A x.

    x (rows, tokens, in), y (rows, tokens, out). A is (r, in), uniform in ±1/sqrt(in); B is (out, r), zero, so training
    starts at the backbone. scale = alpha / r, or alpha / sqrt(r) when rank-stabilized. Trainable: r (in + out) per
    linear. The update can be added into W. Experts, which are tensors of three dimensions, get one of their own each.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3. Initial values as in the
    peft library (the paper draws A from a normal distribution). rsLoRA: Kalajdzievski 2023, theorem 3.2. LoRA+: Hayou
    et al. 2024, section 4. PiSSA: Meng et al. 2024, equations 2 to 4.
    """

    name = "lora"
    aliases: ClassVar[tuple[str, ...]] = ("rslora", "lora_plus", "pissa", "low_rank_adaptation")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rslora": {"rank_stabilized": True},
        "lora_plus": {"lr_ratio": 16.0},
        "pissa": {"init": "pissa"},
    }
    branch = "reparameterization"
    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    kinds: ClassVar[tuple[SiteKind, ...]] = ("linear", "weights")
    capabilities = Capabilities(mergeable=True, peft_type="LORA", vllm=True)
    reference = "low_rank"
    small_lr: ClassVar[float | None] = 0.003
    tiny: ClassVar[Mapping[str, Any]] = {"rank": 2, "dropout": 0.2}
    search: ClassVar[Mapping[str, Any]] = {
        "lr": LogUniform(3e-5, 3e-2),  # ten times full tuning's range
        "where": Choice(LoRAConfig.model_fields["where"].default, "all_linear"),
        "rank": Choice(2, 4, 8, 16, 32, 64, 128, 256),  # alpha is not searched: see rules.LORA_ALPHA
    }

    @classmethod
    def defaults_for(cls, facts: Facts) -> dict[str, Any]:
        return {
            "lr": lora_rate(facts.width), "where": "all_linear", "alpha": LORA_ALPHA,
            "rank": lora_rank(facts.rows, facts.width),
        }  # fmt: skip

    def rank(self, site: Site) -> int:
        """Rank at a site, `rank_pattern` considered."""
        return by_pattern(self.config.rank_pattern, site, self.config.rank)

    @property
    def vllm_note(self) -> str:
        patterns = self.config.rank_pattern or self.config.alpha_pattern
        return " (0.33 or later: older versions drop rank and alpha patterns without a word)" if patterns else ""

    def mistake(self, anatomy: Anatomy) -> str | None:
        if (rate := self.config.lr * self.config.lr_ratio) > HIGHEST_RATE:
            return f"the learning rate of B, lr x lr_ratio, is {rate:g}; a learning rate is at most {HIGHEST_RATE:g}."
        return above_all_matrices([(site, self.rank(site)) for site in self.sites(anatomy)])

    def scale(self, site: Site) -> float:
        """Factor of the update at a site."""
        alpha, rank = by_pattern(self.config.alpha_pattern, site, self.config.alpha), self.rank(site)
        # alpha / r keeps the update's size when r changes, in theory; in practice it shrinks with r, which alpha / √r
        # mends.
        return alpha / (math.sqrt(rank) if self.config.rank_stabilized else rank)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> LowRank | LowRankOfTensor:
        if site.kind == "weights":
            return LowRankOfTensor(module, site, self.rank(site), self.scale(site))
        if self.config.init == "pissa":
            from dollartune.backbones.weights import site_weight

            return PrincipalLowRank(site_weight(module, site), self.rank(site), self.scale(site), self.config.dropout)
        return LowRank(site.in_features, site.out_features, self.rank(site), self.scale(site), self.config.dropout)

    def count(self, site: Site) -> int:
        return site.matrices * self.rank(site) * (site.in_features + site.out_features)

    def parameter_groups(self, part: nn.Module) -> list[ParameterGroup]:
        # B starts at zero and feels the width of the output, A that of the input: LoRA+'s argument for two rates.
        fast = [p for name, p in part.named_parameters() if name.endswith(".B")]
        rest = [p for name, p in part.named_parameters() if not name.endswith(".B")]
        rates = (rest, self.config.lr), (fast, self.config.lr * self.config.lr_ratio)
        return [{"params": parameters, "lr": lr, "weight_decay": self.config.weight_decay} for parameters, lr in rates]

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """LORA; PiSSA as a LoRA of twice the rank, with its start subtracted."""
        tensors = [site.name for site, _ in items if site.kind == "weights"]
        if tensors:
            raise UserError(
                f"peft keeps updates of experts and convolutions in formats of their own, which this version does not write: "
                f"{', '.join(tensors[:2])}{' and more' if len(tensors) > 2 else ''}.",
                hint="Export merged, or tune the linears alone: where='self_attn mlp.gate mlp.up mlp.down'.",
            )
        return low_rank([(site, edit.factors()) for site, edit in items], self.config.rank_stabilized)

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        """LoRA, rsLoRA and PiSSA.

        Raises:
            UserError: what `lora_parts` refuses.
        """
        if checkpoint.config.get("use_dora"):
            return None
        init = "pissa" if checkpoint.config.get("init_lora_weights") == "pissa" else "zero"
        parts = lora_parts(checkpoint, "lora", {"init": init})
        if init == "pissa":
            _start_of_fused(checkpoint, parts)
        return parts


# peft's LORA checkpoints: LoRA, rsLoRA, PiSSA, and the factors of DoRA.

_UNREADABLE = {
    "lora_bias": "biases of its own",
    "use_qalora": "QALoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "parameters as targets",
    "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "use_bdlora": "block-diagonal factors",
}
"""Settings of a peft LoRA that change its function and have no counterpart here."""
_STARTS_OF_FACTORS = ("gaussian", "eva", "orthogonal")
"""Of peft's `init_lora_weights`, those that change A and B alone. The others (PiSSA, OLoRA, CorDA, LoftQ) subtract their start
from W, which is not in the file; PiSSA's can be computed again, where the method knows that start."""


def lora_parts(checkpoint: PeftCheckpoint, method: str, settings: Mapping[str, Any]) -> list[ImportedPart]:
    """LoRA or DoRA parts from a LORA checkpoint; an update of a fused linear is cut into one per role, which is exact.

    Raises:
        UserError: a start that changed the backbone, or a setting or tensor that changes the function and has no counterpart.
    """
    config = checkpoint.config
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in (*_STARTS_OF_FACTORS, settings.get("init")):
        known = [*_STARTS_OF_FACTORS, *(["pissa"] if method == "lora" else [])]
        raise UserError(
            f"the peft adapter starts from {start!r}, which changed the backbone's weights; of {method} {', '.join(known)} "
            "and peft's default can be imported.",
            hint="Convert it to a plain LoRA by peft: save_pretrained(..., path_initial_model_for_weight_conversion=START)"
            if method == "lora"
            else "Merge it by peft (merge_and_unload), and tune the merged model.",
        )
    for key, what in _UNREADABLE.items():
        if config.get(key):
            raise UserError(f"the peft adapter has {what} ({key}), which cannot be imported.")
    if config.get("bias", "none") != "none":
        raise UserError(f"the peft adapter trained biases too (bias: {config['bias']!r}), which cannot be imported.")
    stabilized = bool(config.get("use_rslora"))
    # 8 is peft's default, as for the rank below
    default = float(config.get("lora_alpha", 8))
    tensors: dict[Site, dict[str, Tensor]] = {}
    ranks, alphas = {}, {}
    for path, stored in checkpoint.modules.items():
        # one version of peft stores the magnitude as a parameter, another as the weight of a module
        parts = {name.replace("magnitude_vector.weight", "magnitude_vector"): value for name, value in stored.items()}
        expected = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if method == "dora" else set())
        if parts.keys() != expected:
            raise UserError(f"the peft adapter has {sorted(parts)} at {path!r}; expected {sorted(expected)}.")
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
        alpha = peft_pattern(config.get("alpha_pattern") or {}, path, default)
        for site, rows in checkpoint.pieces(path):
            if b.shape != (site.fused_features, a.shape[0]) or a.shape[1] != site.in_features:
                raise UserError(
                    f"the peft adapter has A {tuple(a.shape)} and B {tuple(b.shape)} at {path!r}, "
                    f"which is {site.in_features} x {site.out_features}."
                )
            tensors[site] = {"A": a, "B": b[rows]}
            if method == "dora":
                tensors[site]["magnitude"] = parts["lora_magnitude_vector"].flatten()[rows][None]
            ranks[site.name], alphas[site.name] = a.shape[0], float(alpha)
            # at its first part: one note for each fused linear
            if site.part is not None and rows[0] == 0:
                checkpoint.notes.append(
                    f"{path} is fused; its update was cut into {site.part.of}, which train on separately."
                )
    rank = int(config.get("r", 8))
    shared = {
        **settings,
        "rank": rank,
        "alpha": default,
        "rank_stabilized": stabilized,
        "dropout": float(config.get("lora_dropout", 0.0)),
    }
    parts_found = []
    for selection, sites in selections(list(tensors)):
        names = [site.name for site in sites]
        rank_pattern = {name: ranks[name] for name in names if ranks[name] != rank}
        alpha_pattern = {name: alphas[name] for name in names if alphas[name] != default}
        own = {**shared, **selection, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
        parts_found.append(ImportedPart(method, own, {site.name: tensors[site] for site in sites}))
    return parts_found


def _start_of_fused(checkpoint: PeftCheckpoint, parts: Sequence[ImportedPart]) -> None:
    """peft's PiSSA starts from the singular vectors of a whole fused weight, ours from those of each role."""
    from dollartune.backbones.weights import module_weight

    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    methods = {name: LoRA(**part.settings) for part in parts for name in part.tensors}
    for path in checkpoint.modules:
        for site, rows in checkpoint.pieces(path):
            if site.part is not None:
                method, weight = methods[site.name], module_weight(checkpoint.model.get_submodule(path))
                start = PrincipalLowRank(
                    weight.T if site.transposed else weight, method.rank(site), method.scale(site), 0.0
                )
                tensors[site.name] |= {"A0": start.A0, "B0": start.B0[rows]}


def peft_pattern(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """peft's look-up in `rank_pattern` and `alpha_pattern`: the first key that is the end of the module's path."""
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except re.error:
            raise UserError(f"the peft adapter's pattern {key!r} is not a regular expression.") from None
    return default
