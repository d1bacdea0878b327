"""Export and import by the command line: formats, checks after writing, what can serve what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dollartune.attachment import Adapter
from dollartune.attachment.merging import Merged
from dollartune.backbones.anatomy_file import family_of_text, written
from dollartune.backbones.families import forget_files, use_family
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.backbones.structure import read_structure
from dollartune.cli.app import app
from dollartune.errors import UserError
from dollartune.evaluate.predict import predict_rows
from dollartune.export import merged as merged_module
from dollartune.export import peft_format
from dollartune.export.arithmetic import merge_adapters
from dollartune.export.directory import load_adapter, save_adapter, tokenizer_hash
from dollartune.export.handover import export_adapter, import_peft, parse_named
from dollartune.export.merged import write_merged
from dollartune.export.opening import open_adapter
from dollartune.export.scoring import adapter_logits, sample_inputs
from dollartune.export.targets import serving_targets
from dollartune.methods.base import Method
from dollartune.methods.bitfit import BitFit
from dollartune.methods.diff_pruning import DiffPruning
from dollartune.methods.dora import DoRA
from dollartune.methods.full import Full
from dollartune.methods.head import Head
from dollartune.methods.ia3 import IA3
from dollartune.methods.intrinsic import Intrinsic
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.prompt import PromptTuning
from dollartune.methods.stored_adapter import read_info
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import finish, perturb

TASK = {
    "name": "colours",
    "kind": "classification",
    "prompt": "w1 {text} Answer :",
    "label_words": {"a": "yes", "b": "no"},
    "metric": "accuracy",
    "max_answer_tokens": 4,
}


@pytest.fixture(autouse=True)
def without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peft library takes seconds to import; tests/peft has it."""
    monkeypatch.setattr(peft_format, "peft_installed", lambda: False)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Backbone] = {}

    def get(name: str) -> Backbone:
        if name not in made:
            objective = "classification" if name.endswith("/classification") else None
            made[name] = load_backbone(str(write_tiny(root / name.replace("/", "-"), name)), objective)
        return made[name]

    return get


