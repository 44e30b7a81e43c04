"""From settings to schedules: what cells lag behind, DM_concave, and the ways of AsynDM's released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from asyncpatch_jax.pretrained.folders import schedulers
from asyncpatch_jax.pretrained.plans import Background, Plan, background
from asyncpatch_jax.pretrained.requests import Request, first_objects, omegas
from asyncpatch_jax.pretrained.settings import defaults
from asyncpatch_jax.process import RectifiedFlow
from asyncpatch_jax.sampling.schedules import Fixed, shifted
from asyncpatch_jax.sampling.state import SamplerState
from asyncpatch_jax.types import Prediction
from launch import evaluate
from launch.policy import subjects
from launch.policy.subjects import Subject
from launch.shared import build
from tests.test_concave_networks import FLOW, STABLE
from tests.test_curves import written_out

CELLS, MAPS = (4, 4), (2, 2)


@jax.jit
def walk(schedule, maps=None):
    """The fields [n + 1, b, gh, gw] of a run whose call i sees `maps[i]`, without any network."""
    batch = 1 if maps is None else maps.shape[1]
    batch = max(batch, *(jnp.shape(schedule.k)[:1] if jnp.ndim(schedule.k) == 2 else (1,)), 1)
    x, keys = jnp.zeros((batch, 4, 4, 1)), jax.random.split(jax.random.key(0), batch)

    def move(state, call):
        i, seen = call
        pred = Prediction(x, x, {} if seen is None else {"maps": seen})
        times, carry = schedule.next(i, state, pred, keys)
        return SamplerState(x, times, None, carry), state.times.level[..., 0]

    times, carry = schedule.init(keys, x)
    calls = jnp.arange(schedule.num_steps), maps
    end, levels = jax.lax.scan(move, SamplerState(x, times, None, carry), calls)
    return jnp.concatenate([levels, end.times.level[None, ..., 0]])


def made(scheduler, steps, requests, **changes):
    """The schedule that `text2image` follows."""
    settings = defaults("sd", 512, num_steps=steps, **changes)
    table = omegas(requests, settings)
    behind = background(scheduler, steps, 64, released=settings.reference_compat)
    plan = Plan(settings, behind.grid, behind.grid[0], behind, CELLS, joint=False, hard=False, one_omega=False)
    return plan.schedule(None, table, None, first_objects(requests, settings))


def evaluated(scheduler, steps, text):
    """The schedule that `launch.evaluate` follows."""
    subject = Subject(*[None] * 8)._replace(behind=background(scheduler, steps, 64))
    (entry,) = evaluate.parse(text, subject)
    return entry.follow(None, None)


def stable(**changes):
    return schedulers.from_config({**STABLE, **changes})


def test_dm_concave_is_one_schedule_in_both_commands():
    """At the vectors of the paper's index form, rounded to Stable Diffusion's levels."""
    ours = evaluated(stable(), 50, "concave=.7")
    levels = walk(ours).reshape(-1)
    index = 1001.0
    expected = [index := written_out("quadratic", index, 50 - i, 0.7, 50) for i in range(50)]
    np.testing.assert_allclose(levels, (np.r_[np.round(expected), 0] + 1) / 1000, rtol=0, atol=1e-7)
    assert levels[0] == np.float32(0.996)
    theirs = made(stable(), 50, [Request("a dog")], schedule="concave", omega=0.7)
    np.testing.assert_array_equal(walk(theirs).reshape(-1), levels)


def test_dm_concave_of_a_flow_runs_before_the_shift():
    scheduler, n, a = schedulers.from_config(FLOW), 10, 3.0
    ours = walk(evaluated(scheduler, n, "concave=.6")).reshape(-1)
    grid = np.asarray(scheduler.grid(n), np.float64)
    u = grid / (a - (a - 1) * grid)
    place = np.arange(n + 1) - 0.6 * (n - np.arange(n + 1)) * np.arange(n + 1) / n
    u = np.interp(place, np.arange(n + 1), u)
    np.testing.assert_allclose(ours, a * u / (1 + (a - 1) * u), atol=1e-6)
    theirs = made(scheduler, n, [Request("a dog")], schedule="concave", omega=0.6)
    np.testing.assert_allclose(walk(theirs).reshape(-1), ours, atol=1e-7)


def test_a_weight_that_the_curve_refuses_is_refused_before_images():
    with pytest.raises(ValueError, match=r"expected 0 <= k <= 0.9183 for the quadratic curve"):
        evaluated(stable(), 50, "concave=.95")


def test_an_image_goes_as_slow_as_its_slowest_object():
    """The released code's DM_concave; an image without objects has the settings' omega."""
    two = Request("a dog and a cat", objects=("dog", "cat"), omegas=(0.3, 0.7))
    schedule = made(
        stable(),
        7,
        [two, Request("a dog", objects=("dog",), omegas=(0.5,)), Request("it")],
        schedule="concave",
        omega=0.1,
    )
    fields = walk(schedule)
    for image, omega in enumerate((0.7, 0.5, 0.1)):
        alone = walk(made(stable(), 7, [Request("it")], schedule="concave", omega=omega))
        np.testing.assert_array_equal(fields[:, image], alone[:, 0])
    assert len(np.unique(fields[3])) == 3


def released_move(t, rest, k, n, train=1000, s=1):
    """The next index as the released code computes it: a parabola through the cell's state and the end."""
    if rest == 0:
        return 0.0
    if k is None:
        return t * (1 - 1 / rest) + s / rest
    k = -k * train / n**2
    t0 = (k * rest**2 - (s - t)) / (2 * k * rest)
    return k * (1 - t0) ** 2 + t - k * t0**2


