"""Reads the code blocks of a Markdown page, with what the page says about running them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r'(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)```',
    re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block. `reason` says why it is not run here, where a page says so."""

    page: str
    language: str
    title: str | None
    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(page.name, found["language"], found["title"], found["code"], found["reason"])
        for found in FENCE.finditer(page.read_text())
    ]
