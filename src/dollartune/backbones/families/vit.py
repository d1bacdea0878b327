"""ViT and DeiT (Dosovitskiy et al., 2021; Touvron et al., 2021): vision transformers over patches."""

from dollartune.backbones.anatomy import Family, Stack, Sublayer

FAMILY = Family(
    model_types=("vit", "deit"),
    kind="vision",
    stacks={
        "encoder": Stack(
            layers="layers",
            roles={
                "norm.self_attn": "layernorm_before",
                "self_attn.q": "attention.q_proj",
                "self_attn.k": "attention.k_proj",
                "self_attn.v": "attention.v_proj",
                "self_attn.core": "attention",
                "self_attn.o": "attention.o_proj",
                "self_attn": Sublayer("attention.q_proj", "attention.o_proj"),
                "norm.mlp": "layernorm_after",
                "mlp.up": "mlp.fc1",
                "mlp.down": "mlp.fc2",
                "mlp": Sublayer("mlp.fc1", "mlp.fc2"),
                "layer": "",
            },
            final_norm="layernorm",
        )
    },
    embeddings={"embed.tokens": "embeddings", "embed.patches": "embeddings.patch_embeddings"},
    heads=("classifier", "cls_classifier"),
    class_token=True,
)
