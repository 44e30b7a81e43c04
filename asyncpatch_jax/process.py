"""Noise processes `x_t = alpha(t) x0 + sigma(t) eps`, elementwise in the field, and conversions between predictions."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.types import FewTimes, Image, Prediction, TimeField

Kind = Literal["x0", "eps", "v", "velocity", "score"]
KINDS: tuple[str, ...] = get_args(Kind)
_BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
Times_ = Float[Array, "..."]


@runtime_checkable
class Process(Protocol):
    """A noise process; all methods act elementwise on float32 times in [0, 1] (0 = data, 1 = noise)."""

    def alpha(self, t: Times_) -> Times_:
        """Weight of the data."""

    def sigma(self, t: Times_) -> Times_:
        """Weight of the noise."""

    def rates(self, t: Times_) -> tuple[Times_, Times_]:
        """(d alpha / dt, d sigma / dt)."""

    def logsnr(self, t: Times_) -> Times_:
        """log(alpha^2 / sigma^2): +inf at t = 0, -inf where alpha is 0."""


class _LogSNR:
    """What follows from the two weights, which the subclass has."""

    def alpha(self, t: Times_) -> Times_:
        raise NotImplementedError

    def sigma(self, t: Times_) -> Times_:
        raise NotImplementedError

    def logsnr(self, t: Times_) -> Times_:
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))


@dataclass(frozen=True)
class RectifiedFlow(_LogSNR):
    """alpha = 1 - t, sigma = t (Liu et al. 2022); the default of AsyncPatch Diffusion, arXiv 2606.07079."""

    def alpha(self, t: Times_) -> Times_:
        return 1.0 - t

    def sigma(self, t: Times_) -> Times_:
        return t

    def rates(self, t: Times_) -> tuple[Times_, Times_]:
        return -jnp.ones_like(t), jnp.ones_like(t)


@dataclass(frozen=True)
class Cosine(_LogSNR):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving."""

    def alpha(self, t: Times_) -> Times_:
        # as a sine, so that alpha(1) is exactly 0 in float32
        return jnp.sin(0.5 * jnp.pi * (1.0 - t))

    def sigma(self, t: Times_) -> Times_:
        return jnp.sin(0.5 * jnp.pi * t)

    def rates(self, t: Times_) -> tuple[Times_, Times_]:
        return -0.5 * jnp.pi * self.sigma(t), 0.5 * jnp.pi * self.alpha(t)


@dataclass(frozen=True)
class Discrete(_LogSNR):
    """The variance-preserving process of Stable Diffusion and DDPM: `num_steps` noise levels, each from its beta.

    Level n (0-based, as the pretrained network counts) stands at t = (n + 1) / num_steps, and t = 0 is clean data;
    between two levels alpha^2 is linear in t.

    betas: linear in their square roots ("scaled_linear", Rombach et al. 2022), linear (Ho et al. 2020), or such that
        alpha^2 is a squared cosine, which has no start and end (Nichol & Dhariwal 2021, eq. 17).
    zero_snr: alpha is shifted and scaled so that it is 0 at t = 1 (Lin et al. 2024, algorithm 1).
    """

    num_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    betas: str = "scaled_linear"
    zero_snr: bool = False

    def __post_init__(self):
        checks.whole("num_steps", self.num_steps, 1 + bool(self.zero_snr))
        checks.number("beta_end", self.beta_end, above=0, below=1)
        checks.number("beta_start", self.beta_start, above=0, high=self.beta_end)
        checks.choice("betas", self.betas, _BETAS)

    def _betas(self) -> np.ndarray:
        if self.betas == "squaredcos_cap_v2":
            s = np.linspace(0, 1, self.num_steps + 1)
            bar = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        if self.betas == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.num_steps)
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps) ** 2

    def _powers(self) -> tuple[np.ndarray, np.ndarray]:
        """(alpha^2, sigma^2) at t = 0, 1/N, ..., 1, each exact where it is small, as float32 would not keep 1 - it."""
        log = np.concatenate([[0.0], np.cumsum(np.log1p(-self._betas()))])
        if not self.zero_snr:
            return np.exp(log), -np.expm1(log)
        alpha = np.exp(0.5 * log[1:])
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        data = np.concatenate([[1.0], alpha**2])
        return data, 1 - data

    def index(self, t: Times_) -> Times_:
        """The time in the units of the pretrained network, -1 (clean) ... num_steps - 1."""
        return t * self.num_steps - 1.0

    def _at(self, t: Times_, table: np.ndarray) -> Times_:
        grid = jnp.linspace(0.0, 1.0, self.num_steps + 1, dtype=jnp.float32)
        return jnp.interp(t, grid, jnp.asarray(table, jnp.float32))

    def alpha(self, t: Times_) -> Times_:
        return jnp.sqrt(self._at(t, self._powers()[0]))

    def sigma(self, t: Times_) -> Times_:
        return jnp.sqrt(self._at(t, self._powers()[1]))

    def rates(self, t: Times_) -> tuple[Times_, Times_]:
        """(d alpha / dt, d sigma / dt); infinite where alpha or sigma is 0."""
        slopes = jnp.asarray(np.diff(self._powers()[1]) * self.num_steps, jnp.float32)
        slope = slopes[jnp.clip((t * self.num_steps).astype(jnp.int32), 0, self.num_steps - 1)]
        return -0.5 * slope / self.alpha(t), 0.5 * slope / self.sigma(t)


