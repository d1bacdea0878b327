"""Free generation: greedy text after the prompt, in batches of similar length."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dollartune.attachment.fsdp import without_gradients
from dollartune.backbones.chat import end_tokens
from dollartune.train.batching import by_length
from dollartune.train.encoding import Encoded, collate_prompts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone


@contextmanager
def _greedy(backbone: Backbone) -> Iterator[None]:
    """Greedy decoding by our settings: nothing of what a checkpoint stores (penalties, least lengths, forced tokens, beams).

    The same weights scored rougeL 0.014 or 0.127 by those settings, and the server follows none of them. They are taken off
    the model, since `generate` fills gaps in the settings it is given from there.
    """
    from transformers import GenerationConfig

    model: Any = backbone.model
    stored = getattr(model, "generation_config", None)
    config = model.config
    # What a pass cannot do without: where an encoder-decoder's answer starts, by the config that training reads.
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and stored is not None:
        start = stored.decoder_start_token_id
    begin = getattr(config, "bos_token_id", None)
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, decoder_start_token_id=start, bos_token_id=begin
    )
    try:
        yield
    finally:
        model.generation_config = stored


@without_gradients()
def generate_texts(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int = 32,
    stop_at_newline: bool = False,
) -> list[str]:
    """Greedy continuations, one per prompt, without special tokens and outer white space."""
    tokenizer = backbone.processor
    decoder = backbone.kind == "decoder"
    texts = [""] * len(encoded)
    ends = sorted(end_tokens(backbone))  # as the server ends texts
    for indices in by_length([len(e.prompt) for e in encoded], batch_size):
        rows = [encoded[i] for i in indices]
        # Decoders are padded on the left, so that every row writes its next token at the same place.
        inputs = collate_prompts(rows, tokenizer.pad_token_id or 0, left=decoder, device=backbone.device)
        with _greedy(backbone), attached.routed(adapter, batch_rows=len(rows)):
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
