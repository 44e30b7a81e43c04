"""The CLIP of captioned scenes: its loss, and what its folder is to us and to transformers."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from asyncpatch_jax.data import scenes
from asyncpatch_jax.metrics.clip import read_clip
from asyncpatch_jax.metrics.pixels import MEAN, STD
from launch.policy import rewarding
from launch.studies import train_alignment, train_scenes
from tests import mains

CHOSEN = {"steps": 4, "batch": 4, "learning_rate": 1e-3, "seed": 0, "tiny": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "clip"
    return train_alignment.trained(CHOSEN, folder)


def label(text):
    return next(i for i, caption in enumerate(scenes.captions()) if caption.text == text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a two left of a three", "a three right of a two", True),
        ("a two left of a three", "a three left of a two", False),
        ("a two", "a two in the middle", True),
        ("a two in the top left corner", "a two in the middle", False),
        ("a two", "a small two", False),
        ("two threes", "three threes", False),
        ("two threes", "a three", False),
    ],
)
def test_captions_that_are_true_of_one_scene(one, other, expected):
    also = train_alignment.also_true()
    assert also[label(one), label(other)] == also[label(other), label(one)] == expected


def test_the_loss_is_cross_entropy_both_ways_without_what_is_also_true():
    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(2, 4, 6))
    also = np.eye(4, dtype=bool)
    also[0, 2] = also[2, 0] = True
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (texts, images)]
    logits = 3.0 * unit[0] @ unit[1].T
    expected = []
    for rows in (logits, logits.T):
        for i, row in enumerate(rows):
            kept = [j for j in range(4) if j == i or not also[i, j]]
            expected.append(scipy.special.logsumexp(row[kept]) - row[i])
    found = train_alignment.contrast(*map(jnp.asarray, (texts, images)), jnp.float32(3.0), jnp.asarray(also))
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)
    gradient = jax.grad(lambda t: train_alignment.contrast(t, jnp.asarray(images), 3.0, jnp.asarray(also)))
    assert np.isfinite(gradient(jnp.asarray(texts))).all()


def test_its_folder_is_a_reward_and_transformers_reads_it(trained):
    import torch
    import transformers

    source = scenes.scenes("test").source
    images = np.stack([source[i]["image"] for i in range(3)])
    texts = ["a two", "a small one above a large five", "three sevens"]
    reward = rewarding.parse(f"clip_score={trained}").of["clip_score"]
    _, tokenizer = read_clip(trained)
    theirs = transformers.CLIPModel.from_pretrained(trained)
    pixels = np.repeat(images, 3, -1) / 255.0
    pixels = torch.tensor(((pixels - MEAN) / STD).transpose(0, 3, 1, 2), dtype=torch.float32)
    ids = torch.tensor(np.asarray(tokenizer.encode(texts).ids), dtype=torch.long)
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=pixels)
    cosine = (out.text_embeds * out.image_embeds).sum(-1).numpy()
    np.testing.assert_allclose(reward(images, texts), 2.5 * np.maximum(cosine, 0), atol=1e-4)


def test_it_continues_and_refuses_another_training(trained, tmp_path, monkeypatch):
    whole = trained.parent
    assert sorted(p.name for p in whole.iterdir()) == ["captions.txt", "checkpoints", "clip", "held_out.txt"]
    assert len((whole / "held_out.txt").read_text().splitlines()) == len(scenes.split_captions("test"))
    fit = train_scenes.loop.fit
    stopped = {"checkpoint_every": 2, "on_step": lambda done: done == 2 and signal.raise_signal(signal.SIGTERM)}
    monkeypatch.setattr(train_scenes.loop, "fit", lambda *args, **more: fit(*args, **{**more, **stopped}))
    assert train_alignment.trained(CHOSEN, tmp_path / "parts") is None
    assert not (tmp_path / "parts" / "clip").exists()
    monkeypatch.setattr(train_scenes.loop, "fit", fit)
    parts = train_alignment.trained(CHOSEN, tmp_path / "parts")
    assert (parts / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="empty or a training of"):
        train_alignment.trained({**CHOSEN, "seed": 1}, whole)


def test_the_command(monkeypatch, capsys, tmp_path):
    asked = ("--tiny", "--steps=2", "--batch=4", "--num=20", f"--workdir={tmp_path / 'clip'}")
    code, out, err = mains.command(monkeypatch, capsys)("studies.train_alignment", *asked)
    assert code == 0, err
    assert "held-out captions and digits: fits better than another of its kind" in out


def test_how_often_the_true_caption_is_found(trained, monkeypatch):
    """By vectors that tell captions apart by design, and by those that do not."""
    captions = scenes.captions()
    table = np.eye(len(captions))
    source = scenes.scenes("train", seed=3).source
    labels = [source[i]["label"] for i in range(40)]
    monkeypatch.setattr(train_alignment, "_vectors", lambda *args: [table, table[labels]])
    assert train_alignment.found(trained, "train", 40, seed=3) == (1.0, 1.0)
    monkeypatch.setattr(train_alignment, "_vectors", lambda *args: [-table, table[labels]])
    assert train_alignment.found(trained, "train", 40, seed=3) == (0.0, 0.0)
