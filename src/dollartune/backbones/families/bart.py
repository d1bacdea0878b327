"""BART and mBART (Lewis et al., 2020): encoder-decoder, biases everywhere, learned positions."""

from dollartune.backbones.anatomy import Family, RolePath, Stack, Sublayer


def _attention(name: str, role: str) -> dict[str, RolePath]:
    return {
        f"{role}.q": f"{name}.q_proj",
        f"{role}.k": f"{name}.k_proj",
        f"{role}.v": f"{name}.v_proj",
        f"{role}.core": name,
        f"{role}.o": f"{name}.out_proj",
        role: Sublayer(f"{name}.q_proj", f"{name}.out_proj"),
        f"norm.{role}": f"{name}_layer_norm",
    }


_FEED_FORWARD: dict[str, RolePath] = {
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "mlp": Sublayer("fc1", "fc2"),
    "norm.mlp": "final_layer_norm",
    "layer": "",
}

FAMILY = Family(
    model_types=("bart", "mbart", "plbart"),
    kind="encoder_decoder",
    stacks={
        "encoder": Stack("encoder.layers", {**_attention("self_attn", "self_attn"), **_FEED_FORWARD}),
        "decoder": Stack(
            "decoder.layers",
            {**_attention("self_attn", "self_attn"), **_attention("encoder_attn", "cross_attn"), **_FEED_FORWARD},
        ),
    },
    embeddings={
        "embed.tokens": "shared",
        "embed.encoder_positions": "encoder.embed_positions",
        "embed.decoder_positions": "decoder.embed_positions",
    },
    heads=("lm_head", "classification_head", "qa_outputs"),
    hidden_size="d_model",
)
