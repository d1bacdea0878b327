"""T5, T5 v1.1, FLAN-T5, mT5 and mT0 (Raffel et al., 2020): encoder-decoder, no biases, relative positions.

The gated feed-forward is gelu(wi_0 x) * (wi_1 x): wi_0 is the gate and wi_1 the up projection, as in LLaMA's naming;
the original ungated T5 has `wi` alone.
"""

from typing import Any

from torch import Tensor

from dollartune.backbones.anatomy import Family, RolePath, Stack, Sublayer


def _position_bias(first: Any, states: Tensor) -> tuple[Any, None]:
    """The first layer computes the distances' bias for all; cross-attentions have none."""
    tokens = states.shape[1]
    return first.layer[0].SelfAttention.compute_bias(tokens, tokens, device=states.device), None


def _attention(index: int, name: str, role: str) -> dict[str, RolePath]:
    path = f"layer.{index}.{name}"
    return {
        f"norm.{role}": f"layer.{index}.layer_norm",
        f"{role}.q": f"{path}.q",
        f"{role}.k": f"{path}.k",
        f"{role}.v": f"{path}.v",
        f"{role}.core": path,
        f"{role}.o": f"{path}.o",
        role: Sublayer(f"{path}.q", f"{path}.o"),
    }


def _feed_forward(index: int) -> dict[str, RolePath]:
    path = f"layer.{index}.DenseReluDense"
    return {
        "norm.mlp": f"layer.{index}.layer_norm",
        "mlp.gate": f"{path}.wi_0",
        "mlp.up": f"{path}.wi_1|{path}.wi",
        "mlp.down": f"{path}.wo",
        # from the module on, as its first linear is wi or wi_0
        "mlp": Sublayer(path, f"{path}.wo"),
        "layer": "",
    }


_OPTIONAL = frozenset({"mlp.gate"})

FAMILY = Family(
    model_types=("t5", "mt5"),
    kind="encoder_decoder",
    stacks={
        "encoder": Stack(
            "encoder.block",
            {**_attention(0, "SelfAttention", "self_attn"), **_feed_forward(1)},
            _OPTIONAL,
            "encoder.final_layer_norm",
            _position_bias,
        ),
        "decoder": Stack(
            "decoder.block",
            {
                **_attention(0, "SelfAttention", "self_attn"),
                **_attention(1, "EncDecAttention", "cross_attn"),
                **_feed_forward(2),
            },
            _OPTIONAL,
            "decoder.final_layer_norm",
            _position_bias,
        ),
    },
    embeddings={"embed.tokens": "shared"},
    heads=("lm_head", "classification_head"),
    hidden_size="d_model",
)
