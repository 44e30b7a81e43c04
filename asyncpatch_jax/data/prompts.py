"""Prompt sets from files: lists of texts, and the format released with AsynDM (arXiv 2510.04504), with its objects."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from asyncpatch_jax.data.tables import by_content, by_name, refuse_table
from asyncpatch_jax.texts import check_whole, composed, read_text, words


class Prompt(NamedTuple):
    """A text and the objects in it.

    objects: words of the text, as `pretrained.spans.spans` takes them.
    omegas: of each object, how much slower it is denoised (AsynDM's k).
    item_idx: of each object, the position that the released code takes it to have (`spans.reference_compat`).
    """

    text: str
    objects: tuple[str, ...] = ()
    omegas: tuple[float, ...] = ()
    item_idx: tuple[int, ...] = ()


def read_prompts(file: epath.PathLike, items: epath.PathLike | None = None) -> list[Prompt]:
    """The prompts of a file: a JSON list of texts, or one text a line, where empty lines do not count.

    A line ends where an editor shows its end; other characters that separate, such as U+2028, stay in the prompt.

    Args:
        items: AsynDM's file of objects, `{"item_idx": {prompt: [position, ...]}, "item_k": {prompt: [omega, ...]}}`. A
            position counts the words of the prompt from 0. Prompts are keys as they look (accents may be composed or
            not), also with a space at the end; those that are not in `file` do not matter.

    Raises:
        ValueError: no such file, a table (CSV, JSONL, ...), or another content that is not the one above; names the
            file and the prompt.
    """
    texts = _texts(epath.Path(file))
    if items is None:
        return [Prompt(text) for text in texts]
    items = epath.Path(items)
    content = _json(items)
    if not isinstance(content, dict) or set(content) != {"item_idx", "item_k"}:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected an object of item_idx and item_k in {items}, got {got}")
    tables = {key: _by_look(key, table, items) for key, table in content.items()}
    return [_prompt(text, tables, items) for text in texts]


def words_at(prompt: str, item_idx: Sequence[int]) -> tuple[str, ...]:
    """The words that AsynDM's positions mean, as `spans` takes them: "dog", or "dog#2" if an earlier word is the same.

    Words are runs of letters and digits: a hyphen separates two.

    Raises:
        ValueError: the prompt has fewer words.
    """
    there = words(prompt)
    if not all(0 <= place < len(there) for place in item_idx):
        raise ValueError(f"expected positions of the {len(there)} words of {prompt!r}, got {_short(list(item_idx))}")
    named = []
    for place in item_idx:
        nth = [word.lower() for word in there[: place + 1]].count(there[place].lower())
        named.append(there[place] if nth == 1 else f"{there[place]}#{nth}")
    return tuple(named)


def _texts(file: epath.Path) -> list[str]:
    if file.suffix.lower() == ".json":
        texts = _json(file)
    else:
        refuse_table(file, by_name(file))
        # where files were joined, the byte-order mark of a later one begins a line
        lines = [line.lstrip("\ufeff") for line in read_text(file).split("\n")]
        texts = [line for line in lines if line.strip()]
        refuse_table(file, by_content(texts))
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected a list of texts in {file}, got {_short(texts)}")
    for text in texts:
        try:
            check_whole(text)
        except ValueError as error:
            raise ValueError(f"{error}, in {file}") from error
    return texts


def _json(file: epath.Path) -> Any:
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {file}, got an error: {error}") from error
    except RecursionError as error:
        raise ValueError(f"expected JSON in {file}, got lists within lists beyond any depth") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _by_look(key: str, table: Any, file: epath.Path) -> dict[str, Any]:
    """A table of an items file by composed prompts."""
    if not isinstance(table, dict):
        raise ValueError(f"expected an object of prompts under {key} in {file}, got {_short(table)}")
    found: dict[str, Any] = {}
    for text, row in table.items():
        if found.setdefault(composed(text), row) != row:
            raise ValueError(
                f"expected one row for {text!r} under {key} in {file}, got two for prompts that look equal"
            )
    return found


def _prompt(text: str, tables: Mapping[str, Mapping[str, Any]], file: epath.Path) -> Prompt:
    rows = {}
    for key, kinds in (("item_idx", int), ("item_k", int | float)):
        if composed(text) not in tables[key]:
            raise ValueError(f"expected the prompt {text!r} under {key} in {file}, got none")
        row = tables[key][composed(text)]
        # JSON's true is a Python integer
        if not isinstance(row, list) or not all(isinstance(v, kinds) and not isinstance(v, bool) for v in row):
            raise ValueError(f"expected a list of numbers for {text!r} under {key} in {file}, got {_short(row)}")
        rows[key] = row
    places, omegas = rows["item_idx"], rows["item_k"]
    if len(places) != len(omegas):
        raise ValueError(
            f"expected as many item_k as item_idx for {text!r} in {file}, got {len(omegas)}, {len(places)}"
        )
    if not all(math.isfinite(omega) and omega >= 0 for omega in omegas):
        raise ValueError(f"expected item_k of at least 0 for {text!r} in {file}, got {_short(omegas)}")
    return Prompt(text, words_at(text, places), tuple(map(float, omegas)), tuple(places))
