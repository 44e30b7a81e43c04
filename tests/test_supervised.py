"""Networks that learn to fill holes: what they are shown and told, what they learn from, and runs of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.data import Dataset, batches
from asyncpatch_jax.denoiser import bind, reference_of
from asyncpatch_jax.models import DiT, UNet
from asyncpatch_jax.process import RectifiedFlow
from asyncpatch_jax.sampling import DDIM, linear
from asyncpatch_jax.sampling.inpainting import RAD, Supervised
from asyncpatch_jax.training import supervised_loss
from asyncpatch_jax.training.losses import Uniform
from asyncpatch_jax.training.times import Independent, Synchronous
from asyncpatch_jax.types import Condition, Prediction
from launch import train
from launch.shared import build, datasets, inpainters, inpainting, pictures, plans, programs
from launch.shared.generate import generate, image_keys
from launch.studies import gaussian
from tests import drawn
from tests.test_train import small

MASK = np.zeros((3, 4, 6, 1), np.float32)
MASK[0, 1:3, 2:5] = MASK[1] = MASK[2, :, 4:] = 1
X0 = drawn.normal(3, 4, 6, 2)


class Sum(nn.Module):
    """Answers with all that it is given, added up."""

    @nn.compact
    def __call__(self, x, t, cond, *, train=False):
        return x + 2 * t + 3 * cond.reference[..., :2] + 4 * cond.reference[..., 2:], {}


SETTINGS = {"model": Sum(), "process": RectifiedFlow(), "kind": "velocity", "weight": Uniform()}


def test_the_loss_is_of_the_hole_whose_noise_and_time_are_one_and_of_a_network_that_sees_the_rest():
    key = jax.random.key(3)
    loss = jax.jit(functools.partial(supervised_loss, times=Synchronous(), **SETTINGS))
    value, metrics = jax.device_get(loss({}, key, X0, MASK, None))
    keys = keys_lib.per_image(key, 3)
    t = np.asarray(Synchronous()(keys_lib.fold_in(keys, 0), 3, (1, 1)))
    eps = np.asarray(keys_lib.normal(keys_lib.fold_in(keys, 1), X0.shape[1:]))
    x0 = np.asarray(X0)
    x = np.where(MASK, (1 - t) * x0 + t * eps, x0)
    answer = x + 2 * t + 3 * (1 - MASK) * x0 + 4 * (1 - MASK)
    square = ((answer - (eps - x0)) ** 2).mean(-1, keepdims=True)
    np.testing.assert_allclose(value, (MASK * square).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], square[MASK > 0].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.ones((3, 4, 6), np.float32)}, "mask"),
        ({"times": Independent()}, None),
        ({"times": lambda key, batch, grid: jnp.ones((batch, 4, 6, 1))}, r"one time for each image.*\(3, 4, 6, 1\)"),
    ],
    ids=["mask", "independent", "field"],
)
def test_a_hole_has_one_time_whatever_draws_it(changes, message):
    given = {"mask": MASK, "times": Synchronous(), **changes}
    mask, times = jnp.asarray(given["mask"]), given["times"]

    def call():
        return supervised_loss({}, jax.random.key(0), X0, mask, None, times=times, **SETTINGS)

    if message is None:
        assert jax.eval_shape(call)[0].shape == ()
        return
    with pytest.raises(Exception, match=message):
        jax.eval_shape(call)


def test_what_a_network_is_shown_holds_nothing_of_the_hole():
    known = np.where(MASK > 0, np.nan, X0)
    shown = np.asarray(reference_of(jnp.asarray(known), jnp.asarray(MASK)))
    np.testing.assert_array_equal(shown, np.concatenate([np.where(MASK > 0, 0, X0), 1 - MASK], -1))
    assert not shown[1].any()


@pytest.mark.parametrize(
    "model",
    [
        UNet(base=8, multipliers=(1,), blocks=1, attention=(), reference=3),
        DiT(patch=2, width=8, depth=1, heads=1, reference=3),
    ],
    ids=["unet", "dit"],
)
def test_a_network_sees_what_is_beside_the_image(model):
    t = drawn.uniform(3, 1, 1, 1)
    params = drawn.params(model, X0, t)

    @jax.jit
    def run(reference):
        return model.apply({"params": params}, X0, t, Condition(reference=reference))[0]

    shown = drawn.normal(3, 4, 6, 3, seed=1)
    base = np.asarray(run(shown))
    assert base.shape == X0.shape
    for channel in range(3):
        other = np.array(shown)
        other[:, 1, 1, channel] += 1
        assert np.abs(np.asarray(run(jax.device_put(other))) - base).max() > 1e-3
    zeros = jax.device_put(np.zeros((3, 4, 6, 3), np.float32))
    np.testing.assert_allclose(run(None), run(zeros), atol=1e-6)
    for wrong, message in ((shown[..., :2], r"\(3, 4, 6, 3\).*\(3, 4, 6, 2\)"), (shown[:, :2], "got shape")):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(run, jnp.asarray(wrong))
    other = model.clone(reference=0)
    with pytest.raises(ValueError, match="takes none"):
        jax.eval_shape(lambda: other.init(jax.random.key(0), X0, t, Condition(reference=shown)))


class Images:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"image": np.full((16, 16, 1), index, np.uint8), "label": index}


DATA = Dataset(Images(), 12, tuple("abcdefghijkl"), (16, 16, 1))


def masks_of(count, **how):
    stream = batches(DATA, **{"seed": 1, "batch": 12, "masks": ("square", "half"), "threads": 0, **how})
    return [next(stream) for _ in range(count)]


def test_each_image_of_a_batch_has_a_mask_of_its_own_that_comes_again():
    first, second = masks_of(2)
    assert first["mask"].shape == (12, 16, 16, 1)
    assert first["mask"].dtype == np.float32
    area = first["mask"].sum((1, 2, 3))
    assert set(area) == {64, 128}  # quarters of the image, and halves
    assert len({mask.tobytes() for mask in first["mask"]}) > 3
    assert (first["mask"] != second["mask"]).any()  # the next epoch's are others
    for name in first:
        np.testing.assert_array_equal(second[name], masks_of(1, start=1)[0][name])
    parts = [masks_of(1, batch=6, shard=(i, 2))[0] for i in range(2)]
    np.testing.assert_array_equal(first["mask"], np.concatenate([part["mask"] for part in parts]))
    whole = np.concatenate([batch["mask"] for batch in masks_of(20, whole=0.25)]).all((1, 2, 3))
    assert 0.15 < whole.mean() < 0.35
    assert "mask" not in masks_of(1, masks=())[0]
    for wrong in ({"masks": ("round",)}, {"whole": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            masks_of(0, **wrong)


def test_a_perfect_network_that_is_told_the_hole_s_time_alone_is_exact():
    """On the Gaussian of the study, where the law of the hole given what is shown is a textbook's."""
    free = ~np.isin(np.arange(gaussian.SIZE), gaussian.KNOWN)
    truth = gaussian.posterior(gaussian.COVARIANCE, gaussian.KNOWN, np.asarray(gaussian.VALUES))

    def denoise(x, times):
        assert times.told.shape == (4000, 1, 1, 1)
        t = times.told[0, 0, 0, 0]
        noisy = (1 - t) ** 2 * truth.covariance + t**2 * np.eye(5)
        mean = truth.mean[None]
        x0 = mean + (1 - t) * jnp.linalg.solve(noisy, (x[:, 0, 3:, 0] - (1 - t) * mean).T).T @ truth.covariance
        x0 = jnp.concatenate([x[:, 0, :3, 0], x0], 1)[:, None, :, None]
        return Prediction(x0, (x - (1 - t) * x0) / t, {})

    known = np.broadcast_to(np.where(free, np.nan, [*gaussian.VALUES, *[0] * 5]), (4000, 8))[:, None, :, None]
    method = functools.partial(Supervised(DDIM(RectifiedFlow())), denoise, RectifiedFlow())
    mask = np.float32(free).reshape(1, 1, 8, 1)
    x = jax.jit(method)(jax.random.key(0), np.float32(known), mask, linear(60))
    made = np.asarray(x, np.float64)[:, 0, :, 0]
    np.testing.assert_array_equal(made[:, ~free], np.broadcast_to(np.float32(gaussian.VALUES), (4000, 3)))
    found = gaussian.score(gaussian.Law(made[:, free].mean(0), np.cov(made[:, free].T)), truth)
    # five standard deviations of what so many exact images show
    assert found.mean < 0.04
    assert abs(found.spread - 1) < 0.06


