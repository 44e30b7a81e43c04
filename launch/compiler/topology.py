"""TPU chips and slices by name: what one needs to compile for them, and to say what a program costs there."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

_NAME = re.compile(r"(v4|v5e|v5p|v6e):(\d+x\d+|\d+x\d+x\d+)")
GIB = 2**30


class Chip(NamedTuple):
    """One chip's limits. Rates are per second."""

    name: str
    hbm: float  # bytes
    flops: float  # peak, in bfloat16
    bandwidth: float  # bytes of HBM
    links: float  # bytes that it can send to its neighbours, over all its links together
    network: float  # bytes that it can send to other slices: its share of its host's network


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: memory, peak and bandwidth of a chip. Links are given there as Gbit/s
# (v5e 1600, v5p 4800) or as GB/s in both directions together (v5e 400, v6e 800): here, GB/s in one. Those of v4: six of
# 50 GB/s (Jouppi et al. 2023, arXiv 2304.01433). Networks: v5p 50 Gbit/s a chip; v5e and v6e the cards of a host of
# eight chips, 2 x 100 and 4 x 200 Gbit/s. That of v4 is not stated there: taken as v5p's.
CHIPS = {
    "v4": Chip("v4", 32 * GIB, 275e12, 1228e9, 300e9, 6.25e9),
    "v5e": Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, 3.125e9),
    "v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, 6.25e9),
    "v6e": Chip("v6e", 32 * GIB, 918e12, 1640e9, 400e9, 12.5e9),
}


class Topology(NamedTuple):
    """Slices of a TPU pod, such as v6e:8x8."""

    name: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.split(":")[0]]

    @property
    def chips(self) -> int:
        return self.slices * math.prod(int(side) for side in self.name.split(":")[1].split("x"))

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} slices of {self.name}"

    def devices(self) -> list[Any]:
        """Devices that can be compiled for, and nothing else: one for each chip.

        Raises:
            ValueError: libtpu is not installed, or knows no such slice.
        """
        more: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.chip.name == "v4":
            # both cores of a chip as one device, as JAX on such a machine has it
            more["chip_config_name"] = "megacore"
        try:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name, **more).devices)
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"expected a slice that libtpu knows, got {self}: {str(error).splitlines()[0]}") from error


def parse(name: str, slices: int = 1) -> Topology:
    """A topology by its name.

    Raises:
        ValueError: a name of another form, an unknown chip, or no slices.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a topology such as v6e:8x8, v5e:4x4, v5p:2x2x4 or v4:2x2x1, got {name!r}")
    if slices < 1:
        raise ValueError(f"expected one slice or more, got {slices}")
    return Topology(name, slices)


def check_compiler() -> None:
    """Raise ValueError if libtpu, which compiles for TPUs on any machine, is not installed."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ValueError("expected libtpu, which compiles for TPUs without one: pip install libtpu")
