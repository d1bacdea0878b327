"""Hands an adapter over: one function per verb, from directory to directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune import format as numbers
from dollartune.attachment.merging import unmergeable
from dollartune.backbones.chat import template_in, template_of
from dollartune.backbones.kind import default_objective
from dollartune.backbones.loading import read_config
from dollartune.backbones.locate import from_anywhere
from dollartune.backbones.marks import decoder_start
from dollartune.errors import UserError, unknown_name
from dollartune.export import peft_format
from dollartune.export.arithmetic import offset_notes, write_lora
from dollartune.export.card import write_card
from dollartune.export.directory import check_labels, load_adapter, save_adapter, tokenizer_hash
from dollartune.export.gguf_format import gguf_refusal, write_gguf
from dollartune.export.head_format import head_facts, head_refusal, write_head
from dollartune.export.merged import NoPlaceForBias, write_merged
from dollartune.export.opening import open_backbone, stored_task
from dollartune.export.provenance import study_facts
from dollartune.export.scoring import adapter_logits, require_equal, rounding_notes, sample_inputs
from dollartune.export.targets import FORMATS, head_of, refused_by_weights, serving_lines
from dollartune.files import drafted, need_empty
from dollartune.methods.stored_adapter import CONFIG, read_info, task_facts
from dollartune.train.encoding import Encoder, collate_prompts
from dollartune.train.head_start import classes_scored
from dollartune.untrusted_files import read_json

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone


FORMATS_OF = {"examples": ("merged", "gguf", "lora"), "rank": ("lora",)}
"""Option -> the formats in which it does something."""


@dataclass(frozen=True)
class Handed:
    """What was written and what was found out."""

    folder: Path
    lines: tuple[str, ...]


def export_adapter(
    adapter_folder: Path,
    out: Path,
    form: str,
    backbone_name: str | None = None,
    quantize: str = "none",
    dtype: str = "float32",
    examples: Path | None = None,
    rank: int = 64,
    base_model: str | None = None,
    license: str | None = None,
    published: bool = False,
) -> Handed:
    """Writes an adapter in one of the formats, loads it back and compares logits.

    Args:
        form: `dollartune`, `peft`, `lora`, `merged`, `gguf` or `head`.
        quantize: `nf4` loads the backbone in 4 bits, as it was for QLoRA.
        examples: a data file on whose first rows a merged model (GGUF too) is compared (by default random tokens), or on whose
            labelled rows a LoRA is scored.
        rank: largest rank of a LoRA.
        base_model: the backbone's name on the hub, where the adapter knows a folder only.
        license: what the card says of it.
        published: strangers will read it: without the hashes of the rows it was tuned on, from which short rows can be guessed.

    Raises:
        UserError: the format cannot hold this adapter, or what was written gives other logits.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    info = read_info(adapter_folder)
    backbone = open_backbone(info, backbone_name, quantize, dtype)
    # Loaded before anything is written, so that a bad adapter leaves no half of a folder.
    adapter = load_adapter(adapter_folder, backbone)
    info = {**info, **({"study": facts} if (facts := study_facts(adapter_folder)) else {})}
    if license is not None:
        info["license"] = license.strip().lower()  # as the hub writes its names of licences
    if backbone_name is not None:  # where it lies now; the folder that the adapter names may be gone
        info["backbone"] = from_anywhere(backbone_name)
        backbone = replace(backbone, name=info["backbone"])
    hashed = published and info.pop("rows_seen", None) is not None
    # A trial's conditions name the study's data by their path on this machine: no business of whoever gets the adapter.
    if isinstance(info.get("trial"), Mapping):
        info["trial"] = {key: value for key, value in info["trial"].items() if key != "conditions"}
    if base_model is not None:  # nothing that is handed over names a folder of this machine then
        info["backbone"] = base_model
        info.pop("trial", None)
        backbone = replace(backbone, name=base_model)
    # Not among what a format may refuse: the next folder would do.
    need_empty(out)
    refused = refused_by_weights(backbone.random_weights_seed)
    serves = _serving(backbone, adapter, refused)
    # Before anything is written, as what cannot be described is refused here.
    described = {**info, **asked_by_hand(backbone, adapter, info)}
    try:
        if form in refused:
            raise UserError(f"{refused[form]}.", hint="Export with --format merged, or --format dollartune.")
        lines = _write(form, out, backbone, adapter, info, examples, rank)
    except UserError as error:
        # Whoever cannot have this format is told which one can be had.
        forms = ("merged", "gguf") if isinstance(error, NoPlaceForBias) else (form,)
        refused = {**dict.fromkeys(forms, "not this adapter on this backbone"), **refused}
        possible = "\n".join(f"  {line}" for line in _serving(backbone, adapter, refused))
        raise UserError(f"{error.message}\nWhat can serve this adapter:\n{possible}", error.hint) from None
    backbone_name = str(info.get("backbone", "adapter")).rstrip("/").rsplit("/", 1)[-1]
    title = f"{backbone_name} for {(info.get('task') or {}).get('name', 'a task')}"
    # Our own format writes its card with the adapter.
    if form != "dollartune":
        if form == "head" and adapter.readout is not None:
            described["head"] = head_facts(backbone, adapter.readout, info)
        (out / "README.md").write_text(
            write_card(described, title, "peft" if form == "lora" else form, serves if form == "peft" else ()),
            encoding="utf8",
        )
    if form != "dollartune":
        lines = [*lines, *offset_notes(adapter)]
    if hashed:
        lines = [
            *lines,
            "not in it: hashes of the rows it was tuned on, which evaluating it elsewhere cannot leave out then",
        ]
    return Handed(out, (*lines, *(() if form == "lora" else serves)))


