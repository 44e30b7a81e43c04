"""The commands, and what each is for: `python -m launch`."""

import ast
from pathlib import Path

_ROOT = Path(__file__).parent
GROUPS = {
    "Train": ("launch.train", "launch.train_tpm"),
    "Make images with a run": ("launch.sample", "launch.inpaint", "launch.texture"),
    "Make images with a public checkpoint": ("launch.text2image", "launch.check_checkpoint"),
    "Measure": ("launch.judge", "launch.elbo", "launch.evaluate", "launch.convert_reward"),
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


if __name__ == "__main__":
    print(page())
