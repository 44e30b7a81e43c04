"""What all mains share: the `--config` flag with overrides, `--help`, and errors of one line."""

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# before anything imports TensorFlow (a folder in a bucket does): it shall neither talk nor reach for the accelerator
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from launch.shared import cache, processes
from launch.shared.flag_values import check_finite, parsed
from launch.shared.meanings import meanings

DEFAULT = "configs/digits.py"
# configurations are of as many kinds as there are commands that begin something: which one takes which, by an example
_KINDS = {
    "launch.train": DEFAULT,
    "launch.train_tpm": "configs/tpm_digits.py",
    "launch.train_autoencoder": "configs/autoencoder_fashion.py",
}
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, flags.Error)


def main(
    run: Callable[[ConfigDict], None], description: str, *, default: str = DEFAULT, others: Sequence[str] = ()
) -> None:
    """Parse the command line and call `run(config)`; never returns.

    A mistake of the user's (ValueError, OSError, ...) ends with its message and exit code 1; `--debug` shows the
    traceback too. Other flags are absl flags, defined by the main's module.

    Args:
        description: what the command does and examples, for `--help`.
        default: the configuration when there is no `--config`.
        others: configurations of other kinds that the command takes too.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        return _parse(_with_default(list(argv), default), description, default, others=others)

    _start(lambda: run(flags.FLAGS.config), parse)


def main_of_run(run: Callable[[], None], description: str, *, samples: bool = True) -> None:
    """`main` for what works on a trained run, which knows what it was trained with.

    `--config` says where the run is, unless `--workdir` does; of its settings only those of sampling can be changed.

    Args:
        samples: whether it samples: else no setting can be changed.
    """
    only = ("workdir", "sample.") if samples else ("workdir",)

    def parse(argv: Sequence[str]) -> list[str]:
        return _parse(_with_default(list(argv), DEFAULT), description, DEFAULT, only=only)

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
    if isinstance(error, MemoryError):
        return f"expected what fits into memory, got more: {error or 'a size in the settings may be too large'}"
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


def _parse(
    argv: list[str], description: str, example: str, only: tuple[str, ...] = ("",), others: Sequence[str] = ()
) -> list[str]:
    """Define `--config` and parse all flags; settings can be changed whose names begin with one of `only`.

    Args:
        example: a configuration of the kind that is wanted.
        others: of kinds that are taken too.
    """
    if _asks_for_help(argv):
        print("\n".join([*_help(description), *_settings(argv, only)]))
        sys.exit(0)
    given = argv[1].split("=", 1)[1]
    argv[1] = f"--config={resolve(given)}"
    config = load(argv[1].split("=", 1)[1])
    known = names(config)
    if not any(is_kind(known, other) for other in others):
        check_kind(given, known, example)
    for arg in argv[2:]:
        if arg.startswith(("--config.", "-config.")):
            name = arg.lstrip("-").split("=", 1)[0].removeprefix("config.")
            check_name(name, known)
            if not name.startswith(only):
                free = " and ".join(f"--config.{part}{'*' * part.endswith('.')}" for part in only)
                raise ValueError(
                    f"expected {free} alone to change, got --config.{name}: the run was trained with its own"
                )
    # config_flags looks for overrides in sys.argv, not in what it is given
    config_flags.DEFINE_config_file("config", help_string="Configuration file[:argument].", sys_argv=argv)
    rest = _known(argv, [f"config.{name}" for name in known])
    for name, value in _values(flags.FLAGS.config).items():
        check_finite(f"config.{name}", value)
    return rest


def _known(argv: list[str], more: Sequence[str]) -> list[str]:
    """Parse; an unknown flag is named with the nearest one, of the main's own and `more`.

    Raises:
        ValueError: an unknown flag, a value that its flag cannot have, or a number that is NaN or infinite.
    """
    try:
        rest = parsed(argv)
    except flags.UnrecognizedFlagError as error:
        known = [*(flag.name for flag in _own_flags()), *("config" for _ in more[:1]), "debug", "help", *more]
        close = _nearest(error.flagname, known)
        hint = f", did you mean {' or '.join('--' + name for name in close)}?" if close else "; --help lists all"
        raise ValueError(f"unknown flag --{error.flagname}{hint}") from error
    for flag in _own_flags():
        check_finite(flag.name, flag.value)
    return rest


def is_kind(known: Sequence[str], example: str) -> bool:
    """Whether settings of these names are all that a configuration like `example` has."""
    return set(names(load(resolve(example)))) <= set(known)


def check_kind(given: str, known: Sequence[str], example: str) -> None:
    """Refuse a configuration of another kind than `example`, by the names of its settings.

    Raises:
        ValueError: says what it lacks, and which command takes it.
    """
    missing = [name for name in names(load(resolve(example))) if name not in known]
    if not missing:
        return
    takers = [command for command, other in _KINDS.items() if is_kind(known, other)]
    hint = f"; it is one for python -m {takers[0]} --config={given}" if takers else ""
    raise ValueError(
        f"expected a configuration such as {example}, got {given}, which lacks {', '.join(missing[:3])}"
        f"{' ...' if len(missing) > 3 else ''}{hint}"
    )


def resolve(name: str) -> str:
    """The configuration file `name[:argument]`; configs/NAME.py also from elsewhere, if it is none here.

    Raises:
        FileNotFoundError: in neither place; names what there is.
    """
    path, _, argument = name.partition(":")
    root = Path(__file__).parents[2]
    packaged = [root / path] if Path(path).parent == Path("configs") else []
    for candidate in (Path(path), *packaged):
        if candidate.is_file():
            return f"{candidate}:{argument}" if argument else str(candidate)
    files = sorted(file.name for file in (root / "configs").glob("[!_]*.py") if "base" not in file.stem)
    close = difflib.get_close_matches(Path(path).name, files, 1, 0.8)
    hint = f"; did you mean configs/{close[0]}?" if close else ""
    there = ", ".join(f"configs/{file}" for file in files)
    raise FileNotFoundError(f"expected a configuration file, got {path!r}; there are {there}{hint}")


def load(name: str) -> ConfigDict:
    """`get_config(argument)` of a resolved `path[:argument]`.

    Raises:
        ValueError: the file cannot be run or has no `get_config`; or it does not take the argument.
    """
    path, _, argument = name.partition(":")
    module = _module(path)
    if not hasattr(module, "get_config"):
        raise ValueError(f"expected a function get_config(argument) in {path}")
    return module.get_config(argument)


def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"expected a Python file as the configuration, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return module


def names(config: ConfigDict) -> list[str]:
    """All settings by dotted name."""
    return [*_values(config)]


def _values(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in config.items():
        found |= _values(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return found


def check_name(name: str, known: Sequence[str]) -> None:
    """Raise ValueError with the nearest valid name if there is no setting `name`."""
    if name in known:
        return
    close = _nearest(name, known)
    hint = f"did you mean {' or '.join('--config.' + k for k in close)}?" if close else "see --help for all of them"
    raise ValueError(f"unknown setting --config.{name}: {hint}")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """What may have been meant: of dotted names, above all those with the same last part.

    A section that is forgotten or mistaken is the likeliest slip; then come an abbreviation (lr), a letter too many, a
    word of several (batch_size), and what looks alike.
    """
    section, _, last = name.rpartition(".")
    lasts = {k: k.rpartition(".")[2] for k in known}
    inside = [k for k in known if section and k.startswith(f"{section}.")]
    words = set(last.split("_"))
    slip = difflib.get_close_matches(last, lasts.values(), 1, 0.85)
    like = difflib.get_close_matches(last, [lasts[k] for k in inside or known], 1, 0.5 if inside else 0.7)

    def those(fits: Callable[[str], bool], among: Sequence[str]) -> list[str]:
        found = [k for k in among if fits(lasts[k])]
        own = [k for k in found if k in inside]
        # of a section that is none, the one that is most like it
        return own or (difflib.get_close_matches(name, found, 1, 0.0) if section else found)

    return (
        those(lambda other: other == last, known)
        or those(lambda other: "_" in other and last == "".join(word[:1] for word in other.split("_")), known)
        or those(lambda other: other in slip, known)
        or those(lambda other: other in words or last in other.split("_"), inside or known)
        or those(lambda other: other in like, inside or known)
    )


def _own_flags() -> list[flags.Flag]:
    return [*flags.FLAGS.get_flags_for_module(sys.modules["__main__"].__name__)]


def _help(description: str) -> list[str]:
    own = [f"  --{flag.name}: {flag.help} (default: {flag.default})" for flag in _own_flags()]
    return [description.strip(), "", "Flags:", *own, "  --debug: show the traceback of an error"]


def _settings(argv: list[str], only: tuple[str, ...]) -> list[str]:
    name = argv[1].split("=", 1)[1]
    flat = _values(load(resolve(name)))
    remarks = meanings(_module(resolve(name).partition(":")[0]))
    values = [(f"{key} = {value!r}", remarks.get(key)) for key, value in flat.items() if key.startswith(only)]
    width = min(44, max(len(value) for value, _ in values))
    values = [f"  {value:{width}}  {remark}" if remark else f"  {value}" for value, remark in values]
    return [
        "  --config: configuration file[:argument]",
        "",
        f"Settings of {name}, changed by --config.NAME=VALUE:",
        *values,
    ]