def asked_by_hand(backbone: Backbone, adapter: Adapter, info: Mapping[str, Any]) -> dict[str, object]:
    """What a program without DollarTune needs to ask and score as it does, and `adapter.json` leaves to backbone and adapter.

    Returns:
        `kind` of the backbone; of pictures `image_mode`, in which they are read; of label words `answer_end`, the text that ends
        each where one begins another, and `label_offsets`, what is added to each one's log-probability.
    """
    facts: dict[str, object] = {"kind": backbone.kind}
    if not info.get("task") or backbone.processor is None:
        return facts
    encoder = Encoder(backbone)
    if backbone.kind == "vision":
        return {**facts, "image_mode": encoder.image_mode}
    if backbone.objective == "classification" or not info["task"].get("label_words"):
        return facts
    task = stored_task(info)
    facts["answer_end"] = "".join(backbone.processor.convert_ids_to_tokens(list(encoder.label_end(task))))
    offsets = adapter.label_offsets
    if offsets is not None and len(offsets) == len(task.labels):
        facts["label_offsets"] = dict(zip(task.labels, offsets.tolist(), strict=True))
    return facts


def _serving(backbone: Backbone, adapter: Adapter, refused: Mapping[str, str] | None = None) -> list[str]:
    """What can serve an adapter on its backbone.

    Args:
        refused: format -> why it could not be written.
    """
    refused = refused or {}
    lines = serving_lines(adapter.methods, head_of(adapter), adapter.backbone_kind, refused)
    why = gguf_refusal(backbone) or refused.get("gguf")
    if why is None and (names := unmergeable(adapter)):
        why = f"no merge is exact: {', '.join(names)}"
    lines.append(f"llama.cpp, Ollama, LM Studio: {'yes, export --format gguf' if why is None else f'no, {why}'}")
    if adapter.readout is not None:
        why = head_refusal(adapter) or refused.get("head")
        lines.append(f"scikit-learn, torch: {'yes, export --format head' if why is None else f'no, {why}'}")
    return lines


