"""The curves of AsynDM against the paper's numbers, its formulas written out, and its shifted concave functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.sampling.schedules import curves


def written_out(curve, t, r, k, n, train=1000.0, s=1.0):
    """The next index as METHODS states it, in NumPy."""
    d = train / n
    if curve == "linear" or k == 0:
        return t - (t - s) / r
    if curve == "quadratic":
        return t - (t - s) / r + k * train / n**2 * (r - 1)
    if curve == "exponential":
        return t - (1 - k) * d - (t - s - (1 - k) * d * r) * np.expm1(1 / n) / np.expm1(r / n)
    c = {"piecewise": 0.5, "extreme": 1.0}[curve]
    return min(t - (1 - c * k) * d, s + (1 + c * k) * d * (r - 1))


def shifted_curve(curve, t, r, n, train=1000.0, s=1.0):
    """One step down the paper's concave function f(i), shifted sideways and down so as to run from (i, t) to (n, s)."""
    x = np.float64(n)
    if curve == "quadratic":

        def f(i):
            return -train * i**2 / x**2

    elif curve == "exponential":

        def f(i):
            return -train * np.expm1(i / x) / np.expm1(1.0)

    low, high = -1e3, 1e3
    for _ in range(200):  # the sideways shift at which the curve falls by t - s within r steps: the fall grows with it
        middle = 0.5 * (low + high)
        low, high = (middle, high) if f(middle) - f(middle + r) < t - s else (low, middle)
    return t + f(low + 1) - f(low)


@pytest.mark.parametrize("curve", curves.CURVES)
@pytest.mark.parametrize("k", [0.0, 0.3, 0.7])
def test_moves_are_the_closed_forms(curve, k):
    n, rng = 50, np.random.default_rng(0)
    with jax.enable_x64(True):
        for r in range(1, n + 1):
            excess = rng.uniform(0, 0.4 * r)
            after = curves.move(curve, jnp.float64(excess), jnp.float64(r), jnp.float64(k), n)
            assert after.dtype == jnp.float64
            expected = written_out(curve, 1 + 20 * (r + excess), r, k, n)
            np.testing.assert_allclose(1 + 20 * (r - 1 + float(after)), expected, rtol=0, atol=1e-9)
            assert r > 1 or after == 0


@pytest.mark.parametrize("curve", ["quadratic", "exponential"])
def test_moves_are_those_of_the_shifted_concave_function(curve):
    with jax.enable_x64(True):
        for r, excess in [(50, 0.0), (40, 3.0), (30, 9.0), (7, 2.5), (2, 0.4)]:
            after = curves.move(curve, jnp.float64(excess), jnp.float64(r), jnp.float64(1), 50)
            expected = shifted_curve(curve, 1 + 20 * (r + excess), r, 50)
            np.testing.assert_allclose(1 + 20 * (r - 1 + float(after)), expected, rtol=0, atol=1e-8)


def chain(curve, k, masked, n=50):
    """Indices of a run in float64 whose moves j are masked or not, the head start first."""
    excess, path = jnp.float64(0), []
    for j in range(n):
        excess = curves.move(curve, excess, jnp.float64(n - j), jnp.float64(k * masked(j)), n)
        path.append(1 + 20 * (n - j - 1 + float(excess)))
    return path


def test_the_vectors_of_a_whole_run():
    with jax.enable_x64(True):
        path = chain("quadratic", 0.7, lambda j: True)
        np.testing.assert_allclose(path[:4] + path[-3:], [994.72, 987.88, 980.48, 972.52, 67.88, 34.72, 1], atol=1e-9)
        assert path == pytest.approx([1 + (50 - i) * (20 + 0.4 * 0.7 * i) for i in range(1, 51)], abs=1e-9)
        path = chain("quadratic", 0.7, lambda j: j >= 20)
        np.testing.assert_allclose(path[19:23] + path[-2:], [601, 589.12, 576.68, 563.68, 29.12, 1], atol=1e-9)
        path = chain("exponential", 0.7, lambda j: True)
        np.testing.assert_allclose(path[:2] + path[-2:], [986.7703, 972.3744, 28.9277, 1], atol=1e-4)
        extreme = [min(1001.0, 2001.0 - 40.0 * i) for i in range(1, 51)]
        np.testing.assert_allclose(chain("extreme", 1.0, lambda j: True), extreme, atol=1e-9)


@pytest.mark.parametrize("curve", curves.CURVES)
def test_curves_never_move_up_and_lag_behind_the_background(curve):
    for mask_from in (0, 10, 30):
        with jax.enable_x64(True):
            path = np.asarray(chain(curve, 1.0, lambda j, start=mask_from: j >= start))
        assert (np.diff(path) <= 1e-9).all()
        assert (path >= 1001 - 20 * np.arange(1, 51) - 1e-9).all()


@pytest.mark.parametrize(("curve", "c"), [("piecewise", 0.5), ("extreme", 1.0)])
def test_piecewise_curves_are_the_lesser_of_two_lines(curve, c):
    with jax.enable_x64(True):
        path = chain(curve, 1.0, lambda j: True)
    lines = [min(1001 - 20 * (1 - c) * i, 1 + 20 * (1 + c) * (50 - i)) for i in range(1, 51)]
    np.testing.assert_allclose(path, lines, atol=1e-9)


def test_an_unknown_curve_is_refused():
    for call in (lambda: curves.move("cubic", 0.0, 1.0, 0.5, 50), lambda: curves.largest("cubic", 50, 1.0)):
        with pytest.raises(ValueError, match="expected a curve out of linear, quadratic"):
            call()
