"""The numbers of a run: accuracy, grounding, behaviour, their intervals."""
