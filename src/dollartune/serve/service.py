"""What requests do: prompts to sequences, rows to labels, adapters in and out. Knows nothing of HTTP but status numbers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dollartune.backbones.chat import end_tokens, template_of
from dollartune.errors import UserError
from dollartune.evaluate.predict import Tuned, predict_rows
from dollartune.export.opening import check_foreign_task, stored_task
from dollartune.export.peft_format import PEFT_FILES, is_peft, read_peft_info
from dollartune.methods.stored_adapter import CONFIG, WEIGHTS, read_info
from dollartune.serve.constraint import Grammars
from dollartune.serve.embedding import embed_rows
from dollartune.serve.engine import BatchingEngine
from dollartune.serve.label_rows import LabelRow, score_labels, shares_passes
from dollartune.serve.limits import Limits, Refused
from dollartune.serve.pool import Pool, Served
from dollartune.serve.prompts import Prompt, PromptReader
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.slices import RowWork
from dollartune.tasks.values import as_text
from dollartune.train.encoding import Encoder
from dollartune.train.free_memory import free_bytes
from dollartune.untrusted_files import check_name, refuse_links, resolved

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone

log = logging.getLogger("dollartune")

_READ_AT_ONCE = 4000
"""Characters of a request's prompts that are made tokens of on the event loop: 2 ms, where another thread costs up to one."""


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
        # A tenth: prompts come and go in bursts, and whoever else runs on the machine was there first.
        kept = self.limits.shared_bytes
        self.pool = Pool(backbone, name, free_bytes(backbone.device) // 10 if kept is None else kept)
        self.engine = BatchingEngine(self.pool, self.limits)
        self.adapter_root = adapter_root.resolve() if adapter_root is not None else None
        self.prompts = PromptReader(backbone)
        self.grammars = Grammars(backbone.processor, end_tokens(backbone) if self.writes else ())
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
            path = resolved(self.adapter_root / folder)
            if self.adapter_root not in path.parents:
                raise Refused(400, "folder must lie inside the server's adapter root")
            refuse_links(path, (CONFIG, WEIGHTS, *PEFT_FILES))
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
            info = read_peft_info(path) if is_peft(path) else read_info(path)
            check_foreign_task(info, self.limits.labels, template_of(self.backbone.processor))
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

    @property
    def writes(self) -> bool:
        """Whether the backbone writes text, and does not score classes."""
        return self.backbone.objective == "language" and self.backbone.kind in ("decoder", "encoder_decoder")

    def check_length(self, field: str, tokens: int) -> None:
        """Whether an answer may be so long, by the field that asks for it.

        Raises:
            Refused: it is longer than this server writes.
        """
        if tokens > self.limits.new_tokens:
            raise Refused(
                400,
                f"{field} {tokens} is above this server's {self.limits.new_tokens}, which its operator raises by "
                "`dollartune serve --new-tokens`",
                param=field,
            )

    def check_writes(self) -> None:
        """What is asked before anything else of a request for text.

        Raises:
            Refused: the backbone scores classes.
        """
        if not self.writes:
            raise Refused(
                400, f"this server's model is of kind {self.backbone.kind} and scores classes; use /v1/classify"
            )

    def takes_tools(self, model: str) -> bool:
        """Whether a model's chat template shows it tools.

        Raises:
            Refused: no such model.
        """
        served = self.hold(model)
        try:
            return self.prompts.takes_tools(served)
        finally:
            self.pool.release(served)

    async def generate(
        self,
        model: str,
        prompts: Seq[Prompt],
        sampling: Sampling,
        emit: Callable[[int], Callable[[str, str | None], None]],
        streams: bool = True,
        copies: int = 1,
    ) -> list[Sequence]:
        """Queues one sequence per prompt. Long prompts are read beside the event loop, which would send no stream's tokens
        meanwhile.

        Args:
            prompts: texts as they stand, token ids, or turns of a chat.
            sampling: a `max_tokens` of -1 is as many as fit, up to this server's most.
            emit: index of a prompt -> what its pieces are given to.
            streams: pieces as they come; else each text in one piece at its end.
            copies: how many neighbours in `prompts` are one prompt; each but the first gets a seed of its own.

        Raises:
            Refused: too many or too long prompts, a full queue, no such model.
        """
        sequences = self._begun(model, len(prompts), sampling, emit, streams, copies)
        try:
            if sum(_length(prompt) for prompt in prompts[::copies]) > _READ_AT_ONCE:
                await asyncio.to_thread(self._read, sequences, prompts, copies)
            else:
                self._read(sequences, prompts, copies)
            self.engine.submit(sequences)
        except BaseException:  # who leaves meanwhile is cancelled here
            self._release(sequences)
            raise
        return sequences

    def _begun(
        self,
        model: str,
        count: int,
        sampling: Sampling,
        emit: Callable[[int], Callable[[str, str | None], None]],
        streams: bool,
        copies: int,
    ) -> list[Sequence]:
        """Sequences without their prompts; each holds the adapter."""
        self.check_writes()
        if count > self.limits.prompts:
            raise Refused(400, f"{count} prompts in one request; at most {self.limits.prompts} may be")
        self.check_length("max_tokens", sampling.max_tokens)
        if self.backbone.kind == "encoder_decoder":
            _refuse_for_encoder_decoders(sampling)
        for param, tokens in {
            "logit_bias": [token for token, _ in sampling.logit_bias],
            "stop_token_ids": list(sampling.stop_tokens),
        }.items():
            if wrong := [token for token in tokens if not 0 <= token < self.prompts.vocabulary]:
                raise Refused(
                    400, f"{param} has token {wrong[0]}; ids end at {self.prompts.vocabulary - 1}", param=param
                )
        end = time.monotonic() + self.limits.request_seconds
        sequences: list[Sequence] = []
        try:
            for index in range(count):
                own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index % copies)
                held, emitted = self.hold(model), emit(index)
                sequences.append(Sequence(held, (), own, emitted, self.backbone.processor, end, streams=streams))
        except BaseException:
            self._release(sequences)
            raise
        return sequences

    def _read(self, sequences: Seq[Sequence], prompts: Seq[Prompt], copies: int) -> None:
        """Gives sequences the tokens of their prompts, and as many new ones as fit where they ask for that."""
        ids: tuple[int, ...] = ()
        for index, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            asked = sequence.sampling.max_tokens
            if index % copies == 0:  # neighbours are one prompt
                ids = self.prompts.ids(prompt, sequence.served, max(asked, 1 if asked < 0 else 0))
            sequence.prompt = ids
            if asked < 0:
                room = self.prompts.room(sequence.served) - len(ids)
                most = self.limits.new_tokens
                fits = most if self.backbone.kind == "encoder_decoder" else min(most, room)
                sequence.sampling = replace(sequence.sampling, max_tokens=fits)

    def _release(self, sequences: Seq[Sequence]) -> None:
        for sequence in sequences:
            self.pool.release(sequence.served)

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
            if shares_passes(self.pool, served):
                return await self._beside_others(served, tuned, fields)
            predictions = await self._in_slices(
                ("labels", served.key), fields, lambda rows: predict_rows(tuned, rows), _tokens
            )
        except TimeoutError:
            raise Refused(504, "the request took too long", "timeout") from None
        except FloatingPointError:
            raise Refused(400, f"adapter {model[:100]!r} computes values that are not finite", "not_finite") from None
        except UserError as error:
            raise Refused(400, error.message) from None
        finally:
            self.pool.release(served)
        probabilities = [dict(row.probabilities or {}) for row in predictions]
        return [str(row.predicted) for row in predictions], probabilities

    async def _beside_others(
        self, served: Served, tuned: Tuned, fields: list[dict[str, Any]]
    ) -> tuple[list[str], list[dict[str, float]]]:
        """As `classify`, in passes with rows of other adapters."""
        answers = tuple(tuned.encoder.label_answers(tuned.task))
        # Beside the event loop: rows of a megabyte take seconds, in which no stream could send its tokens.
        prompts = await asyncio.to_thread(tuned.prompts, fields)
        rows = [LabelRow(served, ids, answers) for ids in prompts]
        scores = await self._in_slices(
            ("labels",), rows, lambda rows: score_labels(self.pool, rows), lambda row: row.tokens
        )
        found = torch.stack(scores).softmax(-1)
        if bool(found.isnan().any()):  # argmax of NaN is 0: a broken adapter would say its first label with confidence
            raise FloatingPointError("a score is not a number")
        labels = tuned.task.labels
        chosen = [labels[index] for index in found.argmax(-1).tolist()]
        return chosen, [dict(zip(labels, row, strict=True)) for row in found.tolist()]

    # Embeddings

    async def embed(self, model: str, inputs: Seq[str | list[int]]) -> tuple[list[list[float]], int]:
        """A vector of length 1 for each text: its last states, pooled as solved methods read them; and the tokens read.

        Raises:
            Refused: too many or too long texts, or an adapter that reads by virtual tokens.
        """
        if len(inputs) > self.limits.prompts:
            raise Refused(
                400, f"{len(inputs)} texts in one request; at most {self.limits.prompts} may be", param="input"
            )
        if self.backbone.kind == "vision":
            raise Refused(400, "this server's model reads no text")
        served = self.hold(model)
        try:
            if served is not None and (served.adapter.virtual or served.adapter.prefixes):
                raise Refused(
                    400, f"adapter {model[:100]!r} has virtual tokens, whose states are no text's", param="model"
                )
            rows = await asyncio.to_thread(lambda: [self.prompts.ids(text, served, 0, "input") for text in inputs])
            key = served.key if served is not None else None
            vectors = await self._in_slices(
                ("embeddings", key or ""), rows, lambda rows: embed_rows(self.pool, key, rows), len
            )
        except TimeoutError:
            raise Refused(504, "the request took too long", "timeout") from None
        except FloatingPointError:
            raise Refused(400, f"model {model[:100]!r} computes values that are not finite", "not_finite") from None
        finally:
            self.pool.release(served)
        return vectors, sum(len(ids) for ids in rows)

    async def _in_slices(
        self,
        kind: tuple[str, ...],
        rows: Seq[Any],
        run: Callable[[list[Any]], Seq[Any]],
        size: Callable[[Any], int],
    ) -> list[Any]:
        """What each row gives, computed between the steps of the texts that run."""
        work = RowWork(kind, rows, [size(row) for row in rows], run, time.monotonic() + self.limits.request_seconds)
        self.engine.add_rows(work)
        # When the client leaves, this task is cancelled, and with it the work from the next slice on.
        return await asyncio.wait_for(asyncio.wrap_future(work.future), self.limits.request_seconds)

    def _tuned(self, served: Served) -> Tuned:
        task = stored_task(served.info)
        if task.kind != "classification":
            raise Refused(400, f"adapter {served.name!r} writes text; use /v1/completions")
        encoder = Encoder(self.backbone, served.info.get("max_length"), served.extra_places)
        # By its key: while an adapter that it replaced is held, that one is attached under the name.
        return Tuned(self.backbone, self.pool.attached, list(served.adapter.methods), task, encoder, served.key)

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
        if empty := [name for name in columns if row[name] is None]:  # else the model would read the word None
            raise Refused(400, f"column {empty[0]} of a row is null; give a text, which may be empty", param="input")
        if tuned.task.modality == "image":
            return {**row, "image": _image(row["image"])}
        # As the prompt writes them: lists and objects as JSON, and nothing in Python's spelling.
        return {name: value if isinstance(value, str | int | float) else as_text(value) for name, value in row.items()}


