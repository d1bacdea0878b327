"""A search offers only what the backbone can hold: ranks, bottlenecks, layers and virtual tokens by its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.methods.registry import build_method, methods
from dollartune.methods.space import Choice
from dollartune.schedule.search_space import candidates
from dollartune.study_file import load_study
from dollartune.trials.expand import fitting, plan


@pytest.fixture
def ranges(study_of: Any) -> Any:
    """What a search offers of one method on the backbones of some families, by setting."""

    def of(method: Any, *backbones: str | Path) -> dict[str, tuple[Any, ...]]:
        settings = load_study(study_of(backbone=[*map(str, backbones)], methods=[method], baselines=False))
        trials, tasks, _ = plan(settings)
        (space,) = candidates(settings.methods, trials, fitting(settings, tasks))
        return {name: one.options for name, one in space.space.items() if isinstance(one, Choice)}

    return of


def test_ranks_heed_the_width(ranges: Any, local_backbone: Any) -> None:
    # 32 wide, and the embedded decoder 256
    narrow = ranges("lora", local_backbone("llama"))
    assert narrow["rank"] == (2, 4, 8, 16, 32)
    assert "all_linear" in narrow["where"]
    assert max(ranges("lora", "tiny-decoder")["rank"]) == 256
    # one range for all backbones of a comparison
    assert ranges("lora", "tiny-decoder", local_backbone("llama"))["rank"] == narrow["rank"]


def test_bottlenecks_and_dimensions_too(ranges: Any, local_backbone: Any) -> None:
    narrow = local_backbone("bart")
    assert ranges("houlsby", narrow)["reduction"] == (4, 16)
    assert ranges("houlsby", "tiny-decoder")["reduction"] == (4, 16, 64)
    assert ranges("intrinsic", narrow)["dimension"] == (200, 1000, 5000)


def test_virtual_tokens_leave_room_for_the_row(ranges: Any, local_backbone: Any) -> None:
    # 128 positions
    assert ranges("prompt", local_backbone("opt"))["tokens"] == (8, 20)
    assert ranges("prefix", local_backbone("opt"))["tokens"] == (5, 20)
    # T5 counts distances and has no end
    assert ranges("prompt", local_backbone("t5"))["tokens"] == (8, 20, 48)


@pytest.mark.parametrize("name", sorted(name for name, cls in methods().items() if cls.search))
def test_every_option_runs_on_a_narrow_backbone(
    ranges: Any, local_backbone: Any, study_of: Any, tmp_path: Path, name: str
) -> None:
    """What is offered is not refused where a study states it."""
    backbone = local_backbone("opt")
    settings = study_of(backbone=str(backbone), baselines=False)
    if name in ("head", "adapter_fusion"):  # a head scores classes, and a fusion needs adapters
        return
    for setting, options in ranges(name, backbone).items():
        for option in options:
            stated = load_study(settings | {"methods": [{name: {setting: option}}], "search": False})
            assert plan(stated)[0], (setting, option)


def test_settings_above_the_width_are_refused_by_name(local_backbone: Any) -> None:
    from dollartune.backbones.outline import anatomy_without_weights

    anatomy = anatomy_without_weights(str(local_backbone("opt")), "language", False)
    for spec, sentence in {
        "pfeiffer(reduction=64)": "reduction 64 is above the width 32",
        "parallel(reduction=33)": "reduction 33 is above the width 32",
        "phm_adapter(order=3)": "order 3 must divide the hidden size, which is 32",
        "intrinsic(dimension=1000000)": "dimension 1,000,000 is above the",
    }.items():
        assert sentence in str(build_method(spec).mistake(anatomy))
    for spec in ("pfeiffer(reduction=32)", "pfeiffer(size=64)", "phm_adapter", "intrinsic"):
        assert build_method(spec).mistake(anatomy) is None
