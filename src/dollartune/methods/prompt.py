"""Prompt tuning: trained vectors before the embedded input; nothing else is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.methods.base import Capabilities, Method, MethodConfig
from dollartune.methods.edits import Rows, VirtualTokens
from dollartune.methods.space import Choice, LogUniform


class PromptConfig(MethodConfig):
    """Virtual tokens before the input."""

    lr: float = 0.1
    """Peak learning rate; prompt tuning needs 0.03 to 0.3, where LoRA needs 5e-4."""
    tokens: int = Field(20, ge=1)
    """Number n of virtual tokens."""
    init: Literal["vocabulary", "random", "text"] = "vocabulary"
    """Start from embeddings of tokens of the vocabulary, from noise, or from the embeddings of `text`."""
    text_ids: list[int] = Field(default_factory=list)
    """Token ids of the initial text (init: text); repeated or cut to `tokens`."""
    stacks: str = "first"
    """`first` (the encoder, or the only stack), encoder, decoder, all."""


class SoftPrompt(VirtualTokens):
    """(n, d_model) trained embeddings."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.length = start.shape[0]
        self.embeddings = nn.Parameter(start)

    def tokens(self, rows: Rows) -> Tensor:
        return self.embeddings


def prompt_sites(anatomy: Anatomy, stacks: str) -> tuple[Site, ...]:
    """The stack entrances that a `stacks` setting names."""
    sites = anatomy.at("input")
    if stacks == "first":
        return sites[:1]
    return tuple(site for site in sites if stacks == "all" or site.stack in stacks.split())


class PromptTuning(Method[PromptConfig]):
    """n trained vectors P (n, d_model) are put before the embedded input: [P; E(x)].

    Trainable: n · d_model per stack. The default start, embeddings of random vocabulary tokens, is the one the paper
    found good on small models. In a vision transformer the vectors go after [CLS] (Jia et al. 2022, VPT-shallow).

    Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".
    """

    name = "prompt"
    aliases = ("prompt_tuning", "soft_prompt", "visual_prompt")
    branch = "addition"
    Config = PromptConfig
    kinds = ("input",)
    capabilities = Capabilities(peft_type="PROMPT_TUNING")
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(0.01, 0.5), "tokens": Choice(8, 20, 48)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return prompt_sites(anatomy, self.config.stacks)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> SoftPrompt:
        prompt = SoftPrompt(self._start(site, module))
        prompt.after_first = not isinstance(module, nn.Embedding)
        return prompt

    def _start(self, site: Site, module: nn.Module) -> Tensor:
        """Initial (n, d_model); noise where there is no vocabulary (vision)."""
        count = self.config.tokens
        weight = getattr(module, "weight", None)
        if weight is None or self.config.init == "random":
            return torch.randn(count, site.out_features) * 0.5 if weight is not None else torch.randn(count, site.out_features) * 0.02
        if self.config.init == "text" and self.config.text_ids:
            ids = torch.tensor([self.config.text_ids[i % len(self.config.text_ids)] for i in range(count)])
        else:
            ids = torch.randint(0, weight.shape[0], (count,))
        return weight.detach()[ids.to(weight.device)].float().clone()

    def count(self, site: Site) -> int:
        return self.config.tokens * site.out_features
