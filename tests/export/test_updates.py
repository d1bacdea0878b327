"""Any change of linears as a LoRA, and several adapters as one: exact where it is exact, and what it costs where not."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dollartune.attachment import Adapter
from dollartune.attachment.merging import merge
from dollartune.backbones.embedded import embedded_path
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.export import arithmetic
from dollartune.export.arithmetic import merge_adapters
from dollartune.export.directory import load_adapter, save_adapter, tokenizer_hash
from dollartune.export.handover import export_adapter
from dollartune.export.other_backbone import other_backbone
from dollartune.export.peft_format import read_peft
from dollartune.export.scoring import adapter_logits, sample_inputs
from dollartune.export.updates import Updates, combine, low_rank_of, updates_of
from dollartune.methods.base import Method
from dollartune.methods.bitfit import BitFit
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.pfeiffer import Pfeiffer
from dollartune.methods.registry import build_method
from dollartune.methods.stored_adapter import read_info
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb

TASK = {
    "name": "moods", "kind": "classification", "prompt": "{text}. Mood:", "label_words": {"good": "good", "bad": "bad"},
    "metric": "accuracy", "max_answer_tokens": 4, "answer_column": "mood",
}  # fmt: skip


def write(
    backbone: Backbone, folder: Path, own: list[Method[Any]], seed: int = 0, size: float = 0.2, **more: Any
) -> Path:
    adapter = Adapter(own, backbone.anatomy, backbone.model, seed)
    perturb(adapter, size, seed)
    info = {
        "backbone": backbone.name,
        "objective": "language",
        "tokenizer": tokenizer_hash(backbone.processor),
        "task": TASK,
        **more,
    }
    save_adapter(folder, adapter, info)
    return folder


@pytest.mark.parametrize(
    ("name", "rank"), [("lora", 4), ("dora", 64), ("adalora", 64), ("vera", 64), ("intrinsic", 64)]
)
def test_a_linear_change_is_a_lora_of_its_own_rank(backbone: Backbone, tmp_path: Path, name: str, rank: int) -> None:
    method = build_method({"method": name, **({"rank": 4} if name == "lora" else {})})
    handed = export_adapter(write(backbone, tmp_path / "a", [method]), tmp_path / "lora", "lora", rank=rank)
    adapter = load_adapter(tmp_path / "a", backbone)
    again, _ = read_peft(tmp_path / "lora", backbone)
    inputs = sample_inputs(backbone)
    expected = adapter_logits(backbone, adapter, inputs)
    difference = (adapter_logits(backbone, again, inputs) - expected).abs().max()
    # 32 wide: every update is of rank 32 at most, so that none of these leaves anything out
    assert difference <= 1e-4 * max(1.0, float(expected.abs().max())), handed.lines
    assert "by the peft library" in handed.lines[1]


def test_rounding_of_a_small_change_is_no_rank(backbone: Backbone, tmp_path: Path) -> None:
    for size in (0.2, 1e-4):
        folder = write(backbone, tmp_path / str(size), [LoRA(rank=2)], size=size)
        low = low_rank_of(updates_of(backbone, load_adapter(folder, backbone)), backbone, 64)
        assert (low.rank, low.lost) == (2, 0.0)


def test_a_small_change_of_16_bit_weights_is_taken_whole(backbone: Backbone, tmp_path: Path) -> None:
    folder = write(backbone, tmp_path / "a", [LoRA(rank=2)], size=1e-3)
    half = load_backbone(backbone.name, dtype=torch.bfloat16)
    fine, coarse = (updates_of(one, load_adapter(folder, one)).weights for one in (backbone, half))
    for path, change in fine.items():
        assert float((coarse[path] - change).norm() / change.norm()) < 0.01
    assert low_rank_of(updates_of(half, load_adapter(folder, half)), half, 64).rank == 2


def test_what_is_not_of_low_rank_loses_what_the_svd_says(backbone: Backbone, tmp_path: Path, reviews: Path) -> None:
    folder = write(backbone, tmp_path / "a", [IA3()])
    updates = updates_of(backbone, load_adapter(folder, backbone))
    low = low_rank_of(updates, backbone, 3)
    for path, change in updates.weights.items():
        kept = low.part.tensors[f"{path}.lora_B.weight"] @ low.part.tensors[f"{path}.lora_A.weight"]
        singular = torch.linalg.svdvals(change)
        left = (change - kept).norm() / change.norm()
        assert left == pytest.approx(float(singular[3:].norm() / singular.norm()), abs=1e-4)
        assert left <= low.lost + 1e-6
    handed = export_adapter(folder, tmp_path / "lora", "lora", rank=3, examples=reviews)
    assert "leaves out at most" in handed.lines[0]
    assert any("accuracy on reviews.csv" in line and "before" in line for line in handed.lines)


@pytest.mark.parametrize(("own", "why"), [([BitFit()], "which no LoRA holds"), ([Pfeiffer()], "cannot be merged")])
def test_what_no_lora_holds_is_refused(backbone: Backbone, tmp_path: Path, own: list[Method[Any]], why: str) -> None:
    with pytest.raises(UserError, match=why):
        export_adapter(write(backbone, tmp_path / "a", own), tmp_path / "lora", "lora")


def test_a_weighted_sum_is_the_sum_of_what_each_adds(backbone: Backbone, tmp_path: Path, reviews: Path) -> None:
    folders = [write(backbone, tmp_path / str(seed), [LoRA(rank=2 + seed)], seed) for seed in range(2)]
    said = merge_adapters(folders, tmp_path / "both", [1.0, -0.5], rows=[reviews, reviews])
    assert len([line for line in said if "alone" in line and "merged" in line]) >= 2
    together = load_adapter(tmp_path / "both", backbone)
    model = copy.deepcopy(backbone.model)
    merge(model, backbone.anatomy, together)
    before = dict(backbone.model.named_parameters())
    each = [updates_of(backbone, load_adapter(folder, backbone)).weights for folder in folders]
    for path, change in each[0].items():
        found = model.get_parameter(f"{path}.weight") - before[f"{path}.weight"]
        assert torch.allclose(found, change - 0.5 * each[1][path], atol=1e-5)


def test_ties_and_dare_as_published() -> None:
    one, other = torch.tensor([[4.0, -3.0, 1.0, 0.5]]), torch.tensor([[-1.0, -5.0, 2.0, 0.1]])
    several = [Updates({"a": one}, {}), Updates({"a": other}, {})]
    # by hand: the two largest of each are (4, -3) and (-5, 2); signs agree, and the mean is of those that are there
    assert combine(several, [1.0, 1.0], "ties", 0.5).weights["a"].tolist() == [[4.0, -4.0, 2.0, 0.0]]
    dropped = combine(several, [1.0, 0.0], "dare", 0.5, seed=1).weights["a"]
    assert all(value in (0.0, 2 * own) for value, own in zip(dropped[0].tolist(), one[0].tolist(), strict=True))
    many = combine([Updates({"a": torch.ones(200, 200)}, {})] * 2, [0.5, 0.5], "dare", 0.25).weights["a"]
    assert many.mean() == pytest.approx(1.0, abs=0.03), "what is left is made larger by what was dropped"
    assert torch.equal(combine(several, [1.0, 1.0]).weights["a"], one + other)


def other_weights_in(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def test_adapters_of_different_backbones_are_not_added(backbone: Backbone, tmp_path: Path) -> None:
    folders = [write(backbone, tmp_path / str(seed), [LoRA(rank=2)], seed) for seed in range(2)]
    file = folders[1] / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "backbone": "owner/another"}))
    with pytest.raises(UserError, match="tuned on owner/another"):
        merge_adapters(folders, tmp_path / "out", [1.0, 1.0])
    said = merge_adapters(folders, tmp_path / "out", [1.0, 1.0], backbone_name=backbone.name)
    assert "merged 2 adapters" in said[0], "whoever names the backbone says that they are one"


@pytest.mark.parametrize("hashed", [True, False], ids=["hashed", "of before hashes"])
def test_one_backbone_goes_by_many_names(tmp_path: Path, hashed: bool) -> None:
    """An embedded model by its short name, a folder of the same weights, and one of others."""

    def tuned(name: str, seed: int) -> Path:
        backbone = load_backbone(name)
        more = {"weights_hash": backbone.weights_hash} if hashed else {}
        return write(backbone, tmp_path / f"adapter{seed}", [LoRA(rank=2)], seed, **more)

    short, copied = "tiny-decoder", tmp_path / "copied"
    shutil.copytree(embedded_path(short), copied)
    (copied / "notes.json").write_text("{}")  # a file beside them changes no weight
    folders = [tuned(short, 0), tuned(str(copied), 1)]
    assert "merged 2 adapters" in merge_adapters(folders, tmp_path / "out", [1.0, 1.0])[0]
    if hashed:
        assert read_info(tmp_path / "out")["weights_hash"] == load_backbone(short).weights_hash
    other_weights_in(copied)
    folders[1] = tuned(str(copied), 2)
    with pytest.raises(UserError, match=f"tuned on {copied}, not on {short}"):
        merge_adapters(folders, tmp_path / "sum", [1.0, 1.0])


@pytest.mark.parametrize("hashed", ["neither", "adapter", "backbone"])
def test_weights_without_a_hash_are_compared_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: str
) -> None:
    """Packed in 4 bits, a backbone has none, and an adapter that was tuned on it neither."""
    folder, copied = write_tiny(tmp_path / "model", "llama"), tmp_path / "copied"
    shutil.copytree(folder, copied)
    whole = load_backbone(str(folder))
    info = {"backbone": str(copied), "weights_hash": whole.weights_hash if hashed == "adapter" else None}
    here = whole if hashed == "backbone" else replace(whole, weights_hash=None)
    with monkeypatch.context() as without:
        without.setattr("dollartune.export.other_backbone.load_backbone", None)  # no second model to tell that
        assert other_backbone(tmp_path, info, here) == ""
    other_weights_in(copied)
    if hashed != "adapter":  # whose hash says what the folder held then
        assert f"tuned on {copied}, not on {folder}" in other_backbone(tmp_path, info, here)


def test_a_backbone_is_loaded_to_be_compared_in_the_format_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, copied = write_tiny(tmp_path / "model", "llama"), tmp_path / "copied"
    shutil.copytree(folder, copied)
    (copied / "notes.json").write_text("{}")
    loaded: list[Backbone] = []

    def load(*given: Any, **more: Any) -> Backbone:
        loaded.append(load_backbone(*given, **more))
        return loaded[-1]

    monkeypatch.setattr("dollartune.export.other_backbone.load_backbone", load)
    here = load_backbone(str(folder), dtype=torch.bfloat16)
    assert other_backbone(tmp_path, {"backbone": str(copied)}, here) == ""
    assert [one.dtype for one in loaded] == [torch.bfloat16]


def test_a_folder_that_was_written_over_is_another_backbone(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")
    folders = []
    for seed in range(2):
        backbone = load_backbone(str(folder))
        folders.append(write(backbone, tmp_path / str(seed), [LoRA(rank=2)], seed, weights_hash=backbone.weights_hash))
        other_weights_in(folder)
    with pytest.raises(UserError, match="are others now"):
        merge_adapters(folders, tmp_path / "out", [1.0, 1.0])


def test_another_revision_is_another_backbone(backbone: Backbone, tmp_path: Path) -> None:
    folders = [
        write(backbone, tmp_path / str(seed), [LoRA(rank=2)], seed, revision=revision)
        for seed, revision in enumerate(("1f3", "2a4"))
    ]
    here = replace(backbone, revision="1f3")
    assert other_backbone(folders[0], read_info(folders[0]), here) == ""
    assert "revision 2a4" in other_backbone(folders[1], read_info(folders[1]), here)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"weights": [1.0]}, "one for each"),
        ({"weights": [1.0, float("nan")]}, "finite numbers; given: 1.0, nan"),
        ({"how": "mean"}, "linear"),
        ({"density": 0.0}, "density is a share"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    backbone: Backbone, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    folders = [write(backbone, tmp_path / str(seed), [LoRA(rank=2)], seed) for seed in range(2)]
    with pytest.raises(UserError, match=why):
        merge_adapters(folders, tmp_path / "out", **{"weights": [1.0, 1.0], **change})


def test_a_merged_adapter_is_asked_as_the_first_one_and_says_what_is_not_in_it(
    backbone: Backbone, tmp_path: Path
) -> None:
    lengths = {"max_length": 24, "reserved_places": 3}
    folders = [write(backbone, tmp_path / "0", [LoRA(rank=2)], **lengths), tmp_path / "1"]
    shifted = load_adapter(folders[0], backbone)
    shifted.shift_labels([0.5, -0.25])
    save_adapter(folders[1], shifted, {**read_info(folders[0]), "max_length": 99})
    said = merge_adapters(folders, tmp_path / "both", [1.0, 1.0])
    assert said[-1].startswith("moods: not in it: what is added to the log-probability of each label word")
    assert "(+0.50, -0.25)" in said[-1]
    assert lengths.items() <= read_info(tmp_path / "both").items()


def test_what_fails_leaves_no_folder_that_a_second_try_would_find_full(
    backbone: Backbone, tmp_path: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [write(backbone, tmp_path / str(seed), [LoRA(rank=2)], seed) for seed in range(2)]
    unanswered = tmp_path / "rows.csv"
    unanswered.write_text("text\nfine\n")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no column 'mood'"):
        export_adapter(folders[0], out, "lora", examples=unanswered)
    with pytest.raises(UserError, match="no column 'mood'"):
        merge_adapters(folders, out, [1.0, 1.0], rows=[reviews, unanswered])
    assert not out.exists()

    def refuse(*_: object) -> None:
        raise UserError("other logits")

    monkeypatch.setattr(arithmetic, "peft_logits", refuse)
    with pytest.raises(UserError, match="other logits"):
        export_adapter(folders[0], out, "lora")
    monkeypatch.setattr("dollartune.export.handover.require_equal", refuse)
    with pytest.raises(UserError, match="other logits"):
        export_adapter(folders[0], out, "dollartune")
    assert not out.exists()
