"""What `test_sharding.py` runs in a process with eight devices: on any mesh, the same as on one device."""

import dataclasses
import functools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from asyncpatch_jax import sharding
from asyncpatch_jax.metrics import inception
from asyncpatch_jax.metrics.similarity import PSNR
from asyncpatch_jax.models import DiT, UNet, attention
from asyncpatch_jax.pretrained import autoencoders
from asyncpatch_jax.pretrained.folders.loading import load_component, load_pretrained
from asyncpatch_jax.pretrained.folders.saving import save_component
from asyncpatch_jax.pretrained.networks import flux
from asyncpatch_jax.pretrained.networks import inception as networks_inception
from asyncpatch_jax.pretrained.networks.axes import logical_axes
from asyncpatch_jax.training import checksums, policies
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import adam, create
from asyncpatch_jax.types import Condition, FewTimes, Spans
from launch import evaluate, train_tpm
from launch.policy import iteration, subjects
from launch.shared import build, cli, datasets, pictures, programs
from launch.shared.generate import generate
from launch.shared.plans import plan
from tests import drawn, test_attention, test_kernels, test_launch, tiny_autoencoder
from tests.policy_runs import begun, config_of

FOLDERS = Path(os.environ["ASYNCPATCH_TESTS_FOLDERS"])  # of `tiny_folders`, whose libraries are not imported here
ROOT = Path(__file__).parent.parent
UNET = {"model.base": 16, "model.head_dim": 8, "model.multipliers": (1,)}
NETWORKS = {
    # trained: its parameters lie in a scan's stacks, and its groups of channels lie on several devices
    "unet, group norm, scan": {
        **UNET,
        "model.attention": (),  # the others have it
        "model.blocks": 2,
        "model.scan": True,
        "model.log_variance": False,
        "optim.accumulate": 2,
    },
    # sampled
    "unet, rms norm": {**UNET, "model.attention": (0,), "model.norm": "rms"},
    "dit": {
        "model.name": "dit",
        "model.preset": "",
        "model.width": 32,
        "model.depth": 2,
        "model.heads": 4,
        "model.patch": 4,
    },
}
MESHES = {
    "unet, group norm, scan": [(2, 2, 2)],
    "dit": [(1, 8, 1), (2, 2, 2)],
}
CASES = [(name, mesh) for name, meshes in MESHES.items() for mesh in meshes]
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-5)


@pytest.fixture(autouse=True)
def split_everything(monkeypatch):
    assert jax.device_count() == 8
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)


@functools.cache
def case(name):
    """A run with random parameters (those of a fresh network are zero where they matter), and a batch."""
    config = cli.load(str(ROOT / "configs" / "digits.py"))
    common = {
        "times.name": "independent",
        "times.grid": (2, 2),
        "train.batch": 16,
        "optim.warmup": 0,
        "sample.steps": 3,
        "sample.guidance": 2.0,
    }
    config.update_from_flattened_dict({**common, **NETWORKS[name]})
    run = build.untrained(config, datasets.dataset(config))
    leaves, tree = jax.tree.flatten(run.params)
    rng = np.random.default_rng(0)
    values = [rng.normal(0.5 if leaf.ndim < 2 else 0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves]
    images = {
        "image": rng.uniform(-1, 1, (16, *run.shape)).astype(np.float32),
        "label": rng.integers(0, 10, 16).astype(np.int32),
    }
    return run._replace(params=jax.tree.unflatten(tree, values)), images


def mesh_of(shape):
    return sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


def placed(tree, like):
    return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), tree, like)


def trained(name, shape, steps=2):
    run, images = case(name)
    program = programs.training(run.config, run, mesh_of(shape))
    like, batch, key = program.args
    compiled = program.fn.lower(*program.args).compile()
    state, images = placed(create(run.params, build.optimizer(run.config)), like), placed(images, batch)
    curve = []
    for _ in range(steps):
        state, metrics = compiled(state, images, jax.device_put(jax.random.key(3), key.sharding))
        curve.append(jax.device_get(metrics))
    return compiled, state, curve


