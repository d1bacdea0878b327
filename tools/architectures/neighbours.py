"""A row's scores and texts are those of the row alone, whichever rows stand beside it and whenever they come.

    python tools/architectures/neighbours.py [--models FOLDER] [NAME ...]

labels      log-probabilities of answers of several tokens and of one, against whole passes of transformers without padding
beginnings  the same for prompts that begin alike, which are read once
texts       greedy texts of padded batches
server      greedy texts of rows that join and leave a running batch

Each in batches of 1, 8 and 32; prompts and texts lie below, at and beyond the model's window (in every family that has one,
sliding or in chunks). Exit code 0 if nothing depends on the neighbours.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from make_models import RECIPES, make

from dollartune import load_backbone
from dollartune.attachment.attached import Attached
from dollartune.backbones.config_values import config_value
from dollartune.backbones.kind import text_config
from dollartune.backbones.loading import Backbone
from dollartune.backbones.marks import decoder_start
from dollartune.evaluate import shared_prompts
from dollartune.evaluate.generation import generate_texts
from dollartune.evaluate.labels import label_log_probabilities
from dollartune.serve.engine import kind_of_batch
from dollartune.serve.limits import Limits
from dollartune.serve.sequence import Sampling
from dollartune.serve.sequence import Sequence as ServedRow
from dollartune.serve.service import Service
from dollartune.train.encoding import Encoded, collate_prompts

BATCHES = (1, 8, 32)
NATS = 1e-3
"""Scores in fp32 differ by 1e-5 through the order of sums, and by 1e-2 and more where a window counts padding."""
ANSWERS = ((17, 23), (17, 42, 43), (29,))
LETTERS = 90
"""Token ids that are drawn from: all tiny vocabularies have as many."""


def window_of(config: Any) -> int:
    """Places that the narrowest of its attention reaches back over; 8 where it reaches everything."""
    text = text_config(config)
    names = ("sliding_window", "window_size", "local_attention", "attention_chunk_size", "attention_window")
    sizes = [size for name in names if isinstance(size := config_value(text, name), int) and size > 1]
    return min(sizes, default=8)


def drawn_rows(backbone: Backbone, count: int, common: int = 0, most: int | None = None) -> list[Encoded]:
    """Prompts of random tokens, of lengths below, at and beyond the window; all begin with the same `common` tokens."""
    draw, window = random.Random(count + common), window_of(backbone.model.config)
    lengths = [window - 1, window, window + 1, *(draw.randrange(2, most or 3 * window) for _ in range(count - 3))]
    draw.shuffle(lengths)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(5, LETTERS) for _ in range(length))

    begin = tokens(common)
    return [Encoded(str(number), begin + tokens(length), label=0) for number, length in enumerate(lengths)]


@torch.no_grad()
def whole_pass(backbone: Backbone, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """log p(answer | prompt) by transformers' own forward, without a cache, a batch or anything of ours."""
    model = backbone.model
    if backbone.kind == "encoder_decoder":
        given = torch.tensor([[decoder_start(model), *answer[:-1]]])
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given, use_cache=False).logits[0]
    else:
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 :]
    return float(logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())


def label_scores(backbone: Backbone, rows: Sequence[Encoded], batches: Sequence[int] = BATCHES) -> float:
    """Nats by which scores of batches differ at most from whole passes."""
    # Where longer answers are refused by name (ProphetNet), those of one token are all there is to score.
    answers = [one for one in ANSWERS if len(one) == 1 or "answers" not in backbone.anatomy.family.refusals]
    expected = torch.tensor([[whole_pass(backbone, row.prompt, answer) for answer in answers] for row in rows])
    worst = 0.0
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        for size, some in itertools.product(batches, (slice(None), slice(len(answers) - 1, None))):
            found = label_log_probabilities(backbone, attached, None, rows, answers[some], batch_size=size)
            worst = max(worst, float((found - expected[:, some]).abs().max()))
    finally:
        attached.detach()
    return worst


def check_labels(backbone: Backbone, batches: Sequence[int] = BATCHES) -> str:
    moved = label_scores(backbone, drawn_rows(backbone, max(batches) + 1), batches)
    assert moved < NATS, f"scores of batches and by whole passes differ by {moved:.2g} nats"
    return f"differ by {moved:.0e} nats"


