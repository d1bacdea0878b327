"""Our own format: what a directory holds, its card, and what is refused when it comes from someone else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dollartune.attachment import Adapter
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.export.directory import load_adapter, save_adapter, tokenizer_hash, update_info
from dollartune.export.hub import push
from dollartune.methods.head import Head
from dollartune.methods.lora import LoRA
from dollartune.methods.stored_adapter import read_info
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb
from dollartune.untrusted_files import check_name

TASK = {
    "name": "colours",
    "kind": "classification",
    "prompt": "w1 {text} Answer :",
    "label_words": {"a": "yes", "b": "no"},
    "metric": "accuracy",
    "max_answer_tokens": 4,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(write_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")))


@pytest.fixture
def folder(backbone: Backbone, tmp_path: Path) -> Path:
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    info = {
        "backbone": backbone.name,
        "revision": None,
        "objective": "language",
        "tokenizer": tokenizer_hash(backbone.processor),
        "task": TASK,
        "scores": {"accuracy": 0.75},
        "cost": {"seconds": 12.0, "dollars": 0.004, "price_per_hour": 1.2},
    }
    save_adapter(tmp_path / "adapter", adapter, info)
    return tmp_path / "adapter"


def change(folder: Path, **values: Any) -> None:
    info = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps(info | values))


def test_saved_and_loaded_bit_equal(backbone: Backbone, folder: Path) -> None:
    loaded = load_adapter(folder, backbone)
    for name, tensor in load_file(folder / "adapter.safetensors").items():
        assert torch.equal(tensor, loaded.tensors()[name])
    assert set(read_info(folder)["versions"]) == {"dollartune", "torch", "transformers"}


def test_the_card_has_metadata_and_its_example_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "dollartune"
    assert data["tags"] == ["dollartune", "lora"]
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert "| accuracy | 0.7500 |" in text
    assert "$0.0040" in text
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    exec(code, {})
    assert capsys.readouterr().out.strip() in ("a", "b")


def test_an_undefined_measure_leaves_the_adapter_readable(backbone: Backbone, folder: Path) -> None:
    adapter = load_adapter(folder, backbone)
    scores = {"accuracy": 0.5, "auc": float("nan")}
    save_adapter(folder, adapter, {**read_info(folder), "scores": scores})
    for _ in range(2):  # as it is saved, and as it is changed
        assert read_info(folder)["scores"] == {"accuracy": 0.5, "auc": None}
        front, text = (folder / "README.md").read_text().split("---\n", 2)[1:]
        data = yaml.safe_load(front)
        assert data["metrics"] == ["accuracy"]
        assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5}]
        assert "auc" not in front + text
        update_info(folder, {"scores": scores})


@pytest.mark.parametrize("method", ["majority", "tfidf", "zero_shot", "few_shot"])
def test_what_trains_nothing_is_no_adapter_to_predict_export_or_serve(
    backbone: Backbone, folder: Path, tmp_path: Path, method: str
) -> None:
    from dollartune.export.handover import export_adapter
    from dollartune.export.opening import open_adapter
    from dollartune.serve.limits import Limits
    from dollartune.serve.run import build_service

    change(folder, methods=[{"method": method}])
    for use in (
        lambda: open_adapter(folder),  # predict and evaluate
        lambda: export_adapter(folder, tmp_path / "out", "merged"),
        lambda: build_service(backbone.name, {"one": folder}, Limits()),
    ):
        with pytest.raises(UserError, match=f"is of {method}, which trains nothing and leaves no adapter") as refused:
            use()
        assert "dollartune init" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a b", "x" * 200, "a\nb", "-rf", "a\x00"])
def test_names_with_path_parts_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="not allowed"):
        check_name(name)


def test_pickles_are_refused(backbone: Backbone, folder: Path) -> None:
    (folder / "adapter.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin, a pickle"):
        load_adapter(folder, backbone)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks to run code"),
        ({"format_version": 99}, "has format 99"),
        ({"format_version": "x"}, "has format 'x'"),
        ({"methods": []}, "names no methods"),
        ({"methods": [{"method": "lorra"}]}, "Did you mean 'lora'"),
        ({"methods": [{"method": "lora", "rank": -1}]}, "rank"),
        ({"tokenizer": "0000"}, "another tokenizer"),
        ({"seed": "x"}, "malformed"),
    ],
)
def test_hostile_configs_are_refused(backbone: Backbone, folder: Path, values: dict[str, Any], message: str) -> None:
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        load_adapter(folder, backbone)


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "[" * 100_000, "\xff\xfe"])
def test_malformed_json_is_refused(folder: Path, content: str) -> None:
    (folder / "adapter.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError):
        read_info(folder)


@pytest.mark.parametrize("hostile", ["nan", "shape", "extra", "missing", "garbage"])
def test_hostile_tensors_are_refused(backbone: Backbone, folder: Path, hostile: str) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    name = next(iter(tensors))
    if hostile == "nan":
        tensors[name][0, 0] = float("nan")
    elif hostile == "shape":
        tensors[name] = torch.zeros(7, 7)
    elif hostile == "extra":
        tensors["other"] = torch.zeros(1)
    else:
        del tensors[name]
    save_file(tensors, folder / "adapter.safetensors")
    if hostile == "garbage":
        (folder / "adapter.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError):
        load_adapter(folder, backbone)


class FakeHub:
    """Remembers what would have been uploaded."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails

    def create_repo(self, repository: str, **settings: Any) -> None:
        self.calls.append((repository, settings))
        if self.fails is not None:
            raise self.fails

    def upload_folder(self, **settings: Any) -> str:
        self.calls.append(("upload", settings))
        return f"https://hub.example/{settings['repo_id']}"


