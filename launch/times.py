"""Training times, seen and counted: draws of every sampler, so that people know what a network is trained on."""

from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Num

from asyncpatch_jax import keys, timefield, viz
from asyncpatch_jax.training import times
from launch.shared import cli, markdown, outputs, seeding

DESCRIPTION = """Draw time fields of every sampler of training times and write them as one PNG: a row for each sampler.

  python -m launch.times --out=draws.png
  python -m launch.times --out=digits.png --size=8 --draws=16
  python -m launch.times --table --size=16        # what networks are trained on, in numbers: a table, and no picture

Dark is data (0), bright is noise (1); docs/training_times.md says what each sampler is, and what the columns are."""

SAMPLERS = {
    "synchronous": times.Synchronous(),
    "independent": times.Independent(),
    "patchwise": times.Patchwise(),
    "perlin": times.Perlin(),
    "rad": times.RAD(),
    "uniform mean": times.UniformMean(),
    "logit-normal truncated": times.LogitNormalTruncated(),
    "asyncpatch": times.AsyncPatch(),
    "asyncpatch, uniform base": times.AsyncPatch(base="uniform"),
    "asyncpatch, two levels": times.AsyncPatch(base="two_level"),
    "asyncpatch, full spread": times.AsyncPatch(spread=(1.0, 1.0)),
    "asyncpatch, a quarter at each end": times.AsyncPatch(ends=(0.25, 0.25)),
}
_FIELDS = 20_000  # of each row of the table: shares are right to half a per cent
_AT_ONCE = 1000


class Shares(NamedTuple):
    """What the fields of a sampler are like; m is the mean of a field. Shares are of fields."""

    mean: float  # of m
    spread: float  # standard deviation of m
    within: float  # standard deviation inside a field, on average
    nearly_clean: float  # m < .1
    nearly_noise: float  # m > .9
    even: float  # all cells alike, as in synchronous sampling
    inpainting: float  # at least a fifth of the cells at most .05, and at least a fifth above .2
    clean: float  # at least a fifth of the cells exactly 0, as known cells are, and at least a fifth above .2


def shares(fields: Num[np.ndarray, "n *cells"]) -> Shares:
    """Count fields [n, ...] of times."""
    t = fields.reshape(len(fields), -1)
    m = t.mean(1, dtype=np.float64)
    noisy = (t > 0.2).mean(1) >= 0.2
    near, exact = ((part.mean(1) >= 0.2) & noisy for part in (t <= 0.05, t == 0))
    counted = (m < 0.1, m > 0.9, t.min(1) == t.max(1), near, exact)
    return Shares(m.mean(), m.std(), t.std(1).mean(), *(float(part.mean()) for part in counted))


def table(size: int, seed: int) -> str:
    """Markdown: `Shares` of every sampler on a grid of size x size cells.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"expected --size of at least 1, got {size}")
    titles = ("sampler", "E m", "sd m", "within", "m < .1", "m > .9", "even", "inpainting-like", "exactly clean")
    lines = []
    for name, sampler in SAMPLERS.items():
        draw = jax.jit(lambda key, sampler=sampler: timefield.dense(sampler(key, _AT_ONCE, (size, size))))
        parts = jax.random.split(keys.of_seed(seed), _FIELDS // _AT_ONCE)
        found = shares(np.concatenate([np.asarray(draw(key)) for key in parts]))
        lines.append([name, *(f"{v:.3f}" for v in found[:3]), *(f"{100 * v:.1f} %" for v in found[3:])])
    return markdown.table(titles, lines)


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

    numbers = flags.DEFINE_bool("table", False, f"Print what {_FIELDS:,} fields of each sampler are like; no picture.")

    def run() -> None:
        if numbers.value:
            print(table(size.value, seed.value))
            return
        outputs.refuse_existing(out.value, overwrite.value)
        viz.save_png(out.value, picture(size.value, draws.value, seed.value), overwrite=overwrite.value)
        print(f"wrote {out.value}: draws of {len(SAMPLERS)} samplers")

    cli.main_of_flags(run, DESCRIPTION)


if __name__ == "__main__":
    main()
