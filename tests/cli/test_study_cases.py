"""Study files that would crash, mislead or end nowhere: refused by field, or what can run is run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.study.api import Study


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"dora": {"lr": -1e-3}}, "setting 'lr': a learning rate is above 0 and at most 10, got -0.001"),
        ({"bitfit": {"lr": 0}}, "a learning rate is above 0"),
        ({"houlsby": {"lr": 500.0}}, "at most 10, got 500.0"),
        ({"ia3": {"weight_decay": -0.1}}, "a weight decay is 0 to 1"),
        ({"adalora": {"alpha": -4.0}}, "setting 'alpha' should be greater than 0; got -4.0"),
        ({"lora": {"alpha_pattern": {"*.v_proj": 0.0}}}, "alpha_pattern"),
        ({"lora": {"rank_pattern": {"*.v_proj": 0}}}, "rank_pattern"),
        ({"norm": {"layers": "first 150%"}}, "'first 150%' is more than all of them"),
    ],
)
def test_absurd_settings_are_refused_by_field(command: Any, study_file: Any, method: Any, sentence: str) -> None:
    for verb in ("check", "run"):
        code, _, error = command(verb, study_file(methods=[method, "zero_shot"]))
        assert code == 2
        assert sentence in error
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"lora": {"rank": 4000}}, "rank 4,000 is above that of every matrix it updates"),
        ({"adalora": {"rank": 900}}, "rank 900 is above that of every matrix"),
        ({"p_tuning": {"tokens": 128}}, "128 virtual tokens leave no room for a row"),
        ({"prefix": {"tokens": 500}}, "500 virtual tokens leave no room"),
    ],
)
def test_a_setting_that_cannot_run_costs_its_own_trial(
    command: Any, study_file: Any, method: dict[str, Any], sentence: str
) -> None:
    file = study_file(methods=[method, "zero_shot"])
    code, out, error = command("check", file)
    assert code == 1
    assert sentence in out + error
    code, out, error = command("run", file)
    assert code == 1
    assert "zero_shot" in out
    assert "Traceback" not in out + error


def test_a_rank_that_some_matrix_has_is_no_mistake(command: Any, study_file: Any) -> None:
    # keys and values of the small LLaMA are 16 wide, queries 32
    assert command("check", study_file(methods=[{"lora": {"rank": 32, "where": "self_attn.q self_attn.k"}}]))[0] == 0


@pytest.fixture
def forgetful_backbone(local_backbone: Any, tmp_path: Path) -> Path:
    """A backbone whose tokenizer knows lower-case words alone and, as many do, folds case and accents."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "cafe", "good", "bad", "mood", "film", "the", "text"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "forgetful"
    shutil.copytree(local_backbone("llama"), folder)
    for old in folder.glob("token*"):
        old.unlink()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("0", "1"), "<unk>"),  # neither is known
        (("Good", "good"), "good"),  # case is folded
        (("caf\u00e9", "cafe"), "cafe"),  # and accents
        (("caf\u00e9", "cafe\u0301"), "cafe"),  # composed and decomposed
        (("{", "~"), "<unk>"),
        (("\u597d", "\u574f"), "<unk>"),  # another script
    ],
)
def test_label_words_that_are_the_same_tokens_are_refused(
    command: Any, study_file: Any, reviews: Path, forgetful_backbone: Path, words: tuple[str, str], same: str
) -> None:
    task = {
        "data": str(reviews),
        "prompt": "{text}. Mood:",
        "label": "mood",
        "label_words": dict(zip(("good", "bad"), words, strict=True)),
    }
    code, out, error = command("check", study_file(backbone=str(forgetful_backbone), task=task))
    assert code == 2
    assert f"the same tokens ({same})" in error
    assert "label_words: {" in error
    assert "the study file is fine" not in out


def test_label_words_that_are_known_in_part_are_named(
    command: Any, study_file: Any, reviews: Path, forgetful_backbone: Path
) -> None:
    words = {"good": "good !", "bad": "bad"}
    task = {"data": str(reviews), "prompt": "{text}. Mood:", "label": "mood", "label_words": words}
    code, out, error = command("check", study_file(backbone=str(forgetful_backbone), task=task))
    assert code == 0
    assert "does not know all of the answers 'good !'" in out + error


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_an_encoder_writes_no_texts(command: Any, study_file: Any, local_backbone: Any, family: str) -> None:
    backbone = {"name": str(local_backbone(family)), "objective": "language"}
    code, out, error = command("check", study_file(backbone=backbone, methods=["zero_shot", "lora"]))
    assert code in (1, 2)
    assert "language" in out + error or "writes text" in out + error


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_is_none_of_the_decoders(local_backbone: Any, family: str) -> None:
    from dollartune.backbones.loading import load_backbone

    assert load_backbone(str(local_backbone(family))).kind == "encoder_decoder"


@pytest.mark.parametrize("verb", ["report", "results"])
def test_a_folder_without_a_study_is_named(command: Any, tmp_path: Path, verb: str) -> None:
    code, _, error = command(verb, tmp_path / "nothing")
    assert code == 2
    assert "nothing" in error
    assert "Traceback" not in error