HOLES = {"supervised.masks": "square,thin,wide"}


@functools.cache
def supervised_run():
    """As it is loaded, with random parameters."""
    config = small("nowhere", **HOLES, **{"sample.steps": 3})
    run = build.untrained(config, datasets.dataset(config))
    return run._replace(params=drawn.params_like(run.params))


def test_a_supervised_run_fills_holes():
    run = supervised_run()
    assert run.model.reference == 2
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[:, 2:6, 2:6] = 1

    def fill(images, run=run, mask=mask):
        keys, label = image_keys(0, 2), np.array([1, 2])
        return inpainting.inpaint(run, keys, images, mask, label, batch=2, method=inpainters.method(run))

    made = fill(images)
    np.testing.assert_array_equal(made[mask == 0], images[mask == 0])
    np.testing.assert_array_equal(made, fill(np.where(mask > 0, 255 - images, images)))
    # what the network is shown beside the image decides with: it is not the same to one that does not look there
    kernel = np.array(run.params["patches"]["kernel"]).reshape(4, 4, 3, -1)
    assert kernel[:, :, 1:].all()
    kernel[:, :, 1:] = 0
    blind = {**run.params, "patches": {**run.params["patches"], "kernel": jnp.asarray(kernel.reshape(48, -1))}}
    assert (fill(images, run._replace(params=blind)) != made)[mask > 0].mean() > 0.5
    # of an image that is all hole nothing is shown
    whole = np.ones_like(mask)
    np.testing.assert_array_equal(fill(images, mask=whole), fill(images, run._replace(params=blind), whole))

    with pytest.raises(ValueError, match="expected one strength in an image"):
        fill(images, mask=mask * np.linspace(0.2, 1, 8, dtype=np.float32)[:, None, None])


