"""AsynDM on real network code (a UNet and an MM-DiT of random weights): its contracts, and what users hold it to."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.pretrained import batch, sampling
from asyncpatch_jax.pretrained import requests as requests_lib
from asyncpatch_jax.pretrained import text2image as text2images
from asyncpatch_jax.pretrained.folders.loading import load_pretrained
from asyncpatch_jax.pretrained.plans import background, plan
from asyncpatch_jax.pretrained.requests import Request
from asyncpatch_jax.pretrained.settings import check_method, defaults
from asyncpatch_jax.sampling import Euler, sample
from asyncpatch_jax.sampling.schedules.masks import nearest, thresholded
from asyncpatch_jax.types import Prediction
from tests import tiny_folders

FAMILIES = ("sd", "sd3")
PROMPTS = ("a red dog left of a cat", "two cats")
STEPS = 4


@pytest.fixture(scope="module", params=FAMILIES)
def pretrained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / request.param
    tiny_folders.folder(request.param, path)
    return load_pretrained(path, dtype=jnp.float32)


def settings(pretrained, **changes):
    """Of a short text, as most of T5's is padding."""
    t5_length = None if pretrained.family in ("sd", "sdxl") else 32
    return defaults(pretrained.family, 32, num_steps=STEPS, guidance=3.0, t5_length=t5_length, **changes)


def requests(*objects, **more):
    return [Request(text, seed, objects=objects[seed], **more) for seed, text in enumerate(PROMPTS[: len(objects)])]


def text2image(*arguments, **more):
    return list(text2images(*arguments, **more))


def images(made):
    return np.stack([one.image for one in made])


class Seen(Exception):
    """Stops a run where it has shown what was asked for."""


def stop(*seen):
    raise Seen(*seen)


def scheduled(pretrained, given, chosen):
    """The schedule of a batch, of which nothing is run."""
    with pytest.raises(Seen) as seen:
        text2image(pretrained, given, chosen, follow=stop)
    return seen.value.args[0]


def course(schedule, pretrained):
    """The fields [s + 1, b, gh, gw, 1] of a schedule that looks at nothing, of a run without a network."""

    @jax.jit
    def run(schedule, keys, x):
        end, fields = sample(
            lambda x, times: Prediction(x, x, {}),
            Euler(pretrained.scheduler.process),
            schedule,
            keys,
            x,
            num_steps=STEPS,
            trace=lambda state, pred: state.times.level,
        )
        return jnp.concatenate([fields, end.times.level[None]])

    fields = run(schedule, jax.random.split(jax.random.key(0), 2), np.zeros((2, 16, 16, 4), np.float32))
    return np.broadcast_to(fields, (STEPS + 1, 2, *schedule.cells, 1))


DYNAMIC = {"schedule": "asyndm", "omega": 0.5}


@pytest.fixture(scope="module")
def stock(pretrained):
    """Both prompts by the stock sampler."""
    return text2image(pretrained, requests((), ()), settings(pretrained))


@pytest.fixture(scope="module")
def lagging(pretrained):
    """Both prompts under dynamic masks: one program with any omega and seed."""
    return text2image(pretrained, requests(("dog", "cat"), ("cats",)), settings(pretrained, **DYNAMIC))


def test_objects_that_do_not_lag_leave_the_stock_sampler(pretrained, stock):
    still = settings(pretrained, schedule="asyndm", omega=0.0)
    still = text2image(pretrained, requests(("dog", "cat"), ("cats",)), still)
    for a, b in zip(stock, still, strict=True):
        # the fields are the same numbers; the network reads them as a table of times, in another order of sums
        assert (a.fields == b.fields).all()
        assert np.abs(a.image.astype(int) - b.image).max() <= 1


def test_an_object_that_is_the_whole_image_is_the_stock_sampler_on_the_curve(pretrained):
    """By the fields alone: how networks read a field of equal times is a matter of their own tests."""
    everywhere = np.ones((32, 32, 1), np.float32)
    given = requests(("dog",), ("cats",), object_masks=everywhere)
    drawn = scheduled(pretrained, given, settings(pretrained, schedule="asyndm", masks="drawn"))
    concave = scheduled(pretrained, given, settings(pretrained, schedule="concave"))
    fields = course(drawn, pretrained)
    np.testing.assert_allclose(fields, course(concave, pretrained), atol=1e-6)
    grid = np.float32(pretrained.scheduler.grid(STEPS, 64))
    assert (fields[1:3] > grid[1:3].reshape(-1, 1, 1, 1, 1)).all()


