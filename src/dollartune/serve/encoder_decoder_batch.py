"""The running batch of an encoder-decoder.

    read     encoder over the prompts, then the decoder's start token
    a step   one token per row, from the encoder's states and the decoder's keys and values

    encoder's places [ row 0 . . ]      decoder's places [       row 0 ]      padding where each stack's rows may have it
                     [ row 1 . . . . ]                   [ . . . row 1 ]

Rows that join later go on in the same pass: a decoder that knows distances alone (T5) does not see where a row began, and
positions of a table (BART) are looked up for each row, where its code would count them from the beginning of the pass. What
can do neither is a batch of its own beside this one (`shares_pass`). Rows that end leave at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.attachment.exact_head import exact_likeliest
from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.inputs import insert_in_decoder, prepare_inputs, tell_edits
from dollartune.backbones.marks import decoder_start
from dollartune.serve.batch import RunningBatch
from dollartune.serve.cache import cache_of, pairs_of
from dollartune.serve.reading import run_pass
from dollartune.train.encoding import Encoded, collate_prompts

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.serve.pool import Pool
    from dollartune.serve.sequence import Sequence


def shares_pass(pool: Pool, sequences: Seq[Sequence]) -> bool:
    """Whether rows can go on in a pass with others that began earlier or begin later."""
    anatomy = pool.backbone.anatomy
    adapters = [row.served.adapter for row in sequences if row.served is not None]
    # A prefix that is read as text has a distance to each row's own beginning, which padding would move.
    as_text = (edit.as_text for adapter in adapters for edits in adapter.prefixes.values() for _, edit in edits)
    # A family that was read from its structure may count places with no module that shows it.
    return not anatomy.family.guessed and not any(as_text)


@contextmanager
def own_positions(attached: Attached, positions: Tensor) -> Iterator[None]:
    """Within the block, a decoder's table of positions gives each row the embedding of its own place.

    Args:
        positions: (rows,) of the one token that each row has in the pass.
    """

    def look_up(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # `forward`, not the module: this very hook would be called again. The table takes positions of one row, (places,).
        rows: Tensor = module.forward(args[0], position_ids=positions)  # (1, rows, d_model)
        return rows.transpose(0, 1)

    tables = [attached.model.get_submodule(site.exit) for site in attached.anatomy.at("embed.decoder_positions")]
    # Before the hooks of adapters, which edit what the table gives.
    handles = [table.register_forward_hook(look_up, prepend=True) for table in tables]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class EncoderDecoderBatch(RunningBatch):
    """Rows of one pass."""

    def __init__(self, pool: Pool, end_tokens: frozenset[int]) -> None:
        super().__init__(pool, end_tokens)
        self._prompts: list[Sequence] = []
        self._states: Any = None
        """(rows, tokens, d_model): the encoder's last states; `_visible` is their mask."""
        self._written: Any = None
        """(rows, places): which places of the decoder's cache a row really has."""

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
        self._take(output.logits[:, -1], new)
        self._put(new, output, ready.inputs["attention_mask"])
        self.leave()
        return int(inputs["input_ids"].numel())

    def _output(self, given: dict[str, Any], state: Any) -> Any:
        """Of the decoder's first place. The encoder is asked by itself, as `generate` does: some refuse `use_cache`, which the
        whole model hands on to them."""
        from transformers.modeling_outputs import MoEModelOutput

        attached = self.pool.attached
        model: Any = attached.model
        read = {name: given.pop(name) for name in ("input_ids", "inputs_embeds") if name in given}
        with attached.under(state), attached.exclusive_values(), exact_likeliest(attached):
            seen = model.get_encoder()(**read, attention_mask=given["attention_mask"], return_dict=True)
            states = MoEModelOutput(last_hidden_state=seen.last_hidden_state)
            return model(encoder_outputs=states, **given, use_cache=True)

    @torch.inference_mode()
    def step(self) -> None:
        from transformers.modeling_outputs import MoEModelOutput

        if not self.rows:
            return
        attached = self.pool.attached
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.pool.backbone.device)
        # Before the pass: the new token attends to itself.
        self._written = functional.pad(self._written, (0, 1), value=1)
        given: dict[str, Any] = {
            "encoder_outputs": MoEModelOutput(last_hidden_state=self._states),
            "attention_mask": self._visible,
            "decoder_input_ids": ids,
            "past_key_values": self._cache,
        }
        if not bool(self._written.all()):  # without padding there is nothing to hide
            given["decoder_attention_mask"] = self._written
        if self._route is None:
            self._decode_cache = DecodeCache()  # first, as the old one holds tensors of the old route
            served = [row.served for row in self.rows]
            self._route = self.pool.assignments(served, prompts=False, running=self._running)
        positions = self._written.sum(-1) - 1
        with (
            attached.routed(*self._route, batch_rows=len(self.rows)),
            own_positions(attached, positions),
            exact_likeliest(attached),
        ):
            state = tell_edits(attached.state, attached.anatomy, None)
            logits, self._cache = run_pass(attached, given, state, self._decode_cache)
        self._take(logits, self.rows)
        self.leave()

    def leave(self) -> None:
        stay = [index for index, row in enumerate(self.rows) if row.finished is None]
        if len(stay) < len(self.rows):
            self._keep(stay, *_pairs(self._cache))

    def _put(self, new: list[Sequence], output: Any, visible: Tensor) -> None:
        """Rows that were read go on beside those that run, in the pool's order."""
        own, cross = _pairs(output.past_key_values)
        states = output.encoder_last_hidden_state
        written = visible.new_ones(len(new), own[0][0].shape[2])
        if self.rows:
            own_before, cross_before = _pairs(self._cache)
            own = _each(own_before, own, left=True)
            cross = _each(cross_before, cross, left=False)
            written = _stacked(self._written, written, 1, left=True)
            states, visible = (
                _stacked(before, after, 1, left=False)
                for before, after in ((self._states, states), (self._visible, visible))
            )
        self.rows = [*self.rows, *new]
        self._states, self._visible, self._written = states, visible, written
        self._keep(self.pool.order([row.served for row in self.rows]), own, cross)

    def _keep(self, indices: list[int], own: list[tuple[Tensor, Tensor]], cross: list[tuple[Tensor, Tensor]]) -> None:
        """Keeps some rows, in an order, and cuts off places that none of them has."""
        from transformers import DynamicCache
        from transformers.cache_utils import EncoderDecoderCache

        self._route = None
        self.rows = [self.rows[index] for index in indices]
        if not self.rows:
            self._cache, self._states, self._written = None, None, None
            self._forget_route()
            return
        chosen = torch.tensor(indices, device=self._visible.device)
        visible, written = self._visible[chosen], self._written[chosen]
        # argmax of 0 and 1 is the first 1.
        start = int(written.any(dim=0).int().argmax())
        stop = visible.shape[1] - int(visible.any(dim=0).flip(0).int().argmax())
        self._visible, self._written, self._states = visible[:, :stop], written[:, start:], self._states[chosen, :stop]
        self._cache = EncoderDecoderCache(
            cache_of([(keys[chosen, :, start:], values[chosen, :, start:]) for keys, values in own]),
            # Keys of the prompt never grow, so that these need no buffers with room.
            DynamicCache([(keys[chosen, :, :stop], values[chosen, :, :stop]) for keys, values in cross]),
        )


Pairs = list[tuple[Tensor, Tensor]]


def _pairs(cache: Any) -> tuple[Pairs, Pairs]:
    """Keys and values of each layer's self-attention and cross-attention, (rows, heads, places, head_size)."""
    return pairs_of(cache.self_attention_cache), pairs_of(cache.cross_attention_cache)


def _each(before: Pairs, after: Pairs, left: bool) -> Pairs:
    return [
        (_stacked(one[0], other[0], 2, left), _stacked(one[1], other[1], 2, left))
        for one, other in zip(before, after, strict=True)
    ]


def _stacked(before: Tensor, after: Tensor, dim: int, left: bool) -> Tensor:
    """Rows of both, the shorter ones padded with zeros along a dimension."""
    longest = max(before.shape[dim], after.shape[dim])

    def padded(tensor: Tensor) -> Tensor:
        missing = longest - tensor.shape[dim]
        # functional.pad counts from the last dimension.
        behind = [0, 0] * (tensor.dim() - dim - 1)
        return functional.pad(tensor, [*behind, *((missing, 0) if left else (0, missing))])

    return torch.cat([padded(before), padded(after)])
