"""Tiny random models as directories with a tokenizer of whole words, for tests that load what users load."""

from __future__ import annotations

from pathlib import Path

from dollartune.testing.tiny import END, PAD, VOCABULARY, tiny_backbone

WORDS = tuple(f"w{number}" for number in range(VOCABULARY - 9))


def write_tiny(folder: Path, name: str) -> Path:
    """Writes the tiny model of a family (`llama`, `opt/classification` ...) with a tokenizer of `w0 w1 ... yes no`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [*special, "yes", "no", "Answer", ":", ".", *WORDS]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", pad_token=special[PAD], eos_token=special[END], unk_token="<unk>"
    )
    tiny_backbone(name).model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