def test_dynamic_masks_are_those_of_the_maps_of_the_step_before(pretrained, lagging):
    made = lagging[0]
    grid = plan(pretrained, requests(("dog", "cat"), ("cats",)), settings(pretrained, **DYNAMIC)).grid
    assert made.maps.shape[0] == STEPS
    assert (made.maps >= 0).all()
    cells = made.fields.shape[1:3]
    assert (made.masks == np.asarray(thresholded(jnp.asarray(made.maps)))).all()
    masks = np.asarray(nearest(jnp.asarray(made.masks), cells)).any(-1, keepdims=True)
    assert 0 < masks.mean() < 1
    # no cell is ahead of the background, and a cell that no mask has had since the start is on it
    assert (made.fields[-1] == grid[-1]).all()
    for i in range(STEPS):
        assert (made.fields[i] >= np.float32(grid[i])).all()
    assert (np.diff(made.fields, axis=0) < 0).all()
    lag = made.fields[2] - np.float32(grid[2])
    was = masks[1] if pretrained.family == "sd3" else masks[0]
    assert lag[was].mean() > lag[~was].mean()


def test_fixed_masks_are_those_of_the_synchronous_run(pretrained):
    given = requests(("dog", "cat"), ("cats",))
    fixed = text2image(pretrained, given, settings(pretrained, **DYNAMIC, masks="fixed"))
    for one in fixed:
        lag = one.fields[1] > one.fields[1].min()
        assert 0 < lag.mean() < 1
        assert one.masks.shape[0] == 1
        shown = np.asarray(nearest(jnp.asarray(one.masks), lag.shape[:2]))[0].any(-1, keepdims=True)
        assert (shown == lag).all()
        # one mask for all steps
        assert all(((step > step.min()) == lag).all() for step in one.fields[1:-2])


def test_an_image_depends_on_its_own_request_alone(pretrained, lagging):
    chosen = settings(pretrained, **DYNAMIC)
    one, two = requests(("dog", "cat"), ("cats",))
    before = sampling.sample_latents._cache_size()
    swapped = text2image(pretrained, [two, one._replace(seed=7)], chosen)
    assert np.abs(swapped[0].image.astype(int) - lagging[1].image).max() <= 1
    assert np.abs(swapped[1].image.astype(int) - lagging[0].image).max() > 1
    again = text2image(pretrained, [one._replace(seed=3), two], chosen)
    assert (again[1].image == lagging[1].image).all()
    # the same program: prompts, seeds and objects are data. (Fewer objects are other shapes.)
    assert sampling.sample_latents._cache_size() == before


# cells with their own times, and all at once; each where the other is least like it
INPAINTED = {"sd": {}, "sd3": {"schedule": "asyndm"}}


def test_a_known_region_comes_back_bit_for_bit_and_masks_differ_within_a_batch(pretrained):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
    masks = [np.zeros((32, 32, 1), np.float32) for _ in PROMPTS]
    masks[0][8:20, 8:20] = 1
    masks[1][:, 16:] = 1
    given = [
        request._replace(image=picture, mask=mask)
        for request, mask in zip(requests(("dog",), ("cats",)), masks, strict=True)
    ]
    chosen = settings(pretrained, **INPAINTED[pretrained.family])
    made = text2image(pretrained, given, chosen)
    for one, mask in zip(made, masks, strict=True):
        known = mask[..., 0] == 0
        assert (one.image[known] == picture[known]).all()
        assert (one.image[~known] != picture[~known]).mean() > 0.5
        # known cells stand at 0 all the time
        assert (one.fields[:, 0, 0] == 0).all()
        assert one.fields[1].max() > 0
    # what lies under the mask is no data
    hidden = picture.copy()
    hidden[8:20, 8:20] = 0
    other = text2image(pretrained, [given[0]._replace(image=hidden), given[1]], chosen)
    assert (images(other) == images(made)).all()


def test_a_strength_map_is_where_cells_start(pretrained):
    picture = np.full((32, 32, 3), 90, np.uint8)
    strength = np.zeros((32, 32, 1), np.float32)
    strength[:, 8:16], strength[:, 16:] = 0.4, 1.0
    given = [request._replace(image=picture, mask=strength) for request in requests((), ())]
    schedule = scheduled(pretrained, given, settings(pretrained))
    times, _ = schedule.init(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 16, 16, 4)))
    for start in times.level:
        column = start.shape[1] // 4
        assert (start[:, :column] == 0).all()
        assert (start[:, column : 2 * column] == np.float32(0.4)).all()
        assert (start[:, 2 * column :] == start.max()).all()
        assert start.max() > 0.7


