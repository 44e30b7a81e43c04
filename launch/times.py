"""A picture of training times: draws of every sampler, so that people can see what a network is trained on."""

import jax
import numpy as np
from absl import flags

from asyncpatch_jax import keys, timefield, viz
from asyncpatch_jax.training import times
from launch.shared import cli, outputs, seeding

DESCRIPTION = """Draw time fields of every sampler of training times and write them as one PNG: a row for each sampler.

  python -m launch.times --out=draws.png
  python -m launch.times --out=digits.png --size=8 --draws=16

Dark is data (0), bright is noise (1); docs/training_times.md says what each sampler is."""

SAMPLERS = {
    "synchronous": times.Synchronous(),
    "independent": times.Independent(),
    "patchwise": times.Patchwise(),
    "perlin": times.Perlin(),
    "uniform mean": times.UniformMean(),
    "logit-normal truncated": times.LogitNormalTruncated(),
    "asyncpatch": times.AsyncPatch(),
    "asyncpatch, uniform base": times.AsyncPatch(base="uniform"),
    "asyncpatch, two levels": times.AsyncPatch(base="two_level"),
    "asyncpatch, full spread": times.AsyncPatch(spread=(1.0, 1.0)),
}


def picture(size: int, draws: int, seed: int) -> np.ndarray:
    """The page of fields on a grid of size x size cells, uint8 [height, width, 3].

    Raises:
        ValueError: a size or a number of draws below 1.
    """
    if size < 1 or draws < 1:
        raise ValueError(f"expected --size and --draws of at least 1, got {size} and {draws}")
    rows = []
    for sampler in SAMPLERS.values():
        fields = np.asarray(
            jax.jit(lambda key, sampler=sampler: timefield.dense(sampler(key, draws, (size, size))))(keys.of_seed(seed))
        )
        tiles = viz.heat(np.broadcast_to(fields, (draws, size, size, 1)))
        rows.append(viz.enlarge(tiles, viz.visible((size, size))))
    title = f"Training times: {draws} draws of each sampler on {size} x {size} cells"
    return viz.page(np.stack(rows), row_names=list(SAMPLERS), title=title, legend=True)


def main() -> None:
    out = flags.DEFINE_string("out", "training_times.png", "Where the PNG goes.")
    size = flags.DEFINE_integer("size", 64, "Cells along each side of the field.")
    draws = flags.DEFINE_integer("draws", 10, "Draws of each sampler.")
    seed = seeding.define("Random seed.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")

    def run() -> None:
        outputs.refuse_existing(out.value, overwrite.value)
        viz.save_png(out.value, picture(size.value, draws.value, seed.value), overwrite=overwrite.value)
        print(f"wrote {out.value}: draws of {len(SAMPLERS)} samplers")

    cli.main_of_flags(run, DESCRIPTION)


if __name__ == "__main__":
    main()
