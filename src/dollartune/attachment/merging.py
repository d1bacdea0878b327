"""Writes an adapter into the backbone's own weights, where that is exact.

W (out, in), b (out,)  ──edit.merge──>  W', b'  ──>  stored as the module stores it: transposed, fused, tied, quantized
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.backbones.device_map import refuse_put_away
from dollartune.backbones.quantize import is_quantized
from dollartune.backbones.weights import part_rows, site_bias, site_weight
from dollartune.errors import UserError
from dollartune.methods.edits import Delta, Edit, InputEdit, Override, Readout, Transform

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter

CONFIG_BIASES = {
    "attention_bias": ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"),
    "mlp_bias": ("mlp.gate", "mlp.up", "mlp.down"),
}
"""Settings by which families without biases (LLaMA) can be given a place for them in their checkpoints."""


@dataclass
class Merged:
    """What merging did."""

    modules: list[str] = field(default_factory=list)
    """Modules whose weights were written."""
    created_biases: list[str] = field(default_factory=list)
    """Linears that had no bias and now have one."""
    unportable: list[str] = field(default_factory=list)
    """Those of them for which the family's checkpoint has no place: the merged model works in memory only."""
    lost: dict[str, float] = field(default_factory=dict)
    """Module -> share of the update that rounding took away, |stored - exact| / |exact - before| (Frobenius): about 0
    in fp32, and what bf16 or 4 bits cost."""


def unmergeable(adapter: Adapter) -> list[str]:
    """Names of the adapter's methods that cannot be written into weights."""
    if adapter.readout is not None and adapter.readout.unmergeable is not None:
        return [method.name for method in adapter.methods]
    return [method.name for method in adapter.methods if not method.capabilities.mergeable]


@torch.no_grad()
def merge(model: nn.Module, anatomy: Anatomy, adapter: Adapter, requantize: bool = False) -> Merged:
    """Writes an adapter into the model's weights, in place. Copy the model first to keep the backbone.

    Args:
        model: the backbone, with nothing attached.
        anatomy: of the same model.
        adapter: built for the same architecture.
        requantize: put merged 4-bit weights back into 4 bits, and measure what that loses; otherwise such a module
            becomes a plain linear in the compute dtype.

    Raises:
        UserError: a method of the adapter is not exactly mergeable (virtual tokens, prefixes, anything nonlinear), or
            layers share weights that it changes in one of them.
    """
    if names := unmergeable(adapter):
        if adapter.readout is not None and (why := adapter.readout.unmergeable) is not None:
            raise UserError(
                f"{', '.join(names)} cannot be merged into weights: {why}.", hint="Serve the adapter unmerged."
            )
        mergeable = [m.name for m in adapter.methods if m.capabilities.mergeable]
        raise UserError(
            f"{', '.join(names)} cannot be merged into weights: what it adds is no linear function of a module's input."
            + (f" {', '.join(mergeable)} alone could be." if mergeable else ""),
            hint="Serve the adapter unmerged, or export it by itself.",
        )
    # accelerate would fetch the old values from disk again
    refuse_put_away(model, "merging")
    _refuse_shared(model, adapter)
    merged = Merged()
    linear: dict[str, list[tuple[Site, Edit]]] = {}
    for site, edit in adapter.items():
        if isinstance(edit, Readout):
            head: Any = model.get_submodule(site.exit)
            weight, bias = edit.head()
            head.weight.copy_(weight)
            if head.bias is not None:
                head.bias.copy_(bias)
            merged.modules.append(site.exit)
        elif isinstance(edit, Override):
            prefix = f"{site.exit}." if site.exit else ""
            for name, value in edit.values().items():
                model.get_parameter(prefix + name).copy_(
                    value
                )  # a tied parameter is one tensor, so its other places follow
            merged.modules.append(site.exit)
        else:
            linear.setdefault(site.exit, []).append((site, edit))
    for name, edits in linear.items():
        _merge_module(model, name, edits, merged, requantize)
    _note_created_biases(model, adapter, merged)
    return merged


def _refuse_shared(model: nn.Module, adapter: Adapter) -> None:
    """Refuses weights that modules of several layers have in common (Zamba 2's shared blocks): each layer has an update of its
    own, and there is one place for all of them. One module that runs in several layers (ALBERT's) has one update as well."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(id(module))
    for site, _ in adapter.items():
        if site.layer is None:  # embeddings and a head that are tied: what is written is meant for both
            continue
        own = model.get_submodule(site.exit).parameters(recurse=False)
        if any(len(holders[id(parameter)]) > 1 for parameter in own):
            raise UserError(
                f"{site.exit} shares its weights with another layer, so an update of one layer has no place in them.",
                hint="Serve the adapter unmerged.",
            )


def _merge_module(
    model: nn.Module, name: str, edits: list[tuple[Site, Edit]], merged: Merged, requantize: bool
) -> None:
    """All edits at one module: first what changes its output, in order, then what changes its input."""
    module = model.get_submodule(name)
    # an input edit scales W's columns: what is added to the output must be in W by then
    edits = sorted(edits, key=lambda item: isinstance(item[1], InputEdit))
    roles = {site.role: site for site, _ in edits}
    if any(isinstance(edit, InputEdit) and site.part is not None for site, edit in edits):
        raise UserError(f"{name} is fused; an edit of the input of one of its parts cannot be merged.")
    if edits[0][0].kind == "norm":
        _merge_norm(module, edits, merged, name)
        return
    weights, biases = {}, {}
    for role, site in roles.items():
        before, bias = site_weight(module, site).float(), site_bias(module, site)
        bias = None if bias is None else bias.float()
        weights[role], biases[role] = _merge_role(site, edits, before, bias)
    _store(model, module, name, roles, weights, biases, merged, requantize)


def _merge_role(
    site: Site, edits: list[tuple[Site, Edit]], before: Tensor, bias_before: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W' (out, in) and b' (out,) of one role. A delta is added to the module's own weight whatever came before it."""
    weight, bias = before, bias_before
    for other, edit in edits:
        if other.role != site.role:
            continue
        if isinstance(edit, Delta):
            own_weight, own_bias = edit.merge(before, bias_before)
            # two deltas at one linear both see its own weight, as they do unmerged: W + d1(W) + d2(W)
            weight = weight + (own_weight - before)
            if own_bias is not None:
                zero = torch.zeros_like(own_bias)
                bias = (zero if bias is None else bias) + own_bias - (zero if bias_before is None else bias_before)
        elif isinstance(edit, (Transform, InputEdit)):
            weight, bias = edit.merge(weight, bias)
        else:
            raise UserError(f"{type(edit).__name__} at {site.name} cannot be merged into weights.")
    return weight, bias


