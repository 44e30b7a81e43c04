"""Gradients of convolutions are those of JAX, in the one order of axes that XLA:CPU has a fast form for."""

import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

import asyncpatch_jax
from asyncpatch_jax.models import UNet
from asyncpatch_jax.models.convolution import Conv, convolution
from asyncpatch_jax.models.times import LevelTimes
from asyncpatch_jax.models.unet import Block
from asyncpatch_jax.training.step import create, train_step

NUMBERS = ("NHWC", "HWIO", "NHWC")
FAST = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
SMALL = UNet(base=4, multipliers=(1,), blocks=1, attention=())


def orders(lowered):
    """The orders of axes of all convolutions of a program before XLA sees it."""
    return set(re.findall(r"stablehlo\.convolution.*dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", lowered.as_text()))


@cache
def shapes(model, batch=2):
    x, t = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((batch, 1, 1, 1), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t)["params"], x, t


def gradient(model):
    return jax.jit(jax.grad(lambda params, x, t: jnp.square(model.apply({"params": params}, x, t)[0]).sum()))


@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), "SAME"), ((2, 1), "VALID"), ((2, 2), ((0, 1), (2, 1)))], ids=str
)
def test_values_and_derivatives_are_those_of_jax(strides, padding):
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=(2, 7, 6, 3)), jnp.float32) for _ in range(2))
    kernel, dk = (jnp.asarray(rng.normal(size=(3, 2, 3, 4)), jnp.float32) for _ in range(2))
    ours = partial(convolution, window_strides=strides, padding=padding)
    plain = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NUMBERS)

    @partial(jax.jit, static_argnums=0)
    def everything(conv, x, kernel, dx, dk):
        out, pull = jax.vjp(conv, x, kernel)
        twice = jax.grad(lambda x: jnp.square(jax.grad(lambda k: (conv(x, k) ** 3).sum())(kernel)).sum())(x)
        return jax.jvp(conv, (x, kernel), (dx, dk)), pull(jnp.sin(out)), twice

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        everything(ours, x, kernel, dx, dk),
        everything(plain, x, kernel, dx, dk),
    )


def test_a_loops_gradient_compiles_to_the_fast_order():
    """Of what XLA:CPU runs; the plain form shows that the compiler does not bring loops into order by itself."""
    x, kernels = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 3, 4, 4))

    def labels(conv):
        loop = lambda x, kernels: jax.lax.scan(lambda x, k: (jnp.tanh(conv(x, k, (1, 1), "SAME")), None), x, kernels)  # noqa: E731
        done = jax.jit(jax.grad(lambda kernels, x: loop(x, kernels)[0].sum())).lower(kernels, x).compile()
        assert " while(" in done.as_text()
        return set(re.findall(r"convolution\(.*dim_labels=(\S+?)[,\s]", done.as_text()))

    assert labels(convolution) == {"b01f_01io->b01f"}
    assert len(labels(partial(jax.lax.conv_general_dilated, dimension_numbers=NUMBERS))) > 1


@pytest.mark.parametrize(
    ("blocks", "scan", "remat", "loops"),
    [
        (2, False, "none", False),
        (2, True, "none", False),
        (3, False, "none", False),
        (3, True, "products", True),
        (3, True, "blocks", True),
    ],
)
def test_a_networks_gradient_has_the_fast_order_and_loops_only_of_more_than_one_trip(blocks, scan, remat, loops):
    model = SMALL.clone(blocks=blocks, log_variance=True)
    lowered = gradient(model.clone(scan=scan, remat=remat)).lower(*shapes(model))  # the same parameters
    assert orders(lowered) == {FAST}
    assert ("stablehlo.while" in lowered.as_text()) == loops


def test_accumulated_gradients_have_the_fast_order():
    params, x, t = shapes(SMALL, batch=4)
    optimizer = optax.sgd(1.0)

    def loss(params, keys, batch):
        return jnp.square(SMALL.apply({"params": params}, *batch)[0]).mean(), {}

    step = partial(train_step, loss_fn=loss, optimizer=optimizer, ema=0.9, accumulate=2)
    state = jax.eval_shape(partial(create, optimizer=optimizer), params)
    lowered = jax.jit(step).lower(state, (x, t), jax.random.key(0))
    assert "stablehlo.while" in lowered.as_text()  # the parts one after another, for their memory's sake
    assert orders(lowered) == {FAST}


def test_all_networks_are_made_of_these():
    sources = [path for path in Path(asyncpatch_jax.__file__).parent.rglob("*.py") if path.name != "convolution.py"]
    assert [
        path.name for path in sources if re.search(r"nn\.Conv\(|nn\.ConvTranspose|lax\.conv", path.read_text())
    ] == []


def test_other_devices_have_jaxs_own_gradient():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(3, (3, 3), name="conv")(x)

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Conv(3, (3, 3), name="conv")(x)

    def convolutions(module):
        x = jnp.zeros((2, 8, 8, 4))
        params = jax.eval_shape(module.init, jax.random.key(0), x)
        # twice, so that there is a gradient with respect to images too
        fn = jax.grad(lambda params, x: jnp.square(module.apply(params, x)).sum(), (0, 1))
        lowered = jax.jit(fn).trace(params, x).lower(lowering_platforms=("tpu",))
        return sorted(re.findall(r"(dim_numbers = .*?->\[.*?\]).* : (.*)", lowered.as_text()))

    assert len(convolutions(Plain())) == 3
    assert convolutions(Ours()) == convolutions(Plain())


@pytest.mark.parametrize(("blocks", "scan"), [(2, False), (4, False), (4, True)])
def test_a_levels_equal_blocks_are_one_stack_of_parameters(blocks, scan):
    """The layout of checkpoints: blocks 2 ... n of a level are "encode_i" and "decode_i", each parameter stacked."""
    model = SMALL.clone(blocks=blocks, scan=scan, multipliers=(1, 3), attention=(1,), head_dim=4)
    params, *_ = shapes(model)
    widths = (4, 12)
    names = {f"{way}_{i}{of}" for way in ("encode", "decode") for i in range(2) for of in ("", "_first")}
    names |= {"decode_0_last", "decode_1_last", "down_1", "up_1", "middle_in", "middle_attention", "middle_out"}
    assert params.keys() == names | {"stem", "time", "norm_out", "out"}

    times = LevelTimes(jnp.zeros((2, 1, 16)), grid=(1, 1))
    for i, width in enumerate(widths):
        x = jnp.zeros((2, 4, 4, width))
        for way, skip in (("encode", None), ("decode", x)):
            block = Block(width, i == 1, 4, "group", 0.0, jnp.float32)
            one = jax.eval_shape(block.init, jax.random.key(0), x, skip, None, times, None)["params"]
            wanted = {path: (blocks - 1, *leaf.shape) for path, leaf in traverse_util.flatten_dict(one).items()}
            found = traverse_util.flatten_dict(params[f"{way}_{i}"])
            assert {path: leaf.shape for path, leaf in found.items()} == wanted
