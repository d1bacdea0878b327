"""Downloads sources, builds the corpus, trains the tokenizer and encodes the text; each step is skipped when done."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dollartune.tasks.docstrings import LIBRARIES, Documented
from pretrain.corpus import build, save, task_like

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")


def fetch(config: dict[str, Any], work: Path) -> None:
    """Downloads wheels and source archives with pip, without dependencies, and unpacks the wheels to `work/site`."""
    for kind, option, folder in (
        ("wheels", "--only-binary=:all:", "wheels"),
        ("archives", "--no-binary=:all:", "archives"),
    ):
        for name, version in config["corpus"][kind].items():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", option, "-d", str(work / folder)]
            subprocess.run([*command, f"{name}=={version}"], check=True)
    unpack(work)


def unpack(work: Path) -> None:
    """Unpacks the Python sources and service descriptions of every downloaded wheel."""
    for path in sorted((work / "wheels").glob("*.whl")):
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".py") or "service-2.json" in name]
            archive.extractall(work / "site", members)


def corpus(config: dict[str, Any], work: Path) -> None:
    """Builds and saves the documents, the task-like ones among them."""
    settings = config["corpus"]
    built = build(
        settings["installed"], work / "site", sorted((work / "archives").glob("*.tar.gz")), settings["cap_per_library"]
    )
    built.train.extend(task_like(built.functions, seed=0, count=settings["task_like_documents"]))
    random.Random(0).shuffle(built.train)
    save(built, work / "corpus")


def documents(work: Path, name: str) -> list[str]:
    """The saved documents: `train` or `heldout`."""
    with (work / "corpus" / f"{name}.jsonl").open() as handle:
        return [json.loads(line) for line in handle]


def functions(work: Path) -> list[Documented]:
    """The documented functions of the train modules."""
    with (work / "corpus" / "functions.jsonl").open() as handle:
        return [Documented(**json.loads(line)) for line in handle]


def tokenizer(config: dict[str, Any], work: Path) -> None:
    """Trains the byte-level BPE of the three text backbones; the demo's label words come out as single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    settings = config["tokenizer"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    specials = [*SPECIALS, *(f"<extra_id_{index}>" for index in range(settings["sentinels"]))]
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocabulary"],
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = " " + " ".join((*LIBRARIES, "yes", "no", "positive", "negative", "neutral", "World", "Sports", "Business"))
    bpe.train_from_iterator([*documents(work, "train"), *[words] * 500], trainer)
    bpe.save(str(work / "tokenizer.json"))


def encode(work: Path) -> None:
    """Encodes every document as `<s> text </s>` into one array of 16-bit ids per split."""
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_file(str(work / "tokenizer.json"))
    start, end = bpe.token_to_id("<s>"), bpe.token_to_id("</s>")
    for name in ("train", "heldout"):
        encodings = bpe.encode_batch(documents(work, name), add_special_tokens=False)
        ids = np.concatenate([np.array([start, *item.ids, end], dtype=np.uint16) for item in encodings])
        np.save(work / f"{name}.npy", ids)
        print(f"{name}: {len(ids) / 1e6:.2f} M tokens", flush=True)


def encode_tasks(config: dict[str, Any], work: Path) -> None:
    """Encodes further task-like documents, most of them questions and tables, for the later part of the training."""
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_file(str(work / "tokenizer.json"))
    texts = list(task_like(functions(work), seed=1, count=config["corpus"]["later_documents"], weights=(1, 1, 4, 6)))
    encodings = bpe.encode_batch([f"<s>{text}</s>" for text in texts], add_special_tokens=False)
    np.save(work / "tasks.npy", np.concatenate([np.array(item.ids, dtype=np.uint16) for item in encodings]))


def prepare(config: dict[str, Any], work: Path) -> None:
    """All steps in order."""
    if not (work / "site").exists():
        fetch(config, work)
    if not (work / "corpus" / "train.jsonl").exists():
        corpus(config, work)
    if not (work / "tokenizer.json").exists():
        tokenizer(config, work)
    if not (work / "train.npy").exists():
        encode(work)
    if not (work / "tasks.npy").exists():
        encode_tasks(config, work)
