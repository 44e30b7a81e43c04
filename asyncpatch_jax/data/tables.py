"""Tables of prompts: a column that a header names is read, and what is a table without a header is refused.

So that no header, no other column and no line of JSON becomes a prompt. What counts is the content, whatever a file is
called; only names of tables (.csv), which must have a header, and of formats that are no text are looked at.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from etils import epath

from asyncpatch_jax.schema import shown

COLUMNS = ("prompt", "prompts", "text", "texts", "caption", "captions", "sentence", "description")
"""What columns, and keys of JSON objects, with prompts are called, in any case; a "prompt" goes before all others."""

_SEPARATORS = {"commas": ",", "tabs": "\t", "semicolons": ";", "bars": "|"}
_HEADERS = ("prompt", "prompts", "caption", "captions")  # which no prompt of one word is
_BINARY = (".parquet", ".pq", ".arrow", ".feather", ".xls", ".xlsx", ".ods")
_MARKED_UP = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".md")
_TEXT = (".csv", ".tsv")
_WANTED = (
    "a text a line, a JSON list of texts, COCO's captions_*.json, JSONL with a key, or a table with a column, out of "
    + ", ".join(COLUMNS)
)


def refuse(file: epath.Path, seen: str) -> ValueError:
    """The error of a file that is no file of prompts, with what was seen of it and all that would be one."""
    return ValueError(f"expected prompts in {file} ({_WANTED}), got {seen}")


def refuse_by_name(file: epath.Path) -> None:
    """Say of a table that is no text, or of a text with a markup, what to write in its place, before it is read.

    Raises:
        ValueError: its name ends as that of one.
    """
    if file.suffix.lower() in _MARKED_UP:
        raise refuse(file, f"a file whose name ends in {file.suffix}; write its prompts to a .txt file, one a line")
    if file.suffix.lower() in _BINARY:
        raise refuse(file, f"a table whose name ends in {file.suffix}; write its column of prompts to a .csv file")


def column_of(names: Sequence[str], file: epath.Path) -> str | None:
    """Which of these columns has the prompts: "prompt" or "prompts", or else the only one out of `COLUMNS`; or None.

    Raises:
        ValueError: several may have them.
    """
    found = [name for name in names if name.lower() in COLUMNS]
    found = [name for name in found if name.lower() in COLUMNS[:2]] or found
    if len(found) > 1:
        raise refuse(file, f"several that may have the prompts: {', '.join(found)}")
    return found[0] if found else None


def by_header(text: str, file: epath.Path) -> list[str] | None:
    """The prompts of a table whose header names their column, one a row; None where the first line is no header.

    Columns are separated by commas, tabs, semicolons or bars, and their names by nothing else: people put a space after
    a comma. Fields may be in quotation marks, and then have line ends in them. Empty columns at the end of a row may be
    missing.

    Raises:
        ValueError: a row with more columns than the header, or without a prompt; several columns of prompts, or a first
            line that may be a header or a prompt.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    for separator in _SEPARATORS.values():
        names = [name.strip('"') for name in first.split(separator)]
        if not all(re.fullmatch(r"([^\W_][\w.#()-]*( [\w.#()-]+)?)?", name) for name in names):
            continue
        column, rows = column_of(names, file), _parsed(text, separator, len(names))
        # a prompt may be the one word "text"; with others below it, it names them
        if column is None or len(rows) < 2:
            continue
        if len(names) == 1 and column.lower() not in _HEADERS:
            raise refuse(
                file, f"a first line, {first!r}, that may name the others; name it prompt, or put it elsewhere"
            )
        place, about = names.index(column), f"a table of {len(names)} columns ({first[:60]})"
        for number, row in enumerate(rows[1:], 2):
            if len(row) > len(names):
                raise refuse(file, f"{about} with {len(row)} in row {number}: {str(row)[:80]}")
            if len(row) <= place or not row[place].strip():
                raise refuse(file, f"{about} without a prompt in row {number}: {str(row)[:80]}")
        return [row[place] for row in rows[1:]]
    return None


