"""Tiny random models as directories with a tokenizer of whole words, and a short tokenizer of bytes, for tests that load what
users load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dollartune.backbones.embedded import embedded_path
from dollartune.testing.tiny import END, PAD, VOCABULARY, tiny_backbone

WORDS = tuple(f"w{number}" for number in range(VOCABULARY - 9))

MERGES = 400
"""Of the embedded decoder's 7,899. Readers of some formats take the vocabulary word by word, which is most of their time."""


def short_tokenizer() -> Any:
    """The embedded decoder's tokenizer with its marks, all bytes, and its first merges."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_path("tiny-decoder"))
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    without = len(model["vocab"]) - len(model["merges"])  # each merge makes the next word
    model["merges"] = model["merges"][:MERGES]
    model["vocab"] = {word: number for word, number in model["vocab"].items() if number < without + MERGES}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(whole))
    return tokenizer


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
