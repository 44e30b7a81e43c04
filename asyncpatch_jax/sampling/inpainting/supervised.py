"""Inpainting with a network that was trained for it."""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key

from asyncpatch_jax.denoiser import one_time
from asyncpatch_jax.process import Process
from asyncpatch_jax.sampling.inpainting.asyncpatch import AsyncPatch
from asyncpatch_jax.types import Denoiser, Image


@dataclass(frozen=True)
class Supervised(AsyncPatch):
    """The hole goes down the grid, of a network that sees on other channels what is known, and is told one time.

    After Palette (Saharia et al. 2022, arXiv 2111.05826); `training.supervised_loss` trains such networks. With a
    perfect one it is exact but for the size of the steps, as `AsyncPatch` is.

    `denoise` is a network that is bound with what is known, `Condition(reference=reference_of(known, mask))`, for it
    alone knows what it was shown.
    """

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        key: Key[Array, "..."],
        known: Image,
        mask: Float[Array, "_b h w 1"],
        grid: Float[Array, "s"],
    ) -> Image:
        return super().__call__(one_time(denoise), process, key, known, mask, grid)
