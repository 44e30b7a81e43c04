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
from asyncpatch_jax.types import Condition, FewTimes
from tests import drawn

IDS = ["unet", "dit"]
# one level is what conditions, types and scans need; what fields do, and text does not, is seen on two
UNET = UNet(
    base=8, multipliers=(1,), blocks=1, attention=(0,), head_dim=8, num_classes=3, context_dim=5, log_variance=True
)
DIT = DiT(patch=2, width=16, depth=2, heads=2, num_classes=3, context_dim=5, log_variance=True)
MODELS = pytest.mark.parametrize("model", [UNET, DIT], ids=IDS)
PLAIN_UNET = UNet(base=8, multipliers=(1, 2), blocks=1, attention=(), num_classes=3)
PLAIN_DIT = DiT(patch=2, width=16, depth=1, heads=2, num_classes=3)
PLAIN = pytest.mark.parametrize("model", [PLAIN_UNET, PLAIN_DIT], ids=IDS)
# a level's first block is no part of its scan
DEEP = pytest.mark.parametrize("model", [UNet(base=8, multipliers=(1,), blocks=3, attention=()), DIT], ids=IDS)

X = drawn.normal(2, 8, 12, 1)
T = drawn.uniform(2, 8, 12, 1, seed=1)
SCALAR = jax.device_put(np.asarray(T)[:, :1, :1])
COND = jax.device_put(
    Condition(np.array([0, 1]), np.asarray(drawn.normal(2, 4, 5, seed=2)), np.arange(4) < np.array([[4], [2]]))
)


def condition_of(model):
    return Condition(COND.label if model.num_classes else None, *(COND[1:] if model.context_dim else ()))


@functools.cache
def params_of(model):
    return drawn.params(model, X, SCALAR, condition_of(model))


@functools.cache
def compiled(model, t=(2, 1, 1, 1)):
    """A network as a program `(params, t, cond) -> out, aux, gradients of the sum of the log variance`.

    `t` is the shape of a field, or the two of a few times.
    """

    def total(params, t, cond):
        out, aux = model.apply({"params": params}, X, t, cond)
        return aux.get("log_variance", jnp.zeros(())).sum(), (out, aux)

    if isinstance(t[0], tuple):
        field = FewTimes(jax.ShapeDtypeStruct(t[0], jnp.float32), jax.ShapeDtypeStruct(t[1], jnp.int32))
    else:
        field = jax.ShapeDtypeStruct(t, jnp.float32)

    def run(params, t, cond):
        if not model.log_variance:
            return *total(params, t, cond)[1], None
        (_, (out, aux)), grads = jax.value_and_grad(total, has_aux=True)(params, t, cond)
        return out, aux, grads

    return jax.jit(run).lower(params_of(model), field, condition_of(model)).compile()


def answer(model, t, cond=None):
    """Of a network with the parameters of `params_of`, as NumPy's."""
    cond = condition_of(model) if cond is None else cond
    shape = (t.values.shape, t.index.shape) if isinstance(t, FewTimes) else t.shape
    return np.asarray(compiled(model, shape)(params_of(model), jax.device_put(t), cond)[0])


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
    x, emb = drawn.normal(2, 6, 4, 8), torch.tensor(np.asarray(drawn.normal(2, 10, seed=1)))
    times = LevelTimes(jnp.asarray(torch.nn.functional.silu(emb)[:, None]), grid=(1, 1))
    params = drawn.params(block, x, times, None)
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
        theirs = ref(nchw(x), emb).permute(0, 2, 3, 1)
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
    x = drawn.normal(2, 5, 8)
    context = drawn.normal(2, 3, 6, seed=1) if cross else None
    mask = jnp.array([[True, True, False], [True, False, False]]) if cross else None
    params = drawn.params(layer, x, context, mask)
    theirs = torch_attention(
        params, torch.tensor(np.asarray(x)), torch.tensor(np.asarray(context)) if cross else None, mask
    )
    ours = jax.jit(layer.apply)({"params": params}, x, context, mask)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def torch_dit_block(params, h, e):
    """A token's modulation, attention and MLP, of embedded times after their silu."""
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
        e @ p["modulation"]["kernel"] + p["modulation"]["bias"]
    ).chunk(6, -1)
    norm = torch.nn.LayerNorm(h.shape[-1], eps=1e-6, elementwise_affine=False)
    h = h + gate_a * torch_attention(params["self"], norm(h) * (1 + scale_a) + shift_a)
    m = (norm(h) * (1 + scale_m) + shift_m) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
    m = torch.nn.functional.gelu(m, approximate="tanh") @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]
    return h + gate_m * m


