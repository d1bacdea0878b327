"""LLaMA and the families that share its names: Mistral, Qwen, Gemma and others. Gated feed-forward, RMSNorm, RoPE."""

from dollartune.backbones.anatomy import Family, GGUFArchitecture, Stack, Sublayer

FAMILY = Family(
    model_types=(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "smollm3",
        "granite",
        "olmo",
        "olmo2",
    ),
    kind="decoder",
    stacks={
        "decoder": Stack(
            layers="layers",
            roles={
                "norm.self_attn": "input_layernorm",
                "self_attn.q": "self_attn.q_proj",
                "self_attn.k": "self_attn.k_proj",
                "self_attn.v": "self_attn.v_proj",
                "self_attn.core": "self_attn",
                "self_attn.o": "self_attn.o_proj",
                "self_attn": Sublayer("self_attn.q_proj", "self_attn.o_proj"),
                "norm.mlp": "post_attention_layernorm",
                "mlp.gate": "mlp.gate_proj",
                "mlp.up": "mlp.up_proj",
                "mlp.down": "mlp.down_proj",
                "mlp": Sublayer("mlp.gate_proj", "mlp.down_proj"),
                "norm.pre_mlp": "pre_feedforward_layernorm",
                "norm.post_mlp": "post_feedforward_layernorm",
                "layer": "",
            },
            # OLMo 2 has no norm before attention; Gemma 2 has two more around its feed-forward
            optional=frozenset({"norm.self_attn", "norm.pre_mlp", "norm.post_mlp"}),
            final_norm="norm",
        )
    },
    embeddings={"embed.tokens": "embed_tokens"},
    heads=("lm_head", "score", "qa_outputs"),
    gguf={
        "llama": GGUFArchitecture("llama", paired_rotation=True),
        # llama.cpp keeps Mistral's weights as LLaMA's
        "mistral": GGUFArchitecture("llama", paired_rotation=True),
        "qwen2": GGUFArchitecture("qwen2", biases=("q_proj", "k_proj", "v_proj")),
        "qwen3": GGUFArchitecture("qwen3"),
    },
)
