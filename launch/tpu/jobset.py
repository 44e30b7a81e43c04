"""The manifest of a job on GKE, printed; `gke.sh start` submits it.

  python launch/tpu/jobset.py --name=run1 --image=IMAGE --topology=v6e:8x8 -- --config=... --config.workdir=gs://...

Needs nothing but Python. One pod runs on each host of each slice; GKE tells JAX who the others are.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

# node label of each generation, and how many dimensions its topologies have
# (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)
ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones are multiples of 4 on each side, in rising order


class Slice(NamedTuple):
    """What GKE must know of a slice."""

    accelerator: str  # node label
    shape: str  # node label
    hosts: int
    chips: int  # of each host


def slice_of(topology: str, chips_per_host: int | None = None) -> Slice:
    """The slice of a topology such as "v6e:8x8".

    Args:
        chips_per_host: 4 unless given (1x1: 1); 8 is for a 2x4 of v5e or v6e on a single host.

    Raises:
        ValueError: a topology that GKE does not offer, or chips that do not make up whole hosts.
    """
    match = re.fullmatch(r"(\w+):(\d+x\d+(?:x\d+)?)", topology)
    if not match or match[1] not in ACCELERATORS:
        there = ", ".join(ACCELERATORS)
        raise ValueError(
            f"expected a topology GENERATION:SHAPE, as v6e:8x8, of the generations {there}; got {topology!r}"
        )
    label, dimensions = ACCELERATORS[match[1]]
    shape = match[2]
    sides = [int(side) for side in shape.split("x")]
    rising = len(sides) == 3 and sides == sorted(sides) and all(side % 4 == 0 for side in sides)
    if shape not in (_FLAT if dimensions == 2 else _CUBES) and not (dimensions == 3 and rising and sides[0]):
        larger = "" if dimensions == 2 else ", or sides in rising order, each a multiple of 4"
        offered = ", ".join(_FLAT if dimensions == 2 else _CUBES)
        raise ValueError(f"expected of {match[1]} a topology out of {offered}{larger}; got {shape}")
    total = math.prod(sides)
    chips = chips_per_host or min(total, 4)
    allowed = {1: (1,), 8: (4, 8)}.get(total, (4,)) if dimensions == 2 else (4,)
    if chips not in allowed:
        raise ValueError(f"expected {' or '.join(map(str, allowed))} chips per host of {topology}, got {chips}")
    return Slice(label, shape, total // chips, chips)


def manifest(
    name: str,
    image: str,
    topology: str,
    arguments: Sequence[str],
    *,
    slices: int = 1,
    chips_per_host: int | None = None,
    spot: bool = False,
) -> str:
    """The JobSet as YAML.

    Args:
        arguments: a command of launch/ (train unless one is named) and its arguments.
        spot: only on spot machines.

    Raises:
        ValueError: a name that Kubernetes does not take, fewer than one slice, several slices of a single host (GKE
            has none), or what `slice_of` raises.
    """
    # 40: pods are called NAME-slice-INDEX-INDEX-SUFFIX, in at most 63 letters
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ValueError(f"expected a name of up to 40 small letters, digits and inner dashes, got {name!r}")
    if slices < 1:
        raise ValueError(f"expected at least one slice, got {slices}")
    part = slice_of(topology, chips_per_host)
    if slices > 1 and part.hosts == 1:
        raise ValueError(f"expected slices of several hosts where there are several slices, got {topology} on one host")
    values = {
        "name": name,
        "image": image,
        "slices": slices,
        "hosts": part.hosts,
        "chips": str(part.chips),
        "accelerator": part.accelerator,
        "shape": part.shape,
        # Kubernetes reads $(NAME) as a variable, and $$ as a dollar sign
        "arguments": [argument.replace("$", "$$") for argument in arguments],
    }
    # JSON is YAML, and quotes everything
    filled = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    filled["spot"] = 'cloud.google.com/gke-spot: "true"' if spot else "# not only spot machines"
    return Template(Path(__file__).with_name("jobset.yaml").read_text(encoding="utf-8")).substitute(filled)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--image", required=True, help="container image, built from launch/tpu/Dockerfile")
    parser.add_argument("--topology", required=True, help="of a slice: v4:2x2x4, v5e:4x8, v5p:4x4x4, v6e:8x8, ...")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--chips_per_host", type=int, default=None, help="8 for a 2x4 on a single host")
    parser.add_argument("--spot", action="store_true", help="only on spot machines")
    parser.add_argument("arguments", nargs="+", help="a command (train unless named) and its arguments, after --")
    try:
        sys.stdout.write(manifest(**vars(parser.parse_args(argv))))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
