"""Files and folders that a command line names: looked for before anything is loaded, which may take minutes."""

from collections.abc import Iterable

from absl import flags
from etils import epath


def check_there(*names: str) -> None:
    """Refuse flags whose value, or one of whose values, is the path of nothing.

    Raises:
        ValueError: names the flag and the path.
    """
    for name in names:
        value = flags.FLAGS[name].value
        check_paths(name, [value] if isinstance(value, str) else value or ())


def check_paths(name: str, paths: Iterable[str]) -> None:
    """`check_there` of paths that are a part of the value of the flag `name`.

    Raises:
        ValueError: as `check_there`.
    """
    for path in paths:
        if path and not epath.Path(path).exists():
            raise ValueError(f"expected a path of something as --{name}, got {path}, which does not exist")
