"""Property tests draw the same examples everywhere and ignore how busy the machine is."""

from hypothesis import settings

settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, max_examples=60, print_blob=False
)
settings.load_profile("suite")
