"""The timestep prediction module and its Beta distribution, against SciPy and by what it may depend on."""

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

SMALL = {"patch": 2, "width": 16, "depth": 1, "heads": 2}
BELIEF = Beta(jnp.asarray([2.0, 1.5, 1.001, 40.0, 300.0]), jnp.asarray([2.0, 7.0, 3.0, 25.0, 1.2]))
REFERENCE = scipy.stats.beta(np.asarray(BELIEF.alpha, np.float64), np.asarray(BELIEF.beta, np.float64))


def observation(size=(4, 8), batch=2, scale=1.0, told=(2, 4), seed=0):
    x, x0, eps = (scale * jax.random.normal(k, (batch, *size, 3)) for k in jax.random.split(jax.random.key(seed), 3))
    t = jax.random.uniform(jax.random.key(9), (batch, *told, 1))
    return observe(x, Prediction(x0, eps, {}), t, 1, 4)


def built(seen, cond=None, **settings):
    """A small module with random parameters, its last layer too."""
    module = TPM(**SMALL, **settings)
    return module, randomised(module, seen, cond)


def randomised(module, seen, cond=None):
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = leaf.size / leaf.shape[-1] if leaf.ndim > 1 else 25
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), seen, cond)["params"])


def test_density_and_entropy_are_scipys():
    x = jnp.asarray([1e-4, 0.3, 0.5, 0.62, 1 - 1e-4])
    np.testing.assert_allclose(
        beta.log_prob(BELIEF, x), REFERENCE.logpdf(np.asarray(x, np.float64)), rtol=2e-5, atol=2e-4
    )
    np.testing.assert_allclose(beta.entropy(BELIEF), REFERENCE.entropy(), rtol=2e-4, atol=2e-4)


def test_the_mode_is_where_the_density_is_greatest():
    x = np.linspace(1e-4, 1 - 1e-4, 99_999)
    best = [x[scipy.stats.beta.logpdf(x, a, b).argmax()] for a, b in zip(*map(np.asarray, BELIEF), strict=True)]
    np.testing.assert_allclose(beta.mode(BELIEF), best, atol=2e-4)
    assert beta.mode(Beta(jnp.float32(3), jnp.float32(3))) == 0.5


def test_divergence_is_its_integral():
    p, q = Beta(jnp.float32(2.5), jnp.float32(4.0)), Beta(jnp.float32(2.0), jnp.float32(1.7))
    expected = scipy.stats.beta(2.5, 4.0).expect(
        lambda x: scipy.stats.beta.logpdf(x, 2.5, 4.0) - scipy.stats.beta.logpdf(x, 2.0, 1.7)
    )
    np.testing.assert_allclose(beta.divergence(p, q), expected, rtol=1e-5)
    assert beta.divergence(p, p) == 0


def test_samples_are_draws_of_an_images_own_key():
    belief = Beta(jnp.full((2000, 1), 3.0), jnp.full((2000, 1), 1.5))
    draws = beta.sample(keys.per_image(jax.random.key(0), 2000), belief)[:, 0]
    assert scipy.stats.kstest(np.asarray(draws), scipy.stats.beta(3.0, 1.5).cdf).pvalue > 0.01
    first = beta.sample(keys.per_image(jax.random.key(0), 2000)[::-1], belief)[:, 0]
    assert (first[::-1] == draws).all()
    # as near to the bound as lets the log-density stay finite
    narrow = Beta(jnp.full((2000, 1), 1e6), jnp.full((2000, 1), 1.001))
    extreme = beta.sample(keys.per_image(jax.random.key(0), 2000), narrow)
    assert extreme.max() <= 1 - beta.EDGE
    assert jnp.isfinite(beta.log_prob(narrow, extreme)).all()


