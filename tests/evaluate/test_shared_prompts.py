"""Prompts that begin alike are read once, and score as when each is read alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.attachment.attached import Attached
from dollartune.backbones.kind import has_window
from dollartune.backbones.loading import Backbone
from dollartune.evaluate import shared_prompts
from dollartune.evaluate.labels import label_log_probabilities
from dollartune.evaluate.shared_prompts import can_share, groups
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import perturb
from dollartune.train.encoding import Encoded

SHOTS, OTHER = (20, 30, 40, 50, 60), (21, 31, 41, 51)
QUESTIONS = [
    Encoded(str(n), prompt)
    for n, prompt in enumerate(
        [(*SHOTS, 7, 8, 9), (*OTHER, 3), (*SHOTS, 7), (12, 13), (*OTHER, 4, 5), (*SHOTS, 10, 11)]
    )
]


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "gpt_neo", "bloom"])
@pytest.mark.parametrize("answers", [((5,), (6,)), ((5, 6, 7), (9,))])
@pytest.mark.parametrize("method", [None, "lora(rank=2)"])
def test_scores_are_those_of_whole_prompts(
    family: str, answers: tuple[tuple[int, ...], ...], method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prompts, "LEAST", 3)
    read: list[int] = []
    plain = shared_prompts.read_beginning
    monkeypatch.setattr(
        "dollartune.evaluate.labels.read_beginning", lambda *args: read.append(len(args[-1])) or plain(*args)
    )
    tiny = tiny_backbone(family)
    backbone = Backbone(family, tiny.model, None, tiny.anatomy, tiny.objective)
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        if method is not None:
            perturb(attached.add("mine", [build_method(method)]), 0.1, 0)
        name = None if method is None else "mine"
        shared = label_log_probabilities(backbone, attached, name, QUESTIONS, answers, 2)
        alone = label_log_probabilities(backbone, attached, name, QUESTIONS, answers, 2, shared=False)
    finally:
        attached.detach()
    # Windows count places, not tokens: with padded rows such a model may not go on from a cache, and shares nothing.
    assert sorted(read) == ([] if family == "gpt_neo" else [len(OTHER), len(SHOTS)])
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["prompt(tokens=2)", "prefix(tokens=2)", "reft", "pfeiffer(reduction=8)"])
def test_adapters_that_look_at_whole_prompts_share_nothing(method: str) -> None:
    tiny = tiny_backbone("opt")
    backbone = Backbone("opt", tiny.model, None, tiny.anatomy, tiny.objective)
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("mine", [build_method(method)])
    attached.detach()
    assert can_share(backbone, None)
    assert not can_share(backbone, adapter)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8).map(tuple), max_size=12), st.integers(1, 4))
def test_groups_hold_every_prompt_once_and_begin_alike(prompts: list[tuple[int, ...]], least: int) -> None:
    before, shared_prompts.LEAST = shared_prompts.LEAST, least
    try:
        found = groups(prompts)
    finally:
        shared_prompts.LEAST = before
    assert sorted(index for group in found for index in group.indices) == list(range(len(prompts)))
    for group in found:
        assert len({prompts[index][: group.common] for index in group.indices}) == 1 or not group.common
        assert all(len(prompts[index]) > group.common for index in group.indices)
        assert group.common == 0 or group.common >= least


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (transformers.LlamaConfig(), False),
        (transformers.Qwen2Config(max_window_layers=20), False),
        (transformers.MistralConfig(sliding_window=64), True),
        (transformers.DogeConfig(keep_window_size=64), True),
        (transformers.RecurrentGemmaConfig(attention_window_size=64), True),
    ],
)
def test_windows_are_seen_whatever_a_family_calls_them(config: Any, window: bool) -> None:
    assert has_window(config) is window
