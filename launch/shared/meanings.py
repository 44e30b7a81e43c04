"""What each setting of a configuration means: the remark behind its default, where it is written, and nowhere else."""

import ast
import inspect
import io
import tokenize
from pathlib import Path
from types import ModuleType


def meanings(module: ModuleType) -> dict[str, str]:
    """Remarks by dotted name, of the functions that a configuration's file takes its defaults from.

    Args:
        module: a configuration's file as it runs; one that imports no `settings` has none.
    """
    found: dict[str, str] = {}
    given = getattr(module, "settings", None)
    for function in filter(None, (given, getattr(given, "__globals__", {}).get("common"))):
        file = inspect.getsourcefile(function)
        if file is not None:
            found = _remarks(Path(file).read_text(encoding="utf-8"), function.__name__) | found
    return found


def _remarks(source: str, function: str) -> dict[str, str]:
    """Of `config.a = ...`, and of `a.b = ...` where `config.a = a = ...` or `a = config.a` stands before."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    remarks = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    body = next(n.body for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function)
    sections, found = {"config": ""}, {}
    for node in body:
        if not isinstance(node, ast.Assign):
            continue
        names = [_name(target, sections) for target in node.targets]
        local = [target.id for target in node.targets if isinstance(target, ast.Name)]
        whole = next(filter(None, names), None) or _name(node.value, sections)
        if local and whole:
            sections[local[0]] = f"{whole}."
        elif whole and node.end_lineno in remarks:
            found[whole] = remarks[node.end_lineno]
    return found


def _name(node: ast.expr, sections: dict[str, str]) -> str | None:
    """The setting that an expression such as `config.seed` or `train.steps` is."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in sections:
        return sections[node.value.id] + node.attr
    return None
