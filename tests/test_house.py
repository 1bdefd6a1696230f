"""How the house stands: which module may import which. Read from the source, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up: a floor imports from those before it alone.
FLOORS = ("gym_longvideo", "agents", "benchmarks", "examples", "tools")


@cache
def modules() -> dict[str, Path]:
    """Return every module of the house by its dotted name."""
    paths = (path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")))
    return {_name(path): path for path in paths}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(name: str) -> frozenset[str]:
    """Return what a module imports, whole dotted names, inside functions too."""
    return frozenset(_imports(ast.parse(modules()[name].read_text(encoding="utf-8"))))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, "imports are written whole"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else node.module


def test_no_module_imports_itself_round_a_circle() -> None:
    # A package's face only hands names on: what it imports is no tie between two modules.
    faces = {name for name, path in modules().items() if path.name == "__init__.py"}
    graph = {name: imports(name) & modules().keys() - faces for name in modules().keys() - faces}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"import circle: {' <- '.join(error.args[1])}") from None


def test_imports_run_down_the_floors_alone() -> None:
    for name in modules():
        above = FLOORS[FLOORS.index(name.partition(".")[0]) + 1 :]
        upward = sorted(each for each in imports(name) if each.partition(".")[0] in above)
        assert not upward, f"{name} imports {upward}"


def test_the_environment_stands_without_what_models_need() -> None:
    heavy = {"torch", "transformers", "peft", "accelerate", "tyro", "torchmetrics", "tensorboard"}
    for name in modules():
        if name.partition(".")[0] == "gym_longvideo" and "torchcodec" not in name:
            found = {each.partition(".")[0] for each in imports(name)} & heavy
            assert not found, f"{name} imports {sorted(found)}"


def test_every_folder_can_be_taken_in_at_a_glance() -> None:
    for folder in {path.parent for path in modules().values()}:
        held = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(held) <= 25, f"{folder.relative_to(ROOT)} holds {len(held)} modules"


def test_text_is_read_and_written_in_a_named_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in modules().values()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _leaves_the_encoding_open(call)
    ]
    assert not found, f"without encoding=, these differ from system to system: {found}"


def _leaves_the_encoding_open(call: ast.Call) -> bool:
    named = {each.arg: each.value for each in call.keywords}
    if "encoding" in named:
        return False
    if isinstance(call.func, ast.Name):  # open(path, mode)
        return call.func.id == "open" and _is_text(named.get("mode"), call.args[1:2], alone=True)
    if not isinstance(call.func, ast.Attribute):
        return False
    name = call.func.attr
    if name == "fdopen":
        return _is_text(named.get("mode"), call.args[1:2], alone=True)
    if name == "open":  # a path's; others open what they are given, or have modes of no text
        return _is_text(named.get("mode"), call.args[:1], alone=not call.args)
    return (name == "read_text" and not call.args) or (name == "write_text" and len(call.args) < 2)


def _is_text(named: ast.expr | None, args: list[ast.expr], *, alone: bool) -> bool:
    """Return whether a mode is one of text; ``alone`` says what having none means."""
    mode = named or (args[0] if args else None)
    if mode is None:
        return alone
    is_mode = isinstance(mode, ast.Constant) and isinstance(mode.value, str)
    return is_mode and set(mode.value) <= set("rwaxt+")  # type: ignore[attr-defined]


def test_a_call_that_leaves_the_encoding_open_is_seen() -> None:
    def seen(text: str) -> bool:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        return _leaves_the_encoding_open(call)

    for text in ("p.open()", 'p.open("a")', "open(p)", 'open(p, mode="w")', "p.read_text()",
                 "p.write_text(t)", 'os.fdopen(1, "w")'):  # fmt: skip
        assert seen(text), text
    for text in ('p.open("rb")', 'p.open("w", encoding="utf-8")', "av.open(path)", 'open(p, "wb")',
                 'p.read_text("utf-8")', "read_text(path)", 'os.fdopen(1, "rb")'):  # fmt: skip
        assert not seen(text), text
