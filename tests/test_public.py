"""The public face: what people, editors and type checkers see of the packages."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api

import asyncpatch_jax

ROOT = Path(__file__).parent.parent
PACKAGES = ("data", "metrics", "models", "pretrained", "sampling", "training")
HEAVY = ("tensorflow", "torch", "transformers", "diffusers", "matplotlib", "sklearn", "skimage", "ml_collections")


@pytest.mark.parametrize("package", ["asyncpatch_jax", *(f"asyncpatch_jax.{name}" for name in PACKAGES)])
def test_every_listed_name_is_there_and_listed_by_dir(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    assert [name for name in module.__all__ if getattr(module, name) is None] == []
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018


def test_importing_is_light_and_submodules_resolve():
    """In a process of its own: nothing is imported but what is asked for, and nothing heavy even then."""
    program = f"""
import sys
import asyncpatch_jax
assert "jax" not in sys.modules
asyncpatch_jax.__version__, dir(asyncpatch_jax)
assert "jax" not in sys.modules
asyncpatch_jax.sampling.DDIM, asyncpatch_jax.process.RectifiedFlow, asyncpatch_jax.training.policies.load
asyncpatch_jax.pretrained.text2image, asyncpatch_jax.UNet, asyncpatch_jax.metrics.combine
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", asyncpatch_jax.__version__)


def _checked(folder: Path, programs: dict[str, str]) -> tuple[str, int]:
    for name, program in programs.items():
        (folder / name).write_text(program)
    files = [str(folder / name) for name in programs]
    said, _, code = api.run(["--config-file", str(ROOT / "pyproject.toml"), "--follow-imports=silent", *files])
    return said, code


def test_a_type_checker_sees_the_names_and_what_the_readme_does_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    programs = {f"readme_{i}.py": block for i, block in enumerate(blocks)}
    stub = ast.parse((ROOT / "asyncpatch_jax" / "__init__.pyi").read_text())
    names = [a.name for node in stub.body if isinstance(node, ast.ImportFrom) and node.module for a in node.names]
    programs["names.py"] = "import asyncpatch_jax\n" + "".join(f"reveal_type(asyncpatch_jax.{n})\n" for n in names)
    said, code = _checked(tmp_path, programs)
    assert code == 0, said
    revealed = re.findall(r'Revealed type is "(.*)"', said)
    assert len(revealed) == len(names)
    assert [n for n, kind in zip(names, revealed, strict=True) if kind == "Any"] == []


def test_a_type_checker_finds_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    wrong = "from asyncpatch_jax import UNet, sampel\nUNet(bse=3)\n"
    said, code = _checked(tmp_path, {"wrong.py": wrong})
    assert code == 1
    assert "sampel" in said
    assert "bse" in said
