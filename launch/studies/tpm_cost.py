"""What a TPM costs beside the network that it steers, and whether its training fits TPUs, by the compiler.

  pip install libtpu
  python -m launch.studies.tpm_cost > docs/tpm_cost.md

Compiles for TPUs that are not there, in bfloat16 and of the public checkpoints' sizes, at 512 pixels with 16 images of
one prompt (AsyncDiff, arXiv 2512.18675): one call of the network and of the default module, and the two programs of an
iteration, rollout and update. Prints a Markdown page; docs/performance.md says what is counted. No measurements.
"""

import sys
from typing import Any, NamedTuple

from absl import flags

from asyncpatch_jax.pretrained.folders.presets import PRESETS
from launch.compiler import aot, report, topology
from launch.compiler.report import Bounds
from launch.compiler.topology import GIB, Topology
from launch.shared import cli, markdown

_PIXELS, _IMAGES, _MINIBATCH, _ITERATIONS = 512, 16, 4, 4000
_PROGRAMS = ("network", "module", "rollout", "update")


class Place(NamedTuple):
    """A public network, the steps that the paper samples it with, and where it is compiled for."""

    family: str
    steps: int
    topology: str
    mesh: tuple[int, int, int]  # data, fsdp, tensor


PLACES = {
    "sd3.5": Place("sd3", 15, "v6e:4x4", (4, 4, 1)),
    "flux": Place("flux", 10, "v6e:4x4", (1, 16, 1)),
}


def request(name: str, program: str) -> dict[str, Any]:
    """What `launch.compiler.tpm_programs` takes."""
    place, parts = PLACES[name], PRESETS[name]
    denoiser = parts["transformer"]
    channels = denoiser["in_channels"] // (4 if place.family == "flux" else 1)
    factor = 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
    return {
        "family": place.family,
        "denoiser": denoiser,
        "scheduler": parts["scheduler"],
        "topology": place.topology,
        "mesh": list(place.mesh),
        "batch": _IMAGES,
        "latents": [_PIXELS // factor] * 2 + [channels],
        "steps": place.steps,
        "minibatch": _MINIBATCH,
        "policy": {},
        "program": program,
        "effort": f"EFFORT_{flags.FLAGS.effort}",
    }


def section(name: str, answers: dict[str, dict[str, Any]]) -> str:
    """A network's part of the page."""
    place = PLACES[name]
    where = topology.parse(place.topology)
    head = ["program", "parameters", "model TFLOPs", "arguments", "temporaries", "peak", "at least"]
    found = {program: report.bounds(answer, where) for program, answer in answers.items() if "memory" in answer}
    lines = []
    for program, answer in answers.items():
        if program not in found:
            lines.append([program, *["does not fit or compile"] * 6])
            continue
        sizes = [f"{answer['memory'][key] / GIB:.2f} GiB" for key in ("arguments", "temporaries", "peak")]
        size = f"{answer['parameters'] / 1e6:,.1f} M" if program in ("network", "module") else ""
        flops, least = answer["model_flops"] / 1e12, found[program].least
        lines.append([program, size, f"{flops:.4g}", *sizes, f"{least:.3g} s"])
    table = markdown.table(head, lines)
    return f"""## {name}

{_IMAGES} images of {_PIXELS} px, {place.steps} steps, {place.topology} (data {place.mesh[0]} x fsdp {place.mesh[1]}),
minibatches of {_MINIBATCH}. FLOPs are of all chips, memory is of one.

{table}

{_summary(answers, found, where) if len(found) == len(answers) else ""}"""


def _summary(answers: dict[str, dict[str, Any]], found: dict[str, Bounds], where: Topology) -> str:
    traced = answers["module"]["model_flops"] / answers["network"]["model_flops"]
    compiled = found["module"].flops / found["network"].flops
    largest = max(answer["memory"]["peak"] for answer in answers.values())
    hours = _ITERATIONS * (found["rollout"].least + found["update"].least) * where.chips / 3600
    return f"""A call of the module has **{traced:.2%}** of the FLOPs of a call of the network, counted in the traced
programs, and {compiled:.2%} counted in what a chip runs of the compiled ones. The largest peak is {largest / GIB:.2f}
of a chip's {where.chip.hbm / GIB:.0f} GiB. {_ITERATIONS:,} iterations of rollout and update take at least
**{hours:,.0f} chip-hours**; decoding and rewards come on top."""


def main() -> None:
    topology.check_compiler()
    found = {}
    for name in PLACES:
        found[name] = {}
        for program in _PROGRAMS:
            print(f"{name}: {program}", file=sys.stderr, flush=True)
            asked = request(name, program)
            found[name][program] = aot.ahead(asked, flags.FLAGS.timeout, "launch.compiler.tpm_programs")
    sections = "\n\n".join(section(name, answers) for name, answers in found.items())
    print(f"""# What a TPM costs, by the compiler

```
python -m launch.studies.tpm_cost > docs/tpm_cost.md
```

Programs compiled for TPUs by libtpu, weights of the network in bfloat16 and of the public checkpoints' sizes; **no
measurements**. [performance.md](performance.md) says what is counted and how: "at least" is what the chips' peak rates
allow. Compiled at effort {flags.FLAGS.effort}.

{sections}""")
    if any("memory" not in answer for answers in found.values() for answer in answers.values()):
        sys.exit(2)


if __name__ == "__main__":
    flags.DEFINE_enum("effort", "O0", ["O0", "O1", "O2", "O3"], "The compiler's; O0 is the fastest.")
    flags.DEFINE_float("timeout", 3600.0, "Seconds that compiling a program may take.")
    cli.main_of_flags(main, __doc__)
