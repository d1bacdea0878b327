"""What to begin with, by rule: the method by the backbone's size; its settings as `methods.rules` has them. Search comes after.

backbone < 100 M parameters   full tuning
larger, or memory is short    LoRA on all linear layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.methods.registry import build_method, method_class, reference
from dollartune.trials.trial import Variant

if TYPE_CHECKING:
    from dollartune.methods.rules import Facts
    from dollartune.schedule.search_space import SearchSpace

SMALL_PARAMETERS = 100e6
"""Backbones below it are tuned whole: 16 bytes of training state for each parameter are 1.6 GB at most, and on so few weights a
step of LoRA is hardly cheaper. Above it LoRA on all linears reaches the same in two thirds of the operations ("LoRA Without
Regret", 2025)."""
RATE_STEP = 3.0
"""Between rates that are tried: half a decade. Scores change little within it, and a decade apart they fall on both sides."""


@dataclass(frozen=True)
class Setting:
    """A method with settings that are tried."""

    method: str
    """The study's entry (`trials.Variant.group`)."""
    rate_factor: float = 1.0
    """Of the rule's learning rate."""
    choice: int = 0
    """Of the variants that the study lists for the method: 0 unless it is a grid."""
    tokens: int | None = None
    """Tokens of each row that a solved method passes through the backbone; 0: none at all; None: as the study has it."""
    rows_share: float = 1.0
    """Share of the training rows that a solved method is solved on."""


def strongest(methods: Sequence[str], parameters: int) -> list[str]:
    """Trained methods, the one that is expected to be best first; those that no rule speaks of stay in the order written."""
    everything, low_rank, upper = (reference(what).name for what in ("everything", "low_rank", "upper_layers"))
    # All are tried where the money lasts; the rule decides only which comes first.
    order = [everything, low_rank, upper] if parameters < SMALL_PARAMETERS else [low_rank, everything, upper]
    return sorted(methods, key=lambda name: order.index(name) if name in order else len(order))


def tokens_may_be_limited(variant: Variant) -> bool:
    """Whether a solved method can pass fewer tokens through the backbone, or none, and the study leaves that open."""
    return _left_open(variant, "first_tokens", None)


def rows_may_be_limited(variant: Variant) -> bool:
    """Whether a solved method can be solved on a share of the rows, and the study leaves that open."""
    return _left_open(variant, "rows_share", 1.0)


def _left_open(variant: Variant, setting: str, default: object) -> bool:
    built = variant.build()
    fields = type(built[0].config).model_fields
    return len(built) == 1 and setting in fields and getattr(built[0].config, setting) == default


def settings_in_order(spaces: Mapping[str, SearchSpace], methods: Sequence[str]) -> list[Setting]:
    """What is tried after the strongest method's first run, in the order of prior evidence: its other settings, the other
    methods at their rules' rates, then other rates.

    A method of another kind is better about as often as it is worse: in runs of MiniLM full tuning led by a point on two sets of
    news and lost by two to three on SST-2 to LoRA and to the upper layers alone. A rate half a decade from the rule is worse more
    often than not.

    Args:
        methods: the strongest first.
    """
    listed = [Setting(name, choice=choice) for name in methods for choice in range(len(spaces[name].variants))]
    # Both sides of the rule, which says the middle of a wide range.
    rates = [
        Setting(name, factor) for name in methods for factor in (RATE_STEP, 1 / RATE_STEP) if "lr" in spaces[name].space
    ]
    return [*listed, *rates]


def variant_of(setting: Setting, space: SearchSpace, facts: Facts) -> Variant:
    """The variant that a setting means. What the study states stays as it is."""
    variant = space.variants[setting.choice]
    if setting.tokens is not None or setting.rows_share < 1.0:
        (method,) = variant.build()
        limit: dict[str, Any] = {"rows_share": setting.rows_share} if setting.rows_share < 1.0 else {}
        if setting.tokens is not None:
            limit |= {"pooling": "none"} if setting.tokens == 0 else {"first_tokens": setting.tokens}
        return Variant.of([build_method({"method": method.name, **method.config.model_dump(), **limit})], variant.group)
    # A combination has no rule of its own, and a rate that the study states is not changed.
    if len(variant.methods) > 1 or "lr" not in space.space:
        return variant
    (method,) = variant.build()
    config, default = method.config, type(method.config)()
    rule = method_class(method.name).defaults_for(facts)
    # A setting that differs from the config's default was stated by the study.
    changes: dict[str, Any] = {
        name: value for name, value in rule.items() if getattr(config, name) == getattr(default, name)
    }
    rate: float = rule["lr"] if "lr" in rule else getattr(config, "lr", 0.0)
    # Three digits, as `optuna_search.DIGITS`: it is part of the trial's identifier and read by people.
    changes["lr"] = float(f"{rate * setting.rate_factor:.3g}")
    return Variant.of([build_method({"method": method.name, **config.model_dump(), **changes})], variant.group)