def _write(
    form: str,
    out: Path,
    backbone: Backbone,
    adapter: Adapter,
    info: Mapping[str, Any],
    examples: Path | None,
    rank: int,
) -> list[str]:
    if form == "head":
        return write_head(out, backbone, adapter, info)
    if form == "gguf":
        return write_gguf(out, backbone, adapter, info, _compared(backbone, info, examples))
    if form == "lora":
        return write_lora(out, backbone, adapter, info, rank, examples)
    if form == "peft":
        written = peft_format.write_peft(out, backbone, adapter, info)
        by = "here" if written.peft_difference is None else f"here, {written.peft_difference:.1e} by the peft library"
        return [
            f"wrote {written.peft_type}, {written.bytes:,} bytes; logits differ by at most {written.difference:.1e} loaded {by}.",
            *written.notes,
        ]
    if form == "merged":
        merged = write_merged(out, backbone, adapter, _compared(backbone, info, examples))
        lines = [
            f"merged {merged.modules} modules; logits differ from the adapter's by at most {merged.difference:.1e}; "
            f"rounding the merged weights changed the most affected update by {numbers.percent(merged.lost)}.",
            *rounding_notes(merged.difference, merged.untuned, merged.lost, backbone.dtype),
        ]
        if merged.quantized:
            lines.append(
                f"the 4-bit backbone was written in {backbone.dtype}; back in 4 bits, "
                f"logits would differ by {merged.requantized_difference:.1e}."
            )
        return lines
    kept = {
        key: value
        for key, value in info.items()
        if key not in ("format_version", "methods", "kind", "head_module", "seed", "trainable_parameters")
    }
    # Without what `save_adapter` writes itself from the adapter as it is now.
    with drafted(out) as draft:
        size = save_adapter(draft, adapter, kept)
        inputs = sample_inputs(backbone)
        # From the disk: what is compared is what was written.
        again = adapter_logits(backbone, load_adapter(draft, backbone), inputs)
        expected = adapter_logits(backbone, adapter, inputs)
        difference = require_equal(again, expected, backbone.dtype, "the written adapter")
    return [f"wrote {size:,} bytes; logits differ by at most {difference:.1e} loaded back."]


def _compared(backbone: Backbone, info: Mapping[str, Any], examples: Path | None) -> dict[str, Tensor] | None:
    return None if examples is None else real_inputs(backbone, info, examples)


def real_inputs(backbone: Backbone, info: Mapping[str, Any], data: Path, rows: int = 8) -> dict[str, Tensor]:
    """Prompts of the first rows of a data file, as the adapter's task asks them.

    Raises:
        UserError: the adapter has no text task, or the file has other columns.
    """
    from dollartune.tasks.base import Example
    from dollartune.tasks.files import read_file
    from dollartune.tasks.rows import BadRows

    task = stored_task(info)
    if task.template is None:
        raise UserError("examples are compared for text tasks only; leave --examples out.")
    values = [dict(row.values) for row in read_file(data, BadRows("stop"), [])][:rows]
    if not values or (missing := set(task.template.columns) - set(values[0])):
        raise UserError(
            f"{data} has no rows with the columns {', '.join(task.template.columns)}"
            + (f"; it lacks {sorted(missing)}." if values else ".")
        )
    # Any label: prompts are compared, and an example must have an answer to be encoded.
    label = task.labels[0] if task.labels else None
    encoded = Encoder(backbone, info.get("max_length")).encode(
        task, [Example(str(i), row, label, "") for i, row in enumerate(values)]
    )
    inputs = collate_prompts(encoded, backbone.processor.pad_token_id or 0, left=False, device=backbone.device)
    if backbone.kind == "encoder_decoder" and backbone.objective == "language":
        # (rows, 1): the start token, from which the first word of the answer is scored.
        start = decoder_start(backbone.model)
        inputs["decoder_input_ids"] = torch.full((len(encoded), 1), start, device=backbone.device)
    return inputs


_KEPT = (
    "max_length", "reserved_places", "dtype", "quantize", "anatomy", "scores", "cost", "trial", "study", "license", "rows_seen",
)  # fmt: skip
"""What an adapter that comes back remembers: how it is asked, and what was found out, the rows it has seen among it."""