def test_dit_block_against_pytorch_with_a_modulation_per_token():
    block = DiTBlock(2, 4, 0.0, jnp.float32)
    x, e = drawn.normal(2, 2, 3, 8), torch.nn.functional.silu(torch.tensor(np.asarray(drawn.normal(2, 6, 10, seed=1))))
    times = LevelTimes(jnp.asarray(e), grid=(2, 3))
    params = drawn.params(block, x, None, times, None)
    ours, _ = jax.jit(block.apply)({"params": params}, x, None, times, None)

    theirs = torch_dit_block(params, torch.tensor(np.asarray(x)).reshape(2, 6, 8), e)
    np.testing.assert_allclose(np.asarray(ours).reshape(2, 6, 8), theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("how", [{}, {"radians": 1000.0, "mean_of": "times"}], ids=["as_it_is", "settings"])
def test_dit_against_pytorch(how):
    """The whole of it: positions, embedded times and labels, what comes after the blocks, and the order of pixels."""
    t = np.asarray(T)[:, ::2, ::2]
    ours = answer(PLAIN_DIT, t)
    if how:  # told a time for each pixel, of which a token takes the mean
        ours, t = answer(PLAIN_DIT.clone(**how), T), np.asarray(T).reshape(2, 4, 2, 6, 2, 1).mean((2, 4))

    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params_of(PLAIN_DIT))
    silu, time, modulation = torch.nn.functional.silu, p["time"], p["modulation_out"]
    radians = how.get("radians", 8.0)
    angles = torch.tensor(t).reshape(2, 24, 1) * radians * (0.5 / radians) ** (torch.arange(128) / 127)
    e = silu(torch.cat([angles.cos(), angles.sin()], -1) @ time["in"]["kernel"] + time["in"]["bias"])
    e = e @ time["out"]["kernel"] + time["out"]["bias"]
    e = silu(e + p["condition"]["label"]["embedding"][np.array(COND.label)][:, None])
    angles = [torch.arange(n)[:, None] * 10_000 ** (-torch.arange(4) / 4) for n in (4, 6)]
    rows, columns = (torch.cat([angle.sin(), angle.cos()], -1) for angle in angles)
    positions = torch.cat([rows[:, None].expand(4, 6, 8), columns[None].expand(4, 6, 8)], -1).reshape(24, 16)
    patches = torch.tensor(np.asarray(X)).reshape(2, 4, 2, 6, 2).transpose(2, 3).reshape(2, 24, 4)
    h = patches @ p["patches"]["kernel"] + p["patches"]["bias"] + positions
    h = torch_dit_block(jax.tree.map(lambda a: a[0], params_of(PLAIN_DIT)["blocks"]), h, e)
    shift, scale = (e @ modulation["kernel"] + modulation["bias"]).chunk(2, -1)
    h = torch.nn.functional.layer_norm(h, (16,), eps=1e-6) * (1 + scale) + shift
    h = (h @ p["out"]["kernel"] + p["out"]["bias"]).reshape(2, 4, 6, 2, 2).transpose(2, 3).reshape(2, 8, 12, 1)
    np.testing.assert_allclose(ours, h, atol=1e-3 if how else 2e-5, rtol=2e-5)  # sines of a thousand have fewer digits


@PLAIN
def test_constant_field_of_any_grid_is_the_scalar(model):
    scalar = answer(model, SCALAR)
    for grid in [(8, 12), (2, 3), (1, 12), (4, 4)]:
        out = answer(model, np.broadcast_to(SCALAR, (2, *grid, 1)))
        # per pixel there are more cells than knots, and times in between are interpolated
        atol = 1e-2 if grid == (8, 12) else 2e-5
        np.testing.assert_allclose(out, scalar, atol=atol, rtol=2e-5)


