"""One module for each library: what of it is tried on the environment, and how.

Each runs in a virtual environment that has its library, ``python -m tools.checks.NAME ROWS``, and
appends a row for each thing that it tried to the file ROWS. ``python -m tools.libraries`` makes the
environments and writes the table.
"""