def _length(prompt: Prompt) -> int:
    """Characters of a prompt; token ids are there already."""
    if isinstance(prompt, str):
        return len(prompt)
    return 0 if isinstance(prompt, list) else sum(len(text) for _, text in prompt.turns)


def _tokens(fields: Mapping[str, Any]) -> int:
    """About how much work a row is, four characters a token; its prompt's own text and the labels count as much in all rows."""
    return 16 + sum(len(value) // 4 if isinstance(value, str) else 64 for value in fields.values())


def _refuse_for_encoder_decoders(sampling: Sampling) -> None:
    """What has no meaning where the prompt is read by another stack than the answer is written by."""
    for param, asked in {"echo": sampling.echo, "max_tokens": sampling.max_tokens == 0}.items():
        if asked:
            raise Refused(400, f"{param}: an encoder-decoder's answer does not begin with the prompt", param=param)


def _image(text: Any) -> Any:
    """A picture from base64 text, a `data:` address or not."""
    from dollartune.tasks.pictures import open_picture

    try:
        content = base64.b64decode(str(text).rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"image is no picture in base64: {error}") from None
    try:
        return open_picture(content, "image")  # as pictures of a file are opened: upright, scaled to 8 bits
    except UserError as error:
        raise Refused(400, error.message) from None
