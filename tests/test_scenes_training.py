"""Small text-to-image networks of captioned scenes: their training, what their folders are to others, and the page."""

import functools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import linen as nn

from asyncpatch_jax import timefield
from asyncpatch_jax.data import scenes
from asyncpatch_jax.metrics.alignment import Verdict
from asyncpatch_jax.pretrained.folders.loading import load_pretrained
from asyncpatch_jax.pretrained.settings import check_method
from asyncpatch_jax.pretrained.text.prompts import encode_prompts, read_tokenizers
from asyncpatch_jax.training import loop
from asyncpatch_jax.training.step import create
from asyncpatch_jax.types import Condition
from launch.shared import scenes_judge
from launch.studies import scenes_model, text_page, train_scenes
from launch.studies import text as study
from tests.drawn import params_like

# the second is what the command that makes the page trains when it is only tried
CHOSEN = {
    "sd": {"family": "sd", "batch": 4, "learning_rate": 1e-3, "seed": 0, "cycles": [2], "tiny": True},
    "sd3": {"family": "sd3", "batch": 32, "learning_rate": 1e-3, "seed": 0, "cycles": [8], "tiny": True},
}


families = pytest.mark.parametrize("family", scenes_model.FAMILIES)
init = scenes_model.init


@functools.cache
def _shapes(model, size):
    image, label = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    time = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image, time, Condition(label=label))["params"]


def drawn_init(model, key, size):
    """In the place of `scenes_model.init`."""
    return params_like(_shapes(model, size))


