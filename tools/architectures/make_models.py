"""Tiny random models of many architectures, one folder each, with a tokenizer or an image processor.

    python tools/architectures/make_models.py OUT [NAME ...]

Without names all are made (a second each, some 100 MB in all). The tokenizer is made here too: a vocabulary of words.
What kind each one is stands beside it, so that a check of kinds has something to hold against.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

VOCABULARY = 512
MARKS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTH: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MIXED = ["sliding_attention", "full_attention"]


BOTH_WAYS = ("XLNetConfig", "CpmAntConfig")
"""Encoders, though their class for language is called causal: in CPM-Ant's every token sees every other."""
Kind = Literal["decoder", "encoder", "encoder_decoder", "vision"]


@dataclass(frozen=True)
class Recipe:
    """What a tiny model is made of."""

    config: str
    """Configuration class of transformers."""
    settings: dict[str, Any]
    auto: str = "AutoModelForCausalLM"
    drawn: tuple[str, ...] = ()
    """Tensors that the family begins with zeros, through which nothing flows, and that are drawn at random here."""

    @property
    def kind(self) -> Kind:
        """What it is, known from its papers and not from its classes."""
        kinds: dict[str, Kind] = {
            "AutoModelForMaskedLM": "encoder",
            "AutoModelForSequenceClassification": "encoder",
            "AutoModelForSeq2SeqLM": "encoder_decoder",
            "AutoModelForImageClassification": "vision",
        }
        both_ways = self.config in BOTH_WAYS or self.settings.get("use_bidirectional_attention")
        return "encoder" if both_ways else kinds.get(self.auto, "decoder")

    def model(self) -> Any:
        config = getattr(transformers, self.config)(**self.settings)
        model = getattr(transformers, self.auto).from_config(config)
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in self.drawn:
                nn.init.normal_(parameter)
        return model


def decoder(config: str, *without: str, **more: Any) -> Recipe:
    """A decoder whose settings are called as llama's are."""
    usual = {**MARKS, **WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15}
    return Recipe(config, {k: v for k, v in {**usual, **more}.items() if k not in without})


def long_decoder(config: str, **more: Any) -> Recipe:
    """A wider one for prompts of real length."""
    return decoder(config, **{"hidden_size": 64, "max_position_embeddings": 4096, **more})


def older(config: str, **more: Any) -> Recipe:
    """A decoder whose settings are called as gpt2's are."""
    return Recipe(config, {**MARKS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **more})


def plain(config: str, **more: Any) -> Recipe:
    """A decoder with names of its own."""
    return Recipe(config, {**MARKS, **more})


def encoder(config: str, **more: Any) -> Recipe:
    usual = {
        **WIDTH,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
    }
    return Recipe(config, {**usual, **more}, "AutoModelForMaskedLM")


def two_stacks(config: str, *without: str, **more: Any) -> Recipe:
    """An encoder-decoder whose settings are called as bart's are."""
    usual = {
        **MARKS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 256,
        "decoder_start_token_id": 2, "init_std": 0.15,
    }  # fmt: skip
    return Recipe(config, {k: v for k, v in {**usual, **more}.items() if k not in without}, "AutoModelForSeq2SeqLM")


def t5_like(config: str, **more: Any) -> Recipe:
    usual = {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    return Recipe(config, {**usual, **more}, "AutoModelForSeq2SeqLM")


def vision(config: str, **settings: Any) -> Recipe:
    return Recipe(config, settings, "AutoModelForImageClassification")


PICTURE = {**WIDTH, "image_size": 32, "patch_size": 8}
SMALL_TEXT = {**WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
GEMMA_STACK = {**MARKS, **WIDTH, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
               "query_pre_attn_scalar": 8, "sliding_window": 16, "initializer_range": 0.15}  # fmt: skip
BY_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0}

MAMBA = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LATENT = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1, "n_group": 1,
           "topk_group": 1}  # fmt: skip

XLM = {"vocab_size": VOCABULARY, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256, "init_std": 0.15,
       "embed_init_std": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
REFORMER = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2, "hidden_size": 32, "attention_head_size": 8,
    "num_attention_heads": 4, "feed_forward_size": 64, "attn_layers": ["local", "lsh"], "axial_pos_shape": [16, 16],
    "axial_pos_embds_dim": [8, 24], "max_position_embeddings": 256, "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8, "num_buckets": 4, "hash_seed": 0, "initializer_range": 0.15,
}  # fmt: skip

