"""The training step against optax by hand, its invariants, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyncpatch_jax.training.step import adam, create, ema_decay, learning_rate, train_step

KEY = jax.random.key(7)


def loss_fn(params, keys, batch):
    """Regression with noise from each image's own key, and a head that learns on top of it."""
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    out = (batch["x"] + 0.1 * noise) @ params["body"]["w"] + params["body"]["b"][None]
    error = ((out - batch["y"]) ** 2).mean(-1)
    head = (params["log_variance"]["s"] - jax.lax.stop_gradient(error)) ** 2
    return (error + head).mean() * batch["scale"].mean(), {"error": error.mean()}


def fresh_params():
    rng = np.random.default_rng(0)
    return {
        "body": {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.zeros(2)},
        "log_variance": {"s": jnp.zeros(())},
    }


def make_batch(seed, scale=1.0, size=8):
    rng = np.random.default_rng(seed)
    arrays = {"x": rng.normal(size=(size, 3)), "y": rng.normal(size=(size, 2)), "scale": np.full(size, scale)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


PLAIN = adam(1e-2, clip=0.0)


@functools.cache
def jitted(optimizer=PLAIN, **settings):
    return jax.jit(
        functools.partial(train_step, loss_fn=loss_fn, optimizer=optimizer, ema=0.9, **settings), donate_argnums=0
    )


STEP = jitted()


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def host(tree):
    return jax.tree.map(np.array, tree)


def test_a_step_is_optax_by_hand_with_the_documented_keys():
    state, params, reference = create(fresh_params(), PLAIN), fresh_params(), optax.adam(1e-2, 0.9, 0.99)
    opt_state, average = reference.init(params), params
    for i in range(4):
        key = jax.random.fold_in(KEY, i)
        keys = jax.vmap(lambda j, key=key: jax.random.fold_in(key, j))(jnp.arange(8))
        grads = jax.grad(lambda p, keys=keys, i=i: loss_fn(p, keys, make_batch(i))[0])(params)
        updates, opt_state = reference.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        decay = min(0.9, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, params)
        state, metrics = STEP(state, make_batch(i), KEY)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state.params, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state.ema, average)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    assert int(state.step) == 4
    assert metrics.keys() == {"loss", "error", "grad_norm", "finite"}


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulating_parts_is_the_whole_batch(parts):
    whole, split = create(fresh_params(), PLAIN), create(fresh_params(), PLAIN)
    for i in range(3):
        whole, m_whole = STEP(whole, make_batch(i), KEY)
        split, m_split = jitted(accumulate=parts)(split, make_batch(i), KEY)
    for a, b in ((whole, split), (m_whole, m_split)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


def test_accumulation_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(ValueError, match="divisor of the batch 8, got 3"):
        jitted(accumulate=3)(create(fresh_params(), PLAIN), make_batch(0), KEY)


def test_training_only_the_head_leaves_every_other_bit():
    head = adam(1e-2, clip=1.0, only="log_variance")
    state = create(fresh_params(), head)
    before = host(state)
    for i in range(3):
        state, _ = jitted(head)(state, make_batch(i), KEY)
    assert bits(state.params["body"]) == bits(before.params["body"])
    assert bits(state.ema["body"]) == bits(before.ema["body"])
    assert float(state.params["log_variance"]["s"]) != 0
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert (3, 2) not in moments
    with pytest.raises(ValueError, match="one of body, log_variance alone, got 'hed'"):
        adam(1e-2, only="hed").init(fresh_params())


def test_the_gradient_is_clipped_to_the_norm():
    clipped = adam(1e-2, b1=0.0, clip=0.5)
    state, metrics = jitted(clipped)(create(fresh_params(), clipped), make_batch(0, scale=1e3), KEY)
    assert metrics["grad_norm"] > 100
    first_moment = state.opt_state[1][0].mu
    np.testing.assert_allclose(optax.global_norm(first_moment), 0.5, rtol=1e-5)


def test_the_average_follows_short_runs_and_forgets_at_its_own_pace():
    assert float(ema_decay(0.999, jnp.int32(0))) == pytest.approx(0.1)
    assert float(ema_decay(0.999, jnp.int32(10**6))) == pytest.approx(0.999)
    # of the random start, less than a millionth is left after 20 steps, where 0.9999 alone would keep 99.8 %
    assert np.prod([float(ema_decay(0.9999, jnp.int32(i))) for i in range(20)]) < 1e-6


def test_learning_rates():
    constant = learning_rate(0.1, warmup=10)
    assert [float(constant(i)) for i in (0, 4, 9, 500)] == pytest.approx([0.01, 0.05, 0.1, 0.1])
    cosine = learning_rate(0.1, warmup=10, decay="cosine", steps=110)
    assert [float(cosine(i)) for i in (0, 9, 10, 60, 110)] == pytest.approx([0.01, 0.1, 0.1, 0.05, 0.0], abs=1e-8)
    rsqrt = learning_rate(0.1, warmup=100, decay="rsqrt")
    assert [float(rsqrt(i)) for i in (49, 99, 399)] == pytest.approx([0.05, 0.1, 0.05])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peak": 0.0}, "learning rate > 0"),
        ({"peak": 1.0, "warmup": -1}, "warm-up >= 0"),
        ({"peak": 1.0, "decay": "linear"}, "constant, cosine, rsqrt, got 'linear'"),
        ({"peak": 1.0, "warmup": 5, "decay": "cosine", "steps": 5}, "more steps than the warm-up's 5"),
    ],
)
def test_learning_rates_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(**settings)


@pytest.mark.parametrize("settings", [{"b1": 1.0}, {"b2": -0.1}, {"clip": -1.0}])
def test_optimizer_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="expected 0 <= b1, b2 < 1 and clip >= 0"):
        adam(1e-3, **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(value):
    state, _ = STEP(create(fresh_params(), PLAIN), make_batch(0), KEY)
    before = host(state)
    state, metrics = STEP(state, make_batch(1, scale=value), KEY)  # 1e38: a finite loss, whose gradient overflows
    assert not metrics["finite"]
    assert int(state.step) == 2
    assert bits((state.params, state.ema, state.opt_state)) == bits((before.params, before.ema, before.opt_state))
    state, metrics = STEP(state, make_batch(2), KEY)
    assert metrics["finite"]
    assert bits(state.params) != bits(before.params)


def test_steps_resume_bit_for_bit_without_random_state_and_compile_once():
    state = create(fresh_params(), PLAIN)
    STEP.clear_cache()
    for i in range(6):
        state, _ = STEP(state, make_batch(i), KEY)
        if i == 2:
            again = jax.tree.map(jnp.asarray, host(state))
    for i in range(3, 6):
        again, _ = STEP(again, make_batch(i), KEY)
    assert bits(again) == bits(state)
    assert STEP._cache_size() == 1


def test_the_old_state_is_donated():
    state = create(fresh_params(), PLAIN)
    STEP(state, make_batch(0), KEY)
    assert state.params["body"]["w"].is_deleted()
