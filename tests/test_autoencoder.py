"""The localised autoencoder: what the mask does and does not, how far a cell sees, published shapes, its folders."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import sharding
from asyncpatch_jax.models import autoencoder
from asyncpatch_jax.models.autoencoder import PRESETS, LocalisedAutoencoder
from tests import drawn

SMALL = {
    **{"channels": 1, "latent_channels": 2, "codes": 8, "base": 4, "multipliers": (1, 2), "windows": (3, 1)},
    **{"blocks": 1, "head_dim": 4},
}
MODULE = LocalisedAutoencoder(**SMALL)
PARAMS = drawn.params_like(autoencoder.shapes(MODULE), scale=0.5)
IMAGES = drawn.uniform(2, 8, 8, 1, low=-1)
HOLE = np.zeros((2, 8, 8, 1), np.float32)
HOLE[:, 2:4, 2:6] = 1
MASK, NOTHING = jax.device_put(HOLE), jax.device_put(np.zeros_like(HOLE))


def _call(module, params, images, mask):
    variables = {"params": params}
    latents = module.apply(variables, images, mask, method="encode")
    return latents, module.apply(variables, latents, mask, method="decode")


@jax.jit
def _coded(params, images, mask):
    return {"given": _call(MODULE, params, images, mask), "none": _call(MODULE, params, images, None)}


def test_a_mask_of_zeros_is_no_mask_bit_for_bit_and_another_is_told_to_every_block():
    nothing = _coded(PARAMS, IMAGES, NOTHING)
    jax.tree.map(np.testing.assert_array_equal, nothing["given"], nothing["none"])
    # grey where the hole is, so that all that differs is what the blocks are told
    grey = jax.device_put(np.where(HOLE > 0, np.float32(0), IMAGES))
    latents, image = _coded(PARAMS, grey, MASK)["given"]
    without = _coded(PARAMS, grey, NOTHING)["given"]
    assert np.abs(latents - without[0]).max() > 1e-2
    assert np.abs(image - without[1]).max() > 1e-2
    # what lies in the hole is not looked at
    np.testing.assert_array_equal(_coded(PARAMS, IMAGES, MASK)["given"][0], latents)
    for half, blocks in (("encoder", 2), ("decoder", 4)):
        films = [name for name in _paths(PARAMS[half]) if name.endswith("film/kernel")]
        assert len(films) == blocks  # one in each residual block
    assert not LocalisedAutoencoder(**SMALL, told=False)._field(MASK, (8, 8)).index.any()


def _paths(tree):
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize(("windows", "blocks", "reach"), [((3, 1), 1, 3), ((1, 3), 1, 4), ((1, 1), 2, 0)])
def test_a_cell_sees_as_far_as_its_reach_and_no_further(windows, blocks, reach):
    module = LocalisedAutoencoder(**{**SMALL, "windows": windows, "encoder_blocks": blocks})
    assert module.reach == reach
    params = drawn.params_like(autoencoder.shapes(module), scale=0.5)
    # a batch of images each of which differs from the first in one column, from the cell of columns 8 and 9 on
    images = np.repeat(np.asarray(drawn.uniform(1, 4, 20, 1, low=-1)), 8, axis=0)
    for away in range(1, 8):
        images[away, :, 9 + away] += 0.5
    latents = np.asarray(jax.jit(lambda x: module.apply({"params": params}, x, method="encode"))(images))[:, :, 4]
    moved = np.abs(latents[1:] - latents[:1]).max((1, 2))
    assert (moved[:reach] > 1e-6).all()
    np.testing.assert_array_equal(moved[reach:], 0.0)


def test_norms_of_whole_images_and_attention_see_everything():
    assert LocalisedAutoencoder(norm="group").reach is None
    assert LocalisedAutoencoder(attention="both").reach is None
    assert LocalisedAutoencoder(attention="decoder").reach == 3


@pytest.mark.parametrize(("name", "cells", "codes"), [("f4", (64, 64, 3), 8192), ("f8", (32, 32, 4), 16384)])
def test_the_presets_have_the_published_shapes(name, cells, codes):
    module = LocalisedAutoencoder(**PRESETS[name])
    shapes = autoencoder.shapes(module)
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
    latents = jax.eval_shape(lambda p, x: module.apply({"params": p}, x, method="encode"), shapes, image)
    assert latents.shape == (1, *cells)
    out = jax.eval_shape(lambda p, z: module.apply({"params": p}, z, method="decode"), shapes, latents)
    assert out.shape == image.shape
    assert shapes["quantiser"]["codebook"].shape == (codes, cells[-1])
    assert module.reach <= module.factor  # within one cell beyond its own
    count = {half: sum(leaf.size for leaf in jax.tree.leaves(shapes[half])) for half in ("encoder", "decoder")}
    assert count["encoder"] < count["decoder"] / 2
    # every parameter has names for its axes, and the large ones are split over a mesh's fsdp
    mesh = jax.sharding.AbstractMesh((1, 8, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    layout = sharding.parameters(mesh, shapes, module.logical_axes(shapes))
    whole = [
        leaf.size
        for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True)
        if "fsdp" not in place.spec
    ]
    assert sum(whole) < 0.05 * sum(count.values())


def test_codes_stand_for_latents():
    @jax.jit
    def both(params, latents):
        index = MODULE.apply({"params": params}, latents, method="index")
        codes = MODULE.apply({"params": params}, index, method="embed")
        return [MODULE.apply({"params": params}, z, method="decode") for z in (latents, codes)], index

    (one, other), index = both(PARAMS, drawn.normal(1, 2, 2, 2))
    np.testing.assert_array_equal(one, other)
    assert index.shape == (1, 2, 2)


def test_a_folder_is_read_as_it_was_written_and_nothing_else_is(tmp_path):
    autoencoder.save(tmp_path / "a", MODULE, PARAMS)
    module, params = autoencoder.load(tmp_path / "a")
    assert module == MODULE
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    with pytest.raises(ValueError, match="nothing exists yet"):
        autoencoder.save(tmp_path / "a", MODULE, PARAMS)
    autoencoder.save(tmp_path / "a", MODULE, PARAMS, overwrite=True)
    with pytest.raises(ValueError, match=r"quantiser/codebook float32\[8, 2\] instead of float32\[9, 2\]"):
        autoencoder.save(tmp_path / "b", LocalisedAutoencoder(**{**SMALL, "codes": 9}), PARAMS)
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    for changed, message in (
        ({"codes": 9}, "expected the tensors of its settings"),
        ({"codes": 0}, "codes"),
        ({"windows": [2, 1]}, "expected odd windows"),
        ({"_class_name": "AutoencoderKL"}, "got 'AutoencoderKL'"),
        ({"colour": 1}, "unknown setting colour"),
    ):
        (tmp_path / "a" / "config.json").write_text(json.dumps({**settings, **changed}))
        with pytest.raises(ValueError, match=message):
            autoencoder.load(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings))
    whole = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="expected a whole file of tensors"):
        autoencoder.load(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model\.safetensors"):
        autoencoder.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": (3, 1)}, "odd windows, one for each of 3 levels"),
        ({"windows": (3, 2, 1)}, "odd windows"),
        ({"codes": 0}, "codes >= 1"),
        ({"multipliers": ()}, "multipliers of one level"),
        ({"attention": "both", "base": 30}, "head_dim = 64 divides"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalisedAutoencoder(**settings)


def test_inputs_that_do_not_fit_are_refused():
    variables = {"params": PARAMS}
    for x, mask, message in (
        (drawn.normal(1, 8, 8, 3), None, r"expected images \[b, h, w, 1\]"),
        (drawn.normal(1, 7, 8, 1), None, "multiples of 2"),
        (IMAGES, jnp.zeros((2, 8, 8, 1)) + 2, "0 <= mask <= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MODULE.apply(variables, x, mask, method="encode")
    with pytest.raises(ValueError, match="latents of 2 channels"):
        MODULE.apply(variables, drawn.normal(1, 2, 2, 3), method="decode")
    with pytest.raises(ValueError, match=r"expected a mask \[1, 4, 4, 1\]"):
        MODULE.apply(variables, drawn.normal(1, 2, 2, 2), MASK, method="decode")
