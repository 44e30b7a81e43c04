"""Writing pretrained folders: diffusers reads them, and makes the same images of them."""

import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from asyncpatch_jax.pretrained.folders import families, names, saving
from asyncpatch_jax.pretrained.folders.loading import Component, load_component, load_pretrained
from asyncpatch_jax.pretrained.folders.saving import save_component, save_pretrained
from tests import drawn, tiny_folders

TEXT = "a red car and a green apple"
IMAGES = {
    "sd": {"num_inference_steps": 2},
    "sdxl": {"num_inference_steps": 2},
    "sd3": {"num_inference_steps": 2, "max_sequence_length": 16},
    "flux": {"num_inference_steps": 2, "max_sequence_length": 16},
    "kontext": {"num_inference_steps": 2, "max_sequence_length": 16, "max_area": 256, "_auto_resize": False},
}


def _image(pipeline, family):
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": TEXT, "height": 16, "width": 16, "output_type": "np", **IMAGES[family]}
    if family == "kontext":
        given["image"] = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    return pipeline(generator=torch.Generator().manual_seed(0), **given).images


@pytest.mark.parametrize("family", tiny_folders.FAMILIES)
def test_diffusers_makes_the_same_images(family, tmp_path):
    pipeline = tiny_folders.folder(family, tmp_path / "theirs")
    pretrained = load_pretrained(tmp_path / "theirs", dtype=jnp.float32)
    save_pretrained(pretrained, tmp_path / "ours", max_shard_size=100_000)
    assert list((tmp_path / "ours").glob("*/*.index.json"))
    back = type(pipeline).from_pretrained(tmp_path / "ours")
    for name in pretrained.components:
        expected, got = getattr(pipeline, name).state_dict(), getattr(back, name).state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)
    # PyTorch's sums depend on where in memory a tensor begins
    np.testing.assert_allclose(_image(back, family), _image(pipeline, family), atol=2e-5)
    again = load_pretrained(tmp_path / "ours", dtype=jnp.float32)
    for name, component in again.components.items():
        jax.tree.map(np.testing.assert_array_equal, component.params, pretrained.components[name].params)
    assert (again.family, again.scheduler) == (pretrained.family, pretrained.scheduler)


def _component(**settings):
    """A text encoder of random parameters, which no folder ever held."""
    config = {
        "architectures": ["CLIPTextModel"],
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        **settings,
    }
    return Component(families.module(config), drawn.params_like(families.shapes(config)), config)


@pytest.mark.parametrize(("dtype", "name"), [(None, "F32"), (jnp.bfloat16, "BF16"), (jnp.float16, "F16")])
def test_types_are_asked_for(tmp_path, dtype, name):
    component = _component(dtype="float32", torch_dtype="float32")
    save_component(component, tmp_path / "out", dtype)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {name}  # noqa: SIM118, no mapping
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == np.dtype(dtype or np.float32).name
    expected = {key: value.astype(dtype or np.float32) for key, value in names.to_torch(component.params).items()}
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[key], got[key]) for key in got)


def test_each_parameter_in_its_own_type(tmp_path):
    component = _component()
    mixed = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, component.params)
    save_component(component._replace(params=mixed), tmp_path / "out", max_shard_size=500)
    again = load_component(tmp_path / "out", dtype=jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.float32(a), b), mixed, again.params)


def test_shards_hold_what_is_asked(tmp_path):
    save_component(_component(), tmp_path / "out", max_shard_size=1000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = {shard.name: sum(value.nbytes for value in load_file(shard).values()) for shard in shards}
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert {shard: key for key, shard in index["weight_map"].items()}.keys() == sizes.keys()
    for shard, size in sizes.items():
        assert size <= 1000 or len(load_file(tmp_path / "out" / shard)) == 1


def test_nothing_is_overwritten_and_no_half_is_left(tmp_path, monkeypatch):
    component = _component()
    save_component(component, tmp_path / "out")
    with pytest.raises(ValueError, match=r"expected a path where nothing exists yet, got .*out"):
        save_component(component, tmp_path / "out")
    monkeypatch.setattr(np, "ascontiguousarray", _disk_full)
    with pytest.raises(OSError, match=r"could not write .*model.safetensors: No space left on device"):
        save_component(component, tmp_path / "full")
    assert not list((tmp_path / "full").iterdir())


def _disk_full(*args):
    raise OSError(28, "No space left on device")


def test_what_cannot_be_saved(tmp_path):
    component = _component()
    integers = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), component.params)
    with pytest.raises(ValueError, match="expected floats of F64, F32, F16, BF16, got others in"):
        save_component(component._replace(params=integers), tmp_path / "out")
    tiny_folders.folder("sd", tmp_path / "sd")
    pretrained = load_pretrained(tmp_path / "sd")
    components = {name: part for name, part in pretrained.components.items() if name != "vae"}
    with pytest.raises(ValueError, match="expected the components of the index, unet, vae, text_encoder, got"):
        save_pretrained(pretrained._replace(components=components), tmp_path / "out")


def test_what_was_not_read_is_not_listed(tmp_path):
    tiny_folders.folder("sd", tmp_path / "sd")
    index = json.loads((tmp_path / "sd" / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps(index))
    save_pretrained(load_pretrained(tmp_path / "sd"), tmp_path / "out")
    shutil.rmtree(tmp_path / "sd")
    assert diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out").safety_checker is None


def test_an_infinity_of_diffusers_is_left_out():
    """It writes its default of -Infinity, which is no JSON, and takes the same where there is none."""
    theirs = diffusers.DPMSolverMultistepScheduler()
    assert theirs.config["lambda_min_clipped"] == -np.inf
    written = saving._finite({"_class_name": "DPMSolverMultistepScheduler", **theirs.config})
    json.dumps(written, allow_nan=False)  # no error
    assert diffusers.DPMSolverMultistepScheduler.from_config(written).config["lambda_min_clipped"] == -np.inf
