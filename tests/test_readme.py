"""The README's program, as a stranger would run it: in a folder of its own, outside of the repository."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import OLDER_EMITTERS

README = Path(__file__).parent.parent / "README.md"


def test_a_strangers_program_learns(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = next(block for block in blocks if "optax" in block)
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {OLDER_EMITTERS}"}
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shape, loss, spread = re.fullmatch(r"(\(.*\)) loss (\S+) spread within an image (\S+)\n", done.stdout).groups()
    assert shape == "(4, 8, 8, 1)"
    # the data are flat grey images: an untrained network (velocity 0) has a loss above 1, and leaves pure noise
    assert float(loss) < 0.5
    assert float(spread) < 0.5


def test_the_short_example_inpaints():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from asyncpatch_jax.models import DiT

    block = next(b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "def inpaint" in b)
    names = {}
    exec(block, names)  # code of this repository's own README
    model = DiT(patch=2, width=8, depth=1, heads=1)
    known, mask = jnp.full((2, 4, 4, 1), 0.3), jnp.zeros((2, 4, 4, 1)).at[:, :2].set(1.0)
    params = jax.jit(model.init)(jax.random.key(0), known, jnp.ones((2, 1, 1, 1)))["params"]
    image = names["inpaint"](model, params, jax.random.key(1), known, mask, steps=3)
    np.testing.assert_array_equal(image[:, 2:], known[:, 2:])
    assert jnp.abs(image[:, :2] - known[:, :2]).min() > 1e-6


def test_every_page_and_picture_that_it_names_is_there():
    text = README.read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    assert named
    assert [name for name in named if not (README.parent / name).exists()] == []
