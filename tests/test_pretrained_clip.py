"""CLIP's encoders against transformers', on random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from asyncpatch_jax.pretrained.folders import names
from asyncpatch_jax.pretrained.networks import clip
from tests import tiny

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "projection_dim": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "eos_token_id": 39,
    "bos_token_id": 38,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
}


def built(net, dtype, **changes):
    """Our module and parameters for a PyTorch network."""
    module = clip.from_config({**net.config.to_dict(), "architectures": [type(net).__name__], **changes}, dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *clip.example(module))["params"]
    return module, names.from_torch(shapes, tiny.state(net))


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, *inputs):
    return module.apply({"params": params}, *inputs)


def text_net(kind, dtype=torch.float64, **changes):
    net = getattr(transformers, kind)(transformers.CLIPTextConfig(**{**TEXT, **changes}))
    return tiny.randomised(net, seed=0).to(dtype)


def some_ids():
    """Two texts of 5 and 9 tokens; the second is padded with something else than the end, as Stable Diffusion 2's."""
    ids = np.random.default_rng(0).integers(1, 38, (2, 12))
    ids[:, 0] = 38
    ids[0, 5:] = 39
    ids[1, 9], ids[1, 10:] = 39, 0
    return ids


def compare(ours, net, ids, tolerance):
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids), output_hidden_states=True)
    np.testing.assert_allclose(ours.last, theirs.last_hidden_state, atol=tolerance, rtol=0)
    np.testing.assert_allclose(ours.penultimate, theirs.hidden_states[-2], atol=tolerance, rtol=0)
    if ours.projected is None:
        np.testing.assert_allclose(ours.pooled, theirs.pooler_output, atol=tolerance, rtol=0)
    else:
        np.testing.assert_allclose(ours.projected, theirs.text_embeds, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("kind", "eos", "act"),
    [  # of the end of text the largest id, a given one, and a given one that is not the largest
        ("CLIPTextModel", 2, "quick_gelu"),
        ("CLIPTextModel", 39, "gelu"),
        ("CLIPTextModelWithProjection", 2, "gelu"),
        ("CLIPTextModelWithProjection", 38, "quick_gelu"),
    ],
)
def test_text_is_pytorchs(kind, eos, act):
    net, ids = text_net(kind, hidden_act=act, eos_token_id=eos), some_ids()
    with jax.enable_x64(True):
        module, params = built(net, jnp.float64)
        compare(run(module, params, ids), net, ids, 1e-9)


def test_text_in_float32():
    net, ids = text_net("CLIPTextModelWithProjection", torch.float32), some_ids()
    module, params = built(net, jnp.float32)
    compare(run(module, params, ids), net, ids, 2e-5)


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-6}, {"hidden_act": "gelu"}])
def test_another_setting_is_seen(change):
    net, ids = text_net("CLIPTextModel"), some_ids()
    with jax.enable_x64(True):
        module, params = built(net, jnp.float64, **change)
        out = run(module, params, ids)
        with pytest.raises(AssertionError):
            compare(out, net, ids, 1e-9)


def test_the_end_of_text_is_the_first():
    """Padding with the end-of-text token, as CLIP-L does, leaves the pooled token where the text ends."""
    net = text_net("CLIPTextModel", hidden_act="gelu")
    ids = some_ids()
    ids[1] = np.where(np.arange(12) > 5, 7, ids[0])
    with jax.enable_x64(True):
        module, params = built(net, jnp.float64)
        out = jax.tree.map(np.asarray, run(module, params, ids))
        np.testing.assert_allclose(out.pooled[0], out.last[0, 5], rtol=1e-12)
        np.testing.assert_allclose(out.pooled[1], out.pooled[0], atol=1e-12)  # nothing after it is seen


def test_both_encoders_are_pytorchs():
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    net = tiny.randomised(transformers.CLIPModel(config), seed=1).double()
    ids, pixels = some_ids(), np.random.default_rng(1).standard_normal((3, 12, 12, 3))
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids), torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    with jax.enable_x64(True):
        module, params = built(net, jnp.float64)
        texts, images, scale = (np.asarray(part) for part in run(module, params, ids, pixels))
        texts, images = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (texts, images))
        np.testing.assert_allclose(texts, theirs.text_embeds, atol=1e-9)
        np.testing.assert_allclose(images, theirs.image_embeds, atol=1e-9)
        np.testing.assert_allclose(texts @ images.T * scale, theirs.logits_per_text, atol=1e-9)


def test_image_encoder_is_pytorchs():
    net = tiny.randomised(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION)), seed=2)
    net = net.double()
    pixels = np.random.default_rng(1).standard_normal((2, 12, 12, 3))
    with torch.no_grad():
        theirs = net(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).image_embeds
    with jax.enable_x64(True):
        module, params = built(net, jnp.float64)
        np.testing.assert_allclose(run(module, params, pixels), theirs, atol=1e-9)
        with pytest.raises(ValueError, match="12 x 12"):
            run(module, params, np.zeros((1, 8, 12, 3)))


def test_a_bfloat16_text_encoder_is_close():
    net, ids = text_net("CLIPTextModelWithProjection", torch.float32), some_ids()
    module, params = built(net, jnp.bfloat16)
    params = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), params)
    out = run(module, params, ids)
    assert out.last.dtype == out.penultimate.dtype == out.projected.dtype == jnp.bfloat16
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)).last_hidden_state.numpy()
    assert np.abs(np.asarray(out.last, np.float32) - theirs).mean() < 0.05 * np.abs(theirs).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"num_attention_heads": 3}, "3 heads divide"),
        ({"eos_token_id": [1, 2]}, "eos_token_id as int"),
        ({"rope_theta": 5}, "rope_theta"),
    ],
)
def test_other_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        clip.from_config({**TEXT, "architectures": ["CLIPTextModel"], **changes})


def test_too_many_tokens_are_refused():
    module = clip.from_config({**TEXT, "architectures": ["CLIPTextModel"]})
    with pytest.raises(ValueError, match="at most 12 tokens, got 13"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 13), jnp.int32))
