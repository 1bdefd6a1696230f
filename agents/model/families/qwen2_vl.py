"""Qwen2-VL and Qwen2.5-VL: the features of an image stand in place of its tokens, no more."""

from __future__ import annotations

from agents.model.families.family import Family

QWEN2_VL = Family("qwen2_vl")
QWEN2_5_VL = Family("qwen2_5_vl")
