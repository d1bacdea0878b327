"""Families whose code does something that no other's does: each is read as what it is, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dollartune.attachment.attached import Assignment, Attached, attach
from dollartune.backbones.anatomy_file import family_of_text, written
from dollartune.backbones.kind import kind_of
from dollartune.backbones.loading import Backbone, _auto_class, anatomy_of, load_backbone
from dollartune.errors import UserError
from dollartune.evaluate.labels import label_log_probabilities
from dollartune.methods.lora import LoRA
from dollartune.methods.registry import build_method
from dollartune.testing.practice import perturb
from dollartune.train.encoding import Encoded
from dollartune.train.features import FeatureStore

MARKS = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def made(config: Any, objective: Any) -> Any:
    torch.manual_seed(0)
    return _auto_class(config, objective).from_config(config).eval()


def drawn(*shape: int) -> Tensor:
    return torch.randint(5, 90, shape, generator=torch.Generator().manual_seed(0))


def fsmt() -> Any:
    return transformers.FSMTConfig(
        src_vocab_size=99, tgt_vocab_size=95, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip


def test_rows_of_two_adapters_share_a_batch_of_layers_that_get_tokens_first() -> None:
    model = made(fsmt(), "language")
    attached = Attached(model, anatomy_of(model))
    assert attached.anatomy.family.tokens_first
    for name in ("a", "b"):
        perturb(attached.add(name, [LoRA(where="all_linear", rank=2)], seed=ord(name)), 0.3, ord(name))
    ids, answer = drawn(4, 7), drawn(4, 3)
    route = [Assignment(attached.adapters["a"], slice(0, 1)), Assignment(attached.adapters["b"], slice(2, 4))]
    with torch.no_grad(), attached.routed(*route, batch_rows=4):
        together = attached(input_ids=ids, decoder_input_ids=answer).logits
    alone = []
    for name, rows in (("a", slice(0, 1)), (None, slice(1, 2)), ("b", slice(2, 4))):
        with torch.no_grad(), attached.routed(name, batch_rows=rows.stop - rows.start):
            alone.append(attached(input_ids=ids[rows], decoder_input_ids=answer[rows]).logits)
    attached.detach()
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert (
        together[:1] - model(input_ids=ids[:1], decoder_input_ids=answer[:1], use_cache=False).logits
    ).abs().max() > 0.1


def test_no_answer_is_seen_by_the_decoder_that_is_to_foretell_it() -> None:
    """FSMT masks later tokens in passes without a cache alone, and is asked with one where nobody says otherwise."""
    model = made(fsmt(), "language")
    attached = Attached(model, anatomy_of(model))
    ids, answer = drawn(1, 7), drawn(1, 4)
    other = answer.clone()
    other[0, -1] = 7 if answer[0, -1] != 7 else 8
    with torch.no_grad():
        first, second = (attached(input_ids=ids, decoder_input_ids=given).logits[:, :-1] for given in (answer, other))
        plain = model(input_ids=ids, decoder_input_ids=other).logits[:, :-1]
    attached.detach()
    torch.testing.assert_close(first, second)
    assert (plain - second).abs().max() > 1e-3  # so that the difference is this test's to see


def test_classes_are_read_off_states_where_the_base_model_gives_logits() -> None:
    model = made(fsmt(), "classification")
    anatomy = anatomy_of(model)
    assert anatomy.heads[0].in_features == 32
    assert "training" not in anatomy.family.refusals  # its scores of classes are no answer of tokens
    assert model(input_ids=drawn(2, 7)).logits.shape == (2, 2)


def test_a_head_of_several_futures_gives_the_places_that_are_asked_for() -> None:
    config = transformers.ProphetNetConfig(
        **MARKS, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_encoder_layers=1, num_decoder_layers=1,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, max_position_embeddings=64, ngram=3, init_std=0.2,
    )  # fmt: skip
    model = made(config, "language")
    attached = Attached(model, anatomy_of(model))
    ids, answer = drawn(2, 7), drawn(2, 4)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])
    with torch.no_grad():
        kept = attached(keep=(rows, positions), input_ids=ids, decoder_input_ids=answer).logits[0]
        whole = attached(input_ids=ids, decoder_input_ids=answer).logits
    torch.testing.assert_close(kept, whole[rows, positions])
    # a bias by distance depends on the query too, and multiplies nothing
    assert attached.anatomy.at("self_attn.q", "decoder")[0].exit.endswith("query_proj")


def test_a_decoder_that_sees_its_answer_is_not_trained_nor_scored_on_it() -> None:
    """ProphetNet as transformers has it mixes up places of its futures; its states of the input are as they should be."""
    config = transformers.ProphetNetConfig(
        **MARKS, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_encoder_layers=2, num_decoder_layers=2,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    model = made(config, "language")
    with pytest.raises(UserError, match="sees the tokens that it is to foretell"):
        attach(model, build_method("lora"))
    attached = Attached(model, anatomy_of(model))
    backbone = Backbone("prophetnet", model, None, attached.anatomy, "language")
    with pytest.raises(UserError, match="answers of several tokens") as error:
        label_log_probabilities(backbone, attached, None, [Encoded("0", (5, 6, 7))], [(8, 9), (10,)])
    assert "classification" in str(error.value.hint)
    attached.detach()
    classifier = made(config, "classification")
    attach(classifier, build_method("lora")).detach()


def perceiver() -> Any:
    return transformers.PerceiverConfig(
        vocab_size=262, num_latents=6, d_latents=32, d_model=24, num_self_attends_per_block=2, num_self_attention_heads=4,
        num_cross_attention_heads=4, qk_channels=16, v_channels=32, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip


def test_latents_are_no_tokens(tmp_path: Path) -> None:
    """Perceiver's base model reads no ids by that name; its states are as many for every text, and wide as no usual setting."""
    transformers.AutoModelForMaskedLM.from_config(perceiver()).save_pretrained(tmp_path)
    transformers.PerceiverTokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), "classification", ("a", "b"))
    assert backbone.kind == "encoder"
    assert backbone.anatomy.family.latents
    assert backbone.anatomy.d_model == 32
    attached = attach(backbone.model, build_method("linear_probe"))
    rows = [Encoded(str(n), tuple(drawn(1, 3 + 4 * n)[0].tolist()), label=n) for n in range(2)]
    pooling = attached.adapters["default"].readout.pooling
    together = FeatureStore().features(backbone, attached, rows, pooling, batch_size=2)
    alone = torch.cat([FeatureStore().features(backbone, attached, [row], pooling) for row in rows])
    attached.detach()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_head_inside_the_base_model_is_found_and_trained_with_what_was_drawn(tmp_path: Path) -> None:
    """Between latents and classes lies a module that the checkpoint of masked words has not, and that is called by more than
    states."""
    transformers.AutoModelForMaskedLM.from_config(perceiver()).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), "classification", ("a", "b"))
    attached = attach(backbone.model, build_method("head"))
    ids = drawn(2, 7)
    attached(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    trained = attached.adapters["default"].trainable()
    attached.detach()
    *poolers, head = (site.exit for site in attached.anatomy.heads)
    assert poolers
    assert head.endswith("final_layer")
    assert all(p.grad is not None for p in trained.values())


def test_linears_of_a_class_of_their_own_are_edited_and_merged() -> None:
    """I-BERT's give their result beside a scale, its embeddings and layers too."""
    from dollartune.attachment.merging import merge

    model = made(
        transformers.IBertConfig(**{**MARKS, **WIDTH, "pad_token_id": 1}, initializer_range=0.2), "classification"
    )
    ids = drawn(2, 7)
    attached = attach(model, LoRA(where="all_linear", rank=2))
    adapter = attached.adapters["default"]
    assert len(attached.anatomy.at("self_attn.q")) == len(attached.anatomy.at("mlp.down")) == 2
    assert len(attached.anatomy.at("norm.mlp")) == 2
    perturb(adapter, 0.3, 0)
    with torch.no_grad():
        tuned = attached(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    anatomy = attached.anatomy
    attached.detach()
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        merge(model, anatomy, adapter)
        torch.testing.assert_close(model(input_ids=ids).logits, tuned, atol=1e-5, rtol=1e-4)
    assert (bare - tuned).abs().max() > 1e-3
    attached = attach(model, build_method({"method": "prompt", "tokens": 2}))  # its table gives a pair
    attached(input_ids=ids, attention_mask=torch.ones_like(ids))
    attached.detach()


def test_of_two_streams_that_attend_together_the_wider_has_the_plain_names() -> None:
    config = transformers.LiltConfig(**{**WIDTH, "hidden_size": 48}, vocab_size=99, channel_shrink_ratio=2)
    anatomy = anatomy_of(made(config, "classification"))
    names = {role: anatomy.at(f"self_attn.{role}")[0].exit.rpartition(".")[2] for role in ("q", "k", "v", "v_2")}
    assert names == {"q": "query", "k": "key", "v": "value", "v_2": "layout_value"}


def test_text_is_what_whole_passes_say_where_generate_says_otherwise() -> None:
    """XLM's puts a mask behind the text, and takes no mask of padding."""
    config = transformers.XLMConfig(
        **MARKS, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64, init_std=0.2, embed_init_std=0.2, causal=True,
    )  # fmt: skip
    model = made(config, "language")
    attached = Attached(model, anatomy_of(model))
    assert not attached.anatomy.family.generates
    assert not attached.anatomy.rows_join
    ids, mask = drawn(2, 6), torch.ones(2, 6, dtype=torch.long)
    ids[1, :2], mask[1, :2] = 0, 0
    written = attached.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    text = ids[1:, 2:]
    with torch.no_grad():
        for token in written[1]:
            assert int(model(input_ids=text).logits[0, -1].argmax()) == int(token)
            text = torch.cat([text, token[None, None]], dim=1)
    again = attached.generate(input_ids=text, max_new_tokens=1, num_beams=1, top_p=1.0)  # as greedy as without
    assert torch.equal(again, attached.generate(input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=1))
    with pytest.raises(UserError, match="max_new_tokens"):
        attached.generate(input_ids=text)
    with pytest.raises(UserError, match="top_p cannot be followed"):
        attached.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, top_p=0.5)


def test_nothing_need_be_kept_from_token_to_token() -> None:
    """Of layers of linear attention alone transformers keeps no cache that it could ask for its length."""
    config = transformers.Qwen3NextConfig(
        **MARKS, **WIDTH, num_key_value_heads=2, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention"] * 2,
    )  # fmt: skip
    model = made(config, "language")
    attached = Attached(model, anatomy_of(model))
    ids = drawn(1, 6)
    written = attached.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, pad_token_id=0)
    with torch.no_grad():
        assert int(written[0, 0]) == int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())


