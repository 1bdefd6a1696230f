"""Commands that need an extra: their options are the fields of a frozen dataclass (tyro).

One way to read JSON, one way to say what is wrong, and ``--config FILE``: what a run wrote into its
``config.json``, which options override.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from gym_longvideo import checks
from gym_longvideo.command import fail, json_object, read_config

T = TypeVar("T")
JSON = PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: json_object(words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
Options = Annotated[dict[str, Any], JSON]
_CONFIG = "--config FILE reads options from a file that a run wrote (config.json); others override."


def parse(
    kind: type[T],
    arguments: Sequence[str],
    name: str,
    *,
    description: str | None = None,
    default: T | None = None,
    positional: bool = False,
    make_default: Callable[[Sequence[str], Mapping[str, Any]], T | None] | None = None,
) -> T:
    """Read a command line.

    Args:
        kind: A frozen dataclass; a nested one adds its fields without a prefix where it is
            annotated so.
        arguments: Words of the command line.
        name: Of the command; "python -m ..." for one that is not in ``longvideo``.
        description: Of the command, for the help; by default the docstring of the module in which
            ``kind`` is.
        default: Values of what the command line leaves open.
        positional: Whether fields without a default are given without their names.
        make_default: Makes those from the words and from what ``--config`` holds.

    Raises:
        SystemExit: With code 2 after an error has been printed, with 0 after the help.
        ValueError: For a value that is not allowed, or a file of ``--config`` that cannot be read.
    """
    words, given = _without_config(arguments)
    if make_default is not None:
        try:
            default = make_default(words, given)
        except ValueError:
            if not {"-h", "--help"} & set(words):  # help is given whatever else there is
                raise
    elif given:
        default = from_json(kind, given)
    text = sys.modules[kind.__module__].__doc__ if description is None else description
    text = f"{(text or '').rstrip()}\n\n{_CONFIG}"
    required = (tyro.conf.PositionalRequiredArgs,) if positional else ()
    options: dict[str, Any] = {} if default is None else {"default": default}
    with _errors_as_lines(), _wide(words):
        return tyro.cli(
            kind,
            args=words,
            prog=name if name.startswith("python ") else f"longvideo {name}",
            description=text,
            config=(tyro.conf.PositionalMetavarFromFieldName, *required),
            registry=_REGISTRY,
            **options,
        )


def to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON's own types."""
    return json.loads(json.dumps(config, default=_plain_value))


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # of numpy's numbers
    return str(value) if item is None else item()


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the configuration that ``to_json`` wrote; a field that is absent has its default.

    Raises:
        ValueError: For a field that is unknown, missing without a default, or not allowed.
    """
    try:
        return kind(**_read_fields(kind, values))
    except TypeError as error:
        raise ValueError(f"the configuration cannot be used: {error}") from None


def overlaid(config: T, values: Mapping[str, Any]) -> T:
    """Return a configuration with some fields, nested ones too, as JSON gives them.

    Raises:
        ValueError: For a field that is unknown, or not allowed.
    """
    return dataclasses.replace(config, **_read_fields(type(config), values, config))  # type: ignore


def _read_fields(kind: type, values: Mapping[str, Any], config: Any = None) -> dict[str, Any]:
    hints = get_type_hints(kind)
    checks.names("the configuration", values, hints)
    return {
        name: _read(name, hints[name], value, getattr(config, name, None))
        for name, value in values.items()
    }


def _read(name: str, hint: Any, value: Any, now: Any) -> Any:
    """Return a value of the configuration, refusing what is of another type than its field."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"the configuration's {name}={value!r} must be an object")
        return from_json(hint, value) if now is None else overlaid(now, value)  # type: ignore
    kinds = get_args(hint) if _is_union(hint) else (hint,)
    if not any(_fits(value, kind) for kind in kinds):
        raise ValueError(f"the configuration's {name}={value!r} is of another type than {hint}")
    if isinstance(value, list):
        return tuple(tuple(each) if isinstance(each, list) else each for each in value)
    return Path(value) if Path in kinds and isinstance(value, str) else value


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin is Literal:
        return value in get_args(kind)
    if origin is float:
        return checks.is_number(value)
    if origin is int:
        return checks.is_whole(value)
    wanted = {tuple: list, Path: str, type(None): type(None)}.get(origin, origin)
    return isinstance(value, wanted) if isinstance(wanted, type) else True


