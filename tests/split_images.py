"""What `test_text2image.py` runs in two processes at once: the command, with tiny parameters split like large ones."""

import runpy

from asyncpatch_jax import sharding

if __name__ == "__main__":
    sharding.MIN_SIZE = 1
    runpy.run_module("launch.text2image", run_name="__main__", alter_sys=True)
