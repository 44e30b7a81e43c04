"""Training in latents: of files or encoded on the way it is the same, and a run knows its autoencoder again."""

import json
import shutil

import numpy as np
import pytest

from asyncpatch_jax.data import encoded
from asyncpatch_jax.keys import of_seed
from launch import train
from launch.shared import autoencoders, build, cli, datasets, programs
from tests import drawn, mains, tiny_autoencoder

SMALL = {
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
    """What a training begins with: the network, its program, and its batches."""
    mesh = build.mesh(config)
    coder = autoencoders.chosen(config, mesh)
    source = autoencoders.training_data(config, coder)
    data, coder = autoencoders.measured(config, source, coder, None)
    network = build.untrained(config, data)._replace(mesh=mesh, autoencoder=coder)
    return network, programs.training(config, network, mesh), train.stream(config, source, mesh)


def test_online_and_cached_training_see_the_same_and_lose_the_same(vae, latents, monkeypatch):
    monkeypatch.setattr(autoencoders, "_MEASURED", 2000)
    monkeypatch.setattr(autoencoders, "_BATCH", 128)
    losses, seen = {}, {}
    for where in (str(latents), "online"):
        config = configured(vae, where)
        network, program, stream = begun(config)
        assert network.shape == (4, 4, 2)
        assert network.pixels == (8, 8, 1)
        state = train.create(drawn.params_like(network.params), build.optimizer(config))
        batches = [train.seen(network, next(stream)) for _ in range(3)]
        seen[where] = np.stack([batch["image"] for batch in batches])
        losses[where] = []
        for batch in batches:
            state, metrics = program.fn(state, batch, of_seed(0))
            losses[where].append(float(metrics["loss"]))
    np.testing.assert_allclose(seen["online"], seen[str(latents)], atol=3e-3)
    np.testing.assert_allclose(losses["online"], losses[str(latents)], rtol=1e-3)
    assert len(set(losses["online"])) == 3


def test_a_run_in_latents_goes_on_and_knows_its_autoencoder(vae, latents, tmp_path, monkeypatch, capsys):
    mains.begin_with_drawn_parameters(monkeypatch)
    moved = tmp_path / "vae"
    shutil.copytree(vae, moved)
    config = configured(moved, latents, workdir=str(tmp_path / "run"))
    train.run(config.copy_and_resolve_references())
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["config"]["data"]["autoencoder"] == str(moved)
    assert told["data"]["shape"] == [4, 4, 2]
    capsys.readouterr()
    more = config.copy_and_resolve_references()
    more.train.steps = 3
    train.run(more)
    assert "continuing" in capsys.readouterr().out

    run = build.load_run(tmp_path / "run")
    assert told["data"]["latents"]["autoencoder"] == run.autoencoder.digest
    assert run.step == 3
    data = encoded.latents(latents)
    image = datasets.dataset(config).source[700]["image"].astype(np.float32)[None] / 127.5 - 1
    np.testing.assert_allclose(run.encoded(image)[0], data.source[700]["image"], atol=3e-3)
    assert run.decoded(np.zeros((1, *run.shape), np.float32)).shape == (1, 8, 8, 1)

    shutil.move(moved, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"expected a folder.*--autoencoder=FOLDER says where"):
        build.load_run(tmp_path / "run")
    assert build.load_run(tmp_path / "run", autoencoder=tmp_path / "elsewhere").autoencoder is not None
    other = tiny_autoencoder.folder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"trained with \(.*got another one"):
        build.load_run(tmp_path / "run", autoencoder=other)
    with pytest.raises(ValueError, match="of another autoencoder"):
        train.run(configured(other, latents, workdir=str(tmp_path / "run")))
    # an online run of it would see images that are not called as those latents are
    with pytest.raises(ValueError, match=r"(?s)other settings or data.*images of other names"):
        train.run(configured(tmp_path / "elsewhere", "online", workdir=str(tmp_path / "run")))


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