def saved(backbone: Backbone, folder: Path, *methods: Method[Any]) -> Path:
    adapter = Adapter(methods, backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    info = {
        "backbone": backbone.name,
        "objective": backbone.objective,
        "tokenizer": tokenizer_hash(backbone.processor),
        "task": TASK,
    }
    save_adapter(folder, adapter, info)
    return folder


def test_to_peft_and_back_predicts_the_same(backbones: Any, tmp_path: Path) -> None:
    folder = saved(backbones("llama"), tmp_path / "adapter", LoRA(rank=2), Norm(layers="last 1"))
    handed = export_adapter(folder, tmp_path / "peft", "peft")
    assert any(line.startswith("vLLM: no") for line in handed.lines)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["modules_to_save"] == [
        "model.layers.2.input_layernorm",
        "model.layers.2.post_attention_layernorm",
        "model.norm",
    ]
    import_peft(tmp_path / "peft", tmp_path / "again")
    rows = [{"text": "w3 w9"}, {"text": "w20"}]
    first, second = (predict_rows(open_adapter(path), rows) for path in (folder, tmp_path / "again"))
    for one, other in zip(first, second, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


MERGEABLE = {
    "opt": [LoRA(rank=2), BitFit()],
    "gpt2": [LoRA(rank=2)],
    "llama": [IA3()],
    "t5": [LoRA(rank=2)],
    "bart": [Norm()],
    "bert": [DoRA(rank=2), Head()],
    "gpt2/classification": [Full()],
    "opt/classification": [DiffPruning(), Head()],
    "llama/classification": [Intrinsic(dimension=40), Head()],
}


@pytest.mark.parametrize("family", MERGEABLE)
def test_merged_directories_give_what_the_adapter_gives(backbones: Any, family: str, tmp_path: Path) -> None:
    backbone = backbones(family)
    adapter = Adapter(MERGEABLE[family], backbone.anatomy, backbone.model)
    perturb(adapter, 0.05, 0)
    inputs = sample_inputs(backbone)
    bare = adapter_logits(backbone, None, inputs)
    found = write_merged(tmp_path / "out", backbone, adapter)
    again = load_backbone(str(tmp_path / "out"), backbone.objective)
    assert found.difference < 1e-4
    assert not torch.allclose(adapter_logits(again, None, inputs), bare, atol=1e-3)
    assert torch.equal(adapter_logits(backbone, None, inputs), bare)  # the backbone itself is as it was
    assert tokenizer_hash(again.processor) == tokenizer_hash(backbone.processor)


def test_merging_from_4_bits_measures_what_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    source = write_tiny(tmp_path / "llama", "llama")
    backbone = load_backbone(str(source), quantize="nf4")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    found = write_merged(tmp_path / "out", backbone, adapter)
    assert found.quantized
    assert found.requantized_difference is not None
    assert found.requantized_difference > found.difference
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_wrong_merge_is_an_error(backbones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbones("opt")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    monkeypatch.setattr(merged_module, "merge", lambda *args, **settings: Merged())
    with pytest.raises(UserError, match="does not give what the adapter gives"):
        write_merged(tmp_path / "out", backbone, adapter)
    assert list(tmp_path.iterdir()) == []


def test_in_16_bits_a_file_of_the_untuned_weights_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are as near to the adapter's as rounding may leave them."""
    source = str(write_tiny(tmp_path / "llama", "llama"))
    backbone = load_backbone(source, dtype=torch.bfloat16)
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.002, 0)
    monkeypatch.setattr(merged_module, "load_backbone", lambda *args, **settings: backbone)
    with pytest.raises(UserError, match=r"has another model.layers.0.self_attn.q_proj.weight than was written"):
        write_merged(tmp_path / "out", backbone, adapter)
    assert not (tmp_path / "out").exists()


def test_an_export_that_rounds_the_tuning_away_says_so(tmp_path: Path, backbones: Any) -> None:
    folder = saved(backbones("llama"), tmp_path / "adapter", LoRA(rank=2))
    tensors = load_file(folder / "adapter.safetensors")
    save_file({name: value * 0.05 for name, value in tensors.items()}, folder / "adapter.safetensors")

    def notes(dtype: str) -> list[str]:
        lines = export_adapter(folder, tmp_path / dtype, "merged", dtype=dtype).lines
        return [line for line in lines if line.startswith("rounding to")]

    assert not notes("float32")
    (note,) = notes("bfloat16")
    assert "--dtype float32 keeps it" in note


def test_a_wrong_peft_file_is_an_error(backbones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbones("opt")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    monkeypatch.setattr(LoRA, "scale", lambda self, site: 1.5)
    with pytest.raises(UserError, match="loaded here, does not give"):
        peft_format.write_peft(tmp_path / "out", backbone, adapter)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(backbones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(backbones("llama"), tmp_path / "adapter", LoRA(rank=2))
    (tmp_path / "rows.jsonl").write_text('{"text": "w3 w9"}\n{"text": "w20 w4 w5"}\n')
    runner = CliRunner()
    for form, extra in (("dollartune", []), ("peft", []), ("merged", ["--examples", str(tmp_path / "rows.jsonl")])):
        result = runner.invoke(app, ["export", str(folder), "--format", form, "--out", str(tmp_path / form), *extra])
        assert result.exit_code == 0, result.output
        assert "vLLM: yes" in result.output
        assert (tmp_path / form / "README.md").is_file()
    result = runner.invoke(app, ["import", str(tmp_path / "peft"), "--out", str(tmp_path / "imported")])
    assert result.exit_code == 0, result.output
    code = (tmp_path / "merged" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "merged")
    names: dict[str, Any] = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "LlamaForCausalLM"
    result = runner.invoke(app, ["export", str(folder), "--format", "onnx", "--out", str(tmp_path / "x")])
    assert isinstance(result.exception, UserError)


def test_refusals_name_what_is_possible(backbones: Any, tmp_path: Path) -> None:
    backbone = backbones("llama")
    prompt = saved(backbone, tmp_path / "prompt", PromptTuning(tokens=3))
    with pytest.raises(UserError, match="prompt cannot be merged") as error:
        export_adapter(prompt, tmp_path / "out", "merged")
    assert "peft: yes" in str(error.value)
    bias = saved(backbone, tmp_path / "bias", BitFit(where="mlp"))
    with pytest.raises(UserError, match="the peft library has no method for what 'bitfit' does"):
        export_adapter(bias, tmp_path / "out", "peft")
    with pytest.raises(UserError, match="is not empty"):
        export_adapter(prompt, prompt, "peft")


@pytest.mark.parametrize("hostile", ["bin", "nan", "shape", "unknown", "type", "code", "sites"])
def test_hostile_peft_adapters_are_refused(backbones: Any, tmp_path: Path, hostile: str) -> None:
    backbone = backbones("llama")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    peft_format.write_peft(tmp_path / "peft", backbone, adapter)
    weights, config = tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "peft" / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    name = next(iter(tensors))
    if hostile == "nan":
        tensors[name][0, 0] = float("inf")
    elif hostile == "shape":
        tensors[name] = torch.zeros(3, 3)
    elif hostile == "unknown":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    elif hostile == "sites":
        tensors = {key.replace("q_proj", "z_proj"): value for key, value in tensors.items()}
    settings |= {"type": {"peft_type": "XLORA"}, "code": {"auto_map": {"a": "b"}}}.get(hostile, {})
    save_file(tensors, weights)
    config.write_text(json.dumps(settings))
    if hostile == "bin":
        weights.rename(tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(UserError):
        peft_format.read_peft(tmp_path / "peft", backbone)


def test_what_was_tuned_on_random_weights_is_exported_with_them(tmp_path: Path) -> None:
    source = str(write_tiny(tmp_path / "model", "llama"))
    backbone = load_backbone(source, random_weights_seed=5)
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    info = {"backbone": source, "objective": "language", "task": TASK, "random_weights_seed": 5}
    save_adapter(tmp_path / "adapter", adapter, info)
    inputs = sample_inputs(backbone)
    expected = adapter_logits(backbone, adapter, inputs)
    export_adapter(tmp_path / "adapter", tmp_path / "merged", "merged")
    merged = load_backbone(str(tmp_path / "merged"))
    torch.testing.assert_close(adapter_logits(merged, None, inputs), expected, rtol=1e-4, atol=1e-4)
    for folder in ("adapter", "merged"):
        assert "with random weights (seed 5)" in (tmp_path / folder / "README.md").read_text()
    for form in ("peft", "lora", "head"):
        with pytest.raises(UserError, match="tuned on random weights") as refused:
            export_adapter(tmp_path / "adapter", tmp_path / form, form)
        assert "peft: no, it was tuned on random weights" in refused.value.message
        assert "vLLM: no, it was tuned on random weights" in refused.value.message
        assert "merged" in str(refused.value.hint)
    with pytest.raises(UserError, match=r"on random weights \(seed 5\) of .*, not on the pretrained weights"):
        load_adapter(tmp_path / "adapter", load_backbone(source))
    save_adapter(tmp_path / "pretrained", adapter, {**info, "random_weights_seed": None})
    with pytest.raises(UserError, match=r"on the pretrained weights of .*, not on random weights"):
        load_adapter(tmp_path / "pretrained", backbone)


def test_what_was_tuned_by_an_anatomy_of_ones_own_is_exported_and_served_by_it(tmp_path: Path) -> None:
    source = str(write_tiny(tmp_path / "model", "llama"))
    text = written(read_structure(load_backbone(source).model, "decoder"))
    use_family(family_of_text(text.replace("mlp.up:", "mlp.wide:"), "test"))
    try:
        backbone = load_backbone(source)
        adapter = Adapter([LoRA(rank=2, where="mlp.wide")], backbone.anatomy, backbone.model)
        perturb(adapter, 0.1, 0)
        anatomy = text.replace("mlp.up:", "mlp.wide:")
        info = {"backbone": source, "objective": "language", "task": TASK, "anatomy": anatomy}
        save_adapter(tmp_path / "adapter", adapter, info)
        for use in (
            lambda: export_adapter(tmp_path / "adapter", tmp_path / "peft", "peft"),
            lambda: import_peft(tmp_path / "peft", tmp_path / "again"),
            lambda: merge_adapters([tmp_path / "adapter", tmp_path / "again"], tmp_path / "sum", [0.5, 0.5]),
            lambda: build_service(source, {"one": tmp_path / "sum"}, Limits()),
        ):
            forget_files()  # as in another process
            use()
        for folder in ("again", "sum"):  # and says so to the next one
            assert read_info(tmp_path / folder)["anatomy"] == anatomy
    finally:
        forget_files()


def imported(backbone: Backbone, folder: Path, *methods: Method[Any], **changed: Any) -> Path:
    """An adapter in peft's format, with other settings in its config."""
    adapter = Adapter(methods, backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    peft_format.write_peft(folder, backbone, adapter)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    return folder


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_a_dora_whose_start_changed_the_backbone_is_refused(backbones: Any, tmp_path: Path, start: str) -> None:
    backbone = backbones("llama")
    folder = imported(backbone, tmp_path / "peft", DoRA(rank=2), init_lora_weights=start)
    with pytest.raises(UserError, match=f"starts from '{start}', which changed the backbone's weights"):
        peft_format.read_peft(folder, backbone)
    plain = imported(backbone, tmp_path / "plain", DoRA(rank=2), init_lora_weights="gaussian")
    assert peft_format.read_peft(plain, backbone)[0].methods[0].name == "dora"


@pytest.mark.parametrize("task_type", ["TOKEN_CLS", "QUESTION_ANS"])
def test_adapters_that_score_tokens_are_refused_by_name(backbones: Any, tmp_path: Path, task_type: str) -> None:
    folder = imported(backbones("bert"), tmp_path / "peft", LoRA(rank=2), Head(), task_type=task_type)
    with pytest.raises(UserError, match=f"task_type '{task_type}'"):
        import_peft(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_task_with_other_classes_than_the_head_is_refused(backbones: Any, tmp_path: Path) -> None:
    backbone = backbones("bert")
    folder = imported(backbone, tmp_path / "peft", LoRA(rank=2), Head())
    classes = backbone.model.config.num_labels

    def task(labels: int) -> str:
        """A file of rows with so many labels."""
        rows = "".join(f"w{number},l{number % labels}\n" for number in range(6 * labels))
        (tmp_path / f"{labels}.csv").write_text(f"text,label\n{rows}")
        return str(tmp_path / f"{labels}.csv")

    with pytest.raises(UserError, match=f"scores {classes} classes; the task '{classes + 1}' has {classes + 1}"):
        import_peft(folder, tmp_path / "out", task_spec=task(classes + 1))
    assert not (tmp_path / "out").exists()
    lines = import_peft(folder, tmp_path / "out", task_spec=task(classes)).lines
    assert any("no order of classes; it is taken from the task: l0, l1" in line for line in lines)
    info = json.loads((tmp_path / "out" / "adapter.json").read_text())
    info["task"]["label_words"]["another"] = "another"
    (tmp_path / "out" / "adapter.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=f"scores {classes} classes"):  # whoever wrote it
        load_adapter(tmp_path / "out", backbone)


def test_an_import_writes_over_nothing_and_says_which_chat_template_it_leaves(backbones: Any, tmp_path: Path) -> None:
    folder = saved(backbones("llama"), tmp_path / "adapter", LoRA(rank=2))
    export_adapter(folder, tmp_path / "peft", "peft")
    with pytest.raises(UserError, match="is not empty"):
        import_peft(tmp_path / "peft", folder)
    assert not any("chat template" in line for line in import_peft(tmp_path / "peft", tmp_path / "plain").lines)
    (tmp_path / "trl").mkdir()
    for path in (tmp_path / "peft").iterdir():
        (tmp_path / "trl" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "trl" / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    (note,) = (line for line in import_peft(tmp_path / "trl", tmp_path / "again").lines if "chat template" in line)
    assert note.startswith("not used: the chat template in")
    assert "asked without one" in note


def test_an_import_remembers_how_it_was_tuned_and_which_rows_it_has_seen(backbones: Any, tmp_path: Path) -> None:
    folder = saved(backbones("llama"), tmp_path / "adapter", LoRA(rank=2))
    facts = {"dtype": "bfloat16", "max_length": 24, "rows_seen": {"trained": "AAAAAAAA", "chosen_by": ""}}
    facts["study"] = {"metric": "accuracy", "rows": {"train": 20, "test": 10}, "seed": 0}
    info = read_info(folder)
    (folder / "adapter.json").write_text(json.dumps({**info, **facts}))
    export_adapter(folder, tmp_path / "peft", "peft")
    import_peft(tmp_path / "peft", tmp_path / "again")
    assert facts.items() <= read_info(tmp_path / "again").items()


def test_a_backbone_that_is_named_is_remembered_from_anywhere(
    backbones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(backbones("llama"), tmp_path / "adapter", LoRA(rank=2))
    moved = shutil.copytree(backbones("llama").name, tmp_path / "moved")
    (folder / "adapter.json").write_text(json.dumps({**read_info(folder), "backbone": "/gone/since/then"}))
    monkeypatch.chdir(tmp_path)
    export_adapter(folder, Path("peft"), "peft", "moved")
    import_peft(Path("peft"), Path("again"))
    import_peft(Path("peft"), Path("named"), "moved")
    merge_adapters([folder, folder], Path("both"), [0.5, 0.5], backbone_name="moved")
    monkeypatch.chdir("/")
    rows = [{"text": "w3 w9"}]
    found = [predict_rows(open_adapter(tmp_path / name), rows)[0].probabilities for name in ("again", "named", "both")]
    assert found[0] == found[1] == pytest.approx(found[2], abs=1e-4)
    assert read_info(tmp_path / "both")["backbone"] == str(moved.resolve())


def test_what_serves_what() -> None:
    def possible(*methods: Method[Any]) -> list[bool]:
        return [target.possible for target in serving_targets(methods)]  # here, peft, vLLM, merged

    assert possible(LoRA()) == [True, True, True, True]
    assert possible(DoRA()) == [True, True, False, True]
    assert possible(LoRA(), Head()) == [True, True, False, True]
    assert possible(PromptTuning()) == [True, True, False, False]
    assert possible(BitFit()) == [True, False, False, True]
    heads = {name: serving_targets([LoRA(), Head()], name)[2] for name in ("classifier", "score", "head")}
    assert [target.possible for target in heads.values()] == [True, True, False], "vLLM takes heads by their names"
    assert "classifier or score" in heads["head"].reason


def test_what_serves_depends_on_the_backbone_and_on_what_was_refused() -> None:
    peft, vllm = serving_targets([LoRA()], kind="encoder_decoder")[1:3]
    assert peft.possible
    assert (vllm.possible, vllm.reason) == (False, "it has no LoRA for encoder-decoders")
    assert "0.33 or later" in serving_targets([LoRA(alpha_pattern={"*.v": 4.0})], kind="decoder")[2].reason
    refused = serving_targets([BitFit()], refused={"merged": "no place for a bias"})
    assert [target.possible for target in refused] == [True, False, False, False]
    assert "merged and serve" not in refused[2].reason
    assert refused[3].reason == "no place for a bias"
    assert [target.possible for target in serving_targets([LoRA()], refused={"peft": "why"})] == [
        True,
        False,
        False,
        True,
    ]


def test_an_export_says_of_its_own_backbone_and_settings_what_serves_it(backbones: Any, tmp_path: Path) -> None:
    folder = saved(backbones("t5"), tmp_path / "t5", LoRA(rank=4, rank_pattern={"*.v": 2}))
    lines = export_adapter(folder, tmp_path / "merged", "merged").lines
    assert "vLLM: no, it has no LoRA for encoder-decoders" in lines
    patterns = saved(backbones("opt"), tmp_path / "opt", LoRA(rank=4, alpha_pattern={"*.q": 2.0}))
    (vllm,) = (line for line in export_adapter(patterns, tmp_path / "peft", "peft").lines if line.startswith("vLLM"))
    assert "0.33 or later" in vllm, "early versions drop patterns without a word"


@pytest.mark.parametrize("form", ["merged", "peft"])
def test_a_refused_format_is_not_offered_in_the_same_answer(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("not on this backbone")

    monkeypatch.setattr("dollartune.export.handover.write_merged", refuse)
    monkeypatch.setattr("dollartune.export.handover.peft_format.write_peft", refuse)
    adapter = Adapter([LoRA()], backbone.anatomy, backbone.model)
    save_adapter(tmp_path / "adapter", adapter, {"backbone": backbone.name, "objective": "language", "task": None})
    with pytest.raises(UserError) as refusal:
        export_adapter(tmp_path / "adapter", tmp_path / "out", form)
    offered = [line for line in refusal.value.message.splitlines() if ": yes, " in line]
    assert not any(f"--format {form}" in line for line in offered)


def test_named_adapters() -> None:
    assert parse_named(["a=x", "b=y/z"]) == {"a": Path("x"), "b": Path("y/z")}
    for wrong in (["a"], ["a="], ["../a=x"], ["a=x", "a=y"]):
        with pytest.raises(UserError):
            parse_named(wrong)


def test_a_sparse_difference_is_opened_again_though_it_stores_a_two_hundredth_of_what_it_chose_from(
    tmp_path: Path,
) -> None:
    backbone = load_backbone("tiny-decoder")
    adapter = Adapter([DiffPruning()], backbone.anatomy, backbone.model, 0)
    perturb(adapter, 0.1, 0)
    finish(adapter)
    save_adapter(tmp_path, adapter, {"backbone": "tiny-decoder", "tokenizer": tokenizer_hash(backbone.processor)})
    again = load_adapter(tmp_path, backbone).tensors()
    assert sum(tensor.numel() for tensor in again.values()) < 100_000
    assert all(torch.equal(again[name], tensor) for name, tensor in adapter.tensors().items())
