"""Running a main in this process, as its command line would."""

import runpy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import pytest
from absl import app, flags

from launch.shared import build
from tests import drawn

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


def begin_with_drawn_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that begin compile no program that draws their parameters: it takes as long as that of a step."""
    init = build.init_params

    def params(model: Any, key: Any, shape: tuple[int, int, int], layout: Any = None) -> Any:
        if layout is None:
            return init(model, key, shape)
        shapes = jax.eval_shape(partial(init, model, shape=shape), key)
        return jax.device_put(drawn.params_like(shapes), layout)

    monkeypatch.setattr(build, "init_params", params)
