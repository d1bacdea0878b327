"""Zero-shot: the backbone as it is, asked with the task's prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dollartune.methods.base import Capabilities, Method, MethodConfig, Prompting

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class InContextConfig(MethodConfig):
    """Settings that zero-shot and few-shot share."""

    template: int = Field(0, ge=0)
    """Which of the task's prompts to use: 0 is its own, 1 and up are its other wordings (verbalizers)."""
    calibrate: bool | Literal["training_rows"] = False
    """Calibration: divide label probabilities by those for a prompt without content (true; Zhao et al. 2021), or by their
    geometric mean over training rows, whose labels are not looked at (after Zhou et al. 2024, who take the rows that are scored:
    not done here). Both take the classes to be equally frequent."""


class ZeroShot(Method[InContextConfig]):
    """p(label word | prompt) of the untouched backbone. Nothing is trained.

    Source: reference 004, in-context learning; Brown et al. 2020.
    """

    name = "zero_shot"
    aliases = ("zeroshot", "baseline")
    branch = "in_context"
    Config = InContextConfig
    capabilities = Capabilities(trains=False, seeded=False)
    reference = "untuned"
    backbone_kinds = ("decoder", "encoder_decoder")

    @property
    def prompting(self) -> Prompting:
        return Prompting(self.config.template, self.config.calibrate)

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return ()
