"""The pretrained autoencoder is diffusers' AutoencoderKL, to rounding, on random weights; tiles are blended."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from asyncpatch_jax.pretrained.networks import autoencoder
from asyncpatch_jax.pretrained.networks.tiling import starts, tiled, weights
from tests import tiny

TINY = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "force_upcast": False,
}
# two levels of one block each
SMALL = TINY | {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
}
CONFIGS = {
    "4": TINY,
    "16": SMALL
    | {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "small": SMALL,
}


def reference(config):
    return tiny.randomised(AutoencoderKL(**config).double(), seed=1)


def ours(config, net, kind):
    return tiny.built(autoencoder, config, net, kind)


@functools.cache
def pair(name):
    net = reference(CONFIGS[name])
    vae, params = ours(CONFIGS[name], net, jnp.float64)
    return types.SimpleNamespace(config=CONFIGS[name], net=net, vae=vae, params=params)


@pytest.fixture(params=["4", "16"])
def both(request):
    with jax.enable_x64(True):
        yield pair(request.param)


@pytest.fixture
def small():
    with jax.enable_x64(True):
        yield pair("small")


def torch_encode(net, images):
    with torch.no_grad():
        found = net.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
    return [part.permute(0, 2, 3, 1).numpy() for part in (found.mean, found.logvar)]


def torch_decode(net, latents):
    with torch.no_grad():
        return net.decode(torch.tensor(np.asarray(latents)).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1).numpy()


def whole(pair, latents):
    """Decoded with no regard for size, by a program traced anew."""
    apply = jax.jit(lambda params, latents: pair.vae.apply({"params": params}, latents, method="decode"))
    return np.asarray(apply(pair.params, latents))


def draw(*shape, kind=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(kind)


def encode(pair, images, keys=None):
    return np.asarray(autoencoder.encode(pair.vae, pair.params, images, keys))


def decode(pair, latents):
    return np.asarray(autoencoder.decode(pair.vae, pair.params, latents))


def test_it_is_diffusers(both):
    images = draw(2, 8, 16, 3)

    @jax.jit
    def program(params, images):
        return both.vae.apply({"params": params}, images, method="encode"), autoencoder.encode(both.vae, params, images)

    moments, latents = program(both.params, images)
    want = torch_encode(both.net, images)
    for found, expected in zip(moments, want, strict=True):
        assert expected.std() > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)

    scale, shift = both.config.get("scaling_factor", 0.18215), both.config.get("shift_factor", 0)
    np.testing.assert_allclose(latents, (want[0] - shift) * scale, rtol=1e-9, atol=1e-9)
    decoded = decode(both, np.asarray(latents))
    assert decoded.std() > 0.1
    np.testing.assert_allclose(decoded, torch_decode(both.net, want[0]), rtol=1e-9, atol=1e-9)


def test_in_float32_it_is_diffusers_to_rounding():
    net = reference(SMALL).float()
    vae, params = ours(SMALL, net, jnp.float32)
    latents = draw(2, 2, 4, 4, kind=np.float32)
    decoded = autoencoder.decode(vae, params, latents * vae.scale)
    np.testing.assert_allclose(decoded, torch_decode(net, latents), rtol=2e-5, atol=2e-5)


def test_another_epsilon_is_seen(monkeypatch, small):
    monkeypatch.setattr(autoencoder, "EPS", 1e-5)
    latents = draw(2, 2, 4, 4)
    assert abs(whole(small, latents) - torch_decode(small.net, latents)).max() > 1e-7


def test_each_image_is_drawn_by_its_own_key(small):
    images = draw(2, 8, 8, 3)
    mean, logvar = torch_encode(small.net, images)
    keys = jax.random.split(jax.random.key(3), 256)
    drawn = encode(small, images[:1].repeat(256, 0), keys) / small.vae.scale
    deviation = np.exp(0.5 * logvar[0])
    assert (abs(drawn.mean(0) - mean[0]) < 5 * deviation / np.sqrt(256)).all()
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.25)
    alone = encode(small, images[:1], keys[:1])
    np.testing.assert_allclose(alone[0] / small.vae.scale, drawn[0], rtol=1e-9)


def test_many_queries_are_attended_in_parts(monkeypatch, small):
    latents = draw(2, 4, 3, 4)
    at_once = whole(small, latents)
    monkeypatch.setattr(autoencoder, "_MAX_LOGITS", 40)  # of 144
    np.testing.assert_allclose(whole(small, latents), at_once, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("upcast", [True, False])
def test_force_upcast_computes_in_float32(upcast):
    vae = autoencoder.from_config(TINY | {"force_upcast": upcast}, jnp.bfloat16)
    assert vae.dtype == (jnp.float32 if upcast else jnp.bfloat16)
    shapes = jax.eval_shape(vae.init, jax.random.key(0), *autoencoder.example(vae))["params"]
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    decoded = jax.eval_shape(functools.partial(autoencoder.decode, vae), half, jnp.zeros((1, 2, 2, 4)))
    assert decoded.dtype == jnp.float32


@pytest.mark.parametrize(("cells", "tile", "overlap"), [(3, 8, 2), (8, 8, 4), (9, 8, 4), (40, 8, 3), (33, 8, 4)])
def test_tiles_cover_an_axis_and_their_weights_add_up_to_1(cells, tile, overlap):
    first = starts(cells, tile, overlap)
    side = min(cells, tile)
    assert first[0] == 0
    assert first[-1] + side == cells
    assert (side - np.diff(first) >= overlap).all()
    total = np.zeros(cells * 2)
    for start, weight in zip(first, weights(first, side, 2), strict=True):
        assert (weight > 0).all()
        total[2 * start : 2 * (start + side)] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def local(x):
    """Two convolutions that see three pixels to each side, and two of each cell's pixels after them."""
    kernel = jnp.asarray(draw(3, 3, 2, 2, kind=np.float32))
    for _ in range(2):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.repeat(jnp.repeat(jnp.tanh(x), 2, 1), 2, 2)


