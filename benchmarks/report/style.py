"""The colours of a report's page: light and dark by the reader's setting, and those of print.

Text has a contrast of at least 4.5 to what it stands on, and what is drawn one of at least 3 (WCAG
2.2, level AA). Lines of tables and tracks of timelines separate and say nothing; they may be faint.
"""

from __future__ import annotations

Palette = dict[str, str]  # name of a CSS variable -> colour

LIGHT: Palette = {
    "ink": "#1d2129",
    "faint": "#5c6470",
    "page": "#ffffff",
    "panel": "#f5f6f8",
    "grid": "#d5d8dd",
    "good": "#00704f",
    "bad": "#a8321c",
    "warn": "#fff2d6",
    "warn-ink": "#6b4300",
    "warn-edge": "#b57608",
    "segment": "#00a277",
    "retrieval": "#3f8fd0",
    # runs
    "s0": "#0072b2",
    "s1": "#c1510a",
    "s2": "#00805e",
    "s3": "#a8487f",
    "s4": "#8a6d00",
    "s5": "#5a6270",
}
DARK: Palette = {
    "ink": "#e6e8ec",
    "faint": "#a3abb8",
    "page": "#14171c",
    "panel": "#1d2128",
    "grid": "#3a404b",
    "good": "#4fd1a5",
    "bad": "#ff9a80",
    "warn": "#3a2d10",
    "warn-ink": "#ffdf9e",
    "warn-edge": "#c98f1e",
    "segment": "#35c79a",
    "retrieval": "#3a7fb5",
    "s0": "#56a9e0",
    "s1": "#f0884a",
    "s2": "#35c79a",
    "s3": "#e08dbb",
    "s4": "#e0b93a",
    "s5": "#a9b2c0",
}
PRINT: Palette = {
    **LIGHT,
    "ink": "#000000",
    "faint": "#444444",
    "panel": "#f2f2f2",
    "grid": "#c4c7cc",
    "warn-ink": "#4d3000",
}
PALETTES = {"light": LIGHT, "dark": DARK, "print": PRINT}
