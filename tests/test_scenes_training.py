import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from asyncpatch_jax import timefield
from asyncpatch_jax.data import scenes
from asyncpatch_jax.metrics.alignment import Verdict
from asyncpatch_jax.pretrained.folders.loading import load_pretrained
from asyncpatch_jax.pretrained.settings import check_method
from asyncpatch_jax.pretrained.text.prompts import encode_prompts, read_tokenizers
from asyncpatch_jax.types import Condition
from launch.studies import scenes_model, text_page, train_scenes
from launch.studies import text as study

CHOSEN = {"batch": 4, "learning_rate": 1e-3, "seed": 0, "tiny": True}


families = pytest.mark.parametrize("family", scenes_model.FAMILIES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A family's folder in which a network was trained for two steps, and its pipeline; made when first asked for."""

    @functools.cache
    def get(family):
        folder = tmp_path_factory.mktemp("run")
        return folder, train_scenes.pipeline_of({**CHOSEN, "family": family, "cycles": [2]}, folder)

    return get


def test_every_word_is_one_token_and_ids_are_those_of_the_files(tmp_path):
    from asyncpatch_jax.pretrained.text.tokenizers import read_tokenizer

    scenes_model.write_tokenizer(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    texts = [caption.text for caption in scenes.captions()] + [""]
    tokens = tokenizer.encode(texts)
    np.testing.assert_array_equal(tokens.ids, np.array(scenes_model.caption_ids()))
    np.testing.assert_array_equal(tokens.mask.sum(1), [len(text.split()) + 2 for text in texts])
    assert not any(tokens.cut)


def test_a_word_has_one_number_in_every_process():
    """Letters, last letters, then what is merged: a training that is continued meets the words that it knows."""
    vocabulary = scenes_model.vocab()
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    assert tokens[:52] == [*letters, *(f"{letter}</w>" for letter in letters)]
    assert list(vocabulary.values()) == list(range(len(vocabulary)))


@families
def test_a_folder_says_what_was_trained(trained, family):
    folder, pipeline = trained(family)
    network = train_scenes.load(folder)
    pretrained = load_pretrained(pipeline, dtype=jnp.float32)
    assert pretrained.family == network.family == family
    labels = np.array([5, 400, 1000], np.int32)
    texts = [scenes.captions()[i].text for i in labels]
    cond, uncond = encode_prompts(
        pretrained.family,
        pretrained.components,
        read_tokenizers(pretrained.family, pretrained.tokenizers),
        texts,
        width=pretrained.denoiser.config.get("joint_attention_dim"),
        t5_length=0 if pretrained.family == "sd3" else None,
    )

    cond, uncond = jax.tree.map(jnp.asarray, (cond, uncond))

    @jax.jit
    def condition(label):
        return network.model.apply({"params": network.params}, label, method="condition")

    none = np.full_like(labels, network.model.num_classes)
    for ours, theirs in ((condition(labels), cond), (condition(none), uncond)):
        np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=1e-5)
        if pretrained.family == "sd3":
            np.testing.assert_allclose(ours.pooled, theirs.pooled, atol=1e-5)

    x, t = jax.random.normal(jax.random.key(0), (3, 24, 24, 1)), timefield.constant(0.5, 3)
    given = x, t, Condition(label=jnp.asarray(labels))
    whole, _ = jax.jit(network.model.apply)({"params": network.params}, *given)
    told = timefield.mapped(t, pretrained.scheduler.timestep)
    alone, _ = jax.jit(pretrained.denoiser.module.apply)({"params": pretrained.denoiser.params}, x, told, cond)
    np.testing.assert_allclose(whole, alone, atol=1e-4)


@families
def test_diffusers_reads_the_network(trained, family):
    import torch
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    _, pipeline = trained(family)
    pretrained = load_pretrained(pipeline, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 24, 24, 1)).astype(np.float32)
    tokens = rng.normal(size=(2, 12, 64 if pretrained.family == "sd" else 128)).astype(np.float32)
    pooled = rng.normal(size=(2, 128)).astype(np.float32)
    cond = Condition(tokens=jnp.asarray(tokens), pooled=None if pretrained.family == "sd" else jnp.asarray(pooled))
    told = jnp.full((2, 1, 1, 1), 300.0)  # in the network's own units
    ours, _ = jax.jit(pretrained.denoiser.module.apply)({"params": pretrained.denoiser.params}, x, told, cond)
    latents, time = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.tensor([300.0, 300.0])
    with torch.no_grad():
        if pretrained.family == "sd":
            network = UNet2DConditionModel.from_pretrained(pipeline / "unet")
            theirs = network(latents, time, encoder_hidden_states=torch.from_numpy(tokens)).sample
        else:
            network = SD3Transformer2DModel.from_pretrained(pipeline / "transformer")
            text = {"encoder_hidden_states": torch.from_numpy(tokens), "pooled_projections": torch.from_numpy(pooled)}
            theirs = network(latents, timestep=time, **text).sample
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-4)