RECIPES: dict[str, Recipe] = {
    # decoders with a file of their own in backbones/families
    "llama": decoder("LlamaConfig"),
    "mistral_sliding": decoder("MistralConfig", sliding_window=8),
    "qwen2": decoder("Qwen2Config"),
    "qwen3": decoder("Qwen3Config", head_dim=16),
    "gemma": decoder("GemmaConfig", head_dim=16),
    "gemma2": decoder("Gemma2Config", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3_text": decoder("Gemma3TextConfig", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "granite": decoder("GraniteConfig"),
    "smollm3": decoder("SmolLM3Config"),
    "olmo": decoder("OlmoConfig"),
    "olmo2": decoder("Olmo2Config"),
    "gpt2": older("GPT2Config", initializer_range=0.15),
    "bloom": plain("BloomConfig", hidden_size=32, n_layer=2, n_head=4),
    "opt": plain(
        "OPTConfig", hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=32,
    ),
    "gpt_neo": plain(
        "GPTNeoConfig", hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=8, max_position_embeddings=256,
    ),
    # windows of real size, for prompts longer than them
    "mistral_128": long_decoder("MistralConfig", sliding_window=128, num_hidden_layers=4),
    "gemma3_256": long_decoder(
        "Gemma3TextConfig", head_dim=16, query_pre_attn_scalar=16, sliding_window=256, num_hidden_layers=3
    ),
    "gpt_neo_256": plain(
        "GPTNeoConfig", hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=256, max_position_embeddings=2048, initializer_range=0.15,
    ),
    "gpt_oss_128": long_decoder(
        "GptOssConfig", head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=128, layer_types=MIXED
    ),
    # decoders without one
    "gpt_oss": decoder(
        "GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, layer_types=MIXED
    ),
    "olmo3": decoder("Olmo3Config", sliding_window=8, layer_types=MIXED),
    "mixtral": decoder("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": decoder(
        "Qwen2MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "qwen3_moe": decoder(
        "Qwen3MoeConfig", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        decoder_sparse_step=1,
    ),
    "olmoe": decoder("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "gpt_neox": decoder("GPTNeoXConfig", "num_key_value_heads"),
    "gptj": older("GPTJConfig", rotary_dim=4, initializer_range=0.15),
    "codegen": older("CodeGenConfig", rotary_dim=4, initializer_range=0.15),
    "gpt_bigcode": older("GPTBigCodeConfig"),
    "mpt": plain("MptConfig", d_model=32, n_layers=2, n_heads=4, max_seq_len=256, expansion_ratio=2),
    "falcon": decoder(
        "FalconConfig", "num_key_value_heads", "intermediate_size", multi_query=True, new_decoder_architecture=False,
        parallel_attn=True,
    ),
    "phi": decoder("PhiConfig"),
    "phi3": decoder("Phi3Config"),
    "glm4": decoder("Glm4Config", head_dim=8),
    "stablelm": decoder("StableLmConfig"),
    "starcoder2": decoder("Starcoder2Config"),
    "cohere": decoder("CohereConfig"),
    "nemotron": decoder("NemotronConfig"),
    "xglm": plain(
        "XGLMConfig", d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=256
    ),
    "deepseek_v3": decoder(
        "DeepseekV3Config", num_key_value_heads=4, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=32, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=1, n_shared_experts=1,
    ),
    "glm4_moe": decoder(
        "Glm4MoeConfig", head_dim=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1,
        topk_group=1, first_k_dense_replace=1, n_shared_experts=1,
    ),
    "gemma3n_text": decoder(
        "Gemma3nTextConfig", **BY_LAYER, head_dim=8, sliding_window=8, layer_types=MIXED, laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=2,
    ),
    "mamba": plain("MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=8),
    "rwkv": Recipe(
        "RwkvConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2,
            "intermediate_size": 64, "context_length": 256, "bos_token_id": 1, "eos_token_id": 2,
        },
    ),
    "lfm2": decoder("Lfm2Config", layer_types=["conv", "full_attention"]),
    # text inside a configuration with pictures
    "gemma3_with_pictures": Recipe(
        "Gemma3Config",
        {
            "text_config": {
                **MARKS, **WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16,
                "sliding_window": 8,
            },
            "vision_config": {**PICTURE, "num_hidden_layers": 1},
            "mm_tokens_per_image": 4,
        },
        "AutoModelForImageTextToText",
    ),
    # encoders
    "bert": encoder("BertConfig"),
    "roberta": encoder("RobertaConfig", pad_token_id=1),
    "electra": encoder("ElectraConfig", embedding_size=16),
    "albert": encoder("AlbertConfig", embedding_size=16),
    "distilbert": Recipe(
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
            "max_position_embeddings": 256, "pad_token_id": 0,
        },
        "AutoModelForMaskedLM",
    ),
    "modernbert": encoder(
        "ModernBertConfig", global_attn_every_n_layers=2, local_attention=16, cls_token_id=1, sep_token_id=2,
        bos_token_id=1, eos_token_id=2,
    ),
    "deberta": encoder("DebertaConfig", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "deberta_v2": encoder(
        "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=32,
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
    ),
    "longformer": encoder("LongformerConfig", attention_window=16, pad_token_id=1),
    "bigbird": encoder("BigBirdConfig", attention_type="original_full"),
    "rembert": encoder("RemBertConfig", input_embedding_size=16, output_embedding_size=16),
    "ernie": encoder("ErnieConfig"),
    "megatron_bert": encoder("MegatronBertConfig"),
    "xlm_roberta_xl": encoder("XLMRobertaXLConfig", pad_token_id=1),
    "data2vec_text": encoder("Data2VecTextConfig", pad_token_id=1),
    "xlnet": Recipe("XLNetConfig", {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    # encoder-decoders
    "bart": two_stacks("BartConfig"),
    "mbart": two_stacks("MBartConfig"),
    "pegasus": two_stacks("PegasusConfig"),
    "m2m_100": two_stacks("M2M100Config"),
    "blenderbot": two_stacks("BlenderbotConfig"),
    "t5": t5_like("T5Config"),
    "umt5": t5_like("UMT5Config"),
    "mt5": t5_like("MT5Config"),
    "blenderbot_small": two_stacks("BlenderbotSmallConfig"),
    "nllb_moe": two_stacks("NllbMoeConfig", num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2),
    "longt5": t5_like("LongT5Config", local_radius=8),
    # vision
    "vit": vision("ViTConfig", **PICTURE, num_labels=3),
    "beit": vision("BeitConfig", **PICTURE, num_labels=3),
    "convnext": vision(
        "ConvNextConfig", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_labels=3, image_size=32,
        layer_scale_init_value=0.5,
    ),
    "resnet": vision("ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3),
    "clip": vision("CLIPConfig", text_config=SMALL_TEXT, vision_config=PICTURE, projection_dim=32),
    # of our own, beside those: relatives that differ in one thing each
    "gpt_neox_japanese": decoder("GPTNeoXJapaneseConfig", "num_key_value_heads", intermediate_multiple_size=2),
    "biogpt": decoder("BioGptConfig", "num_key_value_heads"),
    "persimmon": decoder("PersimmonConfig", "num_key_value_heads"),
    "dbrx": plain(
        "DbrxConfig", d_model=32, n_heads=4, n_layers=2, max_seq_len=256,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "jamba": decoder(
        "JambaConfig", num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "mamba2": plain(
        "Mamba2Config", hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2,
    ),
    "falcon_grouped": decoder(
        "FalconConfig", "num_key_value_heads", "intermediate_size", new_decoder_architecture=True, num_kv_heads=2,
    ),
    "minicpm3": decoder(
        "MiniCPM3Config", num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4,
    ),
    "helium": decoder("HeliumConfig", head_dim=8),
    "exaone4": decoder("Exaone4Config", sliding_window=8, layer_types=MIXED),
    "granitemoe": decoder("GraniteMoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "camembert": encoder("CamembertConfig", pad_token_id=1),
    "convbert": encoder("ConvBertConfig", embedding_size=32),
    "mobilebert": encoder("MobileBertConfig", embedding_size=32, true_hidden_size=16, intra_bottleneck_size=16),
    "mpnet": encoder("MPNetConfig", pad_token_id=1),
    "nystromformer": encoder("NystromformerConfig"),
    "funnel": Recipe(
        "FunnelConfig",
        {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
        "AutoModelForMaskedLM",
    ),
    "marian": two_stacks("MarianConfig"),
    "led": two_stacks("LEDConfig", "max_position_embeddings", attention_window=16, max_encoder_position_embeddings=256,
                      max_decoder_position_embeddings=256),
    "dinov2": vision("Dinov2Config", **PICTURE, mlp_ratio=2, num_labels=3),
    "swin": vision(
        "SwinConfig", image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4,
        num_labels=3,
    ),
    "siglip": vision("SiglipConfig", text_config=SMALL_TEXT, vision_config=PICTURE, num_labels=3),
    "mobilenet_v2": vision(
        "MobileNetV2Config", image_size=32, depth_multiplier=0.25, num_labels=3, initializer_range=0.3
    ),
    # found by trying every entry of transformers' mappings: what had been read wrongly, or not at all
    "gemma4_text": decoder(
        "Gemma4TextConfig", head_dim=8, global_head_dim=16, sliding_window=8, layer_types=MIXED, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
    ),
    "gemma4_moe": decoder(
        "Gemma4TextConfig", head_dim=8, global_head_dim=16, sliding_window=8, layer_types=MIXED, hidden_size_per_layer_input=0,
        attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=4, top_k_experts=2,
        moe_intermediate_size=16,
    ),
    "embedding_gemma": Recipe(
        "Gemma3TextConfig",
        {**MARKS, **WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16, "sliding_window": 8,
         "query_pre_attn_scalar": 16, "use_bidirectional_attention": True, "initializer_range": 0.15},
    ),
    "llama4_text": decoder(
        "Llama4TextConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=64,
        attention_chunk_size=16, interleave_moe_layer_step=2,
    ),
    "afmoe": decoder(
        "AfmoeConfig", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_dense_layers=1,
        num_shared_experts=1, sliding_window=8, layer_types=MIXED,
    ),
    "jetmoe": decoder("JetMoeConfig", kv_channels=8, num_local_experts=4, num_experts_per_tok=2),
    "diffllama": decoder("DiffLlamaConfig"),
    "ernie4_5": decoder("Ernie4_5Config", head_dim=8),
    "hunyuan_v1_dense": decoder("HunYuanDenseV1Config", head_dim=8),
    "lfm2_moe": decoder(
        "Lfm2MoeConfig", layer_types=["conv", "full_attention"], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        num_dense_layers=1,
    ),
    "seed_oss": decoder("SeedOssConfig", head_dim=8),
    "esm": encoder("EsmConfig", mask_token_id=3, position_embedding_type="rotary"),
    # found by the next walk through them: what stopped with a traceback, or was read wrongly
    "glm": decoder("GlmConfig", head_dim=8, eos_token_id=[2, 5, 6]),
    "deepseek_v32": decoder(
        "DeepseekV32Config", num_key_value_heads=4, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=1, n_shared_experts=1, index_n_heads=16, index_head_dim=8, index_topk=16,
    ),
    "phimoe": decoder("PhimoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_next": decoder(
        "Qwen3NextConfig", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
    "ctrl": older("CTRLConfig", dff=64, initializer_range=0.15),
    "openai_gpt": older("OpenAIGPTConfig", initializer_range=0.15),
    "git": Recipe("GitConfig", {**MARKS, **WIDTH, "max_position_embeddings": 256, "initializer_range": 0.15,
                                "vision_config": {**PICTURE, "num_hidden_layers": 1}}),
    "t5gemma": Recipe(
        "T5GemmaConfig",
        {
            "vocab_size": VOCABULARY,
            "encoder": GEMMA_STACK,
            "decoder": GEMMA_STACK,
        },
        "AutoModelForSeq2SeqLM",
    ),
    "switch_transformers": t5_like("SwitchTransformersConfig", num_experts=4, num_sparse_encoder_layers=1,
                                   num_sparse_decoder_layers=1, num_decoder_layers=2),
    "bigbird_pegasus": two_stacks("BigBirdPegasusConfig", attention_type="original_full"),
    "squeezebert": encoder("SqueezeBertConfig", embedding_size=32),
    "eurobert": encoder("EuroBertConfig", num_key_value_heads=2),
    "mllama": Recipe(
        "MllamaConfig",
        {
            "text_config": {**MARKS, **WIDTH, "num_hidden_layers": 3, "num_key_value_heads": 2, "max_position_embeddings": 256,
                            "cross_attention_layers": [1], "initializer_range": 0.15},
            "vision_config": {**PICTURE, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 4,
                              "vision_output_dim": 64, "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        },
        "AutoModelForImageTextToText",
    ),
    "segformer": vision("SegformerConfig", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4],
                        sr_ratios=[2, 2, 1, 1], decoder_hidden_size=16, image_size=64, num_labels=3),
    "data2vec_vision": vision("Data2VecVisionConfig", **PICTURE, num_labels=3),
    "mobilenet_v1": vision(
        "MobileNetV1Config", image_size=32, depth_multiplier=0.25, num_labels=3, initializer_range=0.3
    ),
    "qwen2_vl": Recipe(
        "Qwen2VLConfig",
        {
            "text_config": {**MARKS, **WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 256,
                            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 8},
        },
        "AutoModelForImageTextToText",
    ),
    # tried afterwards: attention with windows and without places, linear attention, experts of every kind, no padding token,
    # one head of keys with a size of its own, and text parts of models that read pictures
    "cohere2": decoder("Cohere2Config", "pad_token_id", sliding_window=8, layer_types=MIXED, head_dim=24),
    "nanochat": decoder("NanoChatConfig", head_dim=8),
    "apertus": decoder("ApertusConfig"),
    "arcee": decoder("ArceeConfig", "pad_token_id", hidden_size=36, num_attention_heads=3, num_key_value_heads=1, head_dim=20,
                     tie_word_embeddings=True),
    "modernbert_decoder": decoder("ModernBertDecoderConfig", cls_token_id=1, sep_token_id=2, local_attention=8,
                                  global_attn_every_n_layers=2),
    "falcon_h1": decoder("FalconH1Config", **MAMBA, mamba_d_ssm=32, mamba_n_heads=4),
    "bamba": decoder("BambaConfig", **MAMBA, mamba_n_heads=8, attn_layer_indices=[1]),
    "granitemoehybrid": decoder("GraniteMoeHybridConfig", **MAMBA, mamba_n_heads=8, num_local_experts=4, num_experts_per_tok=2,
                                shared_intermediate_size=32, layer_types=["mamba", "attention"]),
    "qwen3_5_text": decoder("Qwen3_5TextConfig", head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
                            linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"]),
    "minimax": decoder("MiniMaxConfig", num_local_experts=4, block_size=8, head_dim=8,
                       layer_types=["linear_attention", "full_attention"]),
    "ernie4_5_moe": decoder("Ernie4_5_MoeConfig", moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_num_shared_experts=1,
                            moe_layer_start_index=1),
    "deepseek_v2": decoder("DeepseekV2Config", **LATENT, **EXPERTS, first_k_dense_replace=1, q_lora_rank=None),
    "glm4_moe_lite": decoder("Glm4MoeLiteConfig", **LATENT, **EXPERTS, q_lora_rank=8, mlp_layer_types=["dense", "sparse"]),
    "longcat_flash": decoder("LongcatFlashConfig", "num_hidden_layers", "intermediate_size", **LATENT, q_lora_rank=8,
                             num_layers=2, n_routed_experts=4, moe_topk=2, zero_expert_num=2, expert_ffn_hidden_size=16,
                             ffn_hidden_size=64, head_dim=4),
    "dots1": decoder("Dots1Config", "pad_token_id", **EXPERTS, first_k_dense_replace=1, head_dim=24, layer_types=MIXED,
                     sliding_window=8),
    "flex_olmo": decoder("FlexOlmoConfig", num_experts=4, num_experts_per_tok=2),
    "vaultgemma": decoder("VaultGemmaConfig", head_dim=12, query_pre_attn_scalar=12, sliding_window=8, layer_types=MIXED),
    "bitnet": decoder("BitNetConfig"),
    "roformer": encoder("RoFormerConfig", embedding_size=16),
    "nomic_bert": encoder("NomicBertConfig"),
    "xmod": encoder("XmodConfig", default_language="en_XX"),
    "plbart": two_stacks("PLBartConfig"),
    "mvp": two_stacks("MvpConfig"),
    "pegasus_x": two_stacks("PegasusXConfig", block_size=8, num_global_tokens=4),
    "swinv2": vision("Swinv2Config", embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, image_size=32, patch_size=4),
    "hiera": vision("HieraConfig", embed_dim=8, image_size=[32, 32], patch_size=[7, 7], patch_stride=[4, 4],
                    patch_padding=[3, 3], depths=[1, 1], num_heads=[1, 2], masked_unit_size=[4, 4], query_stride=[2, 2],
                    num_query_pool=1),
    "kosmos2": Recipe(
        "Kosmos2Config",
        {
            "text_config": {**MARKS, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4,
                            "max_position_embeddings": 256},
            "vision_config": PICTURE, "latent_query_num": 4,
        },
        "AutoModelForImageTextToText",
    ),
    "llava": Recipe(
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **MARKS, **WIDTH},
            "vision_config": {"model_type": "clip_vision_model", **PICTURE}, "image_token_index": 9,
        },
        "AutoModelForImageTextToText",
    ),
    "blip2": Recipe(
        "Blip2Config",
        {
            "text_config": {"model_type": "opt", **MARKS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                            "ffn_dim": 64, "word_embed_proj_dim": 32},
            "vision_config": PICTURE, "qformer_config": {**WIDTH, "encoder_hidden_size": 32}, "num_query_tokens": 4,
        },
        "AutoModelForImageTextToText",
    ),
    "idefics3": Recipe(
        "Idefics3Config",
        {"text_config": {"model_type": "llama", **MARKS, **WIDTH}, "vision_config": PICTURE},
        "AutoModelForImageTextToText",
    ),
    # what had been refused or read wrongly for what their code does: tokens before rows and a vocabulary for each language,
    # several futures, latents, linears of a class of their own, states in pairs, a mask behind the text, mixed keys, hashes
    "fsmt": two_stacks("FSMTConfig", "vocab_size", src_vocab_size=VOCABULARY, tgt_vocab_size=400),
    "prophetnet": Recipe(
        "ProphetNetConfig",
        {
            **MARKS, "hidden_size": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_encoder_layers": 2,
            "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
            "max_position_embeddings": 256, "init_std": 0.15, "decoder_start_token_id": 2,
        },
        "AutoModelForSeq2SeqLM",
    ),
    "perceiver": Recipe(
        "PerceiverConfig",
        {
            "vocab_size": VOCABULARY, "num_latents": 8, "d_latents": 32, "d_model": 24, "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 16, "v_channels": 32,
            "max_position_embeddings": 256, "initializer_range": 0.15,
        },
        "AutoModelForMaskedLM",
    ),
    "ibert": encoder("IBertConfig", pad_token_id=1),
    "lilt": Recipe(
        "LiltConfig",
        {**WIDTH, "vocab_size": VOCABULARY, "hidden_size": 48, "channel_shrink_ratio": 2, "max_position_embeddings": 256,
         "initializer_range": 0.15},
        "AutoModelForSequenceClassification",
    ),
    "xlm": Recipe("XLMConfig", XLM, "AutoModelForMaskedLM"),
    "xlm_decoder": Recipe("XLMConfig", {**XLM, "causal": True}),
    "cpmant": Recipe(
        "CpmAntConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64,
            "num_hidden_layers": 2, "prompt_length": 4, "prompt_types": 4, "segment_types": 4, "init_std": 0.15,
        },
    ),
    "zaya": Recipe(
        "ZayaConfig",
        {
            **MARKS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "initializer_range": 0.15, "head_dim": 8, "num_experts": 4,
            "num_experts_per_tok": 1, "moe_intermediate_size": 16, "router_hidden_size": 16,
        },
        drawn=("temp",),
    ),
    "reformer": Recipe("ReformerConfig", REFORMER, "AutoModelForMaskedLM"),
    "mra": encoder("MraConfig", pad_token_id=1),
}  # fmt: skip


def make(recipe: Recipe, folder: Path) -> Any:
    """Writes the model and what prepares its inputs."""
    if folder.exists():
        shutil.rmtree(folder)
    torch.manual_seed(0)
    model = recipe.model()
    model.save_pretrained(folder)
    if recipe.kind == "vision":
        transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        return model
    pad = getattr(model.config, "pad_token_id", None)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad if isinstance(pad, int) else 0)
    positions = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = positions if isinstance(positions, int) else 256
    tokenizer.save_pretrained(folder)
    return model


def word_tokenizer() -> Any:
    """512 tokens: marks at 0 to 3, letters, and numbered words; what it does not know is an unknown mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    marks = ["<unk>", "<s>", "</s>", "<mask>"]
    letters = [chr(code) for code in range(33, 127)]
    words = [*marks, *letters, *(f"w{number}" for number in range(VOCABULARY - len(marks) - len(letters)))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )


def main(recipes: dict[str, Recipe] = RECIPES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all; " + " ".join(recipes))
    given = parser.parse_intermixed_args()
    if unknown := [name for name in given.names if name not in recipes]:
        parser.error(f"unknown: {' '.join(unknown)}")
    failed = 0
    for name in given.names or recipes:
        try:
            model = make(recipes[name], given.out / name)
            print(f"{name:22s} {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")
        except Exception as error:  # an older transformers lacks the newest classes
            failed += 1
            print(f"{name:22s} not made: {type(error).__name__}: {error}"[:200])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
