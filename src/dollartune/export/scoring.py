"""Logits of an adapter on a few inputs: what was written is loaded again and must give the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.attachment.attached import Attached
from dollartune.backbones.marks import special_ids
from dollartune.backbones.miniature import image_shape
from dollartune.backbones.token_table import output_head, vocabulary_size
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone


def sample_inputs(backbone: Backbone, rows: int = 3, tokens: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Inputs for a backbone: random tokens, the last row two shorter and padded, or random pixels."""
    config = backbone.model.config
    generator = torch.Generator().manual_seed(seed)
    if backbone.kind == "vision":
        channels, height, width = image_shape(config)
        inputs = {"pixel_values": torch.randn(rows, channels, height, width, generator=generator)}
        return {name: t.to(backbone.device, backbone.dtype) for name, t in inputs.items()}
    # Random ids must not be marks: a row with an end in the middle is read differently by classifiers.
    special = special_ids(config)
    # From 5 on: the first ids are marks in most vocabularies, and special ones beyond are replaced below.
    vocabulary = vocabulary_size(backbone.model)
    ids = torch.randint(5, vocabulary, (rows, tokens), generator=generator)
    for number in special:
        ids[ids == number] = next(n for n in range(5, vocabulary) if n not in special)
    mask = torch.ones_like(ids)
    # One padded row: a merged model or another library may handle padding differently, which full rows would hide.
    mask[-1, tokens - 2 :] = 0
    ids[mask == 0] = config.pad_token_id or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if backbone.kind == "encoder_decoder" and backbone.objective == "language":
        # FSMT writes another vocabulary than it reads
        written = getattr(output_head(backbone.model), "out_features", vocabulary)
        inputs["decoder_input_ids"] = torch.randint(5, min(vocabulary, written), (rows, 4), generator=generator)
    elif backbone.kind == "encoder_decoder":  # BART's classifier reads where the end mark is
        ends = config.eos_token_id
        ids[torch.arange(rows), mask.sum(-1) - 1] = ends[0] if isinstance(ends, list) else ends
    return {name: t.to(backbone.device) for name, t in inputs.items()}


@torch.no_grad()
def adapter_logits(backbone: Backbone, adapter: Adapter | None, inputs: dict[str, Any]) -> Tensor:
    """Logits under an adapter, fp32: (rows, classes), or (real tokens, vocabulary)."""
    attached = Attached(backbone.model, backbone.anatomy)
    if adapter is not None:
        attached.put("scored", adapter)
    training = backbone.model.training
    backbone.model.eval()
    try:
        with attached.routed("scored" if adapter is not None else None):
            if backbone.objective == "classification":
                result: Tensor = attached(**inputs).logits
            else:
                result = attached(keep=real_places(inputs), **inputs).logits[0]
    finally:
        attached.detach()
        backbone.model.train(training)
    return result.float().cpu()


def real_places(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(row, position) of each token that is no padding, in the stack that answers."""
    mask = torch.ones_like(inputs["decoder_input_ids"]) if "decoder_input_ids" in inputs else inputs["attention_mask"]
    rows, positions = mask.nonzero(as_tuple=True)
    return rows, positions


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference of logits, relative to the largest logit, that is rounding."""
    # Eight bits of mantissa round by 0.4 % in each of a dozen layers; merging rounds the weights once more.
    return {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}.get(dtype, 1e-5)


def require_equal(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> float:
    """The largest difference of two sets of logits.

    Raises:
        UserError: it is more than rounding.
    """
    if actual.shape != expected.shape:
        raise UserError(f"{what} gives logits of shape {tuple(actual.shape)}, the adapter {tuple(expected.shape)}.")
    difference = float((actual - expected).abs().max())
    allowed = tolerance(dtype) * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:  # not-a-number fails too
        raise UserError(
            f"{what} does not give what the adapter gives: logits differ by {difference:.2e}, allowed are {allowed:.2e}."
        )
    return difference


def require_same_weights(again: nn.Module, written: nn.Module, what: str) -> None:
    """Whether a model that was read back has the weights that were written, bit for bit. In 16 bits logits say little of it: many
    an adapter moves them by less than rounding may.

    Raises:
        UserError: one differs, or is not there.
    """
    found = dict(again.named_parameters(remove_duplicate=False))
    for name, value in written.named_parameters():
        other = found.get(name)
        if other is None or other.shape != value.shape or not torch.equal(other, value.to(other)):
            raise UserError(f"{what} has another {name} than was written.")


def rounding_notes(difference: float, untuned: float, lost: float, dtype: torch.dtype) -> list[str]:
    """A sentence where rounding took so much of what was tuned that the result may answer like the backbone without it.

    Args:
        difference: of the logits from the adapter's.
        untuned: the same of the bare backbone.
        lost: largest share of a module's update that rounding took.
    """
    if dtype == torch.float32 or (difference <= untuned / 2 and lost <= 0.5):
        return []
    name = str(dtype).removeprefix("torch.")
    return [
        f"rounding to {name} takes much of what was tuned away (the untuned backbone's logits differ by {untuned:.1e}, these by "
        f"{difference:.1e}): --dtype float32 keeps it; score this on rows of your own before you use it."
    ]


def peft_installed() -> bool:
    """Whether the peft library can be imported here."""
    from importlib.util import find_spec

    return find_spec("peft") is not None


@torch.no_grad()
def peft_logits(backbone: Backbone, folder: Any, inputs: dict[str, Tensor]) -> Tensor:
    """As `adapter_logits`, by the peft library from a directory in its format; the backbone is copied.

    The only use of peft in the program, and imported only when it is asked for: whoever gets an adapter in its format will
    load it with peft, so peft itself must say that the logits are the same. Nothing is trained with it, hence it is no
    dependency.

    Raises:
        UserError: peft is not installed, or cannot load the adapter on this family.
    """
    import copy
    import warnings

    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError(
            f"scoring an adapter by the peft library needs {error.name}, which is not installed.",
            hint="pip install peft",
        ) from None

    model = copy.deepcopy(backbone.model)
    if backbone.objective == "classification":
        # A head is drawn anew by whoever loads the checkpoint next: what is not in the adapter's file must show.
        generator = torch.Generator().manual_seed(1)
        for site in backbone.anatomy.heads:
            for parameter in model.get_submodule(site.exit).parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = peft.PeftModel.from_pretrained(model, str(folder)).eval()
            logits: Tensor = loaded(**inputs).logits
        except Exception as error:  # its own limits: families without a cache, modules it will not touch
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the peft library cannot carry this adapter on {backbone.model.config.model_type}: {first}",
                hint="Serve it here, or export it merged where the method allows it.",
            ) from error
    if backbone.objective == "classification":
        return logits.float().cpu()
    rows, positions = real_places(inputs)
    extra = logits.shape[1] - inputs["decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"].shape[1]
    return logits[rows, positions + extra].float().cpu()
