"""Running a main in this process, as its command line would."""

import runpy
import sys
from collections.abc import Callable

import pytest
from absl import app, flags

Command = Callable[..., tuple[int, str, str]]


def command(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture) -> Command:
    """`command(...)("sample", "--num=3")` -> (exit code, stdout, stderr) of `launch.sample`."""
    app.define_help_flags()
    before = set(flags.FLAGS)

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.delitem(sys.modules, f"launch.{name}", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_module(f"launch.{name}", run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            flags.FLAGS.unparse_flags()
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
        return (code, *capture.readouterr())

    return call