CARD = "---\nlicense: mit\nbase_model: owner/model\n---\n"


def test_push_is_private_unless_asked(folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    hub = FakeHub()
    assert push(folder, "someone/adapter", client=hub).endswith("someone/adapter")
    assert hub.calls[0] == ("someone/adapter", {"repo_type": "model", "private": True, "exist_ok": True})
    assert hub.calls[1][1]["folder_path"] == str(folder)


def test_push_refusals(folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    with pytest.raises(UserError, match="owner/name"):
        push(folder, "name", client=FakeHub())
    with pytest.raises(UserError, match="refused the upload to 'a/b': 401 Client Error"):
        push(folder, "a/b", client=FakeHub(OSError("401 Client Error: unauthorized")))
    (folder / "extra.pkl").write_bytes(b"")
    with pytest.raises(UserError, match="pickles are not uploaded"):
        push(folder, "a/b", client=FakeHub())


def test_push_without_a_network_says_so_and_how_to_go_on(folder: Path) -> None:
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    (folder / "README.md").write_text(CARD)
    for error in (HTTPError("[Errno -2] Name or service not known"), OfflineModeIsEnabled("offline mode")):
        with pytest.raises(UserError, match=r"the hub cannot be reached: .*(not known|offline)") as refused:
            push(folder, "a/b", client=FakeHub(error))
        assert refused.value.hint == f"hf upload a/b {folder} . --private"


def test_hashes_of_rows_are_not_pushed(folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    change(folder, rows_seen={"trained": "AAAA", "chosen_by": ""})
    hub = FakeHub()
    with pytest.raises(UserError, match="hashes of the rows"):
        push(folder, "a/b", client=hub)
    assert not hub.calls


def test_what_serves_a_head_is_still_said_when_scores_are_added(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", "llama/classification")
    classifier = load_backbone(str(model), "classification", ("a", "b", "c"))
    adapter = Adapter([LoRA(rank=2), Head()], classifier.anatomy, classifier.model)
    save_adapter(tmp_path / "adapter", adapter, {"backbone": str(model), "objective": "classification"})
    before = (tmp_path / "adapter" / "README.md").read_text()
    assert "vLLM: yes" in before
    update_info(tmp_path / "adapter", {"scores": {}})
    assert (tmp_path / "adapter" / "README.md").read_text() == before
