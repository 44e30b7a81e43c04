"""Vectors to the nearest of a few codes, and how the codes are kept in use (VQ-VAE, van den Oord et al. 2017,
arXiv 1711.00937).

`Quantiser` holds the codebook as a parameter; the functions are what a training does with it between two steps. Codes
learn by gradient (the codebook loss) or as running means of the vectors that chose them (`renewed` with `mean=True`;
the paper's appendix A.1). A code that hardly any vector chooses begins again at one of the batch's vectors.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from asyncpatch_jax import checks, sharding

Lookup = Literal["l2", "cosine"]
Vectors = Float[Array, "*n z"]
Codebook = Float[Array, "k z"]

# so many distances are there at once on a device: of a batch of 16 images of 64 x 64 cells and 8,192 codes all of them
# would be 2 GB
_MOST = 2**26
_EPS = 1e-12  # of squared lengths


class Quantised(NamedTuple):
    """What came of vectors [b, h, w, z].

    latents: their codes, bit for bit; the gradient passes to the vectors as if nothing had been done ("straight
        through").
    index: of the codes [b, h, w].
    codebook: the mean squared distance that pulls codes to vectors, and not the other way.
    commitment: the same number, which pulls vectors to codes.
    """

    latents: Float[Array, "b h w z"]
    index: Int[Array, "b h w"]  # type: ignore[assignment]  # hides tuple.index
    codebook: Float[Array, ""]
    commitment: Float[Array, ""]


class Quantiser(nn.Module):
    """A codebook of `codes` vectors of `width` numbers, uniform in +- 1 / codes at first.

    lookup: "l2": the nearest code; "cosine": that of the smallest angle (ViT-VQGAN, Yu et al. 2021, arXiv 2110.04627):
        vectors and codes are brought to length 1 before they are compared, and what comes out has length 1.
    """

    codes: int
    width: int
    lookup: Lookup = "l2"

    def setup(self) -> None:
        def init(key: Key[Array, ""], shape: tuple[int, int]) -> Codebook:
            return jax.random.uniform(key, shape, jnp.float32, -1 / self.codes, 1 / self.codes)

        self.codebook = self.param("codebook", init, (self.codes, self.width))

    def directed(self, vectors: Vectors) -> Vectors:
        """Vectors as they are compared, in float32."""
        vectors = vectors.astype(jnp.float32)
        return unit(vectors) if self.lookup == "cosine" else vectors

    def nearest(self, vectors: Float[Array, "b h w z"]) -> Int[Array, "b h w"]:
        """The index of each vector's code."""
        return nearest(self.directed(vectors), self.directed(self.codebook))

    def embed(self, index: Int[Array, "b h w"]) -> Float[Array, "b h w z"]:
        """The codes of an index."""
        return self.directed(self.codebook)[index]

    def __call__(self, vectors: Float[Array, "b h w z"]) -> Quantised:
        vectors = self.directed(vectors)
        index = jax.lax.stop_gradient(self.nearest(vectors))
        codes, hold = self.embed(index), jax.lax.stop_gradient
        return Quantised(
            # in this order: the difference is exactly 0, so that what comes out are the codes' own bits
            hold(codes) + (vectors - hold(vectors)),
            index,
            jnp.mean((codes - hold(vectors)) ** 2),
            jnp.mean((hold(codes) - vectors) ** 2),
        )


def unit(vectors: Vectors) -> Vectors:
    """Vectors of length 1 in the same direction."""
    return vectors * jax.lax.rsqrt(jnp.sum(vectors * vectors, -1, keepdims=True) + _EPS)


def nearest(vectors: Float[Array, "b h w z"], codebook: Codebook) -> Int[Array, "b h w"]:
    """The index of the code at the least distance from each vector; the first of equal ones. In float32.

    Some rows of cells at a time, so that the distances to all codes fit in memory.
    """
    b, h, w, z = vectors.shape
    per_row = sharding.images_per_device(b) * w * codebook.shape[0]
    parts = next(parts for parts in range(1, h + 1) if h % parts == 0 and (h // parts * per_row <= _MOST or parts == h))
    squares = jnp.sum(codebook * codebook, -1)

    def choose(rows: Float[Array, "b _h w z"]) -> Int[Array, "b _h w"]:
        # |v - e|^2 less |v|^2, which is the same for all codes
        products = jnp.einsum("bhwz,kz->bhwk", rows, codebook, precision="highest")
        return jnp.argmin(squares.reshape(1, 1, 1, -1) - 2 * products, axis=-1).astype(jnp.int32)

    if parts == 1:
        return choose(vectors)
    rows = jnp.moveaxis(vectors.reshape(b, parts, h // parts, w, z), 1, 0)
    return jnp.moveaxis(jax.lax.map(choose, rows), 0, 1).reshape(b, h, w)


class Usage(NamedTuple):
    """How much each code is used: running means over the steps. Shares are in units of 1 / k, a code's fair one.

    Before the first step all codes count as never used, so that they begin at vectors of the first batch.

    share: of vectors that chose a code [k].
    sums: of these vectors [k, z], in the same units: their mean is sums / share.
    """

    share: Float[Array, "k"]
    sums: Float[Array, "k z"]


def unused(codes: int, width: int) -> Usage:
    """The usage before the first step."""
    return Usage(jnp.zeros(codes), jnp.zeros((codes, width)))


def renewed(
    codebook: Codebook,
    usage: Usage,
    vectors: Float[Array, "b h w z"],
    index: Int[Array, "b h w"],
    key: Key[Array, ""],
    *,
    decay: float = 0.99,
    mean: bool = False,
    restart: float = 0.01,
) -> tuple[Codebook, Usage, Bool[Array, "k"]]:
    """The codebook and its usage after a step, and which codes began again.

    Args:
        vectors, index: what the step's vectors were, as they are compared (`Quantiser.directed`), and their codes.
        decay: of the running means, 0 ... 1 (1 excluded).
        mean: codes become the running means of their vectors; else they stay, for a gradient moves them.
        restart: codes whose running share is below so much of their fair share move to a vector of the batch, drawn at
            random; 0: never.

    Raises:
        ValueError: a setting out of range.
    """
    checks.number("decay", decay, 0, below=1)
    checks.number("restart", restart, 0, below=1)
    count, width = codebook.shape
    flat, chosen = vectors.reshape(-1, width).astype(jnp.float32), index.reshape(-1)
    fair = chosen.size / count
    share = jnp.zeros(count).at[chosen].add(1.0) / fair
    sums = jnp.zeros((count, width)).at[chosen].add(flat) / fair
    share = decay * usage.share + (1 - decay) * share
    sums = decay * usage.sums + (1 - decay) * sums
    codes = codebook
    if mean:
        # a code that was never used, or so long ago that its share is next to nothing, stays where it is
        codes = jnp.where(share[:, None] > 1e-6, sums / jnp.maximum(share, 1e-6)[:, None], codebook)
    dead = share < restart
    fresh = flat[jax.random.randint(key, (count,), 0, flat.shape[0])]
    codes = jnp.where(dead[:, None], fresh, codes)
    # as if it had been used fairly, so that it has time to be found
    usage = Usage(jnp.where(dead, 1.0, share), jnp.where(dead[:, None], fresh, sums))
    return codes, usage, dead


def used(index: Int[Array, "b h w"], codes: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How many of the codes some vectors chose, as a share, and the perplexity: how many equally likely ones it is."""
    share = jnp.zeros(codes).at[index.reshape(-1)].add(1.0) / index.size
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)))
    return jnp.mean((share > 0).astype(jnp.float32)), jnp.exp(entropy)