def test_far_from_seams_tiles_are_the_whole():
    size, tile, overlap = (28, 45), 18, 5
    x = draw(2, *size, 2, kind=np.float32, seed=1)
    both = jax.jit(lambda x: (local(x), tiled(local, x, tile, overlap, size_in=1, size_out=2)))
    uncut, blended = (np.asarray(part) for part in both(x))
    assert blended.shape == uncut.shape
    near = np.zeros(size, bool)
    for axis, cells in enumerate(size):
        first = starts(cells, tile, overlap)
        for edge in [*first[1:], *(first[:-1] + tile)]:  # where tiles are cut
            np.moveaxis(near, axis, 0)[edge - 2 : edge + 2] = True
    near = near.repeat(2, 0).repeat(2, 1)
    assert (~near).mean() > 0.3
    np.testing.assert_allclose(blended[:, ~near], uncut[:, ~near], rtol=1e-5, atol=1e-6)
    assert abs(blended - uncut)[:, near].max() > 1e-3


def test_pointwise_functions_do_not_see_tiles():
    x = draw(1, 20, 32, 3, kind=np.float32)

    def means(x):
        b, h, w, c = x.shape
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))

    blended = jax.jit(lambda x: tiled(means, x, 6, 2, size_in=2, size_out=1))(x)
    np.testing.assert_allclose(blended, means(x), rtol=1e-5, atol=1e-6)


def test_an_image_of_one_tile_is_not_cut(small):
    latents = draw(2, 2, 8, 4)
    blended = autoencoder.tiled_decode(small.vae, small.params, latents, tile=8, overlap=2)
    np.testing.assert_allclose(blended, decode(small, latents), rtol=1e-12, atol=1e-12)
    images = draw(2, 16, 8, 3)
    blended = autoencoder.tiled_encode(small.vae, small.params, images, tile=8, overlap=2)
    np.testing.assert_allclose(blended, encode(small, images), rtol=1e-12, atol=1e-12)


def test_tiles_are_decoded_by_themselves_and_blended(small):
    latents = draw(2, 2, 14, 4)
    blended = autoencoder.tiled_decode(small.vae, small.params, latents, tile=8, overlap=2)
    first, last = (decode(small, latents[:, :, part]) for part in (slice(8), slice(6, 14)))
    rising = ((np.arange(4) + 0.5) / 4)[None, None, :, None]
    want = [first[:, :, :12], (1 - rising) * first[:, :, 12:] + rising * last[:, :, :4], last[:, :, 4:]]
    np.testing.assert_allclose(blended, np.concatenate(want, 2), rtol=1e-9, atol=1e-9)


def test_large_images_go_tile_by_tile(small):
    latents = draw(1, 1, autoencoder.TILE + 4, 4)
    decoded = decode(small, latents)
    tiled_decoded = autoencoder.tiled_decode(small.vae, small.params, latents)
    np.testing.assert_allclose(decoded, tiled_decoded, rtol=1e-12)
    assert abs(decoded - whole(small, latents / small.vae.scale)).max() > 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn = 'silu'"),
        ({"latents_mean": [0.0] * 4}, "latents_mean = None"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, r"up_block_types\[0\] as one of 'UpDecoderBlock2D' in"),
        ({"out_channels": 4}, "out_channels = in_channels = 3, got 4"),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        autoencoder.from_config(TINY | change)


def test_what_does_not_fit_is_refused():
    vae = autoencoder.from_config(TINY)
    params = jax.eval_shape(vae.init, jax.random.key(0), *autoencoder.example(vae))["params"]
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 6, 8, 3\)"):
        jax.eval_shape(functools.partial(autoencoder.encode, vae), params, jnp.zeros((1, 6, 8, 3)))
    with pytest.raises(ValueError, match="latents of 4 channels, got 3"):
        jax.eval_shape(functools.partial(autoencoder.decode, vae), params, jnp.zeros((1, 6, 8, 3)))
    with pytest.raises(ValueError, match=r"overlap of 1 \.\.\. 4 cells"):
        autoencoder.tiled_decode(vae, params, jnp.zeros((1, 16, 8, 4)), tile=8, overlap=5)
