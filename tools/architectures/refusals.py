"""What may be refused on a tiny architecture, and why: a refusal that is not here is a fault, and so is an entry that does
not come about.

Keys are (check, architecture, or kind, or `*`); the value is a piece of the reason that must be given.
"""

from __future__ import annotations

OWN_ATTENTION = "code of its own"
"""Keys and values from elsewhere need transformers' attention interface."""

_PREFIXLESS = (
    "bigbird", "codegen", "deberta", "deberta_v2", "falcon", "gptj", "longformer", "mamba", "megatron_bert", "mpt", "rembert",
    "rwkv", "xglm", "xlnet", "convnext", "resnet", "gpt_neox_japanese", "mamba2", "falcon_grouped", "convbert", "mpnet",
    "nystromformer", "funnel", "led", "bigbird_pegasus", "openai_gpt", "git", "data2vec_vision",
    "roformer", "mvp", "swinv2", "hiera", "fsmt", "perceiver", "ibert", "lilt", "xlm", "xlm_decoder", "cpmant",
)  # fmt: skip
_UNEQUAL = ("deepseek_v3", "minicpm3", "deepseek_v32", "deepseek_v2", "glm4_moe_lite", "longcat_flash")
_NO_PROMPT = {
    "gemma3n_text": "token ids beside",
    "gemma4_text": "token ids beside",
    "embedding_gemma": "finds by token ids",
    "longformer": "embeddings in the place of token ids",
    "convnext": "cannot be told",
    "resnet": "cannot be told",
    "swin": "places of an image's patches",
    "segformer": "places of an image's patches",
    "swinv2": "places of an image's patches",
    "hiera": "cannot be told",
    "mobilenet_v2": "cannot be told",
    "fsmt": "embeddings in the place of token ids",
    "perceiver": "cannot be told",
    "cpmant": "embeddings in the place of token ids",
}
_NO_LINEAR = ("resnet", "mobilenet_v2")
_NO_LAYERS = ("mobilenet_v1", "squeezebert")
_TRAINED = (
    "lora", "lora, all linears", "dora", "adalora", "ia3", "bitfit", "norm", "houlsby", "parallel", "prefix", "prompt", "full",
)  # fmt: skip

REFUSALS: dict[tuple[str, str], str] = {
    **{(method, name): "no list of layers" for method in ("reach", *_TRAINED[:-1]) for name in _NO_LAYERS},
    **{("prefix", name): OWN_ATTENTION for name in _PREFIXLESS if name != "rwkv"},
    **{(method, "rwkv"): "writes over its own states" for method in _TRAINED},
    **{(method, "reformer"): "no gradient flows back" for method in _TRAINED},
    **{(method, "prophetnet"): "sees the tokens that it is to foretell" for method in _TRAINED},
    **{(check, "prophetnet"): "answers of several tokens" for check in ("labels", "few-shot")},
    ("load", "mra"): "a kernel that is not here",
    ("prefix", "mobilenet_v2"): OWN_ATTENTION,
    **{("prefix", name): "differ in size" for name in _UNEQUAL},
    **{("prompt", name): why for name, why in _NO_PROMPT.items()},
    **{(method, name): "linear sites" for method in ("dora", "adalora", "ia3") for name in _NO_LINEAR},
    ("norm", "olmo"): "nothing",
    ("norm", "nanochat"): "nothing",
    ("parallel", "mobilebert"): "changes the width",
    **{("bitfit", name): "nothing" for name in _NO_LINEAR},
    **{(method, name): "nothing" for method in ("houlsby", "parallel") for name in _NO_LINEAR},
}

IDLE: dict[str, tuple[str, ...]] = {
    "gemma3n_text": ("per_layer",),
    "longformer": ("encoder.1.self_attn", "layer.1.attention.self", "encoder.1.other"),
    "clip": ("post_layernorm",),
    "ernie4_5_moe": ("e_score_correction_bias",),
    "esm": ("contact_head",),
    "funnel": ("r_kernel", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"),
    "git": ("image_encoder", "visual_projection"),
    "led": ("_global",),
    "lilt": (
        "layout",
        "encoder.1.self_attn.v_2",
        "encoder.1.self_attn.o_2",
        "encoder.1.other",
        "layer.1.attention.self.layout",
    ),
    "mllama": ("layers.1.", "layers/1/"),
    "phimoe": ("router",),
    "siglip": ("vision_model.head",),
    "xlnet": ("mask_emb", "r_s_bias", "r_r_bias"),
}
"""Tensors that have no part in the result. Gemma 3n adds its inputs by layer in a way that gives them no gradient where there
are two streams; PhiMoE's router and a bias of Ernie's choose, and have no part in what its experts give; of Longformer's last
layer the first place alone is read, which attends by weights of its own; of LiLT's last layer the text alone is read, and not
the layout beside it; image halves have a pooling that classifiers do not
read; XLNet has a mark of masked places."""

KNOWN: dict[tuple[str, str], str] = {}
"""Faults that are not mended: they are printed and not counted as right."""
