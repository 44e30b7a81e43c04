"""Two real processes on this machine train as one does, through kills, other meshes and other numbers of processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from asyncpatch_jax.training.checkpoints import Checkpoints
from launch import train
from launch.shared import build, cli, processes
from tests import OLDER_EMITTERS
from tests.programs import Program
from tests.test_fitting import read_scalars

ROOT = Path(__file__).parent.parent
SMALL = {
    "times.name": "synchronous",
    "model.name": "dit",
    "model.preset": "",
    "model.width": 64,  # the least whose matrices are split
    "model.depth": 1,
    "model.heads": 2,
    "model.patch": 4,
    "model.log_variance": False,
    "optim.warmup": 2,
    "optim.schedule": "constant",  # which leaves the number of steps free
    "train.batch": 8,
    "train.steps": 4000,
    "train.checkpoint_every": 3,
    "train.log_every": 1,
    "train.sample_every": 0,
    "sample.steps": 2,
    "sample.guidance": 1.0,
}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(workdir, devices, **more):
    """Two processes of `devices` each that train together; the first one's output is a pipe."""
    settings = {**SMALL, "workdir": workdir, **more}
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {OLDER_EMITTERS} --xla_force_host_platform_device_count={devices}",
        "COORDINATOR_ADDRESS": free_address(),
        "NUM_PROCESSES": "2",
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    with open(f"{workdir}.1.txt", "wb") as log:
        return [
            Program("launch.train", *flags, environment={**environment, "PROCESS_ID": str(i)}, cwd=ROOT, output=output)
            for i, output in enumerate((None, log.fileno()))
        ]


def train_alone(workdir, **more):
    """In this process, which has one device."""
    config = cli.load(str(ROOT / "configs" / "digits.py"))
    config.update_from_flattened_dict({**SMALL, "workdir": str(workdir), **more})
    train.run(config)


def watch(started, step=0, act=lambda: None):
    """Read the first process's output to its end, and act once it has done `step` steps of this start."""
    seen, pending = b"", True
    while chunk := started[0].stdout.read1():
        seen += chunk
        if pending and len(set(re.findall(rb"(\d+)/\d+ \[", seen))) > step:
            pending = False
            act()
    for process in started:
        process.wait()
    return seen.decode()


def losses(workdir):
    """The loss of every step, as TensorBoard has it."""
    return {event.step: event.value for event in read_scalars(workdir)["loss"]}


def test_two_processes_are_one_through_kills_other_meshes_and_other_numbers_of_processes(tmp_path, capsys):
    two, one = tmp_path / "two", tmp_path / "one"

    # parameters split within and between processes; one is killed, and the other cannot go on
    split = {"mesh.data": 1, "mesh.fsdp": -1}
    pair = start(two, 2, **split)
    text = watch(pair, 5, lambda: [process.kill() for process in reversed(pair)])
    assert [process.returncode for process in pair] == [-signal.SIGKILL] * 2, text

    # one is asked to stop
    pair = start(two, 2, **split)

    def interrupt():
        # one lock of both, which names the first
        with pytest.raises(ValueError, match=f"got process {pair[0].pid} on .*, which trains there"):
            Checkpoints(two / "checkpoints")
        pair[1].send_signal(signal.SIGTERM)

    text = watch(pair, 4, interrupt)
    assert [process.returncode for process in pair] == [0, 0], text
    assert "stopped as asked to" in text
    assert "continuing" in text
    stopped = int(re.search(r"checkpoints \(steps .*?(\d+)\)", text).group(1))

    # a single process goes on, then two again, split by heads and hidden channels, who draw the pages together
    capsys.readouterr()
    train_alone(two, **{"train.steps": stopped + 3})
    assert f"at step {stopped}" in capsys.readouterr().out
    # the newest checkpoint is damaged: both fall back to the same one before
    last, newest = stopped + 6, two / "checkpoints" / str(stopped + 3)
    for file in newest.glob("train/**/d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    pair = start(two, 1, **{"train.steps": last, "mesh.tensor": 2, "train.sample_every": last})
    text = watch(pair)
    assert [process.returncode for process in pair] == [0, 0], text
    before = int(re.search(r"Using checkpoint (\d+), the newest that is whole", text)[1])
    assert stopped <= before < stopped + 3
    assert f"at step {before}" in text
    assert sorted(path.name for path in (two / "checkpoints_damaged").iterdir()) == [newest.name]
    # only the first one speaks, but for warnings
    assert not re.search(r"(?m)^(training|continuing|wrote)|\d+/\d+ \[", Path(f"{two}.1.txt").read_text())
    assert (two / "samples" / f"{last:07d}" / "autoregressive.gif").exists()

    train_alone(one, **{"train.steps": last})
    curve, undisturbed = losses(two), losses(one)
    assert sorted(curve) == sorted(undisturbed) == list(range(1, last + 1))
    np.testing.assert_allclose([curve[i] for i in undisturbed], list(undisturbed.values()), rtol=2e-4)
    a, b = build.load_run(two).params, build.load_run(one).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), a, b)
    with Checkpoints(two / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest == last


def test_sigterm_ends_a_program_that_does_not_ask_for_it():
    environment = {**os.environ, "COORDINATOR_ADDRESS": free_address(), "NUM_PROCESSES": "2"}
    wait = "import sys, time; from launch.shared import processes; processes.start(); "
    wait += "print('up', file=sys.stderr, flush=True)"
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", f"{wait}; time.sleep(300)"],
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "PROCESS_ID": str(i)},
            cwd=ROOT,
        )
        for i in (0, 1)
    ]
    try:
        for process in reversed(pair):  # the first one serves the other
            assert any(line == "up\n" for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def test_where_other_processes_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: object())
    explicit = {"COORDINATOR_ADDRESS": "host:1", "NUM_PROCESSES": "4", "PROCESS_ID": "2"}
    arguments = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 2}
    job = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    step = {**job, "SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_NUM_TASKS": "2"}
    assert processes.settings({}, tmp_path) is None
    assert processes.settings({**explicit, **step}) == arguments
    assert processes.settings(step) == {}
    assert processes.settings({**step, "SLURM_STEP_NUM_TASKS": "1"}, tmp_path) is None
    assert processes.settings(job, tmp_path) is None  # the batch script itself
    assert processes.settings({**job, "SLURM_STEP_NODELIST": "a"}, tmp_path) is None  # an interactive shell
    with pytest.raises(ValueError, match="SLURM_STEP_NUM_TASKS, got '2x'"):
        processes.settings({**step, "SLURM_STEP_NUM_TASKS": "2x"}, tmp_path)
    for wrong in ({"NUM_PROCESSES": "2"}, {**explicit, "PROCESS_ID": "first"}):
        with pytest.raises(ValueError, match="an address and two numbers in COORDINATOR_ADDRESS, NUM_PROCESSES"):
            processes.settings(wrong)


