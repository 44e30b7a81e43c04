"""Parts of a pipeline that do not fit each other are refused by their settings, wherever a folder is looked at."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from asyncpatch_jax.metrics.clip import read_clip
from asyncpatch_jax.pretrained.folders import families, schedulers, tensors
from asyncpatch_jax.pretrained.folders.edges import check_parts, check_tokenizer, check_tokenizers
from asyncpatch_jax.pretrained.folders.inspection import inspect
from asyncpatch_jax.pretrained.folders.loading import describe, load_pretrained
from asyncpatch_jax.pretrained.folders.presets import PRESETS
from asyncpatch_jax.pretrained.pipelines import ready
from asyncpatch_jax.pretrained.requests import Request
from asyncpatch_jax.pretrained.settings import defaults
from asyncpatch_jax.pretrained.text.prompts import encode_prompts
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer, Tokens
from tests import tiny, tiny_folders

FAMILIES = {"sd1.5": "sd", "sd2.1": "sd", "sdxl": "sdxl", "sd3.5": "sd3", "flux": "flux", "flux-kontext": "kontext"}
FLOW = PRESETS["flux"]["scheduler"]
STEPS = PRESETS["sd1.5"]["scheduler"]


def check(folder, **changes):
    """A public folder in full size, with other settings in one of its parts; None: without it."""
    configs = {name: {**config, **changes.get(name, {})} for name, config in PRESETS[folder].items()}
    scheduler = schedulers.from_config({**configs.pop("scheduler"), **changes.get("scheduler", {})})
    parts = {name: SimpleNamespace(module=families.module(config)) for name, config in configs.items()}
    check_parts(FAMILIES[folder], parts, scheduler)


@pytest.mark.parametrize("folder", PRESETS)
def test_the_public_folders_fit(folder):
    check(folder)


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("sd1.5", {"vae": {"latent_channels": 16}}, "a vae of 4 latent channels, which the unet makes, got one of 16"),
        ("flux", {"vae": {"latent_channels": 4}}, "a vae of 16 latent channels, which the transformer .* got one of 4"),
        ("sd3.5", {"vae": {"in_channels": 4, "out_channels": 4}}, "a vae of pictures, .* got one of 4"),
        ("sd1.5", {"unet": {"out_channels": 8}}, "in_channels = out_channels = 8, or 17 .* inpainting .*, got 4"),
        ("sd1.5", {"unet": {"in_channels": 8}}, "in_channels = out_channels = 4, or 9 .* inpainting .*, got 8"),
        ("sd3.5", {"transformer": {"out_channels": 32}}, "out_channels = in_channels = 16, got 32"),
        ("flux", {"transformer": {"in_channels": 384}}, "Fill|a vae of 96 latent channels"),
        ("sd1.5", {"unet": {"cross_attention_dim": 1024}}, "width 1024 for this sd network, got 768"),
        ("sd2.1", {"text_encoder": {"hidden_size": 768}}, "width 1024 for this sd network, got 768"),
        ("sdxl", {"text_encoder_2": {"hidden_size": 1024, "num_attention_heads": 16}}, "width 2048 and .*, got 1792"),
        ("sdxl", {"text_encoder_2": {"projection_dim": 768}}, r"and 1280 \(pooled\) for this sdxl .* and 768 \(pooled"),
        ("sdxl", {"unet": {"addition_embed_type": None}}, r"width 2048 for this sdxl .* and 1280 \(pooled\)"),
        ("sd3.5", {"text_encoder_3": {"d_model": 2048}}, r"width 4096 and 2048 \(pooled\) .*, got 2048 and 2048"),
        ("sd3.5", {"text_encoder_3": {"d_model": 1024}}, "a width of at least 2048, CLIP's two, got 1024"),
        ("sd3.5", {"text_encoder": {"projection_dim": 512}}, "and 1792 \\(pooled\\)"),
        ("flux", {"text_encoder": {"hidden_size": 1024, "num_attention_heads": 16}}, "got 4096 and 1024"),
        ("flux", {"text_encoder_2": {"d_model": 2048}}, "got 2048 and 768"),
        ("flux", {"scheduler": {**dict.fromkeys(FLOW), **STEPS}}, "a flow-match scheduler .* got one of Discrete"),
        ("sd1.5", {"scheduler": {**dict.fromkeys(STEPS), **FLOW}}, "of discrete levels for the unet .* RectifiedFlow"),
    ],
)  # fmt: skip
def test_parts_of_other_pipelines(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        check(folder, **changes)


def a_tokenizer(size=100, length=77, end=99):
    backend = SimpleNamespace(
        get_vocab=lambda with_added_tokens: {str(i): i for i in range(size)},
        encode=lambda text: SimpleNamespace(ids=[end - 1, end]),
    )
    return Tokenizer(backend, length, 0, "tokenizer_x")


ENCODER = {"vocab_size": 100, "max_position_embeddings": 77, "eos_token_id": 99}


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (a_tokenizer(), None),
        (a_tokenizer(size=101), "at most 100 ids, which text_encoder knows, got tokenizer_x with 101"),
        (a_tokenizer(length=78), "texts of at most 77 tokens, .* got tokenizer_x with 78"),
        (a_tokenizer(end=98), r"ends texts with 99, as text_encoder is told, got \[98\]"),
    ],
)
def test_tokenizers_of_other_encoders(tokenizer, message):
    module = families.module({**PRESETS["sd1.5"]["text_encoder"], **ENCODER})
    components = {"text_encoder": SimpleNamespace(module=module, params=None)}
    if message is None:
        check_tokenizers("sd", components, {"tokenizer": tokenizer})
        # old files say 2 of the largest id
        check_tokenizer(a_tokenizer(end=50), families.module({**PRESETS["sd1.5"]["text_encoder"]}), "it")
        return
    with pytest.raises(ValueError, match=message):
        check_tokenizers("sd", components, {"tokenizer": tokenizer})


def test_ids_that_no_table_has_are_not_looked_up(monkeypatch):
    ids = np.full((1, 77), 100, np.int32)
    monkeypatch.setattr(Tokenizer, "encode", lambda self, texts: Tokens(ids, ids > 0, ("",)))
    module = families.module({**PRESETS["sd1.5"]["text_encoder"], **ENCODER})
    components = {"text_encoder": SimpleNamespace(module=module, params=None)}
    with pytest.raises(ValueError, match="expected ids below 100 for text_encoder, got 100 by tokenizer"):
        encode_prompts("sd", components, {"tokenizer": a_tokenizer()}, ["a"])


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders") / "sd"
    tiny_folders.folder("sd", path)
    return path


def edited(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edited(f / "unet" / "config.json", out_channels=8), "unet/config.json: .*for inpainting.* got 4"),
        (lambda f: edited(f / "vae" / "config.json", latent_channels=16), "a vae of 4 latent channels"),
        (lambda f: edited(f / "unet" / "config.json", cross_attention_dim=24), "width 24 for this sd network, got 16"),
        (
            lambda f: edited(f / "text_encoder" / "config.json", vocab_size=50),
            "at most 50 ids, which text_enc",
        ),
        (lambda f: edited(f / "text_encoder" / "config.json", max_position_embeddings=9), "at most 9 tokens"),
        (lambda f: edited(f / "text_encoder" / "config.json", eos_token_id=3), "ends texts with 3"),
    ],
    ids=["channels", "latents", "width", "ids", "length", "end"],
)
def test_every_way_to_a_folder_looks_before_it_reads(saved, tmp_path, monkeypatch, change, message):
    folder = shutil.copytree(saved, tmp_path / "sd")
    change(folder)
    monkeypatch.setattr(tensors, "blocks", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)
    found = inspect(folder)
    assert not found.loads
    said = [*found.problems, *(problem for part in found.components for problem in part.problems)]
    assert any(re.search(message, problem) for problem in said)
    with pytest.raises(ValueError, match=message):
        ready(describe(folder), [Request("a dog")], defaults("sd", 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"vocab_size": 9}, "at most 9 ids, which this CLIPModel knows"), ({"max_position_embeddings": 9}, "at most 9")],
)
def test_a_reward_s_tokenizer(tmp_path, changes, message):
    """Before the weights are looked for: there are none."""
    size = tiny.clip_tokenizer(tmp_path / "clip")
    text = {"vocab_size": size, "hidden_size": 16, "num_attention_heads": 2, "eos_token_id": 2, **changes}
    vision = {"hidden_size": 16, "num_attention_heads": 2}
    config = {"architectures": ["CLIPModel"], "text_config": text, "vision_config": vision}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_clip(tmp_path / "clip")
