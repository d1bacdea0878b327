"""GPT-Neo (Black et al., 2022): decoder-only, separate q/k/v without biases, local and global attention of its own."""

from dollartune.backbones.anatomy import Family, Stack, Sublayer

FAMILY = Family(
    model_types=("gpt_neo",),
    kind="decoder",
    stacks={
        "decoder": Stack(
            layers="h",
            roles={
                "norm.self_attn": "ln_1",
                "self_attn.q": "attn.attention.q_proj",
                "self_attn.k": "attn.attention.k_proj",
                "self_attn.v": "attn.attention.v_proj",
                "self_attn.core": "attn.attention",
                "self_attn.o": "attn.attention.out_proj",
                "self_attn": Sublayer("attn.attention.q_proj", "attn.attention.out_proj"),
                "norm.mlp": "ln_2",
                "mlp.up": "mlp.c_fc",
                "mlp.down": "mlp.c_proj",
                "mlp": Sublayer("mlp.c_fc", "mlp.c_proj"),
                "layer": "",
            },
            final_norm="ln_f",
            beside=lambda first, states: (None,),  # attention weights, unless asked for
        )
    },
    embeddings={"embed.tokens": "wte", "embed.positions": "wpe"},
    heads=("lm_head", "score", "qa_outputs"),
    attention_interface=False,
)
