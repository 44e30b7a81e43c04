"""Reading pretrained folders: every family, types, meshes, variants and shards, legacy names, and broken files."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asyncpatch_jax.pretrained.folders import families, names, tensors
from asyncpatch_jax.pretrained.folders.inspection import inspect
from asyncpatch_jax.pretrained.folders.loading import load_component, load_pretrained
from tests import tiny_folders
from tests.programs import Program

WEIGHTS = {"text_encoder": "model.safetensors", "unet": "diffusion_pytorch_model.safetensors"}


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory):
    """Folders by family, made when they are asked for; not to be changed."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("folders") / family
            tiny_folders.folder(family, made[family])
        return made[family]

    return get


@pytest.fixture(name="sd")
def _sd(saved, tmp_path):
    """A folder of Stable Diffusion that a test may change."""
    return shutil.copytree(saved("sd"), tmp_path / "sd")


def _equal(params, state):
    jax.tree.map(np.testing.assert_array_equal, params, names.from_torch(params, state))


@pytest.mark.parametrize("family", tiny_folders.FAMILIES)
def test_every_family_is_read_whole(saved, family):
    folder = saved(family)
    pretrained = load_pretrained(folder, dtype=jnp.float32)
    assert pretrained.family == family
    assert list(pretrained.components) == list(families.COMPONENTS[family])
    for name, component in pretrained.components.items():
        (file,) = (folder / name).glob("*.safetensors")
        _equal(component.params, load_file(file))
        assert component.config["_class_name" if name in ("unet", "transformer", "vae") else "architectures"]
    assert pretrained.denoiser is pretrained.components.get("unet", pretrained.components.get("transformer"))
    assert pretrained.scheduler.grid(4, tokens=16).shape == (5,)
    numbers = {name.removeprefix("text_encoder") for name in pretrained.components if name.startswith("text_encoder")}
    assert {f"tokenizer{number}" for number in numbers} == set(pretrained.tokenizers)
    assert all(path.is_dir() for path in pretrained.tokenizers.values())


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("target", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_any_float_becomes_any_other(sd, source, target):
    file = sd / "text_encoder" / WEIGHTS["text_encoder"]
    state = {name: value.astype(source) for name, value in load_file(file).items()}
    save_file(state, file)
    component = load_component(sd / "text_encoder", dtype=target)
    assert {leaf.dtype for leaf in jax.tree.leaves(component.params)} == {np.dtype(target)}
    assert component.module.text.dtype == target
    _equal(component.params, {name: value.astype(target) for name, value in state.items()})


def test_a_vae_that_overflows_stays_float32(saved):
    vae = load_component(saved("sdxl") / "vae", dtype=jnp.float16)
    assert {leaf.dtype for leaf in jax.tree.leaves(vae.params)} == {np.dtype(np.float32)}
    assert vae.module.dtype == jnp.float32


def test_a_large_tensor_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_BYTES", 64)
    monkeypatch.setattr(tensors, "_ROWS", 3)
    state = {f"{i}": np.random.default_rng(i).normal(size=s) for i, s in enumerate([(), (1,), (7,), (5, 6), (1, 9, 4)])}
    save_file(state, tmp_path / "model.safetensors")
    found = tensors.find(tmp_path)
    for name, value in state.items():
        np.testing.assert_array_equal(tensors.read(found[name]), value)
    part = np.empty((4, 2), np.float32)
    for copy in tensors.blocks(part.T, found["3"], (slice(1, 3), slice(2, 6))):
        copy()
    np.testing.assert_array_equal(part.T, state["3"][1:3, 2:6].astype(np.float32))
    middle = np.empty((1, 1, 4))
    for copy in tensors.blocks(middle, found["4"], (slice(0, 1), slice(5, 6), slice(0, 4))):
        copy()
    np.testing.assert_array_equal(middle, state["4"][:, 5:6])


def _shard(folder, stem, middle="", index=None):
    """Split the file of a component in two, with an index, as diffusers and transformers do."""
    file = folder / f"{stem}.safetensors"
    state = load_file(file)
    file.unlink()
    shards = [f"{stem}{middle}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: shards[i % 2] for i, name in enumerate(sorted(state))}
    for shard in shards:
        save_file({name: state[name] for name in state if where[name] == shard}, folder / shard)
    content = {"metadata": {}, "weight_map": where}
    (folder / (index or f"{stem}.safetensors.index.json")).write_text(json.dumps(content))
    return state, shards


def test_shards_with_an_index(sd):
    state, _ = _shard(sd / "text_encoder", "model")
    _equal(load_component(sd / "text_encoder", dtype=jnp.float32).params, state)


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"])
def test_variants_are_asked_for(sd, index):
    state, _ = _shard(sd / "text_encoder", "model", ".fp16", index)
    _equal(load_component(sd / "text_encoder", dtype=jnp.float32, variant="fp16").params, state)
    with pytest.raises(ValueError, match=r"by name \(--variant=fp16\), and those of fp16 are there"):
        load_component(sd / "text_encoder")


def test_mixed_variants(sd, recwarn):
    """Of each part the variant that is asked for; else the files without one; else what alone is there."""
    for part, name in (("text_encoder", "model.fp16"), ("unet", "diffusion_pytorch_model.bf16")):
        (sd / part / WEIGHTS[part]).rename(sd / part / f"{name}.safetensors")
    pretrained = load_pretrained(sd, variant="fp16")
    assert list(pretrained.components) == ["unet", "vae", "text_encoder"]
    said = [str(warning.message) for warning in recwarn if "variant" in str(warning.message)]
    assert [re.sub("in .*: ", "", text) for text in said] == [
        "no files of the variant fp16 are diffusion_pytorch_model.bf16.safetensors is read instead",
        "no files of the variant fp16 are diffusion_pytorch_model.safetensors is read instead",
    ]
    only = sd / "unet" / "diffusion_pytorch_model.bf16.safetensors"
    shutil.copy(only, only.with_name("diffusion_pytorch_model.x.safetensors"))
    with pytest.raises(ValueError, match=r"--variant=bf16\), and those of bf16, x are there"):
        load_pretrained(sd, variant="fp16")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
BIN = "diffusion_pytorch_model.bin"


@pytest.mark.parametrize(
    ("part", "file", "content", "message"),
    [
        ("vae", WEIGHTS["unet"], LFS, "model.safetensors, a pointer of Git LFS: .*lfs pull"),
        ("vae", "config.json", LFS, "vae/config.json, got a pointer of Git LFS: .*lfs pull"),
        ("vae", BIN, b"PK", f"but {BIN}, .* unpickled: download the safetensors"),
        ("text_encoder", "pytorch_model.bin", b"PK", r"but pytorch_model.bin, .*save_pretrained\(NEW\)"),
        ("text_encoder", "flax_model.msgpack", b"", "got none, but flax_model.msgpack"),
    ],
)
def test_weights_that_are_something_else(sd, part, file, content, message):
    """Said by the loader and by `inspect` alike."""
    for old in (sd / part).glob("*.safetensors"):
        old.unlink()
    (sd / part / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(sd)
    (found,) = (one for one in inspect(sd).components if one.name == part)
    assert any(re.search(message, problem) for problem in found.problems)


def test_checkpoints_in_one_file(tmp_path):
    file = tmp_path / "v1-5-pruned.safetensors"
    file.write_bytes(b"")
    for look in (load_pretrained, inspect):
        with pytest.raises(ValueError, match=r"got the file .*v1-5-pruned.safetensors: .*from_single_file\(FILE\)"):
            look(file)
        with pytest.raises(ValueError, match=r"with v1-5-pruned.safetensors in it: .*from_single_file\(FILE\)"):
            look(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="one network's, of which the pipeline's folder is one level up"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../model.safetensors", "names of files beside"),
        ("/etc/passwd", "names of files beside"),
        ("..\\model.safetensors", "names of files beside"),
        ("C:\\model.safetensors", "names of files beside"),
        (7, r"weight_map\[...\] as str"),
        (None, r"weight_map\[...\] as str"),
    ],
)
def test_an_index_names_only_files_beside_it(tmp_path, name, message):
    (tmp_path / "here").mkdir()
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "here" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=message):
        tensors.find(tmp_path / "here")


def test_a_pipeline_without_vae_or_third_encoder(saved, tmp_path):
    folder = shutil.copytree(saved("sd3"), tmp_path / "sd3")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("vae", "text_encoder_3", "tokenizer_3"):
        index[name] = [None, None]
        shutil.rmtree(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    pretrained = load_pretrained(folder)
    assert list(pretrained.components) == ["transformer", "text_encoder", "text_encoder_2"]
    assert list(pretrained.tokenizers) == ["tokenizer", "tokenizer_2"]


def test_old_files_of_stable_diffusion(sd):
    file = sd / "text_encoder" / WEIGHTS["text_encoder"]
    clip = load_file(file)
    prefixed = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in clip.items()}
    save_file({**prefixed, "text_model.embeddings.position_ids": np.arange(77)[None]}, file)
    file = sd / "vae" / WEIGHTS["unet"]
    vae = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in vae.items():
        for today, before in old.items():
            if ".attentions.0." in name:
                name = name.replace(f".{today}.", f".{before}.")
        renamed[name] = value
    assert set(renamed) != set(vae)
    save_file(renamed, file)
    pretrained = load_pretrained(sd, dtype=jnp.float32)
    _equal(pretrained.components["text_encoder"].params, clip)
    _equal(pretrained.components["vae"].params, vae)


def _truncate(file, size=-100):
    file.write_bytes(file.read_bytes()[:size])


def _change(file, **changes):
    state = load_file(file)
    for name, value in changes.items():
        name = {"drop": sorted(state)[0], "add": "lora.alpha"}.get(name, name)
        if value is None:
            del state[name]
        else:
            state[name] = value
    save_file(state, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: _truncate(f / "model.safetensors"), r"bytes in .*text_encoder/model.safetensors.*truncated"),
        (
            lambda f: _truncate(f / "model.safetensors", 900),
            r"safetensors file, got .*text_encoder/.*: its header is cut off",
        ),
        (
            lambda f: _truncate(f / "model.safetensors", 3),
            r"safetensors file, got .*text_encoder/.*: its header is cut off",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"PK" * 500),
            r"safetensors file, got .*text_encoder/.*something else",
        ),
        (lambda f: (f / "model.safetensors").unlink(), r"or model.safetensors .* in .*text_encoder, got none"),
        (
            lambda f: _change(f / "model.safetensors", add=np.ones(3)),
            r"in .*text_encoder, got 1 unused tensors \(lora.alpha\)",
        ),
        (
            lambda f: _change(f / "model.safetensors", drop=None),
            r"in .*text_encoder, got 1 missing tensors \(text_model.embeddings.position_embedding.weight\)",
        ),
        (
            lambda f: _change(f / "model.safetensors", drop=np.ones(3)),
            r"embeddings.position_embedding.weight: \[77, 16\] expected, \[3\] found",
        ),
        (
            lambda f: _change(f / "model.safetensors", drop=np.ones((77, 16), int)),
            r"expected weights as F64, .* got I64 in .*text_encoder",
        ),
        (lambda f: (f / "config.json").unlink(), r"expected a file .*text_encoder/config.json, got none"),
        (lambda f: (f / "config.json").write_text("{"), r"expected JSON in .*text_encoder/config.json"),
        (
            lambda f: (f / "config.json").write_text("[]"),
            r"expected a JSON object in .*text_encoder/config.json, got list",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_files_are_named(sd, spoil, message):
    spoil(sd / "text_encoder")
    with pytest.raises(ValueError, match=message):
        load_component(sd / "text_encoder")


def test_broken_shards_are_named(sd):
    folder = sd / "text_encoder"
    state, shards = _shard(folder, "model")
    index = folder / "model.safetensors.index.json"
    first, name = load_file(folder / shards[0]), sorted(state)[1]
    save_file({**first, name: state[name]}, folder / shards[0])
    with pytest.raises(
        ValueError, match=f"expected {name} in {shards[1]}, as .*index.json says, got it in {shards[0]}"
    ):
        load_component(folder)
    where = {
        key: shards[0] if key == name else shard for key, shard in json.loads(index.read_text())["weight_map"].items()
    }
    index.write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=f"expected each tensor once, got {name} in {shards[0]} and in .*{shards[1]}"):
        load_component(folder)
    save_file(first, folder / shards[0])
    index.write_text(json.dumps({"weight_map": {**where, name: shards[1], "ghost": shards[0]}}))
    with pytest.raises(
        ValueError, match=r"expected the tensors of .*index.json in its files, got no ghost \(1 in all\)"
    ):
        load_component(folder)
    (folder / shards[1]).unlink()
    with pytest.raises(ValueError, match=f"expected all 2 files of .*index.json, got none named {shards[1]}"):
        load_component(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match=r"expected the setting 'weight_map' in .*index.json, got none"):
        load_component(folder)


