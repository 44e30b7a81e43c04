"""The commands, and what each is for: `python -m launch`."""

import ast
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parent
GROUPS = {
    "Train": ("launch.train", "launch.train_autoencoder", "launch.encode", "launch.train_tpm"),
    "Make images with a run": ("launch.sample", "launch.inpaint", "launch.texture"),
    "Make images with a public checkpoint": ("launch.text2image", "launch.check_checkpoint"),
    "Measure": (
        *("launch.score", "launch.judge", "launch.elbo", "launch.evaluate"),
        *("launch.leakage", "launch.convert_metric", "launch.convert_pickle"),
    ),
    "Before you train": ("launch.times", "launch.benchmark", "launch.compile"),
}


def purpose(name: str) -> str:
    """The first line of a command's docstring; nothing is imported for it."""
    path = _ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]


def studies() -> list[str]:
    """The studies that can be run; the files beside them are their parts."""
    files = sorted((_ROOT / "studies").glob("[!_]*.py"))
    return [f"launch.studies.{file.stem}" for file in files if "__main__" in file.read_text(encoding="utf-8")]


def page() -> str:
    """All commands in their groups."""
    groups = {**GROUPS, "Studies: each makes a page of docs": tuple(studies())}
    width = max(len(name) for names in groups.values() for name in names)
    lines = ["python -m COMMAND --help says more about each.", ""]
    for title, names in groups.items():
        lines += [title, *(f"  {name:{width}}  {purpose(name)}" for name in names), ""]
    return "\n".join(lines).rstrip()


def main(words: Sequence[str]) -> str | None:
    """Print the page; of words other than --help, an error as `sys.exit` takes it."""
    given = [word for word in words if word not in ("-h", "-help", "--help")]
    if not given:
        print(page())
        return None
    names = {name.removeprefix("launch."): name for group in (*GROUPS.values(), studies()) for name in group}
    close = difflib.get_close_matches(given[0].removeprefix("launch."), names, 1, 0.7)
    hint = f"; did you mean python -m {names[close[0]]}?" if close else ""
    return f"error: expected nothing after python -m launch, which lists the commands, got {given[0]!r}{hint}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
