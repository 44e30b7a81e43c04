"""Data distributions whose best possible denoiser, at any field, is known in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncpatch_jax import timefield
from asyncpatch_jax.types import Prediction


class Gaussian(NamedTuple):
    """x0 ~ N(mean, cov) over the flattened pixels of an image of `shape` (h, w, c)."""

    mean: np.ndarray
    cov: np.ndarray
    shape: tuple[int, int, int]

    def draw(self, key, batch):
        z = jax.random.normal(key, (batch, len(self.mean)))
        return (self.mean[None] + z @ np.linalg.cholesky(self.cov).T).reshape(batch, *self.shape)

    def log_prob(self, x0):
        """Exact log density in nats, [b]."""
        d = np.asarray(x0, np.float64).reshape(x0.shape[0], -1) - self.mean
        _, logdet = np.linalg.slogdet(self.cov)
        return -0.5 * ((d @ np.linalg.inv(self.cov) * d).sum(1) + logdet + d.shape[1] * np.log(2 * np.pi))

    def denoiser(self, process):
        """`(x, times) -> Prediction` with x0 = E[x0 | x] for whatever field `times.told` is."""

        def one(x, t):
            a, s = process.alpha(t), process.sigma(t)
            joint = a[:, None] * self.cov * a[None, :] + jnp.diag(s**2)
            # cells at t = 0 make this the (regular) covariance of the data itself
            return self.mean + (self.cov * a[None, :]) @ jnp.linalg.solve(joint, x - a * self.mean)

        def denoise(x, times):
            t = jnp.broadcast_to(timefield.like(times.told, x), x.shape)
            flat = (x.shape[0], len(self.mean))
            x0 = jax.vmap(one)(x.reshape(flat), t.reshape(flat)).reshape(x.shape)
            a, s = process.alpha(t), process.sigma(t)
            eps = jnp.where(s == 0, 0.0, (x - a * x0) / jnp.where(s == 0, 1.0, s))
            return Prediction(x0, eps, {})

        return denoise


def gaussian(shape=(2, 2, 1), seed=0, scale=0.6):
    """A correlated Gaussian with eigenvalues well away from 0."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    a = rng.normal(size=(n, n)) / np.sqrt(n)
    cov = scale**2 * (a @ a.T + 0.3 * np.eye(n))
    return Gaussian(rng.normal(size=n) * 0.3, cov, tuple(shape))


def blur_of_one(image, sigma):
    """The blur of SEG's authors' code, for one image [h, w, d]."""
    if sigma == 0:
        return image
    if sigma > 9999:
        return np.broadcast_to(image.mean((0, 1)), image.shape)
    for axis in (0, 1):
        size = image.shape[axis]
        count = min(int(np.ceil(6 * sigma)) + 1 - int(np.ceil(6 * sigma)) % 2, size - (size % 2 - 1))
        kernel = np.exp(-0.5 * ((np.arange(count) - count // 2) / sigma) ** 2)
        pad = [(count // 2, count // 2) if i == axis else (0, 0) for i in range(3)]
        padded = np.moveaxis(np.pad(image, pad, mode="reflect"), axis, 0)
        parts = [weight * padded[i : i + size] for i, weight in enumerate(kernel / kernel.sum())]
        image = np.moveaxis(sum(parts), 0, axis)
    return image