def check_beginnings(backbone: Backbone, batches: Sequence[int] = BATCHES) -> str:
    """Enough common tokens that they are read apart, and that what follows them lies beyond the window."""
    common = max(shared_prompts.LEAST, window_of(backbone.model.config)) + 5
    moved = label_scores(backbone, drawn_rows(backbone, max(batches) + 1, common, most=20), batches)
    assert moved < NATS, f"scores after a common beginning and by whole passes differ by {moved:.2g} nats"
    return f"differ by {moved:.0e} nats"


@torch.no_grad()
def alone(backbone: Backbone, attached: Attached, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """A greedy text of one row in a batch of its own; no end mark ends it."""
    inputs = collate_prompts([Encoded("", prompt)], 0, left=backbone.kind == "decoder", device=backbone.device)
    with attached.routed(None, batch_rows=1):
        written: Tensor = attached.generate(
            **inputs, eos_token_id=-1, max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    return written[0, -tokens:].tolist()


def check_texts(backbone: Backbone, batches: Sequence[int] = BATCHES, tokens: int = 6) -> str:
    if any("padding beside it" in note for note in backbone.anatomy.notes):
        return "depends on the padding, which is said"
    rows = drawn_rows(backbone, max(batches) + 1)
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        expected = generate_texts(backbone, attached, None, rows, tokens, batch_size=1)
        for size in batches:
            found = generate_texts(backbone, attached, None, rows, tokens, batch_size=size)
            differ = sum(one != other for one, other in zip(found, expected, strict=True))
            assert not differ, f"{differ} of {len(found)} texts in batches of {size} are not those of the rows alone"
    finally:
        attached.detach()
    return f"{len(rows)} rows of {tokens} tokens"


def check_server(backbone: Backbone, folder: Path, batches: Sequence[int] = BATCHES, tokens: int = 6) -> str:
    """By hand and not by the engine's thread: who joins when must not depend on how busy the machine is."""
    service = Service(backbone, "base", Limits(batch_rows=max(batches), new_tokens=60), folder)
    kind, attached = kind_of_batch(backbone), service.pool.attached
    prompts = [row.prompt for row in drawn_rows(backbone, max(batches) + 1)]
    lengths = [tokens + number % 5 for number in range(len(prompts))]
    expected = [alone(backbone, attached, *row) for row in zip(prompts, lengths, strict=True)]
    joins = backbone.kind == "decoder"  # a batch of an encoder-decoder begins with all of its rows
    for size in batches:
        together: list[ServedRow] = []
        for start in range(0, len(prompts), size):
            batch = kind(service.pool, frozenset())
            chosen = [_served(service, prompts[i], lengths[i]) for i in range(start, min(start + size, len(prompts)))]
            together += chosen
            some = max(1, size // 3) if joins else size
            for first in range(0, len(chosen), some):
                batch.begin(chosen[first : first + some])
                while batch.waits:
                    batch.read(16)
                batch.step()
            while batch.rows:
                batch.step()
        differ = sum(row.tokens != wanted for row, wanted in zip(together, expected, strict=True))
        assert not differ, (
            f"{differ} of {len(expected)} texts of rows served {size} at a time are not those of the rows alone"
        )
    return f"{len(prompts)} rows of {tokens} to {tokens + 4} tokens"


def _served(service: Service, prompt: tuple[int, ...], tokens: int) -> ServedRow:
    row = ServedRow(
        service.pool.acquire("base"), prompt, Sampling(max_tokens=tokens), lambda piece, reason: None,
        service.pool.backbone.processor, time.monotonic() + 600,
    )  # fmt: skip
    row.streams = False
    return row


CHECKS: dict[str, Callable[[Backbone, Path, Sequence[int]], str]] = {
    "labels": lambda backbone, folder, batches: check_labels(backbone, batches),
    "few-shot": lambda backbone, folder, batches: check_beginnings(backbone, batches),
    "texts": lambda backbone, folder, batches: check_texts(backbone, batches),
    "server": check_server,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all that write text")
    parser.add_argument("--models", type=Path, help="where make_models.py wrote them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # it warns at each text of an end mark that is none
    wrong = 0
    with tempfile.TemporaryDirectory() as room:
        root = given.models or Path(room)
        for name in given.names or [
            n for n, recipe in RECIPES.items() if recipe.kind in ("decoder", "encoder_decoder")
        ]:
            if not (root / name).is_dir():
                make(RECIPES[name], root / name)
            backbone = load_backbone(str(root / name), None, ())
            for check, run in CHECKS.items():
                try:
                    print(f"{name}, {check}: {run(backbone, Path(room), BATCHES)}", flush=True)
                except Exception as error:
                    wrong += 1
                    print(f"{name}, {check}: WRONG: {type(error).__name__}: {error}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
