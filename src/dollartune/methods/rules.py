"""What to begin with, by rule: learning rates, ranks and batches by method, width and rows. A search goes on from there.

    full tuning   rate 1e-4 · 384 / width                      1e-4 for MiniLM, 5e-5 for BERT-base, 1e-5 for a width of 4,096
    LoRA          ten times that, all linears, alpha 32        rank by rows: 4 for 100, 8 for 1,000, 16 for 10,000
    batch         16 rows; 8 below some 500, 32 above some 2,000
    warm-up       6 % of the steps (`training.warmup`)

A method says what of it is its own in `Method.defaults_for(facts)`; what a study states stays as it is.

Sources: Devlin et al. 2019, A.3 (2e-5 to 5e-5 for a width of 768); Yang et al. 2022, "Tensor Programs V" (Adam's best rate falls
with the width); Schulman et al. 2025, "LoRA Without Regret" (ten times full tuning's rate, whatever the rank, with scale 32 / r;
all linears, MLPs above all; small batches); Masters and Luschi 2018 (batches of 2 to 32 generalize best); measured
here: MiniLM, 1,400 rows, full tuning: 1e-4 before 5e-5 on AG News and SST-2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Measured on MiniLM (see above); BERT-base's usual 5e-5 at a width of 768 lies on the same line.
_RATE, _WIDTH = 1e-4, 384
_LEAST_RATE, _MOST_RATE = 5e-6, 1e-3
"""Of full tuning: widths above 7,680 and below 38 are not what the rule was made from."""
LORA_OVER_FULL = 10.0
"""LoRA's best rate over that of full tuning."""
# The paper's alpha; the ratio to full tuning's rate holds for this one alone.
LORA_ALPHA = 32.0
"""Scale alpha / r with this alpha for every rank: the sum over r grows with r and the scale takes it off, so that the best rate
does not depend on the rank (Schulman et al. 2025). So the scale is tied to the rank, and a search varies rank and rate alone."""


@dataclass(frozen=True)
class Facts:
    """What the rules read."""

    width: int
    """Of the backbone's states (d_model)."""
    rows: int
    """Training rows."""


def full_tuning_rate(width: int) -> float:
    """Peak learning rate of full tuning with AdamW."""
    return _rounded(min(_MOST_RATE, max(_LEAST_RATE, _RATE * _WIDTH / max(1, width))))


def lora_rate(width: int) -> float:
    """Peak learning rate of LoRA's A and B, at any rank."""
    return _rounded(LORA_OVER_FULL * full_tuning_rate(width))


def lora_rank(rows: int, width: int) -> int:
    """Rank by the amount of data: the power of two nearest rows^(1/3), from 4 to 64, and at most the width.

    Labels of a thousand rows hold some thousand bits, which a rank of 1 could store; higher ranks train faster per step until the
    update is no longer what is short. The root keeps both apart without a cliff.
    """
    # At 64 LoRA's two factors hold 2 r / d of a square linear's numbers, a third at MiniLM's width; below 4 there is nothing
    # left to save. Powers of two fill the tiles of matrix kernels.
    return min(64, max(4, 1 << round(math.log2(max(1, rows)) / 3)), 1 << int(math.log2(max(1, width))))


def batch_rows(rows: int) -> int:
    """Rows per optimizer step: the power of two nearest half the root of the rows, from 8 to 32.

    With few rows steps are few, and each should be taken; with many, larger batches use the machine better.
    """
    # 32 is the upper end of Masters and Luschi's range.
    return min(32, max(8, 1 << max(0, round(math.log2(math.sqrt(max(1, rows)) / 2)))))


def _rounded(rate: float) -> float:
    """To three digits, as it stands in labels and records."""
    return float(f"{rate:.3g}")
