"""JSON that somebody else wrote, read through declared schemas: an error names the file, the setting, what it should be
and what it is.

A schema is a type of msgspec's: most often a frozen `Settings`, with the type, the bounds and the default of all that
is read. Files are bounded in size and depth, so that no file can keep a program busy or end it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from etils import epath

from asyncpatch_jax.texts import read_text

T = TypeVar("T")
# characters: the largest files of this kind, indexes of tensors, have a few millions; none nests deeper than ten levels
MOST, MOST_DEPTH = 2**26, 64
# what Git LFS leaves in the place of a file that was not fetched begins so
LFS = "version https://git-lfs.github.com/spec/"
LFS_HELP = "fetch the file itself with `git lfs pull`, or download the folder again"
_SHOWN = 100  # characters of a wrong value
_AT = re.compile(r"(?P<said>.*?)(?:, got (?P<got>.*?))?(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A file of settings of which every one counts: what is unknown and set to something is refused.

    Names that begin with "_" are notes of the program that wrote the file, and are not looked at.

    fixed: settings of which one value is implemented; an absent one has it.
    ignored: settings that do not change what is computed.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: there is no such file, or none with a JSON object in it; or it is too large or nested too deeply.
    """
    return decode(read_text(path), str(path))


def read(path: epath.PathLike, schema: type[T]) -> T:
    """`convert` of a JSON file.

    Raises:
        ValueError: as `read_json` and `convert`.
    """
    return convert(read_json(path), schema, str(path))


def decode(text: str, where: str) -> dict[str, Any]:
    """The object that JSON says, in plain types.

    NaN and Infinity, which JSON does not have, are read: diffusers writes them for settings that do not matter here.
    Where a number matters, its schema bounds it.

    Args:
        where: for errors.

    Raises:
        ValueError: no JSON object, or one that is too long or has too many levels.
    """
    if len(text) > MOST:
        raise ValueError(f"expected JSON of at most {MOST:,} characters in {where}, got {len(text):,}")
    if text.startswith(LFS):
        raise ValueError(f"expected JSON in {where}, got a pointer of Git LFS: {LFS_HELP}")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected JSON in {where}, got {error}") from error
    except RecursionError as error:
        raise ValueError(f"expected JSON of at most {MOST_DEPTH} levels in {where}, got more") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {where}, got {type(content).__name__}")
    level, depth = [content], 0
    while level:
        if (depth := depth + 1) > MOST_DEPTH:
            raise ValueError(f"expected JSON of at most {MOST_DEPTH} levels in {where}, got more")
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [part for parts in inner for part in parts]
    return content


def convert(content: Any, schema: type[T], where: str) -> T:
    """Plain content as what a schema declares; of `Settings`, unknown ones are refused.

    Args:
        where: for errors, as "the config.json of ...".

    Raises:
        ValueError: a setting that is missing, unknown, of another type or out of bounds; names it, and `where`.
    """
    if isinstance(schema, type) and issubclass(schema, Settings):
        content = _known(content, schema, where)
    try:
        return msgspec.convert(content, schema)
    except msgspec.ValidationError as error:
        raise ValueError(_said(str(error), content, schema, where)) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"expected text in {where}, got half a character in {shown(error.object)}") from error


@contextmanager
def within(where: Any) -> Iterator[None]:
    """Errors of the block name the file that they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def shown(value: Any) -> str:
    """A value for an error, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _known(content: Any, schema: type[Settings], where: str) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected an object of settings as {where}, got {shown(content)}")
    fields = {field.encode_name for field in msgspec.structs.fields(schema)}
    for key, value in content.items():
        if key in schema.fixed and value != schema.fixed[key]:
            raise ValueError(f"expected {key} = {schema.fixed[key]!r} in {where}, got {shown(value)}")
        known = key in fields or key in schema.fixed or key in schema.ignored or str(key).startswith("_")
        if not known and value is not None and value is not False:
            raise ValueError(
                f"expected no other settings than known ones in {where}, got the unknown setting {key} = {shown(value)}"
            )
    return {key: value for key, value in content.items() if key in fields}


def _said(message: str, content: Any, schema: Any, where: str) -> str:
    """msgspec's "Expected `int` >= 1 - at `$.depth`" in the words of this library."""
    parts = _AT.fullmatch(message)
    assert parts is not None  # it matches every text
    said, path = parts["said"].replace("`", ""), parts["path"] or ""
    if missing := re.fullmatch(r"Object missing required field (.*)", said):
        return f"expected the setting {'.'.join(filter(None, (path, missing[1])))!r} in {where}, got none"
    found, value = _at(content, path)
    got = shown(value) if found else (parts["got"] or "another value").replace("`", "")
    wanted = said.removeprefix("Expected ").replace("array", "list")
    if said.startswith("Invalid enum value"):
        wanted = f"one of {', '.join(map(repr, _options(schema, path.split('.')[0].split('[')[0])))}"
    elif "out of range" in said:
        wanted = "a number that a computer can hold"
    return f"expected {f'the setting {path} as {wanted} in {where}' if path else f'{wanted} as {where}'}, got {got}"


def _at(content: Any, path: str) -> tuple[bool, Any]:
    for key in re.findall(r"[^.\[\]]+", path):
        try:
            content = content[int(key)] if isinstance(content, list | tuple) else content[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return False, None
    return True, content


def _options(schema: Any, name: str) -> list[Any]:
    """All that the literals in the type of a field allow."""
    kind = schema
    if isinstance(schema, type) and issubclass(schema, msgspec.Struct):
        fields = {field.encode_name: field.name for field in msgspec.structs.fields(schema)}
        kind = get_type_hints(schema)[fields[name]]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [option for part in get_args(kind) for option in _options(part, name)]
