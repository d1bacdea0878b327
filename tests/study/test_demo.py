"""What the demo runs on machines with and without the real models, and the sentences that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.study import demo
from dollartune.study.api import Study


@pytest.mark.parametrize("there", [True, False])
def test_backbones_of_the_package_stand_in_for_real_ones(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_is_absent", lambda name: name in demo.IN_PLACE and not there)
    settings = demo.demo_settings()
    names = [one["name"] for one in settings["backbone"]]
    assert len(names) == len(set(names))
    assert set(names) >= set(demo.IN_PLACE) if there else not set(names) & set(demo.IN_PLACE)
    assert demo.absent_backbones() == ([] if there else list(demo.IN_PLACE))
    for one in settings["backbone"]:  # each task keeps a backbone, and each backbone some methods
        assert one["tasks"]
        assert one["methods"]
    if not there:
        stand_in = next(one for one in settings["backbone"] if one["name"] == "tiny-decoder")
        assert set(stand_in["tasks"]) == {"demo_library", "demo_summary"}
        trials = Study(settings).trials()
        assert {trial.task for trial in trials} == {"demo_library", "demo_match", "demo_summary", "demo_digits_new"}


def test_the_end_tells_what_tuning_added(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "backbone": [
            {"name": "tiny-decoder", "methods": ["zero_shot", "few_shot", "lora"]},
            {"name": "tiny-encoder", "methods": ["linear_probe"]},
        ],
        "task": "demo_library", "methods": ["zero_shot", {"few_shot": {"examples": 2}}, "lora", "linear_probe"],
        "scales": [16], "seeds": 1, "baselines": False, "budget": {"seconds": 600, "price": "0.10/h"}, "search": False,
        "training": {"epochs": 1, "validation_rows": 4, "max_length": 96},
        "evaluation": {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False},
        "output": str(tmp_path),
    }  # fmt: skip
    results = Study(settings).run()
    first, second = demo.told(results)
    scores = {record.trial.group: f"{record.test.score:.3f}" for record in results.done()}
    assert first.startswith(
        f"tiny-decoder on demo_library, accuracy: {scores['zero_shot']} as it is, {scores['few_shot']} with"
    )
    assert f"{scores['lora']} after lora" in first
    assert "on 16 rows for " in first
    assert "$0." in first
    assert second.startswith("Beside it: linear_probe")
    assert second.endswith(f"{scores['linear_probe']}.")