def check_kind(kind: Any) -> None:
    """Refuse what is no kind of prediction.

    Raises:
        ValueError: with all of them.
    """
    checks.choice("a prediction kind", kind, KINDS)


def check_process(process: Any) -> None:
    """Refuse what is no noise process.

    Raises:
        ValueError: with examples.
    """
    checks.instance("process", process, Process, "RectifiedFlow(), Cosine() or Discrete()")


def _check(process: Any, **images: Any) -> None:
    """Refuse what is no process, or no images of one shape."""
    check_process(process)
    for name, value in images.items():
        checks.images(name, value)
    if len(shapes := {value.shape for value in images.values()}) > 1:
        raise ValueError(f"expected {' and '.join(images)} of one shape, got {' and '.join(map(str, sorted(shapes)))}")


def _at_pixels(t: Any, x: Image, name: str = "t") -> TimeField:
    """A field at the pixels of `x`; refuses what does not fit them, and times outside of 0 ... 1."""
    field = timefield.like(t, x)
    checks.numbers(name, t.values if isinstance(t, FewTimes) else t, 0, 1)
    return field


def _divide(a: Times_, b: Times_) -> Times_:
    """a / b, and 0 where b is 0: there the quotient has no limit, and finite beats NaN."""
    zero = b == 0
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))


def coefficients(process: Process, kind: Kind, t: Times_) -> tuple[Times_, Times_]:
    """(a, b) such that a prediction of this kind is `a * x0 + b * eps`, for every kind but "score".

    Raises:
        ValueError: unknown kind.
    """
    if kind == "x0":
        return jnp.ones_like(t), jnp.zeros_like(t)
    if kind == "eps":
        return jnp.zeros_like(t), jnp.ones_like(t)
    if kind == "v":
        return -process.sigma(t), process.alpha(t)
    if kind == "velocity":
        return process.rates(t)
    raise ValueError(f"expected a prediction kind out of {', '.join(KINDS[:-1])}, got {kind!r}")


def diffuse(process: Process, x0: Image, eps: Image, t: TimeField) -> Image:
    """Noise an image to a field: `alpha(t) x0 + sigma(t) eps`. Cells at 0 are `x0` bit for bit.

    Raises:
        ValueError: no floating-point images of one shape, a field that does not fit them, or times outside of 0 ... 1.
    """
    _check(process, x0=x0, eps=eps)
    t = _at_pixels(t, x0)
    return process.alpha(t) * x0 + process.sigma(t) * eps


def target(process: Process, kind: Kind, x0: Image, eps: Image, t: TimeField) -> Image:
    """What a network of this kind should answer for `diffuse(process, x0, eps, t)`.

    x0, eps, v = alpha eps - sigma x0, velocity = alpha' x0 + sigma' eps, score = -eps / sigma (infinite at t = 0).

    Raises:
        ValueError: as `diffuse`, or an unknown kind.
    """
    check_kind(kind)
    _check(process, x0=x0, eps=eps)
    t = _at_pixels(t, x0)
    if kind == "score":
        return -eps / process.sigma(t)
    a, b = coefficients(process, kind, t)
    return a * x0 + b * eps


