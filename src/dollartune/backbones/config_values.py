"""Settings of a configuration in which layers may differ.

Gemma 4 and its like hold `head_dim` or `num_key_value_heads` once for the model and again for single layers; transformers then
refuses to read the first of the two, with a RuntimeError that `getattr` and a default do not catch.
"""

from __future__ import annotations

from typing import Any


def config_value(config: Any, name: str, default: Any = None) -> Any:
    """A setting of a configuration; where single layers have another one, what holds for the rest of them."""
    try:
        return getattr(config, name, default)
    except RuntimeError:
        return vars(config).get(name, default)


def by_layer(config: Any) -> dict[int, dict[str, object]]:
    """Layer -> the settings in which it differs from the rest; empty where all are alike."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    return {int(layer): dict(settings) for layer, settings in config.to_dict().get("per_layer_config", {}).items()}