@functools.cache
def on_one_device(name):
    _, state, curve = trained(name, (1, 1, 1))
    return jax.device_get(state), curve


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_training(name, shape):
    """Metrics, gradients (in Adam's moments), parameters and averages; each lies where its parameter does."""
    reference, curve = on_one_device(name)
    compiled, state, sharded_curve = trained(name, shape)
    for a, b in zip(sharded_curve, curve, strict=True):
        jax.tree.map(CLOSE, a, b)
    (mu, nu), (mu_one, nu_one) = moments(state), moments(reference)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(mu_one))
    for one, other, atol in ((mu, mu_one, 1e-6 * largest), (nu, nu_one, 1e-6 * largest**2)):
        jax.tree.map(functools.partial(CLOSE, atol=atol), one, other)
    rate = case(name)[0].config.optim.learning_rate
    for one, other in ((state.params, reference.params), (state.ema, reference.ema)):
        # Adam takes a whole step along a gradient next to zero, whatever its sign is by rounding
        sure = jax.tree.map(lambda leaf: np.abs(leaf) > 1e-3 * largest, mu_one)
        jax.tree.map(lambda a, b, s: CLOSE(np.asarray(a)[s], b[s], atol=0.1 * rate), one, other, sure)

    for copy in (mu, nu, state.ema):
        same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), copy, state.params)
        assert all(jax.tree.leaves(same))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(reference.params))
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    assert own < 1.15 * whole / shape[1]
    assert not re.findall(r" all-to-all(?:-start)?\(", compiled.as_text())


def moments(state):
    adams = jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
    return next((s.mu, s.nu) for s in adams if hasattr(s, "mu"))


def asked(run, count):
    """The sampler's inputs: the first images of any number are the same."""
    return pictures.inputs(run, jax.random.key(1), np.zeros((count, *run.shape)), np.arange(count) % 10)


@functools.cache
def sampled_on_one_device(name):
    run, _ = case(name)
    schedule, num_steps, _ = plan("sync", run)
    return np.asarray(generate(pictures.net(run), run.params, schedule, asked(run, 16), num_steps=num_steps).images)


@pytest.mark.parametrize(("name", "shape"), [("unet, rms norm", (4, 2, 1)), ("dit", (2, 2, 2))])
def test_sampling(name, shape):
    """Classifier-free guidance gives the same images, and moves none of the batch between devices."""
    run, _ = case(name)
    program = programs.sampling(run.config, run, mesh_of(shape), 16)
    compiled = program.fn.lower(*program.args).compile()
    found = compiled(*placed((run.params, plan("sync", run).schedule, asked(run, 16)), program.args)).images
    CLOSE(found, sampled_on_one_device(name), atol=1e-4)
    assert not re.findall(r" all-to-all(?:-start)?\(", compiled.as_text())


def test_a_batch_that_the_mesh_does_not_divide_is_sampled_all_the_same():
    run, _ = case("dit")
    schedule, num_steps, _ = plan("sync", run)
    net = pictures.net(run._replace(mesh=mesh_of((8, 1, 1))))
    found = generate(net, run.params, schedule, asked(run, 3), num_steps=num_steps).images
    CLOSE(found, sampled_on_one_device("dit")[:3], atol=1e-4)


