"""Majority: the commonest class of the training rows, whatever the row says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune.methods.base import Capabilities, Method, Settings
from dollartune.methods.baseline import Answerer, ClassShares, LabelledTexts

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class MajorityConfig(Settings):
    """Nothing to set."""


class Majority(Method[MajorityConfig]):
    """p(class | row) = training rows of the class / training rows: the answer is always the commonest class.

    Of equally common ones it is the first in the order of the labels. A method that does not beat it is at chance: it has
    learned how often each class comes up, and nothing of the rows.

    Source: scikit-learn's `DummyClassifier(strategy="prior")`.
    """

    name = "majority"
    aliases = ("majority_class", "dummy")
    branch = "baseline"
    Config = MajorityConfig
    capabilities = Capabilities(trains=False, baseline=True, seeded=False)
    reference = "majority"

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return ()

    def fit(self, rows: LabelledTexts) -> Answerer:
        return ClassShares.of(rows)
