"""BERT and RoBERTa (Devlin et al., 2019; Liu et al., 2019): encoders; the norm follows the residual addition."""

from dollartune.backbones.anatomy import Family, Stack, Sublayer

FAMILY = Family(
    model_types=("bert", "roberta", "xlm-roberta", "camembert", "electra"),
    kind="encoder",
    stacks={
        "encoder": Stack(
            layers="encoder.layer",
            roles={
                "self_attn.q": "attention.self.query",
                "self_attn.k": "attention.self.key",
                "self_attn.v": "attention.self.value",
                "self_attn.core": "attention.self",
                "self_attn.o": "attention.output.dense",
                "self_attn": Sublayer("attention.self.query", "attention.output.dense"),
                "norm.self_attn": "attention.output.LayerNorm",
                "mlp.up": "intermediate.dense",
                "mlp.down": "output.dense",
                "mlp": Sublayer("intermediate.dense", "output.dense"),
                "norm.mlp": "output.LayerNorm",
                "layer": "",
            },
        )
    },
    embeddings={"embed.tokens": "embeddings.word_embeddings", "embed.positions": "embeddings.position_embeddings"},
    heads=("classifier", "cls", "lm_head", "qa_outputs"),
    class_token=True,
)
