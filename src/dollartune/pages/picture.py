"""A picture of where a method edits a transformer: one layer as boxes, those it changes filled.

tokens -> embedding -> [ norm -> q k v -> attention -> o -> + -> norm -> gate up -> down -> + ] x L -> norm -> head
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

# The text column of the site is 720 wide: the picture is shown unscaled there, and shrinks on a phone.
WIDTH, HEIGHT = 720, 250


@dataclass(frozen=True)
class Box:
    """A part of the model in the picture."""

    text: str
    x: int
    y: int
    width: int
    height: int
    roles: tuple[str, ...]
    """Roles that fill it."""


# x, y, width, height in units of the viewBox; 123 is the height of the line on which all stand.
BOXES = (
    Box("embedding", 84, 106, 84, 34, ("embed.tokens", "embed.patches", "embed")),
    Box("norm", 196, 106, 44, 34, ("norm.self_attn", "norm")),
    Box("q", 258, 66, 34, 30, ("self_attn.q",)),
    Box("k", 258, 108, 34, 30, ("self_attn.k",)),
    Box("v", 258, 150, 34, 30, ("self_attn.v",)),
    Box("attend", 308, 88, 62, 70, ("self_attn.core",)),
    Box("o", 386, 108, 30, 30, ("self_attn.o",)),
    Box("norm", 448, 106, 44, 34, ("norm.mlp", "norm.pre_mlp")),
    Box("up", 508, 88, 40, 26, ("mlp.up",)),
    Box("gate", 508, 130, 40, 26, ("mlp.gate",)),
    Box("down", 562, 106, 44, 34, ("mlp.down",)),
    Box("head", 660, 106, 48, 34, ("head",)),
)
FRAMES = {
    "self_attn": (248, 44, 178, 150, "attention"),
    "mlp": (500, 44, 114, 150, "feed-forward"),
    "layer": (182, 22, 446, 196, "layer"),
    "model": (76, 2, 640, 240, "all parameters"),
}
"""Role -> rectangle around what it holds, and its name."""
ARROWS = ((60, 84), (168, 196), (240, 258), (292, 308), (370, 386), (416, 448), (492, 508), (548, 562), (606, 660))


def method_picture(roles: Iterable[str], title: str, prompt: str = "tokens") -> str:
    """An SVG with the boxes of the given roles filled; colors follow the page's text and link color.

    Args:
        roles: what the method edits, for example `{"self_attn.q", "self_attn.v"}`; cross-attention is drawn as attention.
        title: read aloud in place of the picture.
        prompt: what enters the model, beside the box of virtual tokens.
    """
    # One layer is drawn, and a second attention in it would make the boxes unreadable.
    wanted = {role.replace("cross_attn", "self_attn") for role in roles}
    parts = [
        f'<svg class="method-picture" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for role, (x, y, width, height, name) in FRAMES.items():
        if role == "model" and role not in wanted:
            continue
        state = "on" if role in wanted else "off"
        parts.append(f'<rect class="frame {state}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>')
        parts.append(f'<text class="name" x="{x + 8}" y="{y + 14}">{escape(name)}</text>')
    # On y = 123, the middle of the boxes.
    for start, end in ARROWS:
        parts.append(f'<path class="arrow" d="M{start} 123H{end}"/>')
    parts.append(f'<text x="30" y="127">{escape(prompt)}</text>')
    if "input" in wanted:
        parts.append(
            '<rect class="box on" x="6" y="66" width="54" height="34" rx="5"/><text x="33" y="87">virtual</text>'
        )
        parts.append('<path class="arrow" d="M60 83L84 106"/>')
    for box in BOXES:
        state = "on" if wanted & set(box.roles) or "model" in wanted else "off"
        parts.append(
            f'<rect class="box {state}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="5"/>'
            f'<text x="{box.x + box.width // 2}" y="{box.y + box.height // 2 + 4}">{box.text}</text>'
        )
    parts.append('<text class="name" x="190" y="212">repeated in every layer</text></svg>')
    return "".join(parts)
