"""Lets PyPI's torchvision be imported beside a CPU build of torch.

Its wheel is linked against CUDA, so that its operators do not load there, and importing it (0.28)
breaks where it describes them to the compiler. What transformers needs of it is written in plain
torch. Run by the Python of the environment that is to be mended; a second run changes nothing.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

_BARE = re.compile(r'^@(torch\.library\.register_fake\("torchvision::(\w+)"\))$', re.MULTILINE)
_GUARDED = r'@(\1 if hasattr(torch.ops.torchvision, "\2") else lambda fake: fake)'


def guarded(source: str) -> tuple[str, int]:
    """Return a module's text in which absent operators are passed over, and how many it names.

    >>> guarded('@torch.library.register_fake("torchvision::nms")')[1]
    1
    """
    return _BARE.subn(_GUARDED, source)


def main() -> int:
    """Mend the torchvision that this Python imports; return 1 if there is none."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        print("there is no torchvision in this environment", file=sys.stderr)
        return 1
    path = Path(found.submodule_search_locations[0]) / "_meta_registrations.py"
    mended, count = guarded(path.read_text(encoding="utf-8"))
    path.write_text(mended, encoding="utf-8")
    print(f"{count} operators in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
