"""A fast part of `tools/architectures/sweep_all.py`: one architecture of each sort, by every check that the whole has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "architectures"
SORTS = {
    "fused block, grouped": "phi3",
    "fused per head, parallel": "gpt_neox",
    "fused in four partitions": "codegen",
    "experts": "qwen2_moe",
    "state space": "mamba",
    "layers that differ": "lfm2",
    "narrow projections": "deepseek_v3",
    "token ids beside embeddings": "gemma3n_text",
    "text inside pictures": "gemma3_with_pictures",
    "windows": "mistral_sliding",
    "encoder with another head": "distilbert",
    "encoder with a class for language": "bigbird",
    "fused encoder": "modernbert",
    "two stacks": "pegasus",
    "image half": "clip",
    "convolutions": "convnext",
    "stages": "swin",
    "settings by layer": "gemma4_text",
    "a router that is a linear by class": "llama4_text",
    "keys repeated, experts in attention": "jetmoe",
    "attention called by names": "afmoe",
    "a decoder's family as an encoder": "embedding_gemma",
    "no language head in transformers": "qwen2_vl",
    "answers that start from the beginning mark": "t5gemma",
    "experts that are modules": "switch_transformers",
    "an indexer that chooses": "deepseek_v32",
    "layers for pictures": "mllama",
    "stages with more heads": "segformer",
    "no text from embeddings": "ctrl",
    "padding is counted": "git",
}
BATCHES = (1, 8)
"""The whole sweep has batches of 32 as well."""


@pytest.fixture(scope="module")
def tools() -> Any:
    """The modules of the tool, which is no package."""
    sys.path.insert(0, str(TOOLS))
    try:
        import make_models
        import refusals
        import sweep

        yield make_models, sweep, refusals
    finally:
        sys.path.remove(str(TOOLS))
        for name in ("make_models", "sweep", "refusals", "neighbours"):
            sys.modules.pop(name, None)


ALWAYS = ("lora, all linears", "prefix", "prompt", "full")
"""Methods that need all that is known of a family; of the others each architecture gets every second one, in turns."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SORTS.values(), ids=list(SORTS))
def test_every_check_holds(name: str, tools: Any, tmp_path: Path) -> None:
    make_models, sweep, _ = tools
    make_models.make(make_models.RECIPES[name], tmp_path / name)
    others = [label for label in sweep.METHODS if label not in ALWAYS]
    methods = {*ALWAYS, *others[list(SORTS.values()).index(name) % 2 :: 2]}
    report = sweep.judge(tmp_path / name, [label for label in sweep.METHODS if label in methods], BATCHES)
    assert not report.faults, report.faults
    assert report.count("ok") >= 10


def test_a_check_that_should_fail_does(tools: Any, tmp_path: Path) -> None:
    """An encoder said to be a decoder, a linear without a role, and a refusal that is in no table are faults."""
    make_models, sweep, _ = tools
    make_models.make(make_models.RECIPES["distilbert"], tmp_path / "distilbert")
    backbone = sweep.load_backbone(str(tmp_path / "distilbert"), "classification", ("a", "b", "c"))
    judged = sweep.Sweep(backbone, sweep.Report("distilbert"))
    with pytest.raises(AssertionError, match="it is a decoder"):
        judged.check_kind("decoder")
    fewer = tuple(site for site in judged.anatomy.sites if site.role != "mlp.up")
    judged.anatomy = (
        sweep.copy.replace(judged.anatomy, sites=fewer) if hasattr(sweep.copy, "replace") else _with(judged, fewer)
    )
    with pytest.raises(AssertionError, match="no role names"):
        judged.check_reach()

    def refuse() -> str:
        raise sweep.UserError("for no good reason")

    judged.report.run("lora", refuse)
    assert judged.report.faults[-1][0] == "lora"


def _with(judged: Any, sites: Any) -> Any:
    from dataclasses import replace

    return replace(judged.anatomy, sites=sites)


def test_the_tables_name_what_there_is(tools: Any) -> None:
    make_models, sweep, refusals = tools
    names = {*make_models.RECIPES, "*"}
    for check, name in (*refusals.REFUSALS, *refusals.KNOWN):
        assert name in names, f"{name} is no recipe"
        assert check in {*sweep.METHODS, "head", "probe", "few-shot", "labels", "load", "reach"} or check.startswith(
            "generate"
        ), f"{check} is no check"
    assert set(refusals.IDLE) <= names
    assert len(make_models.RECIPES) >= 125


def test_rwkv_is_asked_and_not_trained(tools: Any, tmp_path: Path) -> None:
    """Its code writes over its own states, so that no gradient flows back: refused by name before anything is spent."""
    from dollartune import Study
    from dollartune.errors import UserError

    make_models, _, _ = tools
    make_models.make(make_models.RECIPES["rwkv"], tmp_path / "rwkv")
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{word} {n},{word}\n" for n in range(20) for word in ("w7", "w9")))

    def study(*methods: str) -> Study:
        return Study(
            backbone=str(tmp_path / "rwkv"), task=str(data), methods=list(methods), scales=[8], seeds=1, baselines=False,
            training={"epochs": 1, "validation_rows": 4}, evaluation={"rows": 4, "forgetting": False, "inference_cost": False},
            output=str(tmp_path / "studies"), name="-".join(methods),
        )  # fmt: skip

    for method in ("lora", "full", "prompt"):
        with pytest.raises(UserError, match="writes over its own states"):
            study(method).trials()
    records = study("zero_shot", "lora").run().done()
    assert [record.trial.group for record in records] == ["zero_shot"]
