"""PyTorch's network that ours is timed against computes the same."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from asyncpatch_jax.models import UNet
from asyncpatch_jax.types import Condition
from configs import digits
from launch.bench import reference, versus
from launch.shared import build, datasets


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other are slow where tests run beside tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _unet(**more):
    return UNet(**{"base": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 16, **more})


def _params(model, shape):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0), shape))
    return jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "model",
    [_unet(num_classes=5, log_variance=True, attention=(0,)), _unet(multipliers=(1, 2, 1), blocks=3, attention=(1, 2))],
)
def test_the_same_parameters_give_the_same_output(model):
    shape, rng = (8, 8, 3), np.random.default_rng(0)
    params = _params(model, shape)
    x, t = rng.normal(size=(3, *shape)).astype(np.float32), np.array([0.0, 0.4, 0.97], np.float32)
    label = np.array([0, 2, model.num_classes])
    cond = Condition(label=jnp.asarray(label, jnp.int32)) if model.num_classes else None
    ours, _ = jax.jit(model.apply)({"params": params}, x, t.reshape(-1, 1, 1, 1), cond)
    net = reference.network(model, shape)
    reference.copy_params(net, params, model)
    net.eval()
    with torch.no_grad():
        labels = torch.tensor(label) if model.num_classes else None
        theirs = net(torch.tensor(x).movedim(-1, 1), torch.tensor(t), labels, return_dict=False)[0].movedim(1, -1)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5 * float(abs(theirs).max()))
    assert float(abs(theirs).std()) > 0.01
    theirs = sum(p.numel() for p in net.parameters())
    assert theirs == sum(
        leaf.size for name in params if name != "log_variance" for leaf in jax.tree.leaves(params[name])
    )


def test_another_network_does_not_pass_for_the_same():
    model, shape = _unet(), (8, 8, 1)
    net = reference.network(_unet(attention=(0,)), shape)
    with pytest.raises(ValueError, match="same parameters"):
        reference.copy_params(net, _params(model, shape), model)


def test_a_step_of_theirs_learns_and_their_sampler_ends():
    config = digits.get_config()
    config.optim.learning_rate = 1e-2
    net = reference.network(_unet(num_classes=2), (8, 8, 1))
    images, labels = torch.ones(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    torch.manual_seed(0)

    def error():
        net.eval()
        with torch.no_grad():  # at t = 1 the velocity of an image of ones is noise - 1
            noise = torch.randn(16, 1, 8, 8)
            out = net(noise, torch.ones(16), torch.zeros(16, dtype=torch.long), return_dict=False)[0]
        return float(((out - (noise - 1)) ** 2).mean())

    before, step = error(), reference.train_step(net, config, images, labels)
    for _ in range(8):
        step()
    assert error() < 0.8 * before
    reference.sampler(net, config, images, labels, 2)()


def test_a_comparison_starts_from_equal_networks(monkeypatch):
    config = digits.get_config()
    config.model.update({"base": 32, "multipliers": (1,), "blocks": 1, "attention": (0,), "head_dim": 32})
    config.sample.steps = 2
    config.times.name = "synchronous"  # compiles fastest
    run = build.untrained(config, datasets.dataset(config, "test"))
    run = run._replace(params=jax.device_put(_params(run.model, run.shape)))
    report = versus.compare(run, 2, 1, compile_torch=False)
    assert report["parameters"][0] == report["parameters"][1]
    assert report["difference"] < 1e-4
    assert [row["name"] for row in report["rows"]] == [
        "training step, JAX",
        "training step, PyTorch",
        "2 steps of Euler's, JAX",
        "2 steps of Euler's, PyTorch",
    ]
    assert all(row["to_torch"]["median"] > 0 for row in report["rows"])


def test_what_has_no_counterpart_is_refused(monkeypatch):
    config = digits.get_config()
    run = build.untrained(config, datasets.dataset(config, "test"))
    reference.check(run)
    for wrong in (
        _unet(norm="rms"),
        _unet(base=48),
        _unet(multipliers=(2, 2)),
        _unet(attention=()),
        _unet(context_dim=8),
    ):
        with pytest.raises(ValueError, match="expected a UNet with group norm"):
            reference.check(run._replace(model=wrong))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="found no torch and no diffusers"):
        reference.check(run)
