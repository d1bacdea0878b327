"""Free generation: greedy text after the prompt, in batches of similar length."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from dollartune.attachment.exact_head import exact_likeliest
from dollartune.attachment.fsdp import without_gradients
from dollartune.backbones.chat import end_tokens
from dollartune.evaluate.fp32_passes import in_fp32, rounds
from dollartune.train.batching import by_length
from dollartune.train.encoding import Encoded, collate_prompts
from dollartune.train.micro_batch import forward_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone


def generate_texts(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int = 32,
    stop_at_newline: bool = False,
) -> list[str]:
    """Greedy continuations, one per prompt, without special tokens and outer white space.

    Of a backbone in half precision on a processor they are written in fp32: each token decides what follows, and where two are
    nearly as likely the rows beside would decide which. GPUs, where fp32 takes ten times as long, write in half precision.
    """
    precise = backbone.device.type == "cpu" and rounds(attached)
    with in_fp32(attached) if precise else nullcontext():
        return _texts(backbone, attached, adapter, encoded, max_new_tokens, batch_size, stop_at_newline)


@without_gradients()
def _texts(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int,
    stop_at_newline: bool,
) -> list[str]:
    tokenizer = backbone.processor
    decoder = backbone.kind == "decoder"
    texts = [""] * len(encoded)
    ends = sorted(end_tokens(backbone))  # as the server ends texts
    if "training" in backbone.anatomy.family.refusals:
        batch_size = 1  # code that writes over its own states (RWKV) mixes those of a batch's rows
    # what rows may grow to: memory has to last until their texts end
    lengths = [len(e.prompt) + max_new_tokens for e in encoded]
    for indices in by_length(lengths, batch_size, most_tokens=forward_tokens(backbone)):
        rows = [encoded[i] for i in indices]
        # Decoders are padded on the left, so that every row writes its next token at the same place.
        inputs = collate_prompts(rows, tokenizer.pad_token_id or 0, left=decoder, device=backbone.device)
        with attached.routed(adapter, batch_rows=len(rows)), exact_likeliest(attached):
            tokens = attached.generate(
                **inputs,
                eos_token_id=ends or None,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        for index, text in zip(indices, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            text = text.strip()
            texts[index] = text.split("\n", 1)[0].strip() if stop_at_newline else text
    return texts