def test_prefixes_go_to_keys_that_no_linear_gives_alone() -> None:
    """Zaya mixes queries and keys, so the size of a head is that of what the output projection takes."""
    config = transformers.ZayaConfig(num_hidden_layers=2, vocab_size=99, num_experts=2)
    with torch.device("meta"):
        model = _auto_class(config, "language").from_config(config)
    cores = anatomy_of(model).at("self_attn.core")
    assert {(core.heads, core.head_size) for core in cores} == {(2, 128)}
    assert len(cores) == 2


def test_layers_that_run_again_are_read_where_gradients_flow() -> None:
    """HRM computes all rounds but the last ones without."""
    config = transformers.HrmTextConfig(**MARKS, **WIDTH, num_key_value_heads=2, head_dim=8)
    anatomy = anatomy_of(made(config, "language"))
    assert len(anatomy.at("self_attn.q")) == sum(anatomy.layer_counts.values())
    assert not any(role.startswith("mixer.") for role in anatomy.roles())
    assert not any("no gradient" in note for note in anatomy.notes)


def test_what_a_structure_showed_goes_to_a_file_and_back() -> None:
    model = made(fsmt(), "language")
    family = anatomy_of(model).family
    again = family_of_text(written(family), "a file")
    for fact in ("tokens_first", "masks_without_cache", "attention_interface", "generates", "hidden_size"):
        assert getattr(again, fact) == getattr(family, fact), fact


