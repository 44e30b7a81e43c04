"""Networks that learn from texts: what they are told, in training and by prompts, and whose texts those are."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax import data
from asyncpatch_jax.training import losses
from asyncpatch_jax.types import Condition, Times
from launch import train
from launch.shared import autoencoders, build, cli, datasets, pictures, programs, texts, trained
from launch.shared.generate import denoiser
from tests import drawn, mains, tiny_autoencoder
from tests.test_text_encoder import bert

SMALL = {
    "times.name": "synchronous",  # compiles fastest
    "model.name": "dit",
    "model.preset": "",
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 1,
    "model.patch": 4,
    "model.log_variance": False,
    "optim.schedule": "constant",
    "sample.steps": 2,
    "train.batch": 8,
    "train.steps": 2,
    "train.checkpoint_every": 2,
    "train.sample_every": 0,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("bert"))[1]


def configured(encoder, folder, **more):
    config = cli.load("configs/digits.py")
    settings = {**SMALL, "text.encoder": str(encoder), "text.length": 6, "workdir": str(folder), **more}
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def pictures_with_texts(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("captioned"), np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (9, 8), np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.json").write_text(json.dumps({"caption": ["a red dog", f"{'two' if i % 2 else 'a'} cats"]}))
    return folder


@pytest.fixture(scope="module")
def run(encoder, pictures_with_texts, tmp_path_factory):
    """A trained run; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = configured(encoder, folder, **{"data.name": "captions", "data.path": str(pictures_with_texts)})
    train.run(config)
    return folder


def test_a_batch_has_one_of_each_images_texts_drawn_anew(encoder, pictures_with_texts):
    source = data.captioned(pictures_with_texts, 8, 1)
    tokens = texts.read_text_encoder(encoder, 6).one
    stream = data.batches(source, batch=24, seed=0, tokens=tokens)
    seen = [next(stream) for _ in range(4)]
    known = {text: tokens(text)[0].tobytes() for text in ("a red dog", "two cats", "a cats")}
    drawn_texts = {ids.tobytes() for batch in seen for ids in batch["ids"]}
    assert drawn_texts == set(known.values())
    first = np.mean([ids.tobytes() == known["a red dog"] for batch in seen for ids in batch["ids"]])
    assert 0.35 < first < 0.65
    assert set(seen[0]) == {"image", "label", "ids", "counted"}
    again = data.batches(source, batch=24, seed=0, tokens=tokens, start=2)
    np.testing.assert_array_equal(next(again)["ids"], seen[2]["ids"])
    assert set(next(data.batches(source, batch=24, seed=0))) == {"image", "label"}
    with pytest.raises(ValueError, match="expected data with texts"):
        data.batches(data.digits(), batch=4, seed=0, tokens=tokens)


def test_dropped_texts_are_those_of_no_prompt():
    cond = Condition(tokens=jnp.ones((400, 3, 2)), mask=jnp.arange(3)[None] < jnp.array([[2]] * 400))
    found = losses.drop_texts(jax.random.key(0), cond, 0.25)
    rows = np.asarray(found.mask)
    assert {tuple(row) for row in rows} == {(True, True, False), (False, False, False)}
    assert abs(1 - rows[:, 0].mean() - 0.25) < 0.06
    assert not np.asarray(losses.drop_texts(jax.random.key(0), cond, 1.0).mask).any()
    with pytest.raises(ValueError, match="a condition with tokens, got none"):
        losses.drop_texts(jax.random.key(0), Condition(label=jnp.zeros(2, jnp.int32)), 0.1)


def test_a_run_goes_on_and_refuses_another_encoder(run, encoder, pictures_with_texts, tmp_path, capsys):
    more = {"data.name": "captions", "data.path": str(pictures_with_texts)}
    moved = encoder.rename(encoder.with_name("moved"))
    try:
        train.run(configured(moved, run, **more, **{"train.steps": 3}))
        assert "at step 2" in capsys.readouterr().out
    finally:
        moved.rename(encoder)
    (tmp_path / "other").mkdir()
    config = json.loads((encoder / "config.json").read_text())
    for file in encoder.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    with pytest.raises(ValueError, match=r"text\.digest"):
        train.run(configured(tmp_path / "other", run, **more, **{"train.steps": 4}))
    with pytest.raises(ValueError, match="say by --text_encoder=FOLDER where that of the run lies now"):
        texts.of_run(build.load_run(run).config, None, str(tmp_path / "other"))


def test_prompts_are_told_and_guide(run, encoder):
    """A network whose parameters are random, for those of two steps hardly look at texts."""
    made = build.load_run(run)
    made = made._replace(
        params=drawn.params_like(made.params), encoder=texts.of_run(made.config, made.mesh, str(encoder))
    )
    told = made.told(["a red dog", "two cats"])
    assert told.kinds == ("a red dog", "two cats")
    known = np.zeros((3, *made.shape), np.float32)

    def x0(run, labels):
        given = pictures.inputs(run, jax.random.key(0), known, np.array(labels))
        t = jnp.full((3, 1, 1, 1), 0.7)
        x = jnp.asarray(drawn.normal(1, *made.shape)).repeat(3, 0)
        return np.asarray(jax.jit(lambda p: denoiser(pictures.net(run), p, given)(x, Times(t, t)).x0)(run.params))

    made.config.sample.guidance = 1.0
    first = x0(told, [0, 1, 0])
    np.testing.assert_allclose(first[0], first[2], atol=1e-6)
    assert np.abs(first[0] - first[1]).max() > 1e-3
    none = x0(made, [0, 0, 0])[0]
    assert np.abs(first[0] - none).max() > 1e-3
    made.config.sample.guidance = 3.0
    np.testing.assert_allclose(x0(told, [0, 1, 0])[0], none + 3.0 * (first[0] - none), atol=1e-4)


