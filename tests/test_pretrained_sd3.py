"""SD3's transformer is diffusers', to rounding, on random weights; with a time per token too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from asyncpatch_jax.pretrained.folders.presets import PRESETS
from asyncpatch_jax.pretrained.networks import joint, joint_inputs, sd3
from asyncpatch_jax.types import Condition, FewTimes, Spans
from tests import joint_oracles as oracle
from tests.joint_oracles import GRID, SIZE, TEXT, TIMES, dense, few, scalar
from tests.oracles import blur_of_one

TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 12,
}
CONFIGS = {
    "sd3": TINY | {"num_layers": 3},
    # layers of both sorts, in a loop and alone
    "sd35": TINY | {"num_layers": 7, "dual_attention_layers": (0, 1, 2, 3, 5), "qk_norm": "rms_norm"},
    "dual to the last": TINY | {"num_layers": 2, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}
SMALL = TINY | {"num_layers": 2, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
# five layers, four of them a loop
MIDDLE = SMALL | {"num_layers": 5, "dual_attention_layers": (0, 1, 2, 3)}


ours = functools.partial(oracle.ours, sd3)


def theirs(net, x, cond, times=TIMES):
    with torch.no_grad():
        out = net(
            oracle.tensor(x.transpose(0, 3, 1, 2), net),
            encoder_hidden_states=oracle.tensor(cond.tokens, net),
            pooled_projections=oracle.tensor(cond.pooled, net),
            timestep=oracle.tensor(times, net),
            return_dict=False,
        )[0]
    return out.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, CONFIGS[name]), oracle.inputs()
    expected = theirs(net, x, cond)
    assert oracle.error(ours(net, x, scalar(), cond)[0], expected) < 2e-7
    oracle.to_float32(net)
    assert oracle.error(ours(net, x, scalar(), cond, jnp.float32)[0], theirs(net, x, cond)) < 2e-5


def test_one_epsilon_matters(monkeypatch):
    """A parity test that a wrong epsilon passes is none."""
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, SMALL), oracle.inputs()
    monkeypatch.setattr(joint, "_EPS", 1e-5)
    assert oracle.error(ours(net, x, scalar(), cond, anew=True)[0], theirs(net, x, cond)) > 2e-7


def test_a_constant_field_is_its_scalar():
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, SMALL), oracle.inputs()
    once = ours(net, x, scalar(), cond)[0]
    for field in oracle.constant_fields():
        assert oracle.error(ours(net, x, field, cond)[0], once) < 1e-13


@pytest.mark.parametrize("text", [None, np.array([500.25, 41.0], np.float32)], ids=["mean", "given"])
def test_a_time_per_token(monkeypatch, text):
    """Against diffusers, patched; text tokens are told the mean of the field or a time of their own."""
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, SMALL), oracle.inputs(text_time=text)
    t = few()
    fields = dense(t).reshape(2, -1)
    mean = fields.mean(1, dtype=np.float64) if text is None else text
    oracle.per_token(monkeypatch, net, oracle.tensor(fields, net), oracle.tensor(mean, net))
    expected = theirs(net, x, cond)
    tolerance = 2e-6 if text is None else 2e-7  # a mean is rounded to float32
    assert oracle.error(ours(net, x, t, cond)[0], expected) < tolerance
    assert oracle.error(ours(net, x, dense(t), cond)[0], expected) < tolerance


def test_cells_finer_than_tokens_are_picked_and_coarser_ones_repeated():
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, SMALL), oracle.inputs(text_time=TIMES)
    fine = few(SIZE)
    picked = FewTimes(fine.values, fine.index[:, ::2, ::2])
    expected = ours(net, x, picked, cond)[0]
    for t in (fine, dense(fine)):
        assert oracle.error(ours(net, x, t, cond)[0], expected) < 1e-13
    rows = FewTimes(fine.values, fine.index[:, :3, :1])
    full = FewTimes(fine.values, np.broadcast_to(rows.index, (2, *GRID, 1)))
    assert oracle.error(ours(net, x, rows, cond)[0], ours(net, x, full, cond)[0]) < 1e-13


def test_maps_are_blocks_of_the_joint_softmax(monkeypatch):
    net = oracle.reference(SD3Transformer2DModel, MIDDLE)
    x, cond = oracle.inputs(spans=oracle.SPANS)
    seen = oracle.joint_weights(monkeypatch, GRID[0] * GRID[1] + TEXT)
    out = theirs(net, x, cond)
    cells = GRID[0] * GRID[1]
    whole = torch.stack(seen).mean((0, 2))[:, :cells].numpy()
    own, rows = whole[..., :cells], whole[..., cells:]
    expected = oracle.object_maps(rows)
    got, aux = ours(net, x, scalar(), cond)
    assert len(seen) == net.config.num_layers
    assert oracle.error(got, out) < 2e-7
    assert aux["maps"].dtype == jnp.float32
    assert oracle.error(aux["maps"], expected) < 1e-6
    assert aux["self_maps"].dtype == jnp.float32
    assert oracle.error(aux["self_maps"], own / own.sum(-1, keepdims=True)) < 1e-6


def test_the_image_s_own_maps_are_not_computed_unless_they_are_read():
    module = sd3.from_config(MIDDLE)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *sd3.example(module))
    x, cond = oracle.inputs(spans=Spans(np.array([[2], [0]]), np.ones((2, 1, 1), np.float32)))

    def program(*names):
        def ask(variables):
            out, aux = module.apply(variables, *jax.tree.map(jnp.asarray, (x, scalar(), cond)))
            return out, [aux[name] for name in names]

        return jax.jit(ask).lower(shapes).compile().as_text()

    assert "f32[2,15,15]" in program("maps", "self_maps")
    assert "f32[2,15,15]" not in program("maps")


def blurring(module, sigmas):
    """Blur the queries of image tokens [b, heads, n, d] that a module of PyTorch gives."""

    def hook(_, args, queries):
        pairs = zip(queries.numpy(), sigmas, strict=True)
        parts = [[blur_of_one(head.reshape(*GRID, -1), sigma) for head in heads] for heads, sigma in pairs]
        return torch.from_numpy(np.array(parts).reshape(queries.shape))

    module.register_forward_hook(hook)


def test_queries_of_middle_layers_are_blurred_over_the_image():
    """After their norm, of both attentions of a layer that has two; the text's never. Of five layers, the second."""
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, MIDDLE), oracle.inputs()
    plain = theirs(net, x, cond)
    sigmas = np.array([0.0, 1.2], np.float32)
    for attention in (net.transformer_blocks[1].attn, net.transformer_blocks[1].attn2):
        blurring(attention.norm_q, sigmas)
    expected = theirs(net, x, cond)
    got = ours(net, x, scalar(), cond._replace(blur=sigmas))[0]
    assert oracle.error(got, expected) < 2e-7
    assert oracle.error(got[0], plain[0]) < 2e-7
    assert oracle.error(got[1], plain[1]) > 1e-3


