"""Sample from a trained run.

  python -m launch.sample --workdir=runs/digits
  python -m launch.sample --workdir=runs/digits --schedule=autoregressive --labels=3,3,7 --guidance=2 --out=threes

Writes into --out: grid.png, images/0000.png ..., samples.npz (images as uint8, labels, seed; arr_0, images in colour as
ADM's evaluator reads them), animation.gif, the first images beside their time fields, and made.json, which says how
they were made; so does each PNG file's metadata. With --overwrite the files that made.json lists are replaced, all at
once at the end; other files there stay. Image i depends on --seed and i alone, not on --num or --batch.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Int

from asyncpatch_jax import viz
from asyncpatch_jax.data.channels import with_channels
from asyncpatch_jax.files import writing
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.types import Condition
from launch.shared import build, cli, inputs, outputs, pictures, trained
from launch.shared.generate import Inputs, Result, generate, image_keys
from launch.shared.plans import PLANS, plan

_WATCHED = 8  # images in the animation


def parse_labels(names: list[str], run: build.Run, count: int) -> Int[np.ndarray, "b"]:
    """Class indices [count] of names or numbers, in turn; of all classes if there are no names.

    Raises:
        ValueError: labels for a model without classes, or a class that it does not have.
    """
    if not names:
        return pictures.cycled_labels(run, count)
    return np.resize(np.array(trained.labels(run, names), np.int32), count)


def sample_run(
    run: build.Run,
    schedule: str,
    label: Int[np.ndarray, "b"],
    seed: int,
    batch: int,
    follow: Callable[[Schedule, Condition], Schedule] | None = None,
) -> Result:
    """Images of these labels along a schedule, `batch` at a time; the run of the first few is recorded as it is.

    Args:
        follow: another schedule, made of the named one and of what is known of a batch.

    Raises:
        ValueError: a schedule that this network cannot follow.
    """
    chosen, num_steps, ahead = plan(schedule, run)
    known = np.zeros((len(label), *run.shape), np.float32)
    watch = min(batch, len(label), _WATCHED)

    def call(part: Inputs) -> Result:
        own = chosen if follow is None else follow(chosen, Condition(label=part.label))
        made = generate(pictures.net(run), run.params, own, part, num_steps=num_steps, ahead=ahead, watch=watch)
        return made._replace(images=run.decoded(made.images))

    results = batched(
        call,
        pictures.inputs(run, image_keys(seed, len(label)), known, label),
        batch=min(batch, len(label)),
        on_batch=lambda done: print(f"{done}/{len(label)} images", flush=True),
    )
    images = np.concatenate([result.images for result in results])[: len(label)]
    return Result(images, results[0].run, results[0].fields)


def names(count: int) -> list[str]:
    """The files of so many images."""
    return [*(f"images/{i:04d}.png" for i in range(count)), "grid.png", "samples.npz", "animation.gif"]


def write(
    folder: epath.PathLike,
    run: build.Run,
    result: Result,
    label: Int[np.ndarray, "b"],
    seed: int,
    title: str,
    settings: Mapping[str, Any],
) -> None:
    """Write a result's files, `names`.

    Args:
        settings: how they were made, for the metadata of PNG files.

    Raises:
        ValueError: images that are not finite.
        OSError: a file cannot be written.
    """
    folder = epath.Path(folder)
    images = viz.to_uint8(result.images)

    def text(**more: int) -> dict[str, str]:
        return {"asyncpatch_jax": json.dumps({**settings, **more})}

    for i, image in enumerate(images):
        viz.save_png(folder / f"images/{i:04d}.png", image, text=text(image=i, label=int(label[i])))
    viz.save_png(folder / "grid.png", viz.grid(images, max(8, round(len(images) ** 0.5))), text=text())
    with writing(folder / "samples.npz") as stream:
        colours = np.stack([with_channels(image, 3) for image in images])
        np.savez_compressed(stream, images=images, arr_0=colours, labels=label, seed=seed)
    viz.save_animation(folder / "animation.gif", pictures.animation(run, result, title))


def main() -> None:
    values = flags.FLAGS
    planned = outputs.plan(values.out, "launch.sample", names(values.num), overwrite=values.overwrite)
    inputs.check_there("tpm")
    run = trained.load()
    label = parse_labels(values.labels, run, values.num)
    follow = trained.follow(values.tpm, run.mesh, values.gamma)
    settings = {**trained.settings(run), "schedule": values.schedule}
    settings |= {name: values[name].value for name in ("seed", "num", "labels", "tpm", "gamma")}
    with outputs.making(planned, settings) as folder:
        result = sample_run(run, values.schedule, label, values.seed, values.batch, follow)
        write(folder, run, result, label, values.seed, f"{values.schedule}, {run.config.sample.steps} steps", settings)
    print(f"wrote grid.png, animation.gif, samples.npz and images/ ({len(label)} PNG files) into {values.out}")


if __name__ == "__main__":
    trained.define_flags("solver", "eta", "steps", "grid", "guidance")
    trained.define_prompts()
    flags.DEFINE_enum("schedule", "sync", PLANS, "When each cell is denoised.")
    flags.DEFINE_string("tpm", None, "Folder of launch.train_tpm: a policy for the times that the network is told.")
    flags.DEFINE_float("gamma", 1.0, "Factor of the policy's deviations.", lower_bound=0.0)
    flags.DEFINE_integer("num", 64, "Number of images.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Images sampled at a time.", lower_bound=1)
    flags.DEFINE_list("labels", [], "Classes by name or number, in turn; all of them unless given.")
    flags.DEFINE_string("out", "samples", "Folder to write to.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.sample made in --out.")
    cli.main_of_run(main, __doc__)
