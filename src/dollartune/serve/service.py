"""What requests do: prompts to sequences, rows to labels, adapters in and out. Knows nothing of HTTP but status numbers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.backbones.positions import position_limit
from dollartune.errors import UserError
from dollartune.evaluate.predict import Tuned, predict_rows
from dollartune.export.opening import check_foreign_task, stored_task
from dollartune.methods.stored_adapter import CONFIG, WEIGHTS, read_info
from dollartune.serve.engine import BatchingEngine
from dollartune.serve.limits import Limits, Refused
from dollartune.serve.pool import Pool, Served
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.train.encoding import Encoder
from dollartune.untrusted_files import check_name, refuse_links

if TYPE_CHECKING:
    from dollartune.backbones.chat import Turn
    from dollartune.backbones.loading import Backbone

log = logging.getLogger("dollartune")
_TOKENS_WITHOUT_LIMIT = 4096
"""Tokens of a request where a backbone's positions set no limit (T5, BLOOM): one request must not take the whole memory."""


class Service:
    """One backbone with its adapters, behind an engine.

    Args:
        backbone: loaded, with nothing attached.
        name: the name of the bare backbone in requests.
        adapter_root: the only folder from which adapters may be added while the server runs; None forbids it.
    """

    def __init__(
        self, backbone: Backbone, name: str, limits: Limits | None = None, adapter_root: Path | None = None
    ) -> None:
        if backbone.processor is None:
            raise UserError(f"backbone {backbone.name!r} has no tokenizer or image processor, so it cannot be served.")
        self.backbone, self.limits = backbone, limits or Limits()
        self.pool = Pool(backbone, name)
        self.engine = BatchingEngine(self.pool, self.limits)
        self.adapter_root = adapter_root.resolve() if adapter_root is not None else None
        self._encoder = Encoder(backbone)
        self.started = int(time.time())

    # Adapters

    def add_now(self, name: str, folder: Path) -> None:
        """Adds an adapter before the engine runs."""
        self.pool.add(self.pool.load(name, folder, int(time.time())))

    async def add(self, name: str, folder: str, replace: bool = False) -> Served:
        """Adds an adapter while the server runs; rows that generate are not disturbed.

        Args:
            replace: takes the name from the adapter that has it; requests that run finish with that.

        Raises:
            Refused: a name or folder that is not allowed, or an adapter that does not fit.
        """
        if self.adapter_root is None:
            raise Refused(
                403, "this server adds no adapters while it runs; start it with --adapter-root", "permission_error"
            )
        try:
            check_name(name)
            path = (self.adapter_root / folder).resolve()
            if self.adapter_root not in path.parents:
                raise Refused(400, "folder must lie inside the server's adapter root")
            refuse_links(path, (CONFIG, WEIGHTS))
            if (self.pool.get(name) is not None and not replace) or name == self.pool.base_name:
                raise Refused(409, f"there is an adapter called {name!r} already")
            served = await self._load(name, path)
            await asyncio.wrap_future(self.engine.call(lambda: self.pool.add(served, replace), urgent=True))
        except (UserError, ValueError) as error:
            raise Refused(400, str(getattr(error, "message", error)).replace(str(self.adapter_root), "")) from None
        except Refused:
            raise
        except Exception as error:  # whatever a foreign file brings about is its fault, and no reason to fail
            log.warning("adapter %r cannot be read", name, exc_info=True)
            raise Refused(
                400, f"the adapter cannot be read ({type(error).__name__}); the server's log says why"
            ) from None
        return served

    async def _load(self, name: str, path: Path) -> Served:
        """Reads an adapter beside the engine, whose steps go on; within it where a pass may change the backbone's values."""

        def read() -> Served:
            check_foreign_task(read_info(path), self.limits.labels)
            return self.pool.load(name, path, int(time.time()))

        if self.pool.changes_backbone():
            return await asyncio.wrap_future(self.engine.call(read, urgent=True))
        return await asyncio.to_thread(read)

    def remove(self, name: str) -> None:
        """Takes no new requests for an adapter; those that run finish.

        Raises:
            Refused: there is none of that name.
        """
        try:
            self.pool.retire(name)
        except KeyError:
            raise Refused(404, f"there is no adapter {name[:100]!r}", "not_found_error") from None

    def hold(self, name: str) -> Served | None:
        """The adapter that a request names, held.

        Raises:
            Refused: there is none.
        """
        try:
            return self.pool.acquire(name)
        except KeyError:
            raise Refused(
                404,
                f"there is no model {name[:100]!r}; there are {', '.join(self.pool.names()[:20])}",
                "not_found_error",
            ) from None

    # Generation

    def generate(
        self,
        model: str,
        prompts: Seq[str | list[int] | list[Turn]],
        sampling: Sampling,
        emit: Callable[[int], Callable[[str, str | None], None]],
        streams: bool = True,
        copies: int = 1,
    ) -> list[Sequence]:
        """Queues one sequence per prompt.

        Args:
            prompts: texts as they stand, token ids, or turns of a chat.
            sampling: a `max_tokens` of -1 is as many as fit, up to this server's most.
            emit: index of a prompt -> what its pieces are given to.
            streams: pieces as they come; else each text in one piece at its end.
            copies: how many neighbours in `prompts` are one prompt; each but the first gets a seed of its own.

        Raises:
            Refused: too many or too long prompts, a full queue, no such model.
        """
        if self.backbone.objective != "language" or self.backbone.kind not in ("decoder", "encoder_decoder"):
            raise Refused(400, f"this server runs a {self.backbone.kind} that scores classes; use /v1/classify")
        if len(prompts) > self.limits.prompts:
            raise Refused(400, f"{len(prompts)} prompts in one request; at most {self.limits.prompts} may be")
        if sampling.max_tokens > self.limits.new_tokens:
            raise Refused(
                400,
                f"max_tokens {sampling.max_tokens} is above this server's {self.limits.new_tokens}",
                param="max_tokens",
            )
        if self.backbone.kind == "encoder_decoder":
            _refuse_for_encoder_decoders(sampling)
        for param, tokens in {
            "logit_bias": [token for token, _ in sampling.logit_bias],
            "stop_token_ids": list(sampling.stop_tokens),
        }.items():
            if wrong := [token for token in tokens if not 0 <= token < self._vocabulary()]:
                raise Refused(400, f"{param} has token {wrong[0]}; ids end at {self._vocabulary() - 1}", param=param)
        sequences: list[Sequence] = []
        try:
            for index, prompt in enumerate(prompts):
                served = self.hold(model)
                sequence = Sequence(
                    served,
                    (),
                    sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index % copies),
                    emit(index),
                    self.backbone.processor,
                    time.monotonic() + self.limits.request_seconds,
                    streams=streams,
                )
                sequences.append(sequence)
                sequence.prompt = self._prompt_ids(
                    prompt, served, max(sampling.max_tokens, 1 if sampling.max_tokens < 0 else 0)
                )
                if sampling.max_tokens < 0:
                    room = self._places() - served_places(served) - len(sequence.prompt)
                    most = self.limits.new_tokens
                    fits = most if self.backbone.kind == "encoder_decoder" else min(most, room)
                    sequence.sampling = replace(sequence.sampling, max_tokens=fits)
            self.engine.submit(sequences)
        except BaseException:
            for sequence in sequences:
                self.pool.release(sequence.served)
            raise
        return sequences

    def _prompt_ids(
        self, prompt: str | list[int] | list[Turn], served: Served | None, new_tokens: int
    ) -> tuple[int, ...]:
        room = self._places() - served_places(served)
        decoder = self.backbone.kind == "decoder"
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            ids = tuple(token for token in prompt if isinstance(token, int))
            if not all(0 <= token < self._vocabulary() for token in ids):
                raise Refused(400, f"the prompt has token ids outside 0 to {self._vocabulary() - 1}", param="prompt")
            return self._fitting(ids, room, new_tokens if decoder else 0)
        assert isinstance(prompt, str) or all(isinstance(turn, tuple) for turn in prompt)
        texts = [prompt] if isinstance(prompt, str) else [turn[1] for turn in prompt if isinstance(turn, tuple)]
        characters = sum(len(text) for text in texts)
        # The longest tokens of common vocabularies (runs of spaces or dashes) rarely pass 40 characters.
        if characters > 40 * room + 1000:  # no tokenizer makes so few tokens of so much text; do not even try
            raise Refused(
                400,
                f"the prompt has {characters:,} characters; this backbone has room for {room} tokens",
                "context_length_exceeded",
            )
        if isinstance(prompt, str):
            ids = self._encoder.prompt_ids(prompt)
        else:
            ids = self._chat_ids([turn for turn in prompt if isinstance(turn, tuple)], served)
        if not ids:
            start = self.backbone.processor.bos_token_id
            # A decoder needs one token to begin from; an empty prompt means the beginning of a text.
            ids = (start if start is not None else (self.backbone.processor.eos_token_id or 0),)
        return self._fitting(ids, room, new_tokens if decoder else 0)

    @staticmethod
    def _fitting(ids: tuple[int, ...], room: int, new_tokens: int) -> tuple[int, ...]:
        if len(ids) + new_tokens > room:
            raise Refused(
                400,
                f"{len(ids)} prompt tokens and {new_tokens} new ones do not fit the {room} places that this model has",
                "context_length_exceeded",
            )
        return ids

    def _vocabulary(self) -> int:
        return int(self.backbone.model.get_input_embeddings().weight.shape[0])

    # Tokens

    def tokenize(self, model: str, text: str, special: bool) -> list[int]:
        """Tokens of a text, with the marks that a prompt gets or without.

        Raises:
            Refused: no such model, or it reads no text.
        """
        self.pool.release(self.hold(model))
        tokenizer = self._tokenizer()
        return (
            list(self._encoder.prompt_ids(text)) if special else list(tokenizer.encode(text, add_special_tokens=False))
        )

    def detokenize(self, model: str, tokens: list[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            Refused: no such model, or ids that it has not.
        """
        self.pool.release(self.hold(model))
        tokenizer = self._tokenizer()
        if not all(0 <= token < self._vocabulary() for token in tokens):
            raise Refused(400, f"tokens are ids from 0 to {self._vocabulary() - 1}", param="tokens")
        return str(tokenizer.decode(tokens))

    def context_tokens(self) -> int:
        """Places of a prompt and its answer."""
        return self._places()

    def _tokenizer(self) -> Any:
        if not hasattr(self.backbone.processor, "get_vocab"):
            raise Refused(400, "this server's model reads no text")
        return self.backbone.processor

    def _places(self) -> int:
        return position_limit(self.backbone.model.config) or _TOKENS_WITHOUT_LIMIT

    def _chat_ids(self, turns: list[Turn], served: Served | None) -> tuple[int, ...]:
        """Tokens of a chat: by the template that the adapter was tuned with, or the tokenizer's for the bare backbone."""
        try:
            task = stored_task(served.info) if served is not None and served.info.get("task") else None
            return self._encoder.chat_ids(task, turns)
        except UserError as error:  # of the template, which may refuse roles and orders that it does not know
            raise Refused(400, error.message) from None

    # Labels

    async def classify(self, model: str, rows: list[str | dict[str, Any]]) -> tuple[list[str], list[dict[str, float]]]:
        """The label of each row, and label -> probability.

        Raises:
            Refused: the adapter scores no labels, or rows lack a column of its prompt.
        """
        if len(rows) > self.limits.prompts:
            raise Refused(400, f"{len(rows)} rows in one request; at most {self.limits.prompts} may be")
        served = self.hold(model)
        try:
            if served is None:
                raise Refused(400, "the bare backbone has no labels; name an adapter")
            tuned = self._tuned(served)
            fields = [self._fields(tuned, row) for row in rows]
            future = self.engine.call(lambda: predict_rows(tuned, fields))
            # When the client leaves, this task is cancelled, and with it the job, unless it runs already.
            found = await asyncio.wait_for(asyncio.wrap_future(future), self.limits.request_seconds)
        except TimeoutError:
            raise Refused(504, "the request took too long", "timeout") from None
        except FloatingPointError:
            raise Refused(400, f"adapter {model[:100]!r} computes values that are not finite", "not_finite") from None
        except UserError as error:
            raise Refused(400, error.message) from None
        finally:
            self.pool.release(served)
        probabilities = [dict(row.probabilities or {}) for row in found]
        return [str(row.predicted) for row in found], probabilities

    def _tuned(self, served: Served) -> Tuned:
        task = stored_task(served.info)
        if task.kind != "classification":
            raise Refused(400, f"adapter {served.name!r} writes text; use /v1/completions")
        encoder = Encoder(self.backbone, served.info.get("max_length"), served.extra_places)
        return Tuned(self.backbone, self.pool.attached, list(served.adapter.methods), task, encoder, served.name)

    @staticmethod
    def _fields(tuned: Tuned, row: str | dict[str, Any]) -> dict[str, Any]:
        columns = tuned.task.template.columns if tuned.task.template else ("image",)
        if isinstance(row, str):
            if len(columns) != 1:
                raise Refused(
                    400, f"this adapter's prompt has the columns {', '.join(columns)}; give each row as an object"
                )
            row = {columns[0]: row}
        if missing := sorted(set(columns) - row.keys()):
            raise Refused(
                400, f"a row lacks {', '.join(missing)}; this adapter's prompt has the columns {', '.join(columns)}"
            )
        if tuned.task.modality == "image":
            return {**row, "image": _image(row["image"])}
        return {name: value if isinstance(value, str | int | float) else str(value) for name, value in row.items()}


def served_places(served: Served | None) -> int:
    """Places that an adapter takes before a prompt."""
    return served.extra_places if served is not None else 0


def _refuse_for_encoder_decoders(sampling: Sampling) -> None:
    """Their batches are written from beginning to end by one call, which takes no settings of single rows."""
    if sampling.temperature > 0:
        raise Refused(400, "encoder-decoders are served at temperature 0 only", param="temperature")
    asked = {
        "logprobs": sampling.logprobs is not None,
        "echo": sampling.echo,
        "max_tokens": sampling.max_tokens == 0,
        "logit_bias": bool(sampling.logit_bias),
        "frequency_penalty": sampling.frequency_penalty != 0,
        "presence_penalty": sampling.presence_penalty != 0,
        "repetition_penalty": sampling.repetition_penalty != 1,
        "min_tokens": sampling.min_tokens > 0,
        "ignore_eos": sampling.ignore_end,
    }
    if param := next((name for name, given in asked.items() if given), None):
        raise Refused(
            400, f"{param}: encoder-decoders are served greedily, without settings of single rows", param=param
        )


def _image(text: Any) -> Any:
    """A picture from base64 text, a `data:` address or not."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(base64.b64decode(str(text).rpartition(",")[2], validate=True)))
        image.load()
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(400, f"image is no picture in base64: {error}") from None
    return image
