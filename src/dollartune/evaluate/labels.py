"""Label scoring: which label word does the model find most likely after the prompt?

    log p(word | prompt) = sum over its tokens of log p(token | prompt, tokens before)

The prompt is computed once. Where every label is one token, its logits say everything; else its keys and values (an
encoder-decoder: the encoder's output) are shared by all labels, and only the labels' own tokens are computed for each.
What several prompts begin with (solved examples) is computed once for all of them, see `shared_prompts`.
`shared=False` is the plain way, the prompt again for each label; the tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.exact_head import exact_head
from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.fsdp import without_gradients
from dollartune.backbones.forward_inputs import takes
from dollartune.errors import UserError
from dollartune.evaluate.shared_prompts import Group, can_share, groups, may_go_on, read_beginning, read_rest
from dollartune.train.batching import Batch, Collator
from dollartune.train.micro_batch import evaluation_batches

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded
    from dollartune.train.features import FeatureStore

LABEL_SLACK_TOKENS = 3
"""Tokens that free generation may write beyond the longest label word: room for a space, a quote or a full stop around it, and no
more, as each costs a pass."""


@without_gradients()
def label_log_probabilities(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    encoded: Sequence[Encoded],
    answers: Sequence[tuple[int, ...]],
    batch_size: int = 32,
    shared: bool = True,
) -> Tensor:
    """log p(label word | prompt), not normalized over labels, (examples, labels) in fp32.

    Args:
        adapter: name of the attached adapter whose rows these are; None for the bare backbone.
        answers: tokens of each label word.
        shared: compute each prompt once where the adapter allows it.
    """
    # In fp32 from the head on: differences between labels are often below the 3 digits that bf16 has.
    scores = torch.zeros(len(encoded), len(answers))
    tuned = attached.adapters[adapter] if adapter is not None else None
    own_places = tuned is not None and bool(
        tuned.virtual or tuned.prefixes
    )  # these have masks and positions of their own
    single = all(len(answer) == 1 for answer in answers)
    if not single and (why := backbone.anatomy.family.refusals.get("answers")):
        raise UserError(
            f"{backbone.anatomy.family.model_types[0]} cannot score answers of several tokens: {why}.",
            hint="Give label words of one token each, or set objective: classification.",
        )
    once = single or (shared and not own_places and may_go_on(backbone))
    prompt_groups = [Group(tuple(range(len(encoded))), 0)]
    if shared and can_share(backbone, tuned):
        prompt_groups = groups([e.prompt for e in encoded])
    with fast_kernels(attached), exact_head(attached):
        for group in prompt_groups:
            beginning = None
            if group.common:
                tokens = encoded[group.indices[0]].prompt[: group.common]
                beginning = read_beginning(backbone, attached, adapter, tokens)
            lengths = [encoded[i].length for i in group.indices]
            # The plain way repeats each prompt for each label: so many fewer prompts make passes of the same size.
            most = batch_size if once else max(1, batch_size // len(answers))
            for batch in evaluation_batches(backbone, lengths, most):
                indices = [group.indices[index] for index in batch]
                rows = [encoded[i] for i in indices]
                if beginning is not None:
                    read = read_rest(backbone, attached, adapter, rows, group.common, beginning)
                    log_p = _after_prompt(backbone, attached, adapter, rows, answers, *read)
                elif single:
                    logits = _pass(backbone, attached, adapter, rows, (answers[0][0],)).logits[0]
                    log_p = logits.float().log_softmax(-1)[:, [answer[0] for answer in answers]]  # (rows, labels)
                elif once and backbone.kind == "encoder_decoder":
                    log_p = _after_encoder(backbone, attached, adapter, rows, answers)
                elif once:
                    prompts = _whole_prompts(backbone, attached, adapter, rows, answers[0][0])
                    log_p = _after_prompt(backbone, attached, adapter, rows, answers, *prompts)
                else:
                    log_p = _each_label(backbone, attached, adapter, rows, answers)
                scores[indices] = log_p.cpu()
    return scores


def _pass(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    rows: Sequence[Encoded],
    answer: tuple[int, ...],
    **more: Any,
) -> Any:
    """The model's output for prompts with one answer, with logits where the answer's tokens are predicted."""
    batch = Collator(backbone)([replace(e, answer=answer) for e in rows]).to(backbone.device)
    with attached.routed(adapter, batch_rows=batch.rows):
        return attached(keep=batch.keep, prompt_lengths=batch.prompt_lengths, **batch.inputs, **more)


def _each_label(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    rows: Sequence[Encoded],
    answers: Sequence[tuple[int, ...]],
) -> Tensor:
    """The plain way: every prompt with every label, (rows, labels)."""
    batch: Batch = Collator(backbone)([replace(e, answer=answer) for e in rows for answer in answers]).to(
        backbone.device
    )
    with attached.routed(adapter, batch_rows=batch.rows):
        # (targets, vocabulary)
        logits = attached(keep=batch.keep, prompt_lengths=batch.prompt_lengths, **batch.inputs).logits[0]
    chosen = logits.float().log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]  # (targets,)
    owner = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts)).to(chosen.device)
    return torch.zeros(len(batch.counts), device=chosen.device).index_add_(0, owner, chosen).view(len(rows), -1)


def _whole_prompts(
    backbone: Backbone, attached: Attached, adapter: str | None, rows: Sequence[Encoded], token: int
) -> tuple[Tensor, Any, Tensor]:
    """Logits (rows, vocabulary) after each prompt, the prompts' cache, and their mask (rows, tokens)."""
    prompt = Collator(backbone)([replace(e, answer=(token,)) for e in rows]).to(backbone.device)
    with attached.routed(adapter, batch_rows=prompt.rows):
        first = attached(keep=prompt.keep, prompt_lengths=prompt.prompt_lengths, use_cache=True, **prompt.inputs)
    return first.logits[0], first.past_key_values, prompt.inputs["attention_mask"]


