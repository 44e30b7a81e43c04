"""The house is as docs/map.md draws it: every module on a line, imports from lines above only, and in no circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

from launch import __main__ as contents

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "map.md"
LINES = [line.split()[0] for line in re.search(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)[1].splitlines()]
PACKAGES = ("asyncpatch_jax", "configs", "launch")


def line_of(path: str) -> int:
    """The most specific line that a file is on."""
    fitting = [line for line in LINES if path == line or (line.endswith("/") and path.startswith(line))]
    return LINES.index(max(fitting, key=len))


def imported(path: Path) -> set[str]:
    """Files of the house that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, alias.name) for alias in node.names]
        for name, module in names:
            if name.split(".")[0] in PACKAGES:
                found.add(next(f for n in (name, module) if (f := file_of(n))))
    return found


def file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    candidates = (f"{path}.py", f"{path}/__init__.py")
    return next((candidate for candidate in candidates if (ROOT / candidate).is_file()), None)


FILES = sorted(str(f.relative_to(ROOT)) for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
IMPORTS = {file: imported(ROOT / file) for file in FILES}


def test_the_map_has_every_room_and_no_other():
    assert [line for line in LINES if not (ROOT / line).exists()] == []
    # the packages' own __init__ files re-export, and lie on no line where a package has lines of its own
    loose = [f for f in FILES if f != "asyncpatch_jax/__init__.py" and not any(f.startswith(line) for line in LINES)]
    assert loose == []
    assert {line_of(file) for file in FILES if file != "asyncpatch_jax/__init__.py"} == set(range(len(LINES)))


def test_no_arrow_runs_down():
    downward = [
        (file, other)
        for file, others in IMPORTS.items()
        for other in others
        if "asyncpatch_jax/__init__.py" not in (file, other) and line_of(other) > line_of(file)
    ]
    assert downward == []


def test_no_circle():
    # a package's __init__ is the sum of its modules: who imports it imports them, and they may import each other
    graph = {file: others for file, others in IMPORTS.items() if not file.endswith("__init__.py")}
    for file, others in graph.items():
        graph[file] = {other for other in others if not other.endswith("__init__.py")}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("room", [line for line in LINES if line.endswith("/")])
def test_a_room_says_what_it_is_for(room):
    if room not in ("configs/", "launch/tpu/"):
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))


def test_every_command_is_listed_with_what_it_is_for():
    listed = [name for names in contents.GROUPS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"launch.{file.stem}" for file in (ROOT / "launch").glob("[!_]*.py")}
    page = contents.page()
    for name in (*listed, *contents.studies()):
        assert contents.purpose(name), name
        assert f"{name} " in page
    assert "launch.studies.tpm_page" not in page


def test_a_word_after_launch_is_no_command(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert contents.main(words) is None
        assert capsys.readouterr().out == f"{contents.page()}\n"
    for word, hint in (
        ("foo", ""),
        ("train", "; did you mean python -m launch.train?"),
        ("launch.sampel", "; did you mean python -m launch.sample?"),
        ("studies.tex", "; did you mean python -m launch.studies.text?"),
        ("--config=configs/digits.py", ""),
    ):
        said = contents.main([word])
        assert said == f"error: expected nothing after python -m launch, which lists the commands, got {word!r}{hint}"
    assert capsys.readouterr().out == ""
