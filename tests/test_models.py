"""UNet and DiT: against PyTorch on random weights, and the invariants that a time field promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from asyncpatch_jax.models import DiT, UNet, dit, unet
from asyncpatch_jax.models.dit import DiTBlock
from asyncpatch_jax.models.layers import Attention
from asyncpatch_jax.models.times import LevelTimes
from asyncpatch_jax.models.unet import ResBlock
from asyncpatch_jax.types import Condition

UNET = UNet(
    base=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8, num_classes=3, context_dim=5, log_variance=True
)
DIT = DiT(patch=2, width=16, depth=3, heads=2, num_classes=3, context_dim=5, log_variance=True)
MODELS = pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
# a level's first block is no part of its scan
DEEP = pytest.mark.parametrize("model", [UNET.clone(blocks=3), DIT], ids=["unet", "dit"])


def randomised(params, scale=0.2):
    """Every parameter moved, so that zero-initialised layers take part."""
    params, rng = jax.device_get(params), np.random.default_rng(3)  # compiles nothing for the shape of each
    return jax.tree.map(lambda p: jnp.asarray(p + scale * rng.normal(size=p.shape), jnp.float32), params)


def inputs(batch=2, height=8, width=12):
    x = jax.random.normal(jax.random.key(0), (batch, height, width, 1))
    t = jax.random.uniform(jax.random.key(1), (batch, height, width, 1))
    tokens = jax.random.normal(jax.random.key(2), (batch, 4, 5))
    return x, t, Condition(jnp.arange(batch) % 3, tokens, jnp.arange(4)[None] < jnp.array([[4], [2]])[:batch])


_cache = {}


def params_of(model):
    if model not in _cache:
        x, t, cond = inputs()
        _cache[model] = randomised(jax.jit(model.init)(jax.random.key(4), x, t, cond)["params"])
    return _cache[model]


_apply = jax.jit(lambda model, params, x, t, cond: model.apply({"params": params}, x, t, cond), static_argnums=0)


def apply(model, x, t, cond):
    return _apply(model, params_of(model), x, t, cond)


def to_torch(module, values):
    with torch.no_grad():
        for target, value in values:
            target.copy_(torch.tensor(np.asarray(value)))
    return module.eval()


def conv(kernel):
    return np.transpose(kernel, (3, 2, 0, 1))


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("resample", ["", "down", "up"])
def test_res_block_is_the_scale_shift_block_of_dhariwal_and_nichol(resample):
    """With a constant embedding the block is diffusers' ResnetBlock2D in scale_shift mode, weights carried over."""
    from diffusers.models.resnet import ResnetBlock2D

    block = ResBlock(12, resample, "group", 0.0, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 8))
    emb = jax.random.normal(jax.random.key(1), (2, 1, 1, 10))
    times = LevelTimes(jax.nn.silu(emb[:, 0]), grid=(1, 1))
    params = randomised(jax.jit(block.init)(jax.random.key(2), x, times, None)["params"])
    ours = jax.jit(block.apply)({"params": params}, x, times, None)

    ref = ResnetBlock2D(
        in_channels=8, out_channels=12, temb_channels=10, groups=8, groups_out=4, eps=1e-5,
        time_embedding_norm="scale_shift", up=resample == "up", down=resample == "down",
    )  # fmt: skip
    film = params["norm_out"]["film"]
    to_torch(ref, [
        (ref.norm1.weight, params["norm_in"]["scale"]), (ref.norm1.bias, params["norm_in"]["bias"]),
        (ref.conv1.weight, conv(params["conv_in"]["kernel"])), (ref.conv1.bias, params["conv_in"]["bias"]),
        (ref.time_emb_proj.weight, film["kernel"].T), (ref.time_emb_proj.bias, film["bias"]),
        (ref.norm2.weight, params["norm_out"]["scale"]), (ref.norm2.bias, params["norm_out"]["bias"]),
        (ref.conv2.weight, conv(params["conv_out"]["kernel"])), (ref.conv2.bias, params["conv_out"]["bias"]),
        (ref.conv_shortcut.weight, params["skip"]["kernel"].T[:, :, None, None]),
        (ref.conv_shortcut.bias, params["skip"]["bias"]),
    ])  # fmt: skip
    with torch.no_grad():
        theirs = ref(nchw(x), torch.tensor(np.asarray(emb[:, 0, 0]))).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def rms(x, scale):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * torch.tensor(np.asarray(scale))


def torch_attention(params, x, context=None, mask=None):
    """QK-norm attention, written out with PyTorch's own softmax."""
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params)
    if context is None:
        q, k, v = torch.einsum("bnd,djhk->jbnhk", x, p["qkv"]["kernel"])
    else:
        q = torch.einsum("bnd,dhk->bnhk", x, p["q"]["kernel"])
        k, v = torch.einsum("bnd,djhk->jbnhk", context, p["kv"]["kernel"])
    q, k = rms(q, params["q_norm"]["scale"]), rms(k, params["k_norm"]["scale"])
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~torch.tensor(np.asarray(mask))[:, None, None], -torch.inf)
    out = torch.einsum("bhnm,bmhk->bnhk", scores.softmax(-1), v)
    return torch.einsum("bnhk,hkd->bnd", out, p["out"]["kernel"]) + p["out"]["bias"]