def test_the_released_code_s_ways_reach_the_run(pretrained):
    chosen = settings(pretrained, schedule="asyndm", reference_compat=True)
    chosen = dataclasses.replace(chosen, num_steps=7)
    given = requests(("dog", "cat"), ("two", "cats"), item_idx=(2, 6))
    given[1] = given[1]._replace(item_idx=(1, 0))
    given = [request._replace(omegas=(0.2, 0.5)) for request in given]
    for name, first in (("asyndm", [1, 0]), ("concave", None)):
        schedule = scheduled(pretrained, given, dataclasses.replace(chosen, schedule=name))
        behind = background(pretrained.scheduler, 7, 64, released=True)
        np.testing.assert_array_equal(schedule.grid, np.float32(behind.grid))
        assert first is None or schedule.first.tolist() == first
    if pretrained.family == "sd":
        assert (schedule.grid != pretrained.scheduler.grid(7)).any()
    # the run that gives fixed masks is the public samplers'
    made = plan(pretrained, given, dataclasses.replace(chosen, masks="fixed"))
    stock = np.asarray(pretrained.scheduler.grid(7, 64))
    np.testing.assert_array_equal(made.synchronous().schedule(None, None, None).grid, stock)
    assert made.synchronous().start == stock[0]
    assert made.start == behind.start


def test_recorded_noise_reaches_the_run(pretrained, monkeypatch):
    monkeypatch.setattr(batch, "sample_latents", lambda net, params, inputs: stop(inputs))
    chosen = settings(pretrained, eta=1.0, solver="ddim")
    shape = (STEPS, *requests_lib.latent_shape(pretrained, chosen))
    drawn = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in range(2)]
    given = [r._replace(fresh_noise=d) for r, d in zip(requests(("dog",), ("cats",)), drawn, strict=True)]
    with pytest.raises(Seen) as seen:
        text2image(pretrained, given, chosen)
    np.testing.assert_array_equal(seen.value.args[0].fresh, np.stack(drawn, 1))
    # half of the strength leaves out the first steps, and their noise
    part = {"image": np.zeros((32, 32, 3), np.uint8), "mask": np.full((32, 32, 1), 0.5, np.float32)}
    with pytest.raises(Seen) as seen:
        text2image(pretrained, [request._replace(**part) for request in given], chosen)
    inputs = seen.value.args[0]
    assert inputs.schedule.num_steps < STEPS
    np.testing.assert_array_equal(inputs.fresh, np.stack(drawn, 1)[-inputs.schedule.num_steps :])
    with pytest.raises(ValueError, match="expected eta > 0 with fresh_noise"):
        text2image(pretrained, given, settings(pretrained))
    with pytest.raises(ValueError, match=rf"expected fresh_noise of float\[{STEPS}, "):
        text2image(pretrained, [given[0]._replace(fresh_noise=drawn[0][1:])], chosen)


METHODS = {"cfg++": {"guidance": 0.6, "solver": "ddim"}, "z-sampling": {"solver": "ddim"}, "seg": {}, "s-cfg": {}}
# one of those that any network is right for, and what asks something of its attention
RUN = {"sd": ("cfg++", "s-cfg"), "sd3": ("z-sampling", "seg", "s-cfg")}


def test_baselines_run(pretrained, stock):
    for method in RUN[pretrained.family]:
        chosen = dataclasses.replace(settings(pretrained), method=method, **METHODS[method])
        made = images(text2image(pretrained, requests((), ()), chosen))
        assert made.std() > 0, method
        assert np.abs(made.astype(int) - images(stock)).max() > 1, method


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_an_unconditional_half_says_so(method):
    message = f"expected a network of sd, sdxl, sd3 for the method {re.escape(method)}, got flux"
    with pytest.raises(ValueError, match=message):
        check_method("flux", defaults("sd3", 512, method=method))


