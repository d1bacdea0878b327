"""What is told of a text as it grows is what its end tells: nothing is sent that a later token changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dollartune.serve.sequence import Sampling, Sequence

PIECES = [
    "\u2581",
    "do",
    "\u2581do",
    "n",
    "'",
    "t",
    "\u2581n",
    "\u2581'",
    "s",
    ".",
    "\u2581.",
    "?",
    "\u2581,",
    "re",
    "STOP",
    "ST",
    "O",
    "P",
]


def pieces(clean: bool) -> Any:
    """As T5's: pieces of words, `\u2581` for a space, and characters written as bytes."""
    vocabulary = [
        ("<unk>", 0.0),
        *((piece, -1.0) for piece in PIECES),
        *((f"<0x{byte:02X}>", -2.0) for byte in range(256)),
    ]
    plain = Tokenizer(models.Unigram(vocabulary, 0, byte_fallback=True))
    plain.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", clean_up_tokenization_spaces=clean)


def told(
    tokenizer: Any, tokens: list[int], stop: tuple[str, ...] = (), streams: bool = True, min_tokens: int = 0
) -> tuple[str, str]:
    """The text of a generation, joined from its pieces, and why it ended."""
    heard: list[str] = []
    reasons: list[str] = []

    def emit(piece: str, reason: str | None) -> None:
        heard.append(piece)
        reasons.extend([reason] if reason else [])

    sampling = Sampling(stop=stop, max_tokens=len(tokens), min_tokens=min_tokens)
    sequence = Sequence(None, (), sampling, emit, tokenizer, 0.0, streams=streams)
    for token in tokens:
        if sequence.finished is None:
            sequence.append(token, frozenset())
    return "".join(heard), reasons[-1]


def ids(tokenizer: Any, *wanted: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(piece) for piece in wanted]


@pytest.mark.parametrize("clean", [True, False])
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*PIECES, *(f"<0x{byte:02X}>" for byte in "€é".encode())]), min_size=1, max_size=12),
    st.sampled_from([(), ("STOP",), ("STOP", "OST"), ("do n",), ("€",), (".", "'s"), ("do.",), ("don't",)]),
)
def test_pieces_are_the_whole(clean: bool, written: list[str], stop: tuple[str, ...]) -> None:
    tokenizer = pieces(clean)
    tokens = ids(tokenizer, *written)
    streamed, whole = told(tokenizer, tokens, stop), told(tokenizer, tokens, stop, streams=False)
    if "\ufffd" not in whole[0]:  # half a character, of which a tokenizer makes other marks once more bytes are there
        assert streamed == whole
    assert not any(text in streamed[0] for text in stop)


def test_a_space_that_a_later_token_takes_away_is_not_sent() -> None:
    tokenizer = pieces(True)
    assert told(tokenizer, ids(tokenizer, "do", "\u2581", ".")) == ("do.", "length")
    assert told(tokenizer, ids(tokenizer, "do", "\u2581n", "'", "t")) == ("don't", "length")


def test_a_stop_text_is_found_across_a_space_that_is_taken_away() -> None:
    tokenizer = pieces(True)
    assert told(tokenizer, ids(tokenizer, "do", "\u2581", "."), ("do.",)) == ("", "stop")
    assert told(tokenizer, ids(tokenizer, "do", "\u2581", "."), (".",), min_tokens=2) == ("do", "stop")


def test_the_beginning_of_a_stop_text_is_held_back_over_tokens() -> None:
    tokenizer = pieces(False)
    assert told(tokenizer, ids(tokenizer, "do", "ST", "O", "P", "do"), ("STOP",)) == ("do", "stop")
    assert told(tokenizer, ids(tokenizer, "do", "ST", "O", "do"), ("STOP",)) == ("doSTOdo", "length")