@PLAIN
def test_coarse_field_equals_the_same_field_per_pixel(model):
    coarse = np.asarray(T)[:, :2, :3]
    fine = coarse.repeat(4, 1).repeat(4, 2)
    a, b = answer(model, coarse), answer(model, fine)
    np.testing.assert_allclose(a, b, atol=1e-2)  # times between knots are interpolated
    middle = coarse.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(a, answer(model, middle), atol=2e-5, rtol=2e-5)
    # and the field is really read: another order of the same times is another answer
    assert np.abs(answer(model, fine[:, ::-1]) - b).max() > 1e-2


def test_each_block_of_a_unet_is_told_the_times_of_its_own_level():
    """Of one block at a time, the modulation alone is on.

    Times that change places within a cell of the lower level are the same to that level, and not to the pixels. Times
    that move apart are another mean of modulations to it, and would be the same if it took the mean of pixels' times.
    """
    params = params_of(PLAIN_UNET)
    blocks = [name for name in params if "norm_out" in params[name].get("res", params[name])]
    pixels = {name for name in blocks if name.startswith(("encode_0", "decode_0", "up_1"))}
    assert len(pixels) == 4
    assert len(blocks) == 10
    t = np.array(T)
    t[:, 2, 4], t[:, 3, 5] = 0.4, 0.6
    swapped, apart = t.copy(), t.copy()
    swapped[:, 2, 4], swapped[:, 3, 5] = 0.6, 0.4
    apart[:, 2, 4], apart[:, 3, 5] = 0.1, 0.9
    run = compiled(PLAIN_UNET, T.shape)

    def silent(path, leaf):
        return leaf * 0 if "film" in jax.tree_util.keystr(path) else leaf

    off = jax.tree_util.tree_map_with_path(silent, params)
    for name in blocks:
        alone = {**off, name: params[name]}
        base, same, other = (np.asarray(run(alone, s, condition_of(PLAIN_UNET))[0]) for s in (t, swapped, apart))
        assert np.abs(other - base).max() > 1e-4, name
        seen = np.abs(same - base).max()
        assert seen > 1e-4 if name in pixels else seen < 1e-5, (name, seen)


@PLAIN
def test_networks_answer_alike_to_few_times_however_they_are_given(model):
    index = np.random.default_rng(5).integers(0, 2, (2, 4, 6, 1), np.int32)

    def dense(few):
        return few.values[0][few.index]

    # 24 cells are embedded one by one; as pixels they are more than the knots, of which 0 and .625 are two
    few = FewTimes(np.array([[0.0, 0.61]], np.float32), index)
    np.testing.assert_allclose(answer(model, few), answer(model, dense(few)), atol=5e-5, rtol=5e-5)
    few = FewTimes(np.array([[0.0, 0.625]], np.float32), index)
    pixels = dense(few).repeat(2, 1).repeat(2, 2)
    chosen = answer(model, few)
    np.testing.assert_allclose(chosen, answer(model, pixels), atol=5e-5, rtol=5e-5)
    # and one that has nine columns, which are multiplied and not chosen
    wide = FewTimes(np.concatenate([few.values, np.ones((1, 7), np.float32)], 1), index)
    np.testing.assert_allclose(chosen, answer(model, wide), atol=5e-5, rtol=5e-5)


@PLAIN
def test_synchronous_field_does_not_pay_for_a_full_one(model):
    """FLOPs of the compiled 1x1 field are far under the per-pixel field's."""
    scalar, full = (compiled(model, t.shape).cost_analysis()["flops"] for t in (SCALAR, T))
    assert scalar < 0.8 * full


@DEEP
def test_scan_and_remat_agree_with_all_kept_and_keep_less_for_the_backward_pass(model):
    def run(other):
        """The loss, its gradients, and the size of all that is kept between the two."""

        def loss(params):
            return (other.apply({"params": params}, X, T, condition_of(other))[0] ** 2).mean()

        value, pull = jax.jit(lambda params: jax.vjp(loss, params))(params)
        kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
        return np.asarray(value), jax.tree.leaves(jax.device_get(jax.jit(lambda pull: pull(np.float32(1)))(pull))), kept

    params = params_of(model)
    value, grads, everything = run(model)
    sizes = []
    for remat in ("products", "blocks"):
        other, others, kept = run(model.clone(scan=True, remat=remat))
        np.testing.assert_allclose(value, other, rtol=1e-5)
        for u, v in zip(grads, others, strict=True):
            np.testing.assert_allclose(u, v, atol=1e-4, rtol=1e-3)
        sizes.append(kept)
    products, blocks = sizes
    assert blocks < 0.8 * products < 0.8**2 * everything
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < blocks