def released_run(maps, k, item_idx, n):
    """Indices [n + 1, h, w] of a run of the released code for one image, which rounds when it reads them."""
    owner = np.full(CELLS, int(np.argmax(item_idx)))
    t, path = np.full(CELLS, 1001.0), []
    for i in range(n + 1):
        for cell in np.ndindex(CELLS):
            t[cell] = released_move(t[cell], n - i, None if owner[cell] < 0 else k[owner[cell]], n)
        path.append(t.copy())
        if 0 < i < n + 1:
            seen = maps[i - 1] >= maps[i - 1].mean((0, 1))
            rank = np.where(seen, k, -1.0)
            coarse = np.where(seen.any(-1), rank.argmax(-1), -1)
            owner = coarse.repeat(2, 0).repeat(2, 1)
    return np.round(path)


@pytest.mark.parametrize("steps", [7, 10])
@pytest.mark.parametrize("item_idx", [(4, 1), (1, 4)])
def test_the_released_code_s_first_mask_and_steps(steps, item_idx):
    k = (0.3, 0.7)
    maps = np.random.default_rng(0).uniform(0.1, 1, (steps, *MAPS, 2)).astype(np.float32)
    request = Request("a dog and a cat", objects=("dog", "cat"), omegas=k, item_idx=item_idx)
    schedule = made(stable(), steps, [request], schedule="asyndm", reference_compat=True)
    levels = walk(schedule, maps[:, None])[:, 0]
    expected = released_run(maps, k, item_idx, steps)
    np.testing.assert_allclose(levels * 1000 - 1, expected, rtol=0, atol=1e-3)
    # without it the slowest object is first, and steps are whole
    plain = walk(made(stable(), steps, [request], schedule="asyndm"), maps[:, None])[:, 0]
    assert (plain[0] == levels[0]).all() == (steps == 10 and item_idx == (1, 4))


def test_released_steps_end_at_the_last_level_or_where_that_is_none_at_clean_data():
    for offset, end in ((1, 1e-3), (0, 0.0)):
        found = background(stable(steps_offset=offset), 30, 64, released=True)
        assert found.grid[-2:] == pytest.approx(((offset + 1) / 1000, end))
        assert found.grid[0] == pytest.approx((offset + 1 + 29 * 1000 / 30) / 1000)
        # pure noise is what begins at the level that the first call is told
        assert found.start == pytest.approx((np.round(offset + 29 * 1000 / 30) + 1) / 1000)
    flow = schedulers.from_config(FLOW)
    assert background(flow, 7, 64, released=True) == background(flow, 7, 64)


def test_levels_round_the_background_too():
    behind = Background(tuple(np.linspace(0.8557, 0.0013, 7).tolist()), levels=1000)
    drawn = jnp.zeros((1, *CELLS, 1)).at[:, :2].set(1.0)
    fields = walk(behind.concave(0.4, Fixed(drawn), CELLS, "quadratic"))[:, 0]
    background_cells = fields[:, 3, 3]
    np.testing.assert_allclose(background_cells * 1000, np.round(np.array(behind.grid) * 1000 - 1) + 1, atol=1e-4)
    np.testing.assert_allclose(fields * 1000, np.round(fields * 1000), atol=1e-4)
    # times that are whole already keep their bits
    whole = stable()
    grid = np.asarray(whole.grid(50))
    kept = walk(background(whole, 50, 64).concave(0.0, Fixed(drawn), CELLS, "quadratic"))
    assert (kept == grid.reshape(-1, 1, 1, 1)).all()


def test_the_baselines_have_asyndm_s_guidance():
    assert [defaults("sd", 512, method=name).guidance for name in ("cfg++", "z-sampling")] == [0.4, 5.0]


def test_drawn_masks_need_no_words():
    masks = np.ones((8, 8, 2), np.float32)
    settings = defaults("sd", 8, schedule="asyndm", masks="drawn", omega=0.4)
    asked = [Request("it", object_masks=masks), Request("it", object_masks=masks[..., :1], omegas=(0.2,))]
    np.testing.assert_allclose(omegas(asked, settings), [[0.4, 0.4], [0.2, -1]])


@pytest.mark.parametrize(("grid", "shift"), [("shifted", 2.0), ("linear", 1.0)])
def test_a_trained_run_says_how_its_grid_was_shifted(grid, shift):
    sample = {"grid": grid, "shift": 2.0, "steps": 4, "guidance": 1.0, "solver": "ddim", "eta": 0.0}
    run = build.Run(
        ConfigDict({"sample": sample}), None, RectifiedFlow(), "velocity", None, 0, 2, ("a", "b"), (4, 4, 1)
    )
    behind = subjects.of_run(run, [], subjects.Choice()).behind
    assert behind == Background(tuple(np.asarray(shifted(4, shift)).tolist()), shift)
