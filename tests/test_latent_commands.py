"""Commands of a run that learned in latents: pixels go in and come out, and known ones are kept."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax import viz
from asyncpatch_jax.data import masks
from asyncpatch_jax.data.dataset import Latents
from asyncpatch_jax.pretrained.autoencoders import Autoencoder, read_autoencoder
from asyncpatch_jax.training import elbo as elbo_lib
from asyncpatch_jax.training.elbo import Elbo
from configs import digits
from launch import elbo, judge
from launch.shared import autoencoders, build, datasets, inpainters, inpainting, pictures
from launch.shared.generate import image_keys
from tests import drawn, mains, tiny_autoencoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny network with random weights, in latents of 4x4x2 for the 8x8 pixels of digits."""
    config = digits.get_config()
    with config.ignore_type():
        config.model = {"name": "dit", "preset": "", "dtype": "float32", "log_variance": False}
        config.model.update(patch=2, width=8, depth=1, heads=2)
    config.sample.steps = 2
    coder = read_autoencoder(tiny_autoencoder.folder(tmp_path_factory.mktemp("vae") / "vae"))
    autoencoders.fitting(config, coder)
    shift, scale = np.array([0.2, -0.4], np.float32), np.array([3.0, 1.5], np.float32)
    data = datasets.seen(config, datasets.dataset(config, "test"))
    made = build.untrained(config, data._replace(latents=Latents(coder.digest, 2, shift, scale, False)))
    params = drawn.params_like(made.params)
    return made._replace(params=params, autoencoder=coder.standardised(shift, scale))


def copied(run):
    return run._replace(config=run.config.copy_and_resolve_references())


@pytest.fixture
def command(run, monkeypatch, capsys):
    monkeypatch.setattr(build, "load_run", lambda *where, **more: copied(run))
    call = mains.command(monkeypatch, capsys)

    def checked(name, *arguments):
        code, out, err = call(name, "--workdir=run", *arguments)
        assert code == 0, err
        return out

    return checked


@functools.cache
def digit():
    return datasets.dataset(digits.get_config(), "test").source[7]["image"]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_samples_and_pages_are_images(command, run, tmp_path):
    command("sample", "--num=3", f"--out={tmp_path / 'out'}")
    with np.load(tmp_path / "out" / "samples.npz") as made:
        images = made["images"]
    assert images.shape == (3, 8, 8, 1)
    # decoded from what the network alone makes
    latents = pictures.watched(run, "sync", image_keys(0, 3), 3).images
    np.testing.assert_allclose(images, viz.to_uint8(run.decoded(latents)), atol=1)
    # a data set of latents has no other originals than their images
    data = datasets.dataset(run.config, "test")
    latents = np.asarray(run.encoded(np.stack([data.source[i]["image"] for i in range(5)]) / np.float32(127.5) - 1))
    source = [{"image": one, "label": 0} for one in latents]
    other = data._replace(source=source, latents=Latents("", 2, None, None, False))
    page = pictures.inpaintings(run, other, jax.random.key(0))
    assert page.dtype == np.uint8
    assert page.std() > 5


def test_holes_are_filled_and_known_pixels_kept_or_as_they_come_out(command, run, tmp_path):
    mask = np.zeros((8, 8), bool)
    mask[3:6, 2:5] = True
    Image.fromarray(digit()[..., 0]).save(tmp_path / "digit.png")
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    common = [f"--image={tmp_path / 'digit.png'}", f"--mask={tmp_path / 'mask.png'}", "--feather=0"]
    for name in ("whole", "raw"):
        command("inpaint", *common, f"--out={tmp_path / name}.png", *(["--raw"] if name == "raw" else []))
    whole, raw, original = pixels(tmp_path / "whole.png"), pixels(tmp_path / "raw.png"), digit()[..., 0]
    np.testing.assert_array_equal(whole[~mask], original[~mask])
    np.testing.assert_array_equal(whole[mask], raw[mask])
    assert (raw[~mask] != original[~mask]).mean() > 0.5
    # three by three pixels are parts of two by two cells
    assert inpainting.field(run, mask[None, ..., None].astype(np.float32)).sum() == 4


