"""Inpainting methods: each is its equations, keeps what is known and costs what it says; which are exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Cosine, RectifiedFlow
from asyncpatch_jax.sampling import DDIM, Heun, ZSampling, cosine, linear, repaint_cost
from asyncpatch_jax.sampling.inpainting import (
    DDNM,
    DDRM,
    DPS,
    MCG,
    RAD,
    AsyncPatch,
    DeqIR,
    Inpainter,
    PiGDM,
    RePaint,
    ScoreSDE,
    Step,
    Supervised,
    base,
    deqir,
)
from asyncpatch_jax.sampling.inpainting.gradient import distance_gradient
from asyncpatch_jax.types import Prediction, Times
from launch.studies import gaussian
from launch.studies.gaussian import Law, posterior, score
from tests import drawn

FLOW = RectifiedFlow()
STEPS, SIZE = 5, 6
METHODS = {
    "asyncpatch": AsyncPatch(DDIM(FLOW, 1.0)),
    "rad": RAD(),
    "supervised": Supervised(),
    "score_sde": ScoreSDE(0.5, corrections=1, snr=0.3),
    "repaint": RePaint(2, 2),
    "ddrm": DDRM(0.85, 0.75),
    "ddnm, travelling": DDNM(0.5, travel=1, repeat=2),
    "ddnm, without noise": DDNM(0.0),
    "mcg": MCG(0.2),
    "dps": DPS(0.2, eta=0.5),
    "pigdm": PiGDM(0.7, eta=0.5),
    "deqir": DeqIR(STEPS, 1),
}
STEPWISE = [name for name, method in METHODS.items() if isinstance(method, base.Stepwise)]
VARIANCE_PRESERVING = ("score_sde", "ddrm", "ddnm, without noise", "dps", "deqir")
PROCESSES = {name: Cosine() if name in VARIANCE_PRESERVING else FLOW for name in METHODS}
COVARIANCE = 0.8 ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE))) * np.linspace(0.5, 1, SIZE)
COVARIANCE = COVARIANCE @ COVARIANCE.T
# two pixels known, one, and none
FREE = np.array([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1], [1] * 6], bool)
PIXELS = np.random.default_rng(0).normal(size=(3, SIZE))


def rows(pixels):
    """Images [b, 1, n, 1] of rows of pixels [b, n]."""
    return jax.device_put(np.asarray(pixels, np.float32)[:, None, :, None])


@jax.jit
def everything(keys, known, mask, grid):
    """What every method makes of some rows of pixels."""
    return {
        name: method(gaussian.denoiser(COVARIANCE, PROCESSES[name]), PROCESSES[name], keys, known, mask, grid)[
            :, 0, :, 0
        ]
        for name, method in METHODS.items()
    }


@pytest.fixture(scope="module")
def keys():
    return keys_lib.per_image(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def made(keys):
    made = everything(keys, rows(np.where(FREE, np.nan, PIXELS)), rows(FREE), cosine(STEPS))
    return {name: np.asarray(x) for name, x in made.items()}


# ------------------------------------------------------------------------------------------------- their equations
class Reference:
    """The methods in NumPy, written from their papers: rows of pixels y, the mask m = 1 where they are known.

    Args:
        draw: `(i, k) -> z` [b, n], the k-th noise of step i; that of (-1, 0) is the start's.
    """

    def __init__(self, process, covariance, known, y, draw):
        self.process, self.covariance, self._draw = process, covariance, draw
        self.m, self.y, self.i = known.astype(float), np.where(known, y, 0.0), -1

    def draw(self, k):
        return self._draw(self.i, k)

    def weights(self, t):
        return (1 - t, t) if self.process == FLOW else (np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t))

    def gain(self, t):
        a, s = self.weights(t)
        return a * self.covariance @ np.linalg.inv(a * a * self.covariance + s * s * np.eye(len(self.covariance)))

    def predict(self, x, t):
        a, s = self.weights(t)
        x0 = x @ self.gain(t).T
        return x0, (x - a * x0) / s

    def spread(self, t, s):
        """Of q(x_s | x_t, x0), from the variance of x_t given x_s."""
        (a_t, s_t), (a_s, s_s) = self.weights(t), self.weights(s)
        return np.sqrt(max(s_s**2 * (s_t**2 - (a_t / a_s * s_s) ** 2) / s_t**2, 0))

    def down(self, method, x, t, s):
        (a, sigma), spread = self.weights(s), method.eta * self.spread(t, s)
        x0, eps = self.predict(x, t)
        return a * x0 + np.sqrt(max(sigma**2 - spread**2, 0)) * eps + spread * self.draw(0)

    def replaced(self, x, t, k):
        a, s = self.weights(t)
        return self.m * (a * self.y + s * self.draw(k)) + (1 - self.m) * x

    def start(self, grid):
        z = self.draw(0)
        a, s = self.weights(grid[0])
        return self.m * (a * self.y + s * z) + (1 - self.m) * z

    def moves(self, method, grid):
        """Each step as a function of x."""
        places = len(grid) - 1 - method.path(len(grid) - 1)
        for self.i, (here, then) in enumerate(itertools.pairwise(places)):
            step, t, s, up = getattr(self, type(method).__name__), grid[here], grid[here + 1], grid[then]
            yield lambda x, step=step, t=t, s=s, up=up: step(method, x, t, s, up)

    def run(self, method, grid):
        x = self.start(grid)
        for move in self.moves(method, grid):
            x = move(x)
        return self.m * self.y + (1 - self.m) * x

    def ScoreSDE(self, method, x, t, s, _):
        for i in range(method.corrections):
            score, z = -self.predict(x, t)[1] / self.weights(t)[1], self.draw(2 + 2 * i)
            size = 2 * (method.snr * np.linalg.norm(z, axis=1) / np.linalg.norm(score, axis=1))[:, None] ** 2
            x = self.replaced(x + size * score + np.sqrt(2 * size) * z, t, 3 + 2 * i)
        return self.replaced(self.down(method, x, t, s), s, 1)

    def RePaint(self, method, x, t, s, up):
        x = self.down(method, x, t, s)
        if up > s:
            (a, sigma), (a_up, s_up) = self.weights(s), self.weights(up)
            x = a_up / a * x + np.sqrt(max(s_up**2 - (a_up / a * sigma) ** 2, 0)) * self.draw(1)
        return self.replaced(x, up, 2)

    def DDRM(self, method, x, t, s, _):
        (x0, eps), (a, sigma), z = self.predict(x, t), self.weights(s), self.draw(0)
        hole = a * x0 + sigma * (np.sqrt(1 - method.eta**2) * eps + method.eta * z)
        known = a * (method.eta_b * self.y + (1 - method.eta_b) * x0) + sigma * z
        return self.m * known + (1 - self.m) * hole

    def DDNM(self, method, x, t, s, up):
        (x0, eps), (a, sigma), z = self.predict(x, t), self.weights(up), self.draw(0)
        if up > s:
            return a * x0 + sigma * z
        x0 = self.m * self.y + (1 - self.m) * x0
        return a * x0 + sigma * (np.sqrt(1 - method.eta**2) * eps + method.eta * z)

    def missing(self, x, t):
        return self.m * (self.y - self.predict(x, t)[0])

    def downhill(self, x, t):
        """Minus the gradient of `||m (y - G x)||`, `G^T m (y - G x) / ||m (y - G x)||`; 0 where nothing is known."""
        missing = self.missing(x, t)
        return missing @ self.gain(t) / np.maximum(np.linalg.norm(missing, axis=1, keepdims=True), 1e-30)

    def MCG(self, method, x, t, s, _):
        return self.replaced(self.down(method, x, t, s) + method.step_size * self.downhill(x, t), s, 1)

    def DPS(self, method, x, t, s, _):
        return self.down(method, x, t, s) + method.step_size * self.downhill(x, t)

    def PiGDM(self, method, x, t, s, _):
        scale = method.weight * self.weights(s)[0] * self.weights(t)[0]
        return self.down(method, x, t, s) + scale * self.missing(x, t) @ self.gain(t)


# into how many keys a step splits its own
SPLIT = {"score_sde": 4, "repaint": 3, "mcg": 2}


@pytest.fixture(scope="module")
def noises(keys):
    """The noise of each step by how many draws it has; `noises[count][i + 1][k]`, and that of the start before them."""

    @jax.jit
    def noises(keys):
        def drawn_by(count, i):
            own = keys_lib.fold_in(keys, i)
            each = keys_lib.split(own, count) if count > 1 else [own]
            return [keys_lib.normal(key, (SIZE,)) for key in each]

        return {n: jax.vmap(lambda i, n=n: jnp.stack(drawn_by(n, i)))(jnp.arange(12)) for n in {1, *SPLIT.values()}}

    return {count: np.asarray(noise, np.float64) for count, noise in noises(keys).items()}


@pytest.mark.parametrize("name", STEPWISE)
def test_a_method_is_its_equations(name, made, noises):
    def draw(i, k):
        return noises[SPLIT.get(name, 1) if i >= 0 else 1][i + 1][k]

    grid = np.asarray(cosine(STEPS), np.float64)
    wanted = Reference(PROCESSES[name], COVARIANCE, ~FREE, PIXELS, draw).run(METHODS[name], grid)
    np.testing.assert_allclose(made[name], wanted, rtol=1e-3, atol=2e-4)


def test_the_hole_of_rad_moves_by_ancestral_steps(made):
    np.testing.assert_allclose(made["rad"], made["asyncpatch"], atol=1e-6)
    assert np.abs(made["rad"] - made["supervised"])[FREE].max() > 0.01


def test_deqir_is_ddnm_without_noise(made):
    # the system is triangular: as many plain iterations as there are steps solve it
    np.testing.assert_allclose(made["deqir"], made["ddnm, without noise"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("there", [1, 2, 3])
def test_anderson_mixes_to_the_least_residual(there):
    rng, ridge = np.random.default_rng(there), 0.3
    states, answers = (rng.normal(size=(3, 2, 2, 1, 3, 1)).astype(np.float32) for _ in range(2))  # [m, s, b, h, w, c]
    tried = deqir._Tried(*map(jax.device_put, (states, answers)))
    mixed = np.asarray(jax.jit(DeqIR(9, 3, ridge)._mixed)(tried, jnp.int32(there)))
    for image in range(2):
        x, f = (a[:there, :, image].reshape(there, -1).astype(np.float64) for a in (states, answers))
        # w = (1 - sum v, v), of which |r^T w|^2 + ridge |w|^2 is least
        weights = np.concatenate([-np.ones((1, there - 1)), np.eye(there - 1)])
        stacked = np.concatenate([(f - x).T, ridge**0.5 * np.eye(there)])
        w = np.eye(there)[0] + weights @ np.linalg.lstsq(stacked @ weights, -stacked[:, 0])[0]
        np.testing.assert_allclose(mixed[:, image].reshape(-1), w @ f, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what all of them do
def test_known_pixels_are_kept_and_images_hear_of_nothing_but_themselves(keys, made):
    task = base.Task.of(lambda x, times: None, FLOW, keys, rows(np.where(FREE, np.nan, PIXELS)), rows(FREE), linear(2))
    assert np.array_equal(task.known[:, 0, :, 0], np.float32(np.where(FREE, 0, PIXELS)))
    # the first image as it was, between others with other masks; what lay under the masks was NaN
    order = np.array([0, 2, 1])
    pixels = np.concatenate([PIXELS[:1], -PIXELS[1:]])
    again = everything(keys[order], rows(pixels), rows(FREE[order]), cosine(STEPS))
    for name, x in made.items():
        assert np.isfinite(x).all(), name
        assert np.array_equal(x[~FREE], np.float32(PIXELS)[~FREE]), name
        assert np.array_equal(x[0], np.asarray(again[name])[0]), name
        assert not np.array_equal(x[1], np.asarray(again[name])[2]), name


def count(jaxpr, primitive):
    """How often a program runs a primitive."""
    found = 0
    for eqn in jaxpr.eqns:
        inner = sum(count(sub, primitive) for sub in jax.core.jaxprs_in_params(eqn.params))
        found += (eqn.primitive is primitive) + inner * eqn.params.get("length", 1)
    return found


@pytest.mark.parametrize("name", [*METHODS, "heun"])
def test_calls_are_what_a_method_says(name):
    # a network that is known by a tangent, and its derivative by an arc tangent
    network = jax.custom_vjp(jnp.tan)
    network.defvjp(lambda x: (jnp.tan(x), None), lambda _, g: (jnp.arctan(g),))

    def denoise(x, times):
        return Prediction(network(x), x, {})

    method = METHODS[name] if name in METHODS else AsyncPatch(Heun(FLOW))
    assert isinstance(method, Inpainter)
    x, mask = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32), jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    program = jax.make_jaxpr(lambda x, mask: method(denoise, FLOW, jax.random.key(0), x, mask, linear(STEPS)))(x, mask)
    images = STEPS if name.startswith("deqir") else 1  # all states of an image at once
    assert count(program.jaxpr, jax.lax.tan_p) * images == method.calls(STEPS)
    assert count(program.jaxpr, jax.lax.atan_p) == method.gradients(STEPS)


def test_cost_of_the_published_settings():
    assert RePaint().calls(250) == repaint_cost(250)[0] == 2410
    assert [DDRM().calls(20), DDNM().calls(100), DeqIR().calls(25)] == [20, 100, 375]
    assert ScoreSDE(corrections=1).calls(1000) == 2000
    assert DDNM(travel=10, repeat=2).calls(100) == repaint_cost(100, 10, 2)[0] == 190
    assert AsyncPatch(ZSampling(FLOW, lambda x, times: None, 20)).calls(50) == 90
    assert [method().gradients(1000) for method in (MCG, DPS, PiGDM, DDNM, DeqIR)] == [1000, 1000, 1000, 0, 0]


def test_the_shared_gradient_is_that_of_the_distance():
    def denoise(x, times):
        x0 = jnp.tanh(x + 0.5 * jnp.roll(x, 1, 2) - 0.25 * jnp.roll(x, 1, 1))
        return Prediction(x0, x - x0, {})

    x, known = (np.asarray(drawn.normal(2, 2, 3, 2, seed=seed)) for seed in (0, 1))
    free = np.broadcast_to(np.arange(3).reshape(1, 1, 3, 1) == 1, (2, 2, 3, 1))
    times = Times(*[np.full((2, 1, 1, 1), 0.6, np.float32)] * 2)

    @jax.jit
    def both(x, known, free):
        def distances(x):
            missing = jnp.where(free, 0.0, known - denoise(x, times).x0)
            return jnp.sqrt((missing**2).sum((1, 2, 3)))

        at = Step(denoise, FLOW, None, jnp.where(free, 0.0, known), free, None, x, times, times, times)
        steps = 1e-5 * jnp.broadcast_to(jnp.eye(12).reshape(12, 1, 2, 3, 2), (12, *x.shape))
        slopes = jax.vmap(lambda step: (distances(x + step) - distances(x - step)) / 2e-5)(steps)
        return distance_gradient(at), slopes

    with jax.enable_x64():
        (pred, gradient), slopes = both(*(jnp.asarray(a, jnp.float64) for a in (x, known)), free)
        np.testing.assert_allclose(np.asarray(gradient).reshape(2, 12).T, slopes, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(pred.eps, x - pred.x0)


# --------------------------------------------------------------------------------------- which of them are exact
def law_of(method, steps):
    """The exact law of what a method with affine steps makes of the hole: mean and covariance, moved step by step."""
    n, free = gaussian.SIZE, ~np.isin(np.arange(gaussian.SIZE), gaussian.KNOWN)
    # a row without noise, one for each pixel that x is moved by, and one for each number of a step's three draws
    rows, one = 1 + 4 * n, np.eye(n)
    pixels, grid = np.zeros((rows, n)), np.linspace(1, 0, steps + 1)
    pixels[:, ~free] = gaussian.VALUES

    def draw(i, k):
        z = np.zeros((rows, n))
        z[1 + n * (k + 1) : 1 + n * (k + 2)] = one
        return z

    reference = Reference(FLOW, gaussian.COVARIANCE, np.broadcast_to(~free, pixels.shape), pixels, draw)
    x = reference.start(grid)
    mean, moved = x[0], x[1 + n : 1 + 2 * n] - x[0]
    covariance = moved.T @ moved
    for move in reference.moves(method, grid):
        x = move(mean + np.concatenate([np.zeros((1, n)), one, np.zeros((3 * n, n))]))
        mean, slope, fresh = x[0], x[1 : 1 + n] - x[0], x[1 + n :] - x[0]
        covariance = slope.T @ covariance @ slope + fresh.T @ fresh
    return Law(mean[free], covariance[np.ix_(free, free)])


TRUTH = posterior(gaussian.COVARIANCE, gaussian.KNOWN, np.asarray(gaussian.VALUES))


def test_the_true_law_is_the_textbooks():
    # the covariance of some pixels given the others is the inverse of their part of the precision matrix; and in AR(1),
    # given its last known neighbour, a pixel has forgotten the others
    np.testing.assert_allclose(np.linalg.inv(TRUTH.covariance), np.linalg.inv(gaussian.COVARIANCE)[3:, 3:], atol=1e-9)
    np.testing.assert_allclose(TRUTH.mean, gaussian.VALUES[-1] * 0.9 ** np.arange(1, 6))
    assert score(TRUTH, TRUTH) == pytest.approx((0, 1, 0), abs=1e-9)
    wider = Law(TRUTH.mean + np.linalg.cholesky(TRUTH.covariance)[:, 0], 4 * TRUTH.covariance)
    assert score(wider, TRUTH) == pytest.approx((0.2**0.5, 2, 6))  # one of five directions is off by one


# squared distances that another implementation found, of 6,000 samples each
BIASED = {
    (ScoreSDE(), 100): 1.86,
    (ScoreSDE(eta=0.0), 100): 2.37,
    (RePaint(1, 10), 100): 0.37,
    (DDRM(), 20): 1.88,
    (DDRM(), 100): 0.85,
    (DDNM(), 100): 0.47,
    (DDNM(eta=0.0), 100): 0.41,
    (DDNM(eta=1.0), 100): 0.92,
}


@pytest.mark.parametrize(("method", "steps"), BIASED)
def test_a_method_without_the_time_field_is_biased(method, steps):
    assert score(law_of(method, steps), TRUTH).distance == pytest.approx(BIASED[method, steps], rel=0.06)


def test_more_steps_cure_ddnm_without_noise_alone():
    def found(method, steps):
        return score(law_of(method, steps), TRUTH)

    assert found(ScoreSDE(), 200).distance > 0.95 * found(ScoreSDE(), 50).distance
    assert found(DDNM(eta=0.0), 200).distance < 0.5 * found(DDNM(eta=0.0), 50).distance
    few, many = found(DDNM(), 50), found(DDNM(), 200)
    assert many.mean < 0.6 * few.mean
    assert many.spread < 0.9


def test_the_time_field_is_exact():
    free = ~np.isin(np.arange(gaussian.SIZE), gaussian.KNOWN)
    known = np.broadcast_to(np.where(free, 0, [*gaussian.VALUES, *[0] * 5]), (4000, 8))
    spreads = []
    for steps in (10, 80):
        x = gaussian.run(
            *(AsyncPatch(DDIM(FLOW, 1.0)), FLOW, gaussian.COVARIANCE, jax.random.key(0)),
            *(rows(known), rows(free[None]), linear(steps)),
        )
        x = np.asarray(x, np.float64)[:, 0, free, 0]
        found = score(Law(x.mean(0), np.cov(x.T)), TRUTH)
        assert found.mean < 0.04  # five standard deviations of the mean of so many
        spreads.append(found.spread)
    # what is left is the size of the steps: an eighth of it leaves an eighth, and less than that
    assert 1 - spreads[1] < 0.2 * (1 - spreads[0])
    assert spreads[1] > 0.94