@pytest.mark.parametrize("cross", [False, True])
def test_attention_against_pytorch(cross):
    layer = Attention(2)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    context = jax.random.normal(jax.random.key(1), (2, 3, 6)) if cross else None
    mask = jnp.array([[True, True, False], [True, False, False]]) if cross else None
    params = randomised(jax.jit(layer.init)(jax.random.key(2), x, context, mask)["params"])
    theirs = torch_attention(
        params, torch.tensor(np.asarray(x)), torch.tensor(np.asarray(context)) if cross else None, mask
    )
    ours = jax.jit(layer.apply)({"params": params}, x, context, mask)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_dit_block_against_pytorch_with_a_modulation_per_token():
    block = DiTBlock(2, 4, 0.0, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
    emb = jax.random.normal(jax.random.key(1), (2, 2, 3, 10))
    times = LevelTimes(jax.nn.silu(emb).reshape(2, 6, 10), grid=(2, 3))
    params = randomised(jax.jit(block.init)(jax.random.key(2), x, None, times, None)["params"])
    ours, _ = jax.jit(block.apply)({"params": params}, x, None, times, None)

    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params)
    h = torch.tensor(np.asarray(x)).reshape(2, 6, 8)
    e = torch.nn.functional.silu(torch.tensor(np.asarray(emb)).reshape(2, 6, 10))
    dense = p["modulation"]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (e @ dense["kernel"] + dense["bias"]).chunk(6, -1)
    norm = torch.nn.LayerNorm(8, eps=1e-6, elementwise_affine=False)
    h = h + gate_a * torch_attention(params["self"], norm(h) * (1 + scale_a) + shift_a)
    m = (norm(h) * (1 + scale_m) + shift_m) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
    m = torch.nn.functional.gelu(m, approximate="tanh") @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]
    np.testing.assert_allclose(ours.reshape(2, 6, 8), (h + gate_m * m).numpy(), atol=2e-5, rtol=2e-5)


@MODELS
def test_constant_field_of_any_grid_is_the_scalar(model):
    x, t, cond = inputs()
    scalar, aux = apply(model, x, t[:, :1, :1], cond)
    assert aux["log_variance"].shape == (2, 8, 12, 1)
    for grid in [(8, 12), (2, 3), (1, 12), (4, 4)]:
        field = jnp.broadcast_to(t[:, :1, :1], (2, *grid, 1))
        out, _ = apply(model, x, field, cond)
        # per pixel there are more cells than knots, and times in between are interpolated
        atol = 1e-2 if grid == (8, 12) else 2e-5
        np.testing.assert_allclose(out, scalar, atol=atol, rtol=2e-5)


@MODELS
def test_coarse_field_equals_the_same_field_per_pixel(model):
    x, t, cond = inputs()
    coarse = t[:, :2, :3]
    fine = jnp.repeat(jnp.repeat(coarse, 4, 1), 4, 2)
    a, b = apply(model, x, coarse, cond)[0], apply(model, x, fine, cond)[0]
    np.testing.assert_allclose(a, b, atol=1e-2)  # times between knots are interpolated
    middle = jnp.repeat(jnp.repeat(coarse, 2, 1), 2, 2)
    np.testing.assert_allclose(a, apply(model, x, middle, cond)[0], atol=2e-5, rtol=2e-5)
    # and the field is really read: another order of the same times is another answer
    assert jnp.abs(apply(model, x, fine[:, ::-1], cond)[0] - b).max() > 1e-2


@MODELS
def test_synchronous_field_does_not_pay_for_a_full_one(model):
    """FLOPs of the compiled 1x1 field are far under the per-pixel field's."""
    x, t, cond = inputs()

    def flops(field):
        return _apply.lower(model, params_of(model), x, field, cond).compile().cost_analysis()["flops"]

    assert flops(t[:, :1, :1]) < 0.8 * flops(t)


@DEEP
def test_scan_remat_and_unrolled_agree_with_the_same_parameters(model):
    x, t, cond = inputs()

    def loss(m):
        return jax.jit(jax.value_and_grad(lambda p: (m.apply({"params": p}, x, t, cond)[0] ** 2).mean()))

    a, ga = loss(model)(params_of(model))
    for remat in ("products", "blocks"):
        b, gb = loss(model.clone(scan=True, remat=remat))(params_of(model))
        np.testing.assert_allclose(a, b, rtol=1e-5)
        for u, v in zip(jax.tree.leaves(ga), jax.tree.leaves(gb), strict=True):
            np.testing.assert_allclose(u, v, atol=1e-4, rtol=1e-3)


