"""Make docs/results_digits.md: how the training times compare, on real digits, with spread over seeds.

  python -m launch.studies.digits --config=configs/digits.py --config.train.steps=400 --config.sample.guidance=1
  python -m launch.studies.digits --config=configs/digits.py:smoke --out=smoke.md --seeds=2     # to see it work

After Table 1 of AsyncPatch Diffusion: networks that differ in nothing but their training times generate, inpaint and
give a likelihood along three paths. The one trained on synchronous times cannot be told what is known and inpaints by
RePaint. Runs go to --runs and stay there, each beside its numbers: what is finished is not done again.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float
from ml_collections import ConfigDict

from asyncpatch_jax.data import masks
from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.sampling import repaint_cost
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.inpainting import AsyncPatch, RePaint
from asyncpatch_jax.texts import read_text
from asyncpatch_jax.types import Image
from launch import elbo, judge, train
from launch.shared import build, cli, datasets, digits_judge, markdown, outputs, pictures, plans
from launch.shared.generate import fill

TITLE = "Results on digits"
TIMES = ("synchronous", "perlin", "patchwise", "asyncpatch")
MASKS = ("extrema", "square", "thin", "wide")
PATHS = ("diagonal", "raster", "random environment")
LEVELS = 17  # grey levels that a real digit has
_BATCH = 64
Row = dict[str, Any]


def trained(config: ConfigDict, times: str, seed: int, folder: Path) -> build.Run:
    """A run with these training times, trained unless it is there.

    Raises:
        ValueError: the training was stopped before its end.
    """
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.times.update({name: None for name in config.times if name not in ("name", "grid")})
    config.times.name, config.seed, config.workdir = times, seed, str(folder)
    config.train.sample_every = 0
    train.run(config)
    run = build.load_run(config.workdir)
    if run.step < config.train.steps:
        raise ValueError(f"stopped after step {run.step} of {folder}; the same command continues from here")
    return run


def inpainted(run: build.Run, images: Image, label: Any, mask: Image, seed: int, repaint_steps: int) -> Image:
    """The images with their holes filled, known pixels untouched; by RePaint if `repaint_steps` is not 0."""
    inputs = pictures.inputs(run, of_seed(seed), images, label)
    grid = build.grid(run.config, repaint_steps or run.config.sample.steps, run.process)
    method = RePaint() if repaint_steps else AsyncPatch(build.solver(run.config, run.process))

    def call(part: Any) -> Image:
        inputs, hole = part
        return fill(pictures.net(run), run.params, method, inputs, hole, grid)

    return np.concatenate(batched(call, (inputs, jnp.asarray(mask)), batch=_BATCH))[: len(images)]


def measure(run: build.Run, seed: int) -> Row:
    """All numbers of one run. Inpainting and likelihood see real test digits, the same for every run."""
    values = flags.FLAGS
    images, label = judge.generated(run, "sync", values.num, _BATCH, seed)
    named = digits_judge.accuracy(images, label)
    row: Row = {"generation": {"distance": digits_judge.distance(images), "named": named}}

    source = datasets.dataset(run.config, "test").source
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, values.test).round()]
    pixels = np.stack([record["image"] for record in records])
    x0 = pixels.astype(np.float32) / 127.5 - 1
    classes = np.array([record["label"] for record in records], np.int32)
    steps = values.repaint_steps if run.config.times.name == "synchronous" else 0
    row["inpainting"] = {}
    for name in MASKS:
        mask = masks.draw(name, 0, len(x0), run.shape[:2])
        filled = inpainted(run, x0, classes, mask, seed, steps)
        error = np.sqrt((((filled - x0) ** 2) * mask).sum() / (mask.sum() * x0.shape[-1]))
        row["inpainting"][name] = {"distance": digits_judge.distance(filled), "error": float(error)}

    settings = {
        "cells": plans.cells(run),
        "samples": values.samples,
        "batch": _BATCH,
        "seed": seed,
        "levels": LEVELS,
    }
    bits = elbo.bounds(run, pixels, classes, **settings)
    row["elbo"] = {path["path"]: path["bits_per_dim"] for path in bits}
    return row


def page(config: ConfigDict, command: str, rows: dict[str, list[Row]]) -> str:
    """The page in Markdown; `rows` holds the numbers of each seed by training times."""
    values = flags.FLAGS
    calls, renoised = repaint_cost(values.repaint_steps)
    named = {name: "synchronous + RePaint" if name == "synchronous" else name for name in rows}
    generation = [
        [
            named[name],
            markdown.spread(row["generation"]["distance"] for row in seeds),
            markdown.spread((100 * row["generation"]["named"] for row in seeds), 1),
        ]
        for name, seeds in rows.items()
    ]
    inpainting = [
        [named[name], *(markdown.spread(row["inpainting"][mask][kind] for row in seeds) for mask in MASKS)]
        for kind in ("distance", "error")
        for name, seeds in rows.items()
    ]
    likelihood = [
        [name, *(markdown.spread(row["elbo"][path] for row in seeds) for path in PATHS)] for name, seeds in rows.items()
    ]
    half, seeds = len(rows), values.seeds
    train_settings, how = config.train, config.sample
    real_distance, real_named = digits_judge.distance(_real_test(config)), digits_judge.accuracy_of_real()
    return f"""# {TITLE}

