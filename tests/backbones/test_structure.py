"""What is read off structures: kinds, layouts of fused linears, sizes in proportion, files and entry points, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dollartune.attachment.attached import attach
from dollartune.backbones import families as registry
from dollartune.backbones.anatomy import Part, join_parts, split_parts
from dollartune.backbones.anatomy_file import family_from, read_family, written
from dollartune.backbones.families import families, forget_files, use_file
from dollartune.backbones.kind import default_objective, kind_of
from dollartune.backbones.loading import _auto_class, anatomy_of, load_backbone
from dollartune.backbones.unreached import unreached
from dollartune.backbones.weights import part_rows
from dollartune.errors import UserError
from dollartune.export.scoring import adapter_logits, sample_inputs
from dollartune.methods.lora import LoRA
from dollartune.methods.registry import build_method
from dollartune.testing.practice import perturb


def on_meta(config: Any, objective: Any = None) -> Any:
    with torch.device("meta"):
        return _auto_class(config, objective or default_objective(config)).from_config(config)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (transformers.RobertaPreLayerNormConfig(), "encoder"),  # has a class for causal language models, too
        (transformers.RobertaPreLayerNormConfig(is_decoder=True), "decoder"),
        (transformers.BertConfig(is_decoder=True), "decoder"),
        (transformers.BertConfig(), "encoder"),
        (transformers.StableLmConfig(), "decoder"),
        (transformers.MarianConfig(), "encoder_decoder"),
        (transformers.RegNetConfig(), "vision"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_kind_comes_from_a_pass(config: Any, kind: str) -> None:
    assert kind_of(config) == kind


def test_sound_is_refused_in_our_words() -> None:
    with pytest.raises(UserError, match="reads sound"):
        kind_of(transformers.WhisperConfig())


def test_an_encoder_is_no_language_model_whatever_classes_exist() -> None:
    with pytest.raises(UserError, match="reads both ways") as error:
        _auto_class(transformers.RemBertConfig(), "language")
    assert error.value.hint == "Set objective: classification."


@pytest.mark.parametrize(
    ("config", "q", "k"),
    [
        (transformers.GPTNeoXConfig(), (64, 0, 96, 288), (64, 96, 192, 288)),
        (transformers.FalconConfig(num_kv_heads=8, new_decoder_architecture=True, num_attention_heads=64, hidden_size=4096),
         (8, 0, 512, 640), (8, 512, 576, 640)),
        (transformers.Phi3Config(num_key_value_heads=8), (1, 0, 3072, 4608), (1, 3072, 3840, 4608)),
    ],
    ids=["per head", "grouped", "block"],
)  # fmt: skip
def test_layouts_hold_in_proportion_for_models_of_billions(config: Any, q: Any, k: Any) -> None:
    """Read off a copy of a few thousand weights, and right for the model on the meta device."""
    model = on_meta(config)
    assert sum(p.numel() for p in model.parameters()) > 10**9
    anatomy = anatomy_of(model)
    for role, wanted in (("self_attn.q", q), ("self_attn.k", k)):
        part = anatomy.at(role)[-1].part
        assert part is not None
        assert (part.groups, part.start, part.stop, part.width) == wanted
    assert len(anatomy.at("self_attn.q")) == config.num_hidden_layers
    assert not unreached(model, anatomy).names


def test_slices_are_cut_out_and_put_back() -> None:
    part = Part.slice("qkv", groups=3, start=2, stop=5, width=8)
    y = torch.arange(48.0).view(2, 24)
    pieces = split_parts(y, part, 0)
    site = type("Site", (), {"part": part, "out_features": 9, "heads": 0})
    torch.testing.assert_close(pieces[part.index], y[:, part_rows(site, 24)])  # type: ignore[arg-type]
    torch.testing.assert_close(join_parts(pieces, part, 0), y)


def experts() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(config).eval()


def test_lora_of_an_expert_is_the_product_that_it_says() -> None:
    """Beside plain transformers with the sum written into the experts' tensors."""
    model = experts()
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))
    attached = attach(model, LoRA(where="mlp.experts", rank=2))
    adapter = attached.adapters["default"]
    with torch.no_grad():
        for tensor in adapter.trainable().values():
            tensor.normal_(std=0.3)
        tuned = attached(input_ids=ids).logits
    deltas = {(site.exit, site.parameter): edit.scale * edit.B @ edit.A for site, edit in adapter.items()}
    attached.detach()
    assert len(deltas) == 4
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for (name, parameter), delta in deltas.items():
            assert delta.shape[0] == 4
            model.get_submodule(name).get_parameter(parameter).add_(
                delta.view_as(model.get_submodule(name).get_parameter(parameter))
            )
        torch.testing.assert_close(model(input_ids=ids).logits, tuned, atol=1e-4, rtol=1e-4)
    assert float((plain - tuned).detach().abs().max()) > 0.01