def test_pages_tell_each_image_its_own_text(run, encoder, pictures_with_texts, monkeypatch):
    source, seen = data.captioned(pictures_with_texts, 8, 1), []
    made = build.load_run(run)
    made = made._replace(encoder=texts.of_run(made.config, made.mesh, str(encoder)))
    assert pictures.some_texts(source) == ["a red dog"] * 10

    def stop(net, params, schedule, inputs, **more):
        seen.append(inputs)
        raise StopIteration

    monkeypatch.setattr(pictures, "generate", stop)
    for page in (
        lambda: pictures.samples(made.told(["two cats", "a cats"]), jax.random.key(0)),
        lambda: pictures.inpaintings(made, source, jax.random.key(0)),
    ):
        with pytest.raises(StopIteration):
            page()
    rows, holes = seen
    vectors = made.told(["two cats", "a cats", "a red dog"]).prompts.vectors
    np.testing.assert_array_equal(rows.tokens, vectors[[0] * 10 + [1] * 10])
    np.testing.assert_allclose(holes.tokens, vectors[[2] * 21], atol=1e-6)


def test_commands_take_prompts(run, encoder, tmp_path, monkeypatch, capsys):
    call = mains.command(monkeypatch, capsys)
    asked = ("sample", f"--workdir={run}", "--steps=2", "--num=3", "--overwrite")
    out, where = tmp_path / "made", f"--text_encoder={encoder}"
    code, _, err = call(*asked, "--prompt=a red dog", "--prompt=two cats", "--guidance=2", f"--out={out}", where)
    assert code == 0, err
    said = json.loads(Image.open(out / "images" / "0001.png").text["asyncpatch_jax"])
    assert (said["prompts"], said["label"]) == (["a red dog", "two cats"], 1)
    assert call(*asked, f"--out={out}")[0] == 0
    code, _, err = call(*asked, "--guidance=2", f"--out={out}")
    assert (code, "expected --guidance=1 without a --prompt, got 2.0" in err) == (1, True)
    code, _, err = call("sample", f"--workdir={run}", "--prompt=x", "--text_encoder=/none", f"--out={tmp_path / 'b'}")
    assert (code, "say by --text_encoder=FOLDER" in err) == (1, True)


def test_latents_may_be_encoded_on_the_way(encoder, pictures_with_texts, tmp_path, monkeypatch):
    """A batch of pictures and texts becomes what the program of a network in latents takes."""
    monkeypatch.setattr(autoencoders, "_MEASURED", 8)
    vae = tiny_autoencoder.folder(tmp_path / "vae")
    more = {"data.name": "captions", "data.path": str(pictures_with_texts), "data.size": 16}
    more |= {"data.autoencoder": str(vae), "data.latents": "online", "model.patch": 1}
    config = configured(encoder, tmp_path / "run", **more)
    mesh = build.mesh(config)
    reader, coder = texts.chosen(config, mesh), autoencoders.chosen(config, mesh)
    source = texts.with_texts(config, autoencoders.training_data(config, coder))
    seen, coder = autoencoders.measured(config, source, coder, None)
    network = build.untrained(config, seen)._replace(mesh=mesh, autoencoder=coder, encoder=reader)
    asked = programs.training(config, network, mesh).args[1]
    batch = train.seen(network, next(train.stream(config, source, mesh, reader)))
    assert {name: leaf.shape for name, leaf in batch.items()} == {name: leaf.shape for name, leaf in asked.items()}
    assert batch["image"].shape[1:] == network.shape != source.shape


def test_one_prompt_is_what_photos_are_told(run, encoder):
    made = build.load_run(run)
    made = made._replace(encoder=texts.of_run(made.config, made.mesh, str(encoder)))
    assert trained.label(made.told(["a red dog"]), None) == 0
    for prompts, name in ((["a red dog", "two cats"], None), (["a red dog"], "3")):
        with pytest.raises(ValueError, match="expected one --prompt and no --label, got"):
            trained.label(made.told(prompts), name)


def test_names_of_classes_are_texts_and_other_data_have_none(encoder, tmp_path):
    config = configured(encoder, tmp_path)
    found = texts.chosen(config, None)
    assert (config.text.width, config.text.length, config.text.digest) == (16, 6, found.digest)
    digits = texts.with_texts(config, datasets.dataset(config))
    assert digits.source[3]["texts"] == (digits.class_names[digits.source[3]["label"]],)
    with pytest.raises(ValueError, match="expected data with texts"):
        texts.with_texts(config, digits._replace(num_classes=1, texts=False))
    config.text.encoder = ""
    with pytest.raises(ValueError, match=r"expected --config.text.encoder=FOLDER to learn from texts"):
        texts.chosen(config, None)
