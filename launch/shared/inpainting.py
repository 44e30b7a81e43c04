"""Inpainting with a trained run."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax import timefield, viz
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.paste import paste_back
from asyncpatch_jax.sampling.schedules import Graded, Inpaint
from asyncpatch_jax.types import ImageKeys, TimeField
from launch.shared import build, pictures
from launch.shared.generate import Inputs, Result, generate


def field(run: build.Run, mask: Float[np.ndarray, "b h w 1"]) -> TimeField:
    """A mask on cells as large as those of the run's training fields; a cell with anything to generate is one."""
    cells = build.field_grid(run.config)
    sides = (run.shape[0] // cells[0], run.shape[1] // cells[1])
    # an image of its own size may not be whole cells; then it has one to a pixel
    whole = all(size % side == 0 for size, side in zip(mask.shape[1:3], sides, strict=True))
    grid = tuple(size // side if whole else size for size, side in zip(mask.shape[1:3], sides, strict=True))
    return timefield.resize(jnp.asarray(mask, jnp.float32), grid, "max")


def inpaint(
    run: build.Run,
    keys: ImageKeys,
    images: UInt8[np.ndarray, "b h w c"],
    masks: Float[np.ndarray, "b h w 1"],
    label: Int[np.ndarray, "b"],
    *,
    batch: int,
    graded: bool = False,
    feather: float = 0.0,
) -> UInt8[np.ndarray, "b h w c"]:
    """Generate what the masks mark, `batch` images at a time, under the run's guidance. Known pixels keep their bits.

    Args:
        label: classes; `run.num_classes` for no class.
        graded: masks are strengths, 0 ... 1.
        feather: see `paste_back`.

    Raises:
        ValueError: sizes that the network cannot take, images that are not finite.
    """
    grid = build.grid(run.config, run.config.sample.steps, run.process)
    scale = run.config.sample.input_guidance
    levels = field(run, masks)

    def call(part: tuple[Inputs, TimeField]) -> Result:
        inputs, level = part
        schedule = Graded(level, grid) if graded else Inpaint(level, grid)
        return generate(pictures.net(run), run.params, schedule, inputs, num_steps=len(grid) - 1)

    known = images.astype(np.float32) / 127.5 - 1
    inputs = pictures.inputs(run, keys, known, label)
    if scale:
        hint = (levels > 0).astype(jnp.float32)
        inputs = inputs._replace(input_guidance=jnp.full(len(images), scale, jnp.float32), hint=hint)
    results = batched(call, (inputs, levels), batch=min(batch, len(images)))
    made = np.concatenate([result.images for result in results])[: len(images)]
    marked = jnp.asarray(masks > 0, jnp.float32)
    return viz.to_uint8(paste_back(jnp.asarray(made), jnp.asarray(known), marked, feather))
