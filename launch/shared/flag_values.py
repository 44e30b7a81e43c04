"""What a flag or a setting may be, said in one way: absl, which parses them, has words of its own for each type."""

import math
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags import tuple_parser

_SHOWN = 60  # characters of a value


def parsed(argv: list[str]) -> list[str]:
    """`flags.FLAGS(argv)`: what is left of the command line.

    Raises:
        flags.UnrecognizedFlagError: there is no such flag.
        ValueError: a value that its flag cannot have, or none.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError:
        raise
    except (flags.Error, ValueError) as error:
        raise ValueError(_said(str(error), argv)) from error


def _said(text: str, argv: Sequence[str]) -> str:
    if missing := re.fullmatch(r"Missing value for flag (--\S+)", text):
        return f"expected {missing[1]}=VALUE, got nothing after {missing[1]}"
    if lone := re.fullmatch(r"--?(\S+?)=(.*) does not take an argument", text):
        return f"expected --{lone[1]} without a value, got {_shown(lone[2])}"
    named = re.match(r"flag --([^=]+)=", text)
    if named is None:
        return text
    name, parser = named[1], flags.FLAGS[named[1]].parser
    value = _given(name, argv)
    if (own := text.find(": expected ")) >= 0:  # of a validator of ours
        return text[own + 2 :]
    return f"expected {_wanted(parser)} as --{name}, got {_shown(value)}"


def _given(name: str, argv: Sequence[str]) -> str:
    """The last value of a flag on the command line."""
    found = ""
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        if arg in (f"--{name}", f"-{name}"):
            found = after
        elif arg.startswith((f"--{name}=", f"-{name}=")):
            found = arg.split("=", 1)[1]
    return found


def _wanted(parser: Any) -> str:
    if isinstance(parser, flags.EnumParser):
        return f"one of {', '.join(parser.enum_values)}"
    if isinstance(parser, flags.BooleanParser):
        return "true or false"
    if isinstance(parser, tuple_parser.TupleParser):
        return "numbers such as (1, 2)"
    kind = "a whole number" if isinstance(parser, flags.IntegerParser) else "a number"
    low, high = (
        bound if bound is None or isinstance(bound, int) else f"{bound:g}"
        for bound in (getattr(parser, f"{which}_bound", None) for which in ("lower", "upper"))
    )
    if low is not None and high is not None:
        return f"{kind} from {low} to {high}"
    return kind + (f" >= {low}" if low is not None else f" <= {high}" if high is not None else "")


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity as the value of a flag or a setting, or within it; and in a tuple, what is no number.

    Raises:
        ValueError: names it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number as --{name}, got {value}")
    if isinstance(value, tuple):
        for part in value:
            if isinstance(part, bool) or not isinstance(part, (int, float)):
                raise ValueError(f"expected numbers such as (1, 2) as --{name}, got {value}")
            check_finite(name, part)