def _without_config(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``--config FILE`` out of a command line, and return what the file holds."""
    words, given = [], {}
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--config":
            words.append(word)
            continue
        path = value if equals else next(rest, "")
        if not path:
            raise ValueError("--config needs a FILE: the config.json of a run")
        given = read_config(path)
    return words, given


@contextlib.contextmanager
def _wide(words: Sequence[str]) -> Any:
    """Keep tyro from breaking the lines of its errors; its help is laid out for the terminal."""
    if {"-h", "--help"} & set(words):
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "9999"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


@contextlib.contextmanager
def _errors_as_lines() -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        if end.code:
            raise SystemExit(fail(_plain(said.getvalue()))) from None
        raise


def _plain(box: str) -> str:
    """Return what tyro's framed error says, in a line."""
    # The frame is drawn in ASCII where the terminal knows no other.
    lines = [line.strip("│|╭╮╰╯+ \n") for line in box.splitlines()]
    title = lines[0].strip("─- ") if lines else ""
    body = [line for line in lines[1:] if line]
    body = body[1:] if body and _is_rule(body[0]) else body
    cut = next((i for i, line in enumerate(body) if _is_rule(line)), len(body))
    text = " ".join(body[:cut])
    if title == "Required options":
        # An option with its placeholder, or the placeholder of one without a name, alone in a line.
        names = [line.split()[0] for line in body[1:cut] if re.match(r"--\w|[A-Z][A-Z-]+$", line)]
        return f"{', '.join(names)} must be given"
    if "Perhaps you meant:" in body[cut:]:
        near = next((line for line in body[cut + 1 :] if re.match(r"--\w", line)), "")
        text += f"; perhaps you meant {near.split()[0]}" if near else ""
    return re.sub(r"^Error parsing (?!-)[\w.]+: |^Error parsing ", "", text)


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _int(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word!r} is no whole number") from None


def _float(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number") from None


_PLAIN: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _int),
    float: ("FLOAT", _float),
    str: ("STR", str),
    Path: ("PATH", Path),
}
_REGISTRY = ConstructorRegistry()


def _spec(
    metavar: str, read: Callable[[list[str]], Any], show: Callable[[Any], list[str]], nargs: Any = 1
) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda _: True,
        str_from_instance=show,
    )


@_REGISTRY.primitive_rule
def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Whole numbers and numbers whose errors are plain."""
    if info.type not in (int, float):
        return None
    metavar, read = _PLAIN[info.type]
    return _spec(metavar, lambda words: read(words[0]), lambda value: [str(value)])


@_REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``int | None`` and its like: a plain placeholder, "None" for None."""
    kinds = set(get_args(info.type)) if _is_union(info.type) else set()
    others = kinds - {type(None)}
    if len(kinds) != 2 or len(others) != 1 or next(iter(others)) not in _PLAIN:
        return None
    metavar, read = _PLAIN[others.pop()]
    return _spec(
        metavar,
        lambda words: None if words[0] == "None" else read(words[0]),
        lambda value: [str(value)],
    )


@_REGISTRY.primitive_rule
def _size(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``int | tuple[int, int]``: one number or two."""
    if not _is_union(info.type) or set(get_args(info.type)) != {int, tuple[int, int]}:
        return None

    def read(words: list[str]) -> Any:
        if len(words) not in (1, 2):
            raise ValueError(f"{' '.join(words)!r} must be one whole number or two")
        numbers = tuple(map(_int, words))
        return numbers if len(numbers) == 2 else numbers[0]

    def show(value: Any) -> list[str]:
        return [str(each) for each in (value if isinstance(value, (tuple, list)) else (value,))]

    return _spec("INT [INT]", read, show, "*")


@_REGISTRY.primitive_rule
def _several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``tuple[str, ...]`` and its like, and pairs of numbers."""
    if get_origin(info.type) is not tuple or get_args(info.type)[1:] != (...,):
        return None
    inner = get_args(info.type)[0]
    if inner in _PLAIN:
        metavar, read = _PLAIN[inner]
        return _spec(
            f"{metavar} ...",
            lambda words: tuple(map(read, words)),
            lambda value: [str(each) for each in value],
            "*",
        )
    if inner != tuple[float, float]:
        return None

    def pairs(words: list[str]) -> Any:
        if len(words) % 2:
            raise ValueError(f"{' '.join(words)!r} must be pairs of numbers")
        numbers = list(map(_float, words))
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))

    return _spec(
        "FLOAT FLOAT ...", pairs, lambda value: [str(x) for pair in value for x in pair], "*"
    )
