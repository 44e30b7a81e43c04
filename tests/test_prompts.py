"""Prompts to conditions, against diffusers' pipelines with tiny encoders."""

from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from asyncpatch_jax.pretrained.folders import names
from asyncpatch_jax.pretrained.networks import clip, t5
from asyncpatch_jax.pretrained.text import prompts
from asyncpatch_jax.pretrained.text.prompts import encode_prompts, read_tokenizers
from asyncpatch_jax.pretrained.text.spans import spans
from tests import tiny

PROMPTS = ["a red dog, and two dogs", "a cat", "a red dog, and two dogs"]
NEGATIVES = ["a horse", "", "a horse"]
JOINT = 40  # the width of Stable Diffusion 3's text


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """All in float64."""
    tiny.make_t5_norm_wide(monkeypatch)
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Tokenizers and encoders of every kind that a family takes: (PyTorch's, ours)."""
    root = tmp_path_factory.mktemp("text")
    vocab = tiny.clip_tokenizer(root / "clip", length=16)
    tiny.clip_tokenizer(root / "openclip", pad="!", length=16)
    words = tiny.t5_tokenizer(root / "t5")

    def text(kind, width, seed):
        config = transformers.CLIPTextConfig(
            vocab_size=vocab, hidden_size=width, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, projection_dim=10, eos_token_id=2, bos_token_id=vocab - 2,
        )  # fmt: skip
        return tiny.randomised(getattr(transformers, kind)(config), seed).double()

    config = transformers.T5Config(
        vocab_size=words, d_model=JOINT, d_kv=4, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    nets = {
        "clip": text("CLIPTextModel", 12, 0),
        "clip_projected": text("CLIPTextModelWithProjection", 12, 0),
        "openclip": text("CLIPTextModelWithProjection", 16, 1),
        "t5": tiny.randomised(transformers.T5EncoderModel(config), 2).double(),
    }

    def converted(net):
        family = t5 if isinstance(net, transformers.T5EncoderModel) else clip
        module = family.from_config({**net.config.to_dict(), "architectures": [type(net).__name__]}, jnp.float64)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *family.example(module))["params"]
        params = jax.tree.map(jnp.asarray, names.from_torch(shapes, tiny.state(net)))
        return SimpleNamespace(module=module, params=params)

    with jax.enable_x64(True):
        return SimpleNamespace(root=root, nets=nets, ours={name: converted(net) for name, net in nets.items()})


FAMILIES = {
    "sd": {"text_encoder": "clip", "tokenizer": "clip"},
    "sdxl": {"text_encoder": "clip", "text_encoder_2": "openclip", "tokenizer": "clip", "tokenizer_2": "openclip"},
    "sd3": {
        "text_encoder": "clip_projected", "text_encoder_2": "openclip", "text_encoder_3": "t5",
        "tokenizer": "clip", "tokenizer_2": "openclip", "tokenizer_3": "t5",
    },
    "flux": {"text_encoder": "clip", "text_encoder_2": "t5", "tokenizer": "clip", "tokenizer_2": "t5"},
}  # fmt: skip


def ours(parts, family, without=(), **arguments):
    which = {name: kind for name, kind in FAMILIES[family].items() if name not in without}
    components = {name: parts.ours[kind] for name, kind in which.items() if name.startswith("text")}
    folders = {name: parts.root / kind for name, kind in which.items() if name.startswith("tok")}
    tokenizers = read_tokenizers(family, folders)
    return encode_prompts(family, components, tokenizers, PROMPTS, **arguments)


def pipeline(parts, family, without=()):
    kind = {
        "sd": diffusers.StableDiffusionPipeline,
        "sdxl": diffusers.StableDiffusionXLPipeline,
        "sd3": diffusers.StableDiffusion3Pipeline,
        "flux": diffusers.FluxPipeline,
    }[family]
    given = {}
    for name, which in FAMILIES[family].items():
        reader = transformers.T5Tokenizer if which == "t5" else transformers.CLIPTokenizer
        given[name] = parts.nets[which] if name.startswith("text") else reader.from_pretrained(parts.root / which)
    given.update(dict.fromkeys(without))
    rest = ["vae", "scheduler"] + (["transformer"] if family in ("sd3", "flux") else ["unet"])
    given.update(dict.fromkeys(rest))
    if family == "sd":
        given.update(dict.fromkeys(["safety_checker", "feature_extractor"]), requires_safety_checker=False)
    if family == "sd3":
        given["transformer"] = diffusers.SD3Transformer2DModel(
            sample_size=4, num_layers=1, attention_head_dim=4, num_attention_heads=1, joint_attention_dim=JOINT,
            caption_projection_dim=4, pooled_projection_dim=4, pos_embed_max_size=4,
        )  # fmt: skip
    return kind(**given)


def close(array, tensor):
    np.testing.assert_allclose(array, tensor.numpy(), atol=1e-9, rtol=0)


@torch.no_grad()
def theirs(parts, family, negatives, without=()):
    pipe = pipeline(parts, family, without)
    device = torch.device("cpu")
    match family:
        case "sd":
            both = pipe.encode_prompt(PROMPTS, device, 1, True, negatives)
            return [(both[0], None), (both[1], None)]
        case "flux":
            found = [
                pipe.encode_prompt(texts, None, device)[:2]
                for texts in (PROMPTS, [""] * 3 if negatives is None else negatives)
            ]
            return found
        case "sdxl":
            given = pipe.encode_prompt(PROMPTS, device=device, negative_prompt=negatives)
        case "sd3":
            given = pipe.encode_prompt(PROMPTS, None, None, device=device, negative_prompt=negatives)
    return [(given[0], given[2]), (given[1], given[3])]


@pytest.mark.parametrize("negatives", [None, NEGATIVES])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_is_diffusers(parts, family, negatives):
    size = (48, 64) if family == "sdxl" else None
    found = ours(parts, family, negatives=negatives, size=size)
    for condition, (tokens, pooled) in zip(found, theirs(parts, family, negatives), strict=True):
        close(condition.tokens, tokens)
        assert (condition.pooled is None) == (pooled is None)
        if pooled is not None:
            close(condition.pooled, pooled)
        assert condition.mask is None  # padding counts, in all of these
        if family == "sdxl":
            np.testing.assert_array_equal(condition.sizes, [[48, 64, 0, 0, 48, 64]] * 3)
    lengths = {"sd": 16, "sdxl": 16, "sd3": 16 + 256, "flux": 512}
    assert found[0].tokens.shape[1] == lengths[family]


def test_sdxl_without_zeros_for_no_negative_prompt(parts):
    zeros = ours(parts, "sdxl", size=(8, 8))[1]
    assert not zeros.tokens.any()
    assert not zeros.pooled.any()
    empty = ours(parts, "sdxl", size=(8, 8), zero_negatives=False)[1]
    said = ours(parts, "sdxl", size=(8, 8), negatives=["", "", ""])[1]
    np.testing.assert_array_equal(empty.tokens, said.tokens)
    assert empty.tokens.any()


def test_sd3_without_t5(parts):
    without = ("text_encoder_3",)
    found = ours(parts, "sd3", without=without, width=JOINT)
    for condition, (tokens, pooled) in zip(found, theirs(parts, "sd3", None, without), strict=True):
        close(condition.tokens, tokens)
        close(condition.pooled, pooled)
    # nor zeros in its place
    components = {name: parts.ours[FAMILIES["sd3"][name]] for name in ("text_encoder", "text_encoder_2")}
    folders = {name: parts.root / FAMILIES["sd3"][name] for name in ("tokenizer", "tokenizer_2")}
    tokenizers = read_tokenizers("sd3", folders)
    alone, _ = encode_prompts("sd3", components, tokenizers, PROMPTS, width=JOINT, t5_length=0)
    np.testing.assert_array_equal(alone.tokens, found[0].tokens[:, :16])
    np.testing.assert_array_equal(ours(parts, "sd3", t5_length=0)[0].tokens, alone.tokens)
    assert prompts.streams("sd3", components, tokenizers) == [(tokenizers["tokenizer"], 0)]
    with pytest.raises(ValueError, match="joint_attention_dim"):
        encode_prompts("sd3", components, tokenizers, PROMPTS)
    with pytest.raises(ValueError, match="at least 28, CLIP's two, got 20"):
        encode_prompts("sd3", components, tokenizers, PROMPTS, width=20)


def test_flux_is_told_its_guidance(parts):
    condition, _ = ours(parts, "flux", guidance=3.5)
    np.testing.assert_array_equal(condition.guidance, [3.5] * 3)
    assert ours(parts, "flux")[0].guidance is None


def test_t5_has_the_length_that_is_asked_for(parts):
    whole, short = ours(parts, "flux")[0], ours(parts, "flux", t5_length=128)[0]
    assert short.tokens.shape[1] == 128
    with torch.no_grad():
        pipe = pipeline(parts, "flux")
        close(short.tokens, pipe.encode_prompt(PROMPTS, None, torch.device("cpu"), max_sequence_length=128)[0])
    assert np.abs(short.tokens - whole.tokens[:, :128]).max() > 1e-6  # padding counts
    with pytest.raises(ValueError, match="at least 2 tokens"):
        ours(parts, "flux", t5_length=0)


def test_each_text_is_encoded_once(parts, monkeypatch):
    rows = []
    encode = prompts._encode
    monkeypatch.setattr(prompts, "_encode", lambda *args: rows.append(len(args[-1]["tokenizer"])) or encode(*args))
    many = [f"{word} {other}" for word in ("a", "two", "the") for other in ("cat", "dog", "car")]
    component = {"text_encoder": parts.ours["clip"]}
    tokenizers = read_tokenizers("sd", {"tokenizer": parts.root / "clip"})
    condition, negative = encode_prompts("sd", component, tokenizers, many * 3)
    assert rows == [8, 8]  # nine prompts and the empty one
    assert condition.tokens.shape[0] == negative.tokens.shape[0] == 27
    alone, _ = encode_prompts("sd", component, tokenizers, many[7:8])
    np.testing.assert_allclose(condition.tokens[16], alone.tokens[0], atol=1e-6)
    np.testing.assert_array_equal(negative.tokens[0], negative.tokens[26])


def test_streams_are_where_the_tokens_are(parts):
    """The position that `spans` gives a word is that of the token which says it, in both texts that SD3 reads."""
    which = FAMILIES["sd3"]
    components = {name: parts.ours[kind] for name, kind in which.items() if name.startswith("text")}
    folders = {name: parts.root / kind for name, kind in which.items() if name.startswith("tok")}
    tokenizers = read_tokenizers("sd3", folders)
    both = [["a red dog"], ["a red cat"]]
    texts = [encode_prompts("sd3", components, tokenizers, text)[0].tokens[0] for text in both]
    differs = np.flatnonzero(np.abs(texts[0] - texts[1]).max(-1) > 1e-6)
    table = spans(prompts.streams("sd3", components, tokenizers), both[0], [["dog"]])
    used = table.index[0, table.weight[0, :, 0] > 0]
    assert differs[0] == used.min()  # CLIP's is causal: what stands before the word does not change
    assert (used >= 16).any()


def test_what_is_missing_is_said(parts):
    component = {"text_encoder": parts.ours["clip"]}
    tokenizers = read_tokenizers("sd", {"tokenizer": parts.root / "clip"})
    with pytest.raises(ValueError, match="family of sd, sdxl"):
        encode_prompts("sd9", component, tokenizers, PROMPTS)
    with pytest.raises(ValueError, match=r"text encoders .*got none for text_encoder_2"):
        encode_prompts("flux", component, tokenizers, PROMPTS)
    with pytest.raises(ValueError, match=r"tokenizers .*got none for tokenizer_2"):
        read_tokenizers("sdxl", {"tokenizer": parts.root / "clip"})
    with pytest.raises(ValueError, match="got 3 and 1"):
        encode_prompts("sd", component, tokenizers, PROMPTS, ["a horse"])
    with pytest.raises(ValueError, match="got 0 and none"):
        encode_prompts("sd", component, tokenizers, [])
    with pytest.raises(ValueError, match="size of the images"):
        ours(parts, "sdxl")