def test_mistakes_are_named_before_anything_is_made(pretrained):
    fine = settings(pretrained)
    slow = settings(pretrained, schedule="asyndm")
    picture = np.zeros((32, 32, 3), np.uint8)
    hole = np.ones((32, 32, 1), np.float32)
    cases = [
        ([], fine, "at least one request"),
        ([Request(PROMPTS[0])], dataclasses.replace(fine, height=33), "multiples of"),
        ([Request(PROMPTS[0])], slow, "expected objects"),
        ([Request(PROMPTS[0], objects=("bear",))], slow, "'bear', which is there not at all"),
        ([Request(PROMPTS[0], objects=("dog",), omegas=(0.1, 0.2))], slow, "omega for each of the 1 objects"),
        ([Request(PROMPTS[0], objects=("dog",), omegas=(3.0,))], slow, "expected 0 <= k <="),
        *(([Request(PROMPTS[0], objects=("dog",), omegas=(k,))], slow, "finite omegas") for k in (-0.5, float("nan"))),
        ([Request(PROMPTS[0])], dataclasses.replace(fine, t5_length=1), "at least 2 tokens for tokenizer_3, got 1"),
        ([Request(PROMPTS[0])], dataclasses.replace(fine, height=512), "at most 48 pixels a side"),
        ([Request(PROMPTS[0], mask=hole)], fine, "expected an image with the mask"),
        ([Request(PROMPTS[0], image=picture)], fine, "expected a mask with the image"),
        (
            [Request(PROMPTS[0], image=picture[:16], mask=hole)],
            fine,
            r"expected image of uint8\[32, 32, 3\], got uint8",
        ),
        ([Request(PROMPTS[0], image=picture / 255.0, mask=hole)], fine, "expected image of uint8"),
        ([Request(PROMPTS[0], image=picture[..., :1], mask=hole)], fine, "expected image of uint8"),
        ([Request(PROMPTS[0], image=picture, mask=255 * hole)], fine, "expected mask in 0 ... 1, got 255.0 to 255.0"),
        ([Request(None)], fine, "expected texts, got None"),
        ([Request(PROMPTS[0], seed=2**64)], fine, "expected 0 <= seed <= "),
        # both before the first batch, not in the second
        ([Request(PROMPTS[0], objects=("dog",)), Request(PROMPTS[1], objects=("bear",))], slow, "'bear', which is"),
        (
            [Request(PROMPTS[0], objects=("dog",)), Request(PROMPTS[1], objects=("cats",), omegas=(1.5,))],
            slow,
            "expected 0 <= k <=",
        ),
        ([Request(PROMPTS[0]), Request(PROMPTS[0], image=picture, mask=hole)], fine, "all say image, or none"),
        ([Request(PROMPTS[0], objects=("dog",))], dataclasses.replace(slow, masks="drawn"), "expected a drawn mask"),
        ([Request(PROMPTS[0], noise=np.zeros((2, 2, 4), np.float32))], fine, "expected noise of float"),
        ([Request(PROMPTS[0])], dataclasses.replace(fine, negative_guidance=2.0), "negative_guidance with flux"),
    ]
    for given, chosen, message in cases:
        if pretrained.family == "sd" and message.startswith("at "):
            continue  # a UNet has neither T5 nor a table of positions
        with pytest.raises(ValueError, match=message):
            text2images(pretrained, given, chosen, batch=1)
    with pytest.raises(ValueError, match="expected a batch of one image or more, got 0"):
        text2images(pretrained, [Request(PROMPTS[0])], fine, batch=0)


@pytest.mark.parametrize("wrong", [{"omega": 7.0}, {"threshold": -1.0}, {"guidance": float("nan")}, {"eta": -1.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="expected"):
        defaults("sd", 512, **wrong)


def test_a_family_that_is_not():
    with pytest.raises(ValueError, match="expected a family out of sd, sdxl, sd3, flux, kontext, got 'sdx'"):
        defaults("sdx", 512)


def test_an_image_that_is_not_finite_is_named(pretrained):
    vae = pretrained.components["vae"]
    broken = vae._replace(params=jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), vae.params))
    with_it = pretrained._replace(components={**pretrained.components, "vae": broken})
    given = [request._replace(seed=3) for request in requests((), ())]
    with pytest.raises(ValueError, match=f"expected a finite image of '{PROMPTS[0]}', seed 3"):
        text2image(with_it, given, settings(pretrained))


@pytest.mark.parametrize("family", ["sdxl", "flux", "kontext"])
def test_the_other_families_in_bfloat16(family, tmp_path):
    tiny_folders.folder(family, tmp_path / family)
    pretrained = load_pretrained(tmp_path / family, dtype=jnp.bfloat16)
    half = np.zeros((32, 32, 1), np.float32)
    half[:, 16:] = 1
    edits = {"image": np.full((32, 32, 3), 90, np.uint8), "object_masks": half} if family == "kontext" else {}
    masks = "drawn" if edits else "dynamic"
    chosen = settings(pretrained, schedule="asyndm", masks=masks, omega=0.5)
    (made,) = text2image(pretrained, requests(("dog",), **edits), chosen, batch=1)
    assert made.image.std() > 0
    # times stay what they are in float32, and the object lags behind the background
    grid = np.float32(plan(pretrained, requests(("dog",), **edits), chosen).grid)
    assert made.fields.dtype == np.float32
    assert (made.fields[-1] == grid[-1]).all()
    assert (made.fields >= grid.reshape(-1, 1, 1, 1)).all()
    assert made.fields[2].max() > grid[2]
    if edits:
        lag = made.fields[1] > grid[1]
        assert lag[:, lag.shape[1] // 2 :].all()
        assert not lag[:, : lag.shape[1] // 2].any()
