"""For authors of methods: tiny random backbones of every family, and the conformance suite that each method must pass.

from dollartune.testing import MethodSuite

class TestMine(MethodSuite):
    method = Mine(rank=2)
"""

from dollartune.testing.suite import MethodSuite
from dollartune.testing.tiny import FAMILIES, TinyBackbone, tiny_backbone

__all__ = ["FAMILIES", "MethodSuite", "TinyBackbone", "tiny_backbone"]
