"""The Beta distribution of a deviation in (0, 1): what a timestep prediction module (TPM) answers with. All float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma
from jaxtyping import Array, Float

from asyncpatch_jax.keys import threefry
from asyncpatch_jax.types import ImageKeys

# samples stay so far away from 0 and 1, where log-densities are infinite
EDGE = 1e-4
# phi is more than 1 by at least this, so that a mode exists in float32 too
_LEAST = 1e-6

Values = Float[Array, "*shape"]


class Beta(NamedTuple):
    """Beta(alpha, beta) with alpha, beta > 1, so that it has one mode; any shape, here [b, rh, rw]."""

    alpha: Float[Array, "..."]
    beta: Float[Array, "..."]


def phi(x: Values) -> Values:
    """`2 + x + x^2 / 2` for x > 0, else `1 + e^x`: from any number to one above 1, with two continuous derivatives.

    Source: AsyncDiff (arXiv 2512.18675).
    """
    # not minimum(x, 0), whose derivative at 0, where a new module begins, is 1/2
    below = jnp.exp(jnp.where(x > 0, 0.0, x))
    return jnp.where(x > 0, 2.0 + x + 0.5 * x * x, 1.0 + jnp.maximum(below, _LEAST))


def mode(belief: Beta) -> Float[Array, "..."]:
    """`(alpha - 1) / (alpha + beta - 2)`, where the density is greatest."""
    return (belief.alpha - 1.0) / ((belief.alpha - 1.0) + (belief.beta - 1.0))


def sample(keys: ImageKeys, belief: Beta) -> Float[Array, "b ..."]:
    """A draw for each number of each image [b, ...], from the image's own key, in EDGE ... 1 - EDGE."""
    draws = jax.vmap(jax.random.beta)(threefry(keys), belief.alpha, belief.beta)
    return jnp.clip(draws.astype(jnp.float32), EDGE, 1.0 - EDGE)


def log_prob(belief: Beta, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logarithm of the density at x in (0, 1), in nats."""
    return (
        (belief.alpha - 1.0) * jnp.log(x)
        + (belief.beta - 1.0) * jnp.log1p(-x)
        - betaln(belief.alpha, belief.beta).astype(jnp.float32)
    )


def entropy(belief: Beta) -> Float[Array, "..."]:
    """The differential entropy in nats: 0 for the uniform distribution, less for any other."""
    a, b = belief
    return betaln(a, b) - (a - 1.0) * digamma(a) - (b - 1.0) * digamma(b) + (a + b - 2.0) * digamma(a + b)


def divergence(p: Beta, q: Beta) -> Float[Array, "..."]:
    """The Kullback-Leibler divergence KL(p || q) in nats, in closed form."""
    (a, b), (c, d) = p, q
    return betaln(c, d) - betaln(a, b) + (a - c) * digamma(a) + (b - d) * digamma(b) + (c - a + d - b) * digamma(a + b)
