"""What all mains share: the `--config` flag with overrides, `--help`, and errors of one line."""

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# before anything imports TensorFlow (clu does): it shall neither talk nor reach for the accelerator
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from launch.shared import cache, processes

DEFAULT = "configs/digits.py"
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, flags.Error)


def main(run: Callable[[ConfigDict], None], description: str, *, default: str = DEFAULT) -> None:
    """Parse the command line and call `run(config)`; never returns.

    A mistake of the user's (ValueError, OSError, ...) ends with its message and exit code 1; `--debug` shows the
    traceback too. Other flags are absl flags, defined by the main's module.

    Args:
        description: what the command does and examples, for `--help`.
        default: the configuration when there is no `--config`.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        return _parse(_with_default(list(argv), default), description)

    _start(lambda: run(flags.FLAGS.config), parse)


def main_of_run(run: Callable[[], None], description: str) -> None:
    """`main` for what works on a trained run, which knows what it was trained with.

    `--config` says where the run is, unless `--workdir` does; of its settings only those of sampling can be changed.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        return _parse(_with_default(list(argv), DEFAULT), description, only=("workdir", "sample."))

    _start(run, parse)


def main_of_flags(run: Callable[..., None], description: str, *, takes: Sequence[str] = ()) -> None:
    """`main` for what needs no configuration: calls `run` with the arguments that are no flags, named in `takes`.

    A last name that ends with "..." stands for one or more.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        if _asks_for_help(argv):
            print("\n".join(_help(description)))
            sys.exit(0)
        return _known(list(argv), ())

    _start(run, parse, takes)


def _start(run: Callable[..., None], parse: Callable[[Sequence[str]], list[str]], takes: Sequence[str] = ()) -> None:
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

    def guarded(argv: Sequence[str]) -> None:
        many = bool(takes) and takes[-1].endswith("...")
        if len(argv) - 1 != len(takes) and not (many and len(argv) > len(takes)):
            expected = f"{' '.join(takes)} and flags (--name=value)" if takes else "flags only (--name=value)"
            raise ValueError(f"expected {expected}, got {' '.join(argv[1:]) or 'nothing'!r}")
        logging.set_verbosity(logging.ERROR)
        cache.start(os.environ)
        processes.start()
        run(*argv[1:])

    try:
        app.run(guarded, flags_parser=parse)
    except _USER_ERRORS as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        sys.exit(1)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return str(error)


def _with_default(argv: list[str], default: str) -> list[str]:
    """`--config` comes first, since overrides must follow it; `--config x` and `-config=x` are accepted too."""
    for i, arg in enumerate(argv[1:], 1):
        if arg in ("--config", "-config"):
            if i + 1 == len(argv):
                raise ValueError("expected --config=FILE, got nothing after --config")
            return [argv[0], f"--config={argv[i + 1]}", *argv[1:i], *argv[i + 2 :]]
        if arg.startswith(("--config=", "-config=")):
            return [argv[0], f"--config={arg.split('=', 1)[1]}", *argv[1:i], *argv[i + 1 :]]
    return [argv[0], f"--config={default}", *argv[1:]]


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(arg in ("-h", "-help", "--help") for arg in argv[1:])


def _parse(argv: list[str], description: str, only: tuple[str, ...] = ("",)) -> list[str]:
    """Define `--config` and parse all flags; settings can be changed whose names begin with one of `only`."""
    if _asks_for_help(argv):
        print("\n".join([*_help(description), *_settings(argv, only)]))
        sys.exit(0)
    argv[1] = f"--config={resolve(argv[1].split('=', 1)[1])}"
    config = load(argv[1].split("=", 1)[1])
    known = names(config)
    for arg in argv[2:]:
        if arg.startswith(("--config.", "-config.")):
            name = arg.lstrip("-").split("=", 1)[0].removeprefix("config.")
            check_name(name, known)
            if not name.startswith(only):
                raise ValueError(f"--config.{name} was settled when the run was trained; --config.sample.* can change")
    # config_flags looks for overrides in sys.argv, not in what it is given
    config_flags.DEFINE_config_file("config", help_string="Configuration file[:argument].", sys_argv=argv)
    return _known(argv, [f"config.{name}" for name in known])


def _known(argv: list[str], more: Sequence[str]) -> list[str]:
    """Parse; an unknown flag is named with the nearest one, of the flags and `more`."""
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, [*flags.FLAGS, *more], 1)
        hint = f", did you mean --{close[0]}?" if close else ""
        raise ValueError(f"unknown flag --{error.flagname}{hint}") from error


def resolve(name: str) -> str:
    """The configuration file `name[:argument]`, from here or, if there is none, from the installed `configs` package.

    Raises:
        FileNotFoundError: in neither place; names what there is.
    """
    path, _, argument = name.partition(":")
    folder = Path(__file__).parents[2] / "configs"
    for candidate in (Path(path), folder / Path(path).name):
        if candidate.is_file():
            return f"{candidate}:{argument}" if argument else str(candidate)
    there = ", ".join(f"configs/{file.name}" for file in sorted(folder.glob("[!_]*.py")))
    raise FileNotFoundError(f"expected a configuration file, got {path!r}; there are {there}")


def load(name: str) -> ConfigDict:
    """`get_config(argument)` of a resolved `path[:argument]`.

    Raises:
        ValueError: the file cannot be run or has no `get_config`; or it does not take the argument.
    """
    path, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"expected a Python file as the configuration, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"expected a function get_config(argument) in {path}")
    return module.get_config(argument)


def names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All settings by dotted name."""
    found = []
    for name, value in config.items():
        found += names(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
    return found


def check_name(name: str, known: Sequence[str]) -> None:
    """Raise ValueError with the nearest valid name if there is no setting `name`."""
    if name in known:
        return
    # a name with its section forgotten or mistaken is the likeliest slip: compare the last parts first
    last = name.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    close = (
        same if "." not in name and same else difflib.get_close_matches(name, same or known, 1, 0.0 if same else 0.5)
    )
    hint = f"did you mean {' or '.join('--config.' + k for k in close)}?" if close else "see --help for all of them"
    raise ValueError(f"unknown setting --config.{name}: {hint}")


def _help(description: str) -> list[str]:
    module_flags = flags.FLAGS.get_flags_for_module(sys.modules["__main__"].__name__)
    own = [f"  --{flag.name}: {flag.help} (default: {flag.default})" for flag in module_flags]
    return [description.strip(), "", "Flags:", *own, "  --debug: show the traceback of an error"]


def _settings(argv: list[str], only: tuple[str, ...]) -> list[str]:
    name = argv[1].split("=", 1)[1]
    flat = _flat(load(resolve(name)))
    values = [f"  {key} = {value!r}" for key, value in flat.items() if key.startswith(only)]
    return [
        "  --config: configuration file[:argument]",
        "",
        f"Settings of {name}, changed by --config.NAME=VALUE:",
        *values,
    ]


def _flat(config: ConfigDict) -> dict[str, Any]:
    from asyncpatch_jax.training.records import flatten

    return flatten(config.to_dict())