@pytest.fixture(scope="module", autouse=True)
def begun_at_once():
    """Parameters to begin with from NumPy, and the state before the first step in one program for all shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes_model, "init", drawn_init)
        patch.setattr(train_scenes, "create", jax.jit(create, static_argnums=1))
        yield


def uncompiled(look):
    """In the place of `jit_step`: steps that change nothing but their number, and `look(step, state, batch, key)`."""

    def jit_step(step, mesh, layout):
        def go(state, *given):
            look(step, state, *given)
            return state.replace(step=state.step + 1), {"loss": np.float32(1.0), "finite": np.True_}

        return go

    return jit_step


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A family's folder in which a network was trained for a few steps, its pipeline, and both as they are read.

    Of the two trainings, which share their code, that of the MM-DiT is real; the UNet's is only traced.
    """

    @functools.cache
    def get(family):
        folder = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            if family == "sd":
                patch.setattr(train_scenes, "jit_step", uncompiled(jax.eval_shape))
                patch.setattr(loop, "_finite", lambda state: np.True_)
            pipeline = train_scenes.pipeline_of(CHOSEN[family], folder)
        network, pretrained = train_scenes.load(folder), load_pretrained(pipeline, dtype=jnp.float32)
        return SimpleNamespace(folder=folder, pipeline=pipeline, network=network, pretrained=pretrained)

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
def test_an_mmdit_begins_as_the_identity(family, monkeypatch):
    """And with the places that diffusers begins with; all else is what a new network has, and all of a UNet is."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    model = scenes_model.captioned(scenes_model.configs(family, tiny=True))
    fresh = jax.device_get(drawn_init(model, None, 24))
    monkeypatch.setattr(scenes_model.Captioned, "init", lambda *given: {"params": fresh})
    found = jax.tree_util.tree_flatten_with_path(init(model, jax.random.key(0), 24))[0]
    changed = set()
    for (path, leaf), old in zip(found, jax.tree.leaves(fresh), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if family == "sd3" and name.endswith("pos_embed"):
            old = get_2d_sincos_pos_embed(leaf.shape[-1], 6, base_size=6, output_type="np")[None]
            changed.add("places")
        elif family == "sd3" and name.endswith(
            ("norm1.linear.kernel", "norm1_context.linear.kernel", "proj_out.kernel")
        ):
            old = np.zeros_like(leaf)
            changed.add(name.split(".")[-3 if "linear" in name else -2])
        np.testing.assert_allclose(leaf, old, atol=1e-5, err_msg=name)
    assert changed == ({"places", "norm1", "norm1_context", "proj_out"} if family == "sd3" else set())


@families
def test_a_folder_says_what_was_trained(trained, family):
    """Its network is the one within ours, and is told what ours tells that one of times and captions."""
    network, pretrained = trained(family).network, trained(family).pretrained
    assert pretrained.family == network.family == family
    assert pretrained.denoiser.module == network.model.denoiser
    jax.tree.map(np.testing.assert_array_equal, pretrained.denoiser.params, network.params["denoiser"])
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

    def inner(call, args, kwargs, context):
        return args if context.module.name == "denoiser" else call(*args, **kwargs)

    @jax.jit
    def told(params, *given):
        """What the network within is called with."""
        with nn.intercept_methods(inner):
            return network.model.apply({"params": params}, *given)

    x, t = np.random.default_rng(0).normal(size=(4, 24, 24, 1)).astype(np.float32), timefield.constant(0.5, 4)
    none = network.model.num_classes
    image, time, ours = told(network.params, x, t, Condition(label=np.append(labels, none)))
    np.testing.assert_array_equal(image, x)
    np.testing.assert_allclose(time, timefield.mapped(t, pretrained.scheduler.timestep), rtol=1e-6)
    for name in ("tokens", "pooled") if family == "sd3" else ("tokens",):
        theirs = np.concatenate([getattr(cond, name), getattr(uncond, name)[:1]])
        np.testing.assert_allclose(getattr(ours, name), theirs, atol=1e-5)


@families
def test_diffusers_reads_the_network(trained, family):
    import torch
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    pipeline, pretrained = trained(family).pipeline, trained(family).pretrained
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 24, 24, 1)).astype(np.float32)
    tokens = rng.normal(size=(2, 12, 64 if family == "sd" else 128)).astype(np.float32)
    pooled = rng.normal(size=(2, 128)).astype(np.float32)
    cond = Condition(tokens=tokens, pooled=None if family == "sd" else pooled)
    told = np.full((2, 1, 1, 1), 300.0, np.float32)  # in the network's own units
    ours, _ = jax.jit(pretrained.denoiser.module.apply)({"params": pretrained.denoiser.params}, x, told, cond)
    latents, time = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.tensor([300.0, 300.0])
    with torch.no_grad():
        if family == "sd":
            network = UNet2DConditionModel.from_pretrained(pipeline / "unet")
            theirs = network(latents, time, encoder_hidden_states=torch.from_numpy(tokens)).sample
        else:
            network = SD3Transformer2DModel.from_pretrained(pipeline / "transformer")
            text = {"encoder_hidden_states": torch.from_numpy(tokens), "pooled_projections": torch.from_numpy(pooled)}
            theirs = network(latents, timestep=time, **text).sample
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-4)


def test_a_training_continues_and_refuses_other_settings(trained, tmp_path, monkeypatch):
    """Each further cycle of steps goes on from what is there."""
    chosen, folder = {**CHOSEN["sd3"], "cycles": [8, 3]}, tmp_path / "run"
    shutil.copytree(trained("sd3").folder, folder)
    before, seen = trained("sd3").network, []
    monkeypatch.setattr(train_scenes, "jit_step", uncompiled(lambda step, state, *given: seen.append(state)))
    assert before.step == 8
    assert train_scenes.fit(chosen, folder)
    assert train_scenes.load(folder).step == 11
    assert len(seen) == 3
    jax.tree.map(np.testing.assert_array_equal, seen[0].ema, before.params)
    with pytest.raises(ValueError, match=r"of these settings, got others: learning_rate: 0.001 -> 0.002"):
        train_scenes.fit({**chosen, "learning_rate": 2e-3}, folder)
    with pytest.raises(ValueError, match="expected a family out of sd, sd3"):
        scenes_model.configs("sdxl")


def test_the_rate_decays_in_each_cycle():
    rate = jax.jit(jax.vmap(train_scenes._rate(0.5, [101, 300])))
    rates = np.asarray(rate(np.arange(401)))
    np.testing.assert_allclose(rates[[0, 99, 100, 101, 200, 201]], [0.005, 0.5, 0.5, 0.005, 0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(rates[301], 0.25, rtol=1e-5)
    with pytest.raises(ValueError, match="at least 2 steps"):
        train_scenes._rate(0.5, [3, 1])


def test_the_results_are_made_by_one_command(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained("sd3").folder, tmp_path / "runs" / "sd3")
    shutil.rmtree(tmp_path / "runs" / "sd3" / "pipeline")
    few = {name: study.SCHEDULES[name] for name in ("DM", "AsynDM, ω = .5")}
    monkeypatch.setattr(study, "SCHEDULES", few)
    monkeypatch.setattr(study, "BASELINES", {})
    monkeypatch.setattr(study, "NOISY", ())
    monkeypatch.setattr(study, "GUIDANCE", (3.0,))
    # a judge of digits of one height, and few real scenes for it to read: what it says is its own tests' matter
    of_real = scenes_judge.of_real
    monkeypatch.setattr(scenes_judge, "of_real", lambda count, seed: of_real(50, seed))
    monkeypatch.setattr(scenes_judge, "_HEIGHTS", (9,))
    monkeypatch.setattr(scenes_judge, "_classifier", functools.cache(scenes_judge._classifier.__wrapped__))
    values = flags.FlagValues()
    study.define_flags(values)
    out = tmp_path / "docs" / "page.md"
    given = "results --families=sd3 --tiny --steps=3 --captions=3 --seeds=2"
    values([*given.split(), f"--runs={tmp_path / 'runs'}", f"--out={out}"])
    study.make_page(values, "the command")
    text = out.read_text()
    assert "AsynDM, ω = .5" in text
    assert (out.parent / "images" / "page_sd3_run.png").stat().st_size > 1000
    record = json.loads((tmp_path / "runs" / "sd3" / "DM" / "1.json").read_text())
    assert len(record["verdicts"]) == 3
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
    network, pipeline = trained("sd").network, trained("sd").pipeline
    (pipeline / "notes.txt").write_text("mine")
    before = (pipeline / "model_index.json").stat().st_ino
    train_scenes.write_pipeline(network, pipeline)
    assert (pipeline / "notes.txt").read_text() == "mine"
    assert (pipeline / "model_index.json").stat().st_ino != before
    assert load_pretrained(pipeline, dtype=jnp.float32).family == "sd"
    index = (pipeline / "model_index.json").read_text()
    (pipeline / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got model_index.json changed since"):
        train_scenes.write_pipeline(network, pipeline)
    (pipeline / "model_index.json").write_text(index)
    (pipeline / "notes.txt").unlink()
