"""Bar charts as SVG, one for a table. Nothing but bars: names on the left, values on the right, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
NAME_WIDTH = 210
VALUE_WIDTH = 110
BAR_HEIGHT = 18
STEP = 26
TOP = 44
OWN, OTHER, WRONG = "#1f6f8b", "#b8c4c9", "#d9a79c"


@dataclass(frozen=True, slots=True)
class Bar:
    """``is_own`` bars stand out; those that are not ``is_right`` are drawn, and named as wrong."""

    name: str
    value: float
    is_own: bool = False
    is_right: bool = True


def chart(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """The chart as a text; readable on a light and on a dark page."""
    height = TOP + STEP * len(bars) + 8
    scale = (WIDTH - NAME_WIDTH - VALUE_WIDTH) / max((bar.value for bar in bars), default=1.0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="15" font-weight="bold" fill="#222">{escape(title)}</text>',
        f'<text x="8" y="36" font-size="11" fill="#666">{escape(unit)}</text>',
    ]
    for place, bar in enumerate(sorted(bars, key=lambda bar: -bar.value)):
        y = TOP + STEP * place
        text = y + BAR_HEIGHT - 5
        color = OWN if bar.is_own else OTHER
        name = bar.name if bar.is_right else f"{bar.name} (wrong)"
        width = max(1.0, bar.value * scale)
        weight = ' font-weight="bold"' if bar.is_own else ""
        lines += [
            f'<text x="{NAME_WIDTH - 8}" y="{text}" text-anchor="end" fill="#222"{weight}>{escape(name)}</text>',
            f'<rect x="{NAME_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" '
            f'fill="{color if bar.is_right else WRONG}"/>',
            f'<text x="{NAME_WIDTH + width + 6:.1f}" y="{text}" fill="#222">{bar.value:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
