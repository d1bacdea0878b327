"""Begins a trained head at the solved one: logistic regression on what this head will read (LP-FT).

    rows ──> backbone ──> [head: hidden layers, if it has any] ──> h (width,) ──> last linear of the head
                                                                   └──> solved: W, b ──> copied into what is trained

Where a head reads a pooled state of the backbone as it is, h comes from the features that the study keeps; else one pass over
the rows gives it, with the head's hidden layers as this trial begins with them.

Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution". Regularization
decides whether it helps: C comes from cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.methods.edits import Override
from dollartune.methods.features import LabelledFeatures, read_by_head
from dollartune.methods.registry import reference
from dollartune.train.batching import Collator
from dollartune.train.micro_batch import evaluation_batches

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded
    from dollartune.train.features import FeatureStore
    from dollartune.train.trial import TrialState


@torch.no_grad()
def begin_at_probe(
    state: TrialState, backbone: Backbone, attached: Attached, store: FeatureStore, batch_size: int
) -> bool:
    """Fills the trained copy of the head's last linear; says whether there was one.

    The adapter is attached under the trial's name, and no step has been made.
    """
    last = last_linear(backbone)
    if last is None:
        return False
    path, linear = last
    weight, bias = (_trained(state.adapter, f"{path}.{name}") for name in ("weight", "bias"))
    if weight is None:
        return False
    # A prompt or prefix changes what the head reads from the start, so kept features are not what it gets.
    unchanged = all(m.capabilities.identity or set(m.kinds) == {"head"} for m in state.adapter.methods)
    pooling = read_by_head(backbone.anatomy)
    if unchanged and pooling and _reads_last_states(backbone, path):
        features = store.features(backbone, attached, state.train, pooling, batch_size)
    else:
        features = read_features(linear, state.name, backbone, attached, state.train, batch_size)
    labels = torch.tensor([row.label for row in state.train])
    rows = LabelledFeatures(features, labels, weight.shape[0], state.seed)
    solved = reference("probe")().linear_head(rows, intercept=bias is not None)
    weight.copy_(solved[0])
    if bias is not None:
        bias.copy_(solved[1])
    return True


def _reads_last_states(backbone: Backbone, path: str) -> bool:
    """Whether the linear at `path` is the whole head, with no weights between the base model and it (ModernBERT's decoder has a
    dense layer and a norm there)."""
    base = backbone.anatomy.base_prefix
    inside = (base, f"{path}.") if base else (f"{path}.",)
    beside = [name for name, _ in backbone.model.named_parameters() if not name.startswith(inside)]
    return path == backbone.anatomy.at("head")[0].exit and (not base or not beside)


@torch.no_grad()
def read_features(
    linear: nn.Module,
    adapter: str,
    backbone: Backbone,
    attached: Attached,
    rows: Sequence[Encoded],
    batch_size: int,
) -> Tensor:
    """(rows, width) in fp32: what a linear of the head gets, under the adapter; at the last real token where it gets all."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    collate = Collator(backbone)
    vectors: list[Tensor | None] = [None] * len(rows)
    handle = linear.register_forward_pre_hook(keep)
    try:
        for indices in evaluation_batches(backbone, [row.length for row in rows], batch_size):
            inputs: dict[str, Any] = collate([rows[index] for index in indices]).to(backbone.device).inputs
            seen.clear()
            with attached.routed(adapter, batch_rows=len(indices)):
                attached(**inputs)
            states = seen[
                -1
            ]  # the first call may be that of the backbone's own head, before the trial's values take its place
            if states.dim() == 3 and states.shape[1] == 1:  # one pooled state, with a place for tokens
                states = states[:, 0]
            elif states.dim() == 3:  # a decoder's head: its model reads the scores at the last real token
                last = inputs["attention_mask"].sum(-1) - 1  # (rows,); training pads on the right
                states = states[torch.arange(len(indices), device=states.device), last]
            for index, vector in zip(indices, states.float().cpu(), strict=True):
                vectors[index] = vector
    finally:
        handle.remove()
    return torch.stack([vector for vector in vectors if vector is not None])


def last_linear(backbone: Backbone) -> tuple[str, nn.Module] | None:
    """Path and module of the linear that gives the scores of classes; None where the backbone has no head for classes."""
    sites = backbone.anatomy.at("head")
    if backbone.objective != "classification" or not sites:
        return None
    head = backbone.model.get_submodule(sites[0].exit)
    linears = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        return None
    name, linear = linears[-1]  # the head itself, or the last one in it
    return f"{sites[0].exit}.{name}" if name else sites[0].exit, linear


def class_bias(adapter: Adapter, backbone: Backbone) -> Tensor | None:
    """(classes,): what an adapter adds to the scores of classes; None where it has no such tensor, as heads of decoders."""
    if adapter.readout is not None:
        bias = getattr(adapter.readout, "bias", None)
        return bias if isinstance(bias, Tensor) else None
    last = last_linear(backbone)
    return None if last is None else _trained(adapter, f"{last[0]}.bias")


def classes_scored(adapter: Adapter, backbone: Backbone) -> int | None:
    """Number of classes that an adapter's own trained head scores; None where it has none, or a solved one in its place."""
    last = last_linear(backbone)
    weight = None if last is None or adapter.readout is not None else _trained(adapter, f"{last[0]}.weight")
    return None if weight is None else weight.shape[0]


def has_offsets(adapter: Adapter, backbone: Backbone) -> bool:
    """Whether an adapter has a place for offsets of classes: a bias of its own, or the scores of label words."""
    return backbone.objective == "language" or class_bias(adapter, backbone) is not None


@torch.no_grad()
def shift_classes(adapter: Adapter, backbone: Backbone, offsets: Sequence[float]) -> None:
    """Adds offsets to the scores of classes, wherever they are computed: the adapter's own tensor holds them from now on."""
    bias = class_bias(adapter, backbone)
    if bias is None:
        adapter.shift_labels(offsets)
        return
    bias += torch.tensor(offsets, dtype=bias.dtype, device=bias.device)


def _trained(adapter: Adapter, name: str) -> nn.Parameter | None:
    """The adapter's own tensor in the place of a parameter of the backbone."""
    for site, edit in adapter.items():
        prefix = f"{site.exit}." if site.exit else ""
        if isinstance(edit, Override) and name.startswith(prefix):
            tensor = edit.trained(name.removeprefix(prefix))
            if tensor is not None:
                return tensor
    return None
