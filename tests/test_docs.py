"""Every Python block of every page runs as it stands, and names nothing that it does not define."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import pytest

from asyncpatch_jax.models import TPM
from asyncpatch_jax.sampling import TPMSchedule
from asyncpatch_jax.training import policies

ROOT = Path(__file__).parent.parent
BLOCKS = {
    page.name: "\n".join(blocks)
    for page in sorted((ROOT / "docs").glob("*.md"))
    if (blocks := re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
}


def test_no_block_has_an_undefined_name(tmp_path):
    for name, program in BLOCKS.items():
        (tmp_path / f"{Path(name).stem}.py").write_text(program)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821,F401,E9", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _run(name, **changed):
    """The code of one of this repository's own pages, with some of its text changed."""
    program = BLOCKS[name]
    for old, new in changed.values():
        assert old in program
        program = program.replace(old, new)
    names = {"__name__": "a page"}
    exec(compile(program, name, "exec"), names)
    return names


# the others read networks: tpm.md has a test of its own below, text2image.md one in test_text2image.py, and rewards.md
# one in test_preferences.py
@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("text2image.md", "tpm.md", "rewards.md")])
def test_blocks_run(name):
    # a network is as deep as it takes to run
    _run(name, **({"depth": ("depth=2", "depth=1")} if name == "library.md" else {}))


def test_a_policy_is_a_schedule(monkeypatch):
    module = TPM(patch=2, width=8, depth=1, heads=1, global_tokens=1, num_classes=10)
    params = jax.eval_shape(lambda: policies.init(module, jax.random.key(0), (8, 8, 1)))
    monkeypatch.setattr(policies, "load", lambda workdir: policies.Policy(module, params, 1.0, "time"))
    schedule = _run("tpm.md")["schedule"]
    assert isinstance(schedule, TPMSchedule)
    assert schedule.base.num_steps == 5


@pytest.mark.parametrize("name", [f"docs/{name}" for name in BLOCKS] + ["README.md"])
def test_links_lead_somewhere(name):
    page = ROOT / name
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        other = page.parent / path if path else page
        assert other.exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]


def test_what_the_page_of_papers_names_is_there():
    from asyncpatch_jax.pretrained import settings
    from launch.shared import inpainters

    text = (ROOT / "docs" / "papers.md").read_text()
    for name in set(re.findall(r"`(launch(?:\.[a-z_0-9]+)+)", text)):
        assert ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file(), name
    for path in set(re.findall(r"configs/\w+\.py", text)):
        assert (ROOT / path).is_file(), path
    methods = set(re.findall(r"--method=(\w[\w+-]*)", text))
    assert methods <= {*inpainters.METHODS, *get_args(settings.Method)}
    # a row says how it is done, or what stops it
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what it shows")]
    assert len(rows) > 25
    for row in rows:
        assert re.search(r"`(launch|--)|what stops you", row), row


def test_commands_that_texts_name_can_be_run():
    """A module without a main does nothing, and says nothing either."""
    texts = [ROOT / "README.md", *(path for room in ("docs", "launch", "configs") for path in (ROOT / room).rglob("*"))]
    named = {
        (name, path.relative_to(ROOT).as_posix())
        for path in texts
        if path.suffix in {".md", ".py", ".sh", ".yaml"}
        for name in re.findall(r"python3? -m (launch(?:\.[a-z_0-9]+)+)\b(?!\.[A-Z])", path.read_text())
    }
    assert len(named) > 50
    for name, where in sorted(named):
        module = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        assert module.is_file(), f"{where}: {name}"
        assert '__name__ == "__main__"' in module.read_text(), f"{where}: {name} has no main"