def predict(process: Process, kind: Kind, out: Image, x: Image, t: TimeField) -> Prediction:
    """Data and noise that a network output of this kind stands for: one 2x2 solve per element.

    With `out = a x0 + b eps` and `x = alpha x0 + sigma eps` the determinant is 1 for v in a variance-preserving process
    and for velocity in rectified flow, so nothing divides by sigma there. A clean cell (sigma = 0) is its own x0,
    whatever the network says. Where the other half of the pair has no limit (eps from x0 at t = 0, x0 from eps where
    alpha = 0) it is 0.

    Raises:
        ValueError: an unknown kind, what the network answers has another shape than the image, or a field as `diffuse`.
    """
    check_kind(kind)
    _check(process, prediction=out, image=x)
    t = _at_pixels(t, x)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if kind == "score":
        kind, out = "eps", -sigma * out
    if kind == "x0":
        x0, eps = out, _divide(x - alpha * out, sigma)
    elif kind == "eps":
        x0, eps = _divide(x - sigma * out, alpha), out
    else:
        a, b = coefficients(process, kind, t)
        det = alpha * b - sigma * a
        x0, eps = (b * x - sigma * out) / det, (alpha * out - a * x) / det
    return Prediction(jnp.where(sigma == 0, x, x0), eps, {})


def output(process: Process, kind: Kind, pred: Prediction, t: TimeField) -> Image:
    """The prediction expressed in another kind: the inverse of `predict`. Raises ValueError as `target`."""
    return target(process, kind, pred.x0, pred.eps, t)


def scale_velocity(process: Process, pred: Prediction, gain: TimeField, t: TimeField) -> Prediction:
    """The prediction whose velocity `u = alpha' x0 + sigma' eps` is `gain` times as large, for the same x; keeps `aux`.

    With `D = alpha sigma' - sigma alpha'`: `x0 - sigma (gain - 1) u / D` and `eps + alpha (gain - 1) u / D`; in
    rectified flow `x - t gain v` and `x + (1 - t) gain v`. Where the gain is 1 the prediction is the same bit for bit.

    Raises:
        ValueError: a field that does not fit the prediction, times outside of 0 ... 1, or a gain that is not finite.
    """
    checks.numbers("gain", gain)
    t, gain = _at_pixels(t, pred.x0), timefield.like(gain, pred.x0)
    alpha, sigma = process.alpha(t), process.sigma(t)
    rate_x0, rate_eps = process.rates(t)
    # u / D depends on the ratio of the rates alone, of which one is infinite where alpha or sigma is 0
    ends = jnp.isinf(rate_x0), jnp.isinf(rate_eps)
    rate_x0 = jnp.where(ends[0], -1.0, jnp.where(ends[1], 0.0, rate_x0))
    rate_eps = jnp.where(ends[1], 1.0, jnp.where(ends[0], 0.0, rate_eps))
    u = (rate_x0 * pred.x0 + rate_eps * pred.eps) / (alpha * rate_eps - sigma * rate_x0)
    more = gain - 1.0
    return Prediction(pred.x0 - sigma * more * u, pred.eps + alpha * more * u, pred.aux)


def renoise(process: Process, x: Image, eps: Image, t: TimeField, t_next: TimeField) -> Image:
    """`x` at `t` with fresh noise added up to a noisier `t_next`; cells with `t_next <= t` are `x` bit for bit.

    `x' = (alpha' / alpha) x + sqrt(sigma'^2 - (alpha' sigma / alpha)^2) eps`, the process's own forward transition; in
    rectified flow `(1 - t') / (1 - t) x + sqrt(t'^2 - ((1 - t') t / (1 - t))^2) eps`.

    Raises:
        ValueError: as `diffuse`.
    """
    _check(process, x=x, eps=eps)
    t, t_next = _at_pixels(t, x), _at_pixels(t_next, x, "t_next")
    ratio = _divide(process.alpha(t_next), process.alpha(t))
    fresh = jnp.sqrt(jnp.maximum(process.sigma(t_next) ** 2 - (ratio * process.sigma(t)) ** 2, 0.0))
    return jnp.where(t_next > t, ratio * x + fresh * eps, x)
