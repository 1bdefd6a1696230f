"""What an import lacks: the extra that brings a module, or a package of ours itself.

``agents`` and ``benchmarks`` are names that other distributions and directories bear too. Python
takes the first that it finds, and pip lets one distribution overwrite the files of another. So
commands, and suites that are named, ask here whether a package is ours before they trust it.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

NAME = "gym-longvideo"
HOME = Path(__file__).resolve().parents[1]  # the packages of one installation lie side by side
FLOORS = ("agents", "benchmarks")  # from the ground up: the second imports the first
# What pyproject.toml asks for, as it is imported. Of the extras that bring a module, one is
# preferred whose name is in that of the module that imports it, then the first.
EXTRAS: dict[str, tuple[str, ...]] = {
    "agents": (
        "torch",
        "transformers",
        "peft",
        "tensorboard",
        "safetensors",
        "jinja2",
        "filelock",
        "tyro",
    ),
    "benchmarks": (
        "torch",
        "torchmetrics",
        "pyarrow",
        "openai",
        "matplotlib",
        "jinja2",
        "markupsafe",
        "filelock",
        "tyro",
    ),
    "adam8bit": ("torchao",),
    "study": ("matplotlib", "scipy"),
    "sb3": ("stable_baselines3", "sb3_contrib", "torch", "tensorboard"),
    "decord": ("decord",),
    "torchcodec": ("torchcodec", "torch"),
}
_OTHERS = {"torchrl": "torchrl", "ray": "ray[rllib]"}  # libraries of one example each
_REINSTALL = f"pip install --force-reinstall --no-deps {NAME}"


def install_of(module: str, asker: str = "") -> str:
    """Return the command that installs a module; empty for one that nothing here needs.

    Args:
        module: Its dotted name.
        asker: Dotted name of the module that imports it.

    >>> install_of("torch.nn", "examples.train_sb3"), install_of("numpy.no_such_module")
    ('pip install "gym-longvideo[sb3]"', '')
    """
    top, words = module.partition(".")[0], re.split(r"[._]", asker)
    extras = [name for name, modules in EXTRAS.items() if top in modules]
    extras.sort(key=lambda name: words.index(name) if name in words else -1, reverse=True)
    wanted = f"{NAME}[{extras[0]}]" if extras else _OTHERS.get(top)
    return f'pip install "{wanted}"' if wanted else ""


def explain(error: ImportError, asker: str, command: str = "") -> str:
    """Return what to do about an import that failed.

    Args:
        error: What was raised.
        asker: Dotted name of the module, of ours or an example, that was to be imported or run.
        command: What the user called, by default that module.
    """
    name, who = error.name or "", command or asker
    top = name.partition(".")[0]
    # No extra mends an environment in which another package is in the way.
    for package in reversed(floors(name) or floors(asker)):
        if trouble := in_the_way(package):
            return trouble
    install = install_of(name, asker)
    if not install:
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (name == top or not _is_there(top)):
        return f"{who} needs {top}: {install}"
    return f"{who} cannot use the {top} that is installed ({error}): {install}"


def require(asker: str, *modules: str) -> None:
    """Import modules that are needed later, so that none is missed after hours of work.

    Raises:
        ImportError: If one cannot be imported, saying what to do.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(explain(error, asker)) from error


def floors(module: str) -> tuple[str, ...]:
    """Return the packages that a module needs to be ours: its own, and what that stands on.

    >>> floors("benchmarks.evaluate"), floors("agents"), floors("gym_longvideo.probes")
    (('agents', 'benchmarks'), ('agents',), ())
    """
    top = module.partition(".")[0]
    return FLOORS[: FLOORS.index(top) + 1] if top in FLOORS else ()


def check_ours(*packages: str) -> None:
    """Check that packages would come from this installation; others than ours pass.

    Raises:
        ImportError: If something else is imported in their place, saying what, and the fix.
    """
    for package in packages:
        if package in FLOORS and (trouble := in_the_way(package)):
            raise ImportError(trouble, name=package)


def in_the_way(package: str) -> str:
    """Return what is imported in place of a package of ours, and the fix; empty if nothing is."""
    spec, own = find_spec(package), HOME / package
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    place = Path(places[0]).resolve() if places else Path(getattr(spec, "origin", None) or own)
    origin = None if spec is None else spec.origin
    # Without an origin it is a bare directory. Ours name gym_longvideo, if there is a source.
    read = getattr(spec.loader, "get_source", lambda _: None) if spec is not None else None
    source = read(package) if read is not None and origin else ""
    if place == own and (source is None or "gym_longvideo" in source):
        return ""
    held = f"{package}/__init__.py" if origin else f"{package}/"
    others = [name for name in _installed_in(place.parent, held) if name != NAME]
    apart = f"install {NAME} into an environment of its own"
    uninstall = f"pip uninstall {' '.join(others)}"
    if place != own:
        whose = f" ({', '.join(others)})" if others else ""
        fix = f"{uninstall}, or {apart}" if others else "rename it, or work in another directory"
        return f"{package} is imported from {place}{whose}, not from {own}: {fix}"
    if not origin:
        return f"{own / '__init__.py'} is gone, perhaps with what was uninstalled: {_REINSTALL}"
    if not others:
        return f"{origin} is not ours: {_REINSTALL}"
    whose = ", ".join(others)
    return f"{origin} was overwritten by {whose}: {apart}, or {uninstall}, then {_REINSTALL}"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # hidden from imports, or made by hand
        return False


def _installed_in(place: Path, start: str) -> list[str]:
    """Return the distributions of a directory that have a file whose path starts so."""
    return sorted(
        {
            each.metadata["Name"]
            for each in distributions()
            if any(str(path).startswith(start) for path in each.files or ())
            and Path(str(each.locate_file(""))).resolve() == place
        }
    )
