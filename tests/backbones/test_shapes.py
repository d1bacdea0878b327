"""The table of known shapes: sources' models counted without a network."""

from __future__ import annotations

import pytest

from dollartune.attachment.counting import count_parameters
from dollartune.backbones.shapes import known_shape


@pytest.mark.parametrize(
    ("model", "method", "trainable"),
    [  # reference 001, Table 3; reference 003's 2.36 million
        ("google/flan-t5-xl", "ia3(two_vectors=True, where='k v mlp.up')", 933_888),
        ("google/flan-t5-xl", "lora(rank=3, alpha=3.0, where='attention')", 3_538_944),
        ("bigscience/mt0-large", "lora(rank=8)", 2_359_296),
    ],
)
def test_counts_of_the_sources(model: str, method: str, trainable: int) -> None:
    assert count_parameters(model, [method])["trainable_parameters"] == trainable


def test_the_table_gives_configurations_and_nothing_else() -> None:
    assert known_shape("google/flan-t5-xl").is_encoder_decoder
    assert known_shape("tiny-decoder") is None
    assert known_shape("facebook/opt-125m").hidden_size == 768
