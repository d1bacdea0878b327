"""From summed negative log-likelihoods to loss, perplexity and bits per byte. All of these are lower-is-better."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_loss(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """Loss per answer token in nats: sum of losses / sum of tokens.

    Args:
        losses: summed negative log-likelihood of each batch or example, in nats.
        tokens: number of answer tokens in each.

    Raises:
        ValueError: no tokens, or another number of counts than of losses.
    """
    if len(losses) != len(tokens):
        raise ValueError(f"{len(losses)} losses, but {len(tokens)} token counts")
    if sum(tokens) <= 0:
        raise ValueError("a loss needs at least one token")
    return math.fsum(losses) / sum(tokens)


def perplexity(loss: float) -> float:
    """exp(loss) for a loss in nats per token; infinite above what a float can hold."""
    # exp overflows above the largest double; a diverged model has an infinite perplexity, not an exception.
    return math.exp(loss) if loss < math.log(1.7e308) else math.inf


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """loss * tokens / (ln 2 * bytes): comparable between tokenizers, as perplexity is not.

    Args:
        loss: nats per token.
        tokens: tokens of the text.
        text_bytes: its length in UTF-8.
    """
    return loss * tokens / (math.log(2) * text_bytes)