def test_experts_of_two_adapters_share_a_batch() -> None:
    from dollartune.attachment.attached import Assignment, Attached

    model = experts()
    ids = torch.randint(3, 99, (4, 7), generator=torch.Generator().manual_seed(0))
    attached = Attached(model, anatomy_of(model))
    for name in ("a", "b"):
        adapter = attached.add(name, [LoRA(where="mlp", rank=2)], seed=ord(name))
        with torch.no_grad():
            for tensor in adapter.trainable().values():
                tensor.normal_(std=0.3)
    route = [Assignment(attached.adapters["a"], slice(0, 1)), Assignment(attached.adapters["b"], slice(2, 4))]
    with torch.no_grad(), attached.routed(*route, batch_rows=4):
        together = attached(input_ids=ids).logits
    alone = []
    for name, rows in (("a", slice(0, 1)), (None, slice(1, 2)), ("b", slice(2, 4))):
        with torch.no_grad(), attached.routed(name, batch_rows=rows.stop - rows.start):
            alone.append(attached(input_ids=ids[rows]).logits)
    attached.detach()
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert float((alone[0] - model(input_ids=ids[:1]).logits).detach().abs().max()) > 0.01


@pytest.fixture
def files() -> Any:
    yield
    forget_files()


def test_an_anatomy_goes_to_a_file_and_back(tmp_path: Path, files: Any) -> None:
    config = transformers.Qwen2MoeConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32,
    )  # fmt: skip
    model = on_meta(config)
    before = anatomy_of(model)
    path = tmp_path / "anatomy.yaml"
    path.write_text(written(before.family))
    assert use_file(path).model_types == ("qwen2_moe",)
    after = anatomy_of(on_meta(config))
    assert not after.family.guessed
    assert after.sites == before.sites


def test_a_user_corrects_what_was_read(tmp_path: Path, files: Any) -> None:
    """A role that the file leaves out is no site any more; one under another name is."""
    config = transformers.PhiConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    family = anatomy_of(on_meta(config)).family
    path = tmp_path / "anatomy.yaml"
    path.write_text(written(family).replace("mlp.up:", "mlp.wide:"))
    use_file(path)
    anatomy = anatomy_of(on_meta(config))
    assert not anatomy.at("mlp.up")
    assert len(anatomy.at("mlp.wide")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"knid": "decoder"}, "Did you mean 'kind'"),
        ({"kind": "decodr"}, "it is one of"),
        ({"model_types": "phi"}, "lists the model_type"),
        ({"stacks": {}}, "there is no stack"),
        ({"keeps_states": "no, I think"}, "keeps_states is 'no, I think'; it is true or false"),
        ({"streams": None}, "streams is None; it is a whole number"),
        (
            {"stacks": {"decoder": {"shapes": [{"layers": ["layers.0"], "roles": {"self_attn.q": {"pth": "q"}}}]}}},
            "neither a path",
        ),
    ],
)
def test_mistakes_in_a_file_are_named(change: dict[str, Any], said: str) -> None:
    right = {
        "model_types": ["phi"], "kind": "decoder",
        "stacks": {"decoder": {"shapes": [{"layers": ["layers.0"], "roles": {"self_attn.q": "self_attn.q_proj"}}]}},
    }  # fmt: skip
    assert family_from(right, "file").kind == "decoder"
    with pytest.raises(UserError, match=said):
        family_from({**right, **change}, "file")
    with pytest.raises(UserError, match="cannot be read"):
        read_family(Path("no/such/file.yaml"))