@pytest.mark.parametrize(
    ("environment", "files", "installed", "silent"),
    [
        ({}, {}, ["libtpu"], True),
        ({}, {"sys/bus/pci/devices/0/vendor": "0x10de\n"}, ["libtpu"], True),
        ({}, {}, [], False),
        ({}, {}, ["libtpu", "jax_cuda13_plugin"], False),
        ({"JAX_PLATFORMS": "tpu"}, {}, ["libtpu"], False),
        ({}, {"dev/accel0": ""}, ["libtpu"], False),
        ({}, {"sys/bus/pci/devices/0/vendor": "0x1ae0\n"}, ["libtpu"], False),
    ],
)
def test_a_tpu_is_not_looked_for_where_none_can_be(monkeypatch, tmp_path, environment, files, installed, silent):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name in installed or None)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processes.without_accelerators(environment, tmp_path) == silent


@pytest.mark.parametrize(("device", "vendor", "has"), [
    ("accel0", "0x1ae0", True), ("vfio/3", "0x1ae0", True), ("vfio/3", "0x10de", False), ("null", "0x1ae0", False),
])  # fmt: skip
def test_a_tpu_is_told_from_other_devices(monkeypatch, tmp_path, device, vendor, has):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: object())
    for path, text in ((f"dev/{device}", ""), ("sys/bus/pci/devices/0000:00:04.0/vendor", f"{vendor}\n")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert processes.settings({}, tmp_path) == ({} if has else None)
    assert processes.settings({"JAX_PLATFORMS": ""}, tmp_path) == ({} if has else None)
    assert processes.settings({"JAX_PLATFORMS": "cpu"}, tmp_path) is None


def test_who_waits_for_others_says_so_and_stops_waiting():
    code = "from launch.shared import processes as p; p.LIMIT, p.PATIENCE = 2.0, 0.2; p.start()"
    address = free_address()
    environment = {**os.environ, "COORDINATOR_ADDRESS": address, "NUM_PROCESSES": "2", "PROCESS_ID": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 1, done.stderr
    others = f"the other processes, 2 in all, to join at {address} (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)"
    assert done.stderr.splitlines() == [
        f"waiting for {others}, for at most 2 seconds",
        f"error: expected {others} within 2 seconds, got no answer",
    ]


def test_a_wait_that_ends_in_time_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.05)
    with processes.waiting("others", 0.5):
        pass
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(os, "_exit", lambda code: print("left", code))
    with processes.waiting("others", 0.1):
        time.sleep(0.3)
    out, err = capsys.readouterr()
    assert (out, err.count("others")) == ("left 1\n", 2)
