"""What a time field costs a public text-to-image network on TPUs that are not there, and whether its sampler fits.

  pip install libtpu
  python -m launch.studies.pretrained_cost --family=flux                      # on 16 chips of v6e
  python -m launch.studies.pretrained_cost --family=sd3.5 --topology=v5e:2x2 --mesh=1,4,1 --batch=8
  python -m launch.studies.pretrained_cost --folder=stable-diffusion-xl-base-1.0 --topology=v6e:1x1 --mesh=1,1,1
  python -m launch.studies.pretrained_cost > docs/pretrained_cost.md          # all that the page has

Compiles one call of the network in bfloat16 (a synchronous time, a field of a few distinct times, one of a time for
each cell; with and without attention maps), whole samplers (a synchronous one, and AsynDM's with dynamic masks) and the
decoder of their latents, and prints Markdown tables of what the compiler says. They are no measurements;
docs/performance.md says what is counted. No weights are read: sizes are those of the public checkpoints, or those of
--folder, in the layout of diffusers. Ends with exit code 2 if a program does not fit, with 3 if the compiler fails.
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from asyncpatch_jax import schema
from asyncpatch_jax.files import check_writable, write_json
from asyncpatch_jax.pretrained.folders import families
from asyncpatch_jax.pretrained.folders.presets import PRESETS
from asyncpatch_jax.pretrained.networks import autoencoder
from launch.compiler import aot, report, topology
from launch.compiler.pretrained_programs import TOKENS
from launch.compiler.topology import GIB
from launch.shared import cli, markdown, outputs

_FAMILIES = {"sd1.5": "sd", "sd2.1": "sd", "sdxl": "sdxl", "sd3.5": "sd3", "flux": "flux", "flux-kontext": "kontext"}
_DOES_NOT_FIT, _FAILED = 2, 3
_FEW = 8
_DENSE = "dense"


class Place(NamedTuple):
    """Where a family is compiled for, and for how much, unless flags say otherwise."""

    topology: str
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    batch: int
    pixels: int
    steps: int


# a batch is as large as one user may ask for; the guided families compute twice as many images
_PLACES = {
    "sd1.5": Place("v5e:1x1", (1, 1, 1), 4, 512, 50),
    "sd2.1": Place("v5e:1x1", (1, 1, 1), 4, 512, 50),
    "sdxl": Place("v6e:1x1", (1, 1, 1), 4, 1024, 50),
    "sd3.5": Place("v6e:1x1", (1, 1, 1), 4, 1024, 28),
    "flux": Place("v6e:4x4", (1, 4, 4), 4, 1024, 28),
    "flux-kontext": Place("v6e:4x4", (1, 4, 4), 4, 1024, 28),
}

_PAGE = f"""# What time fields cost the public text-to-image networks, by the compiler

```
python -m launch.studies.pretrained_cost > docs/pretrained_cost.md
```

Programs compiled for TPUs by libtpu, weights in bfloat16 and of the public checkpoints' sizes; **no measurements**.
[performance.md](performance.md) says what is counted and how. All numbers are those of one chip.

One call: *1 time* is a synchronous field; *{_FEW} times* a field of so many distinct times, chosen per cell; *dense*
one of a time for each cell (a latent pixel of a UNet, a token of a transformer). Ratios are to the first line. With
*maps*, the network gives the attention of every cell to two objects; beside it stands the memory that the attention
weights of a single layer would take. Of a transformer with several images on a chip (SD3.5 here; FLUX has one), gates
that differ from token to token are a pass of their own after the products that they scale.

Samplers: the whole run as one program, under classifier-free guidance (twice the images; FLUX is told its scale).
*dynamic* is AsynDM with two objects, whose masks are read from the maps of every call: no number leaves the chip before
the end. *decoder* is the autoencoder, one image after another on each chip, and of latents of more than
{autoencoder.TILE} a side one tile after another; those of SDXL, SD3.5 and FLUX insist on float32."""


class Subject(NamedTuple):
    """What is compiled, and where."""

    name: str
    family: str
    denoiser: dict[str, Any]
    scheduler: dict[str, Any]
    vae: dict[str, Any] | None
    place: Place

    def request(self, program: str, **more: Any) -> dict[str, Any]:
        """What `launch.compiler.pretrained_programs` takes."""
        place = self.place
        effort = flags.FLAGS.effort
        return {
            "family": self.family,
            "denoiser": self.denoiser,
            "scheduler": self.scheduler,
            "topology": place.topology,
            "mesh": list(place.mesh),
            "batch": place.batch,
            "latents": [place.pixels // self.factor] * 2 + [self.channels],
            "vae": self.vae,
            "program": program,
            "effort": None if effort == "default" else f"EFFORT_{effort}",
            **more,
        }

    @property
    def factor(self) -> int:
        """Pixels to a side of a latent."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1) if self.vae else 1

    @property
    def channels(self) -> int:
        packed = 4 if self.family in ("flux", "kontext") else 1
        return self.denoiser["in_channels"] // packed

    @property
    def where(self) -> topology.Topology:
        return topology.parse(self.place.topology)


