"""The time field itself as an inpainting method: known cells stand at time 0."""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.process import Process
from asyncpatch_jax.sampling.inpainting.base import Task
from asyncpatch_jax.sampling.loop import sample, start
from asyncpatch_jax.sampling.paste import paste_back
from asyncpatch_jax.sampling.schedules.inpaint import Inpaint
from asyncpatch_jax.sampling.solvers import DDIM, Heun, Solver, ZSampling
from asyncpatch_jax.types import Denoiser, Image


@dataclass(frozen=True)
class AsyncPatch:
    """Known cells at time 0, the others down the grid: the schedule `Inpaint`, for networks that know time fields.

    AsyncPatch Diffusion (arXiv 2606.07079). With a perfect network it is exact but for the size of the steps: the
    network is told what is known and says what follows from it.

    Attributes:
        solver: how cells move; DDIM with eta = 0 unless given.
        cells: rows and columns of the fields that the network was trained on, of which one with anything to generate is
            generated whole; None: the mask's own.

    Raises:
        ValueError: no solver, or no rows and columns.
    """

    solver: Solver | None = None
    cells: timefield.Grid | None = None

    def __post_init__(self):
        if self.solver is not None:
            checks.instance("solver", self.solver, Solver, "DDIM(process)")
        if self.cells is not None:
            checks.cells("cells", self.cells)

    def calls(self, num_steps: int) -> int:
        if isinstance(self.solver, ZSampling):
            return num_steps + 2 * min(self.solver.zigzags, num_steps)
        return num_steps * (2 if isinstance(self.solver, Heun) else 1)

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
        task = Task.of(denoise, process, key, known, mask, grid)
        field = timefield.unknown(task.free.astype("float32"), self.cells)
        schedule = Inpaint(field, task.grid)
        x = start(process, schedule, task.keys, known)
        solver = self.solver or DDIM(process)
        state, _ = sample(denoise, solver, schedule, task.keys, x, num_steps=task.num_steps)
        return paste_back(state.x, known, task.free.astype("float32"))
