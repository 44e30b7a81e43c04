"""check_checkpoint: what a folder holds, whether it will load, what it needs; an exit code of 1 if it will not."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asyncpatch_jax import sharding
from asyncpatch_jax.pretrained.folders import families, inspection, loading
from asyncpatch_jax.pretrained.folders.complete import check_complete
from asyncpatch_jax.pretrained.folders.inspection import bytes_per_chip, inspect
from asyncpatch_jax.pretrained.folders.presets import PRESETS
from launch import check_checkpoint
from tests import mains, tiny_folders


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders") / "sd3"
    tiny_folders.folder("sd3", path)
    return path


@pytest.fixture(name="folder")
def _folder(saved, tmp_path):
    """A folder that a test may change."""
    return shutil.copytree(saved, tmp_path / "sd3")


def test_a_good_folder(saved):
    found = inspect(saved)
    assert (found.family, found.problems, found.loads) == ("sd3", [], True)
    assert found.scheduler.kind == "velocity"
    for part in found.components:
        assert (part.class_name, part.problems, part.dtypes) == (families.COMPONENTS["sd3"][part.name], [], "F32")
        (file,) = (saved / part.name).glob("*.safetensors")
        state = load_file(file)
        assert part.parameters == sum(value.size for value in state.values())
        assert part.disk == sum(value.nbytes for value in state.values())


def test_one_component(saved):
    found = inspect(saved / "vae")
    assert (found.family, found.loads, [part.name for part in found.components]) == (None, True, ["vae"])


def test_everything_that_is_wrong_is_told_at_once(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(vae)
    save_file({**state, "decoder.conv_in.bias": np.zeros(3), "mask": np.zeros(3)}, vae)
    clip = folder / "text_encoder" / "model.safetensors"
    state = load_file(clip)
    save_file({**state, "text_projection.weight": np.zeros((16, 16), np.int32)}, clip)
    shutil.rmtree(folder / "text_encoder_2")
    shutil.rmtree(folder / "text_encoder_3")
    shutil.copytree(folder / "vae", folder / "text_encoder_3")
    (folder / "tokenizer" / "merges.txt").unlink()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("FlowMatchEuler", "FlowMatchLCM"))
    found = inspect(folder)
    assert not found.loads
    problems = {part.name: "; ".join(part.problems) for part in found.components}
    for name, expected in (
        ("transformer", "it is truncated"),
        ("vae", "1 unused tensors (mask); 1 tensors of another shape (decoder.conv_in.bias: [16] expected, [3] found)"),
        ("text_encoder", "got I32 in text_projection.weight"),
        ("text_encoder_2", "text_encoder_2/config.json, got none"),
        ("text_encoder_3", "expected a T5EncoderModel in"),
    ):
        assert expected in problems[name]
    rest = "; ".join(found.problems)
    assert "expected a scheduler out of" in rest
    assert "expected vocab.json and merges.txt, vocab.txt, tokenizer.json or spiece.model in" in rest


def edited(file, **changes):
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edited(f / "model_index.json", vae=[None, None]), "of sd3, got none for vae"),
        (lambda f: edited(f / "model_index.json", text_encoder_2="gone"), "of sd3, got none for text_encoder_2"),
        (lambda f: edited(f / "model_index.json", tokenizer_3=[None, None]), "got none for tokenizer_3"),
        (lambda f: (f / "tokenizer" / "vocab.json").write_text("{"), "expected a tokenizer in"),
        (lambda f: edited(f / "vae" / "config.json", block_out_channels="gone"), "setting 'block_out_channels' in"),
    ],
)
def test_a_folder_that_could_not_make_an_image(folder, change, message):
    change(folder)
    found = inspect(folder)
    assert not found.loads
    assert message in "; ".join([*found.problems, *(p for part in found.components for p in part.problems)])


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "config.json beside model_index.json is not read"),
        (lambda f: (f / "config.json").write_text("no JSON"), "config.json beside model_index.json is not read"),
        (
            lambda f: edited(f / "scheduler" / "scheduler_config.json", use_karras_sigmas=True),
            "use_karras_sigmas is not",
        ),
        (
            lambda f: edited(f / "scheduler" / "scheduler_config.json", _class_name="FlowMatchHeunDiscreteScheduler"),
            "FlowMatchHeunDiscreteScheduler is a solver: .* at flow-match Euler's times",
        ),
    ],
)
def test_what_does_not_matter_is_noted(folder, change, note, capsys):
    change(folder)
    found = inspect(folder)
    assert (found.loads, len(found.notes)) == (True, 1)
    assert re.search(note, found.notes[0])
    assert f"  note: {found.notes[0]}" in check_checkpoint._components(found)


def test_another_variant_is_noted(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert not inspect(folder).loads
    found = inspect(folder, variant="fp16")
    assert found.loads
    notes = {part.name: part.notes for part in found.components}
    assert notes.pop("vae") == []
    assert all("no files of the variant fp16 are in" in note for (note,) in notes.values())


def test_stable_diffusion_3_may_do_without_t5(folder):
    edited(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert inspect(folder).loads


def test_text_encoders_of_another_network(saved):
    described = loading.describe(saved)
    check_complete(described)
    config = {**described.components["text_encoder_2"].config, "projection_dim": 24}
    other = loading.Component(families.module(config), families.shapes(config), config)
    parts = {**described.components, "text_encoder_2": other}
    with pytest.raises(ValueError, match=r"encoders of width 40 and 32 \(pooled\) for this sd3 network, got 40 and 40"):
        check_complete(described._replace(components=parts))


def test_no_folder_of_networks(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a folder with a model_index.json, or with one network's config.json"
    ):
        inspect(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "SanaPipeline"}))
    found = inspect(folder)
    assert (found.family, found.loads) == (None, False)
    assert "got 'SanaPipeline'" in found.problems[0]


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (4, 1), (2, 4)])
def test_bytes_per_chip(fsdp, tensor):
    """Of a layer's product: whole, or a share of it; what is too small to be split is whole everywhere."""
    proj, norm = (1280, 10240), (1280,)
    shapes = {
        "transformer_blocks.0:4": {
            "ff.net.0.proj": {"kernel": jax.ShapeDtypeStruct((4, *proj), jnp.float32)},
            "norm3": {"scale": jax.ShapeDtypeStruct((4, *norm), jnp.float32)},
        }
    }
    split = 4 * 1280 * 10240 // (fsdp * tensor) + 4 * 1280
    assert bytes_per_chip(shapes, jnp.bfloat16, fsdp, tensor) == 2 * split
    assert sharding.MIN_SIZE > 4 * 1280


