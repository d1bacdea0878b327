"""Forgetting: how much worse a tuned model predicts general text than the backbone did before.

    forgetting = L(general text, tuned) - L(general text, backbone)        nats per token, above 0: something was lost

    decoder            the rest of each text after its first quarter, token by token
    encoder-decoder    cut spans, where the vocabulary has marks for them (T5); else the rest of each text after its half
    encoder            masked tokens, read by the pretrained head on top of the tuned layers
    vision             no meaning: there is no text; the same for encoders whose checkpoint has no head for words

It holds for the model with its adapter on. Taken off, the backbone is bit-equal to what it was; after full tuning
there is nothing to take off.

Source: "catastrophic forgetting" as loss on text of before, for example Luo et al., "An empirical study of catastrophic
forgetting in large language models during continual fine-tuning", 2023, and Biderman et al., "LoRA learns less and
forgets less", 2024. Span lengths are fixed (3 of every 20 tokens) instead of drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.fsdp import without_gradients
from dollartune.errors import UserError
from dollartune.train.batching import Collator, by_length
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.loss import trial_losses

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone

# Long enough for the context to matter, short enough that the measurement takes a second or two of every trial.
LONGEST = 256
"""Most tokens of one text."""
# 15 % in spans of 3 are the shares that BERT and T5 were pretrained with; other shares would be unfamiliar to the model.
SPAN, EVERY = 3, 20
"""Of every 20 tokens 3 in a row are hidden (15 %)."""


@dataclass(frozen=True)
class Forgetting:
    """Loss on general text, nats per token, before and after tuning."""

    before: float
    after: float
    tokens: int

    @property
    def change(self) -> float:
        """Above zero: the tuned model predicts general text worse."""
        return self.after - self.before


@cache
def general_texts(path: str | None = None) -> tuple[str, ...]:
    """Paragraphs of general text: those that ship with the package, or those of a file.

    Raises:
        UserError: no such file, or nothing in it.
    """
    file = Path(path) if path else Path(__file__).with_name("general_text.txt")
    if not file.is_file():
        raise UserError(f"evaluation.general_text: there is no file {str(file)!r}.")
    blocks = [" ".join(block.split()) for block in file.read_text(encoding="utf8").split("\n\n")]
    texts = tuple(text for text in blocks if text)
    if not texts:
        raise UserError(f"evaluation.general_text: {str(file)!r} holds no text.")
    return texts


class GeneralText:
    """Measures the loss on general text for the adapters of one backbone.

    Args:
        encoder: of the task, so that the same places are left free for virtual tokens.
        path: a text file, paragraphs separated by empty lines; by default the text of the package.
    """

    def __init__(
        self, backbone: Backbone, attached: Attached, encoder: Encoder, path: str | None = None, batch_size: int = 8
    ) -> None:
        self.backbone, self.attached, self.batch_size = backbone, attached, batch_size
        self.words: nn.Module | None = None
        """An encoder's pretrained head for masked words."""
        self.reason = self._without_meaning()
        """Why it cannot be measured here; empty where it can."""
        self.rows = [] if self.reason else self._encode(encoder, general_texts(path))
        if not self.rows:
            self.reason = self.reason or "the texts are shorter than eight tokens"
        self._before: tuple[float, int] | None = None

    def _without_meaning(self) -> str:
        if self.backbone.kind == "vision":
            return "a vision model reads no text"
        if self.backbone.objective == "language":
            return ""
        if self.backbone.kind != "encoder":
            return "a classifier has no head that writes words"
        self.words = masked_word_head(self.backbone)
        return "" if self.words is not None else "this encoder's checkpoint has no head for masked words"

    def measure(self, adapter: str) -> Forgetting:
        """Loss with the adapter of that name beside the bare backbone's, which is computed once."""
        if self._before is None:
            self._before = self._loss(None)
        after, tokens = self._loss(adapter)
        return Forgetting(self._before[0], after, tokens)

    # Encoding

    def _encode(self, encoder: Encoder, texts: tuple[str, ...]) -> list[Encoded]:
        tokenizer, limit = self.backbone.processor, min(LONGEST, encoder.max_length)
        marks = _span_marks(tokenizer) if self.backbone.kind == "encoder_decoder" else []
        end = getattr(tokenizer, "eos_token_id", None)
        rows = []
        for number, text in enumerate(texts):
            ids = encoder.prompt_ids(text)[:limit]
            # A quarter of fewer than 8 tokens is hardly a context.
            if len(ids) < 8:
                continue
            name = f"general/{number}"
            if self.backbone.kind == "encoder":
                rows.append(Encoded(name, prompt=ids))
            elif self.backbone.kind == "decoder":
                # The first quarter is not scored: tokens without context say little about what was forgotten, and are noisy.
                rows.append(Encoded(name, ids[: len(ids) // 4], ids[len(ids) // 4 :]))
            elif marks:
                # The end mark is no word of the text and is put back after the cut.
                text_ids = ids[:-1] if ids[-1] == end else ids
                prompt, answer = cut_spans(text_ids, marks)
                rows.append(
                    Encoded(name, (*prompt, end), (*answer, end)) if end is not None else Encoded(name, prompt, answer)
                )
            else:
                # Without marks for spans (BART): the second half is written after reading the first.
                rows.append(Encoded(name, ids[: len(ids) // 2], ids[len(ids) // 2 :]))
        return rows

    # Losses

    @without_gradients()
    def _loss(self, adapter: str | None) -> tuple[float, int]:
        total, tokens = 0.0, 0
        routed = self.attached.adapters[adapter] if adapter is not None else None
        if self.words is not None:
            # A few dozen texts, so batching would save little.
            for row in self.rows:  # one at a time: without padding it is known where virtual tokens moved each word
                loss, count = self._masked(adapter, row.prompt, self.words)
                total, tokens = total + loss, tokens + count
            return total / tokens, tokens
        collate = Collator(self.backbone)
        for indices in by_length([row.length for row in self.rows], self.batch_size):
            batch = collate([self.rows[index] for index in indices]).to(self.backbone.device)
            every = slice(0, batch.targets.shape[0])
            losses = trial_losses(self.attached, batch, [Assignment(routed, slice(0, batch.rows))], [every])
            total, tokens = total + float(losses[0]), tokens + batch.targets.shape[0]
        return total / tokens, tokens

    def _masked(self, adapter: str | None, ids: tuple[int, ...], words: nn.Module) -> tuple[float, int]:
        """Summed loss of the hidden tokens of one text, and how many they are."""
        tokenizer = self.backbone.processor
        masked = torch.tensor(hidden_places(len(ids)))
        true = torch.tensor(ids)
        given = true.clone()
        given[masked] = tokenizer.mask_token_id
        device = self.backbone.device
        inputs = {
            "input_ids": given[None].to(device),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long).to(device),
        }
        with self.attached.routed(adapter, batch_rows=1):
            # (1, virtual + tokens, d)
            states = self.attached(None, None, output_hidden_states=True, **inputs).hidden_states[-1]
        moved = masked + states.shape[1] - len(ids)  # virtual tokens stand before every place but the first
        logits = _read(words, states)[0, moved.to(device)]
        loss = functional.cross_entropy(logits.float(), true[masked].to(device), reduction="sum")
        return float(loss), len(masked)


def hidden_places(length: int) -> list[int]:
    """Places that are hidden in a text of that many tokens: a span in the middle of every stretch, never the first or
    the last token.

    Examples:
        >>> hidden_places(24)
        [8, 9, 10]
    """
    start = (EVERY - SPAN) // 2
    stretches = range(0, max(1, length - start), EVERY)
    hidden = [at + start + i for at in stretches for i in range(SPAN) if at + start + i < length - 1]
    return hidden or [length // 2]


def cut_spans(ids: tuple[int, ...], marks: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """T5's form: the text with marks for what was cut, and the marks with what was there.

    Source: Raffel et al., "Exploring the limits of transfer learning", 2020, section 3.1.4.
    """
    hidden = set(hidden_places(len(ids)))
    prompt: list[int] = []
    answer: list[int] = []
    used = 0
    for index, token in enumerate(ids):
        if index not in hidden or used > len(marks):
            prompt.append(token)
            continue
        if index - 1 not in hidden:
            if used == len(marks):  # a longer text than there are marks: the rest is left whole
                used += 1
                prompt.append(token)
                continue
            prompt.append(marks[used])
            answer.append(marks[used])
            used += 1
        answer.append(token)
    return tuple(prompt), tuple(answer)


def _span_marks(tokenizer: Any) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1> ...; empty where the vocabulary has none."""
    known = tokenizer.get_vocab()
    marks: list[int] = []
    while (name := f"<extra_id_{len(marks)}>") in known:
        marks.append(int(known[name]))
    return marks


def masked_word_head(backbone: Backbone) -> nn.Module | None:
    """The pretrained model for masked words, of which only the head will be used; None where the checkpoint has none."""
    from transformers import AutoModelForMaskedLM

    from dollartune.backbones.locate import resolve
    from dollartune.backbones.quiet import quiet_transformers
    from dollartune.hub_access import without_waiting

    if getattr(backbone.processor, "mask_token_id", None) is None:
        return None
    path = resolve(backbone.name)
    with quiet_transformers(), without_waiting(path):
        try:
            model, told = AutoModelForMaskedLM.from_pretrained(path, dtype=backbone.dtype, output_loading_info=True)
        except (OSError, ValueError):
            return None
    # Then the head would be random, and its loss say nothing.
    if told["missing_keys"] or told["mismatched_keys"]:
        return None
    # The body is the tuned one; only what follows it is taken from here, and its own weights are freed.
    setattr(model, model.base_model_prefix, _Given())
    head: nn.Module = model.eval().requires_grad_(False).to(backbone.device)
    return head


class _Given(nn.Module):
    """Stands in for a body that was run elsewhere."""

    states: Tensor

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.states)


def _read(words: nn.Module, states: Tensor) -> Tensor:
    """Logits (1, tokens, vocabulary) of hidden states (1, tokens, d_model)."""
    body: Any = getattr(words, str(words.base_model_prefix))
    body.states = states
    logits: Tensor = words(input_ids=states.new_zeros(states.shape[:2], dtype=torch.long)).logits
    return logits
