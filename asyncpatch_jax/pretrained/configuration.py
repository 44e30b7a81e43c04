"""Reading a component's config.json: what a module takes from it, and a clear error for what it does not implement."""

from collections.abc import Mapping
from typing import Any


def check(config: Mapping[str, Any], name: str, used: set[str], fixed: Mapping[str, Any], ignored: set[str]) -> None:
    """Refuse a configuration that the module `name` would not compute as PyTorch does.

    Args:
        config: the content of config.json.
        name: of the module, for the error.
        used: settings that the module reads.
        fixed: settings of which one value is implemented; an absent setting has it.
        ignored: settings that do not change the computation. Names that begin with "_" are ignored too.

    Raises:
        ValueError: a setting of another value, or of an unknown name that is set to something.
    """
    for key, value in config.items():
        if key in fixed and value != fixed[key]:
            raise ValueError(f"expected {key} = {fixed[key]!r} in the config.json of {name}, got {value!r}")
        unknown = not key.startswith("_") and key not in used and key not in fixed and key not in ignored
        if unknown and value not in (None, False):
            raise ValueError(f"expected a config.json of {name}, got the unknown setting {key} = {value!r}")