@MODELS
def test_conditions_act_and_their_absence_is_the_null_condition(model):
    base = answer(model, SCALAR)
    # two programs, compiled as users do: the emitters of these tests round them differently
    exact = jax.jit(
        lambda params, cond: model.apply({"params": params}, X, SCALAR, cond)[0],
        compiler_options={"xla_cpu_use_fusion_emitters": True},
    )
    nobody = jax.device_put(Condition(np.array([3, 3]), COND.tokens, np.zeros((2, 4), bool)))
    null = np.asarray(exact(params_of(model), None))
    masked = np.asarray(exact(params_of(model), nobody))
    np.testing.assert_allclose(null, masked, atol=1e-6)
    tokens = np.array(COND.tokens)
    label = answer(model, SCALAR, COND._replace(label=jax.device_put(np.array([1, 2]))))
    text = answer(model, SCALAR, COND._replace(tokens=jax.device_put(-tokens)))
    tokens[1, 2:] = 9.0
    hidden = answer(model, SCALAR, COND._replace(tokens=jax.device_put(tokens)))
    assert min(np.abs(base - other).max() for other in (null, label, text)) > 1e-3
    np.testing.assert_allclose(base, hidden, atol=1e-6)


@MODELS
def test_bfloat16_compute_stays_close_and_returns_float32(model):
    out = answer(model, SCALAR)
    low, aux = jax.jit(model.clone(dtype=jnp.bfloat16).apply)({"params": params_of(model)}, X, SCALAR, COND)
    assert low.dtype == aux["log_variance"].dtype == jnp.float32
    assert np.abs(np.asarray(low) - out).mean() < 0.05 * np.abs(out).mean()


@MODELS
def test_starts_at_zero_and_the_head_never_changes_the_body(model):
    def heads(key):
        params = model.init(key, X, SCALAR, COND)["params"]
        return {name: params[name] for name in ("out", "log_variance")}

    # whatever the body computes; to draw it as `init` does compiles longer than all else here
    fresh = {**params_of(model), **jax.jit(heads)(jax.random.key(4))}
    out, aux, _ = compiled(model)(fresh, SCALAR, COND)
    assert not np.asarray(out).any()
    assert aux["log_variance"].shape == (2, 8, 12, 1)
    assert not np.asarray(aux["log_variance"]).any()
    grads = jax.device_get(compiled(model)(params_of(model), SCALAR, COND)[2])
    assert np.abs(grads.pop("log_variance")["kernel"]).max() > 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_dropout_acts_in_training_only():
    model = UNet(base=8, multipliers=(1,), blocks=1, attention=(), dropout=0.5)
    params = params_of(model)

    @functools.partial(jax.jit, static_argnums=0)
    def run(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, X, SCALAR, train=train, rngs=rngs)[0]

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert np.abs(np.asarray(run(True, 0)) - np.asarray(run(True, 1))).max() > 1e-3


@pytest.mark.parametrize(
    ("model", "changes", "shape", "cond", "message"),
    [
        (PLAIN_UNET, {}, (1, 9, 8, 1), None, "multiples of 2, got 9x8"),
        (DIT, {}, (1, 8, 7, 1), None, "multiples of 2, got 8x7"),
        (UNET, {"num_classes": 0}, (1, 8, 8, 1), Condition(jnp.array([1])), "expected no labels"),
        (DIT, {"context_dim": 0}, (1, 8, 8, 1), Condition(tokens=jnp.ones((1, 2, 5))), "expected no tokens"),
        (DIT, {}, (1, 8, 8, 1), Condition(tokens=jnp.ones((1, 2, 4))), "tokens of width 5, got 4"),
        (DIT, {"heads": 3}, (1, 8, 8, 1), None, "width that 3 heads divide, got 16"),
        (DIT, {"width": 18}, (1, 8, 8, 1), None, "multiple of 4"),
        (UNET, {"attention": ()}, (1, 8, 8, 1), None, "attention on at least one level"),
        (PLAIN_UNET, {"attention": (2,)}, (1, 8, 8, 1), None, "levels out of 0 ... 1"),
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
