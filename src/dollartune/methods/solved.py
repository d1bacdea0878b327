"""What methods have in common that are solved on features of the frozen backbone; no method by itself.

tokens ──> frozen backbone ──> states (tokens, d) ──> pooled h (width,) ──> readout ──> scores (classes,)
           once per row                                                     solved, in the place of the head
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch import nn

from dollartune.methods.base import Capabilities, Method, Settings
from dollartune.methods.edits import Readout
from dollartune.methods.features import pools
from dollartune.methods.head import classification_head

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class SolvedSettings(Settings):
    """Of a method that is solved: there is no learning rate, as nothing is stepped."""

    pooling: str


SolvedSettingsT = TypeVar("SolvedSettingsT", bound=SolvedSettings)


class SolvedMethod(Method[SolvedSettingsT]):
    """One readout, shared by the adapter, at the head's site. A method defines `shared`, which makes it, and `solve`."""

    branch = "specification"
    kinds = ("head",)
    # Alone: another method would change the features, and in a mixed batch the rows of others go through the backbone's head.
    capabilities = Capabilities(solved=True, identity=False, mixed_rows=False, stackable=False)

    def __init__(self, config: SolvedSettingsT | None = None, /, **settings: Any) -> None:
        super().__init__(config, **settings)
        self.solution: dict[str, float] = {}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return classification_head(anatomy, self.name)

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        self.pools(anatomy)

    def pools(self, anatomy: Anatomy) -> tuple[str, ...]:
        """What of a row's states it reads, as `features.pools` gives it."""
        return pools(self.config.pooling, anatomy)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Readout:
        assert isinstance(shared, Readout)
        return shared

    def report(self, part: nn.Module) -> dict[str, float]:
        """What was chosen by cross-validation (C, k), and what that held out."""
        return self.solution

    def resolve(self, processor: Any) -> Self:
        return type(self)(self.config)  # a trial's own: what it found is kept on it