@DEEP
def test_remat_keeps_less_for_the_backward_pass(model):
    x, t, cond = inputs()

    def kept(remat):
        other = model.clone(remat=remat)
        residuals = jax.eval_shape(lambda p: jax.vjp(lambda p: other.apply({"params": p}, x, t, cond)[0], p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    params = params_of(model)
    everything, products, blocks = (kept(remat) for remat in ("none", "products", "blocks"))
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert blocks < 0.8 * products < 0.8**2 * everything
    assert weights < blocks


@MODELS
def test_conditions_act_and_their_absence_is_the_null_condition(model):
    x, t, cond = inputs()
    base = apply(model, x, t, cond)[0]
    # two programs, compiled as users do: the emitters of these tests round them differently
    exact = jax.jit(
        lambda params, cond: model.apply({"params": params}, x, t, cond)[0],
        compiler_options={"xla_cpu_use_fusion_emitters": True},
    )
    null = exact(params_of(model), None)
    masked = exact(params_of(model), Condition(jnp.array([3, 3]), cond.tokens, jnp.zeros((2, 4), bool)))
    np.testing.assert_allclose(null, masked, atol=1e-6)
    label = apply(model, x, t, cond._replace(label=(cond.label + 1) % 3))[0]
    text = apply(model, x, t, cond._replace(tokens=-cond.tokens))[0]
    hidden = apply(model, x, t, cond._replace(tokens=cond.tokens.at[1, 2:].set(9.0)))[0]
    assert min(jnp.abs(base - other).max() for other in (null, label, text)) > 1e-3
    np.testing.assert_allclose(base, hidden, atol=1e-6)


@MODELS
def test_bfloat16_compute_stays_close_and_returns_float32(model):
    x, t, cond = inputs()
    out, _ = apply(model, x, t, cond)
    low, aux = _apply(model.clone(dtype=jnp.bfloat16), params_of(model), x, t, cond)
    assert low.dtype == aux["log_variance"].dtype == jnp.float32
    assert jnp.abs(low - out).mean() < 0.05 * jnp.abs(out).mean()


@MODELS
def test_starts_at_zero_and_the_head_never_changes_the_body(model):
    x, t, cond = inputs()
    fresh = jax.jit(model.init)(jax.random.key(4), x, t, cond)["params"]
    out, aux = _apply(model, fresh, x, t, cond)
    assert not out.any()
    assert not aux["log_variance"].any()
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, x, t, cond)[1]["log_variance"].sum()))(
        params_of(model)
    )
    assert jnp.abs(grads["log_variance"]["kernel"]).max() > 0
    rest = {name: value for name, value in grads.items() if name != "log_variance"}
    assert not any(leaf.any() for leaf in jax.tree.leaves(rest))


def test_dropout_acts_in_training_only():
    model = UNET.clone(dropout=0.5)
    x, t, cond = inputs()
    params = params_of(UNET)

    @functools.partial(jax.jit, static_argnums=0)
    def run(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, x, t, cond, train=train, rngs=rngs)[0]

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert jnp.abs(run(True, 0) - run(True, 1)).max() > 1e-3


@pytest.mark.parametrize(
    ("model", "changes", "shape", "cond", "message"),
    [
        (UNET, {}, (1, 9, 8, 1), None, "multiples of 2, got 9x8"),
        (DIT, {}, (1, 8, 7, 1), None, "multiples of 2, got 8x7"),
        (UNET, {"num_classes": 0}, (1, 8, 8, 1), Condition(jnp.array([1])), "expected no labels"),
        (DIT, {"context_dim": 0}, (1, 8, 8, 1), Condition(tokens=jnp.ones((1, 2, 5))), "expected no tokens"),
        (DIT, {}, (1, 8, 8, 1), Condition(tokens=jnp.ones((1, 2, 4))), "tokens of width 5, got 4"),
        (DIT, {"heads": 3}, (1, 8, 8, 1), None, "width that 3 heads divide, got 16"),
        (DIT, {"width": 18}, (1, 8, 8, 1), None, "multiple of 4"),
        (UNET, {"attention": ()}, (1, 8, 8, 1), None, "attention on at least one level"),
        (UNET, {"attention": (2,)}, (1, 8, 8, 1), None, "levels out of 0 ... 1"),
        (UNET, {"head_dim": 7}, (1, 8, 8, 1), None, "head_dim = 7"),
    ],
)
def test_mistakes_are_told(model, changes, shape, cond, message):
    x, t = jnp.zeros(shape), jnp.zeros((1, 1, 1, 1))
    with pytest.raises(Exception, match=message):  # with shape checks on, beartype may speak first
        jax.eval_shape(model.clone(**changes).init, jax.random.key(0), x, t, cond)


@pytest.mark.parametrize(("preset", "millions"), [("60M", (57, 63)), ("600M", (570, 640))])
def test_unet_presets_have_the_size_that_they_are_named_after(preset, millions):
    model = UNet(**unet.PRESETS[preset], num_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 1, 1)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert millions[0] < count < millions[1]


@pytest.mark.parametrize(("preset", "millions"), [("S/2", 33), ("B/4", 130), ("L/2", 458), ("XL/8", 675)])
def test_dit_presets_have_the_published_parameter_counts(preset, millions):
    model = DiT(**dit.PRESETS[preset], num_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros((1, 1, 1, 1)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert abs(count / millions - 1) < 0.01