def subject(name: str, parts: dict[str, dict[str, Any]], family: str, place: Place) -> Subject:
    """A family's, from the configurations of its parts."""
    denoiser = parts.get("unet") or parts["transformer"]
    one = Subject(name, family, denoiser, parts["scheduler"], parts.get("vae"), place)
    if place.pixels % (2 * one.factor):
        raise ValueError(f"expected --size to be a multiple of {2 * one.factor} pixels, got {place.pixels}")
    return one


def of_folder(folder: Path, place: Place) -> Subject:
    """A folder's own, in the layout of diffusers.

    Raises:
        ValueError: it is of no known family, or a file is missing or no JSON.
    """
    index = schema.read_json(folder / "model_index.json")
    names = families.components(index)
    parts = {name: schema.read_json(folder / name / "config.json") for name in names}
    parts["scheduler"] = schema.read_json(folder / "scheduler" / "scheduler_config.json")
    return subject(folder.name, parts, families.family(index), place)


def calls(one: Subject) -> dict[str, dict[str, Any]]:
    """Requests of one call each, by title."""
    return {
        "1 time": one.request("call", times=1, maps=False),
        f"{_FEW} times": one.request("call", times=_FEW, maps=False),
        _DENSE: one.request("call", times=_DENSE, maps=False),
        f"{_FEW} times, maps": one.request("call", times=_FEW, maps=True),
    }


def runs(one: Subject) -> dict[str, dict[str, Any]]:
    """Requests of whole runs and of what decodes their latents, by title."""
    steps = one.place.steps
    samplers = {name: one.request("sampler", schedule=name, steps=steps) for name in ("sync", "dynamic")}
    return samplers | ({"decoder": one.request("decoder")} if one.vae else {})


def compiled(one: Subject, requests: dict[str, dict[str, Any]], timeout: float) -> dict[str, dict[str, Any]]:
    """Answers by title; what happens meanwhile goes to stderr, for stdout is the page."""
    answers = {}
    for title, request in requests.items():
        if not re.search(flags.FLAGS.only, f"{one.name}, {request['program']}: {title}"):
            continue
        print(f"{one.name}, {request['program']}: {title}", file=sys.stderr, flush=True)
        answers[title] = aot.ahead(request, timeout, "launch.compiler.pretrained_programs")
    return answers


def call_table(one: Subject, answers: dict[str, dict[str, Any]]) -> str:
    """One line a field, ratios to the first."""
    titles = ("field", "TFLOPs", "ratio", "GB moved", "ratio", "temporaries", "one layer's weights")
    rows, base = [], None
    for title, answer in answers.items():
        if "memory" not in answer:
            rows.append([title, *_failure(answer, len(titles) - 1)])
            continue
        found = report.bounds(answer, one.where)
        base = base or found
        rows.append(
            [
                title,
                f"{found.flops / 1e12:.4g}",
                f"{found.flops / base.flops:.4f}",
                f"{found.bytes / 1e9:.4g}",
                f"{found.bytes / base.bytes:.4f}",
                f"{answer['memory']['temporaries'] / GIB:.3f} GiB",
                f"{_stored(one) / GIB:.2f} GiB" if "maps" in title else "",
            ]
        )
    return markdown.table(titles, rows)


def run_table(one: Subject, answers: dict[str, dict[str, Any]]) -> str:
    """One line a program."""
    titles = ("program", "arguments", "temporaries", "peak", f"of {one.where.chip.hbm / GIB:.0f} GiB", "at least")
    rows = []
    for title, answer in answers.items():
        if "memory" not in answer:
            rows.append([title, *_failure(answer, len(titles) - 1)])
            continue
        memory, found = answer["memory"], report.bounds(answer, one.where)
        sizes = [f"{memory[name] / GIB:.2f} GiB" for name in ("arguments", "temporaries", "peak")]
        rows.append([title, *sizes, f"{memory['peak'] / one.where.chip.hbm:.0%}", f"{found.least:.3g} s"])
    return markdown.table(titles, rows)


def _failure(answer: dict[str, Any], width: int) -> list[str]:
    reason = f"the compiler failed: {answer['failed']}" if "failed" in answer else "does not fit"
    if answer.get("needs"):
        reason += f": needs {answer['needs'] / GIB:.1f} GiB"
    return [reason, *[""] * (width - 1)]


