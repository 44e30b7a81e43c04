"""Sample from a trained run.

  python -m launch.sample --workdir=runs/digits
  python -m launch.sample --workdir=runs/digits --schedule=autoregressive --labels=3,3,7 --guidance=2 --out=threes

Writes into --out: grid.png, images/0000.png ..., samples.npz (images as uint8, labels, seed) and animation.gif, the
first images beside their time fields. Image i depends on --seed and i alone, not on --num or --batch.
"""

from functools import partial

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Int

from asyncpatch_jax import viz
from asyncpatch_jax.files import refuse_existing, writing
from launch import build, cli, pictures, trained
from launch.generate import Result, batched, generate, image_keys
from launch.plans import PLANS, plan

_WATCHED = 8  # images in the animation

trained.define_flags("solver", "eta", "steps", "grid", "guidance")
SCHEDULE = flags.DEFINE_enum("schedule", "sync", PLANS, "When each cell is denoised.")
NUM = flags.DEFINE_integer("num", 64, "Number of images.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 64, "Images sampled at a time.", lower_bound=1)
LABELS = flags.DEFINE_list("labels", [], "Classes by name or number, in turn; all of them unless given.")
OUT = flags.DEFINE_string("out", "samples", "Folder to write to.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what --out holds.")


def parse_labels(names: list[str], run: build.Run, count: int) -> Int[np.ndarray, "b"]:
    """Class indices [count] of names or numbers, in turn; of all classes if there are no names.

    Raises:
        ValueError: labels for a model without classes, or a class that it does not have.
    """
    if not names:
        return pictures.cycled_labels(run, count)
    indices = {str(i): i for i in range(run.num_classes)} | {name: i for i, name in enumerate(run.class_names)}
    unknown = [name for name in names if name not in indices or not run.num_classes]
    if unknown:
        there = ", ".join(run.class_names[:20]) if run.num_classes else "none (the model was trained without classes)"
        raise ValueError(f"expected --labels out of {there}, got {', '.join(unknown)}")
    return np.resize(np.array([indices[name] for name in names], np.int32), count)


def sample_run(run: build.Run, schedule: str, label: Int[np.ndarray, "b"], seed: int, batch: int) -> Result:
    """Images of these labels along a schedule, `batch` at a time; the run of the first few is recorded.

    Raises:
        ValueError: a schedule that this network cannot follow.
    """
    chosen, num_steps, ahead = plan(schedule, run)
    known = np.zeros((len(label), *run.shape), np.float32)
    watch = min(batch, len(label), _WATCHED)
    call = partial(generate, pictures.net(run), run.params, chosen, num_steps=num_steps, ahead=ahead, watch=watch)
    results = batched(
        call,
        pictures.inputs(run, image_keys(seed, len(label)), known, label),
        batch=min(batch, len(label)),
        on_batch=lambda done: print(f"{done}/{len(label)} images", flush=True),
    )
    images = np.concatenate([result.images for result in results])[: len(label)]
    return Result(images, results[0].run, results[0].fields)


def write(folder: epath.PathLike, result: Result, label: Int[np.ndarray, "b"], seed: int, title: str) -> None:
    """Write a result's files, whatever is there under their names.

    Raises:
        ValueError: images that are not finite.
        OSError: a file cannot be written.
    """
    folder = epath.Path(folder)
    images = viz.to_uint8(result.images)
    for i, image in enumerate(images):
        viz.save_png(folder / "images" / f"{i:04d}.png", image, overwrite=True)
    viz.save_png(folder / "grid.png", viz.grid(images, max(8, round(len(images) ** 0.5))), overwrite=True)
    with writing(folder / "samples.npz", overwrite=True) as stream:
        np.savez_compressed(stream, images=images, labels=label, seed=seed)
    viz.save_animation(folder / "animation.gif", pictures.animation(result, title), overwrite=True)


def main() -> None:
    refuse_existing(OUT.value, OVERWRITE.value)
    run = trained.load()
    label = parse_labels(LABELS.value, run, NUM.value)
    seed = flags.FLAGS.seed
    result = sample_run(run, SCHEDULE.value, label, seed, BATCH.value)
    write(OUT.value, result, label, seed, SCHEDULE.value)
    print(f"wrote grid.png, animation.gif, samples.npz and images/ ({len(label)} PNG files) into {OUT.value}")


if __name__ == "__main__":
    cli.main_of_run(main, __doc__)
