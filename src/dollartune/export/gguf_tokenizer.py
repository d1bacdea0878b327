"""A tokenizer in the words of a GGUF file: byte-level BPE with its merges, or SentencePiece's BPE with a score per piece.

    merges ["h e", "he n"]  ──byte-level──> merges as they are, and the name of the rule that splits text into words
                            ──▁, <0x0A>──>  score of a piece = −(rank of the merge that makes it); the best pair is joined first

Nothing here is taken on trust: what was written is read back, and must cut texts into the same tokens.
Source: the keys as ggml's docs/gguf.md lists them; names of splitting rules as llama.cpp's llama-vocab.cpp knows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dollartune.errors import UserError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""
_SPACE = "▁"

_HARD_TEXTS = (
    "Hello, world! It's a test; isn't it?",
    "1234567 and 3.14, x2",
    "two  spaces,   three\nlines\n\n\tand a tab",
    "naïve café, 北京, Привет, 🙂",
    "def f(x):\n    return x != y  # why",
)
"""Where tokenizers differ: contractions, digits, runs of spaces, bytes of other scripts, code."""


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` holds."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece)."""
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    """Of byte-level BPE."""
    rule: str | None = None
    """Name of the rule that splits a text into words before they are merged, of byte-level BPE."""
    scores: Sequence[float] = ()
    """Of SentencePiece."""
    space_before: bool = False
    """Whether a text gets a space in front."""
    begins: bool = False
    """Whether a text begins with the beginning mark."""
    ends: bool = False


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        size: rows of the embedding, to which the vocabulary is filled up.

    Raises:
        UserError: a kind of tokenizer that a GGUF file cannot hold.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    stored = json.loads(backend.to_str())
    model = stored["model"]
    if model["type"] != "BPE":
        raise _refusal(f"it is of the kind {model['type']}, and a GGUF file holds BPE (byte-level, or SentencePiece's)")
    numbered = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(numbered) >= size:
        raise _refusal(f"it has the token {max(numbered)}, and the embedding only {size} rows")
    tokens = [numbered.get(number, f"[PAD{number}]") for number in range(size)]
    types = _types(tokenizer, tokens, set(numbered), model)
    begins, ends = _marks(tokenizer)
    steps = _steps(stored["pre_tokenizer"], "pretokenizers")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        return Vocabulary(
            "llama", tokens, types, scores=_scores(tokens, merges, model["vocab"]),
            space_before=_space_before(stored["normalizer"], steps), begins=begins, ends=ends,
        )  # fmt: skip
    if stored["normalizer"] is not None and stored["normalizer"]["type"] != "NFC":
        raise _refusal(
            f"it changes texts first ({stored['normalizer']['type']}), which byte-level BPE in GGUF does not"
        )
    if model.get("ignore_merges") and _rule(steps) not in ("llama3",):
        raise _refusal("it takes whole words before merges (ignore_merges) under a rule for which llama.cpp does not")
    return Vocabulary("gpt2", tokens, types, merges, _rule(steps), begins=begins, ends=ends)


def write_vocabulary(writer: Any, tokenizer: Any, vocabulary: Vocabulary, chat_template: str | None) -> None:
    """Adds it to a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.model == "gpt2":
        writer.add_tokenizer_pre(vocabulary.rule)
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space_before)
    for mark in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{mark}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{mark}_token_id")(number)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)
    if chat_template:
        writer.add_chat_template(chat_template)


def require_same_tokens(tokenizer: Any, again: Any, texts: Sequence[str] = ()) -> int:
    """Compares two tokenizers on hard texts, on every token that was added to the vocabulary, and on `texts`.

    Returns:
        The number of texts.

    Raises:
        UserError: one text is other tokens.
    """
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    # Added tokens without a space before (see `swallowed_spaces`) and at the end, and no text that begins with a space: there
    # transformers' reader keeps one space fewer of SentencePiece's than llama.cpp does.
    compared = [text for text in (*_HARD_TEXTS, *(f"a{token}" for token in added), *texts) if not text.startswith(" ")]
    for text in compared:
        before, after = tokenizer(text)["input_ids"], again(text)["input_ids"]
        if before != after:
            raise _refusal(f"{text[:60]!r} is the tokens {before[:12]}, and read back from GGUF {after[:12]}")
    return len(compared)


def swallowed_spaces(tokenizer: Any) -> list[str]:
    """Added tokens that take the space beside them along, which a GGUF file does not say."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.lstrip or token.rstrip]


