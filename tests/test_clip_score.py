"""CLIPScore against transformers' model and image processor, and Pillow's resize."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from asyncpatch_jax.metrics.clip import clip_score, read_clip
from asyncpatch_jax.metrics.pixels import bicubic, preprocess
from tests import tiny

TEXTS = ["a red dog, and two dogs", "a cat", "an apple on the street"]


def some_images(size, count=3, low=0, high=256):
    """Noise and a gradient: values that overshoot, and smooth ones."""
    rng = np.random.default_rng(0)
    images = rng.integers(low, high, (count, *size, 3), dtype=np.uint8)
    images[0] = np.linspace(0, 255, size[1])[None, :, None]
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "model"
    vocab = tiny.clip_tokenizer(folder, length=24)
    text = {
        "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 24, "eos_token_id": vocab - 1, "bos_token_id": vocab - 2,
        "projection_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 20, "patch_size": 5, "projection_dim": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    tiny.randomised(transformers.CLIPModel(config), seed=0).save_pretrained(folder)
    processor(20).save_pretrained(folder)
    return folder


def processor(size):
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


@pytest.mark.parametrize(("before", "after"), [(100, 20), (33, 20), (20, 33), (7, 20), (20, 20), (1, 5)])
def test_bicubic_is_pillows(before, after):
    line = np.random.default_rng(1).uniform(0, 1, before).astype(np.float32)
    theirs = np.asarray(Image.fromarray(line[None]).resize((after, 1), Image.Resampling.BICUBIC))[0]
    np.testing.assert_allclose(bicubic(before, after) @ line, theirs, atol=1e-6)


def differences(images):
    """In levels, of our pixels from transformers'."""
    theirs = processor(20)(list(images), return_tensors="np").pixel_values.transpose(0, 2, 3, 1)
    return np.abs(jax.jit(partial(preprocess, size=20))(images) - theirs) * 0.27 * 255


@pytest.mark.parametrize("size", [(20, 20), (31, 47), (9, 13), (20, 41), (40, 40)])
def test_pixels_are_transformers(size):
    found = differences(some_images(size))
    assert found.max() < 1.1  # where rounding decides
    assert (found > 0.01).mean() < 1e-3


@pytest.mark.parametrize("size", [(50, 24), (41, 20)])
def test_pixels_of_tall_images(size):
    """Pillow 13 resizes their columns first: one level where no value overshoots."""
    assert differences(some_images(size, low=64, high=192)).max() < 1.1


@pytest.mark.parametrize("prefix", ["", "A photo depicts "])
def test_cosines_are_transformers(folder, prefix):
    images = some_images((31, 47))
    component, tokenizer = read_clip(folder)
    ours = clip_score(component, tokenizer, images, TEXTS, prefix=prefix)
    model = transformers.CLIPModel.from_pretrained(folder)
    words = transformers.CLIPTokenizer.from_pretrained(folder)([prefix + t for t in TEXTS], padding=True)
    pixels = processor(20)(list(images), return_tensors="pt").pixel_values
    with torch.no_grad():
        out = model(torch.tensor(words.input_ids), pixels, attention_mask=torch.tensor(words.attention_mask))
    theirs = (out.text_embeds * out.image_embeds).sum(-1).numpy()
    np.testing.assert_allclose(ours.cosine, theirs, atol=2e-4)  # a level of one pixel
    np.testing.assert_allclose(ours.score, 2.5 * np.maximum(ours.cosine, 0))
    np.testing.assert_allclose(ours.percent, 40 * ours.score, rtol=1e-6)
    assert ours.cosine.std() > 0.01


def test_scores_do_not_depend_on_the_batch(folder):
    component, tokenizer = read_clip(folder)
    images = np.concatenate([some_images((20, 20), 3)] * 12)
    texts = TEXTS * 12
    all_of_them = clip_score(component, tokenizer, images, texts).cosine
    alone = clip_score(component, tokenizer, images[34:35], texts[34:35]).cosine
    assert all_of_them.shape == (36,)
    np.testing.assert_allclose(all_of_them[34], alone[0], atol=1e-5)


def test_what_is_no_clip(folder, tmp_path):
    component, tokenizer = read_clip(folder, jnp.bfloat16)
    with pytest.raises(ValueError, match="each of 3 images, got 2"):
        clip_score(component, tokenizer, some_images((20, 20)), TEXTS[:2])
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match="image_mean"):
        read_clip(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    config = {**config["text_config"], "architectures": ["CLIPTextModelWithProjection"]}
    vocab = config["vocab_size"]
    net = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    net.save_pretrained(tmp_path)
    assert vocab == net.config.vocab_size
    with pytest.raises(ValueError, match="expected a CLIPModel"):
        read_clip(tmp_path)
