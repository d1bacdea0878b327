"""GGUF files as backbones: unpacked once into a folder of safetensors with config, tokenizer and chat template.

    model.gguf ──transformers──> weights, config, tokenizer ──> $DOLLARTUNE_CACHE/unpacked/NAME-KEY/
        └── blocks of 32 weights with a step each ──> what rounding to these steps took, as a note

Training, merging and export work on ordinary weights, so nothing after this file knows of GGUF.
Source: the format as ggml describes it (docs/gguf.md there); transformers' `load_gguf_checkpoint` does the reading.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from dollartune import format as numbers
from dollartune.cache import cache_directory
from dollartune.errors import UserError

READERS = ("gguf", "accelerate")
"""Packages with which transformers reads such files: the format, and models made without their weights."""
_MAGIC = b"GGUF"
_VERSION = 2
"""Of what this file writes; a change of it unpacks anew."""
_SAMPLE_BYTES = 1 << 20
"""Read at each end of a file to tell it from others: a header differs by its sizes and names, an end by its weights."""
_WIDE_LIMIT = 1_000_000_000
"""Parameters up to which weights are kept in fp32, exactly as the file gives them; above, bf16 halves the folder, and
its rounding (1/512 of a weight) is small beside that of 4 bits (1/15 of a block's range)."""
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
"""Bytes of a block of 32 weights, in the formats that begin a block with its step in fp16."""


@dataclass(frozen=True)
class Rounding:
    """What storing in few bits took, as far as the file itself tells."""

    formats: Mapping[str, int]
    """Format -> weights stored in it."""
    relative_error: float | None
    """Root mean square of rounding to a block's steps over that of the weights; None where no format tells its steps.
    Rounding is uniform within a step, so its mean square is step² / 12."""

    def sentence(self) -> str:
        """For notes and `backbones show`."""
        total = sum(self.formats.values())
        most = max(self.formats, key=lambda name: self.formats[name])
        share = self.formats[most] / total
        if most in ("F32", "F16", "BF16"):
            return f"its weights are kept as {most} ({numbers.percent(share)} of them): nothing was rounded to few bits"
        error = self.relative_error
        lost = "" if error is None else f"; rounding moved them by about {numbers.percent(error)} (RMS)"
        return (
            f"{numbers.percent(share)} of its weights are stored as {most}{lost}: scores are those of the rounded weights, which "
            "may lie below those of the published ones"
        )


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def unpacked(path: Path) -> Path:
    """The folder with the file's weights as safetensors; made the first time (half a minute for 135 M weights).

    Raises:
        UserError: the package gguf is missing, or transformers cannot read this file.
    """
    folder = _folder(path)
    if not (folder / "unpacked.json").is_file():
        _unpack(path, folder)
    return folder


def unpacking_note(path: Path) -> str:
    """What few bits took of a file's weights, as a clause; unpacks it if that was not done yet."""
    stored = json.loads((unpacked(path) / "unpacked.json").read_text())
    return Rounding(**stored["rounding"]).sentence()


def _folder(path: Path) -> Path:
    """By what the file holds, not by its name or its time: copies of one file share a folder."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{_VERSION} {size}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return cache_directory() / "unpacked" / f"{path.stem}-{digest.hexdigest()[:16]}"


def _unpack(path: Path, folder: Path) -> None:
    rounding = read_rounding(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside its later place: a rename is one step within a file system only
    room = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        write_unpacked(path, room, _WIDE_LIMIT)
        facts = {"file": path.name, "version": _VERSION, "rounding": asdict(rounding)}
        (room / "unpacked.json").write_text(json.dumps(facts, indent=1))
        try:
            os.rename(room, folder)  # all or nothing: another process may be at the same file
        except OSError:
            if not (folder / "unpacked.json").is_file():
                raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_unpacked(path: Path, room: Path, wide_limit: int | None = None) -> None:
    """Config, weights and tokenizer of a file, as `from_pretrained` reads them from a folder.

    Args:
        room: an empty folder.
        wide_limit: parameters above which weights are kept in bf16; by default all are in fp32.

    Raises:
        UserError: transformers cannot read the file.
    """
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # its reader draws a progress bar that no setting of transformers turns off
            _write(path, room, wide_limit)
    finally:
        transformers_logging.set_verbosity(level)


def _write(path: Path, room: Path, wide_limit: int | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path.name} is a GGUF file that transformers cannot read: {first}",
            hint="LLaMA's family and its like are read (llama, mistral, qwen2, qwen3, gemma2, phi3 ...); for others give "
            "the folder or the hub id of the original weights.",
        ) from None
    # A config made anew: the one that was read carries marks of its packed source, under which saving is refused.
    config = type(model.config)(**_plain_settings(model.config.to_dict()))
    for mark in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # The file says them of its tokenizer alone; transformers' reader leaves the config with its family's own numbers.
        if (number := getattr(tokenizer, mark)) is not None:
            setattr(config, mark, number)
            setattr(model.generation_config, mark, number)
    model.config = config
    if hasattr(model, "hf_quantizer"):  # weights are plain by now; the mark would refuse to save them
        model.hf_quantizer = None
        model.is_quantized = False
    if wide_limit is not None and model.num_parameters() > wide_limit:
        model = model.to(torch.bfloat16)
    config.dtype = model.dtype
    # Else saving would derive it from the config once more and warn of what the file never said.
    model.generation_config._from_model_config = False
    model.save_pretrained(room)
    most_positions = getattr(config, "max_position_embeddings", None)
    if isinstance(most_positions, int):
        tokenizer.model_max_length = most_positions  # the file has no such number for tokenizers, and theirs is 10^30
    tokenizer.save_pretrained(room)


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, object]:
    """A config without what tells how its weights were packed and where they lay."""
    dropped = ("quantization_config", "_name_or_path", "_model_name_or_path", "model_type", "transformers_version")
    return {key: value for key, value in settings.items() if key not in dropped}


def need_readers(what: str) -> None:
    """Raises a `UserError` where a package of `READERS` is not installed; `what` is the subject of its sentence."""
    for package in READERS:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{what} takes the package {package}.", hint="pip install 'dollartune[gguf]'")


def read_rounding(path: Path) -> Rounding:
    """Formats of a file's tensors, and what their steps cost.

    Raises:
        UserError: a package of `READERS` is not installed, or the file is cut short.
    """
    import numpy

    need_readers(f"{path.name}: reading GGUF files")
    from gguf import GGUFReader, dequantize

    try:
        tensors = GGUFReader(str(path)).tensors
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{path.name} cannot be read as GGUF: {error}", hint="Fetch it again; it may be cut short."
        ) from None
    formats: dict[str, int] = {}
    steps_squared, weights_squared = 0.0, 0.0
    for tensor in tensors:
        kind = str(tensor.tensor_type.name)
        formats[kind] = formats.get(kind, 0) + int(tensor.n_elements)
        if kind in _BLOCK_BYTES:
            blocks = numpy.ascontiguousarray(tensor.data).view(numpy.uint8).reshape(-1, _BLOCK_BYTES[kind])
            steps = numpy.ascontiguousarray(blocks[:, :2]).view(numpy.float16).astype(numpy.float64)
            # One step for 32 weights.
            steps_squared += 32 * float((steps**2).sum())
            weights_squared += float((dequantize(tensor.data, tensor.tensor_type).astype(numpy.float64) ** 2).sum())
    # The variance of a uniform error in a step is step² / 12.
    relative = (steps_squared / 12 / weights_squared) ** 0.5 if weights_squared else None
    return Rounding(dict(sorted(formats.items())), relative)
