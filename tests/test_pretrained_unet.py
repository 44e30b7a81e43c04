"""The pretrained UNet is diffusers' UNet2DConditionModel, to rounding, on random weights; with a time per cell too."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D

from asyncpatch_jax.pretrained.networks import unet2d
from asyncpatch_jax.pretrained.networks.blur import blurred
from asyncpatch_jax.types import Condition, FewTimes, Spans
from tests import tiny
from tests.joint_oracles import dense
from tests.oracles import blur_of_one

TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
# of SDXL, two levels
TWO = TINY | {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": [1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 30,
}
CONFIGS = {
    # four levels, a number of blocks for each; projections are convolutions; not the usual epsilon
    "sd15": TINY
    | {
        "norm_eps": 1e-4,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16, 16, 16],
        "layers_per_block": [1, 1, 2, 1],
        "attention_head_dim": 2,
    },
    # one, two and a loop of layers, heads of each level; attention at the finest level, and on one way only
    "sdxl": TWO
    | {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16, 16],
        "transformer_layers_per_block": [1, 2, 4],
        "attention_head_dim": [1, 2, 4],
    },
    # what fits a question that needs no second layer of each kind; attention below, in the middle and above
    "small": TWO
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    # residual blocks, and one transformer in the middle
    "plain": TWO | {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
}
SIZE = (8, 16)


def reference(config):
    net = tiny.randomised(UNet2DConditionModel(**config).double(), seed=1)
    net.time_proj = tiny.WideSinusoid(config["block_out_channels"][0])
    if "addition_embed_type" in config:
        net.add_time_proj = tiny.WideSinusoid(config["addition_time_embed_dim"])
    return net


def inputs(config, kind=np.float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *SIZE, 4)).astype(kind)
    pooled = sizes = None
    if "addition_embed_type" in config:
        pooled, sizes = rng.normal(size=(2, 6)).astype(kind), rng.integers(0, 1024, (2, 6)).astype(kind)
    return x, Condition(tokens=rng.normal(size=(2, 7, 12)).astype(kind), pooled=pooled, sizes=sizes)


def ask(net, x, t, cond):
    """PyTorch's answer; t is a number for each image, or of what `patched` makes of it."""
    added = {}
    if cond.pooled is not None:
        added = {"text_embeds": torch.from_numpy(cond.pooled), "time_ids": torch.from_numpy(cond.sizes)}
    mask = None if cond.mask is None else torch.tensor(np.asarray(cond.mask))
    with torch.no_grad():
        out = net(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            t,
            torch.from_numpy(cond.tokens),
            encoder_attention_mask=mask,
            added_cond_kwargs=added,
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


def ours(config, net, kind):
    model, params = tiny.built(unet2d, config, net, kind)
    return params, jax.jit(lambda params, x, t, cond: model.apply({"params": params}, x, t, cond))


TIMES = np.asarray([3, 801], np.float32)[:, None, None, None]


@functools.cache
def pair(name):
    config = CONFIGS[name]
    net = reference(config)
    params, apply = ours(config, net, jnp.float64)
    return types.SimpleNamespace(config=config, net=net, params=params, apply=apply)


@pytest.fixture
def both(request):
    with jax.enable_x64(True):
        yield pair(request.param)


@pytest.fixture
def small():
    with jax.enable_x64(True):
        yield pair("small")


@pytest.fixture
def plain():
    with jax.enable_x64(True):
        yield pair("plain")


def test_the_network_is_diffusers(plain):
    """As those are that `test_maps_are_the_mean_weights` looks at."""
    x, cond = inputs(plain.config)
    out, _ = plain.apply(plain.params, x, TIMES, cond)
    want = ask(plain.net, x, torch.tensor([3, 801]), cond)
    assert want.std() > 0.1
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-9)


def test_in_float32_it_is_diffusers_to_rounding():
    config = CONFIGS["plain"] | {"transformer_layers_per_block": [1, 4]}
    net = reference(config).float()
    params, apply = ours(config, net, jnp.float32)
    x, cond = inputs(config, np.float32)
    # the reference's own embedding of timesteps
    net.time_proj = UNet2DConditionModel(**config).time_proj
    out, _ = apply(params, x, TIMES, cond)
    np.testing.assert_allclose(out, ask(net, x, torch.tensor([3, 801]), cond), rtol=2e-5, atol=2e-5)


