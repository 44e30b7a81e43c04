"""Guidance by other cells of the image: by those that are known, and by those that are sure of themselves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Kind, Process, check_kind, check_process, output, predict, renoise
from asyncpatch_jax.sampling.guidance.branches import (
    Number,
    Scale,
    check_denoiser,
    check_scale,
    interleave,
    per_image,
)
from asyncpatch_jax.sampling.schedules.uncertainty import doubt
from asyncpatch_jax.types import Denoiser, FewTimes, Image, Prediction, TimeField, Times


def input_guidance(
    denoise: Denoiser,
    process: Process,
    kind: Kind,
    hint: TimeField,
    key: Key[Array, "..."],
    scale: Scale,
    noisier: Number = 1.0,
) -> Denoiser:
    """Guidance by what is known: away from the answer that a noisier hint would give (AsyncPatch, arXiv 2606.07079).

    `s(t) + w (s(t) - s(t+))`, s in the declared prediction `kind`: t+ is the field with its hint cells at `noisier`
    (or where they are, if that is noisier still), and the hint is re-noised to it. Both fields go through the network
    in one call with interleaved images [b * 2]; over or under `classifier_free` that makes four evaluations.

    The paper's text leaves the noise of the hint open; here each image draws it once for the whole run, so that the
    guided prediction is a function of (x, t) and a solver keeps its order.

    Args:
        hint: 0 where the image is known, 1 where it is to be generated (an inpainting mask) [b|1, gh, gw, 1].
        key: one key, or one per image [b].
        scale: w, one number or one per image [b]; 0 is the plain denoiser.
        noisier: the time t+ of the hint, in [0, 1]; 1 hides the hint altogether.

    Raises:
        ValueError: an argument of another kind, a scale that is no number, a time outside of 0 ... 1, or a hint that
            does not fit the image.
    """
    check_denoiser(denoise)
    check_process(process)
    check_kind(kind)
    checks.mask("hint", hint)
    keys_lib.threefry(key)
    check_scale("scale", scale)
    check_scale("noisier", noisier, 0, 1)

    def guided(x: Image, times: Times) -> Prediction:
        batch = x.shape[0]
        timefield.check(hint, batch)
        t = timefield.like(times.level, x)
        known = timefield.like(jnp.broadcast_to(hint, (batch, *hint.shape[1:])), x) < 0.5
        noise = keys_lib.normal(keys_lib.per_image(key, batch), x.shape[1:])

        def raised(t: Float[Array, "..."]) -> Float[Array, "..."]:
            return jnp.maximum(t, noisier)

        level_plus = jnp.where(known, raised(t), t)
        x_plus = renoise(process, x, noise, t, level_plus)
        # both fields must share a shape to be interleaved: that of the one with the hint
        both = denoise(
            interleave(x, x_plus),
            Times(
                interleave(jnp.broadcast_to(t, level_plus.shape), level_plus),
                _both(times.told, x, known, hint, raised),
                *(None if leaf is None else jnp.repeat(leaf, 2, axis=0) for leaf in (times.text, times.gain)),
            ),
        )
        here, there = (jax.tree.map(lambda leaf, k=k: leaf[k::2], both) for k in (0, 1))
        s, s_plus = output(process, kind, here, t), output(process, kind, there, level_plus)
        moved = predict(process, kind, s + per_image(scale, batch) * (s - s_plus), x, t)
        # the hint itself is no prediction to be guided
        x0, eps = jnp.where(known, here.x0, moved.x0), jnp.where(known, here.eps, moved.eps)
        return Prediction(x0, eps, here.aux)

    return guided


def look_ahead(
    denoise: Denoiser, process: Process, cells: timefield.Grid, confident: float = 0.4, ratio: float = 1.4
) -> Denoiser:
    """Patch Forcing's look-ahead (arXiv 2604.19141): uncertain cells are predicted with confident ones further on.

    The `confident` share of cells with the lowest predicted log-variance jumps, for the sake of a second call only, to
    `1 - ratio (1 - t)` (not below 0); the other cells take their prediction from that call. Two calls a step, any
    schedule. Share and ratio are those of the authors' code (.4, 1.4). It leaves the jump out while 1 - t <= .05, where
    it is next to none, and guides only the second call; here both calls are those of `denoise`. Cells at 0 are known
    and do not count.

    Args:
        cells: the grid on which cells are judged.

    Raises:
        ValueError: a share outside (0, 1), a ratio below 1, no cells, or a network without a log-variance head.
    """
    check_denoiser(denoise)
    check_process(process)
    checks.cells("cells", cells)
    checks.number("confident", confident, above=0, below=1)
    checks.number("ratio", ratio, 1)

    def ahead(x: Image, times: Times) -> Prediction:
        pred = denoise(x, times)
        free = jnp.broadcast_to(timefield.resize(times.level, cells), (x.shape[0], *cells, 1))
        certain = (doubt(pred, cells, free) < confident).astype(jnp.float32)

        def jump(t: Float[Array, "..."]) -> Float[Array, "..."]:
            return jnp.maximum(1.0 - ratio * (1.0 - t), 0.0)

        told = timefield.as_few(times.told) or times.told
        level: Any = timefield.changed(times.level, certain > 0.5, jump)  # dense, as it was
        there = times._replace(level=level, told=timefield.changed(told, certain > 0.5, jump))
        t_there, here = timefield.like(there.level, x), timefield.like(certain, x) > 0.5
        further = process.alpha(t_there) * pred.x0 + process.sigma(t_there) * pred.eps
        second = denoise(jnp.where(here, further, x), there)
        return Prediction(jnp.where(here, pred.x0, second.x0), jnp.where(here, pred.eps, second.eps), pred.aux)

    return ahead


def _both(
    told: TimeField | FewTimes,
    x: Image,
    known: Bool[Array, "b _h _w 1"],
    hint: Float[Array, "_b _gh2 _gw2 1"],
    raised: Callable[[jax.Array], jax.Array],
) -> Float[Array, "_b3 _h _w 1"] | FewTimes:
    """What the network is told of an image and, next to it, of its copy with a noisier hint."""
    batch, few = x.shape[0], timefield.as_few(told)
    if few is None or any(max(n, m) % min(n, m) for n, m in zip(few.index.shape[1:3], hint.shape[1:3], strict=True)):
        whole = timefield.like(told, x)
        higher = jnp.where(known, raised(whole), whole)
        return interleave(jnp.broadcast_to(whole, higher.shape), higher)
    # both choose from the same times, those before and after the hint is raised
    plus: Any = timefield.changed(few, hint < 0.5, raised)
    shape = (batch, *plus.index.shape[1:])
    index = jnp.broadcast_to(timefield.resize(few.index, timefield.grid_of(plus.index)), shape)
    values = plus.values if plus.values.shape[0] == 1 else jnp.repeat(plus.values, 2, axis=0)
    return timefield.assembled(values, interleave(index, jnp.broadcast_to(plus.index, shape)))
