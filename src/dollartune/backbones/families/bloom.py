"""BLOOM (Scao et al., 2022): decoder-only, ALiBi, q/k/v interleaved head by head in one linear.

Attention and feed-forward add the residual inside their own module, so the sublayers end at their last linear.
"""

from dollartune.backbones.anatomy import Family, Part, Stack, Sublayer

FAMILY = Family(
    model_types=("bloom",),
    kind="decoder",
    stacks={
        "decoder": Stack(
            layers="h",
            roles={
                "norm.self_attn": "input_layernorm",
                "self_attn.q": Part("self_attention.query_key_value", 0, 3, "heads"),
                "self_attn.k": Part("self_attention.query_key_value", 1, 3, "heads"),
                "self_attn.v": Part("self_attention.query_key_value", 2, 3, "heads"),
                "self_attn.core": "self_attention",
                "self_attn.o": "self_attention.dense",
                "self_attn": Sublayer("self_attention.query_key_value", "self_attention.dense"),
                "norm.mlp": "post_attention_layernorm",
                "mlp.up": "mlp.dense_h_to_4h",
                "mlp.down": "mlp.dense_4h_to_h",
                "mlp": Sublayer("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
                "layer": "",
            },
            final_norm="ln_f",
            beside=lambda first, states: (None,),  # attention weights, unless asked for
        )
    },
    embeddings={"embed.tokens": "word_embeddings"},
    heads=("lm_head", "score", "qa_outputs"),
    attention_interface=False,
)
