"""Label scoring: which label word does the model find most likely after the prompt?

    log p(word | prompt) = sum over its tokens of log p(token | prompt, tokens before)

Where every label is one token, one pass over the prompts gives all labels at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dollartune.attach.attached import Attached
from dollartune.backbones.loading import Backbone
from dollartune.train.batching import Batch, Collator, by_length
from dollartune.train.encoding import Encoded


@torch.inference_mode()
def label_log_probabilities(
    backbone: Backbone,
    attached: Attached,
    adapter: str | None,
    encoded: Sequence[Encoded],
    answers: Sequence[tuple[int, ...]],
    batch_size: int = 32,
) -> Tensor:
    """log p(label word | prompt), not normalized over labels, (examples, labels) in fp32.

    Args:
        adapter: name of the attached adapter whose rows these are; None for the bare backbone.
        answers: tokens of each label word.
    """
    scores = torch.zeros(len(encoded), len(answers))
    collate = Collator(backbone)
    single = all(len(answer) == 1 for answer in answers)
    for indices in by_length([e.length for e in encoded], batch_size if single else max(1, batch_size // len(answers))):
        rows = [encoded[i] for i in indices]
        if single:
            batch = collate([replace(e, answer=(answers[0][0],)) for e in rows])
            log_p = _log_softmax(backbone, attached, adapter, batch)  # (rows, vocabulary)
            scores[indices] = log_p[:, [answer[0] for answer in answers]].cpu()
            continue
        batch = collate([replace(e, answer=answer) for e in rows for answer in answers])
        log_p = _log_softmax(backbone, attached, adapter, batch)  # (targets, vocabulary)
        chosen = log_p.gather(1, batch.targets.to(log_p.device)[:, None])[:, 0]
        owner = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts)).to(chosen.device)
        sums = torch.zeros(len(batch.counts), device=chosen.device).index_add_(0, owner, chosen)
        scores[indices] = sums.view(len(rows), len(answers)).cpu()
    return scores


def _log_softmax(backbone: Backbone, attached: Attached, adapter: str | None, batch: Batch) -> Tensor:
    batch = batch.to(backbone.device)
    with attached.routed(adapter, batch_rows=batch.rows):
        output = attached(keep=batch.keep, prompt_lengths=batch.prompt_lengths, **batch.inputs)
    return output.logits[0].float().log_softmax(-1)  # type: ignore[no-any-return]


@torch.inference_mode()
def class_log_probabilities(
    backbone: Backbone, attached: Attached, adapter: str | None, encoded: Sequence[Encoded], batch_size: int = 64
) -> Tensor:
    """log p(class | input) of a classification head, (examples, classes) in fp32."""
    found: Tensor | None = None
    collate = Collator(backbone)
    for indices in by_length([e.length for e in encoded], batch_size):
        batch = collate([encoded[i] for i in indices]).to(backbone.device)
        with attached.routed(adapter, batch_rows=batch.rows):
            logits = attached(**batch.inputs).logits
        found = torch.zeros(len(encoded), logits.shape[-1]) if found is None else found
        found[indices] = logits.float().log_softmax(-1).cpu()
    assert found is not None
    return found