def _stored(one: Subject) -> float:
    """Bytes, on a chip, of one layer's attention weights in float32: of the layer with the most that gives maps."""
    place, config = one.place, one.denoiser
    data, fsdp, tensor = place.mesh
    side = place.pixels // one.factor
    batch = place.batch / min(place.batch, data * fsdp)
    text = TOKENS[one.family]
    if one.family in ("sd", "sdxl"):
        heads = config["attention_head_dim"]
        heads = heads[2] if isinstance(heads, list) else heads
        return 4.0 * batch * heads / tensor * (side // 4) ** 2 * text
    tokens = (side // 2) ** 2 * (2 if one.family == "kontext" else 1) + text
    return 4.0 * batch * config["num_attention_heads"] / tensor * tokens**2


def section(one: Subject, timeout: float) -> tuple[str, dict[str, dict[str, Any]]]:
    """A family's part of the page, and the answers that it is made of."""
    place = one.place
    sizes = zip(("data", "fsdp", "tensor"), place.mesh, strict=True)
    mesh = " x ".join(f"{name} {size}" for name, size in sizes if size > 1) or "one chip"
    of_calls = compiled(one, calls(one), timeout)
    of_runs = compiled(one, runs(one), timeout)
    answers = {**of_calls, **{f"run, {name}": a for name, a in of_runs.items()}}
    of_denoiser = [a["parameters"] for name, a in answers.items() if "parameters" in a and name != "run, decoder"]
    parameters = f"{of_denoiser[0] / 1e6:,.0f} M parameters, " if of_denoiser else ""
    text = [
        f"## {one.name}",
        f"{parameters}{place.batch} images of {place.pixels} px, {place.topology} ({mesh}).",
    ]
    if of_calls:
        text += ["One call:", call_table(one, of_calls)]
    if of_runs:
        text += [f"Samplers of {place.steps} steps, and what decodes their latents:", run_table(one, of_runs)]
    return "\n\n".join(text), answers


def _place(default: Place) -> Place:
    values = flags.FLAGS
    mesh = tuple(int(size) for size in values.mesh) if values.mesh else default.mesh
    if len(mesh) != 3:
        raise ValueError(f"expected --mesh=data,fsdp,tensor, got {','.join(values.mesh)}")
    given = (values.topology, mesh, values.batch, values.size, values.steps)
    return Place(*(new if new is not None else old for new, old in zip(given, default, strict=True)))


def main() -> None:
    values = flags.FLAGS
    topology.check_compiler()
    if values.out:
        outputs.refuse_existing(values.out, values.overwrite)
        check_writable(values.out)
    if values.folder:
        subjects = [of_folder(Path(values.folder), _place(_PLACES["sd2.1"]))]
    else:
        names = PRESETS if values.family == "all" else (values.family,)
        subjects = [subject(name, PRESETS[name], _FAMILIES[name], _place(_PLACES[name])) for name in names]
    for one in subjects:
        topology.parse(one.place.topology)
    print(_PAGE + f" Compiled at effort {values.effort}.")
    found: dict[str, dict[str, Any]] = {}
    for one in subjects:
        text, found[one.name] = section(one, values.timeout)
        print(f"\n{text}", flush=True)
    if values.out:
        write_json(values.out, found, overwrite=values.overwrite)
    answers = [answer for part in found.values() for answer in part.values()]
    if any("failed" in answer for answer in answers):
        sys.exit(_FAILED)
    if any("memory" not in answer for answer in answers):
        sys.exit(_DOES_NOT_FIT)


if __name__ == "__main__":
    flags.DEFINE_enum("family", "all", ["all", *PRESETS], "Which public checkpoint.")
    flags.DEFINE_string("folder", None, "A folder in the layout of diffusers, in the place of --family.")
    flags.DEFINE_string("topology", None, "Chips, as v6e:4x4; what suits the family unless given.")
    flags.DEFINE_list("mesh", None, "data,fsdp,tensor: as many chips, or fewer, as the topology has.")
    flags.DEFINE_integer("batch", None, "Images.", lower_bound=1)
    flags.DEFINE_integer("size", None, "Pixels of a side.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps of the samplers.", lower_bound=1)
    flags.DEFINE_enum("effort", "O0", ["O0", "O1", "O2", "O3", "default"], "The compiler's; O0 is the fastest.")
    flags.DEFINE_string("only", "", "Compile what matches this expression alone, e.g. 'flux, call' or 'dense'.")
    flags.DEFINE_float("timeout", 3600.0, "Seconds that compiling a program may take.")
    flags.DEFINE_string("out", None, "JSON file to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out.")
    cli.main_of_flags(main, __doc__)
