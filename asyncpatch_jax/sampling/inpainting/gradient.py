"""What MCG, DPS and PiGDM share: the prediction's error at the known pixels, carried back through the network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from asyncpatch_jax.sampling.inpainting.base import Step, Stepwise
from asyncpatch_jax.types import Image, Prediction


class Differentiated(Stepwise):
    """Base of the methods that differentiate each call of the network."""

    def gradients(self, num_steps: int) -> int:
        return self.calls(num_steps)


def pulled(at: Step) -> tuple[Prediction, Image, Callable[[Image], Image]]:
    """The network's prediction, what its x0 misses, and `J^T` as a function, J the derivative of x0 by x.

    What is missing is `known - x0` at the known pixels and 0 elsewhere; `J^T` of it says where x has to go.
    """

    def x0(x: Image) -> tuple[Image, Prediction]:
        pred = at.denoise(x, at.now)
        return pred.x0, pred

    found, transposed, pred = jax.vjp(x0, at.x, has_aux=True)
    return pred, jnp.where(at.free, 0.0, at.known - found), lambda vector: transposed(vector)[0]


def distance_gradient(at: Step) -> tuple[Prediction, Image]:
    """The prediction, and the gradient by x of each image's `||known - x0||` over its known pixels."""
    pred, missing, transposed = pulled(at)
    norm = jnp.sqrt((missing**2).sum((1, 2, 3), keepdims=True))
    # an image of which nothing is known has no distance, and so no direction
    return pred, -transposed(missing / jnp.where(norm == 0, 1.0, norm))
