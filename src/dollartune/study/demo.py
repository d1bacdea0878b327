"""The demo: real tasks from what is installed anyway, on backbones that ship with the package; no network, no files."""

from __future__ import annotations

from typing import Any

DEMO: dict[str, Any] = {
    "name": "demo",
    "backbone": [
        {"name": "tiny-decoder", "tasks": ["demo_library", "demo_summary"]},
        {"name": "tiny-encoder", "tasks": ["demo_match"]},
        "tiny-vit",
    ],
    "tasks": ["demo_library", "demo_match", "demo_summary", "demo_digits_new"],
    "methods": [
        "zero_shot",
        {"few_shot": {"examples": 4}},
        "head",
        {"bitfit": {"lr": 0.01}},
        {"ia3": {"lr": 0.03}},
        {"lora": {"where": "all_linear", "lr": 0.002}},
        {"prompt": {"tokens": 16, "lr": 0.3}},
        {"full": {"lr": 0.0005}},
    ],
    "scales": [400],
    "seeds": 1,
    "budget": {"seconds": 120.0, "per": "method", "price": "0.10/h"},
    "training": {"epochs": 3, "validation_rows": 60, "max_length": 160},
    "evaluation": {"rows": 100, "free_generation": False},
}
"""The study that `dollartune demo` runs; `examples/demo.yaml` is the same."""
