"""A scheduler driven by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from anytime_by_hand import ByHand
from pretend import Pretended

from dollartune.schedule import scheduler as scheduler_module


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Pretended]:
    """Studies that were not killed, by what pays: each is run once, and held against all that were."""
    return {}


@pytest.fixture
def by_hand(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(scheduler_module, "closing_seconds", lambda: 0.0)
    made = itertools.count()

    def make(
        seconds: float | None, methods: Any = ("linear_probe", "full"), row_seconds: float = 0.001, test: int = 200,
        on_validation: bool = False,
    ) -> ByHand:  # fmt: skip
        limit = {} if seconds is None else {"budget": {"seconds": seconds, "per": "study"}}
        settings = study_of(
            name=f"by hand {next(made)}", methods=list(methods), seeds=2, scales=["all"],
            search="anytime", baselines=False, keep_adapters="none",
            training={"batch_size": 10, "epochs": 2, "train_on_validation": on_validation},
            evaluation={"rows": 1000, "free_generation": False, "forgetting": False, "inference_cost": False}, **limit,
        )  # fmt: skip
        return ByHand(settings, row_seconds, test)

    return make