def test_phi_is_above_one_and_twice_differentiable():
    x = jnp.asarray([-1e4, -50.0, -8.0, -1.0, 0.0, 1e-3, 3.0, 20.0])
    assert (beta.phi(x) > 1).all()
    assert (jnp.diff(beta.phi(x)) >= 0).all()
    assert jnp.isfinite(beta.mode(Beta(beta.phi(x), beta.phi(x[0]) * jnp.ones_like(x)))).all()
    with jax.enable_x64(True):
        x, step = jnp.asarray([-3.0, -1e-3, 1e-3, 2.0]), 1e-5
        points = jnp.concatenate([jnp.asarray([-2e-6, 0.0, 2e-6]), x, x - step, x + step])
        functions = [beta.phi, jax.grad(beta.phi), jax.grad(jax.grad(beta.phi))]
        values = np.stack(jax.jit(lambda x: [jax.vmap(function)(x) for function in functions])(points))
    np.testing.assert_allclose(values[:, :3], np.array([[2.0], [1.0], [1.0]]).repeat(3, 1), atol=5e-6)
    numeric = (values[:, 11:] - values[:, 7:11]) / (2 * step)
    np.testing.assert_allclose(values[1:, 3:7], numeric[:-1], rtol=1e-6)


def test_a_new_module_deviates_nowhere():
    seen = observation()
    spatial = TPM(**SMALL, cell=1)
    params = jax.jit(spatial.init)(jax.random.key(0), seen)["params"]
    belief = jax.jit(spatial.apply)({"params": params}, seen)
    assert belief.alpha.shape == (2, 2, 4)
    assert (belief.alpha == 2).all()
    assert (belief.beta == 2).all()
    assert (beta.mode(belief) == 0.5).all()


@pytest.mark.parametrize("cell", [None, 1, 2])
def test_everything_that_it_is_shown_matters(cell):
    seen = observation()
    module, params = built(seen, cell=cell)
    apply = jax.jit(module.apply)
    before = apply({"params": params}, seen)
    assert before.alpha.shape == {None: (2, 1, 1), 1: (2, 2, 4), 2: (2, 1, 2)}[cell]
    for name in Observation._fields:
        other = seen._replace(**{name: getattr(seen, name).at[0].multiply(0.5)})
        after = apply({"params": params}, other)
        assert (jnp.abs(after.alpha[0] - before.alpha[0]) > 1e-5).any(), name
        np.testing.assert_allclose(after.alpha[1], before.alpha[1], rtol=1e-6)
    # where a cell's own time is told matters, not only which times there are
    turned = apply({"params": params}, seen._replace(told=seen.told[:, ::-1]))
    assert (jnp.abs(turned.alpha - before.alpha) > 1e-5).any()


def reference(params, x, x0, eps, told, progress, tokens, mask, label, cell):
    """The module in PyTorch, float64: what its parameters mean."""
    p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), dtype=torch.float64), params)
    x, x0, eps, told, tokens = (torch.tensor(np.asarray(a), dtype=torch.float64) for a in (x, x0, eps, told, tokens))

    def dense(name, value, of=p):
        kernel = of[name]["kernel"]
        return value @ kernel.reshape(value.shape[-1], -1) + of[name]["bias"].reshape(-1)

    def waves(t):
        return torch.tensor(np.asarray(sinusoid(jnp.asarray(t.numpy(), jnp.float32), 64)), dtype=torch.float64)

    def patched(a):  # [b, h, w, c] -> [b, h/2, w/2, 2 2 c]
        b, h, w, c = a.shape
        return a.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, -1)

    b, rows, columns = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    places = torch.tensor(np.asarray(positions(rows, columns, 16)), dtype=torch.float64)
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
    x, x0, eps = jax.random.normal(jax.random.key(0), (3, 2, 4, 8, 3))
    told = jax.random.uniform(jax.random.key(1), (2, 2, 4, 1)).at[0, 0, 1:3].set(0.0)  # two cells are done
    tokens, mask = jax.random.normal(jax.random.key(2), (2, 5, 6)), jnp.asarray([[True] * 5, [True] * 2 + [False] * 3])
    label = jnp.asarray([2, 0])
    module = TPM(**{**SMALL, "depth": 2}, cell=cell, num_classes=3, context_dim=6)
    seen, cond = observe(x, Prediction(x0, eps, {}), told, 3, 10), Condition(tokens=tokens, mask=mask, label=label)
    params = randomised(module, seen, cond)
    belief = jax.jit(module.apply)({"params": params}, seen, cond)
    expected = reference(params, x, x0, eps, told, 0.3, tokens, mask, label, cell)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(np.stack(belief, -1), expected, rtol=2e-5)


