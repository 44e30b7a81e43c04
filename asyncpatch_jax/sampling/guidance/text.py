"""Guidance by a text or a class: a mixture of the conditional and other predictions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.sampling.guidance.branches import (
    Branches,
    Number,
    Pair,
    Scale,
    check_pair,
    check_scale,
    mixed,
    per_image,
)
from asyncpatch_jax.types import Denoiser, Image, Prediction, Times


def classifier_free(pair: Pair, scale: Scale, interval: tuple[Number, Number] | None = None) -> Denoiser:
    """Classifier-free guidance `u + w (c - u)` (Ho & Salimans 2022), where 1 is the conditional prediction alone.

    Args:
        pair: from `two_calls` or `one_call`.
        scale: w, one number or one per image [b].
        interval: guide only cells whose time lies in (low, high), as Kynkäänniemi et al. 2024; the others get c.

    Raises:
        ValueError: a scale that is no number, or no interval within 0 ... 1.
    """
    check_pair(pair)
    check_scale("scale", scale)
    if interval is not None:
        _check_interval(interval)

    def denoise(x: Image, times: Times) -> Prediction:
        c, u = pair(x, times)
        return mixed(c, _extra(x, times, scale, interval), u)

    return denoise


def cfg_plus_plus(pair: Pair, lam: Scale) -> Denoiser:
    """CFG++ (Chung et al. 2024, arXiv 2406.08070): the guided x0, noised again with the unconditional eps.

    `x0 = x0_u + lam (x0_c - x0_u)` and `eps = eps_u`: a step of `DDIM(process, eta=0)` is then the paper's algorithm 2,
    and no other solver's is, for x = alpha x0 + sigma eps does not hold. Scales of .4 to .6 suit it.

    Args:
        lam: 0 ... 1, one number or one per image [b].

    Raises:
        ValueError: a number outside of 0 ... 1.
    """
    check_pair(pair)
    check_scale("lam (the scale of CFG++)", lam, 0, 1)

    def denoise(x: Image, times: Times) -> Prediction:
        c, u = pair(x, times)
        return Prediction(u.x0 + per_image(lam, x.shape[0]) * (c.x0 - u.x0), u.eps, c.aux)

    return denoise


def smoothed_energy(branches: Branches, scale: Scale, gamma: Scale = 3.0) -> Denoiser:
    """Smoothed energy guidance (Hong 2024, arXiv 2408.00760) with classifier-free: `u + w (c - u) + gamma (c - s)`.

    s is the conditional prediction of a network whose self-attention has blurred queries. AsynDM's table has gamma = 3
    and a blur of 1 cell.

    Args:
        branches: (c, u, s) from `separate_calls` or `one_call(..., copies=3)`; s has `blur` in its condition.
        scale: w, one number or one per image [b]; 1 is none.
        gamma: one number or one per image [b].

    Raises:
        ValueError: a scale that is no number, or another number of branches than three.
    """
    check_pair(branches)
    check_scale("scale", scale)
    check_scale("gamma", gamma)

    def denoise(x: Image, times: Times) -> Prediction:
        predictions = branches(x, times)
        if len(predictions) != 3:
            raise ValueError(
                f"expected a conditional, an unconditional and a blurred branch, got {len(predictions)} branches"
            )
        c, u, s = predictions
        guided, weight = mixed(c, per_image(scale, x.shape[0]) - 1.0, u), per_image(gamma, x.shape[0])
        return Prediction(guided.x0 + weight * (c.x0 - s.x0), guided.eps + weight * (c.eps - s.eps), c.aux)

    return denoise


def _check_interval(interval: tuple[Number, Number]) -> None:
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise ValueError(f"expected an interval as (low, high), got {checks.shown(interval)}")
    for name, value in zip(("low", "high"), interval, strict=True):
        check_scale(f"the interval's {name}", value, 0, 1)
    low, high = (checks.known(value) for value in interval)
    if low is not None and high is not None and not low <= high:
        raise ValueError(f"expected an interval with low <= high, got {low} and {high}")


def _extra(x: Image, times: Times, scale: Scale, interval: tuple[Number, Number] | None) -> Float[Array, "_b _h _w 1"]:
    """w - 1, and 0 where the interval leaves a cell out: c + (w - 1) (c - u) is exact at w = 1."""
    extra = per_image(scale, x.shape[0]) - 1.0
    if interval is None:
        return extra
    t = timefield.like(times.level, x)
    return jnp.where((t >= interval[0]) & (t <= interval[1]), extra, 0.0)