def test_a_checkpoint_moves_to_any_mesh(tmp_path):
    run, _ = case("dit")
    optimizer = build.optimizer(run.config)
    state, batches = create(run.params, optimizer), Position({"next_index": 7})
    like = programs.training(run.config, run, mesh_of((2, 2, 2))).args[0]
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, placed(state, like), batches)
    for shape in ((1, 1, 1), (1, 2, 1), (2, 1, 2), (1, 8, 1)):
        like, batches = programs.training(run.config, run, mesh_of(shape)).args[0], Position({})
        with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
            restored = checkpoints.restore(like, batches)
        assert batches.state == {"next_index": 7}
        for a, b, c in zip(*map(jax.tree.leaves, (restored, state, like)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding == c.sharding


@pytest.mark.parametrize("axes", [(), ("data",), (None, "fsdp"), ("data", "fsdp"), (("data", "fsdp"), "tensor")])
def test_a_checksum_is_the_same_wherever_parts_lie(axes):
    x = np.random.default_rng(0).normal(size=(8, 4, 3)).astype(np.float32)
    split = jax.NamedSharding(mesh_of((2, 2, 2)), P(*axes))
    assert int(checksums._on_devices(jax.device_put(x, split))) == int(checksums._on_host(x))


class Position:
    """Of a stream of batches."""

    def __init__(self, state):
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_the_state_of_any_optimizer_lies_where_its_parameters_do(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SIZE", 8)
    params = {"a": {"w": jnp.ones((16, 8))}, "head": {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}}
    mesh = mesh_of((1, 8, 1))
    names = jax.tree.map(lambda x: (None,) * x.ndim, params)
    layout = sharding.parameters(mesh, params, names)
    assert (layout["a"]["w"].spec, layout["head"]["b"].spec) == (P("fsdp", None), P("fsdp"))
    expected = {(16, 8): P("fsdp", None), (8, 8): P("fsdp", None), (8,): P("fsdp"), (): P()}
    for optimizer in (adam(1e-3), adam(1e-3, only="head"), optax.MultiSteps(optax.lamb(1e-3), 2)):
        state = optimizer.init(params)
        found = sharding.alike(mesh, state, params, layout)
        assert jax.tree.structure(found) == jax.tree.structure(state)
        for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
            assert place.spec == expected[leaf.shape]
    # what has a parameter's name but not its shape, as the rows and columns of a factored moment
    assert sharding.alike(mesh, {"v_row": {"a": {"w": jnp.ones(16)}}}, params, layout)["v_row"]["a"]["w"].spec == P()


def test_layouts_of_parameters(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SIZE", 32)
    mesh = mesh_of((2, 2, 2))
    spec = lambda shape, *names: sharding.parameter(mesh, shape, names).spec  # noqa: E731
    conv = ("window", "window", "channels", "hidden")
    assert spec((3, 3, 4, 6), *conv) == P(None, None, "fsdp", "tensor")
    assert spec((2, 3, 3, 4, 7), "layers", *conv) == P(None, None, None, "fsdp", None)
    assert spec((8, 4), "channels", "channels") == P("fsdp", None)
    assert spec((8, 5), "layers", "channels") == P(None, None)
    assert spec((6, 4), "channels", "channels") == P(None, None)  # too small
    with pytest.raises(ValueError, match=r"a name for each axis of \(8, 4\), got \('channels',\)"):
        sharding.parameter(mesh, (8, 4), ("channels",))


def test_every_parameter_of_every_network_has_names():
    for model in (
        UNet(base=8, multipliers=(1, 2), blocks=2, attention=(1,), head_dim=8, num_classes=3, context_dim=5),
        DiT(width=16, depth=2, heads=2, num_classes=3, context_dim=5, log_variance=True),
    ):
        params = jax.eval_shape(lambda model=model: build.init_params(model, jax.random.key(0), (8, 8, 3)))
        names = model.logical_axes(params)
        found = jax.tree.map(lambda leaf, axes: len(axes) == leaf.ndim, params, names)
        assert all(jax.tree.leaves(found))
    with pytest.raises(ValueError, match=r"names of the axes of mystery, of shape \(3,\), got None"):
        model.logical_axes({"mystery": jnp.zeros(3)})


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_each_device_applies_a_function_to_its_part(shape):
    """With its gradient, also to an argument that all images share."""
    mesh = mesh_of(shape)
    seen = []

    @jax.custom_vjp
    def kernel(x, table):
        seen.append((x.shape, table.shape))
        return x * table

    kernel.defvjp(lambda x, t: (kernel(x, t), (x, t)), lambda saved, g: (g * saved[1], (g * saved[0]).sum(0)[None]))

    def loss(x, table):
        split = sharding.per_shard(kernel, (("batch", "channels"), ("batch", "channels")), ("batch", "channels"))
        return (split(x, table) ** 2).sum()

    def on_mesh(x, table):
        with sharding.using(mesh):
            return loss(x, table)

    x, table = np.arange(32, dtype=np.float32).reshape(16, 2), np.array([[2.0, 3.0]], np.float32)
    expected = jax.jit(jax.grad(loss, (0, 1)))(x, table)
    seen.clear()
    found = jax.jit(jax.grad(on_mesh, (0, 1)))(jax.device_put(x, sharding.batch(mesh)), table)
    assert seen[0] == ((16 // sharding.batch_parts(mesh), 2), (1, 2))
    for a, b in zip(found, expected, strict=True):
        CLOSE(a, b)


def test_each_device_measures_its_own_pairs():
    """Of a batch that the mesh does not divide, too."""
    mesh = mesh_of((4, 2, 1))
    images, others = np.random.default_rng(0).integers(0, 256, (2, 11, 9, 8, 3), dtype=np.uint8)
    holes = np.zeros((1, 9, 8, 1), bool)
    holes[:, 2:5] = True
    split = dataclasses.replace(PSNR, mesh=mesh)
    CLOSE(split(images, others, holes), PSNR(images, others, holes))
    CLOSE(split(images, others, holes, batch=9), PSNR(images, others, holes))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (2, 2, 1), (-1, 3, 1), (0, 8, 1), (-2, 4, 1), (-1, 16, 1)])
def test_meshes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match=r"data x fsdp x tensor = 8, the number of devices .*got "):
        sharding.make_mesh(*sizes)


def test_batches_that_do_not_fit():
    run, _ = case("dit")
    config = run.config.copy_and_resolve_references()
    config.train.batch = 12
    with pytest.raises(ValueError, match=r"multiple of 8 \(data x fsdp\), got 12"):
        programs.training(config, run, mesh_of((8, 1, 1)))
    config.update_from_flattened_dict({"train.batch": 16, "optim.accumulate": 4})
    with pytest.raises(ValueError, match=r"multiple of 8 \(data x fsdp\) x config.optim.accumulate = 4, got 16"):
        programs.training(config, run, mesh_of((8, 1, 1)))


@pytest.mark.parametrize("shared", [False, True])
def test_each_device_runs_the_kernel_on_its_own_images(shared):
    """Interpreted, and the gradients of what they share are summed."""
    args = test_kernels.case(32, 3, 5, 128, 67, shared=shared)
    whole = test_kernels.run(False, *args, "rms", True)
    with sharding.using(mesh_of((2, 2, 2))):
        for got, expected in zip(test_kernels.run(True, *args, "rms", True), whole, strict=True):
            test_kernels.close(got, expected, 1e-5)


def test_each_device_runs_attention_on_its_own_images_and_heads(monkeypatch):
    args = test_attention.heads(4, 256, 2, 16, jnp.bfloat16)
    whole = test_attention.run(functools.partial(attention.flash, (256, 256), interpret=True), *args)
    monkeypatch.setattr(attention, "FLASH_FROM", 256)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args, interpret=True))
    with sharding.using(mesh_of((2, 2, 2))):
        test_attention.close(test_attention.run(lambda *qkv: attention.attend(*qkv), *args), whole, 1e-5)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_pretrained_parameters_are_read_and_saved_in_parts(family, tmp_path):
    mesh = sharding.make_mesh(2, 2, 2)
    whole, split = (load_pretrained(FOLDERS / family, m, jnp.float32) for m in (None, mesh))
    for name, component in split.components.items():
        jax.tree.map(np.testing.assert_array_equal, component.params, whole.components[name].params)
        wanted = sharding.parameters(mesh, component.params, logical_axes(component.params))
        assert jax.tree.all(jax.tree.map(lambda leaf, place: leaf.sharding == place, component.params, wanted))
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(split.denoiser.params)}
    assert all(any(pair in spec for spec in specs) for pair in ("'fsdp', 'tensor'", "'tensor', 'fsdp'")), specs
    save_component(split.denoiser, tmp_path / "saved")
    again = load_component(tmp_path / "saved", None, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.denoiser.params)


