"""Backbones spread by a device map: every method computes what it does on one device; maps that cannot work are refused.

One processor stands for all devices here: weights on "disk" are fetched for each pass, those on "cpu" stay.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import Command

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attached import Attached
from dollartune.attachment.device_placement import move_to_backbone
from dollartune.attachment.merging import merge
from dollartune.backbones import device_map as placing
from dollartune.backbones.device_map import execution_device, parse_device_map
from dollartune.backbones.loading import Backbone, empty_model, load_backbone
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.evaluate.predict import predict_file, read_rows
from dollartune.export.opening import open_adapter
from dollartune.export.scoring import adapter_logits, sample_inputs
from dollartune.methods.registry import build_method
from dollartune.planner.study_plan import plan_study
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer

pytest.importorskip("accelerate")

MAP = {"": "cpu", "model.layers.1": "disk", "model.layers.3.mlp": "disk"}
METHODS = (
    "lora", "lora(init='pissa')", "dora", "ia3", "ia3(two_vectors=True)", "vera", "prompt(tokens=4)", "p_tuning",
    "prefix(tokens=4)", "prefix(tokens=4, reparameterize=True)", "houlsby", "pfeiffer", "compacter", "reft", "norm",
)  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Backbone:
    return load_backbone("tiny-decoder")


@pytest.fixture(scope="module")
def spread() -> Backbone:
    return load_backbone("tiny-decoder", device_map=MAP)


def answered(backbone: Backbone, *methods: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after each of three rows of different length, and what is written behind two of them."""
    attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
    ids = torch.randint(3, 900, (3, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 9, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    try:
        adapter = attached.add("tuned", [build_method(method) for method in methods], seed=3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad(), attached.routed("tuned"):
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            keep = torch.arange(3), lengths - 1
            logits = attached(keep=keep, prompt_lengths=lengths, input_ids=ids, attention_mask=mask).logits
            written = attached.generate(
                input_ids=ids[1:], attention_mask=mask[1:], max_new_tokens=3, min_new_tokens=3, do_sample=False
            )
        return logits, written
    finally:
        attached.detach()


@pytest.mark.parametrize("method", METHODS)
def test_methods_compute_what_they_do_on_one_device(plain: Backbone, spread: Backbone, method: str) -> None:
    assert any(p.is_meta for p in spread.model.parameters())
    expected, found = answered(plain, method), answered(spread, method)
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    assert torch.equal(found[1], expected[1])
    assert any(p.is_meta for p in spread.model.parameters()), "weights were fetched for good"


def test_all_of_it_may_be_on_disk(plain: Backbone) -> None:
    spread = load_backbone("tiny-decoder", device_map={"": "disk"})
    assert all(p.is_meta for p in spread.model.parameters())
    assert spread.device == torch.device("cpu")
    torch.testing.assert_close(answered(spread, "lora")[0], answered(plain, "lora")[0], atol=1e-6, rtol=0)


def test_words_that_begin_a_prompt_are_read_from_disk(plain: Backbone) -> None:
    spread = load_backbone("tiny-decoder", device_map={"": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"})
    method = "prompt(tokens=2, init='text', text='a small town')"
    torch.testing.assert_close(answered(spread, method)[0], answered(plain, method)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-vit", "tiny-seq2seq"])
def test_other_kinds_of_backbones(name: str, tmp_path: Path) -> None:
    """The first layer of each stack is on disk, and of images the head, which is tuned all the same."""
    plain = load_backbone(name)
    if plain.kind == "vision":  # a head that is no part of the checkpoint could not be fetched
        for part in (plain.model, plain.processor):
            part.save_pretrained(tmp_path)
        name = str(tmp_path)
    sites = [site for site in plain.anatomy.at("layer") if site.layer == 0]
    heads = plain.anatomy.at("head") if plain.kind == "vision" else ()
    spread = load_backbone(name, device_map={"": "cpu", **{site.exit: "disk" for site in (*sites, *heads)}})
    methods = ("lora", "houlsby", "prompt(tokens=3)", *(["head"] if heads else []))
    inputs = sample_inputs(plain)
    results = []
    for backbone in (plain, spread):
        adapter = Adapter([build_method(method) for method in methods], backbone.anatomy, backbone.model, seed=2)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        results.append(adapter_logits(backbone, move_to_backbone(adapter, backbone.model), inputs))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=0)


def test_a_new_head_is_not_on_disk() -> None:
    with pytest.raises(UserError, match=r"puts 'classifier.* on disk, but it is new"):
        load_backbone("tiny-encoder", labels=("good", "bad"), device_map={"": "disk"})


def test_what_changes_weights_that_are_put_away_is_refused(spread: Backbone) -> None:
    for method in ("full", "layer_freezing(train='last 75%')"):
        with pytest.raises(UserError, match=rf"method '{method.split('(')[0]}'.*device_map keeps"):
            answered(spread, method)
    attached = Attached(spread.model, spread.anatomy)
    adapter = attached.add("tuned", [build_method("lora")])
    attached.detach()
    with pytest.raises(UserError, match="merging changes the backbone's own weights"):
        merge(spread.model, spread.anatomy, adapter)


def test_training_is_refused(spread: Backbone) -> None:
    attached = Attached(spread.model, spread.anatomy)
    rows = [Encoded("0", (3, 4), (5,))]
    with pytest.raises(
        UserError, match=r"device_map is for inference; for training use torchrun \(FSDP2\) or quantize"
    ):
        CohortTrainer(spread, attached, [], rows)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("atuo", "unknown device map 'atuo'. Did you mean 'auto'"),
        ({"": "cpu", "model.layer.1": "disk"}, "no module 'model.layer.1'. Did you mean 'model.layers.1'"),
        ({"model": "cpu"}, None),
        ({"model.layers": "cpu"}, "says nothing about 'model.embed_tokens.weight'"),
        ({"": "cpu", "model.norm": "dsk"}, "model.norm cannot be put on 'dsk'.*Did you mean 'disk'"),
        ({"": "cpu", "lm_head": "disk"}, "model.embed_tokens.weight and lm_head.weight are one tensor"),
        ({"": 63}, "cannot be put on GPU 63; this machine has"),
    ],
)
def test_wrong_maps_are_refused(device_map: Any, message: str | None) -> None:
    model = empty_model("tiny-decoder")
    if message is None:  # the head is tied to the embedding, so it has a place
        assert placing.checked_device_map(device_map, model) == device_map
        return
    with pytest.raises(UserError, match=message):
        placing.checked_device_map(device_map, model)


def test_maps_on_the_command_line() -> None:
    assert parse_device_map(None) is None
    assert parse_device_map("auto") == "auto"
    assert parse_device_map("{model.layers.3: disk, '': 0}") == {"model.layers.3": "disk", "": 0}
    for wrong in ("{model", "{a: [1]}"):
        with pytest.raises(UserError, match="no mapping"):
            parse_device_map(wrong)
    with pytest.raises(UserError, match="Did you mean 'sequential'"):
        parse_device_map("sequentail")


def test_without_accelerate_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "accelerate" else real(name, *more)
    )
    for settings in ({"device_map": "auto"}, {"quantize": "nf4"}):
        with pytest.raises(UserError, match="needs the package accelerate") as caught:
            load_backbone("tiny-decoder", **settings)  # type: ignore[arg-type]
        assert caught.value.hint == "pip install accelerate"


def test_random_weights_and_layers_in_4_bits_are_not_put_away() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        load_backbone("tiny-decoder", device_map="auto", random_weights_seed=0)
    with pytest.raises(UserError, match="layers in 4 bits cannot be put away"):
        load_backbone("tiny-decoder", device_map=MAP, quantize="nf4")


def test_edits_lie_where_their_modules_compute() -> None:
    """Two devices: this one, and the meta device in the place of a second one."""
    backbone = load_backbone("tiny-decoder")
    model = backbone.model
    for name, module in model.named_modules():
        if module._parameters or name == "":
            far = name.startswith(("model.layers.2", "model.layers.3"))
            module._hf_hook = SimpleNamespace(execution_device=torch.device("meta" if far else "cpu"))
    attached = Attached(model, backbone.anatomy)
    assert placing.execution_devices(model) == {torch.device("cpu"), torch.device("meta")}
    for method in ("lora", "vera", "compacter", "prefix(reparameterize=True)", "intrinsic(dimension=20)", "prompt"):
        adapter = attached.add("tuned", [build_method(method)])
        for site, edit in adapter.items():
            expected = execution_device(model.get_submodule(site.exit))
            tensors = [*edit.parameters(), *edit.buffers()]
            if method == "vera":
                tensors += edit.matrices()  # type: ignore[operator]
            assert {t.device for t in tensors} == {expected}, f"{method} at {site.name}"
        for edits in adapter.outputs.values():
            assert all(any(edit is own for _, own in adapter.items()) for _, edit in edits)
        attached.remove("tuned")


def test_a_tuned_adapter_predicts_and_is_served_the_same(study_of: Any, reviews: Path, tmp_path: Path) -> None:
    study = Study(study_of(methods=["lora(rank=2)"]))
    (record,) = study.run(display=Display()).done()
    folder = study.store.folder(record.id) / "adapter"
    device_map = {"": "cpu", "model.layers.0": "disk"}
    found = []
    for number, wanted in enumerate((None, device_map)):
        out = tmp_path / f"{number}.jsonl"
        predict_file(open_adapter(folder, wanted), read_rows(reviews)[:16], reviews, out, 8)
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    assert [line["prediction"] for line in found[0]] == [line["prediction"] for line in found[1]]
    for line, other in zip(*found, strict=True):
        assert line["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    answers = []
    for wanted in (None, device_map):
        pool = build_service(study_of()["backbone"], {"mood": folder}, Limits(), device_map=wanted).pool
        with torch.inference_mode(), pool.attached.routed(*pool.assignments([None, pool.get("mood")]), batch_rows=2):
            ids = torch.arange(5, 15).view(2, 5)
            answers.append(pool.attached(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    torch.testing.assert_close(answers[1], answers[0], atol=1e-6, rtol=0)


def test_a_study_that_trains_nothing_may_be_spread(study_of: Any) -> None:
    whole = study_of(methods=["zero_shot", "few_shot(examples=2)"])
    name = whole["backbone"]
    plain = Study(whole)
    expected = {r.id: r.test.scores for r in plain.run(display=Display()).done()}
    device_map = {"": "cpu", "model.layers.0": "disk"}
    spread = {**whole, "name": "spread", "backbone": {"name": name, "device_map": device_map}}
    found = {r.id: r.test.scores for r in Study(spread).run(display=Display()).done()}
    assert found == expected, "a map changes neither trials nor scores"
    planned = plan_study(load_study(spread), machine_name="t4")
    assert not planned.refused
    assert any("spread by device_map" in note for note in planned.notes)
    with pytest.raises(UserError, match=r"method 'lora' trains on .*device_map is for inference"):
        plan_study(load_study({**spread, "methods": ["zero_shot", "lora"]}))
    with pytest.raises(UserError, match=r"backbone.device_map should be .*got 'atuo'.* Did you mean 'auto'"):
        load_study({**spread, "backbone": {"name": name, "device_map": "atuo"}})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_pass_over_two_devices_mixes_nothing(family: str) -> None:
    script = Path(__file__).with_name("two_devices.py")
    code, out, error = Command(family, program=partial(runpy.run_path, str(script), run_name="__main__")).ended(300)
    assert code == 0, error[-2000:]
    assert "prefix" in out
