"""Training in latents: of files or encoded on the way it is the same, and a run knows its autoencoder again."""

import json
import shutil

import jax
import numpy as np
import pytest

from asyncpatch_jax.data import encoded
from asyncpatch_jax.keys import of_seed, per_image
from launch import train
from launch.shared import autoencoders, build, cli, datasets
from tests import drawn, mains, tiny_autoencoder

SMALL = {
    "data.split": "test",  # the smaller one
    "data.augment": "flip",
    "times.name": "synchronous",  # compiles fastest
    "model.name": "dit",
    "model.preset": "",
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 1,
    "model.patch": 2,
    "optim.schedule": "constant",
    "train.batch": 8,
    "train.steps": 2,
    "train.checkpoint_every": 2,
    "train.sample_every": 0,
}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return tiny_autoencoder.folder(tmp_path_factory.mktemp("vae") / "vae")


def configured(vae, where, **more):
    config = cli.load("configs/digits.py")
    settings = {**SMALL, "data.autoencoder": str(vae), "data.latents": str(where), **more}
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def latents(vae, tmp_path_factory):
    """The folder of all training digits, encoded."""
    folder = tmp_path_factory.mktemp("latents") / "latents"
    config = configured(vae, folder)
    coder, data = autoencoders.chosen(config, None), datasets.dataset(config)
    about = autoencoders.about(config, data, coder, dtype="float16", images=len(data.source), shard=1000)
    encoded.begin(folder, about)
    encoded.write(folder, about, data, coder.encode, batch=128)
    encoded.finish(folder, about)
    return folder


def begun(config):
    """What a training begins with: the network, its source, and the batches of it."""
    mesh = build.mesh(config)
    coder = autoencoders.chosen(config, mesh)
    source = autoencoders.training_data(config, coder)
    data, coder = autoencoders.measured(config, source, coder, None)
    network = build.untrained(config, data)._replace(mesh=mesh, autoencoder=coder)
    return network, train.stream(config, source, mesh)


def test_online_and_cached_training_see_the_same_and_lose_the_same(vae, latents, monkeypatch):
    monkeypatch.setattr(autoencoders, "_MEASURED", 2000)
    monkeypatch.setattr(autoencoders, "_BATCH", 128)
    losses, seen, loss = [], [], None
    for where in (str(latents), "online"):
        config = configured(vae, where)
        network, stream = begun(config)
        assert network.shape == (4, 4, 2)
        assert network.pixels == (8, 8, 1)
        loss = loss or jax.jit(build.loss(config, network.model))
        params, keys = drawn.params_like(network.params), per_image(of_seed(0), 8)
        batches = [train.seen(network, next(stream)) for _ in range(3)]
        seen.append([np.asarray(batch["image"]) for batch in batches])
        losses.append([float(loss(params, keys, jax.device_get(batch))[0]) for batch in batches])
    np.testing.assert_allclose(*seen, atol=3e-3)
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert len(set(losses[0])) == 3


def test_a_run_goes_on_as_it_began_and_knows_its_autoencoder(vae, latents, tmp_path, monkeypatch, capsys):
    mains.begin_with_drawn_parameters(monkeypatch)
    monkeypatch.setattr(autoencoders, "_MEASURED", 64)
    moved, folder = tmp_path / "vae", tmp_path / "run"
    shutil.copytree(vae, moved)
    config = configured(moved, "online", workdir=str(folder), **{"train.steps": 1})
    train.run(config.copy_and_resolve_references())
    told = json.loads((folder / "run.json").read_text())
    assert told["config"]["data"]["autoencoder"] == str(moved)
    assert told["data"]["shape"] == [4, 4, 2]
    capsys.readouterr()
    config.train.steps = 2
    monkeypatch.setattr(autoencoders.encoded, "measure", None)  # shift and scale are known by now
    train.run(config)
    assert "continuing" in capsys.readouterr().out

    run = build.load_run(folder)
    assert run.step == 2
    assert told["data"]["latents"]["autoencoder"] == run.autoencoder.digest
    np.testing.assert_array_equal(np.float32(told["data"]["latents"]["shift"]), run.autoencoder.shift)
    assert run.decoded(np.zeros((1, *run.shape), np.float32)).shape == (1, 8, 8, 1)

    shutil.move(moved, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"expected a folder.*--autoencoder=FOLDER says where"):
        build.load_run(folder)
    assert build.load_run(folder, autoencoder=tmp_path / "elsewhere").autoencoder is not None
    other = tiny_autoencoder.folder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"trained with \(.*got another one"):
        build.load_run(folder, autoencoder=other)
    with pytest.raises(ValueError, match="of another autoencoder"):
        train.run(configured(other, latents, workdir=str(folder), **{"train.steps": 2}))
    # what is kept in files is rounded: other data
    with pytest.raises(ValueError, match=r"(?s)other settings or data.*images of other names"):
        train.run(configured(tmp_path / "elsewhere", latents, workdir=str(folder), **{"train.steps": 2}))


def test_what_is_missing_for_latents_is_told(vae, latents):
    def refused(match, **settings):
        config = cli.load("configs/digits.py")
        config.update_from_flattened_dict(settings)
        with pytest.raises(ValueError, match=match):
            autoencoders.chosen(config, None)

    assert autoencoders.chosen(cli.load("configs/digits.py"), None) is None
    coder, online = {"data.autoencoder": str(vae)}, {"data.latents": "online"}
    refused("expected --config.data.autoencoder=FOLDER", **online)
    refused("expected --config.data.latents=FOLDER, which launch.encode fills, or online", **coder)
    refused("expected --config.data.autoencoder=FOLDER", **{"data.latent_channels": 4})
    refused("an autoencoder with factor = 8, got 2", **coder, **online, **{"data.factor": 8})
    refused("config.data.channels = 1, as .* takes, got 3", **coder, **online, **{"data.channels": 3})
    refused("config.data.size to be a multiple of 2", **coder, **online, **{"data.size": 9})
    config = configured(vae, latents, **{"times.grid": (3, 3)})
    autoencoders.chosen(config, None)
    with pytest.raises(ValueError, match="tile 4x4 latents"):
        build.field_grid(config)