def test_places_that_cannot_be_written_to_are_said_first(
    command: Any, study_file: Any, reviews: Path, local_backbone: Any, tmp_path: Path
) -> None:
    file = study_file(methods=["zero_shot"])
    assert command("run", file)[0] == 0
    study = tmp_path / "studies" / "moods"
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for arguments in (
        ("report", study, "--out", taken),
        ("docs", "--out", taken),
        ("tune", local_backbone("llama"), reviews, "--budget", "10 s", "--out", taken),
        ("run", file, "--output", taken),
    ):
        code, _, error = command(*arguments)
        assert code == 2, arguments
        assert str(taken) in error.replace("\n", "")
        assert "Traceback" not in error
    assert taken.read_text() == "a file"


def test_a_method_all_of_whose_trials_fail_ends_with_status_1(
    command: Any, study_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("dollartune.methods.bitfit.BitFit.after_step", broken)
    code, out, error = command("run", study_file(methods=["bitfit", "zero_shot"]))
    assert code == 1
    assert "no score: bitfit" in error
    assert "failed: bitfit" in out
    assert "zero_shot" in out


def test_a_study_file_where_its_copy_would_go_is_not_written_over(
    command: Any, study_file: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "studies" / "moods"
    folder.mkdir(parents=True)
    mine = folder / "study.yaml"
    mine.write_text("# my words\n" + study_file().read_text())
    before = mine.read_text()
    for verb in (("run", mine), ("run", mine, "--fresh")):
        code, _, error = command(*verb)
        assert code == 2
        assert "would be written over" in error
    with pytest.raises(UserError, match="would be written over"):
        Study(mine)
    assert mine.read_text() == before
    assert Study(mine, name="others").store.root == tmp_path / "studies" / "others"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": [{"lora": {"alpha": math.inf}}]}, "setting 'alpha' should be a finite number; got inf"),
        ({"methods": [{"diff_pruning": {"gate_start": math.nan}}]}, "setting 'gate_start' should be a finite number"),
        ({"methods": [{"lora": {"alpha_pattern": {"*": math.inf}}}]}, "alpha_pattern"),
        ({"methods": [{"diff_pruning": {"gate_lr": 1e30}}]}, "setting 'gate_lr' should be less than or equal to 10"),
        ({"methods": [{"knn": {"k": 10**30}}]}, "setting 'k': a whole number is at most"),
        ({"training": {"clip": math.inf}}, "training.clip should be a finite number"),
        ({"budget": {"seconds": math.inf}}, "seconds should be a finite number"),
        ({"methods": [{"parallel": {"scale": 0.0}}]}, "setting 'scale' should be greater than 0"),
        ({"seeds": 10**12}, "seeds: 1,000,000,000,000 are more than 10,000"),
        ({"seeds": [0, 2**64]}, "seeds: 18446744073709551616 is beyond"),
        ({"search": {"seed": -1}}, "search.seed should be greater than or equal to 0"),
    ],
)
def test_numbers_that_are_none_are_refused_wherever_they_stand(
    command: Any, study_file: Any, changes: dict[str, Any], sentence: str
) -> None:
    code, _, error = command("check", study_file(**changes))
    assert code == 2
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group": "mood"}, "column 'mood' is the label and the group"),
        ({"prompt": ""}, "the prompt '' shows no column"),
        ({"prompt": "Mood:"}, "the prompt 'Mood:' shows no column"),
        ({"label_words": {"good": " ", "bad": "x"}}, "the word of label 'good' is empty"),
    ],
)
def test_a_task_that_teaches_nothing_is_refused(
    command: Any, study_of: Any, study_file: Any, changes: dict[str, Any], sentence: str
) -> None:
    code, _, error = command("check", study_file(task={**study_of()["task"], **changes}))
    assert code == 2
    assert sentence in error


def test_budgets_and_folds_beyond_all_bounds_are_large_ones(study_of: Any) -> None:
    budget = {"seconds": 1e30, "per": "study"}
    results = Study(study_of(methods=["bitfit", {"linear_probe": {"folds": 10**12}}], budget=budget)).run()
    assert {record.trial.group for record in results.done()} == {"bitfit", "linear_probe"}


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"houlsby": {"size": 10**12}}, "numbers, more than 10 times the"),
        ({"adapter_drop": {"size": 10**9}}, "numbers, more than 10 times the"),
        ({"compacter": {"rank": 10**9}}, "numbers, more than 10 times the"),
        ({"lora": {"lr_ratio": 1e9}}, "the learning rate of B, lr x lr_ratio, is 500000"),
        ({"few_shot": {"template": 2}}, "has one prompt, 0; template 2 is none of them"),
    ],
)
def test_check_leaves_out_what_would_fail_in_the_run(
    command: Any, study_file: Any, method: dict[str, Any], sentence: str
) -> None:
    code, out, error = command("check", study_file(methods=[method, "zero_shot"]))
    assert code == 1
    assert sentence in out + error
