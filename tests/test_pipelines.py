"""Whole pipelines against diffusers' own: the same prompts and latents in, the same images out, for each family."""

import numpy as np
import pytest
import torch
from PIL import Image

from asyncpatch_jax.pretrained import batch
from asyncpatch_jax.pretrained.batch import make, prepare
from asyncpatch_jax.pretrained.folders.loading import load_pretrained
from asyncpatch_jax.pretrained.plans import plan
from asyncpatch_jax.pretrained.requests import Request, check, latent_shape, omegas
from asyncpatch_jax.pretrained.settings import defaults
from asyncpatch_jax.pretrained.text.prompts import read_tokenizers
from asyncpatch_jax.sampling.paste import stitch
from tests import tiny_folders
from tests.tiny_folders import FAMILIES

STEPS = 3
PROMPTS = ("a red dog left of a cat", "two cats")
NEGATIVE = "a bad dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each family's folder, diffusers' pipeline and what this library loads of it; made when first asked for."""
    made = {}

    def get(family):
        if family not in made:
            path = tmp_path_factory.mktemp(family) / family
            made[family] = (path, tiny_folders.folder(family, path), load_pretrained(path, dtype=np.float32))
        return made[family]

    return get


def requests(pretrained, settings, **more):
    rng = np.random.default_rng(0)
    shape = latent_shape(pretrained, settings)
    noise = rng.standard_normal((len(PROMPTS), *shape)).astype(np.float32)
    return [Request(text, noise=latents, **more) for text, latents in zip(PROMPTS, noise, strict=True)]


def theirs(pipe, family, given, settings, **more):
    """diffusers' images [b, h, w, c] in [0, 1] from the same latents."""
    latents = torch.from_numpy(np.stack([request.noise for request in given]).transpose(0, 3, 1, 2).copy())
    if family in ("flux", "kontext"):
        b, c, h, w = latents.shape
        latents = pipe._pack_latents(latents, b, c, h, w)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=[request.prompt for request in given],
        negative_prompt=[NEGATIVE] * len(given),
        num_inference_steps=settings.num_steps,
        height=settings.height,
        width=settings.width,
        latents=latents,
        output_type="np",
        **more,
    ).images


def ours(pretrained, given, settings):
    """This library's images [b, h, w, c] in [0, 1]."""
    tokenizers = read_tokenizers(pretrained.family, pretrained.tokenizers)
    whole = prepare(pretrained, tokenizers, given, settings, omegas(given, settings))
    made = make(pretrained, settings, plan(pretrained, given, settings), whole)
    return np.clip(made.images / 2 + 0.5, 0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_images_as_diffusers(folders, family, record_property):
    _, pipe, pretrained = folders(family)
    distilled = family in ("flux", "kontext")
    scales = {"guidance": 2.0, "negative_guidance": 3.0} if distilled else {"guidance": 4.0}
    # of the texts at full length, `test_prompts` sees to
    length = {} if family in ("sd", "sdxl") else {"t5_length": 32}
    settings = defaults(family, 32, num_steps=STEPS, width=48, **scales, **length)
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    given = requests(pretrained, settings, negative=NEGATIVE, image=image if family == "kontext" else None)
    more = {"guidance_scale": settings.guidance}
    if length:
        more["max_sequence_length"] = settings.t5_length
    if distilled:
        more["true_cfg_scale"] = settings.negative_guidance
    if family == "kontext":
        more |= {"image": Image.fromarray(image), "_auto_resize": False, "max_area": 32 * 48}
    expected = theirs(pipe, family, given, settings, **more)
    made = ours(pretrained, given, settings)
    assert made.shape == expected.shape
    assert expected.std() > 0.05  # it is a picture, not a constant that all agree on
    error = np.abs(made - expected).max()
    record_property("max_error", float(error))
    print(f"{family}: maximal error {error:.1e} of a range of 1")
    assert error < 1e-4


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_networks_for_inpainting_are_diffusers(folders, family, monkeypatch):
    """Shown the mask and the latents of the rest; what is kept comes back bit for bit."""
    # the hole as the decoder gives it: that it follows the shades at the seam is this library's own, see `stitch`
    monkeypatch.setattr(batch, "stitch", lambda *images: stitch(*images[:-1], feather=0.0))
    _, pipe, pretrained = folders(f"{family} inpainting")
    assert (pretrained.family, pretrained.denoiser.module.inpaints) == (family, True)
    settings = defaults(family, 32, num_steps=STEPS, width=48, guidance=4.0)
    rng = np.random.default_rng(1)
    image, mask = rng.integers(0, 256, (32, 48, 3), np.uint8), np.zeros((32, 48, 1), np.float32)
    mask[5:20, 11:37] = 1  # begins within a latent
    given = requests(pretrained, settings, negative=NEGATIVE, image=image, mask=mask)
    # diffusers draws the latents of what is kept; this library takes their mode, as everywhere
    vae, shown = pipe.vae, image / np.float32(127.5) - 1
    with torch.no_grad():
        kept = torch.from_numpy((shown * (mask < 0.5)).transpose(2, 0, 1)[None])
        kept = vae.encode(kept).latent_dist.mode() * vae.config.scaling_factor
    expected = theirs(
        pipe,
        family,
        given,
        settings,
        guidance_scale=settings.guidance,
        image=[Image.fromarray(image)] * len(given),
        mask_image=[Image.fromarray((mask[..., 0] * 255).astype(np.uint8))] * len(given),
        masked_image_latents=kept.repeat(len(given), 1, 1, 1),
        strength=1.0,
    )
    made = ours(pretrained, given, settings)
    changed = mask[..., 0] > 0
    assert np.abs(made - expected)[:, changed].max() < 1e-4
    np.testing.assert_array_equal(np.round(made * 255)[:, ~changed], np.stack([image] * len(given))[:, ~changed])
    assert expected.std() > 0.05
    with pytest.raises(ValueError, match="a mask of 0 and 1 for this network for inpainting, got none"):
        check(pretrained, requests(pretrained, settings), settings)
    graded = requests(pretrained, settings, image=image, mask=mask / 2)
    with pytest.raises(ValueError, match="for inpainting, got shares between them"):
        check(pretrained, graded, settings)
