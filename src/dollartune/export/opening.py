"""Opens a tuned adapter for use: its backbone is loaded, the adapter put on it, and its task read from its description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.attachment.attached import Attached
from dollartune.backbones.anatomy_file import family_of_text
from dollartune.backbones.families import use_family
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.backbones.weights import DTYPES
from dollartune.errors import UserError, unknown_name
from dollartune.evaluate.predict import Tuned
from dollartune.export.directory import load_adapter, tokenizer_hash
from dollartune.export.other_backbone import stored_backbone
from dollartune.methods.stored_adapter import read_info
from dollartune.tasks.base import Task, Template
from dollartune.tasks.rows_seen import RowsSeen
from dollartune.train.encoding import Encoder
from dollartune.train.precision import default_device

if TYPE_CHECKING:
    import torch

    from dollartune.backbones.device_map import DeviceMap


def open_adapter(folder: str | Path, device_map: DeviceMap | None = None) -> Tuned:
    """Loads an adapter with its backbone, where it would be tuned: on the GPU if there is one, or as `device_map` spreads it over
    devices (see `load_backbone`).

    Raises:
        UserError: not an adapter, or the backbone's tokenizer is another than it was tuned with.
    """
    folder = Path(folder)
    info = read_info(folder)
    task = stored_task(info)  # before the weights are read: without one there is nothing to ask
    dtype = str(info.get("dtype"))
    backbone = open_backbone(
        info, stored_backbone(folder, info.get("backbone", "")) or None, str(info.get("quantize", "none")),
        dtype if dtype in DTYPES else "float32", device_map, default_device(),
    )  # fmt: skip
    if info.get("tokenizer") and tokenizer_hash(backbone.processor) != info["tokenizer"]:
        raise UserError(f"the tokenizer of {info['backbone']!r} is not the one that {str(folder)!r} was tuned with.")
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = load_adapter(folder, backbone)
    attached.put("adapter", adapter)
    return Tuned(
        backbone,
        attached,
        list(adapter.methods),
        task,
        Encoder(backbone, info.get("max_length"), info.get("reserved_places", 0)),
        folder=folder,
        rows_seen=RowsSeen.read(info.get("rows_seen")),
    )


def open_backbone(
    info: Mapping[str, Any],
    name: str | None = None,
    quantize: str = "none",
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """The backbone that an adapter was tuned for, or another one of the same shape by name; its structure is read and its weights
    are drawn as they were when tuning.

    Raises:
        UserError: an unknown number format, no backbone is named, or it cannot be loaded.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if quantize not in ("none", "nf4"):
        raise unknown_name("quantization", quantize, ("none", "nf4"))
    if name is None and not info.get("backbone"):
        raise UserError("the adapter does not name its backbone.", hint="Give it with --backbone.")
    labels = tuple((info.get("task") or {}).get("label_words") or ())
    objective = info.get("objective")
    if info.get("anatomy"):
        use_family(family_of_text(str(info["anatomy"]), "the anatomy that the adapter keeps"))
    return load_backbone(
        name or str(info["backbone"]),
        objective,
        labels if objective == "classification" else (),
        DTYPES[dtype],
        quantize=quantize,  # type: ignore[arg-type]
        random_weights_seed=info.get("random_weights_seed"),
        device=device,
        device_map=device_map,
    )


def stored_task(info: Mapping[str, Any]) -> Task:
    """The task that an adapter remembers: its prompt and label words, without data.

    Raises:
        UserError: it remembers none (it was imported without one).
    """
    stored = info.get("task")
    if not isinstance(stored, Mapping):
        raise UserError(
            "the adapter remembers no task, so there is no prompt to ask with.",
            hint="dollartune import PEFT_DIR --task TASK --out DIR",
        )
    missing = {"name", "kind", "prompt", "label_words", "metric", "max_answer_tokens"} - stored.keys()
    if missing or not isinstance(stored["label_words"], Mapping):
        raise UserError(f"the adapter's task is malformed: it lacks {sorted(missing) or 'label words'}.")
    template = stored.get("chat_template")
    if not isinstance(template, str | None):
        raise UserError("the adapter's task is malformed: its 'chat_template' must be a text.")
    _check_types(stored)
    return Task(
        name=stored["name"],
        kind=stored["kind"],
        # An adapter remembers how it was asked, not the rows.
        load=lambda: {"train": [], "validation": [], "test": []},
        template=Template(stored["prompt"]) if stored["prompt"] else None,
        label_words=stored["label_words"],
        metric=stored["metric"],
        modality="text" if stored["prompt"] else "image",
        max_answer_tokens=stored["max_answer_tokens"],
        # without one it was tuned on prompts as they stand, whatever template the backbone's tokenizer has today
        chat="never" if template is None else "auto",
        system=str(stored.get("system") or ""),
        chat_template=template,
        answer_column=str(stored.get("answer_column") or ""),
        references_column=str(stored.get("references_column") or ""),
        group_column=str(stored.get("group_column") or ""),
    )


def _check_types(stored: Mapping[str, Any]) -> None:
    texts = [stored["name"], stored["metric"], stored["prompt"] or "", *stored["label_words"].values()]
    tokens = stored["max_answer_tokens"]
    if not all(isinstance(text, str) for text in texts) or type(tokens) is not int or not 1 <= tokens < 2**31:
        raise UserError(
            "the adapter's task is malformed: name, metric, prompt and label words are texts, and max_answer_tokens is a "
            "number of tokens from 1 up."
        )
    # A width such as {text:>2000000000} takes gigabytes; three digits align any table.
    for _, column, directive in Template(stored["prompt"] or "").parts:
        if any(len(digits) > 3 for digits in re.findall(r"\d+", directive or "")):
            raise UserError(f"the adapter's prompt pads {{{column}:{directive}}} to an absurd width; it is refused.")


def check_foreign_task(info: Mapping[str, Any], most_labels: int, template: str | None) -> None:
    """What a prompt may hold that somebody else wrote: plain fields. A task that is absent is no fault.

    Args:
        template: the chat template of the backbone's tokenizer.

    Raises:
        UserError: a field has a format directive, there are too many labels, the adapter is asked by a chat template of its
            own, or the task is malformed.
    """
    if info.get("task") is None:
        return
    task = stored_task(info)
    for _, column, directive in task.template.parts if task.template else ():
        if directive:
            raise UserError(
                f"the adapter's prompt formats {{{column}:{directive}}}; a served prompt has plain fields such as {{{column}}}."
            )
    # A template is a program: its loops may take any time and memory, whatever sandbox they run in.
    if task.chat_template is not None and task.chat_template != template:
        raise UserError(
            "the adapter is asked by a chat template that is not the backbone's; a served adapter that is added by others has "
            "no program of its own.",
            hint="dollartune serve BACKBONE --adapter NAME=DIR",
        )
    if len(task.labels) > most_labels:
        raise UserError(f"the adapter has {len(task.labels):,} labels; this server scores at most {most_labels:,}.")