def test_copies_of_a_pretrained_parameter_may_be_donated():
    """Devices of one host that hold the same numbers share their memory until one of them is told to write there."""
    component = load_component(FOLDERS / "sdxl" / "text_encoder", sharding.make_mesh(8), jnp.float32)
    before = jax.tree.map(np.array, component.params)
    after = jax.jit(lambda params: jax.tree.map(lambda leaf: 2 * leaf, params), donate_argnums=0)(component.params)
    for leaf, expected in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert all(np.array_equal(shard.data, 2 * expected) for shard in leaf.addressable_shards)


def test_flux(monkeypatch):
    """The network with joint attention, its maps included, on a mesh of all three axes; attention divided by hand too.

    XLA divides attention in float32; what has kernels elsewhere is divided by hand, and these are of bfloat16.
    """
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    model = flux.from_config(config, jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *flux.example(model))["params"]
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0, power=1):
        return (scale * rng.normal(size=shape) ** power).astype(np.float32)

    params = jax.tree.map(lambda leaf: normal(*leaf.shape, scale=0.3), shapes)
    spans = Spans(rng.integers(0, 7, (4, 3), np.int32), normal(4, 3, 2, power=2))
    cond = Condition(tokens=normal(4, 7, 12), pooled=normal(4, 10), guidance=normal(4, power=2), spans=spans)
    t = FewTimes(normal(4, 3, scale=1000, power=2), rng.integers(0, 3, (4, 2, 4, 1), np.int8))
    inputs = (normal(4, 4, 8, 4), t, cond)

    def call(model, mesh, params, *inputs):
        with sharding.using(mesh):
            return model.apply({"params": params}, *inputs)

    expected, aux = jax.jit(functools.partial(call, model, None))(params, *inputs)
    mesh = sharding.make_mesh(2, 2, 2)
    layout = sharding.parameters(mesh, params, logical_axes(params))
    assert {axis for leaf in jax.tree.leaves(layout) for axis in leaf.spec} == {None, "fsdp", "tensor"}
    placed = jax.device_put((params, *inputs), (layout, *[sharding.batch(mesh)] * len(inputs)))
    monkeypatch.setattr(attention, "FLASH_FROM", 8)
    for dtype, share in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.05)):
        out, found = jax.jit(functools.partial(call, flux.from_config(config, dtype), mesh))(*placed)
        for pair in ((out, expected), (found["maps"], aux["maps"])):
            ours, theirs = map(np.asarray, pair)
            assert np.abs(ours - theirs).max() <= share * np.abs(theirs).max()


