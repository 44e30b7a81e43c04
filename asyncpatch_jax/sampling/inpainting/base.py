"""What an inpainting method is, and the way down a grid of times that most of them share."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Process, check_process, diffuse
from asyncpatch_jax.sampling.schedules.base import check_grid, length, spread
from asyncpatch_jax.types import Denoiser, Image, ImageKeys, Times

# fold-in constants that keep the two uses of an image's key apart
_START, _STEP = 0, 1


@runtime_checkable
class Inpainter(Protocol):
    """A way to fill the holes of images; a frozen dataclass of settings, static under `jit`."""

    def calls(self, num_steps: int) -> int:
        """How often the network sees each image, on a grid of so many steps."""

    def gradients(self, num_steps: int) -> int:
        """How many of these calls are differentiated too, which costs about as much again as a call or two."""

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        key: Key[Array, "..."],
        known: Image,
        mask: Float[Array, "_b h w 1"],
        grid: Float[Array, "s"],
    ) -> Image:
        """The images with their holes filled; what is known comes back bit for bit.

        Pure, and all but `denoise` and `process` may be traced: new images, masks and times compile nothing anew.

        Args:
            denoise: the network, as `bind` makes it, perhaps under a guidance.
            key: one key, or one per image [b]: image i depends on its own key, pixels and mask alone.
            known: [b, h, w, c] in the network's units; pixels or latents. What lies under the mask is not looked at.
            mask: 1 = generate, on the grid of `known`; the same for all images [1, ...] or one each.
            grid: times [num_steps + 1] of any spacing, from 1 to 0.

        Raises:
            ValueError: an argument of another kind or shape, or a setting that does not go with so many steps.
        """


class Task(NamedTuple):
    """What is to be inpainted, checked: `known` is 0 where something is generated, and `free` says where that is."""

    keys: ImageKeys
    known: Image
    free: Bool[Array, "b h w 1"]
    grid: Float[Array, "s"]
    num_steps: int

    @classmethod
    def of(cls, denoise: Any, process: Any, key: Any, known: Any, mask: Any, grid: Any) -> "Task":
        """From the arguments of an `Inpainter`.

        Raises:
            ValueError: as said there.
        """
        checks.function("denoise", denoise, "(x, times) -> Prediction, as bind(...) makes")
        check_process(process)
        checks.images("known", known)
        free = free_of(mask, known)
        check_grid(grid)
        num_steps, grid = length(grid), jnp.asarray(grid, jnp.float32)
        # what lies under a mask is no data at all (it may even be NaN)
        return cls(keys_lib.per_image(key, len(free)), jnp.where(free, 0.0, known), free, grid, num_steps)

    def start(self, process: Process) -> Image:
        """Noise, with what a process may keep of the known pixels at the grid's first time."""
        noise = keys_lib.normal(keys_lib.fold_in(self.keys, _START), self.known.shape[1:])
        first = timefield.constant(self.grid[0], len(noise))
        return jnp.where(self.free, noise, diffuse(process, self.known, noise, first))


def free_of(mask: Any, known: Image) -> Bool[Array, "b h w 1"]:
    """Where something is generated, for each image.

    Raises:
        ValueError: no mask, or one of another size than the images.
    """
    checks.mask("mask", mask)
    if mask.shape[1:3] != known.shape[1:3] or mask.shape[0] not in (1, known.shape[0]):
        raise ValueError(f"expected a mask of the images' size, {known.shape[:3]}, got {mask.shape}")
    return spread(timefield.unknown(jnp.asarray(mask)), known.shape[0]) > 0


class Step(NamedTuple):
    """One call of the network, as a method that goes down a grid sees it; all of an image has the same time.

    now: the time of `x`.
    below: the grid's next time.
    then: the time at which the next call finds the image; not `below` where a method goes up again.
    """

    denoise: Denoiser
    process: Process
    keys: ImageKeys
    known: Image  # 0 where something is generated
    free: Bool[Array, "b h w 1"]  # where that is
    grid: Float[Array, "s"]
    x: Image
    now: Times
    below: Times
    then: Times

    def with_known(self, x: Image, times: Times, keys: ImageKeys) -> Image:
        """`x`, its known pixels replaced by those that are known, freshly noised to a time."""
        noise = keys_lib.normal(keys, x.shape[1:])
        return jnp.where(self.free, x, diffuse(self.process, self.known, noise, times.level))


class Stepwise:
    """Base of the methods that go down the grid step by step: they say `step`, and `path` if they go up as well."""

    def path(self, num_steps: int) -> Int[np.ndarray, "s"]:
        """At which of the levels num_steps ... 0 each step finds the image, and 0 at last."""
        return np.arange(num_steps, -1, -1)

    def calls(self, num_steps: int) -> int:
        return len(self.path(num_steps)) - 1

    def gradients(self, num_steps: int) -> int:
        return 0

    def step(self, at: Step) -> Image:
        """The image at `at.then`."""
        raise NotImplementedError

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
        places = task.num_steps - self.path(task.num_steps)
        batch = len(task.free)

        def body(x: Image, turn: tuple[jax.Array, ...]) -> tuple[Image, None]:
            i, *levels = turn
            fields = (timefield.constant(level, batch) for level in levels)
            now, below, then = (Times(field, field) for field in fields)
            keys = keys_lib.fold_in(task.keys, _STEP + i)
            at = Step(denoise, process, keys, task.known, task.free, task.grid, x, now, below, then)
            return self.step(at).astype(x.dtype), None

        levels = (task.grid[places[:-1]], task.grid[places[:-1] + 1], task.grid[places[1:]])
        turns = (jnp.arange(len(places) - 1, dtype=jnp.int32), *levels)
        x, _ = jax.lax.scan(body, task.start(process), turns)
        return jnp.where(task.free, x, jnp.asarray(known).astype(x.dtype))