def header_of(text: str, separator: str, where: object) -> tuple[list[str], list[list[str]]]:
    """The names in a table's first row, and the rows below it, each of as many fields.

    Raises:
        ValueError: a row of another length, or a table without one.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"expected a table in {where}, got an error: {error}") from error
    if not rows:
        raise ValueError(f"expected a table with a header in {where}, got nothing")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise ValueError(f"expected {len(rows[0])} columns in {where}, got {len(row)} in row {number}")
    return rows[0], rows[1:]


def by_keys(rows: Sequence[object], file: epath.Path) -> list[str]:
    """The prompts of JSON objects, such as GenEval's `{"tag": ..., "include": [...], "prompt": ...}`, one each.

    Raises:
        ValueError: a row that is no object, or one without one text that can be the prompt.
    """
    texts = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise refuse(file, f"JSON of {shown(row)} as value {number}")
        key = column_of([key for key, value in row.items() if isinstance(value, str)], file)
        if key is None or not row[key].strip():
            raise refuse(file, f"a JSON object without a text of one of these names as value {number}: {shown(row)}")
        texts.append(row[key])
    return texts


def by_content(lines: Sequence[str], file: epath.Path) -> str | None:
    """What shows that (non-empty) lines, which have no header, are rows of a table and not prompts, or None."""
    if not lines:
        return None
    first = lines[0].strip()
    if file.suffix.lower() in _TEXT:
        return f"a table ({file.suffix}) without a header that names a column of prompts: {first[:60]}"
    for name, separator in _SEPARATORS.items():
        if (count := _quoted(lines, separator)) == 1:
            return f"a table without a header: each line in quotation marks: {first[:60]}"
        if count is not None:
            return f"a table without a header: {count} columns, with quotation marks, separated by {name}: {first[:60]}"
        rows = _rows(lines, separator)
        if len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            numbers = [
                all(re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", field) for field in column)
                for column in zip(*rows, strict=True)
            ]
            if separator == "\t" or any(numbers):
                return f"a table without a header: {len(rows[0])} columns, separated by {name}: {first[:60]}"
    return None


def _parsed(text: str, separator: str, columns: int) -> list[list[str]]:
    """Rows of a table with quotation marks as programs write them, or with none that mean anything; no empty ones.

    A field that begins with a mark and goes on after the closing one was written by no such program; and where there is
    one column, nothing separates it from another.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error:
        rows = [line.split(separator) for line in text.split("\n")]
    if columns == 1 and any(len(row) > 1 for row in rows):
        rows = [[line] for line in text.split("\n")]
    return [row for row in rows if any(field.strip() for field in row)]


def _quoted(lines: Sequence[str], separator: str) -> int | None:
    """How many columns lines have that are written as programs write tables, with marks around fields; None otherwise.

    People who quote somebody leave a space after a comma, and do it in one line and not in the next one.
    """
    lines = [line.strip() for line in lines]
    marked = '"(?:[^"]|"")*"'
    after = re.escape(separator)
    plain = rf'(?!\s)[^"{after}]*'
    whole = re.compile(rf"{marked}(?:{after}{marked})*{after}?")
    some = re.compile(rf"(?:{marked}|{plain})(?:{after}(?:{marked}|{plain}))*")
    counts = {len(row) for row in _rows(lines, separator)}
    if len(counts) != 1:
        return None
    (count,) = counts
    if all(whole.fullmatch(line) for line in lines):
        return count if max(count, len(lines)) > 1 else None
    if count == 1 or len(lines) == 1 or not all(some.fullmatch(line) for line in lines):
        return None
    return count if any(re.search(marked, line) for line in lines) else None


def _rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
    except csv.Error:  # a line that no table has
        return [[line] for line in lines]