def test_code_that_computes_no_gradients_in_evaluation_mode_is_asked_and_not_trained() -> None:
    """Reformer's layers are run again on the way back, in training mode and on texts of one length alone; and it draws hashes."""
    config = transformers.ReformerConfig(
        vocab_size=99, pad_token_id=0, eos_token_id=2, hidden_size=32, attention_head_size=8, num_attention_heads=4,
        feed_forward_size=64, attn_layers=["local", "lsh"], axial_pos_shape=[8, 8], axial_pos_embds_dim=[8, 24],
        max_position_embeddings=64, local_attn_chunk_length=4, lsh_attn_chunk_length=4, num_buckets=4, initializer_range=0.5,
    )  # fmt: skip
    model = made(config, "classification")
    anatomy = anatomy_of(model)
    assert any("its code draws random numbers" in note for note in anatomy.notes)
    for method in ("lora", "full", "prompt"):
        with pytest.raises(UserError, match="reformer cannot be trained: no gradient flows back"):
            attach(model, build_method(method))
    attached = attach(model, build_method("head"))  # what reads its states needs no gradient of theirs
    attached(input_ids=drawn(2, 7)).logits.sum().backward()
    assert all(p.grad is not None for p in attached.adapters["default"].trainable().values())
    attached.detach()
    assert anatomy.family.streams == 2  # its last states are two beside each other


def test_attention_that_needs_a_kernel_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'mra' cannot be run here: no token sees another") as error:
        kind_of(transformers.MraConfig(**{**MARKS, **WIDTH}, max_position_embeddings=64))
    assert "anatomy" not in str(error.value.hint)  # a file would not make it run
