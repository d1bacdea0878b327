"""The running batch of an encoder-decoder: rows that were read together generate together, step by step.

    read     encoder over the prompts, then the decoder's start token
    a step   one token per row, from the encoder's states and the decoder's keys and values

Rows that join later are a batch of their own beside this one: decoders with learned positions count them from the beginning
of the batch, so rows that began at different times cannot share a pass. Rows that end leave at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.inputs import insert_in_decoder, prepare_inputs, tell_edits
from dollartune.backbones.marks import decoder_start
from dollartune.serve.batch import RunningBatch
from dollartune.serve.reading import run_pass
from dollartune.train.encoding import Encoded, collate_prompts

if TYPE_CHECKING:
    from dollartune.serve.pool import Pool
    from dollartune.serve.sequence import Sequence


class EncoderDecoderBatch(RunningBatch):
    """Rows of one encoder-decoder pass; none joins later."""

    def __init__(self, pool: Pool, end_tokens: frozenset[int]) -> None:
        super().__init__(pool, end_tokens)
        self._prompts: list[Sequence] = []
        self._states: Any = None
        """(rows, tokens, d_model): the encoder's last states."""

    @property
    def waits(self) -> list[Sequence]:
        return self._prompts

    def begin(self, sequences: list[Sequence]) -> None:
        self._prompts = [sequences[i] for i in self.pool.order([s.served for s in sequences])]

    @torch.inference_mode()
    def read(self, most: int) -> int:
        """Reads the prompts in one pass: an encoder's tokens see each other, so that they cannot be read in pieces."""
        new, self._prompts = [row for row in self._prompts if row.finished is None], []
        if not new:
            return 0
        attached, backbone = self.pool.attached, self.pool.backbone
        pad = backbone.processor.pad_token_id or 0
        inputs: dict[str, Any] = collate_prompts(
            [Encoded("", row.prompt) for row in new], pad, left=False, device=backbone.device
        )
        with attached.routed(*self.pool.assignments([row.served for row in new]), batch_rows=len(new)):
            ready = prepare_inputs(attached, inputs, None, generating=True)
            starts = torch.full((len(new), 1), decoder_start(backbone.model), device=backbone.device)
            given = {**ready.inputs, "decoder_input_ids": starts}
            if any(
                edits for row in new if row.served is not None for edits in (row.served.adapter.virtual.get("decoder"),)
            ):
                with attached.under(ready.state):
                    given = insert_in_decoder(attached, given)
                given = {name: value for name, value in given.items() if value is not None}
            output = self._output(given, ready.state)
        self._states, self._cache = output.encoder_last_hidden_state, output.past_key_values
        self._visible = ready.inputs["attention_mask"]
        self.rows = new
        self._take(output.logits[:, -1], new)
        self.leave()
        return int(inputs["input_ids"].numel())

    def _output(self, given: dict[str, Any], state: Any) -> Any:
        attached = self.pool.attached
        with attached.under(state), attached.exclusive_values():
            return attached.model(**given, use_cache=True)

    @torch.inference_mode()
    def step(self) -> None:
        from transformers.modeling_outputs import MoEModelOutput

        if not self.rows:
            return
        attached = self.pool.attached
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.pool.backbone.device)
        given = {
            "encoder_outputs": MoEModelOutput(last_hidden_state=self._states),
            "attention_mask": self._visible,
            "decoder_input_ids": ids,
            "past_key_values": self._cache,
        }
        if self._route is None:
            self._route = self.pool.assignments([row.served for row in self.rows], prompts=False)
            self._decode_cache = DecodeCache()
        with attached.routed(*self._route, batch_rows=len(self.rows)):
            state = tell_edits(attached.state, attached.anatomy, None)
            logits, self._cache = run_pass(attached, given, state, self._decode_cache)
        self._take(logits, self.rows)
        self.leave()

    def leave(self) -> None:
        stay = [index for index, row in enumerate(self.rows) if row.finished is None]
        if len(stay) == len(self.rows):
            return
        self._route = None
        self.rows = [self.rows[index] for index in stay]
        if not self.rows:
            self._cache, self._states = None, None
            return
        chosen: Tensor = torch.tensor(stay, device=self._visible.device)
        self._cache.batch_select_indices(chosen)
        self._states, self._visible = self._states[chosen], self._visible[chosen]
