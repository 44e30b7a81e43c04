"""Inpainting with a trained run: images of the size that it makes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax import timefield, viz
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.inpainting import AsyncPatch, Inpainter, Supervised
from asyncpatch_jax.sampling.painting import Fill, Shown
from asyncpatch_jax.sampling.schedules import Graded
from asyncpatch_jax.sampling.windows import REFINE
from asyncpatch_jax.types import Image, ImageKeys, TimeField
from launch.shared import build, pictures
from launch.shared.generate import Inputs, fill, generate


def field(run: build.Run, mask: Float[np.ndarray, "b h w 1"]) -> TimeField:
    """A mask of pixels on the cells of the run's training fields; a cell with anything to generate is one."""
    return timefield.resize(jnp.asarray(mask, jnp.float32), build.field_grid(run.config), "max")


def painter(
    run: build.Run,
    keys: ImageKeys,
    label: int,
    *,
    batch: int,
    method: Inpainter,
    on_windows: Callable[[int], object] = lambda count: None,
) -> Fill:
    """The run's network as what fills windows, `batch` at a time: photo j has key j, each of its windows one of that.

    Args:
        on_windows: is told how many more are done.
    """

    def fill_windows(shown: list[Shown]) -> UInt8[np.ndarray, "b h w c"]:
        photos, windows = (np.array(numbers) for numbers in ([one.job for one in shown], [one.window for one in shown]))
        images, strengths = np.stack([one.image for one in shown]), np.stack([one.strength for one in shown])
        own = jax.vmap(jax.random.fold_in)(keys[photos], windows)
        labels = np.full(len(shown), label, np.int32)
        made = inpaint(run, own, images, strengths, labels, batch=batch, method=method)
        on_windows(len(shown))
        return made

    return fill_windows


def inpaint(
    run: build.Run,
    keys: ImageKeys,
    images: UInt8[np.ndarray, "b h w c"],
    strengths: Float[np.ndarray, "b h w 1"],
    label: Int[np.ndarray, "b"],
    *,
    batch: int,
    method: Inpainter,
) -> UInt8[np.ndarray, "b h w c"]:
    """What the network makes of images whose cells change by so much (0: not at all), under the run's guidance.

    Of latents, an autoencoder sees nothing of what is to be made anew, and decodes all: known pixels too are its own.

    Args:
        label: classes; `run.num_classes` for no class.
        method: how holes are filled; of strengths between 0 and 1, `AsyncPatch` alone.

    Raises:
        ValueError: such strengths for another method, several of them in an image that a network is told one time of,
            or the network's images are not finite.
    """
    grid = build.grid(run.config, run.config.sample.steps, run.process)
    if strengths.max() <= REFINE:  # no cell moves before
        grid = grid[int(np.flatnonzero(np.asarray(grid) >= REFINE)[-1]) :]
    graded = bool(((strengths > 0) & (strengths < 1)).any())
    scale = run.config.sample.input_guidance
    if graded and not isinstance(method, AsyncPatch):
        raise ValueError(f"expected strengths of 0 and 1 for {type(method).__name__}, got some between them")
    net, levels = pictures.net(run), field(run, strengths)
    # a cell with anything to generate is generated whole: the seam is then followed from what is made beside it
    whole = isinstance(method, AsyncPatch)
    holes = timefield.resize(levels, run.shape[:2]) if whole else run.unknown(jnp.asarray(strengths))
    most = strengths.max((1, 2, 3), keepdims=True)
    if isinstance(method, Supervised) and ((strengths > 0) & (strengths < most)).any():
        raise ValueError("expected one strength in an image for a supervised run, which is told one time, got several")

    # what changes in part is seen: it begins as what it is
    hidden = (strengths >= 1).astype(np.float32)
    # an image of which nothing is known is decoded as one that is made whole
    told = hidden * (hidden.min((1, 2, 3), keepdims=True) == 0)

    def call(part: tuple[Inputs, TimeField, Image, Image]) -> Image:
        inputs, level, hole, mask = part
        if graded:
            made = generate(net, run.params, Graded(level, grid), inputs, num_steps=len(grid) - 1).images
        else:
            made = fill(net, run.params, method, inputs, hole, grid)
        return run.decoded(made, mask)

    known = coded(run, images.astype(np.float32) / 127.5 - 1, hidden, batch=batch)
    inputs = pictures.inputs(run, keys, known, label)
    if scale or graded:  # in part, a supervised network changes pixels by a schedule and no method
        inputs = inputs._replace(hint=(levels > 0).astype(jnp.float32))
    if scale:
        inputs = inputs._replace(input_guidance=jnp.full(len(images), scale, jnp.float32))
    made = np.concatenate(batched(call, (inputs, levels, holes, told), batch=batch))
    return viz.to_uint8(made[: len(images)])


def coded(
    run: build.Run, images: Float[np.ndarray, "b h w c"], mask: Float[np.ndarray, "b h w 1"], *, batch: int
) -> Float[np.ndarray, "b _h _w _c"]:
    """Images as the network is shown them, `batch` at a time; where the mask is 1, an autoencoder does not look."""
    if run.autoencoder is None:
        return images
    parts = batched(lambda part: run.encoded(*part), (images, mask), batch=batch)
    return np.concatenate(parts)[: len(images)]
