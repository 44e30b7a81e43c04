"""Training times: how noisy each cell of a training image is. AsyncPatch, and the samplers that it is compared with.

A sampler is a frozen dataclass called as `sampler(key, batch, grid)`. It gives a time field [batch, gh, gw, 1] in
[0, 1] (0 = data, 1 = noise), as `FewTimes` where it holds few of them, and image i depends on its own key alone.
Everything random, the size of patches included, is drawn on the device, so that nothing recompiles.
docs/training_times.md compares them.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.training.perlin import by_rank, perlin_noise
from asyncpatch_jax.types import FewTimes, TimeField

DISTRIBUTIONS = ("uniform", "logit_normal")
BASES = ("uniform", "two_level", "mixed")
Cells = Float[Array, "gh gw"]
Scalar = Float[Array, ""]


@runtime_checkable
class TimeSampler(Protocol):
    """Draws the time fields of a training batch."""

    def __call__(self, key: Key[Array, "..."], batch: int, grid: Grid) -> TimeField | FewTimes:
        """Fields [batch, gh, gw, 1] (or the 1x1 field) out of one key, or one key per image [batch]."""


class _PerImage:
    """A sampler that draws every image alike: the subclass says how to draw one, [gh, gw]."""

    def image(self, key: Key[Array, ""], grid: Grid) -> Float[Array, "_gh _gw"]:
        raise NotImplementedError

    def __call__(self, key: Key[Array, "..."], batch: int, grid: Grid) -> TimeField:
        _check_grid(grid)
        return jax.vmap(lambda k: self.image(k, grid))(keys_lib.per_image(key, batch))[..., None]


def _check_grid(grid: Grid) -> None:
    checks.cells("grid", grid)


def _check_distribution(distribution: str, loc: float, scale: float) -> None:
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    checks.number("loc", loc)
    checks.number("scale", scale, above=0)


def _scalar_time(key: Key[Array, ""], distribution: str, loc: float, scale: float) -> Scalar:
    if distribution == "uniform":
        return jax.random.uniform(key, dtype=jnp.float32)
    return jax.nn.sigmoid(loc + scale * jax.random.normal(key, dtype=jnp.float32))


@dataclass(frozen=True)
class Synchronous(_PerImage):
    """One time for the whole image, as the 1x1 field: uniform, or sigmoid(loc + scale * normal).

    loc and scale belong to "logit_normal" (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """

    distribution: str = "uniform"
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        _check_distribution(self.distribution, self.loc, self.scale)

    def image(self, key: Key[Array, ""], grid: Grid) -> Cells:
        return _scalar_time(key, self.distribution, self.loc, self.scale).reshape(1, 1)


@dataclass(frozen=True)
class Independent(_PerImage):
    """Every cell its own uniform time; the image mean then hardly moves from 1/2."""

    def image(self, key: Key[Array, ""], grid: Grid) -> Cells:
        return jax.random.uniform(key, grid, jnp.float32)


def patches(values: Cells, size: Int[Array, ""], offset: Int[Array, "2"]) -> Cells:
    """The grid tiled by squares of `size` cells; every square takes one of `values` (the first ones are used).

    Args:
        values: [gh, gw], one for each square; the grid's own shape holds enough of them for every size.
        size: side of a square in cells, >= 1.
        offset: by how many cells the tiling is shifted up and left, 0 <= offset < size.
    """
    rows, columns = ((jnp.arange(n) + o) // size for n, o in zip(values.shape, offset, strict=True))
    return values[rows][:, columns]


def _tiling(key: Key[Array, ""], grid: Grid) -> tuple[Int[Array, ""], Int[Array, "2"]]:
    """A patch size out of 1, 2, 4, ... up to the longer side of the grid, and a random offset."""
    key_size, key_offset = jax.random.split(key)
    size = 2 ** jax.random.randint(key_size, (), 0, max(grid).bit_length())
    return size, jax.random.randint(key_offset, (2,), 0, size)


@dataclass(frozen=True)
class Patchwise(_PerImage):
    """Square patches at independent uniform times; per image a size out of 1, 2, 4, ..., and a random offset."""

    def image(self, key: Key[Array, ""], grid: Grid) -> Cells:
        key_tiling, key_values = jax.random.split(key)
        return patches(jax.random.uniform(key_values, grid, jnp.float32), *_tiling(key_tiling, grid))


def _perlin_mask(key: Key[Array, ""], grid: Grid) -> Cells:
    """1 on a smooth random region that covers a uniformly random share of the image, 0 elsewhere."""
    key_noise, key_cell, key_area = jax.random.split(key, 3)
    cell = jax.random.uniform(key_cell, (), jnp.float32, 1.0, float(max(grid)))
    return by_rank(perlin_noise(key_noise, grid, cell), jax.random.uniform(key_area, dtype=jnp.float32))


class _Regions:
    """Two times: inside and outside of a region cut from Perlin noise; the subclass says how to draw them, [2].

    The regions are those of RAD: the noise's lattice cells have a side ~ U(1, longer side of the grid), and the region
    covers a share ~ U(0, 1) of the image.
    """

    def two(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        raise NotImplementedError

    def __call__(self, key: Key[Array, "..."], batch: int, grid: Grid) -> FewTimes:
        _check_grid(grid)

        def image(key: Key[Array, ""]) -> tuple[Float[Array, "2"], Int[Array, "gh gw"]]:
            key_mask, key_times = jax.random.split(key)
            inside = _perlin_mask(key_mask, grid) > 0
            return self.two(key_times), jnp.where(inside, 0, 1)

        values, index = jax.vmap(image)(keys_lib.per_image(key, batch))
        return timefield.assembled(values, index[..., None])


@dataclass(frozen=True)
class Perlin(_Regions):
    """Two independent uniform times, one inside and one outside of a region cut from Perlin noise.

    What AsyncPatch is compared with under the name of RAD, whose regions these are; its own times are `RAD`'s.
    """

    def two(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        return jax.random.uniform(key, (2,), jnp.float32)


@dataclass(frozen=True)
class RAD(_Regions):
    """A clock of two phases: the region is noised while the rest is clean, then the rest while the region is noise.

    Region-aware diffusion (Kim et al. 2025, arXiv 2412.09191): at u ~ U(0, 1) the region is at u / share and the rest
    at 0 until u = share; from there on the region is at 1 and the rest at (u - share) / (1 - share). The states of an
    inpainting run are the first phase, and no state of any other run is ever seen: an image from nothing is made in
    these two phases too, the rest first.

    Args (of the dataclass):
        share: of the clock, that the region takes; in RAD 1,000 steps of 2,000.
    """

    share: float = 0.5

    def __post_init__(self):
        checks.number("share", self.share, above=0, below=1)

    def two(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        u = jax.random.uniform(key, dtype=jnp.float32)
        inside, outside = u / self.share, (u - self.share) / (1.0 - self.share)
        return jnp.stack([jnp.minimum(inside, 1.0), jnp.maximum(outside, 0.0)])


def _symmetric_beta(key: Key[Array, ""], a: np.ndarray) -> Float[Array, "n"]:
    """Beta(a, a) for a > 1/2 without rejection, which loops: Ulrich 1984 (Devroye 1986, p. 437)."""
    u, v = jax.random.uniform(key, (2, *a.shape), jnp.float32)
    radius = jnp.sqrt(-jnp.expm1(jnp.log(u) * np.float32(2.0 / (2.0 * a - 1.0))))
    return 0.5 + 0.5 * radius * jnp.cos(2.0 * jnp.pi * v)


def share_out(key: Key[Array, ""], total: Scalar, cells: int, sharpness: float) -> Float[Array, "n"]:
    """Times [cells] in [0, 1] that add up to `total`, by the recursive halving of `UniformMean`."""
    # how many cells each node of the tree stands for; a node of one cell hands it on to its second child
    count = np.array([cells])
    total = total[None]
    while count.max() > 1:
        first, second = count // 2, count - count // 2
        a = sharpness * np.maximum(count - 1.0 - count % 2, 1.0) ** 1.05
        low, high = jnp.maximum(total - second, 0.0), jnp.minimum(total, first)
        given = low + _symmetric_beta(jax.random.fold_in(key, len(count)), a) * (high - low)
        total = jnp.stack([given, total - given], 1).reshape(-1)
        count = np.stack([first, second], 1).reshape(-1)
    return jnp.clip(total[np.flatnonzero(count)], 0.0, 1.0)


@dataclass(frozen=True)
class UniformMean(_PerImage):
    """The image mean is uniform; the total is shared out by splitting the cells in halves, again and again.

    "Uniform t-bar sampling" of spatial reasoning models (Wewer et al. 2025, arXiv 2502.21075, appendix C.1): of d cells
    with total s, the first half (d // 2) gets between max(0, s - size of the second) and min(s, its own size); where in
    between says a Beta(a, a), a = sharpness * (d - 1 - d % 2)^1.05. Then the cells are permuted. A larger sharpness
    keeps cells closer to the mean; it must exceed 1/2. All splits of a level are done at once: log2(cells) steps, for
    any number of cells.
    """

    sharpness: float = 1.0

    def __post_init__(self):
        checks.number("sharpness", self.sharpness, above=0.5)

    def image(self, key: Key[Array, ""], grid: Grid) -> Cells:
        key_mean, key_split, key_order = jax.random.split(key, 3)
        cells = math.prod(grid)
        t = share_out(key_split, jax.random.uniform(key_mean, dtype=jnp.float32) * cells, cells, self.sharpness)
        return jax.random.permutation(key_order, t).reshape(grid)


@dataclass(frozen=True)
class LogitNormalTruncated(_PerImage):
    """No cell is cleaner than a bound drawn for the image; cells lie half-normally on its noisy side.

    The sampler of Patch Forcing (Schusterbauer et al. 2026, arXiv 2604.19141), whose times count the data: with
    u = 1 - t, the bound is m = sigmoid(loc + scale * normal), and u = m - min(m / 2, 0.6) * |normal|. The rare negative
    u is drawn anew, uniform on [0, m], as in its released code. loc and scale are those of that code.
    """

    loc: float = 0.7
    scale: float = 1.0

    def __post_init__(self):
        checks.number("loc", self.loc)
        checks.number("scale", self.scale, above=0)

    def image(self, key: Key[Array, ""], grid: Grid) -> Cells:
        key_bound, key_below, key_again = jax.random.split(key, 3)
        bound = jax.nn.sigmoid(self.loc + self.scale * jax.random.normal(key_bound, dtype=jnp.float32))
        # min(m / 2, 0.6) is m / 2, as m <= 1
        clean = bound - 0.5 * bound * jnp.abs(jax.random.normal(key_below, grid, jnp.float32))
        clean = jnp.where(clean < 0, bound * jax.random.uniform(key_again, grid, jnp.float32), clean)
        return 1.0 - clean


def with_mean(z: Cells, mean: Scalar, amount: Scalar) -> Cells:
    """Times whose mean over the image is exactly `mean`, in the pattern of a base field z in [0, 1].

    `t = m + r min(m / zbar, (1 - m) / (1 - zbar)) (z - zbar)`, and t = m where z is all 0 or all 1; the minimum is the
    largest factor that keeps t in [0, 1] whatever z. r = 0 is synchronous; a two-level z with r = 1 and m <= zbar gives
    {0, m / zbar}, the states of an inpainting run.

    Args:
        z: the pattern [gh, gw].
        mean: m in [0, 1].
        amount: r in [0, 1].
    """
    zbar = z.mean()
    flat = (zbar == 0) | (zbar == 1)
    # the two cases of the minimum, written so that a cell at the edge of [0, 1] is there exactly: clean must mean 0
    low = mean * (1.0 - amount + amount * z / jnp.where(flat, 1.0, zbar))
    high = 1.0 - (1.0 - mean) * (1.0 - amount + amount * (1.0 - z) / jnp.where(flat, 1.0, 1.0 - zbar))
    return jnp.where(flat, mean, jnp.clip(jnp.where(mean <= zbar, low, high), 0.0, 1.0))


@dataclass(frozen=True)
class AsyncPatch(_PerImage):
    """Controlled mean, spread and spatial scale: the sampler of AsyncPatch Diffusion (arXiv 2606.07079).

    A reconstruction: the paper states the three controls, the text that we have lacks its code. Per image: a mean m; a
    spread r; squares of a side out of 1, 2, 4, ..., with a random offset; a base pattern z; then `with_mean(z, m, r)`.

    Args (of the dataclass):
        distribution, loc, scale: of the mean, as in `Synchronous`.
        spread: r is uniform between these two; (0, 0) is synchronous, (1, 1) as uneven as the mean allows.
        ends: shares of images with r = 0, synchronous, and with r = 1, as an inpainting run meets them; `spread` says
            what the rest has. A uniform r is never at an end, so that no cell is ever exactly clean.
        base: "uniform": squares at uniform heights. "two_level": squares that are 0 or 1 with a random share of ones,
            or, as often, a region of Perlin noise of random area. "mixed": either, with equal chance.
    """

    distribution: str = "uniform"
    loc: float = 0.0
    scale: float = 1.0
    spread: tuple[float, float] = (0.0, 1.0)
    base: str = "mixed"
    ends: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        _check_distribution(self.distribution, self.loc, self.scale)
        if not isinstance(self.spread, tuple) or len(self.spread) != 2:
            raise ValueError(f"expected spread = (low, high), got {checks.shown(self.spread)}")
        if not isinstance(self.ends, tuple) or len(self.ends) != 2:
            raise ValueError(f"expected ends = (share at r = 0, share at r = 1), got {checks.shown(self.ends)}")
        checks.number("the share of ends at r = 0", self.ends[0], 0, 1)
        checks.number("the share of ends at r = 1", self.ends[1], 0, 1)
        if sum(self.ends) > 1:
            raise ValueError(f"expected ends = shares that add up to at most 1, got {checks.shown(self.ends)}")
        checks.number("the spread's high", self.spread[1], 0, 1)
        checks.number("the spread's low", self.spread[0], 0, self.spread[1])
        checks.choice("base", self.base, BASES)

    def image(self, key: Key[Array, ""], grid: Grid) -> Cells:
        key_mean, key_spread, key_base = jax.random.split(key, 3)
        mean = _scalar_time(key_mean, self.distribution, self.loc, self.scale)
        return with_mean(self._pattern(key_base, grid), mean, self._amount(key_spread))

    def _amount(self, key: Key[Array, ""]) -> Scalar:
        (none, full), (low, high) = self.ends, self.spread
        u = jax.random.uniform(key, (), jnp.float32)
        between = low + (high - low) * (u - none) / max(1.0 - none - full, 1e-6)
        # exactly 0 and 1, as an exactly clean cell needs
        return jnp.where(u < none, 0.0, jnp.where(u >= 1.0 - full, 1.0, between))

    def _pattern(self, key: Key[Array, ""], grid: Grid) -> Cells:
        key_tiling, key_values, key_area, key_perlin, key_which = jax.random.split(key, 5)
        uniform = patches(jax.random.uniform(key_values, grid, jnp.float32), *_tiling(key_tiling, grid))
        if self.base == "uniform":
            return uniform
        two_level, perlin = jax.random.bernoulli(key_which, 0.5, (2,))
        squares = (uniform < jax.random.uniform(key_area, dtype=jnp.float32)).astype(jnp.float32)
        levels = jnp.where(perlin, _perlin_mask(key_perlin, grid), squares)
        return levels if self.base == "two_level" else jnp.where(two_level, levels, uniform)