def _after_prompt(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    rows: Sequence[Encoded],
    answers: Sequence[tuple[int, ...]],
    logits: Tensor,
    cache: Any,
    mask: Tensor,
) -> Tensor:
    """Decoders: labels follow a cache of the prompt's keys and values, (rows, labels).

    Args:
        logits, cache, mask: of the prompts, as `_whole_prompts` gives them.
    """
    count, device = len(answers), backbone.device
    start = logits.float().log_softmax(-1)[:, [answer[0] for answer in answers]]  # (rows, labels)
    if all(len(answer) == 1 for answer in answers):
        return start
    # Copies of a row side by side, the order in which `_label_tokens` has its labels.
    cache.batch_repeat_interleave(count)
    ids, targets, valid = _label_tokens(answers, len(rows), device)
    mask = torch.cat([mask.repeat_interleave(count, 0), valid.long()], dim=1)  # (rows · labels, prompt + label)
    more: dict[str, object] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if takes(backbone.model, "position_ids"):
        # Positions by a row's own length: padding between a short prompt and its label has none.
        lengths = torch.tensor([len(e.prompt) for e in rows], device=device).repeat_interleave(count)
        more["position_ids"] = lengths[:, None] + torch.arange(ids.shape[1], device=device)
    with attached.routed(adapter, batch_rows=len(rows) * count), attached.exclusive_values():
        rest = _summed(backbone.model(**more).logits, targets, valid)  # (rows · labels,)
    scores: Tensor = start + rest.view(len(rows), count)
    return scores


def _after_encoder(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    rows: Sequence[Encoded],
    answers: Sequence[tuple[int, ...]],
) -> Tensor:
    """Encoder-decoders: every label is decoded against one encoding of the prompt, (rows, labels)."""
    from transformers.modeling_outputs import MoEModelOutput

    count, device = len(answers), backbone.device
    collate = Collator(backbone)
    prompt = collate([replace(e, answer=(answers[0][0],)) for e in rows]).to(device)
    with attached.routed(adapter, batch_rows=prompt.rows):
        first = attached(keep=prompt.keep, prompt_lengths=prompt.prompt_lengths, **prompt.inputs)
    start = first.logits[0].float().log_softmax(-1)[:, [answer[0] for answer in answers]]
    encoded = first.encoder_last_hidden_state.repeat_interleave(count, 0)  # (rows · labels, tokens, d)
    ids, targets, valid = _label_tokens(answers, len(rows), device)
    ids = torch.cat([ids.new_full((ids.shape[0], 1), collate.start), ids], dim=1)
    with attached.routed(adapter, batch_rows=len(rows) * count), attached.exclusive_values():
        logits = backbone.model(
            # with fields for routers: encoders with experts (Switch, NLLB) are asked for them
            encoder_outputs=MoEModelOutput(last_hidden_state=encoded),
            attention_mask=prompt.inputs["attention_mask"].repeat_interleave(count, 0),
            decoder_input_ids=ids,
        ).logits
    # The first place reads the start token, whose prediction is in `start` already.
    scores: Tensor = start + _summed(logits[:, 1:], targets, valid).view(len(rows), count)
    return scores


def _label_tokens(answers: Sequence[tuple[int, ...]], rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every row and label: tokens to read, tokens that should follow, and where there are any, (rows x labels, m - 1)."""
    # The last token is predicted and never read.
    longest = max(len(answer) for answer in answers) - 1
    read = torch.zeros(len(answers), longest, dtype=torch.long)
    follow, valid = torch.zeros_like(read), torch.zeros_like(read, dtype=torch.bool)
    for index, answer in enumerate(answers):
        read[index, : len(answer) - 1] = torch.tensor(answer[:-1])
        follow[index, : len(answer) - 1] = torch.tensor(answer[1:])
        valid[index, : len(answer) - 1] = True
    # repeat, not repeat_interleave: all labels of the first row, then all of the second.
    return tuple(t.repeat(rows, 1).to(device) for t in (read, follow, valid))  # type: ignore[return-value]


def _summed(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Sum of the targets' log probabilities where they are valid, (rows,)."""
    chosen = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (chosen * valid).sum(-1)


@without_gradients()
def class_log_probabilities(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    encoded: Sequence[Encoded],
    batch_size: int = 64,
    features: FeatureStore | None = None,
) -> Tensor:
    """log p(class | input) of a classification head, (examples, classes) in fp32.

    Args:
        features: rows' features that are known, for adapters that read those and nothing else.
    """
    readout = attached.adapters[adapter].readout if adapter is not None else None
    if readout is not None and features is not None:
        known = features.of(readout, backbone, attached, encoded, batch_size)
        tokens = [row.prompt for row in encoded] if readout.counts_tokens else None
        return readout.scores(known.to(backbone.device), tokens).log_softmax(-1).cpu()
    log_probabilities: Tensor | None = None
    collate = Collator(backbone)
    with fast_kernels(attached):
        for indices in evaluation_batches(backbone, [e.length for e in encoded], batch_size):
            batch = collate([encoded[i] for i in indices]).to(backbone.device)
            with attached.routed(adapter, batch_rows=batch.rows):
                logits = attached(None, None, **batch.inputs).logits
            log_probabilities = (
                torch.zeros(len(encoded), logits.shape[-1]) if log_probabilities is None else log_probabilities
            )
            log_probabilities[indices] = logits.float().log_softmax(-1).cpu()  # back in the order in which rows came
    assert log_probabilities is not None
    return log_probabilities