def _merge_norm(module: Any, edits: list[tuple[Site, Edit]], merged: Merged, name: str) -> None:
    """A shift of a normalization's bias."""
    for site, edit in edits:
        assert isinstance(edit, (Delta, Transform))
        weight, bias = edit.merge(module.weight.float(), module.bias.float() if site.bias else None)
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    merged.modules.append(name)


def _store(
    model: nn.Module,
    module: Any,
    name: str,
    roles: dict[str, Site],
    weights: dict[str, Tensor],
    biases: dict[str, Tensor | None],
    merged: Merged,
    requantize: bool,
) -> None:
    """Puts W' and b' of each role where the module keeps them."""
    any_site = next(iter(roles.values()))
    whole = Site("", None, "", "linear", name, name, 0, 0, transposed=any_site.transposed)
    before = site_weight(module, whole).float().clone()  # a copy: in fp32 it would be the module's own tensor
    exact = before.clone()
    for role, site in roles.items():
        exact[part_rows(site, exact.shape[0]).to(exact.device)] = weights[role]
    if any(bias is not None for bias in biases.values()) and module.bias is None:
        module.bias = nn.Parameter(
            torch.zeros(exact.shape[0], dtype=_float_dtype(module), device=exact.device), requires_grad=False
        )
        merged.created_biases.append(name)
    for role, site in roles.items():
        if (bias := biases[role]) is not None:
            module.bias[part_rows(site, exact.shape[0]).to(exact.device)] = bias.to(module.bias.dtype).clone()
    # an adapter that changes nothing here must not requantize or round the module
    if not torch.equal(exact, before):
        stored = exact.T if any_site.transposed else exact
        if is_quantized(module):
            module = _replace_quantized(model, module, name, exact, requantize)
        else:
            module.weight.copy_(stored)
        after = site_weight(module, whole).float()
        # against the update, not the weight: an update is a thousandth of the weight, and rounding can take all of it
        merged.lost[name] = float((after - exact).norm() / (exact - before).norm())
    merged.modules.append(name)


def _float_dtype(module: Any) -> torch.dtype:
    # 4-bit weights are bytes, which neither a bias nor a plain weight can be
    dtype: torch.dtype = getattr(module, "compute_dtype", None) or module.weight.dtype
    return dtype if dtype.is_floating_point else torch.float32


def _replace_quantized(model: nn.Module, module: Any, name: str, weight: Tensor, requantize: bool) -> nn.Module:
    """A 4-bit linear with other weights: quantized again, or as a plain linear in its compute dtype."""
    parent, _, child = name.rpartition(".")
    bias = module.bias
    if requantize:
        import bitsandbytes as bnb

        old = module.weight
        # packed by the move at its end: until then a `Params4bit` holds plain numbers
        module.weight = bnb.nn.Params4bit(
            weight.to(_float_dtype(module)).cpu(), requires_grad=False, compress_statistics=old.compress_statistics,
            quant_type=old.quant_type, blocksize=old.blocksize,
        ).to(weight.device)  # fmt: skip
        return module  # type: ignore[no-any-return]
    plain = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=_float_dtype(module)
    )
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    plain.requires_grad_(False)
    setattr(model.get_submodule(parent) if parent else model, child, plain)
    return plain


def _note_created_biases(model: Any, adapter: Adapter, merged: Merged) -> None:
    """Switches on the config's place for created biases, and lists those that have none."""
    role_of = {site.exit: site.role for site, _ in adapter.items()}
    for name in merged.created_biases:
        setting = next(
            (key for key, roles in CONFIG_BIASES.items() if role_of[name] in roles and hasattr(model.config, key)), None
        )
        if setting is None:
            merged.unportable.append(name)
        else:
            setattr(model.config, setting, True)
            for other, module in model.named_modules():  # the setting promises a bias to each of its linears
                last_part = other.rsplit(".", 1)[-1]
                promised = {
                    "attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"),
                    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
                }
                if last_part in promised[setting] and getattr(module, "bias", 0) is None:
                    module.bias = nn.Parameter(
                        torch.zeros(module.out_features, dtype=_float_dtype(module), device=module.weight.device),
                        requires_grad=False,
                    )
