"""Held-out perplexity and masked accuracy beside n-gram models of the same text, and unedited generations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from pretrain.models import END, FIRST_SENTINEL, START
from pretrain.objectives import Masked, Spans, batches

PROMPTS = (
    '# networkx.algorithms.shortest_paths\ndef shortest_path(G, source, target):\n    """',
    '# torch.nn.modules.dropout\nclass Dropout:\n    """',
    "The documentation of this package",
    "def read_table(path, sep, header):",
    "Return the number of",
    "If you want to use a custom",
)
SPAN_PROMPTS = (
    "Return the <extra_id_0> of the array along the given <extra_id_1>.",
    "describe: pandas.io.parsers read_table(path, sep, header)",
    "package: Computes the shortest path between two nodes of a graph.",
)

MASK_PROMPTS = (
    "Return the <mask> of the array.",
    "Find the shortest <mask> in a graph.",
    "If <mask>, the default is used.",
)


class NGrams:
    """Unigram and interpolated bigram probabilities of the training text.

    p(b | a) = max(c(a b) - d, 0) / c(a) + d n(a .) / c(a) * p(b), absolute discounting with d = 0.75;
    p(b) = (c(b) + 1) / (N + V).
    """

    discount = 0.75

    def __init__(self, ids: np.ndarray, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        counts = np.bincount(ids, minlength=vocabulary)
        self.unigram = (counts + 1) / (len(ids) + vocabulary)
        pairs = ids[:-1].astype(np.int64) * vocabulary + ids[1:]
        self.keys, self.counts = np.unique(pairs, return_counts=True)
        self.firsts = np.bincount(ids[:-1], minlength=vocabulary)
        self.kinds = np.bincount(self.keys // vocabulary, minlength=vocabulary)

    def bigram(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """p(after | before), elementwise."""
        wanted = before.astype(np.int64) * self.vocabulary + after
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        count = np.where(self.keys[place] == wanted, self.counts[place], 0)
        total = np.maximum(self.firsts[before], 1)
        spare = np.where(self.firsts[before] > 0, self.discount * self.kinds[before] / total, 1.0)
        return np.maximum(count - self.discount, 0) / total + spare * self.unigram[after]

    def followers(self) -> np.ndarray:
        """(vocabulary,) the likeliest next token of each token."""
        best = np.full(self.vocabulary, int(self.unigram.argmax()))
        order = np.argsort(self.counts, kind="stable")
        best[self.keys[order] // self.vocabulary] = self.keys[order] % self.vocabulary
        return best


def windows(ids: np.ndarray, length: int, count: int) -> np.ndarray:
    """(count, length) windows that begin where documents begin, evenly spread over the held-out text."""
    starts = np.flatnonzero(ids == START)
    starts = starts[starts + length < len(ids)]
    return np.stack([ids[start : start + length] for start in starts[:: max(1, len(starts) // count)][:count]])


def decoder_report(folder: Path, grams: NGrams, heldout: np.ndarray) -> dict[str, Any]:
    """Perplexity per token of the decoder, the bigram and the unigram model on the same positions; generations."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = windows(heldout, 257, 160)
    losses = []
    with torch.no_grad():
        for begin in range(0, len(rows), 16):
            ids = torch.from_numpy(rows[begin : begin + 16].astype(np.int64))
            logits = model(ids[:, :-1]).logits
            losses.append(float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())))
    before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    characters = len(tokenizer.decode(rows[:, 1:].ravel().astype(np.int64), skip_special_tokens=True))
    return {
        "tokens": int(after.size),
        "perplexity": round(float(np.exp(np.mean(losses))), 2),
        "bits_per_character": round(float(np.mean(losses)) * after.size / characters / np.log(2), 3),
        "bigram_perplexity": round(float(np.exp(-np.log(grams.bigram(before, after)).mean())), 2),
        "unigram_perplexity": round(float(np.exp(-np.log(grams.unigram[after]).mean())), 2),
        "generations": [generate(model, tokenizer, prompt, sample) for prompt in PROMPTS for sample in (False, True)],
    }


def generate(model: Any, tokenizer: Any, prompt: str, sample: bool) -> dict[str, Any]:
    """Sixty tokens, greedy or drawn at temperature 0.7 with seed 0; nothing is chosen or cut by hand."""
    torch.manual_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.95} if sample else {"do_sample": False}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=60, pad_token_id=0, **options)[0]
    begin = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return {"prompt": prompt, "sampled": sample, "text": tokenizer.decode(output[begin:], skip_special_tokens=False)}


def encoder_report(folder: Path, grams: NGrams, heldout: np.ndarray) -> dict[str, Any]:
    """Accuracy at masked positions: the encoder, the likeliest follower of the left neighbour, the commonest token."""
    model = AutoModelForPreTraining.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    objective = Masked(heldout, grams.vocabulary, tokenizer, [], masked_share=0.15)
    followers, commonest = grams.followers(), int(grams.unigram.argmax())
    tally: Counter[str] = Counter()
    losses = []
    with torch.no_grad():
        for batch in batches(objective, 5, 10, 32, 128):
            output = model.bert(input_ids=batch["inputs"], token_type_ids=batch["types"])
            chosen, truth = batch["chosen"], batch["ids"][batch["chosen"]]
            logits = model.cls.predictions(output.last_hidden_state[chosen])
            losses.append(float(nn.functional.cross_entropy(logits, truth)))
            left = batch["ids"].roll(1, 1)[chosen].numpy()  # the true left neighbour: more than the encoder may see
            pairs = model.cls.seq_relationship(output.pooler_output).argmax(-1)
            tally.update(
                count=len(truth), encoder=int((logits.argmax(-1) == truth).sum()),
                bigram=int((followers[left] == truth.numpy()).sum()), unigram=int((truth == commonest).sum()),
                pairs=len(pairs), pairs_right=int((pairs == 1 - batch["follows"]).sum()),
            )  # fmt: skip
    return {
        "masked_tokens": tally["count"],
        "masked_accuracy": round(tally["encoder"] / tally["count"], 4),
        "masked_perplexity": round(float(np.exp(np.mean(losses))), 2),
        "bigram_accuracy": round(tally["bigram"] / tally["count"], 4),
        "unigram_accuracy": round(tally["unigram"] / tally["count"], 4),
        "next_segment_accuracy": round(tally["pairs_right"] / tally["pairs"], 4),
    }


def seq2seq_report(folder: Path, grams: NGrams, heldout: np.ndarray) -> dict[str, Any]:
    """Perplexity of the cut tokens given the corrupted text (sentinels not counted), beside the n-grams; "
    "generations."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    objective = Spans(heldout, [], tokenizer, mixture_from=2.0)
    losses, bigram, unigram, right = [], [], [], 0
    with torch.no_grad():
        for batch in batches(objective, 5, 10, 32, 128):
            labels = batch["labels"]
            logits = model(**batch).logits
            words = (labels > FIRST_SENTINEL + 31) & (labels != END)
            truth = labels[words]
            losses.append(nn.functional.cross_entropy(logits[words], truth, reduction="none"))
            right += int((logits[words].argmax(-1) == truth).sum())
            left = labels.roll(1, 1)[words].numpy()
            bigram.append(-np.log(grams.bigram(left, truth.numpy())))
            unigram.append(-np.log(grams.unigram[truth.numpy()]))
    count = sum(map(len, losses))
    return {
        "target_tokens": count,
        "perplexity": round(float(torch.cat(losses).mean().exp()), 2),
        "accuracy": round(right / count, 4),
        "bigram_perplexity": round(float(np.exp(np.concatenate(bigram).mean())), 2),
        "unigram_perplexity": round(float(np.exp(np.concatenate(unigram).mean())), 2),
        "generations": [generate(model, tokenizer, prompt, False) for prompt in SPAN_PROMPTS],
    }


def fill_masks(folder: Path) -> list[dict[str, str]]:
    """The encoder's first choice for some masked words."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    filled = []
    for text in MASK_PROMPTS:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        place = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0])
        filled.append({"text": text, "choice": tokenizer.decode(logits[place].argmax())})
    return filled


def evaluate(work: Path, export: Path, vocabulary: int, output: Path) -> dict[str, Any]:
    """Writes every report as one JSON file and returns it."""
    grams = NGrams(np.load(work / "train.npy"), vocabulary)
    heldout = np.load(work / "heldout.npy")
    report: dict[str, Any] = {}
    for name, measure in (
        ("tiny-decoder", decoder_report), ("tiny-encoder", encoder_report), ("tiny-seq2seq", seq2seq_report),
    ):  # fmt: skip
        if (export / name / "model.safetensors").exists():
            report[name] = measure(export / name, grams, heldout)
            if name == "tiny-encoder":
                report[name]["masks"] = fill_masks(export / name)
    output.write_text(json.dumps(report, indent=1) + "\n")
    return report