def test_what_needs_several_times_in_an_image_or_another_training_is_refused():
    run = supervised_run()
    with pytest.raises(ValueError, match="expected sync of a supervised run"):
        plans.plan("autoregressive", run)
    assert isinstance(inpainters.method(run), Supervised)
    guided = run._replace(config=run.config.copy_and_resolve_references())
    guided.config.sample.input_guidance = 1.0
    rad = run._replace(model=run.model.clone(reference=0), config=run.config.copy_and_resolve_references())
    rad.config.times.name = "rad"
    assert inpainters.method(rad, "rad:eta=.5") == RAD(0.5, (8, 8))
    for there, text, message in (
        (run, "asyncpatch", "other methods for it: supervised, repaint"),
        (run, "rad", "got one that was trained on 'synchronous' times"),
        (rad, "supervised", "whose network is not shown what is known"),
        (rad, "rad:cells=2", "expected settings of rad out of eta, got 'cells'"),
        (guided, "", "expected no input guidance with the method supervised"),
    ):
        with pytest.raises(ValueError, match=message):
            inpainters.method(there, text)


def test_a_supervised_run_makes_whole_images_and_draws_its_pages(tmp_path, monkeypatch):
    """As programs that are traced: what they compute is that of a hole without an edge."""
    run, drawn_as, told = supervised_run(), [], []

    def bound(*network):
        denoise = bind(*network)

        def seen(x, times):
            told.append(timefield.dense(times.told).shape[1:3])
            return denoise(x, times)

        return seen

    def traced(net, params, schedule, inputs, **how):
        result = jax.eval_shape(functools.partial(generate, net, **how), params, schedule, inputs)
        drawn_as.append(inputs.hint is None)
        return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), result))

    monkeypatch.setattr(pictures, "generate", traced)
    monkeypatch.setattr("launch.shared.generate.bind", bound)
    paths = pictures.write_all(tmp_path, run, datasets.dataset(run.config), keys_lib.of_seed(0))
    assert [path.name for path in paths] == ["samples.png", "inpainting.png"]
    assert drawn_as == [True, False]
    assert set(told) == {(1, 1)}
    assert pictures.complete(tmp_path, run)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({**HOLES, "times.name": "asyncpatch"}, "times.name=synchronous"),
        ({"supervised.masks": "square,round"}, "out of thin, medium"),
        ({"supervised.whole": 0.5}, "expected config.supervised.masks"),
        ({**HOLES, "supervised.whole": 1.5}, "in 0 ... 1, got 1.5"),
    ],
)
def test_settings_of_a_supervised_run_fit_each_other(more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        datasets.holes(small(tmp_path, **more))


def test_the_step_of_a_supervised_run_takes_the_batches_that_come(tmp_path):
    config = small(tmp_path, **HOLES)
    data, mesh = datasets.dataset(config), build.mesh(config)
    program = programs.training(config, build.untrained(config, data), mesh)
    train.check(config, program)
    batch = next(train.stream(config, data, mesh))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), program.args[1]
    )
