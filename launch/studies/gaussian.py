"""Which inpainting methods are exact, and how far off the others are, where the truth is known.

  python -m launch.studies.gaussian

Makes docs/inpainting_gaussian.md in a minute or two, of no data and no weights: of a Gaussian, whose best denoiser is
a matrix, so that nothing is learned and no network is to blame: eight pixels in a row, of which three are known. What a
method makes of the other five is compared with their true law given these three.
"""

import shlex
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from asyncpatch_jax import timefield
from asyncpatch_jax.files import writing
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.process import Process, RectifiedFlow
from asyncpatch_jax.sampling import DDIM, Heun, linear
from asyncpatch_jax.sampling.inpainting import (
    DDNM,
    DDRM,
    DPS,
    MCG,
    AsyncPatch,
    DeqIR,
    Inpainter,
    PiGDM,
    RePaint,
    ScoreSDE,
)
from asyncpatch_jax.types import Denoiser, Image, Prediction, Times
from launch.shared import cli, markdown, outputs, seeding

TITLE = "Inpainting methods where the truth is known"
PROCESS = RectifiedFlow()
CORRELATION, SIZE = 0.9, 8
KNOWN, VALUES = (0, 1, 2), (1.0, 0.6, -0.8)
COVARIANCE = CORRELATION ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))


def denoiser(covariance: Float[np.ndarray, "n n"], process: Process) -> Denoiser:
    """The best denoiser of a row of pixels `x0 ~ N(0, covariance)`, for fields that are the same for all images."""

    def denoise(x: Image, times: Times) -> Prediction:
        t = jnp.broadcast_to(timefield.like(times.level, x), x.shape)[0].reshape(-1)
        a, s = process.alpha(t), process.sigma(t)
        noisy = a[:, None] * covariance * a[None, :] + jnp.diag(s**2)
        # x0 = gain x; clean pixels make `noisy` what it is of the data alone, which is regular too
        gain = jnp.linalg.solve(noisy, a[:, None] * covariance).T
        x0 = (x.reshape(len(x), -1) @ gain.T).reshape(x.shape)
        a, s = a.reshape(1, *x.shape[1:]), s.reshape(1, *x.shape[1:])
        return Prediction(x0, jnp.where(s == 0, 0.0, (x - a * x0) / jnp.where(s == 0, 1.0, s)), {})

    return denoise


class Law(NamedTuple):
    """Mean and covariance."""

    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]


def posterior(covariance: Float[np.ndarray, "n n"], known: tuple[int, ...], values: Float[np.ndarray, "k"]) -> Law:
    """The law of a Gaussian's other coordinates, given those that are known."""
    there = np.isin(np.arange(len(covariance)), known)
    cross = covariance[np.ix_(~there, there)]
    gain = np.linalg.solve(covariance[np.ix_(there, there)], cross.T).T
    return Law(gain @ values, covariance[np.ix_(~there, ~there)] - gain @ cross.T)


class Score(NamedTuple):
    """How far a law is from the true one.

    All in units in which the true law has variance 1 in each direction.

    mean: root mean square of the mean's errors.
    spread: root mean square of the standard deviations; 1 is right.
    distance: squared 2-Wasserstein distance.
    """

    mean: float
    spread: float
    distance: float


def score(law: Law, truth: Law) -> Score:
    """How far a Gaussian is from the true one."""
    white = np.linalg.inv(np.linalg.cholesky(truth.covariance))
    off = white @ (law.mean - truth.mean)
    variances = np.linalg.eigvalsh(white @ law.covariance @ white.T).clip(0)
    return Score(
        float(np.sqrt(np.mean(off**2))),
        float(np.sqrt(variances.mean())),
        float(off @ off + ((np.sqrt(variances) - 1.0) ** 2).sum()),
    )


class Row(NamedTuple):
    """A line of the table."""

    name: str
    settings: str
    method: Inpainter
    steps: tuple[int, ...]


def rows() -> list[Row]:
    """Each method with the settings whose bias tells something, and at how many steps."""
    both, many = (100, 500), (100, 500, 2500)
    return [
        Row("time field", "DDIM, eta 0", AsyncPatch(DDIM(PROCESS)), both),
        Row("time field", "DDIM, eta 1", AsyncPatch(DDIM(PROCESS, 1.0)), both),
        Row("time field", "Heun", AsyncPatch(Heun(PROCESS)), (50,)),
        Row("Score-SDE", "eta 1", ScoreSDE(), many),
        Row("Score-SDE", "eta 0", ScoreSDE(eta=0.0), both),
        Row("Score-SDE", "eta 1, a correction", ScoreSDE(corrections=1), both),
        Row("RePaint", "jump 1, 10 times", RePaint(1, 10), both),
        Row("RePaint", "jump 1, 100 times", RePaint(1, 100), (100,)),
        Row("RePaint", "jump 10, 10 times", RePaint(), (250,)),
        Row("DDRM", "eta .85", DDRM(), (20, *both)),
        Row("DDNM", "eta .85", DDNM(), many),
        Row("DDNM", "eta 0", DDNM(eta=0.0), many),
        Row("DDNM", "eta 1", DDNM(eta=1.0), both),
        Row("DDNM", "eta .85, travel 10, 10 times", DDNM(travel=10, repeat=10), (100,)),
        Row("DeqIR", "15 iterations, memory 5", DeqIR(), (25,)),
        Row("DeqIR", "25 iterations, memory 1", DeqIR(25, 1), (25,)),
        *(Row("MCG", f"step {size:g}", MCG(size), (500,)) for size in (0.01, 0.03, 0.1, 0.3)),
        *(Row("DPS", f"step {size:g}", DPS(size), (500,)) for size in (0.03, 0.05, 0.1, 0.3)),
        Row("PiGDM", "weight 1, eta 1", PiGDM(eta=1.0), both),
        Row("PiGDM", "weight 1, eta 0", PiGDM(), both),
        Row("PiGDM", "weight .5, eta 1", PiGDM(0.5, 1.0), (100,)),
        Row("PiGDM", "weight .1, eta 1", PiGDM(0.1, 1.0), (500,)),
    ]


