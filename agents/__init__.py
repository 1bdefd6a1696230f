"""Policies and training for LongVideoQA (to come: see README)."""
