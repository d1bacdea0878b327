"""Label words scored after prompts of any adapters: rows of all adapters share a pass, as texts do.

    row 0, adapter a   [ . . prompt ] ─┐                   ┌─ (" good")            first tokens: from the prompt's logits
    row 1, adapter b   [ prompt     ] ─┼─ keys and values ─┼─ (" bad")
    row 2, adapter a   [ .   prompt ] ─┘                   └─ (" so", " so")       the others: one more pass, for the labels
                                                                                  that have more than one

`evaluate.labels` computes the same for one adapter; `tests/serve/test_label_rows.py` holds the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.exact_head import exact_head
from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.inputs import tell_edits
from dollartune.backbones.forward_inputs import takes
from dollartune.evaluate.shared_prompts import groups, may_go_on
from dollartune.serve.beginnings import reads_each_token
from dollartune.serve.cache import cache_of, pairs_of
from dollartune.serve.reading import Reading, run_pass
from dollartune.train.micro_batch import evaluation_batches

if TYPE_CHECKING:
    from dollartune.serve.pool import Pool, Served

ROWS = 64
"""Rows of a pass: those of one full request. Products of a processor gain nothing from more."""
_ALL = 1 << 62
"""Tokens to read at once: a slice was made small enough before."""


@dataclass(frozen=True)
class LabelRow:
    """A prompt, and the label words that may follow it."""

    served: Served
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    """Tokens of each label word."""
    scores_prompt: bool = False

    @property
    def tokens(self) -> int:
        """About how much work it is."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


def shares_passes(pool: Pool, served: Served) -> bool:
    """Whether an adapter's label rows can be computed beside those of others: its prompts can be gone on from as texts are."""
    adapter = served.adapter
    own_places = served.past is None and bool(adapter.virtual or adapter.prefixes)
    return (
        pool.backbone.kind == "decoder"
        and pool.backbone.objective == "language"
        and pool.backbone.anatomy.rows_join
        and may_go_on(pool.backbone)
        and adapter.mixed_rows
        and not own_places
        and reads_each_token(served)
        # solved examples, calibration: the evaluation knows how
        and all(method.prompting is None for method in adapter.methods)
    )


@torch.inference_mode()
def score_labels(pool: Pool, rows: Seq[LabelRow]) -> list[Tensor]:
    """log p(label word | prompt) of each row, not normalized over its labels, (labels,) in fp32.

    Args:
        rows: of adapters that share passes, at most as many as may be held in memory at a time.
    """
    scores: list[Tensor] = [torch.empty(0)] * len(rows)
    _read_beginnings(pool, rows)
    with exact_head(pool.attached):
        for batch in evaluation_batches(pool.backbone, [row.tokens for row in rows], ROWS):
            reading = Reading(pool, [rows[index] for index in batch])
            # Which row each place of the pass is: it orders them by adapter.
            place_of = {id(row): place for place, row in enumerate(reading.rows)}
            for index, found in zip(
                batch, _of_batch(pool, reading, [place_of[id(rows[i])] for i in batch]), strict=True
            ):
                offsets = rows[index].served.adapter.label_offsets
                scores[index] = found if offsets is None else found + offsets.cpu()
    return scores


def _of_batch(pool: Pool, reading: Reading[LabelRow], places: Seq[int]) -> list[Tensor]:
    """The scores of the rows at these places."""
    while reading.logits is None:
        reading.go_on(_ALL)
    first = reading.logits.float().log_softmax(-1)  # (rows, vocabulary)
    counts = [len(row.answers) for row in reading.rows]
    of = torch.tensor(counts).cumsum(0).tolist()
    owner = [place for place, count in enumerate(counts) for _ in range(count)]
    answers = [answer for row in reading.rows for answer in row.answers]
    index = torch.tensor([owner, [answer[0] for answer in answers]], device=first.device)
    scores = first[index[0], index[1]].cpu()  # (all labels of all rows,)
    longer = [number for number, answer in enumerate(answers) if len(answer) > 1]
    # Copies of a row's keys and values, one for each of its longer labels: so many at a time as rows of a pass.
    for start in range(0, len(longer), ROWS):
        chosen = longer[start : start + ROWS]
        scores[chosen] += _rest(pool, reading, [owner[n] for n in chosen], [answers[n] for n in chosen]).cpu()
    return [scores[of[place] - counts[place] : of[place]] for place in places]


def _rest(pool: Pool, reading: Reading[LabelRow], of: list[int], answers: list[tuple[int, ...]]) -> Tensor:
    """log p of each answer's tokens after the first, (answers,).

    Args:
        of: the row of the reading that each follows, in order.
    """
    device = pool.backbone.device
    longest = max(len(answer) for answer in answers) - 1  # the last token is predicted and never read
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    targets, valid = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, answer in enumerate(answers):
        ids[number, : len(answer) - 1] = torch.tensor(answer[:-1])
        targets[number, : len(answer) - 1] = torch.tensor(answer[1:])
        valid[number, : len(answer) - 1] = 1
    ids, targets, valid = (t.to(device) for t in (ids, targets, valid))
    row = torch.tensor(of, device=device)
    prepared: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.cat([reading.visible[row], valid], dim=1),
        "past_key_values": cache_of([(keys[row], values[row]) for keys, values in pairs_of(reading.cache)]),
    }
    if takes(pool.backbone.model, "position_ids"):
        prepared["position_ids"] = reading.positions[row][:, None] + torch.arange(longest, device=device)
    attached = pool.attached
    route = pool.assignments([reading.rows[place].served for place in of], prompts=False)
    with attached.routed(*route, batch_rows=len(of)):
        state = tell_edits(attached.state, attached.anatomy, None)  # a label is no part of the prompt
        logits, _ = run_pass(attached, prepared, state, DecodeCache(), everywhere=True)
    log_p = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (log_p * valid).sum(-1)


def _read_beginnings(pool: Pool, rows: Seq[LabelRow]) -> None:
    """Reads what several prompts of an adapter begin with (an instruction, solved examples) once, and keeps it."""
    begins = pool.beginnings
    by_adapter: dict[int, list[LabelRow]] = {}
    for row in rows:
        by_adapter.setdefault(id(row.served), []).append(row)
    for own in by_adapter.values():
        for group in groups([row.prompt for row in own]):
            row = own[group.indices[0]]
            beginning = replace(row, prompt=row.prompt[: group.common])
            if begins.wants(row.served, beginning.prompt):
                reading = Reading(pool, [beginning])
                while reading.logits is None:
                    reading.go_on(_ALL)
                begins.keep(row.served, beginning.prompt, pairs_of(reading.cache), 0, reading.visible[0])
