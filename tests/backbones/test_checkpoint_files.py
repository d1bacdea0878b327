"""Folders where a backbone is wanted: what each is, with what was meant; weights that are not whole are told first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from dollartune.backbones.checkpoint_files import weights_problem
from dollartune.backbones.embedded import embedded_path
from dollartune.backbones.loading import load_backbone, load_processor, read_config
from dollartune.backbones.locate import resolve
from dollartune.errors import UserError
from dollartune.study.api import Study


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a backbone."""
    return Path(shutil.copytree(embedded_path("tiny-encoder"), tmp_path / "model"))


def told(name: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve(str(name))
    return str(caught.value)


def test_a_folder_that_is_no_backbone_is_told_what_it_is(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert "it is empty." in told(adapter)
    (adapter / "notes.txt").write_text("mine")
    assert "it holds notes.txt." in told(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/model"}))
    message = told(adapter)
    assert "is an adapter of the peft library for some/model, not a backbone" in message
    assert f"dollartune import {adapter} --out FOLDER" in message
    (adapter / "adapter.json").write_text(json.dumps({"backbone": "tiny-encoder"}))
    message = told(adapter)
    assert "is an adapter, not a backbone: a backbone's folder has a config.json." in message
    assert "It was tuned on tiny-encoder" in message
    (adapter / "adapter.json").write_text("[]")  # damaged: still an adapter
    assert "is an adapter, not a backbone" in told(adapter)


@pytest.mark.parametrize("inside", ["0_Transformer", "snapshots/0a1b"])
def test_a_folder_around_a_backbone_names_it(model: Path, tmp_path: Path, inside: str) -> None:
    around = tmp_path / "around"
    around.mkdir()
    shutil.copytree(model, around / inside)
    assert f"In it: {around / inside}" in told(around)


def test_a_file_or_a_misspelt_folder_names_the_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"Did you mean {str(model)!r}?" in told(model / "model.safetensors")
    assert f"Did you mean {str(model)!r}?" in told(tmp_path / "modle")
    # without a dot it may be an id of the hub, which is asked first
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_config(f"{tmp_path.name}/modle")
    assert f"Did you mean '{tmp_path.name}/model'?" in caught.value.message
    assert "dollartune backbones get" in str(caught.value.hint)
    assert "HF_HUB_OFFLINE is set" in str(caught.value.hint)


def cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def continued(model: Path) -> None:
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 8)


def named_otherwise(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "weights.safetensors"}))


def not_safetensors(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"<html>404</html>" * 9)


def pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def none(model: Path) -> None:
    (model / "model.safetensors").unlink()


def other_format(model: Path) -> None:
    (model / "model.safetensors").rename(model / "tf_model.h5")


def empty_pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").touch()


def parts(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    names = list(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, model / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()


def missing_part(model: Path) -> None:
    parts(model)
    (model / "model-2.safetensors").unlink()


def bad_index(model: Path) -> None:
    parts(model)
    (model / "model.safetensors.index.json").write_text("[]")


DAMAGED = {
    cut: ": it is cut off",
    continued: ": something stands behind its tensors",
    named_otherwise: "its weights (model.safetensors) are not called weights.safetensors",
    not_safetensors: "is cut off or no safetensors file",
    pointer: "is a pointer of git-lfs and not the weights: run `git lfs pull`",
    none: "there are no weights beside its config.json",
    other_format: "its weights (tf_model.h5) are not called model.safetensors",
    empty_pickle: "pytorch_model.bin is empty",
    missing_part: "1 of the 2 files of its weights are missing, model-2.safetensors first",
    bad_index: "does not say which file holds which tensor",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__)
def test_weights_that_are_not_whole_are_told_by_check_run_and_loading(
    model: Path, damage: Callable[[Path], None], study_of: Any
) -> None:
    damage(model)
    sentence = DAMAGED[damage]
    assert sentence in str(weights_problem(model))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_backbone(str(model))
    assert sentence in caught.value.message
    study = Study(study_of(backbone=str(model), methods=["lora"]))
    with pytest.raises(UserError) as caught:
        study.run()
    assert sentence in caught.value.message
    assert not study.store.root.exists(), "a study that cannot run leaves no folder"
    # drawn weights need none
    Study(study_of(backbone={"name": str(model), "random_weights_seed": 1}, methods=["lora"])).trials()


def test_whole_weights_have_no_problem(model: Path) -> None:
    assert weights_problem(model) is None
    parts(model)
    assert weights_problem(model) is None
    assert load_backbone(str(model)).weights_hash == load_backbone("tiny-encoder").weights_hash


def test_weights_are_called_what_the_config_says(model: Path) -> None:
    named_otherwise(model)
    (model / "model.safetensors").rename(model / "weights.safetensors")
    assert weights_problem(model) is None
    assert load_backbone(str(model)).weights_hash == load_backbone("tiny-encoder").weights_hash


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-decoder", "tiny-seq2seq"])
def test_a_tokenizer_that_was_made_of_nothing_is_none(tmp_path: Path, name: str, study_of: Any) -> None:
    """Transformers makes BERT's and T5's without their files: every word is then the unknown one, and training goes on."""
    assert load_backbone(name).processor is not None
    bare = Path(shutil.copytree(embedded_path(name), tmp_path / "bare"))
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert load_backbone(str(bare)).processor is None
    with pytest.raises(UserError, match="has no tokenizer") as caught:
        Study(study_of(backbone=str(bare), methods=["lora"])).run()
    assert "tokenizer.json" in str(caught.value.hint)


def test_a_tokenizer_all_of_whose_words_were_added_is_one(tmp_path: Path) -> None:
    """As for DNA: letters that were added to an empty vocabulary, each a token of its own."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")), unk_token="[UNK]", pad_token="[PAD]"
    )
    made.add_tokens(list("ACGT"))
    folder = tmp_path / "dna"
    made.save_pretrained(folder)
    shutil.copy(embedded_path("tiny-encoder") / "config.json", folder)
    read = load_processor(str(folder), read_config(str(folder)))
    assert read("GATTACA", add_special_tokens=False)["input_ids"] == made.convert_tokens_to_ids(list("GATTACA"))


def test_an_objective_that_there_is_not() -> None:
    with pytest.raises(UserError, match=r"unknown objective 'classify'. Did you mean 'classification'"):
        load_backbone("tiny-encoder", objective="classify")  # type: ignore[arg-type]
