"""The timestep prediction module and its Beta distribution, against SciPy and by what it may depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

from asyncpatch_jax import beta, keys, sharding
from asyncpatch_jax.beta import Beta
from asyncpatch_jax.models import TPM
from asyncpatch_jax.models.dit import positions
from asyncpatch_jax.models.times import sinusoid
from asyncpatch_jax.models.tpm import Observation, observe
from asyncpatch_jax.types import Condition, Prediction
from tests.drawn import params_like

SMALL = {"patch": 2, "width": 16, "depth": 1, "heads": 2}
BELIEF = Beta(np.float32([2.0, 1.5, 1.001, 40.0, 300.0]), np.float32([2.0, 7.0, 3.0, 25.0, 1.2]))
REFERENCE = scipy.stats.beta(*map(np.float64, BELIEF))
KEY = jax.random.key(0)
log_prob, mode, sample = map(jax.jit, (beta.log_prob, beta.mode, beta.sample))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def observation(size=(4, 8), batch=2, scale=1.0, told=(2, 4)):
    """The second of four steps."""
    x, x0, eps = scale * normal(3, batch, *size, 3)
    t = np.random.default_rng(9).uniform(size=(batch, *told, 1)).astype(np.float32)
    return Observation(x, x0, eps - x0, t, np.full(batch, 0.25, np.float32))


def randomised(module, seen, cond=None):
    """Parameters that are random everywhere, in the last layer too."""
    return params_like(jax.eval_shape(module.init, KEY, seen, cond)["params"])


@functools.cache
def applied(cell):
    """A small module of random parameters, compiled: `observation -> alpha`."""
    module = TPM(**SMALL, cell=cell)
    params = randomised(module, observation())
    apply = jax.jit(lambda params, seen: module.apply({"params": params}, seen).alpha)
    return lambda seen: np.asarray(apply(params, seen))


def changed(array, index, change):
    array = array.copy()
    array[index] = change(array[index])
    return array


def test_density_and_entropy_are_scipys():
    x = np.float32([1e-4, 0.3, 0.5, 0.62, 1 - 1e-4])
    np.testing.assert_allclose(log_prob(BELIEF, x), REFERENCE.logpdf(np.float64(x)), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(jax.jit(beta.entropy)(BELIEF), REFERENCE.entropy(), rtol=2e-4, atol=2e-4)


def test_the_mode_is_where_the_density_is_greatest():
    x = np.linspace(1e-4, 1 - 1e-4, 99_999)
    best = [x[scipy.stats.beta.logpdf(x, a, b).argmax()] for a, b in zip(*BELIEF, strict=True)]
    np.testing.assert_allclose(mode(BELIEF), best, atol=2e-4)
    assert (np.asarray(mode(Beta(BELIEF.alpha, BELIEF.alpha))) == 0.5).all()


def test_divergence_is_its_integral():
    p, q = Beta(np.float32([2.5, 2.5]), np.float32([4.0, 4.0])), Beta(np.float32([2.0, 2.5]), np.float32([1.7, 4.0]))
    expected = scipy.stats.beta(2.5, 4.0).expect(
        lambda x: scipy.stats.beta.logpdf(x, 2.5, 4.0) - scipy.stats.beta.logpdf(x, 2.0, 1.7)
    )
    found = np.asarray(jax.jit(beta.divergence)(p, q))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert found[1] == 0  # of a distribution from itself


def test_samples_are_draws_of_an_images_own_key():
    def belief(a, b):
        return Beta(np.full((2000, 1), a, np.float32), np.full((2000, 1), b, np.float32))

    own = keys.per_image(KEY, 2000)
    draws = np.asarray(sample(own, belief(3.0, 1.5)))
    assert scipy.stats.kstest(draws[:, 0], scipy.stats.beta(3.0, 1.5).cdf).pvalue > 0.01
    np.testing.assert_array_equal(np.asarray(sample(own[::-1], belief(3.0, 1.5)))[::-1], draws)
    # as near to the bound as lets the log-density stay finite
    narrow = belief(1e6, 1.001)
    extreme = np.asarray(sample(own, narrow))
    assert extreme.max() <= 1 - beta.EDGE
    assert np.isfinite(log_prob(narrow, extreme)).all()


def test_phi_is_above_one_and_twice_differentiable():
    x = np.float32([-1e4, -50.0, -8.0, -1.0, 0.0, 1e-3, 3.0, 20.0])
    phi, modes = map(np.asarray, jax.jit(lambda x: (f := beta.phi(x), beta.mode(Beta(f, jnp.full_like(f, f[0])))))(x))
    assert (phi > 1).all()
    assert (np.diff(phi) >= 0).all()
    assert np.isfinite(modes).all()
    with jax.enable_x64(True):
        x, step = np.array([-3.0, -1e-3, 1e-3, 2.0]), 1e-5
        points = np.concatenate([[-2e-6, 0.0, 2e-6], x, x - step, x + step])
        functions = [beta.phi, jax.grad(beta.phi), jax.grad(jax.grad(beta.phi))]
        values = np.stack(jax.jit(lambda x: [jax.vmap(function)(x) for function in functions])(points))
    np.testing.assert_allclose(values[:, :3], np.array([[2.0], [1.0], [1.0]]).repeat(3, 1), atol=5e-6)
    numeric = (values[:, 11:] - values[:, 7:11]) / (2 * step)
    np.testing.assert_allclose(values[1:, 3:7], numeric[:-1], rtol=1e-6)


def test_a_new_module_deviates_nowhere():
    spatial = TPM(**SMALL, cell=1)

    @jax.jit
    def answer(key, seen):
        belief = spatial.apply(spatial.init(key, seen), seen)
        return belief, beta.mode(belief)

    belief, modes = jax.tree.map(np.asarray, answer(KEY, observation()))
    assert belief.alpha.shape == (2, 2, 4)
    assert (belief.alpha == 2).all()
    assert (belief.beta == 2).all()
    assert (modes == 0.5).all()


@pytest.mark.parametrize("cell", [None, 1, 2])
def test_everything_that_it_is_shown_matters(cell):
    seen, alpha = observation(), applied(cell)
    before = alpha(seen)
    assert before.shape == {None: (2, 1, 1), 1: (2, 2, 4), 2: (2, 1, 2)}[cell]
    for name in Observation._fields:
        after = alpha(seen._replace(**{name: changed(getattr(seen, name), 0, lambda own: 0.5 * own)}))
        assert (np.abs(after[0] - before[0]) > 1e-5).any(), name
        np.testing.assert_allclose(after[1], before[1], rtol=1e-6)
    # where a cell's own time is told matters, not only which times there are
    turned = alpha(seen._replace(told=seen.told[:, ::-1]))
    assert (np.abs(turned - before) > 1e-5).any()


sinusoids = jax.jit(sinusoid, static_argnums=1)
places_of = jax.jit(positions, static_argnums=(0, 1, 2))


def reference(params, x, x0, eps, told, progress, tokens, mask, label, cell):
    """The module in PyTorch, float64: what its parameters mean."""
    p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), dtype=torch.float64), params)
    x, x0, eps, told, tokens = (torch.tensor(np.asarray(a), dtype=torch.float64) for a in (x, x0, eps, told, tokens))

    def dense(name, value, of=p):
        kernel = of[name]["kernel"]
        return value @ kernel.reshape(value.shape[-1], -1) + of[name]["bias"].reshape(-1)

    def waves(t):
        return torch.tensor(np.asarray(sinusoids(t.numpy().astype(np.float32), 64)), dtype=torch.float64)

    def patched(a):  # [b, h, w, c] -> [b, h/2, w/2, 2 2 c]
        b, h, w, c = a.shape
        return a.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, -1)

    b, rows, columns = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    places = torch.tensor(np.asarray(places_of(rows, columns, 16)), dtype=torch.float64)
    patches = dense("patches", patched(torch.cat([x, eps - x0, x0], -1))) + places + dense("cells", waves(told[..., 0]))
    noisy = told.reshape(b, -1)
    mean = torch.stack([row[row > 0].mean() for row in noisy])
    tokens = torch.cat([p["condition"]["null_token"].expand(b, 1, -1), dense("tokens", tokens, p["condition"])], 1)
    sequence = [
        p["globals"].expand(b, -1, -1),
        dense("told", waves(mean))[:, None],
        dense("progress", waves(torch.full((b,), progress, dtype=torch.float64)))[:, None],
        p["condition"]["label"]["embedding"][torch.tensor(np.asarray(label))][:, None],
        tokens,
        patches.reshape(b, rows * columns, -1),
    ]
    # learned ones, two times, a label, and the text's first token, which is no word
    before, after = p["globals"].shape[1] + 4, rows * columns
    counts = torch.cat([torch.ones(b, before), torch.tensor(np.asarray(mask)), torch.ones(b, after)], 1).bool()
    h = torch.cat(sequence, 1)
    for layer in (p["layer_0"], p["layer_1"]):
        q, k, v = dense("qkv", h, layer).reshape(b, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, counts[:, None, None])
        h = h + dense("out", seen.transpose(1, 2).reshape(b, -1, 16), layer)
        h = h + dense("mlp_out", gelu(dense("mlp_in", h, layer), approximate="tanh"), layer)
    if cell is None:
        summary = h[:, : p["globals"].shape[1]].reshape(b, 1, 1, -1)
    else:
        summary = h[:, -after:].reshape(b, rows // cell, cell, columns // cell, cell, -1).mean((2, 4))
    out = dense("belief", gelu(dense("head", summary), approximate="tanh"))
    return torch.where(out > 0, 2 + out + out**2 / 2, 1 + out.clamp(max=0).exp()).numpy()


@pytest.mark.parametrize("cell", [None, 2])
def test_it_is_its_reference(cell):
    x, x0, eps = normal(3, 2, 4, 8, 3)
    told = np.random.default_rng(1).uniform(size=(2, 2, 4, 1)).astype(np.float32)
    told[0, 0, 1:3] = 0.0  # two cells are done
    tokens, mask = normal(2, 5, 6, seed=2), np.array([[True] * 5, [True] * 2 + [False] * 3])
    label = np.array([2, 0])
    module = TPM(**{**SMALL, "depth": 2}, cell=cell, num_classes=3, context_dim=6)
    cond = Condition(tokens=tokens, mask=mask, label=label)
    params = randomised(module, observation(), cond)

    @jax.jit
    def answer(params, x, x0, eps, told, cond):
        return module.apply({"params": params}, observe(x, Prediction(x0, eps, {}), told, 3, 10), cond)

    belief = answer(params, x, x0, eps, told, cond)
    expected = reference(params, x, x0, eps, told, 0.3, tokens, mask, label, cell)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(np.stack(belief, -1), expected, rtol=2e-5)


def test_a_spatial_module_knows_where_it_looks():
    seen, alpha = observation(), applied(1)
    after = alpha(seen._replace(x=changed(seen.x, np.s_[:, :2, 6:], lambda own: own + 1.0)))
    change = np.abs(after - alpha(seen))[0]
    assert change.argmax() == 3
    assert change[0, 3] > 3 * np.median(change)


def test_text_and_labels():
    seen, tokens = observation(), normal(2, 5, 6, seed=3)
    mask, label = np.array([[True] * 5, [True, True, False, False, False]]), np.array([0, 1])
    module = TPM(**SMALL, context_dim=6, num_classes=3)
    params = randomised(module, seen, Condition(tokens=tokens))

    def answer(params, seen, cond):
        return module.apply({"params": params}, seen, cond).alpha.ravel()

    apply = jax.jit(answer)

    def alpha(**cond):
        return np.asarray(apply(params, seen, Condition(**{"tokens": tokens, "mask": mask, "label": label, **cond})))

    before = alpha()
    padded, second = (changed(tokens, index, lambda own: 0 * own + 7.0) for index in (np.s_[1, 2:], (1, 1)))
    np.testing.assert_allclose(alpha(tokens=padded), before, rtol=1e-6)
    assert abs(alpha(tokens=second)[1] - before[1]) > 1e-4
    assert abs(alpha(label=np.array([0, 2]))[1] - before[1]) > 1e-4
    assert abs(np.asarray(apply(params, seen, Condition(label=label))) - before).min() > 1e-4
    # a condition that the networks take more of than the module does
    more = Condition(tokens=jnp.asarray(tokens, jnp.bfloat16), pooled=np.ones((2, 4), np.float32))
    assert jax.eval_shape(answer, params, seen, more).dtype == jnp.float32
    with pytest.raises(ValueError, match="context_dim = 0"):
        jax.eval_shape(TPM(**SMALL).init, KEY, seen, Condition(tokens=tokens))


def test_no_norm_and_yet_stable():
    """At its default width and depth, on inputs of scale 10; the size of an image is no part of the parameters."""
    seen, module = observation((16, 16), scale=10.0), TPM()
    shapes, wide = (
        jax.eval_shape(module.init, KEY, one)["params"] for one in (seen, observation((8, 24), told=(1, 1)))
    )
    assert not [path for path, _ in jax.tree.leaves_with_path(shapes) if "norm" in str(path).lower()]
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, shapes)

    def loss(params, seen):
        belief = module.apply({"params": params}, seen)
        return beta.log_prob(belief, jnp.full(belief.alpha.shape, 0.3)).mean(), belief

    @jax.jit
    def learned(key, seen, kernel):
        params = module.init(key, seen)["params"]
        params["belief"]["kernel"] = kernel
        return jax.value_and_grad(loss, has_aux=True)(params, seen)

    (value, belief), grads = learned(KEY, seen, normal(*shapes["belief"]["kernel"].shape, seed=5) / 16)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # inputs ten times as large as they should be do not send it to the bounds
    assert max(map(np.max, belief)) < 1000


def test_axes_are_named():
    cond = Condition(tokens=normal(2, 3, 4), label=np.array([0, 1]))
    module = TPM(**SMALL, context_dim=4, num_classes=2)
    params = randomised(module, observation(), cond)
    names = module.logical_axes(params)
    assert names["layer_0"]["qkv"]["kernel"] == ("channels", None, "heads", "head_dim")
    sharding.parameters(sharding.make_mesh(devices=jax.devices()[:1]), params, names)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 2, got 3x4"):
        jax.eval_shape(TPM(**SMALL).init, KEY, observation((3, 4), told=(1, 1)))
    with pytest.raises(ValueError, match="multiples of 4, got 6x8"):
        jax.eval_shape(TPM(**SMALL, cell=2).init, KEY, observation((6, 8), told=(1, 1)))
    with pytest.raises(ValueError, match="expected a width"):
        TPM(width=10)
    with pytest.raises(ValueError, match="expected cell >= 1"):
        TPM(cell=0)