def test_flux_fits_where_it_should():
    shapes = families.shapes(PRESETS["flux"]["transformer"])
    whole = bytes_per_chip(shapes, jnp.bfloat16, 1)
    assert whole == 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert whole / 16 < bytes_per_chip(shapes, jnp.bfloat16, 16) < whole / 15.9
    # modulations are not of the sort that a tensor axis divides
    assert whole / 16 < bytes_per_chip(shapes, jnp.bfloat16, 4, 4) < whole / 8


@pytest.fixture(name="command")
def _command(monkeypatch, capsys):
    call = mains.command(monkeypatch, capsys)
    return lambda *arguments: call("check_checkpoint", *arguments)


def test_the_command_on_a_broken_folder(folder, command):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    code, out, err = command(folder, "--tensor=4")
    assert code == 1
    assert err == f"error: {folder} will not load: vae\n"
    for line in (
        f"{folder}: sd3",
        "transformer     SD3Transformer2DModel        0.1 M parameters, F32, 0.00 GB on disk: will load",
        "WILL NOT LOAD",
        "    - expected diffusion_pytorch_model.safetensors or model.safetensors",
        "4 chips     8 chips    16 chips",
    ):
        assert line in out
    assert "1 chip " not in out


def test_the_commands_help_and_mistakes(command):
    assert "python -m launch.check_checkpoint FLUX.1-dev --tensor=4" in command("--help")[1]
    assert command()[2].startswith("error: expected FOLDER and flags")


def test_the_tables(saved):
    lines = check_checkpoint._memory(inspect(saved), 1)
    assert lines[1].split() == ["1", "chip", "4", "chips", "8", "chips", "16", "chips"]
    assert [line.split()[0] for line in lines[2:7]] == ["bfloat16", "v4", "v5e", "v5p", "v6e"]
    with pytest.raises(ValueError, match="expected --tensor to divide one of 1, 4, 8, 16 chips, got 3"):
        check_checkpoint._memory(inspect(saved), 3)


def test_no_tensor_is_read(saved, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("read")

    monkeypatch.setattr(np, "fromfile", never)
    monkeypatch.setattr(inspection.tensors, "_copy", never)
    assert inspect(saved).loads
