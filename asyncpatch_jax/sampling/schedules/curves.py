"""The curves along which AsynDM slows cells down (arXiv 2510.04504), as maps from a cell's state to its next one.

In the paper's index form a run of n steps goes down from N + s (N train steps, offset s), and the background does it
evenly, by d = N / n a step. Here a cell that has r steps left stands at the index `s + d (r + excess)`: its excess is
how many steps it lags behind the background, which has none. The paper writes each curve as a concave function that is
shifted to pass through the cell's state; these are its values one step later, in closed form.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

Curve = Literal["linear", "quadratic", "exponential", "piecewise", "extreme"]
CURVES: tuple[str, ...] = get_args(Curve)
Number = float | Float[Array, "..."]
Map = Callable[[Number, Number, Number, int], Number]


def _linear(excess: Number, left: Number, k: Number, num_steps: int) -> Number:
    return excess * (left - 1) / left


def _quadratic(excess: Number, left: Number, k: Number, num_steps: int) -> Number:
    return (left - 1) * (excess / left + k / num_steps)


def _exponential(excess: Number, left: Number, k: Number, num_steps: int) -> Number:
    share = math.expm1(1.0 / num_steps) / jnp.expm1(left / num_steps)
    return excess + k - share * (excess + k * left)


def _piecewise(bend: float) -> Map:
    def move(excess: Number, left: Number, k: Number, num_steps: int) -> Number:
        return jnp.minimum(excess + bend * k, bend * k * (left - 1))

    return move


_MAPS: dict[str, Map] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "exponential": _exponential,
    "piecewise": _piecewise(0.5),
    "extreme": _piecewise(1.0),
}


def check(curve: str) -> None:
    """Refuse what is no curve.

    Raises:
        ValueError: unknown name.
    """
    if curve not in _MAPS:
        raise ValueError(f"expected a curve out of {', '.join(CURVES)}, got {curve!r}")


def move(curve: str, excess: Number, left: Number, k: Number, num_steps: int) -> Number:
    """The excess after one move, elementwise and in the dtype of the arguments; 0 after the last move.

    With t the cell's index and r = `left`, the next index is

    - linear: `t - (t - s) / r`, the background, for any curve where k is 0
    - quadratic: `t - (t - s) / r + k (N / n^2) (r - 1)`
    - exponential: `t - (1 - k) d - (t - s - (1 - k) d r) expm1(1 / n) / expm1(r / n)`
    - piecewise: `min(t - (1 - c k) d, s + (1 + c k) d (r - 1))`, c = 1/2 of the paper's curve
    - extreme: the same with c = 1, the paper's extreme curve `min(T, 2T - 2i)`, and "lin" of the released code

    Args:
        excess: steps behind the background, at least 0.
        left: steps left before the move, at least 1.
        k: omega, the weight of the curve against the background, 0 ... 1.
        num_steps: n.

    Raises:
        ValueError: unknown curve.
    """
    check(curve)
    after = jnp.where(k == 0, _linear(excess, left, k, num_steps), _MAPS[curve](excess, left, k, num_steps))
    # exactly, so that a run ends at the end of its grid
    return jnp.where(left <= 1, jnp.zeros_like(after), after)


def largest(curve: str, num_steps: int, room: float) -> float:
    """The largest k whose first move leaves a cell at most `room` steps behind the background; never more than 1.

    A first move is linear in k, for every curve. Beyond 1 a cell could move up.

    Raises:
        ValueError: unknown curve.
    """
    check(curve)
    # in Python floats, which need no device: settings are checked where they are made
    share = math.expm1(1.0 / num_steps) / math.expm1(1.0)
    first = {
        "linear": 0.0,
        "quadratic": (num_steps - 1) / num_steps,
        "exponential": 1 - num_steps * share,
        "piecewise": min(0.5, 0.5 * (num_steps - 1)),
        "extreme": min(1.0, num_steps - 1.0),
    }[curve]
    return 1.0 if first <= max(room, 0.0) else max(room, 0.0) / first
