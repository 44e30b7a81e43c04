"""FLUX's transformer is diffusers', to rounding, on random weights; with a time per token and a reference too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel

from asyncpatch_jax.pretrained.networks import flux, joint
from tests import joint_oracles as oracle
from tests.joint_oracles import GRID, SIZE, TEXT, TIMES, dense, few, scalar

TINY = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": True,
}


def inputs(reference=None, **more):
    if reference is not None:
        more["reference"] = oracle.random(2, *reference, 4, seed=3)
    return oracle.inputs(guidance=np.array([3.5, 1.25], np.float32), **more)


ours = functools.partial(oracle.ours, flux)


def packed(x, net):
    return FluxKontextPipeline._pack_latents(oracle.tensor(x.transpose(0, 3, 1, 2), net), len(x), 4, *x.shape[1:3])


def ids(size, index):
    out = FluxKontextPipeline._prepare_latent_image_ids(1, size[0] // 2, size[1] // 2, None, torch.float64)
    out[:, 0] = index
    return out


def theirs(net, x, cond, times=TIMES):
    tokens, places = packed(x, net), ids(SIZE, 0)
    if cond.reference is not None:
        tokens = torch.cat([tokens, packed(cond.reference, net)], 1)
        places = torch.cat([places, ids(cond.reference.shape[1:3], 1)])
    with torch.no_grad():
        out = net(
            tokens,
            encoder_hidden_states=oracle.tensor(cond.tokens, net),
            pooled_projections=oracle.tensor(cond.pooled, net),
            timestep=oracle.tensor(times, net) / 1000,
            img_ids=places,
            txt_ids=torch.zeros(TEXT, 3, dtype=torch.float64),
            guidance=None if cond.guidance is None else oracle.tensor(cond.guidance, net),
            return_dict=False,
        )[0][:, : GRID[0] * GRID[1]]
    scale = FluxKontextPipeline._unpack_latents(out, 8 * SIZE[0], 8 * SIZE[1], 8)
    return scale.numpy().transpose(0, 2, 3, 1)


UNGUIDED = TINY | {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": False}
# (config, condition)
CASES = {
    # loops, and layers one by one
    "guided": (TINY | {"num_layers": 4, "num_single_layers": 5}, inputs()),
    "not guided": (UNGUIDED, (inputs()[0], inputs()[1]._replace(guidance=None))),
    "reference": (TINY, inputs(reference=SIZE)),
    "reference of another size": (TINY, inputs(reference=(4, 12))),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name):
    config, (x, cond) = CASES[name]
    net = oracle.reference(FluxTransformer2DModel, config)
    expected = theirs(net, x, cond)
    assert oracle.error(ours(net, x, scalar(), cond)[0], expected) < 2e-7
    oracle.to_float32(net)
    assert oracle.error(ours(net, x, scalar(), cond, jnp.float32)[0], theirs(net, x, cond)) < 2e-5


def test_one_epsilon_matters(monkeypatch):
    """A parity test that a wrong epsilon passes is none."""
    net, (x, cond) = oracle.reference(FluxTransformer2DModel, TINY), inputs()
    monkeypatch.setattr(joint, "_EPS", 1e-5)
    assert oracle.error(ours(net, x, scalar(), cond, anew=True)[0], theirs(net, x, cond)) > 2e-7


@pytest.mark.parametrize("reference", [None, (4, 12)], ids=["", "reference"])
def test_a_constant_field_is_its_scalar(reference):
    net, (x, cond) = oracle.reference(FluxTransformer2DModel, TINY), inputs(reference)
    once = ours(net, x, scalar(), cond)[0]
    for field in oracle.constant_fields():
        assert oracle.error(ours(net, x, field, cond)[0], once) < 1e-13


@pytest.mark.parametrize("reference", [None, SIZE, (4, 12)], ids=["", "reference", "reference of another size"])
def test_a_time_per_token(monkeypatch, reference):
    """Against diffusers, patched; a reference's tokens have the times of the latents' tokens at their place."""
    net = oracle.reference(FluxTransformer2DModel, TINY)
    x, cond = inputs(reference, text_time=np.array([500.25, 41.0], np.float32))
    t = few()
    fields = dense(t)
    tokens = fields.reshape(2, -1)
    if reference is not None:
        rows, cols = (
            [int((i + 0.5) * old / (new // 2)) for i in range(new // 2)]
            for old, new in zip(GRID, reference, strict=True)
        )
        tokens = np.concatenate([tokens, fields[:, rows][:, :, cols].reshape(2, -1)], 1)
    oracle.per_token(monkeypatch, net, oracle.tensor(tokens, net), oracle.tensor(cond.text_time, net))
    expected = theirs(net, x, cond)
    assert oracle.error(ours(net, x, t, cond)[0], expected) < 2e-7
    assert oracle.error(ours(net, x, fields, cond)[0], expected) < 2e-7


def test_text_is_told_the_mean():
    net, (x, cond) = oracle.reference(FluxTransformer2DModel, TINY), inputs()
    mean = dense(few()).mean((1, 2, 3), dtype=np.float64).astype(np.float32)
    expected = ours(net, x, few(), cond._replace(text_time=mean))[0]
    assert oracle.error(ours(net, x, few(), cond)[0], expected) < 2e-6


@pytest.mark.parametrize("reference", [None, SIZE], ids=["", "reference"])
def test_maps_are_columns_of_the_joint_softmax(monkeypatch, reference):
    net = oracle.reference(FluxTransformer2DModel, CASES["guided"][0])
    x, cond = inputs(reference, spans=oracle.SPANS)
    image = GRID[0] * GRID[1]
    seen = oracle.joint_weights(monkeypatch, TEXT + image * (1 if reference is None else 2))
    out = theirs(net, x, cond)
    rows = torch.stack(seen).mean((0, 2))[:, TEXT : TEXT + image, :TEXT].numpy()
    expected = oracle.object_maps(rows)
    got, aux = ours(net, x, scalar(), cond)
    assert len(seen) == net.config.num_layers + net.config.num_single_layers
    assert oracle.error(got, out) < 2e-7
    assert oracle.error(aux["maps"], expected) < 1e-6


def test_bfloat16_keeps_times_apart():
    """996 and 1000 are neighbours in bfloat16."""
    net, (x, cond) = oracle.reference(FluxTransformer2DModel, TINY), inputs()
    outs, exact = oracle.two_close_times(flux, net, theirs, x, cond)
    assert oracle.error(outs[0] - outs[1], exact[0] - exact[1]) < 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance": None}, "got no guidance"),
        ({"reference": np.zeros((2, 4, 5, 4), np.float32)}, "a reference .* multiples of 2"),
        ({"tokens": np.zeros((2, 7, 13), np.float32)}, "tokens for 2 images, of width 12"),
        ({"blur": np.zeros(2, np.float32)}, "got blur too"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    module, (x, cond) = flux.from_config(TINY), inputs()
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), x, scalar(), cond._replace(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_channels": 8}, "as many out_channels"),
        ({"axes_dims_rope": (4, 4, 4)}, "add up to 16"),
        ({"patch_size": 2}, "patch_size = 1"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        flux.from_config(TINY | changes)
