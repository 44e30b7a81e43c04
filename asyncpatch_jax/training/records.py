"""What a training is: its settings and its data as plain JSON, kept beside what was learned, and compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from etils import epath
from jax.tree_util import keystr, tree_leaves_with_path
from msgspec import Meta, Struct

from asyncpatch_jax import schema


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; tuples as lists, as they come back from JSON."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """A line per setting that differs, "name: saved value -> wanted value"; those in (or below) `ignore` may differ.

    None stands for a default, and so does a setting that is not there: those of before it existed go on.
    """
    old, new = flatten(saved), flatten(wanted)
    free = lambda name: any(name == part or name.startswith(part + ".") for part in ignore)  # noqa: E731
    missing = "(not there)"
    return [
        f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not free(name)
    ]


def summary(params: Any) -> dict[str, str]:
    """Shape and type of every parameter, by path."""
    return {keystr(path, simple=True, separator="/"): _describe(leaf) for path, leaf in tree_leaves_with_path(params)}


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def shortened(lines: list[str], limit: int = 8) -> str:
    """The first lines, each on a line of its own, and how many there are more."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n  ".join(["", *lines[:limit], *more])


def digest(content: Any) -> str:
    """A hash of JSON values, the same before and after they were written."""
    plain = json.loads(json.dumps(content))  # tuples are lists, and numbers as names are texts
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with a hash of itself."""
    return {**content, "seal": digest(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """What was sealed.

    Raises:
        ValueError: it was changed since.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    inner = {name: value for name, value in content.items() if name != "seal"}
    if content.get("seal") != digest(inner):
        raise ValueError("it is not what was written")
    return inner


_Count = Annotated[int, Meta(ge=0, le=2**24)]
_Shape = Annotated[tuple[Annotated[int, Meta(ge=1, le=2**16)], ...], Meta(min_length=3, max_length=3)]


class _Latents(Struct, frozen=True):
    """What a run's record says of the latents that it learned in."""

    autoencoder: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]


class _Data(Struct, frozen=True):
    """What a run's record says of its data; how many images and a hash of their names, since records have it."""

    num_classes: _Count
    class_names: tuple[str, ...]
    shape: _Shape
    latents: _Latents | None = None


class _Policy(Struct, frozen=True):
    """What a policy's record says of the latents and texts that it looks at."""

    num_classes: _Count
    context_dim: _Count
    shape: _Shape


_ABOUT: dict[str, type[Any]] = {"data": _Data, "policy": _Policy}


def read_record(path: epath.PathLike, about: str) -> dict[str, Any] | None:
    """{"config", about} of a JSON file; None if there is none.

    Args:
        about: "data" or "policy".

    Raises:
        ValueError: the file is damaged; names the setting.
    """
    path = epath.Path(path)
    if not path.exists():
        return None
    with schema.within(f"expected the record of a run in {path}, got something else"):
        record = schema.read_json(path)
        for name in ("config", about):
            if not isinstance(record.get(name), dict):
                raise ValueError(f"expected settings as {name!r}, got {schema.shown(record.get(name))}")
        schema.convert(record[about], _ABOUT[about], repr(about))
    return {"config": record["config"], about: record[about]}
