"""The likelihood that a trained run gives to real images: bits per dimension along three paths, with standard errors.

  python -m launch.elbo --workdir=runs/digits
  python -m launch.elbo --workdir=runs/digits --num=360 --samples=512 --out=elbo.json
  python -m launch.elbo --workdir=runs/folder --images=held_out/     # your own, that were not trained on

Each is an upper bound; lower is better, and a network that is perfect at every field attains the same on all of them.
The diagonal is ordinary diffusion, raster is autoregression, and in a random environment each cell has its own speed.
For a run in latents they are of the latents, shifted and scaled as the network sees them, by their own dimensions:
bits per latent dimension, a density's, which compare with those of the same autoencoder alone.
Prints a table and writes it as JSON to --out. The images' classes are given to a network that was trained with classes:
the sub-folders of --images, by their names; without sub-folders no class is given.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from asyncpatch_jax.data import sources
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.files import check_writable, write_json
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.training.elbo import Diagonal, Elbo, Path, RandomEnvironment, Raster, bits_per_dim, elbo
from asyncpatch_jax.types import Condition, Image, ImageKeys
from launch.shared import build, cli, datasets, inputs, outputs, pictures, plans, trained
from launch.shared.generate import Net, image_keys
from launch.shared.inpainting import coded


@partial(jax.jit, static_argnames=("net", "path", "num_samples", "levels"))
def bound(
    net: Net, params: Any, keys: ImageKeys, x0: Image, label: Any, *, path: Path, num_samples: int, levels: int
) -> Elbo:
    """The bound of one batch; `label` is None for a network without classes."""
    cond = None if label is None else Condition(label=label)
    denoise = bind(net.model, params, net.process, net.kind, cond)
    # where half a level is 2.5 deviations of the noise: the level is still certain there, and a path that began nearer
    # to the data would only ask the network for noise that it cannot see
    t_min = 0.4 / (levels - 1) if levels else 1e-3
    return elbo(keys, x0, denoise, net.process, path, num_samples=num_samples, t_min=t_min, levels=levels)


def bounds(
    run: build.Run,
    images: UInt8[np.ndarray, "b h w c"],
    label: Int[np.ndarray, "b"],
    *,
    cells: Grid,
    samples: int,
    batch: int,
    seed: int = 0,
    levels: int = 256,
) -> list[dict[str, Any]]:
    """Mean bits per dimension of the images (or of their latents) along each path, with two standard errors of it.

    `error` is that over images like these, `error_of_draws` the part of it that comes from the random times and noises
    and would shrink with more samples.

    Raises:
        ValueError: what `elbo` refuses, fewer than two images, or levels of latents, which have none.
    """
    if levels and run.autoencoder is not None:
        raise ValueError(f"expected levels = 0 for a run in latents, whose bound is of a density, got {levels}")
    if len(images) < 2:
        raise ValueError(f"expected at least 2 images for a standard error, got {len(images)}")
    x0 = images.astype(np.float32) / 255
    if levels:  # the bound is of data that lie on the levels: real digits have 17 of them, stored in 256
        x0 = np.round(x0 * (levels - 1)) / (levels - 1)
    x0 = coded(run, 2 * x0 - 1, np.zeros((*x0.shape[:3], 1), np.float32), batch=min(batch, len(images)))
    inputs = (image_keys(seed, len(images)), x0, label.astype(np.int32) if run.num_classes else None)
    rows = []
    for name, path in {
        "diagonal": Diagonal(),
        "raster": Raster(cells),
        "random environment": RandomEnvironment(cells),
    }.items():
        call = partial(bound, pictures.net(run), run.params, path=path, num_samples=samples, levels=levels)
        parts = batched(lambda part, call=call: call(*part), inputs, batch=min(batch, len(images)))
        bits, error = (
            np.asarray(bits_per_dim(jnp.concatenate([getattr(part, kind) for part in parts])[: len(images)], run.shape))
            for kind in ("nats", "error")
        )
        if not np.isfinite(bits).all():
            raise ValueError(
                f"expected finite bounds, got {np.count_nonzero(~np.isfinite(bits))} that are not ({name})"
            )
        rows.append(
            {
                "path": name,
                "bits_per_dim": float(bits.mean()),
                "error": float(bits.std(ddof=1) / len(bits) ** 0.5),
                "error_of_draws": float(np.sqrt((error**2).sum()) / len(bits)),
            }
        )
        print(
            "{path:20} {bits_per_dim:8.4f} +- {error:.4f} (draws {error_of_draws:.4f})".format(**rows[-1]), flush=True
        )
    return rows


def held_out(run: build.Run, folder: str | None, split: str) -> tuple[Dataset, list[int]]:
    """The images of a folder, or of a split of the run's own data, and the run's class of each of their classes.

    Raises:
        ValueError: a run on a folder, which has no other split; or classes that the run does not have.
    """
    if folder is None:
        if run.config.data.name == "folder" and split != "train":
            raise ValueError(
                f"expected --images=FOLDER of images that were not trained on, or --split=train, got --split={split}, "
                "which the folder that was trained on does not have"
            )
        return datasets.dataset(run.config, split), list(range(max(run.num_classes, 1)))
    data = sources.folder(folder, run.pixels[0], run.pixels[2], run.config.data.on_error)
    if not run.num_classes:
        return data, [0] * data.num_classes
    unknown = [name for name in data.class_names if name not in run.class_names]
    if data.num_classes == 1 and unknown:
        return data, [run.num_classes]  # the index of "no class"
    if unknown:
        raise ValueError(
            f"expected sub-folders of {folder} named as the run's classes, {', '.join(run.class_names[:20])}, got "
            f"{', '.join(unknown[:5])}"
        )
    return data, [run.class_names.index(name) for name in data.class_names]


def main() -> None:
    values = flags.FLAGS
    outputs.refuse_existing(values.out, values.overwrite)
    if values.levels == 1:
        raise ValueError("expected --levels of at least 2, or 0 for a density, got 1")
    inputs.check_there("images")
    run = trained.load()
    if run.model.reference:
        raise ValueError("expected a run whose network is told a time for each cell, got a supervised one")
    data, classes = held_out(run, values.images, values.split)
    count = len(data.source) if values.num == 0 else values.num
    if count > len(data.source):
        raise ValueError(f"expected --num of at most {len(data.source)} images, got {count}")
    records = [data.source[int(i)] for i in np.linspace(0, len(data.source) - 1, count)]
    cells = plans.cells(run)
    latents = run.autoencoder is not None
    levels, what = values.levels, "latent dimension" if latents else "dimension"
    if latents and not values["levels"].present:
        levels = 0
    print(
        f"bits per {what} of {count} images ({values.images or values.split}), "
        f"{values.samples} samples each, {cells[0]}x{cells[1]} cells"
    )
    check_writable(values.out)
    rows = bounds(
        run,
        np.stack([record["image"] for record in records]),
        np.array([classes[record["label"]] for record in records], np.int32),
        cells=cells,
        samples=values.samples,
        batch=values.batch,
        seed=values.seed,
        levels=levels,
    )
    where = {"folder": values.images} if values.images else {"split": values.split}
    about = {"workdir": values.workdir, "step": run.step, **where, "images": count}
    settings = {"samples": values.samples, "cells": cells, "levels": levels, "per": what, "seed": values.seed}
    write_json(
        values.out,
        {**about, **settings, "given_class": bool(run.num_classes) and classes != [run.num_classes], "paths": rows},
        overwrite=values.overwrite,
    )
    print(f"wrote {values.out}")


if __name__ == "__main__":
    trained.define_flags()
    flags.DEFINE_string("images", None, "Folder of images; a split of the run's own data unless given.")
    flags.DEFINE_string("split", "test", "Split of the run's data set.")
    flags.DEFINE_integer("num", 0, "Images, evenly over the split; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("samples", 128, "Random times and noises for each image and path; even.", lower_bound=2)
    about = "Values that a pixel can have, 2 or more; 0 for a density, as latents have."
    flags.DEFINE_integer("levels", 256, about, lower_bound=0)
    flags.DEFINE_integer("batch", 64, "Images at a time.", lower_bound=1)
    flags.DEFINE_string("out", "elbo.json", "File to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out.")
    cli.main_of_run(main, __doc__, samples=False)
