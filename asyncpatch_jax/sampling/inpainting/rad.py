"""RAD: region-aware diffusion."""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.process import Process
from asyncpatch_jax.sampling.inpainting.asyncpatch import AsyncPatch
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Denoiser, Image


@dataclass(frozen=True)
class RAD:
    """The first phase of RAD's clock (Kim et al. 2025, arXiv 2412.09191): known cells are clean, the hole is noise.

    So it is `AsyncPatch` with ancestral steps, of a network that was trained on that clock (`training.RAD`). RAD takes
    100 steps.

    Attributes:
        eta: share of fresh noise; 1, ancestral, in RAD.
        cells: rows and columns of the fields that the network was trained on; None: the mask's own.

    Raises:
        ValueError: an eta that is no number from 0 on, or no rows and columns.
    """

    eta: float = 1.0
    cells: timefield.Grid | None = None

    def __post_init__(self):
        checks.number("eta", self.eta, 0)
        if self.cells is not None:
            checks.cells("cells", self.cells)

    def calls(self, num_steps: int) -> int:
        return num_steps

    def gradients(self, num_steps: int) -> int:
        return 0

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        key: Key[Array, "..."],
        known: Image,
        mask: Float[Array, "_b h w 1"],
        grid: Float[Array, "s"],
    ) -> Image:
        return AsyncPatch(DDIM(process, self.eta), self.cells)(denoise, process, key, known, mask, grid)