def test_a_training_continues_and_refuses_other_settings(trained, tmp_path):
    chosen, folder = {**CHOSEN, "family": "sd3", "cycles": [2, 3]}, tmp_path / "run"
    shutil.copytree(trained("sd3")[0], folder)
    assert train_scenes.load(folder).step == 2
    assert train_scenes.fit(chosen, folder)
    assert train_scenes.load(folder).step == 5
    with pytest.raises(ValueError, match=r"of these settings, got others: learning_rate: 0.001 -> 0.002"):
        train_scenes.fit({**chosen, "learning_rate": 2e-3}, folder)
    with pytest.raises(ValueError, match="expected a family out of sd, sd3"):
        scenes_model.configs("sdxl")


def test_the_results_are_made_by_one_command(tmp_path, monkeypatch, capsys):
    few = {name: study.SCHEDULES[name] for name in ("DM", "AsynDM, ω = .5")}
    monkeypatch.setattr(study, "SCHEDULES", few)
    monkeypatch.setattr(study, "BASELINES", {})
    monkeypatch.setattr(study, "NOISY", ())
    monkeypatch.setattr(study, "GUIDANCE", (3.0,))
    values = flags.FlagValues()
    study.define_flags(values)
    out = tmp_path / "docs" / "page.md"
    given = "results --families=sd3 --tiny --steps=3 --captions=4 --seeds=2"
    values([*given.split(), f"--runs={tmp_path / 'runs'}", f"--out={out}"])
    study.make_page(values, "the command")
    text = out.read_text()
    assert "AsynDM, ω = .5" in text
    assert (out.parent / "images" / "page_sd3_run.png").stat().st_size > 1000
    record = json.loads((tmp_path / "runs" / "sd3" / "DM" / "1.json").read_text())
    assert len(record["verdicts"]) == 4
    # what is finished is not done again
    capsys.readouterr()
    study.make_page(values, "the command")
    assert "alignment" not in capsys.readouterr().out
    assert out.read_text() == text


class Known:
    def __init__(self, *alignments):
        self.verdicts = [Verdict(a, None, None, None) for a in alignments]


def test_differences_are_paired():
    base, other = [Known(0.1, 0.9, 0.5, 0.3)] * 2, [Known(0.2, 1.0, 0.6, 0.4)] * 2
    difference = text_page.scores(other, text_page._alignment)
    difference = difference - text_page.scores(base, text_page._alignment)
    np.testing.assert_allclose(text_page.interval(difference), (10, 10, 10), atol=1e-9)
    _, low, high = text_page.interval(np.random.default_rng(0).normal(1.0, 5.0, (4, 400)))
    assert 0.2 < (high - low) / 2 < 0.8
    assert low < 1.0 < high


@families
def test_every_method_that_a_network_supports_is_measured(family):
    """The settings of each are good ones, and none of the paper's baselines is left out."""
    methods = study.methods(family)
    assert {name for name in methods if name in study.BASELINES} == set(study.BASELINES)
    for changes in methods.values():
        check_method(family, study.settings(family, 20, 4.0, changes))


def test_held_out_captions_are_of_all_kinds():
    labels = study.chosen_captions("test", 64)
    assert len(set(labels)) == 64
    assert set(labels) <= set(scenes.split_captions("test"))
    assert {scenes.captions()[i].kind for i in labels} == {"count", "place", "relation", "sized"}


def test_a_pipeline_is_replaced_and_own_files_in_it_stay(trained):
    folder, pipeline = trained("sd")
    (pipeline / "notes.txt").write_text("mine")
    before = (pipeline / "model_index.json").stat().st_ino
    train_scenes.write_pipeline(train_scenes.load(folder), pipeline)
    assert (pipeline / "notes.txt").read_text() == "mine"
    assert (pipeline / "model_index.json").stat().st_ino != before
    assert load_pretrained(pipeline, dtype=jnp.float32).family == "sd"
    index = (pipeline / "model_index.json").read_text()
    (pipeline / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got model_index.json changed since"):
        train_scenes.write_pipeline(train_scenes.load(folder), pipeline)
    (pipeline / "model_index.json").write_text(index)
    (pipeline / "notes.txt").unlink()
