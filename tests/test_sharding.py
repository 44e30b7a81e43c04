"""Everything in `eight_devices.py`, in a process of its own: the number of devices is settled when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asyncpatch_jax import sharding
from tests import tiny_folders


def test_on_eight_devices(tmp_path):
    for family in ("sdxl", "flux"):
        tiny_folders.folder(family, tmp_path / family)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--override-ini=addopts=",  # no types: they are the same on one device, where other tests look at them
            "-q",
            "--durations=5",
            str(Path(__file__).parent / "eight_devices.py"),
        ],
        env={**os.environ, "XLA_FLAGS": flags, "ASYNCPATCH_TESTS_FOLDERS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("owners", "shards"),
    [
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0], [1], [0], [1]], [(0, 2), (1, 2)]),  # a torus does not number devices by process
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes to a copy read the same images
        ([[0, 0, 1, 1]], [(0, 1), (0, 1)]),
    ],
)
def test_what_each_process_reads(owners, shards):
    assert [sharding.part(np.array(owners), process) for process in range(len(shards))] == shards


@pytest.mark.parametrize("owners", [[[0], [1], [1]], [[0, 1], [1, 1]]])
def test_processes_that_would_read_overlapping_parts_are_refused(owners):
    with pytest.raises(ValueError, match="evenly to hosts"):
        sharding.part(np.array(owners), 0)