@pytest.mark.parametrize("name", ["asyncpatch", "ddnm"])
def test_a_hole_does_not_show_through_the_autoencoder(run, name):
    """Whatever the pixels of a hole are, the same is made; other known pixels make other images."""
    images = np.stack([digit()] * 2)
    hole = masks.draw("square", 0, 1, (8, 8)).repeat(2, 0)
    images[1] = np.where(hole[1] > 0, 255 - images[1], images[1])
    own, label = copied(run), np.full(2, run.num_classes, np.int32)
    own.config.times.name = "synchronous" if name == "ddnm" else "asyncpatch"
    keys = image_keys(0, 1)[np.zeros(2, int)]
    how = inpainters.method(own, name)
    made = inpainting.inpaint(own, keys, images, hole, label, batch=2, method=how)
    np.testing.assert_array_equal(made[0], made[1])
    assert made.shape == (2, 8, 8, 1)
    other = inpainting.inpaint(own, keys, 255 - images, hole, label, batch=2, method=how)
    assert (other[0] != made[0]).any()


def test_a_decoder_is_told_the_hole_that_the_encoder_was(run, monkeypatch):
    masks_told, decode = [], Autoencoder.decode

    def spied(self, latents, mask=None):
        masks_told.append(mask)
        return decode(self, latents, mask)

    monkeypatch.setattr(Autoencoder, "decode", spied)
    hole = np.ones((2, 8, 8, 1), np.float32)
    hole[0, :, :4] = 0
    label = np.full(2, run.num_classes, np.int32)
    images, how = np.stack([digit()] * 2), inpainters.method(run, "asyncpatch")
    inpainting.inpaint(run, image_keys(0, 2), images, hole, label, batch=2, method=how)
    # of the second nothing is known: it is made whole, and decoded as what is
    np.testing.assert_array_equal(masks_told, [hole * np.array([1, 0]).reshape(2, 1, 1, 1)])


def test_a_texture_is_painted_in_windows_of_pixels(command, tmp_path):
    Image.fromarray(digit()[..., 0]).save(tmp_path / "digit.png")
    command("texture", f"--image={tmp_path / 'digit.png'}", "--expand=0,4,0,0", f"--out={tmp_path / 'wide.png'}")
    wide = pixels(tmp_path / "wide.png")
    assert wide.shape == (8, 12)
    np.testing.assert_array_equal(wide[:, :8], digit()[..., 0])


def test_a_bound_is_of_latents_and_says_so(command, run, tmp_path, monkeypatch):
    def of(keys, x0, denoise, process, path, *, levels, **how):
        assert levels == 0
        return Elbo(*[x0.sum((1, 2, 3))] * 5)

    monkeypatch.setattr(elbo_lib, "elbo", of)
    out = command("elbo", "--num=4", "--samples=2", f"--out={tmp_path / 'elbo.json'}")
    assert "bits per latent dimension of 4 images" in out
    told = json.loads((tmp_path / "elbo.json").read_text())
    assert (told["per"], told["levels"]) == ("latent dimension", 0)
    source = datasets.dataset(run.config, "test").source
    images = np.stack([source[int(i)]["image"] for i in np.linspace(0, len(source) - 1, 4)])
    x0 = np.asarray(run.encoded(images / np.float32(127.5) - 1))
    np.testing.assert_allclose(told["paths"][0]["bits_per_dim"], x0.mean() / np.log(2), rtol=1e-4)
    with pytest.raises(ValueError, match="levels = 0 for a run in latents"):
        elbo.bounds(run, images, np.zeros(4, np.int32), cells=(4, 4), samples=2, batch=2, levels=256)


def test_the_judge_sees_images(run):
    images, label = judge.generated(run, "sync", 3, 3, 0)
    assert images.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(label, [0, 1, 2])
