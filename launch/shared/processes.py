"""Several processes as one program: started where the environment says so, one of them speaks."""

import atexit
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

LIMIT = 300.0  # seconds that other processes are waited for
PATIENCE = 10.0  # seconds until that is said
_GOOGLE = "0x1ae0"  # a PCI vendor
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")
_EXPLICIT = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")


def settings(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None for a process of its own.

    In this order:

    - COORDINATOR_ADDRESS (host:port of process 0), NUM_PROCESSES and PROCESS_ID, on any machines
    - a step of a SLURM job (srun) with more than one task: what it sets. An interactive shell or a batch script is of a
      job with several tasks too, but alone
    - a TPU, unless JAX_PLATFORMS names another platform: what Cloud TPU's metadata or GKE's variables say

    Args:
        root: of the file system that lists the machine's devices.

    Raises:
        ValueError: only some of the first three are set, or not to numbers; or SLURM's number of tasks is none.
    """
    given = [name for name in _EXPLICIT if environment.get(name)]
    if given:
        try:
            address, count, index = (environment[name] for name in _EXPLICIT)
            return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        except (KeyError, ValueError) as error:
            got = {name: environment[name] for name in given}
            raise ValueError(f"expected an address and two numbers in {', '.join(_EXPLICIT)}, got {got}") from error
    if "SLURM_STEP_NODELIST" in environment:
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
        if not (tasks.isascii() and tasks.isdecimal()):
            raise ValueError(f"expected a number of tasks in SLURM_STEP_NUM_TASKS, got {tasks!r}")
        if int(tasks) > 1:
            return {}
    wanted = (environment.get("JAX_PLATFORMS") or "tpu").startswith("tpu") and importlib.util.find_spec("libtpu")
    return {} if wanted and _has_tpu(root) else None


def without_accelerators(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether libtpu is installed where there is neither a TPU nor a GPU's plugin, and nobody named a platform.

    JAX would then try the TPU before it takes the CPU, and libtpu complains in seven lines.

    Args:
        root: of the file system that lists the machine's devices.
    """
    if environment.get("JAX_PLATFORMS") or not importlib.util.find_spec("libtpu"):
        return False
    plugins = any(importlib.util.find_spec(name) for name in _GPU_PLUGINS)
    return not plugins and not any(root.glob("dev/accel[0-9]*")) and _GOOGLE not in _vendors(root)


def _vendors(root: Path) -> set[str]:
    return {path.read_text().strip() for path in root.glob("sys/bus/pci/devices/*/vendor")}


def _has_tpu(root: Path) -> bool:
    """Whether there are chips that only a TPU has: others are reached through VFIO too."""
    devices = [*root.glob("dev/accel[0-9]*"), *root.glob("dev/vfio/[0-9]*")]
    return bool(devices) and _GOOGLE in _vendors(root)


@contextmanager
def waiting(what: str, limit: float | None = None) -> Iterator[None]:
    """A block that waits for other processes: after a while says for what, and after `limit` seconds (default: `LIMIT`)
    ends this process, with an error.

    In a thread, and by leaving at once: what waits may be deep in a library, which answers to nothing.
    """
    limit, done = LIMIT if limit is None else limit, threading.Event()

    def watch() -> None:
        if not done.wait(min(PATIENCE, limit)):
            print(f"waiting for {what}, for at most {limit:.0f} seconds", file=sys.stderr, flush=True)
            if not done.wait(max(limit - PATIENCE, 0.0)):
                print(f"error: expected {what} within {limit:.0f} seconds, got no answer", file=sys.stderr, flush=True)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def together(what: str, limit: float | None = None) -> None:
    """Wait until all processes have come here, so that what one does after it follows what the others did before.

    Args:
        what: all are about to do, such as "write to FOLDER".
        limit: seconds, as `waiting` takes it.
    """
    if jax.process_count() > 1:
        with waiting(f"the other processes, {jax.process_count()} in all, to {what}", limit):
            multihost_utils.sync_global_devices(what)


def start() -> None:
    """Join the other processes, if there are any; all but the first are silent from here on, but for errors.

    Call it before anything asks for devices. If the others do not come, this process ends (`waiting`).

    Raises:
        ValueError: as `settings`.
        RuntimeError: the others refuse.
    """
    if without_accelerators(os.environ):
        jax.config.update("jax_platforms", "cpu")
    arguments = settings(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # its service catches SIGTERM for programs that ask it; here the training loop has a handler of its own, and
    # everything else is to end
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's own end of patience is an abort with a stack of C++
    with waiting(_others(arguments)):
        jax.distributed.initialize(**arguments, initialization_timeout=int(LIMIT) + 60)
    atexit.register(_leave)
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process


def _others(arguments: Mapping[str, Any]) -> str:
    if arguments:
        return (
            f"the other processes, {arguments['num_processes']} in all, to join at {arguments['coordinator_address']} "
            "(COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)"
        )
    if "SLURM_STEP_NODELIST" in os.environ:
        where = f"SLURM_STEP_NUM_TASKS={os.environ['SLURM_STEP_NUM_TASKS']} on {os.environ['SLURM_STEP_NODELIST']}"
        return f"the other tasks of this SLURM step ({where}) to join"
    return "the other hosts of this TPU to join, as its metadata lists them (start the program on all of them)"


def _leave() -> None:
    with waiting("the other processes to end"):
        jax.distributed.shutdown()
