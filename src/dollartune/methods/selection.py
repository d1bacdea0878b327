"""A selection is a query over sites: which roles, which layers, which stacks.

    where   "self_attn.* -self_attn.q"      roles, as names or patterns; a minus takes away
            "attention", "dense", "q", ...   shorthands, see `SHORTHANDS`
    layers  "all", "first 50%", "last 4", "random 50%", "random 50% seed 3", "every 2", "0-5,11"
    stacks  "all", "encoder", "decoder", "encoder decoder"

Percentages and indices count within each stack, as reference 001's ablations do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dollartune.errors import UserError, nearest

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site, SiteKind

SHORTHANDS = {
    "attention": ("self_attn", "cross_attn"),
    "dense": ("mlp",),
    "all_linear": ("self_attn", "cross_attn", "mlp", "mixer", "conv", "other"),
    "q": ("self_attn.q", "cross_attn.q"),
    "k": ("self_attn.k", "cross_attn.k"),
    "v": ("self_attn.v", "cross_attn.v"),
    "o": ("self_attn.o", "cross_attn.o"),
    "query": ("self_attn.q", "cross_attn.q"),
    "key": ("self_attn.k", "cross_attn.k"),
    "value": ("self_attn.v", "cross_attn.v"),
    "output": ("self_attn.o", "cross_attn.o"),
    "all": ("*",),
}
"""Words that stand for several roles."""

KNOWN_ROLES = frozenset(
    {f"{a}.{x}" for a in ("self_attn", "cross_attn") for x in ("q", "k", "v", "o", "core")}
    | {
        "self_attn",
        "cross_attn",
        "mlp",
        "mixer",
        "conv",
        "other",
        "mlp.experts",
        "mlp.shared",
        "mlp.up",
        "mlp.gate",
        "mlp.down",
        "layer",
        "head",
        "pooler",
        "norm",
        "embed",
        "input",
        "model",
    }
    | {"norm.self_attn", "norm.cross_attn", "norm.mlp", "norm.pre_mlp", "norm.post_mlp", "norm.final"}
    | {"embed.tokens", "embed.positions", "embed.patches", "embed.encoder_positions", "embed.decoder_positions"}
)
"""Roles that some family has; naming one that this backbone lacks selects nothing there (cross-attention on a decoder)."""


class NothingSelected(UserError):
    """A selection that is understood and has no site on this backbone."""


class NoSuchSite(UserError):
    """A selection that names what no backbone has, or what this one lacks: a misspelt role, a layer past the last."""


@dataclass(frozen=True)
class Selection:
    """Which sites a method edits."""

    where: str
    layers: str = "all"
    stacks: str = "all"

    def sites(self, anatomy: Anatomy, kinds: Sequence[SiteKind]) -> tuple[Site, ...]:
        """The chosen sites of the given kinds, in forward order.

        Raises:
            UserError: a term of `where` names no role, `layers` or `stacks` does not parse, or nothing is left.
        """
        wanted: set[str] = set()
        roles = anatomy.roles()
        for term in self.where.replace(",", " ").split():
            name = term.removeprefix("-")
            matched = _match(name, roles)
            # In the order written: "attention -q mlp" takes away only what came before.
            wanted = wanted - matched if term.startswith("-") else wanted | matched
        chosen_stacks = self._stacks(anatomy)
        chosen = tuple(
            site
            for site in anatomy.sites
            if site.role in wanted
            and site.kind in kinds
            and site.stack in chosen_stacks
            and (site.layer is None or site.layer in self._layers(site.stack, anatomy.layer_counts[site.stack]))
        )
        if not chosen:
            available = sorted({site.role for site in anatomy.sites if site.kind in kinds})
            why = "; ".join(
                dict.fromkeys(anatomy.family.refusals[kind] for kind in kinds if kind in anatomy.family.refusals)
            )
            raise NothingSelected(
                f"where: {self.where!r}, layers: {self.layers!r}, stacks: {self.stacks!r} selects nothing that this method "
                f"can edit in this backbone. It can edit {available or 'nothing'} (modules of kind {', '.join(kinds)})"
                + (f": {why}." if why and not available else ".")
            )
        return chosen

    def _stacks(self, anatomy: Anatomy) -> set[str]:
        known = set(anatomy.layer_counts)
        if self.stacks.strip() == "all":
            return known | {""}
        chosen = set(self.stacks.replace(",", " ").split())
        for name in chosen - known:
            raise NoSuchSite(
                f"stacks: {name!r} is not a stack of this backbone; it has {sorted(known)}.{nearest(name, known)}"
            )
        return chosen

    def _layers(self, stack: str, count: int) -> frozenset[int]:
        return parse_layers(self.layers, count, stack)


def _match(term: str, roles: Sequence[str]) -> set[str]:
    """Roles that one term of `where` names: itself, what lies under it, a pattern, or a shorthand."""
    if term in SHORTHANDS:
        return set().union(*(_match(name, roles) for name in SHORTHANDS[term]))
    matching = {role for role in roles if role == term or role.startswith(term + ".") or fnmatchcase(role, term)}
    # A role of other families selects nothing here; only what no family has is a mistake.
    if not matching and term not in KNOWN_ROLES and not any(fnmatchcase(role, term) for role in KNOWN_ROLES):
        valid = sorted({*roles, *SHORTHANDS})
        raise NoSuchSite(f"where: unknown role {term!r}.{nearest(term, valid)} This backbone has {', '.join(valid)}.")
    return matching


def parse_layers(text: str, count: int, stack: str = "") -> frozenset[int]:
    """Layer indices that a `layers:` text names in a stack of `count` layers.

    Examples:
        >>> sorted(parse_layers("last 50%", 6))
        [3, 4, 5]
    """
    text = text.strip().lower()
    if text == "all":
        return frozenset(range(count))
    if text == "none":
        return frozenset()
    if match := re.fullmatch(r"(first|last|early|late|random)\s+(\d+)\s*(%?)(?:\s+seed\s+(\d+))?", text):
        how, number, percent, seed = match.groups()
        if percent and int(number) > 100:
            raise NoSuchSite(f"layers: {text!r} is more than all of them.")
        size = round(count * int(number) / 100) if percent else int(number)
        # 10 % of six layers is one layer, not none; 0 % is what was asked for.
        size = min(count, max(1, size) if int(number) else 0)
        if how == "random":
            # By the stack's name too: encoder and decoder would else lose the same layers.
            return frozenset(random.Random(f"{stack}/{seed or 0}").sample(range(count), size))
        return frozenset(range(size)) if how in ("first", "early") else frozenset(range(count - size, count))
    if (match := re.fullmatch(r"every\s+(\d+)", text)) and int(match[1]):
        return frozenset(range(0, count, int(match[1])))
    chosen: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+))?\s*", piece)
        if not match:
            raise NoSuchSite(
                f"layers: {text!r} is not understood. Write all, first 50%, last 4, random 50%, random 50% seed 3, "
                "every 2, or 0-5,11."
            )
        start = int(match[1]) if int(match[1]) >= 0 else count + int(match[1])
        stop = int(match[2]) if match[2] else start
        if not 0 <= start <= stop < count:
            raise NoSuchSite(f"layers: {piece.strip()!r} is outside this stack's layers 0-{count - 1}.")
        chosen.update(range(start, stop + 1))
    return frozenset(chosen)