@partial(jax.jit, static_argnames=("method", "process"))
def run(
    method: Inpainter, process: Process, covariance: Array, key: Key[Array, ""], known: Image, mask: Image, grid: Array
) -> Image:
    """What a method makes of the holes, with the best denoiser there is."""
    return method(denoiser(covariance, process), process, key, known, mask, grid)


def measure(row: Row, samples: int, seed: int) -> list[tuple[int, Score]]:
    """The score of a method at each of its numbers of steps."""
    free = ~np.isin(np.arange(SIZE), KNOWN)
    known = np.full((samples, 1, SIZE, 1), np.nan, np.float32)
    known[:, 0, ~free, 0] = VALUES
    mask, truth = free.astype(np.float32).reshape(1, 1, SIZE, 1), posterior(COVARIANCE, KNOWN, np.array(VALUES))
    found = []
    for steps in row.steps:
        x = run(row.method, PROCESS, COVARIANCE, of_seed(seed), known, mask, linear(steps))
        made = np.asarray(x, np.float64)[:, 0, free, 0]
        found.append((steps, score(Law(made.mean(0), np.cov(made.T)), truth)))
    return found


def page(command: str, found: list[tuple[Row, int, Score]], samples: int) -> str:
    """The page in Markdown."""
    head = ["method", "settings", "steps", "calls", "differentiated", "mean error", "spread", "distance"]
    lines = [
        [
            row.name,
            row.settings,
            str(steps),
            f"{row.method.calls(steps):,}",
            f"{row.method.gradients(steps):,}" if row.method.gradients(steps) else "",
            *(f"{number:.3f}" for number in score),
        ]
        for row, steps, score in found
    ]
    table = markdown.table(head, lines)
    return f"""# {TITLE}

Written by `{command}`.

A Gaussian's best denoiser is a matrix, and so is the law of some of its pixels given the others. So here no network is
to blame: what is left is the error of the method, and of the size of its steps. The data are {SIZE} pixels in a row,
each with variance 1, pixels d apart with correlation {CORRELATION:g}^d. The first {len(KNOWN)} are known
to be {", ".join(f"{value:g}" for value in VALUES)}. Rectified flow, linear times, {samples:,} images a row. All numbers
are in units in which the true law of the other {SIZE - len(KNOWN)} has variance 1 in each direction:

- **mean error**: root mean square over these directions; 0 is right.
- **spread**: root mean square of the standard deviations; 1 is right.
- **distance**: squared 2-Wasserstein distance to the true law; 0 is right, and {samples:,} images of that law itself
  show about {noise_floor(samples):.3f}.

{table}

What the rows say:

- **With the time field what is left is the size of the steps**, and goes with it.
- **Replacement (Score-SDE) keeps its bias, however many steps it takes**: its network is asked about an image all of
  whose pixels are at one time, and answers as if the known ones were as uncertain as the others. A Langevin correction
  before each step lessens it, and makes the spread too wide. RePaint buys the bias off with calls: ten times as many
  leave a quarter of the mean's error.
- **DDNM without fresh noise, and so DeqIR, comes to the truth as steps become many**, but slowly: after 500 it is much
  farther away than the time field after 100. With fresh noise its mean does and its spread does not: `eta` is a share
  of all noise at every step, however small the step. DDRM alike.
- **A step size of MCG, DPS or PiGDM belongs to one number of steps**, and the best one is still off. The published ones
  (MCG 1, DPS .5) are for 1,000 steps of another process at 256 x 256 pixels, and far too large here: tune them.
- **DeqIR is DDNM with eta 0**, solved in parallel.

It is one small problem with a perfect network: what is biased here is biased, but the order among methods may be
another elsewhere.
"""


def noise_floor(samples: int) -> float:
    """What so many exact images show on the average: d errors of the mean, and those of d (d + 1) / 2 (co)variances.

    With `C = 1 + E / sqrt(n)`, of which the diagonal of E has variance 2 and the rest 1, the trace of
    `(sqrt(C) - 1)^2 = E^2 / 4 n` is `d (d + 1) / 4 n`.
    """
    d = SIZE - len(KNOWN)
    return (d + d * (d + 1) / 4) / samples


def main() -> None:
    given: Any = flags.FLAGS
    outputs.check_page(given.out, TITLE)
    found = []
    for row in tqdm(rows(), unit="row"):
        found += [(row, steps, score) for steps, score in measure(row, given.num, given.seed)]
    command = shlex.join(["python", "-m", "launch.studies.gaussian", *sys.argv[1:]])
    with writing(given.out, overwrite=True) as stream:
        stream.write(page(command, found, given.num).encode())
    print(f"wrote {given.out}")


if __name__ == "__main__":
    flags.DEFINE_integer("num", 6000, "Images of each row.", lower_bound=10)
    seeding.define("Seed of all noise.")
    flags.DEFINE_string("out", "docs/inpainting_gaussian.md", "The page; replaced if it is an earlier one.")
    cli.main_of_flags(main, __doc__)
