"""The README's programs, as a stranger would run them: with the wheel, in a folder that has a `launch` of its own."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests import OLDER_EMITTERS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """A folder beside which the wheel is installed, in an environment that has its dependencies and no checkout."""
    folder = tmp_path_factory.mktemp("stranger")
    source = folder / "source"
    for name in ("asyncpatch_jax", "launch", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], cwd=folder)
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    _run([*pip, "--python", python, "install", "--no-deps", next(folder.glob("*.whl"))], cwd=folder)
    # the dependencies are this environment's; a path in a .pth file brings no editable install with it
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    for name in ("launch", "configs"):
        (folder / "own" / name).mkdir(parents=True)
        (folder / "own" / name / "__init__.py").write_text("mine = True\n")
    return folder


def _run(command, cwd) -> str:
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {OLDER_EMITTERS}"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_library_alone(stranger):
    files = zipfile.ZipFile(next(stranger.glob("*.whl"))).namelist()
    assert {file.split("/")[0] for file in files if ".dist-info/" not in file} == {"asyncpatch_jax"}
    written = {
        str(f.relative_to(ROOT)) for s in ("*.py", "*.pyi", "py.typed") for f in ROOT.glob(f"asyncpatch_jax/**/{s}")
    }
    assert written <= set(files)


def test_a_strangers_program_learns(stranger):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    checks = "import asyncpatch_jax, launch, configs\nassert launch.mine and configs.mine\n"
    checks += f"assert asyncpatch_jax.__file__.startswith({str(stranger)!r}), asyncpatch_jax.__file__\n"
    program = stranger / "own" / "program.py"
    learns = next(block for block in blocks if "optax" in block)
    assert "range(200)" in learns
    program.write_text(checks + learns.replace("range(200)", "range(50)"))  # a quarter of it is enough to see it
    said = _run([stranger / "venv" / "bin" / "python", program], cwd=stranger / "own")
    shape, loss, spread = re.fullmatch(r"(\(.*\)) loss (\S+) spread within an image (\S+)\n", said).groups()
    assert shape == "(4, 8, 8, 1)"
    # the data are flat grey images: an untrained network (velocity 0) has a loss above 1, and leaves pure noise
    assert float(loss) < 0.5
    assert float(spread) < 0.5


def test_the_short_example_inpaints():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from asyncpatch_jax.models import DiT
    from tests import drawn

    block = next(b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "def inpaint" in b)
    names = {}
    exec(block, names)  # code of this repository's own README
    model = DiT(patch=2, width=8, depth=1, heads=1)
    known, mask = np.full((2, 4, 4, 1), 0.3, np.float32), np.zeros((2, 4, 4, 1), np.float32)
    mask[:, :2] = 1.0
    params = drawn.params(model, known, np.ones((2, 1, 1, 1), np.float32))
    image = np.asarray(names["inpaint"](model, params, jax.random.key(1), *map(jnp.asarray, (known, mask)), steps=3))
    np.testing.assert_array_equal(image[:, 2:], known[:, 2:])
    assert np.abs(image[:, :2] - known[:, :2]).min() > 1e-6


def test_every_page_and_picture_that_it_names_is_there():
    text = README.read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    assert named
    assert [name for name in named if not (README.parent / name).exists()] == []
