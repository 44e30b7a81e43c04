"""The training loss: a weighted squared error per cell, and a Gaussian likelihood for the log-variance head."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Kind, Process, check_kind, check_process, coefficients, diffuse, target
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.training.times import TimeSampler
from asyncpatch_jax.types import Condition, FewTimes, Image, ImageKeys, TimeField, Times

# fold-in constants that keep the uses of the key apart
_TIMES, _NOISE, _DROPOUT, _LABELS = 0, 1, 2, 3

Metrics = dict[str, Float[Array, ""]]


@runtime_checkable
class Weight(Protocol):
    """Weight of each cell's squared error, where that error is measured in predictions of `kind`."""

    def __call__(self, process: Process, kind: Kind, t: TimeField) -> TimeField:
        """Finite, in the shape of `t`."""


@dataclass(frozen=True)
class Uniform:
    """1 everywhere: the plain mean squared error of whatever the network predicts."""

    def __call__(self, process: Process, kind: Kind, t: TimeField) -> TimeField:
        return jnp.ones_like(t)


@dataclass(frozen=True)
class SiD2:
    """Sigmoid weighting of Simpler Diffusion (Hoogeboom et al. 2024, arXiv 2410.19324).

    In x0-space `-(dlogsnr / dt) e^b sigmoid(logsnr - b)`, with e^b the `odds` below. An error e in x0 is an error
    `(alpha q - sigma p) / sigma * e` in a prediction `p x0 + q eps`, so that every kind is weighted alike: with
    W = sigma' alpha - alpha' sigma the weight is
    `2 e^b W alpha sigma / ((alpha^2 + e^b sigma^2) (alpha q - sigma p)^2)`; for the velocity of rectified flow that is
    `2 e^b t (1 - t) / ((1 - t)^2 + e^b t^2)`. It is set to 0 at both ends, where an x0 prediction of a clean cell or a
    noise prediction of pure noise would otherwise weigh infinitely.

    The default bias is the one of the public imagenet64 configuration of hackable_diffusion.
    """

    bias: float = 2.0

    def __post_init__(self):
        checks.number("bias", self.bias)

    def __call__(self, process: Process, kind: Kind, t: TimeField) -> TimeField:
        alpha, sigma = process.alpha(t), process.sigma(t)
        # the rates of some processes are infinite at the ends, where the weight is 0 anyway
        inside = (alpha > 0) & (sigma > 0)
        alpha, sigma, t = (jnp.where(inside, a, jnp.full_like(a, 0.5)) for a in (alpha, sigma, t))
        alpha_rate, sigma_rate = process.rates(t)
        p, q = (jnp.zeros_like(t), -1 / sigma) if kind == "score" else coefficients(process, kind, t)
        wronskian = sigma_rate * alpha - alpha_rate * sigma
        odds = jnp.exp(jnp.asarray(self.bias, t.dtype))
        weight = 2 * odds * wronskian * alpha * sigma / ((alpha**2 + odds * sigma**2) * (alpha * q - sigma * p) ** 2)
        return jnp.where(inside, weight, 0.0)


def drop_labels(key: Key[Array, "..."], cond: Condition, rate: float, null: int) -> Condition:
    """Replace labels by `null`, each with chance `rate`, so that one network learns both branches of guidance.

    Args:
        key: one key, or one per image.
        cond: with labels [b].
        rate: in [0, 1].
        null: the index that means "no class": the model's `num_classes`.

    Raises:
        ValueError: no labels, or a rate outside of [0, 1].
    """
    checks.instance("cond", cond, Condition, "Condition(label=labels)")
    if cond.label is None:
        raise ValueError("expected a condition with labels, got none: unconditional training has no labels to drop")
    checks.number("rate", rate, 0, 1)
    checks.whole("null (the index of no class)", null, 0)
    keys = keys_lib.fold_in(keys_lib.per_image(key, cond.label.shape[0]), _LABELS)
    drop = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys)
    return cond._replace(label=jnp.where(drop, null, cond.label))


def drop_texts(key: Key[Array, "..."], cond: Condition, rate: float) -> Condition:
    """Of each image, with chance `rate`, let no token of its text count: what a network is told without a prompt.

    Args:
        key: one key, or one per image.
        cond: with tokens [b, l, d].
        rate: in [0, 1].

    Raises:
        ValueError: no tokens, or a rate outside of [0, 1].
    """
    checks.instance("cond", cond, Condition, "Condition(tokens=tokens)")
    if cond.tokens is None:
        raise ValueError("expected a condition with tokens, got none: there are no texts to drop")
    checks.number("rate", rate, 0, 1)
    keys = keys_lib.fold_in(keys_lib.per_image(key, cond.tokens.shape[0]), _LABELS)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate))(keys)[:, None]
    counted = jnp.ones(cond.tokens.shape[:2], bool) if cond.mask is None else cond.mask
    return cond._replace(mask=counted & keep)


