"""Colours that stay apart for colour-blind readers, in light and in dark.

Classes: Okabe & Ito (2008) without black, then Tol's muted set (SRON/EPS/TN/09-002, 2021). Beyond
sixteen classes colours repeat, so a legend must name them. Ink colours are written into the SVG
figures as these very values and exchanged for CSS variables in the page, which follows the reader's theme.
"""

from __future__ import annotations

from collections.abc import Sequence

CLASS_COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#6699CC",
)  # fmt: skip
"""One colour a class; class c takes `CLASS_COLOURS[c % 16]`."""

INK = {
    "text": "#20252b",
    "muted": "#5d6772",
    "grid": "#dfe3e8",
    "accent": "#0b6fa4",
    "second": "#c0571a",
    "band": "#cfe3ef",
}
"""Role of a colour in figures to its light value; `--<role>` is the CSS variable of the page."""

SERIES = ("#0b6fa4", "#c0571a", "#00876a", "#a2508f", "#8a6d00", "#5d6772", "#3f8fd0", "#9c3d3d", "#4c7a2b")
"""Lines of a comparison, such as one a strategy; dark enough for white paper."""

UNCERTAINTY_MAP = "magma"
"""matplotlib colour map of heat maps: even in lightness, so it also reads in grey."""


def class_colour(number: int, *, background: bool = True) -> str:
    """Hex colour of a class number; class 0 is background (drawn clear) if there is one."""
    return CLASS_COLOURS[(number - int(background)) % len(CLASS_COLOURS)]


def class_colours(classes: Sequence[str], *, background: bool = True) -> dict[str, str]:
    """Class name to hex colour, without the background class."""
    first = int(background)
    return {name: class_colour(n, background=background) for n, name in enumerate(classes) if n >= first}


def rgb(colour: str) -> tuple[int, int, int]:
    """`#rrggbb` as three numbers 0..255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
