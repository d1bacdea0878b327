"""Embeddings: one vector of length 1 per text, from the backbone's last states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dollartune.attachment.pooling import pooled_states
from dollartune.methods.features import pools
from dollartune.train.encoding import Encoded, collate_prompts

if TYPE_CHECKING:
    from dollartune.serve.pool import Pool


@torch.inference_mode()
def embed_rows(pool: Pool, key: str | None, rows: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """Pooled as solved methods read features (`methods.features`), and made as long as 1, so that products are cosines.

    Args:
        key: the attached adapter whose states they are; None is the bare backbone.
        rows: token ids.

    Raises:
        FloatingPointError: states that are no numbers, which JSON cannot hold.
    """
    backbone, attached = pool.backbone, pool.attached
    inputs: dict[str, Any] = collate_prompts(
        [Encoded("", row) for row in rows], backbone.processor.pad_token_id or 0, left=False, device=backbone.device
    )
    chosen = pools("auto", backbone.anatomy)
    with attached.routed(key, batch_rows=len(rows)), attached.exclusive_values():
        vectors = pooled_states(attached, inputs, chosen, routed=True)
    unit = functional.normalize(vectors, dim=-1).cpu()
    if not bool(unit.isfinite().all()):
        raise FloatingPointError("an embedding is not finite")
    return [list(vector) for vector in unit.tolist()]
