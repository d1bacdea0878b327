"""Verbs on updates of linears: any adapter as a LoRA, and several adapters as one, each with what it cost in scores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.attachment.attached import Attached
from dollartune.backbones.locate import from_anywhere
from dollartune.backbones.own_head import need_known_head
from dollartune.errors import UserError, unknown_name
from dollartune.evaluate.labelled_rows import rows_of_file
from dollartune.evaluate.predict import Tuned, evaluate_rows
from dollartune.export.directory import load_adapter, save_adapter, tokenizer_hash
from dollartune.export.opening import open_backbone, stored_task
from dollartune.export.other_backbone import other_backbone, stored_backbone
from dollartune.export.peft_format import read_peft, write_part
from dollartune.export.scoring import adapter_logits, peft_installed, peft_logits, sample_inputs
from dollartune.export.targets import VLLM_HEADS
from dollartune.export.updates import WAYS, How, combine, low_rank_of, updates_of
from dollartune.files import drafted, need_empty
from dollartune.methods.stored_adapter import read_info
from dollartune.train.encoding import Encoder

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone


def write_lora(
    out: Path, backbone: Backbone, adapter: Adapter, info: Mapping[str, Any], most_rank: int, rows: Path | None
) -> list[str]:
    """Writes an adapter as a LoRA in peft's format, and says what the conversion cost.

    Args:
        most_rank: largest rank; an update of a lower one keeps it.
        rows: a file of labelled rows on which both are scored.

    Raises:
        UserError: the adapter's change is not one of linears' weights alone, or nothing that peft loads has the backbone's head.
    """
    need_known_head(backbone.model)
    # First, since a file without answers is noticed here.
    before = {} if rows is None else _scores(backbone, adapter, info, rows)
    # By the change of the weights and not by the method: whatever merges can be written as a LoRA.
    updates = updates_of(backbone, adapter)
    low = low_rank_of(updates, backbone, most_rank)
    inputs = sample_inputs(backbone)
    expected = adapter_logits(backbone, adapter, inputs)
    with drafted(out) as draft:
        write_part(draft, backbone, low.part, updates.head, info)
        # From the disk: what is compared is what was written.
        again, _ = read_peft(draft, backbone)
        here = float((adapter_logits(backbone, again, inputs) - expected).abs().max())
        theirs = float((peft_logits(backbone, draft, inputs) - expected).abs().max()) if peft_installed() else None
        after = {} if rows is None else _scores(backbone, again, info, rows)
    lines = [
        f"wrote a LoRA of rank {low.rank} at {len(low.part.modules)} modules; the rank leaves out at most "
        f"{numbers.percent(low.lost)} of a module's update; logits differ by at most {here:.1e} loaded here."
    ]
    if theirs is not None:
        lines.append(
            f"loaded by the peft library, logits differ by at most {theirs:.1e} (largest {expected.abs().max():.1f})."
        )
    if rows is not None:
        lines += [
            f"{name} on {rows.name}: {numbers.score(before[name], 4)} before, {numbers.score(after[name], 4)} after"
            for name in before
        ]
    # vLLM looks for a head by the last part of its name.
    names = {site.exit.rpartition(".")[2] for site in backbone.anatomy.heads} if updates.head else set()
    if refused := sorted(names - set(VLLM_HEADS)):
        lines.append(f"vLLM: no, it takes heads called {' or '.join(VLLM_HEADS)}; this one is called {refused[0]}")
    elif backbone.kind == "encoder_decoder":
        lines.append("vLLM: no, it has no LoRA for encoder-decoders")
    else:
        lines.append(f"vLLM: yes, vllm serve BACKBONE --enable-lora --max-lora-rank {_vllm_rank(low.rank)}")
    return lines


def merge_adapters(
    folders: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    how: How = "linear",
    density: float = 0.5,
    seed: int = 0,
    most_rank: int = 64,
    backbone_name: str | None = None,
    rows: Sequence[Path] = (),
) -> list[str]:
    """Writes one adapter (a LoRA) that has the changes of several, weighted, and scores it on each one's task.

    Args:
        rows: a file of labelled rows for each adapter, in their order; none: nothing is scored.

    Raises:
        UserError: adapters of different backbones, of changes that cannot be added, or numbers that do not fit.
    """
    if how not in WAYS:
        raise unknown_name("way to merge", how, WAYS)
    if len(folders) < 2:
        raise UserError("merging takes two adapters or more.")
    if len(weights) != len(folders) or len(rows) not in (0, len(folders)):
        raise UserError(
            f"{len(folders)} adapters have {len(weights)} weights and {len(rows)} files of rows; give one for each."
        )
    if not all(isfinite(weight) for weight in weights):
        raise UserError(f"weights are finite numbers; given: {', '.join(map(str, weights))}.")
    # At 0 nothing would be kept, and `dare` divides by it.
    if not 0 < density <= 1:
        raise UserError(f"density is a share above 0, up to 1; given: {density}.")
    need_empty(out)
    infos = [read_info(folder) for folder in folders]
    named = infos[0].get("backbone") and stored_backbone(folders[0], str(infos[0]["backbone"]))
    backbone = open_backbone(infos[0], backbone_name or named)
    if backbone_name is None:  # whoever names it says that it is the one for all
        for folder, info in zip(folders, infos, strict=True):
            # Models of one shape and tokenizer (a base and its chat version) take each other's adapters without an error.
            if other := other_backbone(folder, info, backbone):
                raise UserError(
                    f"{str(folder)!r} is of another backbone than the first one: {other}.",
                    hint="If its change shall be added all the same, name the backbone with --backbone.",
                )
    adapters = [load_adapter(folder, backbone) for folder in folders]
    # First, since a file without answers is noticed here.
    alone = [_scores(backbone, adapter, own, file) for adapter, own, file in zip(adapters, infos, rows, strict=False)]
    updates = combine([updates_of(backbone, adapter) for adapter in adapters], weights, how, density, seed)
    low = low_rank_of(updates, backbone, most_rank)
    # Through peft's format, whose reader makes an adapter of our own of the factors; this folder is nobody's.
    with tempfile.TemporaryDirectory(prefix="dollartune-merge.") as room:
        write_part(Path(room), backbone, low.part, {}, None)
        merged, _ = read_peft(Path(room), backbone)
    made = [
        {"adapter": folder.name, "weight": weight, "task": (info.get("task") or {}).get("name")}
        for folder, weight, info in zip(folders, weights, infos, strict=True)
    ]
    info = {
        "backbone": from_anywhere(backbone.name),
        "revision": backbone.revision,
        "weights_hash": backbone.weights_hash,
        "objective": backbone.objective,
        "tokenizer": tokenizer_hash(backbone.processor),
        "random_weights_seed": backbone.random_weights_seed,
        "anatomy": infos[0].get("anatomy"),
        # One prompt, and length, for all: a merged adapter cannot know whose row it is asked.
        "task": infos[0].get("task"),
        **{key: infos[0][key] for key in _ASKED_BY if key in infos[0]},
        "merged_from": {"how": how, "density": None if how == "linear" else density, "adapters": made},
    }
    with drafted(out) as draft:
        size = save_adapter(draft, merged, info)
        together = [_scores(backbone, merged, own, file) for own, file in zip(infos, rows, strict=False)]
    # By their tasks: the folders of studies' adapters are all called alike.
    tasks = [one["task"] or one["adapter"] for one in made]
    lines = [
        f"merged {len(folders)} adapters ({how}) into a LoRA of rank {low.rank}, {size:,} bytes; the rank leaves out at most "
        f"{numbers.percent(low.lost)} of a module's update; it is asked as that for {tasks[0]} was."
    ]
    for task, file, before, after in zip(tasks, rows, alone, together, strict=False):
        lines += [
            f"{task}, {name} on {file.name}: {numbers.score(before[name], 4)} alone, {numbers.score(after[name], 4)} merged"
            for name in before
        ]
    lines += [
        f"{task}: {note}" for task, adapter in zip(tasks, adapters, strict=True) for note in offset_notes(adapter)
    ]
    return lines


_ASKED_BY = ("max_length", "reserved_places")
"""What an adapter says of the length of its rows, without which it is asked otherwise."""


def offset_notes(adapter: Adapter) -> list[str]:
    """A sentence on what of an adapter lies in none of its tensors that change the backbone."""
    if adapter.label_offsets is None:
        return []
    offsets = ", ".join(f"{value:+.2f}" for value in adapter.label_offsets.tolist())
    return [f"not in it: what is added to the log-probability of each label word when labels are scored ({offsets})"]


def _scores(backbone: Backbone, adapter: Adapter, info: Mapping[str, Any], rows: Path) -> dict[str, float]:
    """Scores of an adapter on labelled rows, asked as its task was."""
    attached = Attached(backbone.model, backbone.anatomy)
    attached.put("adapter", adapter)
    try:
        encoder = Encoder(backbone, info.get("max_length"), info.get("reserved_places", 0))
        tuned = Tuned(backbone, attached, list(adapter.methods), stored_task(info), encoder)
        scores: dict[str, float] = evaluate_rows(tuned, rows_of_file(tuned, rows, None, "stop"), 32)["scores"]
        return scores
    finally:
        attached.detach()


def _vllm_rank(rank: int) -> int:
    """vLLM has kernels for some largest ranks only."""
    return next(one for one in (8, 16, 32, 64, 128, 256, 320, 512, max(rank, 512)) if one >= rank)
