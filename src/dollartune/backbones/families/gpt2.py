"""GPT-2 (Radford et al., 2019): decoder-only; q, k and v are blocks of one Conv1D whose weight is (in, out)."""

from dollartune.backbones.anatomy import Family, Part, Stack, Sublayer

FAMILY = Family(
    model_types=("gpt2",),
    kind="decoder",
    stacks={
        "decoder": Stack(
            layers="h",
            roles={
                "norm.self_attn": "ln_1",
                "self_attn.q": Part("attn.c_attn", 0, 3),
                "self_attn.k": Part("attn.c_attn", 1, 3),
                "self_attn.v": Part("attn.c_attn", 2, 3),
                "self_attn.core": "attn",
                "self_attn.o": "attn.c_proj",
                "self_attn": Sublayer("attn.c_attn", "attn.c_proj"),
                "norm.mlp": "ln_2",
                "mlp.up": "mlp.c_fc",
                "mlp.down": "mlp.c_proj",
                "mlp": Sublayer("mlp.c_fc", "mlp.c_proj"),
                "layer": "",
            },
            final_norm="ln_f",
        )
    },
    embeddings={"embed.tokens": "wte", "embed.positions": "wpe"},
    heads=("lm_head", "score", "qa_outputs"),
)