def loss(
    params: Any,
    key: Key[Array, "..."],
    x0: Image,
    cond: Condition | None,
    *,
    model: nn.Module,
    process: Process,
    kind: Kind,
    times: TimeSampler,
    grid: Grid | tuple[()],
    weight: Weight,
    uncertainty: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """The mean over all cells of weight times squared error, plus `uncertainty` times the head's likelihood.

    Cells at t = 0 are known: they carry no loss, whatever the weight. A score is compared as the noise that it stands
    for (and weighted so), for the score itself is infinite at t = 0. All in float32.

    With uncertainty, the model gives a log-variance s per pixel and the second term is the mean of
    `(s + squared error / e^s) / 2`: a Gaussian likelihood of the target around the prediction, which gets no gradient
    from it. (Patch Forcing, arXiv 2604.19141, weighs it by 0.01.) The models stop the head's gradient to their body, so
    that the head may also be trained alone, on a frozen model.

    Args:
        params: of `model`.
        key: one key, or one per image [b]: times and noise of image i depend on its own key alone. Dropout inside of
            the network takes one key, the first image's.
        x0: clean images [b, h, w, c].
        grid: the field's rows and columns, which tile the image; () draws a time for every pixel.

    Returns:
        The loss, and float32 scalars: `mse` (unweighted, over unknown cells), `mse_t0` ... `mse_t3` (the same for t in
        each quarter of [0, 1]; 0 if the batch has none there), and with uncertainty `nll`.

    Raises:
        ValueError: an argument of another kind, a grid that does not tile the image, an unknown kind, or uncertainty
            that is negative or without a log-variance head.
    """
    check_settings(process, kind, weight, uncertainty)
    checks.images("x0", x0)
    cells: Any = tuple(grid) if isinstance(grid, tuple | list) else grid
    cells = timefield.grid_of(x0) if isinstance(cells, tuple) and not cells else cells
    checks.cells("grid", cells)
    if any(size % n for n, size in zip(cells, x0.shape[1:3], strict=True)):
        raise ValueError(f"expected a grid that tiles {x0.shape[1]}x{x0.shape[2]} pixels, got {cells}")
    keys = keys_lib.per_image(key, x0.shape[0])
    told = drawn_times(times, keys, cells)
    settings: Any = {"model": model, "process": process, "kind": kind, "weight": weight, "uncertainty": uncertainty}
    return loss_at(params, keys, x0, cond, Times(timefield.dense(told), told), **settings)


def check_settings(process: Process, kind: Kind, weight: Weight, uncertainty: float) -> None:
    """What losses share is told before anything is drawn.

    Raises:
        ValueError: an argument of another kind, an unknown kind of prediction, or a negative uncertainty.
    """
    check_process(process)
    check_kind(kind)
    checks.function("weight", weight, "(process, kind, t) -> weights, such as SiD2()")
    checks.number("uncertainty", uncertainty, 0)


def drawn_times(times: TimeSampler, keys: ImageKeys, grid: Grid) -> TimeField | FewTimes:
    """The fields of a batch's images, by its sampler.

    Raises:
        ValueError: no sampler.
    """
    checks.function("times", times, "(key, batch, grid) -> field, such as AsyncPatch()")
    return times(keys_lib.fold_in(keys, _TIMES), keys.shape[0], grid)


def loss_at(
    params: Any,
    keys: ImageKeys,
    x0: Image,
    cond: Condition | None,
    times: Times,
    *,
    model: nn.Module,
    process: Process,
    kind: Kind,
    weight: Weight,
    uncertainty: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """`loss` of images that are noised to `times.level`, by a network that is told `times.told`; settings are checked.

    Raises:
        ValueError: uncertainty without a log-variance head.
    """
    eps = keys_lib.normal(keys_lib.fold_in(keys, _NOISE), x0.shape[1:])
    dropout = {"dropout": keys_lib.fold_in(keys, _DROPOUT)[0]}
    noised = diffuse(process, x0, eps, times.level)
    out, aux = model.apply({"params": params}, noised, times.told, cond, train=True, rngs=dropout)

    out, t = out.astype(jnp.float32), timefield.like(times.level, x0)
    sigma = process.sigma(t)
    if kind == "score":
        kind, out = "eps", -sigma * out
    unknown = sigma > 0
    # chosen before squaring: some targets are infinite at t = 0, and 0 * inf is no gradient
    error = jnp.where(unknown, out - target(process, kind, x0, eps, t), 0.0)
    square = (error**2).mean(-1, keepdims=True)
    total = (weight(process, kind, t) * square).mean()
    metrics = {"mse": _mean(square, unknown)}
    for i in range(4):
        metrics[f"mse_t{i}"] = _mean(square, unknown & (jnp.minimum(jnp.floor(4.0 * t), 3.0) == i))

    if uncertainty:
        if "log_variance" not in aux:
            raise ValueError("expected a model with log_variance=True to train uncertainty, got one without that head")
        log_variance = aux["log_variance"].astype(jnp.float32)
        nll = 0.5 * (log_variance + jax.lax.stop_gradient(square) * jnp.exp(-log_variance))
        metrics["nll"] = _mean(nll, unknown)
        total = total + uncertainty * jnp.where(unknown, nll, 0.0).mean()
    return total, metrics


def _mean(values: Float[Array, "b h w 1"], where: Bool[Array, "b _h _w 1"]) -> Float[Array, ""]:
    where = jnp.broadcast_to(where, values.shape)
    return jnp.where(where, values, 0.0).sum() / jnp.maximum(where.sum(), 1)
