"""What a method's `to_peft` and `from_peft` speak: parts of the peft library's checkpoints. Names of tensors and settings
stand in each method's own file; nothing here or in `export` lists them.

    our sites                              peft's modules
    decoder.3.self_attn.q  A, B, scale --> model.decoder.layers.3.self_attn.q_proj.lora_A.weight ...
    decoder.3.self_attn.q (GPT-2)  ------> h.3.attn.c_attn    one module for q, k and v: blocks of one larger update

Source: the peft library's checkpoint format, version 0.21.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site

Factors = tuple[Tensor, Tensor, float]
"""A (r, in), B (out, r) and the scale of one low-rank update scale · B A."""


@dataclass(frozen=True)
class PeftPart:
    """One method's share of a peft checkpoint."""

    peft_type: str
    """Empty for modules that are saved whole (`modules_to_save`)."""
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    """Key without `base_model.model.` -> value; keys that start with a dot are put after `base_model` as they are."""
    modules: tuple[str, ...] = ()
    """Modules that are adapted, or saved whole; none for virtual tokens and prefixes, which belong to no module."""
    full_names: bool = False
    """`target_modules` must name modules in full: where peft compares it with another list, or takes any module of a name."""
    saved: PeftPart | None = None
    """The same as modules that are saved whole, where that is possible: a checkpoint has one `peft_type`, and beside
    another method this one is written so."""


@dataclass(frozen=True)
class ImportedPart:
    """A method with its tensors, as read from a peft checkpoint."""

    method: str
    settings: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    """Site name -> tensor name in the edit -> value. Tensors that are not named keep their initial values."""


@dataclass
class PeftCheckpoint:
    """A peft checkpoint, sorted by module."""

    config: Mapping[str, Any]
    modules: dict[str, dict[str, Tensor]]
    """Path of a backbone's module -> what stands after it in the tensor's name -> value: `lora_A.weight`, `ia3_l`. The path
    is empty for tensors that belong to no module."""
    anatomy: Anatomy
    model: nn.Module
    """The backbone, for starts that come from its weights."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know about the conversion."""

    def alone(self, name: str) -> Tensor:
        """The one tensor of a checkpoint that adapts no module (virtual tokens, a table of prefixes).

        Raises:
            UserError: there is another one, or none.
        """
        names = [f"{path}.{tensor}".lstrip(".") for path, parts in self.modules.items() for tensor in parts]
        if names != [name]:
            raise UserError(f"the peft adapter has {names or 'no tensors'}; expected {name}.")
        return self.modules[""][name]

    def sites(self, path: str, kinds: Sequence[str] = ("linear",)) -> tuple[Site, ...]:
        """The sites at a module: one, or one for each part of a fused linear.

        Raises:
            UserError: none of that kind is there.
        """
        sites = tuple(site for site in self.anatomy.sites if site.exit == path and site.kind in kinds)
        if not sites:
            raise UserError(
                f"the peft adapter changes {path!r}, which is no module that can be changed here (of kind {' or '.join(kinds)})."
            )
        return sites

    def pieces(self, path: str) -> Iterable[tuple[Site, Tensor]]:
        """Each site at a module, with the indices of its outputs among the module's."""
        from dollartune.backbones.weights import part_rows

        for site in self.sites(path):
            fused = site.fused_features
            yield site, part_rows(site, fused)


def low_rank(updates: Iterable[tuple[Site, Sequence[Factors]]], rank_stabilized: bool = False) -> PeftPart:
    """LORA tensors of low-rank updates.

    Several updates of one module (parts of a fused linear, a start to subtract) become one of the summed rank, which is
    the same function: [B_1 · s_1 | B_2 · s_2] [A_1 ; A_2].
    """
    from dollartune.backbones.weights import part_rows

    by_module: dict[str, list[tuple[Site, Factors]]] = defaultdict(list)
    for site, factors in updates:
        by_module[site.exit].extend((site, item) for item in factors)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    # One update at each module, and the whole of it: then peft's tensors are ours.
    single = all(len(items) == 1 and items[0][0].part is None for items in by_module.values())
    stabilized = rank_stabilized and single
    for path, items in by_module.items():
        site, (a, b, scale) = items[0]
        if not single:
            a = torch.cat([factor for _, (factor, _, _) in items])
            blocks = []
            for part, (_, factor, part_scale) in items:
                # (fused out, r): zeros where the module's other parts are, so that this update leaves them alone.
                block = factor.new_zeros(site.fused_features, factor.shape[1])
                block[part_rows(part, block.shape[0])] = factor * part_scale
                blocks.append(block)
            b, scale = torch.cat(blocks, dim=1), 1.0
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = a, b
        ranks[path] = a.shape[0]
        # peft divides by r (or its root): alpha is what gives our scale back. Nine digits take float noise off, so that
        # equal alphas are equal.
        alphas[path] = round(scale * (a.shape[0] ** 0.5 if stabilized else a.shape[0]), 9)
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    settings = {
        "r": rank,
        # peft declares it as an int.
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "use_rslora": stabilized,
        "lora_dropout": 0.0,
        "bias": "none",
        # Asks peft for no start of its own: the tensors are loaded over it.
        "init_lora_weights": True,
        "fan_in_fan_out": stored_transposed(updates),
    }
    return PeftPart("LORA", settings, tensors, tuple(by_module))


def stored_transposed(items: Iterable[tuple[Site, Any]]) -> bool:
    """peft's `fan_in_fan_out`: the modules store their weights as (in, out)."""
    transposed = [site.transposed for site, _ in items]
    return bool(transposed) and all(transposed)


def _most_common(values: Iterable[Any]) -> Any:
    listed = list(values)
    # Sorted, so that of equally frequent values the smallest is taken on every machine.
    return max(sorted(set(listed)), key=listed.count)


def selections(sites: Sequence[Site]) -> list[tuple[dict[str, str], tuple[Site, ...]]]:
    """Any set of sites as a few selections: `where`, `layers` and `stacks` settings, each with the sites that it names."""
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for site in sites:
        layers[site.stack, site.role] |= set() if site.layer is None else {site.layer}
    roles: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (stack, role), indices in layers.items():
        # Roles that share their layers are one selection: a few lines in the settings instead of one per site.
        roles[stack, ",".join(map(str, sorted(indices))) or "all"].append(role)
    chosen_by = []
    for (stack, text), names in roles.items():
        chosen = tuple(site for site in sites if site.stack == stack and site.role in names)
        chosen_by.append(({"where": " ".join(names), "layers": text, "stacks": stack or "all"}, chosen))
    return chosen_by


def saved_modules(items: Iterable[tuple[Site, Any]]) -> PeftPart:
    """`modules_to_save`: the values of whole modules under their plain names."""
    tensors, modules = {}, []
    for site, edit in items:
        modules.append(site.exit)
        tensors.update({f"{site.exit}.{name}": value.detach() for name, value in edit.values().items()})
    return PeftPart("", {}, tensors, tuple(modules))


def copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole module's values under the names that an edit that replaces them has."""
    return {f"copies.{name.replace('.', '/')}": value for name, value in values.items()}
