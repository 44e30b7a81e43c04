"""Every hint that is printed can be followed: the flags, settings, commands and files that messages name are there."""

import ast
import functools
import re
from pathlib import Path

import pytest

from configs import autoencoder_base, base, tpm_base
from launch import __main__ as contents
from launch.shared import cli
from tests import mains

ROOT = Path(__file__).parent.parent
# studies print what their commands were; the scripts for pods are held to the truth by test_pods
FILES = sorted(
    path for folder in ("launch", "asyncpatch_jax") for path in (ROOT / folder).rglob("*.py") if "tpu" not in path.parts
)
COMMANDS = [name for names in contents.GROUPS.values() for name in names]
SETTINGS = {name for kind in (base, tpm_base, autoencoder_base) for name in cli.names(kind.settings())}
# what messages name in general
LETTERS = {"NAME", "name", "config.NAME", "config", "help", "debug"}


@pytest.fixture(scope="module")
def flags():
    """Names of each command's flags, as its --help lists them."""
    patch, found = pytest.MonkeyPatch(), {}
    with patch.context() as monkeypatch:
        for command in COMMANDS:
            text = []
            monkeypatch.setattr("builtins.print", lambda *parts, text=text, **more: text.extend(map(str, parts)))

            class Nothing:
                def readouterr(self):
                    return "", ""

            code = mains.command(monkeypatch, Nothing())(command.removeprefix("launch."), "--help")[0]
            assert code == 0, command
            found[command] = set(re.findall(r"^  --([a-z_0-9]+):", "\n".join(text), re.MULTILINE))
    return found


@functools.cache
def texts(path):
    """What a file may say: all its strings but docstrings, what is filled in written as "...", with their lines."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            whole = "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
            found.append((node.lineno, whole))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | parts:
            found.append((node.lineno, node.value))
    return found


def named(pattern):
    return [
        (path.relative_to(ROOT), line, match) for path in FILES for line, text in texts(path)
        for match in re.findall(pattern, text)
    ]  # fmt: skip


def test_settings_that_are_named_exist():
    found = named(r"--config\.([a-zA-Z_0-9.]*[a-zA-Z_0-9])")
    assert len(found) > 15
    sections = {name.rpartition(".")[0] for name in SETTINGS}
    wrong = [one for one in found if one[2] not in SETTINGS | sections | {"NAME"}]
    assert wrong == []


def test_flags_that_are_named_exist(flags):
    """A command's own, of what a command says; of any command, of what shared rooms say."""
    every = set().union(*flags.values()) | LETTERS
    found = named(r"(?<![\w-])--([a-z_0-9]+)(?![\w.])")
    assert len(found) > 60
    wrong = []
    for path, line, name in found:
        command = ".".join(path.with_suffix("").parts)
        if path.parts[1] in ("studies", "bench", "compiler") or command == "launch.compile":
            continue  # of commands that are not listed, and XLA's own
        if name.removeprefix("no") not in (flags[command] | LETTERS if command in flags else every):
            wrong.append((str(path), line, name))
    assert wrong == []


def test_commands_that_are_named_exist():
    found = named(r"python -m ([a-zA-Z_0-9.]+)")
    assert len(found) > 3
    every = {*COMMANDS, *contents.studies(), "launch", "launch....", "...", "COMMAND", "spacy"}
    assert [one for one in found if one[2] not in every] == []


def test_files_that_are_named_exist():
    for path, line, name in named(r"\b((?:configs|docs)/[a-z0-9_]+\.(?:py|md))\b"):
        assert (ROOT / name).exists(), (path, line, name)