def import_peft(
    source: Path,
    out: Path,
    backbone_name: str | None = None,
    task_spec: str | None = None,
    data_root: Path | None = None,
) -> Handed:
    """Turns a peft adapter into one of ours, which can be used, trained on, merged and served.

    Args:
        task_spec: a task's name or file, whose prompt and label words the adapter was tuned with; by default those that a
            directory exported from here remembers.

    Raises:
        UserError: it is malformed or does what cannot be done here.
    """
    need_empty(out)
    if (source / CONFIG).is_file():
        raise UserError(f"{str(source)!r} is an adapter of DollarTune already: use it as it is.")
    config = peft_format.read_config(source)
    stored = read_json(source / peft_format.EXTRA) if (source / peft_format.EXTRA).is_file() else {}
    name = backbone_name or stored.get("backbone") or config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{str(source)!r} does not say which backbone it is for.", hint="Give it with --backbone.")
    # peft's config says it; without, what the model was made for.
    objective = "classification" if config.get("task_type") == "SEQ_CLS" else default_objective(read_config(str(name)))
    info: dict[str, object] = {
        "backbone": from_anywhere(str(name)),
        "objective": objective,
        "task": stored.get("task"),
        **{key: stored[key] for key in _KEPT if key in stored},
    }
    backbone = open_backbone(info)
    if task_spec is not None:
        from dollartune.tasks.registry import load_task

        info["task"] = task_facts(load_task(task_spec, data_root), backbone)
    if stored.get("tokenizer") and stored["tokenizer"] != tokenizer_hash(backbone.processor):
        raise UserError(f"{str(source)!r} was tuned with another tokenizer than {name!r} has.")
    adapter, notes = peft_format.read_peft(source, backbone)
    check_labels(source, info, adapter, backbone)
    # Of the backbone as it was opened here: a stored revision is that of whoever exported it.
    info |= {"revision": backbone.revision, "weights_hash": backbone.weights_hash}
    info |= {"tokenizer": tokenizer_hash(backbone.processor)}
    size = save_adapter(out, adapter, info)
    lines = [
        f"read {config['peft_type']} as {' + '.join(dict.fromkeys(m.name for m in adapter.methods))}; wrote {size:,} bytes.",
        *notes,
    ]
    lines += _template_notes(source, backbone, info["task"])
    if info["task"] is None:
        lines.append("it knows no task yet: give --task to predict with it.")
    elif task_spec is not None and classes_scored(adapter, backbone) is not None:
        # Where the order is another one, every answer is the wrong class, and nothing looks broken.
        order = ", ".join(stored_task(info).labels)
        lines.append(f"peft stores no order of classes; it is taken from the task: {order}.")
    return Handed(out, tuple(lines))


def _template_notes(source: Path, backbone: Backbone, task: Any) -> list[str]:
    """A sentence on a chat template in a peft folder: TRL leaves there the one that it trained with."""
    theirs = template_in(source)
    asked_by = template_of(backbone.processor) if task is None else task.get("chat_template")
    if backbone.objective != "language" or theirs in (None, asked_by):
        return []
    asked = "by another" if asked_by else "without one"
    return [
        f"not used: the chat template in {source}; the adapter is asked {asked}. To use it, put it into a copy of the backbone's "
        "folder and import with --backbone COPY."
    ]


def parse_named(items: Sequence[str]) -> dict[str, Path]:
    """`name=dir` pairs.

    Raises:
        UserError: one is malformed, or a name appears twice.
    """
    from dollartune.untrusted_files import check_name

    folders: dict[str, Path] = {}
    for item in items:
        name, sign, folder = item.partition("=")
        if not sign or not folder:
            raise UserError(f"adapter {item!r} is not understood; write name=dir.", hint=f"--adapter tuned={item}")
        if check_name(name) in folders:
            raise UserError(f"two adapters are called {name!r}.")
        folders[name] = Path(folder)
    return folders
