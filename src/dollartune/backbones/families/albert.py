"""ALBERT (Lan et al., 2020): an encoder whose layers share their weights.

A site is a set of weights, so a model of twelve shared layers has one layer here; what is put on it acts in all twelve.
"""

from dollartune.backbones.anatomy import Family, Stack, Sublayer

FAMILY = Family(
    model_types=("albert",),
    kind="encoder",
    stacks={
        "encoder": Stack(
            layers="encoder.albert_layer_groups.0.albert_layers",
            roles={
                "self_attn.q": "attention.query",
                "self_attn.k": "attention.key",
                "self_attn.v": "attention.value",
                "self_attn.core": "attention",
                "self_attn.o": "attention.dense",
                "self_attn": Sublayer("attention.query", "attention.dense"),
                "norm.self_attn": "attention.LayerNorm",
                "mlp.up": "ffn",
                "mlp.down": "ffn_output",
                "mlp": Sublayer("ffn", "ffn_output"),
                "norm.mlp": "full_layer_layer_norm",
                "layer": "",
            },
            recurrent=True,
        )
    },
    embeddings={"embed.tokens": "embeddings.word_embeddings", "embed.positions": "embeddings.position_embeddings"},
    heads=("classifier", "predictions", "qa_outputs"),
)