def test_a_spatial_module_knows_where_it_looks():
    seen = observation()
    module, params = built(seen, cell=1)
    apply = jax.jit(module.apply)
    before = apply({"params": params}, seen).alpha
    after = apply({"params": params}, seen._replace(x=seen.x.at[:, :2, 6:].add(1.0))).alpha
    change = jnp.abs(after - before)[0]
    assert change.argmax() == 3
    assert change[0, 3] > 3 * jnp.median(change)


def test_text_and_labels():
    seen = observation()
    tokens = jax.random.normal(jax.random.key(3), (2, 5, 6))
    mask = jnp.asarray([[True] * 5, [True, True, False, False, False]])
    module, params = built(seen, Condition(tokens=tokens), context_dim=6, num_classes=3)
    apply = jax.jit(module.apply)

    def alpha(**cond):
        return apply({"params": params}, seen, Condition(**cond)).alpha.ravel()

    masked = alpha(tokens=tokens, mask=mask)
    np.testing.assert_allclose(alpha(tokens=tokens.at[1, 2:].set(7.0), mask=mask), masked, rtol=1e-6)
    assert abs(alpha(tokens=tokens.at[1, 1].set(7.0), mask=mask)[1] - masked[1]) > 1e-4
    assert abs(alpha(label=jnp.asarray([0, 1]))[1] - alpha(label=jnp.asarray([0, 2]))[1]) > 1e-4
    # a condition that the networks take more of than the module does
    assert alpha(tokens=tokens.astype(jnp.bfloat16), pooled=jnp.ones((2, 4))).dtype == jnp.float32
    with pytest.raises(ValueError, match="context_dim = 0"):
        TPM(**SMALL).init(jax.random.key(0), seen, Condition(tokens=tokens))


def test_no_norm_and_yet_stable():
    """At its default width and depth, on inputs of scale 10; the size of an image is no part of the parameters."""
    seen, module = observation((16, 16), scale=10.0), TPM()
    params = jax.jit(module.init)(jax.random.key(0), seen)["params"]
    assert not [path for path, _ in jax.tree.leaves_with_path(params) if "norm" in str(path).lower()]
    wide = jax.eval_shape(module.init, jax.random.key(0), observation((8, 24), told=(1, 1)))["params"]
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, params)
    params["belief"]["kernel"] = jax.random.normal(jax.random.key(5), params["belief"]["kernel"].shape) / 16

    @jax.jit
    def loss(params, seen):
        belief = module.apply({"params": params}, seen)
        return beta.log_prob(belief, jnp.full(belief.alpha.shape, 0.3)).mean(), belief

    (value, belief), grads = jax.value_and_grad(loss, has_aux=True)(params, seen)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # inputs ten times as large as they should be do not send it to the bounds
    assert max(map(jnp.max, belief)) < 1000


def test_axes_are_named():
    seen = observation()
    cond = Condition(tokens=jnp.ones((2, 3, 4)), label=jnp.asarray([0, 1]))
    module, params = built(seen, cond, context_dim=4, num_classes=2)
    names = module.logical_axes(params)
    assert names["layer_0"]["qkv"]["kernel"] == ("channels", None, "heads", "head_dim")
    sharding.parameters(sharding.make_mesh(devices=jax.devices()[:1]), params, names)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 2, got 3x4"):
        TPM(**SMALL).init(jax.random.key(0), observation((3, 4), told=(1, 1)))
    with pytest.raises(ValueError, match="multiples of 4, got 6x8"):
        TPM(**SMALL, cell=2).init(jax.random.key(0), observation((6, 8), told=(1, 1)))
    with pytest.raises(ValueError, match="expected a width"):
        TPM(width=10)
    with pytest.raises(ValueError, match="expected cell >= 1"):
        TPM(cell=0)
