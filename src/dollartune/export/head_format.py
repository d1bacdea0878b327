"""A solved probe as matrices that torch and scikit-learn compute with, beside the untouched backbone.

    head.safetensors   weight (classes, width), bias (classes,); of counted tokens keys, idf (n-grams,), words (classes, n-grams)
    head.json          labels, what of the states is pooled, the longest text, the prompt
    README.md          the program that computes with them

A file of scikit-learn's own would be a pickle, which runs whatever a stranger wrote into it; these hold numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.pooling import first_tokens, real_tokens
from dollartune.errors import UserError
from dollartune.export.scoring import adapter_logits, require_equal, sample_inputs
from dollartune.files import drafted, need_empty, write_json
from dollartune.methods.features import MIDDLE, pool
from dollartune.methods.token_counts import NGrams
from dollartune.train.encoding import Encoder

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.edits import Readout

WEIGHTS, CONFIG = "head.safetensors", "head.json"


def head_refusal(adapter: Adapter) -> str | None:
    """Why an adapter is no linear head on the untouched backbone; None where it is."""
    names = ", ".join(method.name for method in adapter.methods)
    if adapter.readout is None:
        return f"{names} changes the backbone or its head, and is no solved probe"
    return f"{names} is not linear in a row's features" if adapter.readout.linear() is None else None


def head_facts(backbone: Backbone, readout: Readout, info: Mapping[str, Any]) -> dict[str, Any]:
    """What a program needs beside the matrices, as `head.json` and the card's example have it."""
    stack = "decoder" if backbone.kind == "decoder" else "encoder"
    task = info.get("task") or {}
    image = backbone.kind == "vision"
    encoder = Encoder(backbone, info.get("max_length"))
    return {
        "labels": list(task.get("label_words") or ()),
        "backbone": info.get("backbone"),
        "kind": backbone.kind,
        "prompt": task.get("prompt"),
        "pooling": list(readout.pooling),
        # Index into transformers' `hidden_states`, whose first are the embeddings.
        "middle": backbone.anatomy.layer_counts[stack] // 2
        if any(MIDDLE in part for part in readout.pooling)
        else None,
        "max_length": None if image else encoder.max_length,
        "image_mode": encoder.image_mode if image else None,
        "first_tokens": readout.most_tokens,
        "counts_tokens": readout.counts_tokens,
    }


@torch.no_grad()
def write_head(folder: Path, backbone: Backbone, adapter: Adapter, info: Mapping[str, Any]) -> list[str]:
    """Writes a probe's matrices, reads them back and compares the scores on transformers' own states.

    Args:
        folder: must not exist yet, or be empty.
        info: what `adapter.json` holds.

    Raises:
        UserError: the adapter is no linear probe, or what was written gives other scores.
    """
    from safetensors.torch import load_file, save_file

    need_empty(folder)
    if (why := head_refusal(adapter)) is not None:
        raise UserError(
            f"{why}: it cannot be written as a head.",
            hint="dollartune predict ADAPTER DATA, or dollartune serve BACKBONE.",
        )
    readout = adapter.readout
    assert readout is not None
    tensors = {name: value.detach().cpu().contiguous() for name, value in (readout.linear() or {}).items()}
    facts = head_facts(backbone, readout, info)
    inputs = sample_inputs(backbone)
    with drafted(folder) as draft:
        save_file(tensors, draft / WEIGHTS)
        write_json(draft / CONFIG, facts)
        again = _scores(backbone, load_file(draft / WEIGHTS), facts, inputs)
        difference = require_equal(again, adapter_logits(backbone, adapter, inputs), backbone.dtype, "the written head")
    return [
        f"wrote {WEIGHTS}, {(folder / WEIGHTS).stat().st_size:,} bytes; scores differ by at most {difference:.1e} read back, on "
        "states that transformers gives."
    ]


def _scores(
    backbone: Backbone, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], inputs: dict[str, Tensor]
) -> Tensor:
    """(rows, classes), by nothing but the files and transformers."""
    given: dict[str, Any] = first_tokens(inputs, facts["first_tokens"])
    given = {name: value for name, value in given.items() if not name.startswith("decoder_")}
    body: Any = backbone.model.base_model
    body = body.get_encoder() if facts["kind"] == "encoder_decoder" else body
    rows = len(next(iter(inputs.values())))
    # Of no width: a head of counted tokens alone reads no states.
    parts = [torch.zeros(rows, 0)]
    if facts["pooling"]:
        output = body(**given, output_hidden_states=facts["middle"] is not None)
        mask = given.get("attention_mask")
        for name in facts["pooling"]:
            states = output.hidden_states[facts["middle"]] if name.endswith(MIDDLE) else output.last_hidden_state
            parts.append(pool(states, mask, (name.removesuffix(MIDDLE),)).cpu())
    scores = torch.cat(parts, dim=-1) @ tensors["weight"].float().mT + tensors["bias"].float()
    if facts["counts_tokens"]:
        ngrams = NGrams(tensors["keys"].numpy(), tensors["idf"].double().numpy())
        counted = ngrams.counted(real_tokens(inputs))
        value = torch.from_numpy(counted.value).float()[:, None]
        scores = scores.index_add(
            0, torch.from_numpy(counted.row), tensors["words"][:, counted.ngram].mT.float() * value
        )
    return scores