Text to image has [a page of its own](results_text.md): AsynDM and its baselines on captioned scenes of digits.

Written by this command, which trains what is missing in `{values.runs}` and measures all of it:

    {command}

Four networks that differ only in the noise levels that they were trained with ([training times](training_times.md)),
each from {seeds} seeds; numbers are mean ± standard deviation over the seeds. Training: {train_settings.steps} steps of
{train_settings.batch} of the 1,442 real 8x8 training digits, {config.kind} prediction, {config.loss.weight} weighting.
Sampling: {how.solver} with eta {how.eta}, {how.steps} steps, classifier-free guidance {how.guidance}, the class given.

Distances are Fréchet distances to all 1,797 real digits. The {digits_judge.FEATURES} features are the hidden layer of a
scikit-learn network that was trained to name real digits. The estimate is biased upwards by the number of samples, the
same in all rows of a table: {values.test} real test digits stand at {real_distance:.2f}. The classifier behind "named"
gets {real_named:.1%} of the real test digits right.

## Generation

{values.num} class-conditional samples; "named" is the share of them that the classifier names as what was asked for.

{markdown.table(["training times", "distance", "named, %"], generation)}

## Inpainting

{values.test} real test digits with holes of four kinds. The network trained on synchronous times inpaints by RePaint
({values.repaint_steps} levels, jumps of 10, 10 times: {calls} model calls and {renoised} re-noisings an image); the
others take {how.steps} model calls, the known pixels at time 0. Distance as above:

{markdown.table(["training times", *MASKS], inpainting[:half])}

Error: root mean square over the hole against the true pixels, which lie in [-1, 1]; a sharp guess costs more than a
blurred one:

{markdown.table(["training times", *MASKS], inpainting[half:])}

## Likelihood

Upper bounds in bits per dimension of the digits' {LEVELS} grey levels, {values.test} real test digits, {values.samples}
random times for each image and path; lower is better, and {np.log2(LEVELS):.2f} is what knowing nothing costs.

{markdown.table(["training times", *PATHS], likelihood)}
"""


def _real_test(config: ConfigDict) -> Float[np.ndarray, "b h w c"]:
    source = datasets.dataset(config, "test").source
    places = np.linspace(0, len(source) - 1, flags.FLAGS.test).round()
    return np.stack([source[int(i)]["image"] for i in places]).astype(np.float32) / 127.5 - 1


def run(config: ConfigDict) -> None:
    """Train, measure and write the page.

    Raises:
        ValueError: another data set than digits, no class labels in it, or runs of other settings in --runs.
    """
    values = flags.FLAGS
    if config.data.name != "digits":
        raise ValueError(f"expected a configuration with the data set digits, got {config.data.name}")
    repaint_cost(values.repaint_steps)
    outputs.check_page(values.out, TITLE)
    runs = Path(values.runs)
    # the same programs are compiled for every seed
    jax.config.update("jax_compilation_cache_dir", str(runs / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    about = {name: values[name].value for name in ("num", "test", "samples", "repaint_steps")}
    about["sample"] = config.sample.to_dict()
    rows: dict[str, list[Row]] = {name: [] for name in TIMES}
    for seed in range(values.seeds):
        for name in TIMES:
            folder = runs / f"{name}_{seed}"
            network = trained(config, name, seed, folder)
            path = folder / "results.json"
            done = json.loads(read_text(path)) if path.exists() else {}
            if done.get("about") != json.loads(json.dumps({**about, "step": network.step})):
                network.config.sample.update(config.sample)
                done = {"about": {**about, "step": network.step}, "row": measure(network, seed)}
                write_json(path, done, overwrite=True)
            rows[name].append(done["row"])
            print(f"{name}, seed {seed}: {json.dumps(done['row'])}", flush=True)
    command = shlex.join(["python", "-m", "launch.studies.digits", *sys.argv[1:]])
    with writing(values.out, overwrite=True) as stream:
        stream.write(page(config, command, rows).encode())
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("runs", "runs/results", "Folder for the trained networks and their numbers.")
    flags.DEFINE_string("out", "docs/results_digits.md", "Page to write; it is replaced.")
    flags.DEFINE_integer("seeds", 3, "Networks for each kind of training times.", lower_bound=1)
    flags.DEFINE_integer("num", 500, "Samples of each network.", lower_bound=2)
    flags.DEFINE_integer("test", 64, "Real test digits that are inpainted and given a likelihood.", lower_bound=2)
    flags.DEFINE_integer("samples", 128, "Random times for each image and path of the bound; even.", lower_bound=2)
    flags.DEFINE_integer("repaint_steps", 250, "Levels of RePaint.", lower_bound=11)
    cli.main(run, __doc__)
