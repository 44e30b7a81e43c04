"""Tables that are taken for lists of prompts: what tells one, so that no header or column becomes a prompt."""

import csv
import json
import re
from collections.abc import Sequence

from etils import epath

# suffixes of files that hold columns, whatever is in them
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods", ".pq")
# what columns of prompts are called
_COLUMNS = {"prompt", "prompts", "text", "texts", "caption", "captions", "sentence", "description"}


def refuse_table(file: epath.Path, seen: str | None) -> None:
    """Say what was seen of a table, if anything was (`by_name`, `by_content`).

    Raises:
        ValueError: a table, with how to write its prompts instead.
    """
    if seen:
        raise ValueError(
            f"expected prompts in {file}, one a line, got a table: {seen}. Tables are not read yet; write their column "
            "of prompts to a .txt file, one a line, or as a list to a .json file"
        )


def by_name(file: epath.Path) -> str | None:
    """What a file's name says of a table, or None."""
    return f"its name ends in {file.suffix}" if file.suffix.lower() in _SUFFIXES else None


def by_content(lines: Sequence[str]) -> str | None:
    """What shows that (non-empty) lines are rows of a table and not prompts, or None."""
    if not lines:
        return None
    first = lines[0].strip()
    if first.startswith(("{", "[")) and _is_json("\n".join(lines)):
        return f"JSON, in a file whose name does not end in .json: {first[:60]}"
    if first.startswith(("{", "[")) and _is_json(first):
        return f"a JSON value a line: {first[:60]}"
    for name, separator in (("commas", ","), ("tabs", "\t"), ("semicolons", ";"), ("bars", "|")):
        if (count := _quoted(lines, separator)) == 1:
            return f"each line in quotation marks: {first[:60]}"
        if count is not None:
            return f"{count} columns in each line, with quotation marks, separated by {name}: {first[:60]}"
        rows = _rows(lines, separator)
        columns = [field.strip().lower() for field in rows[0]]
        if _COLUMNS & set(columns) and all(re.fullmatch(r"[\w .#-]{1,40}", column) for column in columns):
            # a prompt may be the one word "text"; with others below it, it names them
            if len(columns) > 1 and all(len(row) >= len(columns) for row in rows):
                return f"a header, whose columns are separated by {name}: {first[:60]}"
            if len(columns) == 1 and len(rows) > 1:
                return f"a header: {first[:60]}"
        if len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            numbers = [
                all(re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", field) for field in column)
                for column in zip(*rows, strict=True)
            ]
            if separator == "\t" or any(numbers):
                return f"{len(rows[0])} columns in each line, separated by {name}: {first[:60]}"
    return None


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


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
