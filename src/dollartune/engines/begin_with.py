"""Begins an adapter with the tensors of a tuned one, where they compute here what they computed there.

    tuned: lora (rank 8), head (a, b) ──> same backbone? methods? ──> sites, sizes? ──> constants? ──> copied
                                                                                                       head: of the same classes

Names and sizes alone do not tell: a LoRA of alpha 32 has the tensors of one of alpha 16, and is another function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dollartune.attachment.adapter import Adapter
from dollartune.export.directory import check_sizes, check_tokenizer
from dollartune.export.other_backbone import other_backbone
from dollartune.methods.base import MethodConfig
from dollartune.methods.registry import build_method, reference
from dollartune.methods.stored_adapter import CONFIG, WEIGHTS, read_info
from dollartune.untrusted_files import read_tensors

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.base import Method
    from dollartune.methods.edits import Edit
    from dollartune.tasks.base import Task

_NOT_OF_EDITS = {*MethodConfig.model_fields, "dropout"}
"""Settings of any method that no edit computes with at inference: where methods differ in these alone, nothing is built to
compare them, as in a search over learning rates."""


@dataclass(frozen=True)
class Beginning:
    """What became of an adapter that should begin with a tuned one."""

    begun: bool
    """Whether it has its tensors."""
    remark: str = ""
    """Why it has not; or what of the tuned one it has not taken."""


def begin_with(folder: Path, adapter: Adapter, backbone: Backbone, task: Task) -> Beginning:
    """Fills a new adapter with the tensors of a tuned one, if it is of the same backbone and methods, at the same sites, in the
    same sizes, and with the settings that decide what tensors compute.

    A head is taken only where it scores the task's classes, in their order; else, and where one of the two has none, it begins as
    it is. Offsets of labels are left: they correct the scores of what was tuned, and training changes these.

    Raises:
        UserError: the folder holds no adapter, or one for another tokenizer.
    """
    info = read_info(folder)
    check_tokenizer(folder, info, backbone)
    described = [build_method(settings) for settings in info["methods"]]
    head = reference("head").name
    names, names_here = ([method.name for method in methods] for methods in (described, adapter.methods))
    # The head comes last where there is one, so the methods before it are compared in order.
    count = min(len(names), len(names_here))
    if names[:count] != names_here[:count] or {*names[count:], *names_here[count:]} - {head}:
        return Beginning(False, f"it is of {' + '.join(names)}, not of {' + '.join(names_here)}")
    if other := other_backbone(folder, info, backbone):
        return Beginning(False, other)
    taken, left = set(range(count)), []
    labels, labels_here = list((info.get("task") or {}).get("label_words") or ()), list(task.labels)
    if backbone.objective == "classification" and labels != labels_here:
        classes = f"its classes are {', '.join(labels) or 'not known'}, not {', '.join(labels_here)}"
        taken -= {index for index in taken if names[index] == head}
        # Tuning all tunes the head too, in the same tensors.
        if not taken or any("model" in adapter.methods[index].kinds for index in taken):
            return Beginning(False, classes)
        if len(taken) < count:
            left.append(f"with a new head, as {classes}")
    tensors, fresh = read_tensors(folder, WEIGHTS), adapter.tensors()
    if tensors.pop("label_offsets", None) is not None:
        left.append("without what is added to its scores of labels, which training changes")
    stored = {name: tensor for name, tensor in tensors.items() if _part_of(name) in {*taken, None}}
    kept = {name: tensor for name, tensor in fresh.items() if _part_of(name) not in taken}
    if {n: t.shape for n, t in (stored | kept).items()} != {n: t.shape for n, t in fresh.items()}:
        return Beginning(False, "it has other modules or sizes")
    check_sizes(folder, described, backbone.anatomy, backbone.model, sum(tensor.numel() for tensor in tensors.values()))
    if other := _other_function(described, adapter, sorted(taken), backbone):
        return Beginning(False, f"{other}; its settings are in {folder / CONFIG}")
    adapter.load(stored | kept)
    return Beginning(True, ", ".join(left))


def _part_of(tensor: str) -> int | None:
    """The number of the method that a tensor of an adapter belongs to; None where it belongs to none."""
    found = re.match(r"parts\.(\d+)\.", tensor)
    return None if found is None else int(found[1])


def _other_function(
    described: Sequence[Method[Any]], adapter: Adapter, taken: Sequence[int], backbone: Backbone
) -> str:
    """In what stored methods compute otherwise than an adapter's with the same tensors; empty where they do not."""
    if all(_deciding(described[index]) == _deciding(adapter.methods[index]) for index in taken):
        return ""
    # Edits and not settings: rank_pattern of a site says what rank does of all, and imports write it so.
    stored = Adapter([described[index] for index in taken], backbone.anatomy, backbone.model)
    for part, index in zip(stored.parts, taken, strict=True):
        pairs = zip(part.items(), adapter.parts[index].items(), strict=True)  # type: ignore[operator]
        for (site, then), (_, now) in pairs:
            if why := _difference(then, now):
                return f"at {site.name} it has {why}"
    return ""


def _deciding(method: Method[Any]) -> dict[str, object]:
    settings: dict[str, object] = method.config.model_dump(exclude=_NOT_OF_EDITS)
    return settings


def _difference(then: Edit, now: Edit) -> str:
    if type(then) is not type(now):
        return f"{type(then).__name__}, not {type(now).__name__}"
    constants, constants_here = then.constants(), now.constants()
    for name in sorted(constants.keys() | constants_here.keys()):
        if constants.get(name) != constants_here.get(name):
            return f"{name} {constants.get(name)}, not {constants_here.get(name)}"
    # What is not stored but drawn again: projections of another seed.
    drawn, drawn_here = _drawn_again(then), _drawn_again(now)
    other = next((name for name in drawn if not torch.equal(drawn[name].cpu(), drawn_here[name].cpu())), None)
    return "" if other is None else f"another {other}"


def _drawn_again(edit: Edit) -> dict[str, torch.Tensor]:
    stored = edit.state_dict(keep_vars=True)  # keep_vars: nothing is copied
    return {name: tensor for name, tensor in edit.named_buffers() if name not in stored}
