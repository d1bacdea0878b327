"""Few-shot in-context learning: k solved examples before the question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dollartune.methods.base import Capabilities, Method, Prompting
from dollartune.methods.space import Choice
from dollartune.methods.zero_shot import InContextConfig

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class FewShotConfig(InContextConfig):
    """Solved examples in the prompt."""

    examples: int = Field(4, ge=1)
    """Number k of solved examples; fewer where they do not fit the context."""
    choose: Literal["balanced", "random", "similar"] = "balanced"
    """How they are drawn from the training set: the same share of each label, at random, or the most similar to the
    question (TF-IDF, one choice per question)."""
    separator: str = "\n\n"
    """Text between examples."""


class FewShot(Method[FewShotConfig]):
    """p(label word | k solved examples, prompt) of the untouched backbone. Nothing is trained; every request pays for
    the longer prompt, which the report counts.

    Source: Brown et al. 2020; reference 004's in-context learning. Similar examples: Liu et al. 2022, KATE (with TF-IDF
    in place of a sentence encoder). Calibration: Zhao et al. 2021.
    """

    name = "few_shot"
    aliases = ("fewshot", "in_context", "icl")
    branch = "in_context"
    Config = FewShotConfig
    capabilities = Capabilities(trains=False)
    reference = "examples"
    backbone_kinds = ("decoder", "encoder_decoder")
    search: ClassVar[Mapping[str, Any]] = {"examples": Choice(1, 2, 4, 8)}

    @property
    def prompting(self) -> Prompting:
        c = self.config
        return Prompting(c.template, c.calibrate, c.examples, c.choose, c.separator)

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return ()
