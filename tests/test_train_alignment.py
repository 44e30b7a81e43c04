"""The CLIP of captioned scenes: its loss, and what its folder is to us and to transformers."""

import functools
import shutil
import signal

import jax
import numpy as np
import pytest
import scipy.special

from asyncpatch_jax.data import scenes
from asyncpatch_jax.metrics.clip import read_clip
from asyncpatch_jax.metrics.pixels import MEAN, STD
from asyncpatch_jax.pretrained.networks import clip
from asyncpatch_jax.training.step import create, jit_step
from launch.policy import rewarding
from launch.studies import train_alignment, train_scenes
from tests import drawn, mains

CHOSEN = {"steps": 4, "batch": 4, "learning_rate": 1e-3, "seed": 0, "tiny": True}


init = clip.CLIPModel.init


@functools.cache
def begun(model):
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0), *clip.example(model))
    with jax.ensure_compile_time_eval():  # asked for within a program, and kept for others
        return jax.device_get({"params": drawn.params_like(shapes["params"])})


@pytest.fixture(scope="module", autouse=True)
def programs():
    """All trainings begin with the same parameters, and have one step; few programs are compiled before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.CLIPModel, "init", lambda model, key, *example: begun(model))
        patch.setattr(train_scenes, "create", jax.jit(create, static_argnums=1))
        made = []

        def step(*settings):
            made[:] = made or [jit_step(*settings)]
            return made[0]

        patch.setattr(train_scenes, "jit_step", step)
        yield


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
    contrast = jax.jit(jax.value_and_grad(train_alignment.contrast))
    found, gradient = contrast(*np.float32([texts, images]), np.float32(3.0), also)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)
    assert np.isfinite(gradient).all()


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


def test_the_command(trained, monkeypatch, capsys, tmp_path):
    """Of a folder whose training is done: its settings are those that the flags say."""
    shutil.copytree(trained.parent, tmp_path / "clip")
    asked = ("--tiny", "--steps=4", "--batch=4", "--num=20", f"--workdir={tmp_path / 'clip'}")
    command = mains.command(monkeypatch, capsys)
    code, out, err = command("studies.train_alignment", *asked)
    assert code == 0, err
    assert "held-out captions and digits: fits better than another of its kind" in out
    code, _, err = command("studies.train_alignment", *asked, "--seed=1")
    assert code == 1
    assert "empty or a training of" in err


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
