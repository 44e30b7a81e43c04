"""Compiled programs are kept where they can be, and nothing breaks where they cannot."""

import os
import subprocess
import sys

import jax
import pytest

from launch.shared import cache

PROGRAM = """
import os, sys
import jax
from launch.shared import cache
cache.start(os.environ)
print(jax.jit(lambda x: x * 2)(21))
"""


def test_the_folder_is_the_users_cache_if_it_can_be_written(tmp_path):
    assert cache.folder({"HOME": str(tmp_path)}) == str(tmp_path / ".cache/asyncpatch_jax")
    assert cache.folder({"HOME": "/none", "XDG_CACHE_HOME": str(tmp_path / "x")}) == str(tmp_path / "x/asyncpatch_jax")
    (tmp_path / "file").write_text("")
    assert cache.folder({"HOME": str(tmp_path / "file")}) is None
    assert cache.folder({}) is None
    assert cache.folder({"XDG_CACHE_HOME": "relative"}) is None


@pytest.fixture
def restored():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_of_the_users_own_is_left_to_jax(tmp_path, restored):
    before = jax.config.jax_compilation_cache_dir
    cache.start({"HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "gs://bucket/cache"})
    assert jax.config.jax_compilation_cache_dir == before
    cache.start({"HOME": str(tmp_path)})
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache/asyncpatch_jax")


def test_processes_share_the_cache_and_survive_a_damaged_one(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        env.pop(name, None)

    def start():
        return subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True)

    at_once = [start(), start()]
    assert [process.communicate()[0] for process in at_once] == ["42\n", "42\n"]
    (entry,) = (tmp_path / ".cache/asyncpatch_jax").glob("*lambda*-cache")
    entry.write_bytes(entry.read_bytes()[:10])  # of a process that was killed as it wrote
    again = start()
    assert again.communicate()[0] == "42\n"
    assert again.returncode == 0
