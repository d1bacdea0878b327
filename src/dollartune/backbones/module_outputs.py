"""The states in what a module gives: families give them alone, before a cache, or in pairs within pairs (LiLT, I-BERT)."""

from __future__ import annotations

from typing import Any


def states_of(output: Any) -> Any:
    """The first member, of members that are tuples the first again."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output


def with_states(output: Any, states: Any) -> Any:
    """The same output with other states."""
    return (with_states(output[0], states), *output[1:]) if isinstance(output, tuple) else states
