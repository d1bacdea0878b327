"""OPT (Zhang et al., 2022): decoder-only, separate q/k/v with biases, ReLU feed-forward."""

from dollartune.backbones.anatomy import Family, Stack, Sublayer

FAMILY = Family(
    model_types=("opt",),
    kind="decoder",
    stacks={
        "decoder": Stack(
            layers="decoder.layers",
            roles={
                "norm.self_attn": "self_attn_layer_norm",
                "self_attn.q": "self_attn.q_proj",
                "self_attn.k": "self_attn.k_proj",
                "self_attn.v": "self_attn.v_proj",
                "self_attn.core": "self_attn",
                "self_attn.o": "self_attn.out_proj",
                "self_attn": Sublayer("self_attn.q_proj", "self_attn.out_proj"),
                "norm.mlp": "final_layer_norm",
                "mlp.up": "fc1",
                "mlp.down": "fc2",
                "mlp": Sublayer("fc1", "fc2"),
                "layer": "",
            },
            final_norm="decoder.final_layer_norm",
        )
    },
    embeddings={"embed.tokens": "decoder.embed_tokens", "embed.positions": "decoder.embed_positions"},
    heads=("lm_head", "score", "qa_outputs"),
)
