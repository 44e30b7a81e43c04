"""T5's encoder against transformers', on random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from asyncpatch_jax.pretrained.folders import names
from asyncpatch_jax.pretrained.networks import t5
from tests import tiny

CONFIG = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 3,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
LENGTH = 150  # beyond the furthest bucket


def some_net(dtype=torch.float64):
    return tiny.randomised(transformers.T5EncoderModel(transformers.T5Config(**CONFIG)), seed=0).to(dtype)


def built(net, dtype, **changes):
    config = {**net.config.to_dict(), "architectures": ["T5EncoderModel"], **changes}
    module = t5.from_config(config, dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *t5.example(module))["params"]
    return module, names.from_torch(shapes, tiny.state(net))


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, ids, mask=None):
    return module.apply({"params": params}, ids, mask)


def some_text():
    ids = np.random.default_rng(0).integers(1, 50, (2, LENGTH))
    mask = np.arange(LENGTH) < np.array([[LENGTH], [140]])
    return ids, mask


def difference(net, module, params, mask=None):
    ids, _ = some_text()
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask)).last_hidden_state
    ours = run(module, params, ids, mask)
    return np.abs(np.asarray(ours, np.float64) - theirs.double().numpy()).max()


@pytest.fixture
def exact(monkeypatch):
    tiny.make_t5_norm_wide(monkeypatch)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("masked", [False, True])
def test_is_pytorchs(masked):
    net = some_net()
    with jax.enable_x64(True):
        module, params = built(net, jnp.float64)
        assert difference(net, module, params, some_text()[1] if masked else None) < 1e-9


def test_in_float32():
    net = some_net(torch.float32)
    assert difference(net, *built(net, jnp.float32)) < 2e-5


@pytest.mark.usefixtures("exact")
def test_another_epsilon_is_seen():
    net = some_net()
    with jax.enable_x64(True):
        assert difference(net, *built(net, jnp.float64, layer_norm_epsilon=1e-5)) > 1e-9


def test_large_activations_stay_finite_and_close_in_bfloat16():
    """The sum of the layers is tens of thousands in T5-XXL: bfloat16 drops what is added to it, float16 overflows."""
    net = some_net(torch.float32)
    with torch.no_grad():
        net.shared.weight.mul_(3e4)
        for block in net.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e3)
    ids, _ = some_text()
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)).last_hidden_state.numpy()
    for kind in (jnp.bfloat16, jnp.float16):
        module, params = built(net, kind)
        ours = np.asarray(run(module, params, ids), np.float32)
        assert np.abs(ours - theirs).mean() < 0.03 * np.abs(theirs).mean()


@pytest.mark.parametrize(("num", "furthest"), [(32, 128), (16, 64), (8, 20)])
def test_buckets_are_pytorchs(num, furthest):
    distance = torch.arange(-699, 700)
    theirs = T5Attention._relative_position_bucket(distance, num_buckets=num, max_distance=furthest)
    np.testing.assert_array_equal(t5.buckets(700, num, furthest), theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj"),
        ({"architectures": ["UMT5EncoderModel"]}, "UMT5EncoderModel"),
        ({"feed_forward_proj": None}, "feed_forward_proj"),
        ({"some_setting": 3}, "some_setting"),
    ],
)
def test_other_configurations_are_refused(changes, message):
    config = {**CONFIG, "architectures": ["T5EncoderModel"], **changes}
    with pytest.raises(ValueError, match=message):
        t5.from_config(config)