def test_headers_that_do_not_add_up(tmp_path):
    file = tmp_path / "model.safetensors"

    def write(**entries):
        text = json.dumps(entries).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))

    write(
        a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        b={"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    )
    assert tensors.find(tmp_path)["b"].shape == (2,)
    for entry, message in (
        (
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "more follows its last tensor",
        ),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "side by side"),
        ({"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}, r"16 bytes for F32\[5\]"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 16]}, "the unknown type F4"),
        ({"dtype": "F32", "shape": [4]}, "data_offsets"),
        (3, "safetensors file, got"),
    ):
        write(a=entry)
        with pytest.raises(ValueError, match=message):
            tensors.find(tmp_path)


def test_folders_of_something_else(sd, saved, tmp_path):
    index = json.loads((sd / "model_index.json").read_text())

    def refused(message, **changes):
        (sd / "model_index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(sd)

    refused(
        "expected a pipeline out of StableDiffusionPipeline, .* got 'KandinskyPipeline'",
        _class_name="KandinskyPipeline",
    )
    refused("expected components out of unet, vae, .* got controlnet", controlnet=["diffusers", "ControlNetModel"])
    refused("expected a unet among the components", unet=[None, None])
    refused("expected components out of transformer, .* got unet", _class_name="FluxPipeline")
    (sd / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(sd / "unet")
    with pytest.raises(ValueError, match=r"expected a file .*unet/config.json, got none"):
        load_pretrained(sd)
    shutil.copytree(saved("sd3") / "transformer", sd / "unet")
    with pytest.raises(ValueError, match=r"expected a UNet2DConditionModel in .*unet, got a SD3Transformer2DModel"):
        load_pretrained(sd)
    (sd / "unet" / "config.json").write_text(json.dumps({"_class_name": "HunyuanDiT2DModel"}))
    with pytest.raises(ValueError, match=r"expected a config.json of UNet2DConditionModel, .* got 'HunyuanDiT2DModel'"):
        load_pretrained(sd)
    with pytest.raises(ValueError, match=r"expected a folder with a model_index.json, .* got .* without it$"):
        load_pretrained(tmp_path)


def test_a_hub_id_is_one_that_is_in_the_cache(saved, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"or the id of a repository .* got 'tiny/sd'; hf download tiny/sd"):
        load_pretrained("tiny/sd")
    with pytest.raises(ValueError, match=r"expected a folder, or the id .* got '/no/such/folder'"):
        load_pretrained("/no/such/folder")
    commit = "0123456789012345678901234567890123456789"
    cached = tmp_path / "models--tiny--sd"
    shutil.copytree(saved("sd"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert load_pretrained("tiny/sd").family == "sd"


_MEASURE = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from asyncpatch_jax.pretrained.folders import loading, tensors

def load(folder):
    found = tensors.find(folder)
    shapes = {name[0]: {"kernel": jax.ShapeDtypeStruct(found[name].shape[::-1], jnp.bfloat16)} for name in found}
    return loading.read(shapes, found, folder, None)

def memory(what):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024

folder = Path(sys.argv[1])
load(folder / "warm")
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until here
before = memory("VmRSS")
params = load(folder / "big")
print((memory("VmHWM") - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def test_little_memory_next_to_the_arrays(tmp_path):
    """Each of two tensors, read whole and in the file's type, would be as large as all arrays."""
    for folder, size in (("warm", 4), ("big", 4096)):
        (tmp_path / folder).mkdir()
        state = {f"{name}.weight": np.ones((size, size), np.float32) for name in "ab"}
        save_file(state, tmp_path / folder / "model.safetensors")
    out = subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path)], check=True, capture_output=True, text=True)
    # 8 blocks of 1 MB at once would be 12 % of arrays as small as these
    assert 0.9 < float(out.stdout) < 1.2


def test_each_process_reads_its_part(saved, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = saved("sd") / "text_encoder"
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    started = [
        Program(
            *("tests.two_processes", address, str(process), str(folder), str(tmp_path / "out")),
            environment=environment,
            cwd=Path(__file__).parent.parent,
        )
        for process in (0, 1)
    ]
    said = [process.stdout.read().decode() for process in started]
    assert [process.wait() for process in started] == [0, 0], said
    shares = [float(re.search(r"^share (\S+)$", text, re.MULTILINE)[1]) for text in said]
    assert all(0.5 <= share < 0.6 for share in shares)
    written, original = (load_file(path / "model.safetensors") for path in (tmp_path / "out", folder))
    for name, value in written.items():
        np.testing.assert_array_equal(value, original[name.removeprefix("text_model.")])
