"""A bound on the likelihood along any path through the time field: ordinary, autoregressive, random environment.

For every monotone path t(s) of the cells' times from all-clean to all-noise, the diffusion bound holds cell by cell
(Kingma et al. 2021, arXiv 2107.00630, for one time; AsyncPatch Diffusion, arXiv 2606.07079, for fields; re-derived):

    -log p(x0) <= prior + reconstruction + E_path sum_i integral 1/2 (-dSNR/dt_i) |x0_i - x0hat_i(x_t, t)|^2 dt_i

The perfect denoiser attains it on every path. With SNR = alpha^2 / sigma^2 and W = sigma' alpha - alpha' sigma,
1/2 (-dSNR/dt) = W alpha / sigma^3. That grows like t^-3 against an error of t^2, so the integrals run over log t, where
the integrand is flat, from `t_min`; what is below is the reconstruction.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Process, check_process, diffuse
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Denoiser, FewTimes, Image, ImageKeys, TimeField, Times

PerImage = Float[Array, "b"]


class Elbo(NamedTuple):
    """Upper bounds on -log p(x0), one per image [b], in nats; see `bits_per_dim`.

    nats: prior + reconstruction + diffusion; an unbiased estimate of the bound.
    error: its standard error, from the random times and noises that were drawn for the image.
    """

    nats: PerImage
    error: PerImage
    prior: PerImage
    reconstruction: PerImage
    diffusion: PerImage


@runtime_checkable
class Path(Protocol):
    """A family of monotone paths, as a way to draw one point of them."""

    def __call__(self, keys: ImageKeys, u: PerImage, log_range: float) -> tuple[TimeField | FewTimes, TimeField]:
        """A field on the path, and how much log-time each cell's integrand counts there.

        The mean over keys and uniform u of `sum_i count_i f_i(field)` is `E_path sum_i integral f_i d(log t_i)`, each
        log t_i from -log_range to 0.

        Args:
            keys: one per image.
            u: [b] in [0, 1); spread evenly over the draws of an image.
            log_range: -log(t_min).
        """


@dataclass(frozen=True)
class Diagonal:
    """All cells together: ordinary diffusion."""

    def __call__(self, keys: ImageKeys, u: PerImage, log_range: float) -> tuple[TimeField, TimeField]:
        t = timefield.constant(jnp.exp(-log_range * u), len(u))
        return t, jnp.full_like(t, log_range)


@dataclass(frozen=True)
class Raster:
    """One cell after another, row by row: those before it are clean, those after it are noise.

    By the chain rule it bounds each cell's -log p(cell | cells before it), as an autoregressive run generates it.
    """

    grid: Grid

    def __post_init__(self):
        checks.cells("grid", self.grid)

    def __call__(self, keys: ImageKeys, u: PerImage, log_range: float) -> tuple[FewTimes, TimeField]:
        cells = self.grid[0] * self.grid[1]
        which, place = jnp.floor(u * cells), (u * cells) % 1.0
        order = jnp.arange(cells, dtype=jnp.float32)[None]
        # 0, 1 or 2: done, its turn, waiting
        index = (1 + jnp.sign(order - which[:, None])).astype(jnp.int8)
        values = jnp.stack([jnp.zeros_like(u), jnp.exp(-log_range * place), jnp.ones_like(u)], 1)
        count = jnp.where(index == 1, log_range * cells, 0.0).reshape(-1, *self.grid, 1)
        return timefield.assembled(values, index.reshape(-1, *self.grid, 1)), count


@dataclass(frozen=True)
class RandomEnvironment:
    """Every cell at its own random speed: t_i = 1 - exp(-w_i tau) with w_i ~ Exp(1) (arXiv 2606.07079).

    Cells wait at t_min, where all paths begin. To draw a point: a cell i at random, its t_i log-uniform, all w; that
    fixes tau = l_i / w_i, with l = -log(1 - t), and so the other cells. Any cell may have been the one drawn, and at
    fixed w, d(log t_j) / d(tau) = w_j (1 - t_j) / t_j, proportional to l_j (1 - t_j) / t_j. So cell j counts with its
    share of these (the balance heuristic of multiple importance sampling). The weights are thus bounded; sampling t
    evenly and weighing by its density along the paths, `Gamma(N) S / (N R L^N)`, is unbiased too, but they are not.
    """

    grid: Grid

    def __post_init__(self):
        checks.cells("grid", self.grid)

    def __call__(self, keys: ImageKeys, u: PerImage, log_range: float) -> tuple[TimeField, TimeField]:
        cells = self.grid[0] * self.grid[1]

        def one(key: Key[Array, ""], u: Float[Array, ""]) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
            key_cell, key_speed = jax.random.split(key)
            drawn = jnp.arange(cells) == jax.random.randint(key_cell, (), 0, cells)
            # neither a speed of 0 nor a time of 1, which take forever
            speed = jnp.maximum(jax.random.exponential(key_speed, (cells,), jnp.float32), 1e-9)
            at = jnp.minimum(jnp.exp(-log_range * u), 1.0 - 2.0**-24)
            tau = -jnp.log1p(-at) / jnp.where(drawn, speed, 0.0).sum()
            # in these terms 1 - t keeps its precision near 0, and t near 1
            depth = speed * tau
            t = jnp.where(drawn, at, -jnp.expm1(-depth))
            rate = jnp.where(drawn | (t > jnp.exp(-log_range)), depth * jnp.exp(-depth) / t, 0.0)
            return jnp.maximum(t, jnp.exp(-log_range)), log_range * cells * rate / rate.sum()

        t, count = jax.vmap(one)(keys, u)
        return t.reshape(-1, *self.grid, 1), count.reshape(-1, *self.grid, 1)


def _sum(x: Image) -> PerImage:
    return x.sum((1, 2, 3))


def _prior(process: Process, x0: Image) -> PerImage:
    """KL of x at t = 1 from N(0, 1), in nats; 0 for processes that end in pure noise."""
    one = timefield.constant(1.0, x0.shape[0])
    alpha, sigma = process.alpha(one), process.sigma(one)
    return _sum(0.5 * ((alpha * x0) ** 2 + sigma**2 - 1.0 - jnp.log(sigma**2)))


def _log_odds(ratio: TimeField, eps: Image, x0: Image, levels: int) -> Image:
    """log p of the true level among `levels` ones, given x / alpha = x0 + ratio * eps; a loop, as levels are many."""

    def add(j: Array, total: Image) -> Image:
        level = -1.0 + 2.0 * j / (levels - 1)
        return jnp.logaddexp(total, -0.5 * ((x0 - level) / ratio + eps) ** 2)

    return -0.5 * eps**2 - jax.lax.fori_loop(0, levels, add, jnp.full_like(x0, -jnp.inf))


def _reconstruction(process: Process, x0: Image, keys: ImageKeys, t_min: float, levels: int) -> PerImage:
    """-log p(x0 | x at t_min) in nats, where p(x0 | x) is proportional to the density of x given x0."""
    t = timefield.constant(t_min, x0.shape[0])
    ratio = process.sigma(t) / process.alpha(t)
    eps = keys_lib.normal(keys, x0.shape[1:])
    if levels:
        return -_sum(_log_odds(ratio, eps, x0, levels))
    # a flat prior makes that N(x / alpha, ratio^2), whose mean surprise needs no draw
    return jnp.broadcast_to(0.5 * jnp.log(2 * jnp.pi * jnp.e * ratio**2), x0.shape).sum((1, 2, 3))


def elbo(
    key: Key[Array, "..."],
    x0: Image,
    denoise: Denoiser,
    process: Process,
    path: Path,
    *,
    num_samples: int,
    t_min: float = 1e-3,
    levels: int = 256,
) -> Elbo:
    """Estimate the bound for each image: one denoiser call per sample, over all images at once.

    The samples' u are stratified, two to a stratum, so that their differences give the standard error without bias.

    Args:
        key: one key, or one per image [b]; an image's estimate depends on its own key alone.
        x0: [b, h, w, c].
        denoise: from `denoiser.bind`, with its condition.
        path: `Diagonal()`, `Raster(grid)` or `RandomEnvironment(grid)`; the grid tiles the image, and a cell holds all
            channels of its pixels.
        num_samples: an even number; the error falls with its root. Give a raster at least two per cell.
        t_min: where the path begins. The smaller, the tighter the reconstruction, and the more noise in the estimate.
        levels: the data are one of so many values, evenly spaced on [-1, 1]: 256 for uint8 images. Then p is a
            probability, and the reconstruction a choice among the levels (arXiv 2107.00630, section 3.3). 0: the data
            are continuous, p is their density on [-1, 1], and the bound may be negative.

    Raises:
        ValueError: an odd `num_samples` or none, `t_min` outside of (0, 1), one level, or a grid that does not tile the
            image.
    """
    checks.images("x0", x0)
    check_process(process)
    checks.function("denoise", denoise, "(x, times) -> Prediction, as bind(...) makes")
    checks.function("path", path, "(keys, u, log_range) -> (field, counts), such as Diagonal()")
    checks.whole("num_samples (an even number)", num_samples, 2)
    if num_samples % 2:
        raise ValueError(f"expected an even number of samples, got {num_samples}")
    checks.number("t_min", t_min, above=0, below=1)
    checks.whole("levels", levels, 0)
    if levels == 1:
        raise ValueError(f"expected at least 2 levels, or 0 for continuous data, got {levels}")
    keys = keys_lib.per_image(key, x0.shape[0])
    log_range = -float(np.log(t_min))

    def draw(k: Array) -> tuple[PerImage, PerImage]:
        key_u, key_path, key_noise, key_end = keys_lib.split(keys_lib.fold_in(keys, k), 4)
        u = (k // 2 + keys_lib.uniform(key_u)) / (num_samples // 2)
        told, count = path(key_path, u, log_range)
        t = timefield.dense(told)
        eps = keys_lib.normal(key_noise, x0.shape[1:])
        error = x0 - denoise(diffuse(process, x0, eps, t), Times(t, told)).x0
        count, t = timefield.like(count, x0), timefield.like(t, x0)
        # cells that do not move may be clean, where the rate is infinite
        t = jnp.where(count > 0, t, 0.5)
        (alpha_rate, sigma_rate), alpha, sigma = process.rates(t), process.alpha(t), process.sigma(t)
        rate = t * (sigma_rate * alpha - alpha_rate * sigma) * alpha / sigma**3
        return _sum(count * rate * error**2), _reconstruction(process, x0, key_end, t_min, levels)

    diffusion, reconstruction = jax.lax.map(draw, jnp.arange(num_samples))
    prior = _prior(process, x0)
    pairs = (diffusion + reconstruction).reshape(-1, 2, x0.shape[0])
    error = jnp.sqrt(((pairs[:, 0] - pairs[:, 1]) ** 2).sum(0)) / num_samples
    diffusion, reconstruction = diffusion.mean(0), reconstruction.mean(0)
    return Elbo(prior + reconstruction + diffusion, error, prior, reconstruction, diffusion)


def bits_per_dim(nats: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Nats per image as bits per dimension of an image of `shape` (h, w, c).

    Raises:
        ValueError: a shape with a size below 1.
    """
    for size in shape:
        checks.whole("a size of the shape", size)
    return nats / (np.prod(shape) * np.log(2.0))
