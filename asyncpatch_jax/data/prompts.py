"""Prompt sets from files in the layouts that people have, and parts of them that anyone can draw again.

Also the format released with AsynDM (arXiv 2510.04504), with its objects.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath

from asyncpatch_jax.data.tables import by_content, by_header, by_keys, refuse, refuse_by_name
from asyncpatch_jax.schema import LFS, LFS_HELP, shown
from asyncpatch_jax.texts import check_whole, composed, read_text, words

T = TypeVar("T")
# how JSON begins, and no prompt does, also where it is cut off: in the brackets of prompts are words
_JSON = re.compile(r"\s*[\[{]\s*([\[{]?\s*\"|[\[{]?\s*$|[\]}]|[\[{]\s*[\]}])", re.MULTILINE)


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
    """The prompts of a file, in its order. What is in it decides, not what it is called:

    - a text a line, where empty lines do not count: T2I-CompBench. A line ends where an editor shows its end; other
      characters that separate, such as U+2028, stay in the prompt
    - a JSON list of texts: AsynDM; or of objects with a key out of `tables.COLUMNS`
    - such an object a line: GenEval's evaluation_metadata.jsonl
    - a table with a header and such a column: DrawBench's `Prompts,Category`, PartiPrompts' `Prompt`, tab, `Category`
    - COCO's captions_*.json: of each image, in the order of their ids, the caption that was written first (of the
      lowest id), without white space around it

    Args:
        items: AsynDM's file of objects, `{"item_idx": {prompt: [position, ...]}, "item_k": {prompt: [omega, ...]}}`. A
            position counts the words of the prompt from 0. Prompts are keys as they look (accents may be composed or
            not), also with a space at the end; those that are not in `file` do not matter.

    Raises:
        ValueError: no such file, or one that is none of these; names the file, what is expected, and what it has.
    """
    texts = _texts(epath.Path(file))
    if items is None:
        return [Prompt(text) for text in texts]
    items = epath.Path(items)
    content = _json(read_text(items), items)
    if not isinstance(content, dict) or set(content) != {"item_idx", "item_k"}:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected an object of item_idx and item_k in {items}, got {got}")
    tables = {key: _by_look(key, table, items) for key, table in content.items()}
    return [_prompt(text, tables, items) for text in texts]


def drawn(prompts: Sequence[T], count: int, seed: int = 42) -> list[T]:
    """So many of the prompts, in their order, each at most once.

    Number i (from 0) of a set counts as the SHA-256 of "SEED:i", in hexadecimal; the smallest are drawn. So anyone can
    draw them again without this library, and a smaller sample is a part of a larger one.

    Raises:
        ValueError: there are fewer, or `count` is below 1.
    """
    if not 1 <= count <= len(prompts):
        raise ValueError(f"expected a sample of 1 to {len(prompts)} prompts, of those there are, got {count}")
    order = sorted(range(len(prompts)), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest())
    return [prompts[i] for i in sorted(order[:count])]


def words_at(prompt: str, item_idx: Sequence[int]) -> tuple[str, ...]:
    """The words that AsynDM's positions mean, as `spans` takes them: "dog", or "dog#2" if an earlier word is the same.

    Words are runs of letters and digits: a hyphen separates two.

    Raises:
        ValueError: the prompt has fewer words.
    """
    there = words(prompt)
    if not all(0 <= place < len(there) for place in item_idx):
        raise ValueError(f"expected positions of the {len(there)} words of {prompt!r}, got {shown(list(item_idx))}")
    named = []
    for place in item_idx:
        nth = [word.lower() for word in there[: place + 1]].count(there[place].lower())
        named.append(there[place] if nth == 1 else f"{there[place]}#{nth}")
    return tuple(named)


def _texts(file: epath.Path) -> list[str]:
    refuse_by_name(file)
    text = read_text(file)
    if text.startswith(LFS):
        raise refuse(file, f"a pointer of Git LFS: {LFS_HELP}")
    if file.suffix.lower() == ".json" or _is_json(text):
        texts = _of_json(text, file)
    elif (found := by_header(text, file)) is not None:
        texts = found
    else:
        # where files were joined, the byte-order mark of a later one begins a line
        lines = [line.lstrip("\ufeff") for line in text.split("\n")]
        texts = [line for line in lines if line.strip()]
        if seen := "nothing" if not texts else by_content(texts, file):
            raise refuse(file, seen)
    for text in texts:
        try:
            check_whole(text)
        except ValueError as error:
            raise ValueError(f"{error}, in {file}") from error
    return texts


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return bool(_JSON.match(text))


def _of_json(text: str, file: epath.Path) -> list[str]:
    """The prompts of JSON: one value, or one a line."""
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        first: Any = json.loads(lines[0]) if len(lines) > 1 else None
    except (ValueError, RecursionError):
        first = None  # one value on many lines
    if isinstance(first, dict):
        return by_keys([_json(line, file, f" in line {i}") for i, line in enumerate(lines, 1)], file)
    content = _json(text, file)
    if isinstance(content, dict) and "annotations" in content:
        return _of_coco(content["annotations"], file)
    if isinstance(content, dict):
        content = [content]  # a file of one line
    if not isinstance(content, list) or not content:
        raise refuse(file, f"JSON of {shown(content)}")
    return content if all(isinstance(value, str) for value in content) else by_keys(content, file)


def _of_coco(annotations: Any, file: epath.Path) -> list[str]:
    """One caption of each image, as COCO-30K has them; five or more people wrote one about the same image."""
    if not isinstance(annotations, list) or not annotations:
        raise refuse(file, f"annotations of {shown(annotations)}")
    first: dict[int, tuple[int, str]] = {}
    for value in annotations:
        kinds = {"image_id": int, "id": int, "caption": str}
        if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
            raise refuse(file, f"annotations without image_id, id and caption: {shown(value)}")
        number, caption = value["id"], value["caption"].strip()
        if not caption:
            raise refuse(file, f"an annotation without a caption: {shown(value)}")
        if value["image_id"] not in first or number < first[value["image_id"]][0]:
            first[value["image_id"]] = (number, caption)
    return [first[image][1] for image in sorted(first)]


def _json(text: str, file: epath.Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {file}{where}, got an error: {error}") from error
    except RecursionError as error:
        raise ValueError(f"expected JSON in {file}, got lists within lists beyond any depth") from error


def _by_look(key: str, table: Any, file: epath.Path) -> dict[str, Any]:
    """A table of an items file by composed prompts."""
    if not isinstance(table, dict):
        raise ValueError(f"expected an object of prompts under {key} in {file}, got {shown(table)}")
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
            raise ValueError(f"expected a list of numbers for {text!r} under {key} in {file}, got {shown(row)}")
        rows[key] = row
    places, omegas = rows["item_idx"], rows["item_k"]
    if len(places) != len(omegas):
        raise ValueError(
            f"expected as many item_k as item_idx for {text!r} in {file}, got {len(omegas)}, {len(places)}"
        )
    if not all(math.isfinite(omega) and omega >= 0 for omega in omegas):
        raise ValueError(f"expected item_k of at least 0 for {text!r} in {file}, got {shown(omegas)}")
    return Prompt(text, words_at(text, places), tuple(map(float, omegas)), tuple(places))
