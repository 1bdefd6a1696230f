"""The needle suite and the environment that the training examples share."""

from __future__ import annotations

from typing import Any

# A needle suite that a small network can learn to search from scratch: the scene in question always
# is the one framed in white, and the options always stand in the same order, so that pixels must be
# read but no language.
SUITE_OPTIONS: dict[str, Any] = {
    "families": "needle",
    "glyphs": "colour",
    "glyph_scale": 0.6,
    "target_looks": 1,
    "shuffle_options": False,
    "scenes": 4,
    "looks": 5,  # few, lest a network remember videos instead of reading them
    "distractors": 0,
    "blocks": 0,
    "within": (0.5, 0.5),
    "needle_s": 36.0,  # of 600 s: about two pool frames; an overview of 4 frames sees 24 %
}
# 4 overview frames and 8 for each retrieval, out of 32 candidates.
ENV_OPTIONS: dict[str, Any] = {
    "pool_size": 32,
    "overview_frames": 4,
    "frames_per_retrieval": 8,
    "frame_budget": 20,
    "frame_size": 20,
}