def test_middle_layers_are_those_recommended_for_stable_diffusion_35():
    module = sd3.from_config(PRESETS["sd3.5"]["transformer"])
    blurs = np.asarray(module._blurs(Condition(blur=jnp.asarray([0.5, 2.0]))))
    assert blurs.shape == (24, 2)
    assert np.flatnonzero(blurs[:, 1]).tolist() == [7, 8, 9]
    assert (blurs[7:10] == [[0.5, 2.0]]).all()


def test_bfloat16_keeps_times_apart():
    """996 and 1000 are neighbours in bfloat16."""
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, SMALL), oracle.inputs()
    outs, exact = oracle.two_close_times(sd3, net, theirs, x, cond)
    assert oracle.error(outs[0] - outs[1], exact[0] - exact[1]) < 0.5
    assert oracle.error(outs[0], exact[0]) < 0.1


def wrong(**changes):
    x, cond = oracle.inputs()
    return x, scalar(), cond._replace(**changes)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ((oracle.inputs()[0][:, :5], scalar(), oracle.inputs()[1]), "multiples of 2"),
        ((oracle.random(2, 26, 2, 4), scalar(), oracle.inputs()[1]), "at most 12 x 12 patches"),
        ((oracle.inputs()[0], scalar(), None), "got no tokens"),
        (wrong(pooled=None), "got no pooled"),
        (wrong(pooled=np.zeros((2, 9), np.float32)), "pooled for 2 images, of width 10"),
        (wrong(mask=np.ones((2, TEXT), bool)), "got mask too"),
        (wrong(text_time=np.zeros((2, 1), np.float32)), "text_time as float32"),
        (wrong(spans=Spans(np.zeros((1, 2), int), np.ones((1, 2, 1), np.float32))), "spans for 2 images"),
        ((oracle.inputs()[0], np.zeros((2, 2, 5, 1), np.float32), oracle.inputs()[1]), "whose grid refines"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    module = sd3.from_config(SMALL)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), *call)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm"),
        ({"caption_projection_dim": 24}, "caption_projection_dim = 16"),
        ({"time_shift": 2}, "unknown setting time_shift"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        sd3.from_config(SMALL | changes)


def test_text_is_not_told_of_known_cells():
    """Half of the cells are known, at 0: the text is told the mean of the others, as if it had been said."""
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, SMALL), oracle.inputs()
    t = np.zeros((2, *GRID, 1), np.float32)
    t[:, 1:] = TIMES.reshape(2, 1, 1, 1)
    text_time = jax.jit(joint_inputs.text_time)
    np.testing.assert_array_equal(text_time(t, cond), TIMES[:, None])
    assert (np.asarray(text_time(0 * t, cond)) == 0).all()
    told = ours(net, x, t, cond._replace(text_time=TIMES))[0]
    np.testing.assert_array_equal(ours(net, x, t, cond)[0], told)
