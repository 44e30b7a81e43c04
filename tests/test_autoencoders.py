"""Autoencoders behind one interface: what their networks compute, on any mesh, in parts; masks; and who is who."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asyncpatch_jax import sharding
from asyncpatch_jax.models import LocalisedAutoencoder
from asyncpatch_jax.models import autoencoder as localised
from asyncpatch_jax.pretrained import autoencoders
from asyncpatch_jax.pretrained.networks import autoencoder as network
from tests import drawn, tiny_autoencoder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return tiny_autoencoder.folder(tmp_path_factory.mktemp("vae") / "vae", channels=3)


@pytest.fixture(scope="module")
def coder(vae):
    return autoencoders.read_autoencoder(vae, sharding.make_mesh())


def test_latents_and_images_are_those_of_the_network(coder, monkeypatch):
    images = np.asarray(drawn.uniform(4, 8, 8, 3, low=-1))
    # the network's own functions scale by what its config.json says, which is not what was measured
    direct = np.asarray(network.encode(coder.module, coder.params, images)) / coder.module.scale
    measured = coder.standardised(np.array([0.5, -1.0]), np.array([2.0, 3.0]))
    latents = np.asarray(measured.encode(images))
    np.testing.assert_allclose(latents, (direct - [0.5, -1.0]) * [2.0, 3.0], atol=1e-5)
    decoded = network.decode(coder.module, coder.params, direct * coder.module.scale)
    np.testing.assert_allclose(measured.decode(latents), decoded, atol=1e-5)
    # a few at a time make the same
    monkeypatch.setattr(autoencoders, "_AT_ONCE", 2 * 64)
    assert autoencoders._together(4, 64, None) == 2
    jax.clear_caches()
    np.testing.assert_allclose(measured.decode(latents), decoded, atol=1e-5)


def test_nothing_of_a_hole_is_seen(coder):
    images = np.asarray(drawn.uniform(1, 8, 8, 3, low=-1))
    mask = np.zeros((1, 8, 8, 1), np.float32)
    mask[:, 2:5, 3:6] = 1
    other = np.where(mask > 0, 0.7, images).astype(np.float32)
    encode = lambda x, m: np.asarray(coder.encode(x, m))  # noqa: E731
    np.testing.assert_array_equal(encode(images, mask), encode(other, mask))
    assert np.abs(encode(images, 0 * mask) - encode(images, mask)).max() > 1e-3
    np.testing.assert_allclose(encode(images, 0 * mask), coder.encode(images), atol=1e-6)


def test_a_localised_autoencoder_is_told_the_mask(tmp_path):
    module = LocalisedAutoencoder(channels=1, latent_channels=2, codes=8, base=4, multipliers=(1, 1), windows=(3, 1))
    params = drawn.params_like(localised.shapes(module))
    localised.save(tmp_path, module, params)
    coder = autoencoders.read_autoencoder(tmp_path, sharding.make_mesh())
    assert (coder.kind, coder.factor, coder.channels, coder.latent_channels) == ("LocalisedAutoencoder", 2, 1, 2)
    images, mask = np.asarray(drawn.uniform(2, 4, 4, 1, low=-1)), np.zeros((2, 4, 4, 1), np.float32)
    mask[:, 1:3, 1] = 1

    @jax.jit
    def direct(images, mask):
        latents = module.apply({"params": params}, images, mask, method="encode")
        return latents, module.apply({"params": params}, latents, None, method="decode")

    latents, decoded = direct(images, mask)
    np.testing.assert_allclose(coder.encode(images, mask), latents, atol=1e-6)
    np.testing.assert_allclose(coder.decode(latents), decoded, atol=1e-6)


def test_a_cell_with_anything_unknown_is_unknown():
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[0, 2, 5], mask[1, 3:5, 3:5] = 1, 1
    cells = np.asarray(autoencoders.unknown_cells(mask, 2))[..., 0]
    wanted = np.zeros((2, 4, 4))
    wanted[0, 1, 2] = wanted[1, 1:3, 1:3] = 1
    np.testing.assert_array_equal(cells, wanted)
    with pytest.raises(ValueError, match="multiples of 3"):
        autoencoders.unknown_cells(mask, 3)


def test_a_hash_is_of_the_network_wherever_and_however_it_lies(vae, coder, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(vae, pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    config = json.loads((vae / "config.json").read_text())
    (pipeline / "vae" / "config.json").write_text(json.dumps({"_diffusers_version": "9", **config}, indent=1))
    (file,) = (pipeline / "vae").glob("*.safetensors")
    tensors = load_file(file)
    save_file(dict(reversed(tensors.items())), file, {"format": "pt"})
    assert autoencoders.digest(pipeline) == coder.digest
    name = sorted(tensors)[3]
    tensors[name] = np.nextafter(tensors[name], np.float32(9))
    save_file(tensors, file)
    assert autoencoders.digest(pipeline) != coder.digest
    config["scaling_factor"] = 0.5
    shutil.copytree(vae, tmp_path / "scaled")
    (tmp_path / "scaled" / "config.json").write_text(json.dumps(config))
    assert autoencoders.digest(tmp_path / "scaled") != coder.digest


def test_what_is_no_autoencoder_or_does_not_fit_is_refused(coder, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match=r"AutoencoderKL or LocalisedAutoencoder, got 'UNet2D"):
        autoencoders.read_autoencoder(tmp_path)
    with pytest.raises(ValueError, match="expected a folder"):
        autoencoders.read_autoencoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"multiples of 2, got \(1, 7, 8, 3\)"):
        coder.encode(np.zeros((1, 7, 8, 3), np.float32))
    with pytest.raises(ValueError, match="latents of 2 channels"):
        coder.decode(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="a shift for each of 2 channels"):
        coder.standardised(np.zeros(3), np.ones(3))
