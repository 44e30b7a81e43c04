"""Settings that are wrong in any way: every reader ends in time with what it expected and what it got."""

import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from asyncpatch_jax.pretrained import settings as settings_lib
from asyncpatch_jax.pretrained.folders import families, schedulers, tensors
from asyncpatch_jax.pretrained.folders.inspection import inspect
from asyncpatch_jax.pretrained.folders.loading import describe
from asyncpatch_jax.pretrained.folders.presets import PRESETS
from asyncpatch_jax.pretrained.text.tokenizers import read_tokenizer
from asyncpatch_jax.sampling.schedules import grids
from asyncpatch_jax.training.records import read_record
from tests import tiny, tiny_folders

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([10**9, 2**63, -(2**63), 10**40, 1e300, 1e-300, -0.0]),
    st.floats(),
    st.sampled_from(["", "x", "1", "../x", "silu", "\ud800", "NaN"]),
)
BOMB = [0]
for _ in range(200):
    BOMB = [BOMB]
VALUES = st.one_of(
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner)),
    st.sampled_from([BOMB, [1] * 5000, {"a": BOMB}]),
)
EVERY = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def only_says(call):
    """Whatever `call` makes of a value, it is no other error than one that says expected and got."""
    said = None
    try:
        call()
    except ValueError as error:
        said = str(error)
    assert said is None or ("expected" in said and "got" in said), said


COMPONENTS = [(folder, name) for folder in PRESETS for name in PRESETS[folder]]


@settings(EVERY, max_examples=200)
@given(st.data(), VALUES)
def test_a_setting_of_any_value(data, value):
    folder, name = data.draw(st.sampled_from(COMPONENTS))
    config = PRESETS[folder][name]
    key = data.draw(st.sampled_from([*config, "surprise", "num_attention_heads", "sample_size", "timestep_spacing"]))
    config = {**config, key: value}
    if name == "scheduler":
        only_says(lambda: schedulers.from_config(config, whole="flux" in folder).grid(4, 64))
        only_says(lambda: schedulers.notes(config))
    else:
        only_says(lambda: families.module(config))


@pytest.mark.parametrize("setting", ["layers_per_block", "block_out_channels", "transformer_layers_per_block"])
def test_sizes_that_never_end_are_refused(setting):
    config = PRESETS["sdxl"]["unet"]
    value = [10**9] * 3 if setting == "block_out_channels" else 10**9
    with pytest.raises(ValueError, match=rf"{setting}.* as int <= \d+ .*, got 1000000000"):
        families.module({**config, setting: value})
    with pytest.raises(ValueError, match=rf"{setting}.* as list of length <= 8 "):
        families.module({**config, setting: [1] * 10**6})


@pytest.mark.parametrize("name", ["height", "width", "num_steps"])
def test_images_and_runs_without_end_are_refused(name):
    with pytest.raises(ValueError, match=r"at most 16384 pixels a side and 10000 steps, got .*1000000000"):
        settings_lib.defaults("sd", 512, **{name: 10**9})
    for call in (grids.linear, grids.cosine, lambda n: grids.shifted(n, 3.0)):
        with pytest.raises(ValueError, match="at most 1000000 steps, got 1000000000"):
            call(10**9)


@settings(EVERY, max_examples=100)
@given(st.sampled_from(["dtype", "shape", "data_offsets", None]), VALUES)
def test_headers_of_tensors(tmp_path_factory, key, value):
    file = tmp_path_factory.getbasetemp() / "header.safetensors"
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"a": value if key is None else {**entry, key: value}}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    only_says(lambda: tensors.header(file))


@settings(EVERY, max_examples=100)
@given(
    st.one_of(VALUES, st.fixed_dictionaries({"weight_map": st.one_of(VALUES, st.fixed_dictionaries({"a": VALUES}))}))
)
def test_indexes_of_tensors(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp() / "index"
    folder.mkdir(exist_ok=True)
    save_file({"a": np.zeros(2)}, folder / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))
    only_says(lambda: tensors.find(folder))


RECORD = {
    "config": {"seed": 0},
    "data": {"num_classes": 2, "class_names": ["a", "b"], "shape": [8, 8, 1], "images": 3, "names": "x"},
    "policy": {"num_classes": 2, "context_dim": 0, "shape": [8, 8, 1]},
}


@settings(EVERY, max_examples=200)
@given(st.sampled_from(["data", "policy"]), st.sampled_from(["config", "about", "inner", None]), st.data(), VALUES)
def test_records_of_runs(tmp_path_factory, about, place, data, value):
    file, content = tmp_path_factory.getbasetemp() / "run.json", json.loads(json.dumps(RECORD))
    if place == "inner":
        content[about][data.draw(st.sampled_from([*content[about]]))] = value
    elif place is not None:
        content[about if place == "about" else place] = value
    else:
        content = value
    file.write_text(json.dumps(content))
    only_says(lambda: read_record(file, about))


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders") / "sd"
    tiny_folders.folder("sd", path)
    return path


def mutated(content, data, value):
    """Plain JSON with a value changed, added or taken away somewhere in it."""
    content = json.loads(json.dumps(content))
    inner = content
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from([*keys, "surprise"] if isinstance(inner, dict) else keys)) if keys else None
        deeper = key is not None and key != "surprise" and isinstance(inner[key], dict | list) and inner[key]
        if not deeper or data.draw(st.booleans()):
            break
        inner = inner[key]
    if key is None:
        return value
    if key in ("surprise",) or data.draw(st.integers(0, 4)):
        inner[key] = value
    else:
        del inner[key]
    return content


@settings(EVERY, max_examples=40)
@given(st.data(), VALUES)
def test_a_file_of_a_folder(saved, tmp_path_factory, data, value):
    """All of its JSON files, looked at by the loader and by check_checkpoint alike."""
    files = sorted(str(file.relative_to(saved)) for file in saved.rglob("*.json") if file.name != "vocab.json")
    name = data.draw(st.sampled_from(files))
    folder = tmp_path_factory.getbasetemp() / "changed"
    if not folder.exists():
        shutil.copytree(saved, folder)
    content = mutated(json.loads((saved / name).read_text()), data, value)
    (folder / name).write_text(json.dumps(content))
    try:
        only_says(lambda: describe(folder))
        found = inspect(folder)
        assert all("expected" in problem for problem in found.problems)
    finally:
        shutil.copy(saved / name, folder / name)


@settings(EVERY, max_examples=40)
@given(st.sampled_from(["tokenizer_config.json", "special_tokens_map.json"]), st.data(), VALUES)
def test_settings_of_tokenizers(tmp_path_factory, name, data, value):
    folder = tmp_path_factory.getbasetemp() / "t5"
    if not folder.exists():
        tiny.t5_tokenizer(folder)
    file = folder / name
    before = file.read_text() if file.exists() else "{}"
    content = json.loads(before) | {"pad_token": "<pad>", "model_max_length": 9, "tokenizer_class": "T5Tokenizer"}
    file.write_text(json.dumps(mutated(content, data, value)))
    try:
        only_says(lambda: read_tokenizer(folder))
    finally:
        file.write_text(before)