def _types(tokenizer: Any, tokens: Sequence[str], known: set[int], model: Mapping[str, Any]) -> list[int]:
    added = {number: token.special for number, token in tokenizer.added_tokens_decoder.items()}
    types = []
    for number, token in enumerate(tokens):
        if number not in known:
            types.append(_UNUSED)
        elif model.get("byte_fallback") and token == model.get("unk_token"):
            types.append(_UNKNOWN)
        elif number in added:
            types.append(_CONTROL if added[number] else _USER_DEFINED)
        # Such as <0x41>.
        elif model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            types.append(_BYTE)
        else:
            types.append(_NORMAL)
    return types


def _marks(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets the beginning mark and the end mark: all that a GGUF file can say."""
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for begins in (False, True):
        for ends in (False, True):
            marks = [*([tokenizer.bos_token_id] * begins), *plain, *([tokenizer.eos_token_id] * ends)]
            if marks == whole:
                return begins, ends
    raise _refusal(
        f"it puts other marks around a text than beginning and end: {tokenizer.convert_ids_to_tokens(whole)}"
    )


def _steps(stored: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if stored is None:
        return []
    return list(stored[inner]) if stored["type"] == "Sequence" else [stored]


def _rule(steps: Sequence[Mapping[str, Any]]) -> str:
    """llama.cpp's name of the rule that splits a text into words.

    Raises:
        UserError: none of those that it has.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kinds = [step["type"] for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
            return "smollm"
        pattern = steps[0].get("pattern", {}).get("Regex")
        names = [name for name, split in GGUF_PRE_TOKENIZER_SPLITS.items() if split == pattern]
        if kinds == ["Split", "ByteLevel"] and names:
            return str(names[0])
    raise _refusal(
        f"it splits texts into words by a rule that llama.cpp has no name for ({', '.join(kinds) or 'none'})"
    )


def _scores(tokens: Sequence[str], merges: Sequence[str], vocabulary: Mapping[str, int]) -> list[float]:
    """Score of each piece: joining by score does what joining by merges did, or the tokenizer is refused.

    Raises:
        UserError: the merges are no ranking of pieces.
    """
    from transformers.tokenization_utils_base import generate_merges

    ranks: dict[str, int] = {}
    for pair in merges:
        # A piece that several pairs make has the rank of the first; SentencePiece ranks pieces, not pairs.
        ranks.setdefault(pair.replace(" ", ""), len(ranks))
    # What no merge makes is never chosen between: behind all others.
    scores = {token: -float(ranks.get(token, len(ranks))) for token in vocabulary}
    implied = [" ".join(pair) for pair in generate_merges(vocabulary, {piece: scores[piece] for piece in ranks})]
    # The order among pairs of one piece says nothing: they make the same.
    in_order = [[pair.replace(" ", "") for pair in pairs] for pairs in (implied, merges)]
    if set(implied) != set(merges) or in_order[0] != in_order[1]:
        raise _refusal("its merges are not those of a SentencePiece vocabulary, where each piece has one score")
    return [scores.get(token, -float(len(ranks))) for token in tokens]


def _space_before(normalizer: Mapping[str, Any] | None, steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether SentencePiece puts a space before a text.

    Raises:
        UserError: texts are changed by more than spaces written as ▁.
    """
    before = _steps(normalizer, "normalizers")
    kinds = [step["type"] for step in before]
    spaces = [step for step in before if step["type"] == "Replace"]
    as_spaces = all(step["pattern"] == {"String": " "} and step["content"] == _SPACE for step in spaces)
    if not steps and as_spaces and kinds in (["Prepend", "Replace"], ["Replace"]):
        return bool(kinds[0] == "Prepend")
    if not before and [step["type"] for step in steps] == ["Metaspace"]:
        return bool(steps[0].get("prepend_scheme", "always") != "never")
    raise _refusal("it changes texts by more than spaces written as ▁, which llama.cpp's SentencePiece does not")


def _refusal(why: str) -> UserError:
    return UserError(
        f"this tokenizer cannot be written into a GGUF file: {why}.",
        hint="Export with --format merged: transformers and vLLM read the tokenizer as it is.",
    )