def test_families_of_other_packages_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    theirs = replace(families()["opt"], model_types=("their_model",))
    entry = type("Entry", (), {"name": "theirs", "load": staticmethod(lambda: theirs)})
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "dollartune.families" else [])
    registry._installed.cache_clear()
    try:
        assert families()["their_model"] is theirs
    finally:
        monkeypatch.undo()
        registry._installed.cache_clear()


def test_text_inside_a_model_with_pictures_has_its_own_weights(tmp_path: Path) -> None:
    from dollartune.backbones.loading import load_backbone

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config={
            **small,
            "vocab_size": 99,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 64,
        },
        vision_config={**small, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    whole = transformers.AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path / "model")
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.kind == "decoder"
    ids = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(backbone.model(input_ids=ids).logits, whole(input_ids=ids).logits)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    lines = ["text,label", *(f"row {n} is {'good' if n % 2 else 'bad'},{'yes' if n % 2 else 'no'}" for n in range(60))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("config", "methods", "runs", "left_out"),
    [
        (transformers.Mamba2Config(hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2,
                                   vocab_size=99),
         ["zero_shot", "lora", "prompt", "prefix", "full"], {"zero_shot", "lora", "prompt", "full"}, "code of its own"),
        (transformers.OlmoConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                 vocab_size=99),
         ["norm", "bitfit"], {"bitfit"}, "kind norm"),
        (transformers.MPNetConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                  vocab_size=99),
         ["few_shot", "lora", "full"], {"lora", "full"}, "no meaning on encoder"),
        (transformers.LongformerConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                       vocab_size=99, attention_window=8, pad_token_id=1),
         ["prompt", "lora"], {"lora"}, "in the place of token ids"),
    ],
    ids=["state space", "norms without weights", "encoder", "ids needed"],
)  # fmt: skip
def test_one_method_that_does_not_fit_leaves_the_others(
    config: Any, methods: list[str], runs: set[str], left_out: str, tmp_path: Path, data: Path
) -> None:
    from dollartune.study_file import load_study
    from dollartune.trials.expand import absent_methods, plan

    config.save_pretrained(tmp_path / "model")
    task = {"data": str(data), "text": "text", "label": "label"}
    settings = load_study(
        {"backbone": str(tmp_path / "model"), "task": task, "methods": methods, "scales": [20], "seeds": 1}
    )
    trials, _, notes = plan(settings)
    assert {trial.variant.label for trial in trials} == runs
    assert set(absent_methods(settings, trials)) == set(methods) - runs
    assert any(note.startswith("left out") and left_out in note for note in notes), notes


def test_a_model_of_characters_has_no_table_and_is_read(tmp_path: Path) -> None:
    """CANINE hashes characters into several tables: no vocabulary, and nothing that virtual tokens could stand beside."""
    config = transformers.CanineConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        num_hash_buckets=64, local_transformer_stride=16, initializer_range=0.15,
    )  # fmt: skip
    transformers.CanineModel(config).save_pretrained(tmp_path / "model")
    transformers.CanineTokenizer().save_pretrained(tmp_path / "model")
    backbone = load_backbone(str(tmp_path / "model"), "classification", ("a", "b"))
    assert backbone.kind == "encoder"
    # its classes are read at the first place, which padding hardly reaches; a mean over places is not that of the row alone
    assert any("depends on the padding beside it" in note for note in backbone.anatomy.notes)
    inputs = sample_inputs(backbone)
    bare = adapter_logits(backbone, None, inputs)
    for method in ("lora", "full", "head"):
        attached = attach(backbone.model, build_method(method))
        perturb(attached.adapters["default"], 0.2, 0)
        assert (attached(**inputs).logits - bare).abs().max() > 1e-3
        attached.detach()
    with pytest.raises(UserError, match="cannot be told"):
        attach(backbone.model, build_method("prompt"))
