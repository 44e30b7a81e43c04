"""Several processes as one program: started where the environment says so, one of them speaks."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

_GOOGLE = "0x1ae0"  # a PCI vendor
_EXPLICIT = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")


def settings(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None for a process of its own.

    In this order:

    - COORDINATOR_ADDRESS (host:port of process 0), NUM_PROCESSES and PROCESS_ID, on any machines
    - a step of a SLURM job (srun) with more than one task: what it sets
    - a TPU, unless JAX_PLATFORMS names another platform: what Cloud TPU's metadata or GKE's variables say

    Args:
        root: of the file system that lists the machine's devices.

    Raises:
        ValueError: only some of the first three are set, or not to numbers.
    """
    given = [name for name in _EXPLICIT if environment.get(name)]
    if given:
        try:
            address, count, index = (environment[name] for name in _EXPLICIT)
            return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        except (KeyError, ValueError) as error:
            got = {name: environment[name] for name in given}
            raise ValueError(f"expected an address and two numbers in {', '.join(_EXPLICIT)}, got {got}") from error
    if "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        return {}
    wanted = (environment.get("JAX_PLATFORMS") or "tpu").startswith("tpu") and importlib.util.find_spec("libtpu")
    return {} if wanted and _has_tpu(root) else None


def _has_tpu(root: Path) -> bool:
    """Whether there are chips that only a TPU has: others are reached through VFIO too."""
    vendors = {path.read_text().strip() for path in root.glob("sys/bus/pci/devices/*/vendor")}
    devices = [*root.glob("dev/accel[0-9]*"), *root.glob("dev/vfio/[0-9]*")]
    return bool(devices) and _GOOGLE in vendors


def start() -> None:
    """Join the other processes, if there are any; all but the first are silent from here on, but for errors.

    Call it before anything asks for devices.

    Raises:
        ValueError: as `settings`.
        RuntimeError: the others do not answer.
    """
    arguments = settings(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # its service catches SIGTERM for programs that ask it; here the training loop has a handler of its own, and
    # everything else is to end
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**arguments)
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process