def per_cell(monkeypatch, net, t):
    """Tell PyTorch's network the times [b, h, w]: each residual block's projection of every cell's, picked [::s]."""

    def forward(self, x, temb):
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        rows, columns = temb.shape[1] // h.shape[2], temb.shape[2] // h.shape[3]
        shift = self.time_emb_proj(self.nonlinearity(temb[:, ::rows, ::columns]))
        h = self.conv2(self.nonlinearity(self.norm2(h + shift.permute(0, 3, 1, 2))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    monkeypatch.setattr(ResnetBlock2D, "forward", forward)
    t = torch.tensor(dense(t) if isinstance(t, FewTimes) else t)[..., 0].expand(2, -1, -1)
    t = t.repeat_interleave(SIZE[0] // t.shape[1], 1).repeat_interleave(SIZE[1] // t.shape[2], 2)
    monkeypatch.setattr(net, "get_time_embed", lambda sample, timestep: net.time_proj(t))
    added = net.get_aug_embed
    if hasattr(net, "add_embedding"):
        monkeypatch.setattr(net, "get_aug_embed", lambda **kw: added(**kw)[:, None, None])


def field(kind):
    """Rows repeated and columns picked by a level, or both repeated; few times or many, of each image or of all."""
    rng = np.random.default_rng(5)
    grid = {"pixels": SIZE, "coarse": (2, 16), "column": (2, 1), "few": (2, 16), "many": SIZE, "shared": SIZE}[kind]
    if kind in ("pixels", "coarse", "column"):
        return rng.uniform(0, 999, (2, *grid, 1)).astype(np.float32)
    count = {"few": 3, "many": 12, "shared": 3}[kind]
    batch = 1 if kind == "shared" else 2
    values = rng.uniform(0, 999, (batch, count)).astype(np.float32)
    return FewTimes(values, rng.integers(0, count, (batch, *grid, 1), np.int8))


@pytest.mark.parametrize("kind", ["pixels", "coarse", "column", "few", "many", "shared"])
def test_each_residual_block_is_told_each_cells_time(monkeypatch, plain, kind):
    x, cond = inputs(plain.config)
    t = field(kind)
    out, _ = plain.apply(plain.params, x, t, cond)
    if kind in ("few", "many", "shared"):
        written_out = np.broadcast_to(dense(t), (2, *t.index.shape[1:]))
        again, _ = plain.apply(plain.params, x, written_out, cond)
        np.testing.assert_allclose(out, again, rtol=1e-11, atol=1e-11)
    per_cell(monkeypatch, plain.net, t)
    np.testing.assert_allclose(out, ask(plain.net, x, 0, cond), rtol=1e-9, atol=1e-9)


def test_a_constant_field_is_the_scalar(plain):
    x, cond = inputs(plain.config)
    scalar, _ = plain.apply(plain.params, x, TIMES, cond)
    for constant in (
        np.tile(TIMES, (1, *SIZE, 1)),
        FewTimes(TIMES[:, :, 0, 0], np.zeros((1, *SIZE, 1), np.int8)),
    ):
        np.testing.assert_allclose(plain.apply(plain.params, x, constant, cond)[0], scalar, rtol=1e-12, atol=1e-12)


SPANS = Spans(
    np.asarray([[1, 2, 4], [3, 5, 0]]),
    np.asarray([[[1, 0], [1, 0], [0, 1]], [[1, 0], [0, 0.5], [0, 0]]], np.float32),
)


def attention_maps(monkeypatch, net, x, cond):
    """The answer, and every attention's softmax weights [b, heads, queries, keys], as PyTorch computes them."""
    found = []
    scores = Attention.get_attention_scores

    def record(self, *args):
        found.append(scores(self, *args))
        return found[-1]

    monkeypatch.setattr(Attention, "get_attention_scores", record)
    net.set_attn_processor(AttnProcessor())
    out = ask(net, x, torch.tensor([3, 801]), cond)
    return out, [maps.reshape(2, -1, *maps.shape[1:]).numpy() for maps in found]


@pytest.mark.parametrize("both", ["sd15", "sdxl"], indirect=True)
def test_maps_are_the_mean_weights_at_a_quarter_of_the_resolution(monkeypatch, both):
    x, cond = inputs(both.config)
    out, aux = both.apply(both.params, x, TIMES, cond._replace(spans=SPANS))
    want, maps = attention_maps(monkeypatch, both.net, x, cond)
    assert want.std() > 0.1
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-9)

    quarter = [layer.mean(1) for layer in maps if layer.shape[2] == 8]
    cross, own = ([layer for layer in quarter if layer.shape[2] == keys] for keys in (7, 8))
    assert len(cross) == len(own) == (5 if both.config is CONFIGS["sd15"] else 8)
    cross = np.mean(cross, 0)
    np.testing.assert_allclose(aux["self_maps"], np.mean(own, 0), atol=1e-7)
    for image, (index, weight) in enumerate(zip(SPANS.index, SPANS.weight, strict=True)):
        expected = cross[image][:, index] @ weight
        np.testing.assert_allclose(aux["maps"][image], expected.reshape(2, 4, 2), atol=1e-7)


def test_maps_of_self_attention_are_not_computed_unless_they_are_read():
    config = CONFIGS["plain"] | {
        "down_block_types": ["DownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D"] * 3,
        "block_out_channels": [8, 8, 16],
        "transformer_layers_per_block": 4,
        "attention_head_dim": 4,
    }
    model = unet2d.from_config(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *unet2d.example(model))
    x, cond = inputs(config, np.float32)
    given = jax.tree.map(jnp.asarray, (x, TIMES, cond))

    def program(pick):
        ask = jax.jit(lambda variables: pick(model.apply(variables, *given)))
        return ask.lower(shapes).compile().as_text()

    assert "f32[2,8,8]" in program(lambda both: both)
    assert "f32[2,8,8]" not in program(lambda both: both[0])


@pytest.mark.parametrize("grid", [(8, 8), (5, 6), (2, 4), (1, 3)])
def test_blur_is_the_authors(grid):
    sigmas = np.asarray([0, 0.2, 0.5, 1, 1.7, 4, 60, 1e6])
    x = np.random.default_rng(0).normal(size=(len(sigmas), *grid, 3))
    with jax.enable_x64(True):
        out = jax.jit(blurred, static_argnums=2)(x.reshape(len(sigmas), -1, 3), sigmas, grid)
    want = [blur_of_one(*one) for one in zip(x, sigmas, strict=True)]
    np.testing.assert_allclose(out.reshape(x.shape), want, rtol=1e-11, atol=1e-11)


def test_no_blur_leaves_every_bit():
    x = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(jnp.bfloat16)
    out = np.asarray(jax.jit(blurred, static_argnums=2)(x, np.asarray([0.0, 2.0], np.float32), (3, 4)))
    assert (out[0] == x[0]).all()
    assert (out[1] != x[1]).any()


def read(small, *, mask=None, blur=(0, 0)):
    """The answer under a mask and a blur, and the condition; one program."""
    x, cond = inputs(small.config)
    cond = cond._replace(mask=np.ones((2, 7), bool) if mask is None else mask)
    out, _ = small.apply(small.params, x, TIMES, cond._replace(blur=np.asarray(blur, np.float64)))
    return np.asarray(out), x, cond


def test_masked_text_is_not_read(small):
    out, x, cond = read(small, mask=np.asarray([[True] * 7, [True] * 4 + [False] * 3]))
    np.testing.assert_allclose(out, ask(small.net, x, torch.tensor([3, 801]), cond), rtol=1e-9, atol=1e-9)
    assert abs(out - read(small)[0])[1].max() > 1e-3


def test_queries_of_the_middle_block_are_blurred(small):
    sigmas = [0.0, 1.2]
    out, x, cond = read(small, blur=sigmas)
    np.testing.assert_allclose(out[0], read(small)[0][0], rtol=1e-12, atol=1e-12)

    def hook(module, args, queries):
        cells = queries.numpy().reshape(2, 4, 8, -1)
        new = np.stack([blur_of_one(*one) for one in zip(cells, sigmas, strict=True)])
        return torch.from_numpy(new.reshape(queries.shape))

    handle = small.net.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.register_forward_hook(hook)
    want = ask(small.net, x, torch.tensor([3, 801]), cond)
    handle.remove()
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((1, 7, 8, 4))}, "multiples of 2, got 7x8"),
        ({"x": jnp.zeros((1, 8, 8, 3))}, "expected 4 channels, got 3"),
        ({"t": jnp.zeros((1, 1, 1, 1), jnp.bfloat16)}, "float32 time field"),
        ({"t": jnp.zeros((1, 3, 1, 1))}, "grid refines"),
        ({"tokens": jnp.zeros((1, 7, 11))}, r"cond.tokens of shape \[1, l, 12\]"),
        ({"tokens": None}, "got None"),
        ({"pooled": None}, "cond.pooled and cond.sizes of widths 6 and 6, got None and 6"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    model = unet2d.from_config(CONFIGS["small"])
    x, t, cond = unet2d.example(model)
    change = dict(change)
    x, t = change.pop("x", jnp.zeros((1, 8, 8, 4))), change.pop("t", t)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), x, t, cond._replace(**change))


def test_maps_that_no_layer_has_are_refused():
    model = unet2d.from_config(CONFIGS["small"])
    x, t, cond = unet2d.example(model)
    spans = Spans(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1)))
    with pytest.raises(ValueError, match="no attention at a quarter"):
        jax.eval_shape(model.init, jax.random.key(0), x, t, cond._replace(spans=spans))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_in_kernel": 5}, "conv_in_kernel = 3"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type"),
        ({"addition_embed_type": "image"}, "addition_embed_type as one of 'text_time' .* got 'image'"),
        ({"attention_head_dim": [1, 2]}, "attention_head_dim to be a whole number or 3 of them"),
        (
            {"up_block_types": ["UpBlock2D"] * 2 + ["AttnUpBlock2D"]},
            r"up_block_types\[2\] as one of 'UpBlock2D', .* got 'AttnUpBlock2D'",
        ),
        ({"cross_attention_dim": [12, 12, 16]}, "one cross_attention_dim"),
        ({"surprise": 1}, "unknown setting surprise"),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        unet2d.from_config(CONFIGS["sdxl"] | change)
