"""The library's version (SemVer). Environment versions (``-v0``) count separately: see env.py."""

__version__ = "0.1.0"