def test_an_autoencoder_codes_a_batch_where_it_is(tmp_path, monkeypatch):
    """In parts too, which each device has of its own images; and whole on every device if asked."""
    folder, images = tiny_autoencoder.folder(tmp_path / "vae"), np.asarray(drawn.uniform(32, 4, 4, 1, low=-1))
    alone = np.asarray(autoencoders.read_autoencoder(folder, mesh_of((1, 1, 1))).encode(images))
    monkeypatch.setattr(autoencoders, "_AT_ONCE", 2 * 16)  # of the four that a device has
    mesh = mesh_of((4, 2, 1))
    coder = autoencoders.read_autoencoder(folder, mesh)
    spread = coder.encode(sharding.place_batch(mesh, images), whole=False)
    assert spread.sharding.is_equivalent_to(sharding.batch(mesh), 4)
    whole = coder.encode(images)
    assert whole.sharding.is_fully_replicated
    for found in (spread, whole):
        CLOSE(found, alone, atol=1e-5)


def bright(images, prompts):
    """A reward that any deviation changes."""
    return images.mean((1, 2, 3)) / 255 + 0.01 * np.array([len(prompt) for prompt in prompts])


BRIGHT = f"{bright.__module__}:bright"


def test_a_policy_is_trained_and_used_over_a_mesh(tmp_path, monkeypatch):
    """`launch.train_tpm` as it is, on eight devices: what is rewarded, learned and measured is what one device gives.

    Prompts, noises and draws are spread over data x fsdp. And the policy is read onto the devices that the network lies
    on.
    """
    monkeypatch.setattr(build, "load_run", lambda *where, **more: test_launch.run())
    monkeypatch.setattr(policies, "init", lambda module, key, shape: begun(module, shape))
    folder = test_launch.folder_of(tmp_path / "digits")
    rewards, steps, combine, update = [], [], train_tpm.combine, iteration.update

    def spied(scores, weights):
        rewards.append(scores[BRIGHT])
        return combine(scores, weights)

    def followed(*args, **settings):
        state, metrics = update(*args, **settings)
        steps.append(jax.device_get((moments(state)[0], metrics)))
        return state, metrics

    monkeypatch.setattr(train_tpm, "combine", spied)
    monkeypatch.setattr(iteration, "update", followed)

    def run(name, **mesh):
        rewards.clear()
        steps.clear()
        sizes = {"train.steps": 2, "grpo.noises": 4, "grpo.minibatch": 8, **mesh}
        train_tpm.run(config_of(tmp_path / name, folder, rewards=f"{BRIGHT}*2", **sizes))
        return [*rewards], [*steps], policies.load(tmp_path / name).params

    found, learned, spread = run("eight", **{"mesh.data": 4, "mesh.fsdp": 2})
    monkeypatch.setattr(build, "mesh", lambda config: mesh_of((1, 1, 1)))
    expected, wanted, alone = run("one")
    CLOSE(found, expected, rtol=1e-4, atol=1e-5)
    assert np.std(expected) > 1e-3
    for (mu, metrics), (mu_one, metrics_one) in zip(learned, wanted, strict=True):
        jax.tree.map(functools.partial(CLOSE, rtol=1e-3, atol=1e-5), metrics, metrics_one)
        jax.tree.map(functools.partial(CLOSE, rtol=1e-3, atol=1e-6), mu, mu_one)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[0][0])) > 1e-3
    jax.tree.map(functools.partial(CLOSE, rtol=1e-2, atol=1e-5), spread, alone)

    mesh = mesh_of((8, 1, 1))
    placed = test_launch.run()._replace(params=jax.device_put(test_launch.run().params, sharding.replicated(mesh)))
    subject = subjects.of_run(test_launch._copy(placed), [], subjects.Choice(3, 1.0, "ddim"), mesh)
    (entry,) = evaluate.parse(f"tpm={tmp_path / 'eight'}", subject)
    schedule = entry.follow(subject.base, subject.ask(np.zeros(8, np.int32)).known)
    assert all(leaf.sharding.device_set == {*jax.devices()} for leaf in jax.tree.leaves(schedule.params))


def test_features_of_inception_stay_where_their_images_are():
    """No device asks another for anything, and what it says of an image is the same on all of them."""
    module = networks_inception.from_config({"shrink": 16})
    drawn_ones = drawn.params(module, *networks_inception.example(module))
    mesh = mesh_of((8, 1, 1))
    positive = jax.tree_util.tree_map_with_path(
        lambda path, leaf: abs(leaf) if path[-1].key == "running_var" else leaf, drawn_ones
    )
    params = jax.device_put(positive, sharding.replicated(mesh))
    images = jax.device_put(np.tile(np.asarray(drawn.normal(4, 75, 75, 3)), (4, 1, 1, 1)), sharding.batch(mesh))
    compiled = inception._apply.lower(module, params, images).compile()
    assert not re.search("all-|collective", compiled.as_text())
    found = compiled(params, images)
    assert found.sharding.is_equivalent_to(sharding.batch(mesh), 2)
    rows = np.asarray(found).reshape(4, 4, -1)
    CLOSE(rows, np.broadcast_to(rows[:1], rows.shape), atol=1e-6)
    assert np.abs(rows[0, 0] - rows[0, 1]).max() > 1e-3
