"""Where each cell goes: grids, plans, schedules that follow the network's uncertainty, and RePaint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.models import DiT
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow
from asyncpatch_jax.sampling import (
    DDIM,
    Autoregressive,
    DualLoop,
    Graded,
    Inpaint,
    SamplerState,
    Synchronous,
    Table,
    UncertaintyGuided,
    cosine,
    linear,
    logsnr,
    raster,
    repaint,
    repaint_cost,
    repaint_path,
    sample,
    shifted,
    shuffled,
    start,
)
from asyncpatch_jax.types import Prediction
from tests import drawn
from tests.oracles import gaussian

HALF = jax.device_put(np.repeat(np.float32([0, 0, 1, 1]), 4).reshape(1, 4, 4, 1))


@functools.partial(jax.jit, static_argnames="batch")
def planned(schedule, batch):
    x = jnp.zeros((batch, 4, 4, 1))
    keys, pred = keys_lib.per_image(jax.random.key(0), batch), Prediction(x, x, {})
    first, carry = schedule.init(keys, x)

    def following(state, i):
        times, carry = schedule.next(i, SamplerState(x, *state), pred, keys)
        return (times, None, carry), times.level

    return first.level, jax.lax.scan(following, (first, None, carry), jnp.arange(schedule.num_steps))[1]


def fields(schedule, batch=1):
    """All fields of a plan [num_steps + 1, b, gh, gw]."""
    first, others = jax.device_get(planned(schedule, batch))
    return np.concatenate([first[None], others])[..., 0]


def confident(log_variance):
    """A denoiser with a log-variance [b, h, w, 1] that never changes."""

    def denoise(x, times):
        t = timefield.like(times.level, x)
        return Prediction(0.1 * x, jnp.where(t == 0, 0.0, x), {"log_variance": log_variance})

    return denoise


def run(schedule, log_variance, solver=None):
    """The fields of a run [num_steps + 1, b, gh, gw], with the network's doubts given."""

    @jax.jit
    def go(schedule, log_variance):
        x = jnp.ones((*log_variance.shape[:3], 2))
        end, levels = sample(
            confident(log_variance),
            solver or DDIM(RectifiedFlow()),
            schedule,
            jax.random.key(0),
            x,
            num_steps=schedule.num_steps,
            trace=lambda state, _: state.times.level,
        )
        return jnp.concatenate([levels, end.times.level[None]])

    return np.asarray(go(schedule, log_variance))[..., 0]


# ------------------------------------------------------------------------------------------------------- grids
@pytest.mark.parametrize(
    "grid",
    [linear, cosine, lambda n: shifted(n, 3.0), lambda n: shifted(n, 0.5)]
    + [lambda n, p=p: logsnr(n, p) for p in (RectifiedFlow(), Cosine(), Discrete())],
)
@pytest.mark.parametrize("n", [1, 2, 50])
def test_grids_fall_from_1_to_0(grid, n):
    t = np.asarray(grid(n))
    assert t.dtype == np.float32
    assert t.shape == (n + 1,)
    assert t[0] == 1
    assert t[-1] == 0
    assert (np.diff(t) < 0).all()


def test_grids_are_what_they_say():
    t = np.linspace(1, 0, 11)
    np.testing.assert_allclose(linear(10), t, atol=1e-7)
    np.testing.assert_allclose(shifted(10, 3.0), 3 * t / (1 + 2 * t), rtol=1e-6)
    rectified, angle = np.asarray(RectifiedFlow().logsnr(cosine(10)))[1:-1], np.pi / 2 * t[1:-1]
    np.testing.assert_allclose(rectified, 2 * np.log(np.cos(angle) / np.sin(angle)), rtol=1e-4, atol=1e-5)
    for process in (RectifiedFlow(), Cosine()):
        ratios = np.asarray(process.logsnr(logsnr(8, process, limit=6.0)))
        np.testing.assert_allclose(np.diff(ratios[1:-1]), 12 / 8, rtol=1e-3)
    # Stable Diffusion's process does not reach that far: its own last level is the end
    ratios = np.asarray(Discrete().logsnr(logsnr(8, Discrete())))
    low = np.asarray(Discrete().logsnr(jnp.ones(1)))[0]
    np.testing.assert_allclose(np.diff(ratios[:-1]), (8 - low) / 8, rtol=1e-2)


def test_impossible_grids_are_refused():
    for grid in (linear, cosine, lambda n: shifted(n, 3.0), lambda n: logsnr(n, Cosine())):
        with pytest.raises(ValueError, match="num_steps >= 1"):
            grid(0)
    with pytest.raises(ValueError, match="shift > 0"):
        shifted(4, 0.0)
    with pytest.raises(ValueError, match="expected a grid of times"):
        Synchronous(jnp.ones((3, 2))).num_steps  # noqa: B018, the property checks
    with pytest.raises(ValueError, match="expected a table of fields"):
        Table(jnp.ones((3, 2))).num_steps  # noqa: B018


# ------------------------------------------------------------------------------------------------ distinct times
class Dense:
    """A schedule that writes its fields out."""

    def __init__(self, schedule):
        self.schedule, self.num_steps = schedule, schedule.num_steps

    def init(self, keys, x):
        times, carry = self.schedule.init(keys, x)
        return times._replace(told=times.level), carry

    def next(self, i, state, pred, keys):
        times, carry = self.schedule.next(i, state, pred, keys)
        return times._replace(told=times.level), carry


UNIFORM = np.asarray(drawn.uniform(5, 2, 8, 8))
MASKS = jax.device_put((UNIFORM[0, ..., None] > 0.4).astype(np.float32))
DECLARED = {
    "synchronous": (Synchronous(linear(4)), 1),
    "table": (Table(UNIFORM * np.float32([1, 1, 1, 1, 0]).reshape(-1, 1, 1, 1)), None),
    "inpaint": (Inpaint(MASKS, linear(4)), 2),
    "graded": (Graded(0.7 * MASKS, linear(4)), None),
    "autoregressive": (Autoregressive(np.where(np.asarray(MASKS) > 0, raster((8, 8), (4, 4)), -1), cosine(3), 4), 3),
    "uncertainty": (UncertaintyGuided(linear(4), (4, 4), MASKS), None),
    "dual": (DualLoop(linear(3), (4, 4)), 2),
    "dual_masked": (DualLoop(linear(3), (2, 4), MASKS), 3),
    "repaint": (repaint(RectifiedFlow(), linear(6), MASKS, MASKS, jump=3, resample=2)[0], 1),
}
X = drawn.normal(2, 8, 8, 1, seed=1)
NETWORK = DiT(patch=1, width=8, depth=1, heads=1, log_variance=True)
PARAMS = drawn.params(NETWORK, X, jax.device_put(np.zeros((2, 1, 1, 1), np.float32)))


@pytest.mark.parametrize("name", DECLARED)
def test_schedules_keep_to_the_distinct_times_that_they_declare(name):
    """A run is also that of the fields written out, for a network that sees each pixel's time."""
    schedule, most = DECLARED[name]
    assert getattr(schedule, "distinct", None) == most

    def go(schedule, params):
        denoise = bind(NETWORK, params, RectifiedFlow(), "velocity")
        return sample(
            denoise,
            DDIM(RectifiedFlow()),
            schedule,
            jax.random.key(0),
            X,
            num_steps=schedule.num_steps,
            trace=lambda state, _: (state.times.level, timefield.dense(state.times.told)),
        )

    both = jax.jit(lambda params: (go(schedule, params), go(Dense(schedule), params)))
    (end, (level, told)), (written, _) = jax.device_get(both(PARAMS))
    np.testing.assert_array_equal(np.broadcast_to(told, level.shape), level)
    np.testing.assert_allclose(end.x, written.x, rtol=1e-3, atol=1e-4)
    if most is not None:
        assert max(len(np.unique(image)) for step in told for image in step) <= most


# ------------------------------------------------------------------------------------------------------- plans
def test_a_table_is_what_it_holds():
    levels = np.random.default_rng(0).uniform(size=(5, 3, 2, 4)).astype(np.float32)
    levels[-1] = 0
    assert (fields(Table(levels), batch=3) == levels).all()
    assert (fields(Table(levels[..., None]), batch=3) == levels).all()
    assert (fields(Table(levels[:, :1]), batch=3) == levels[:, :1]).all()


def test_inpainting_moves_unknown_cells_on_the_grid_and_holds_the_others():
    plan = fields(Inpaint(HALF, linear(4)))
    assert (plan[:, :, :2] == 0).all()
    assert (plan[:, :, 2:] == np.asarray(linear(4))[:, None, None, None]).all()
    assert (plan == fields(Graded(HALF, linear(4)))).all()


def test_graded_cells_wait_for_the_grid():
    strength = np.float32([0.0, 0.3, 0.5, 1.0]).reshape(1, 2, 2, 1)
    plan = fields(Graded(strength, linear(4))).reshape(5, 4)
    np.testing.assert_allclose(plan[:, 0], 0)
    np.testing.assert_allclose(plan[:, 1], [0.3, 0.3, 0.3, 0.25, 0])
    np.testing.assert_allclose(plan[:, 2], [0.5, 0.5, 0.5, 0.25, 0])
    np.testing.assert_allclose(plan[:, 3], [1, 0.75, 0.5, 0.25, 0])


def test_raster_reads_patches_row_by_row():
    assert raster((2, 2)).reshape(-1).tolist() == [0, 1, 2, 3]
    assert raster((4, 4), (2, 2))[0, :, :, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    with pytest.raises(ValueError, match="tile 4x4"):
        raster((4, 4), (3, 2))


def test_autoregression_finishes_each_group_before_the_next():
    order = np.asarray(shuffled(jax.random.key(3), jnp.asarray(raster((4, 4), (2, 2))), 4))
    assert sorted(np.unique(order)) == [0, 1, 2, 3]
    assert not np.array_equal(order, raster((4, 4), (2, 2)))
    schedule = Autoregressive(np.where(np.asarray(HALF) > 0, order, -1), shifted(3, 2.0), groups=4)
    assert schedule.num_steps == 12
    plan, ranks = fields(schedule)[:, 0], order[0, :, :, 0]
    assert (plan[:, :2] == 0).all()
    for k, level in enumerate(plan):
        for rank in range(4):
            cells = level[2:][ranks[2:] == rank]
            assert (cells == np.asarray(shifted(3, 2.0))[np.clip(k - 3 * rank, 0, 3)]).all()


# ------------------------------------------------------------------------------------------- uncertainty-guided
def test_equal_certainty_is_synchronous():
    guided = run(UncertaintyGuided(shifted(6, 2.0), (2, 2)), np.zeros((2, 4, 4, 1), np.float32))
    assert (guided == np.asarray(shifted(6, 2.0))[:, None, None, None]).all()


@pytest.mark.parametrize("spread", [0.2, 0.9])
def test_certain_cells_move_first_and_all_arrive_in_bounded_steps(spread):
    doubts = np.asarray(drawn.normal(3, 4, 4, 1))
    n = 10
    levels = run(UncertaintyGuided(linear(n), (4, 4), spread=spread), doubts)
    assert (levels[0] == 1).all()
    assert (levels[-1] == 0).all()
    moves = -np.diff(levels, axis=0)
    assert (moves >= 0).all()
    assert moves.max() < (1 + spread) / n + 1e-5
    for image, doubt in zip(np.moveaxis(levels, 1, 0), doubts[..., 0], strict=True):
        ranked = image.reshape(n + 1, -1)[:, np.argsort(doubt.reshape(-1))]
        assert (np.diff(ranked, axis=1) >= -1e-6).all()
        assert (np.diff(ranked[1]) > 0).all()
        assert ranked[1].mean() == pytest.approx(1 - 1 / n)  # on average one grid step


def test_each_image_follows_its_own_doubts():
    doubts = np.asarray(drawn.normal(3, 4, 4, 1))
    together = run(UncertaintyGuided(linear(5), (2, 2)), doubts)
    alone = run(UncertaintyGuided(linear(5), (2, 2)), doubts[1:2])
    assert (together[:, 1:2] == alone).all()
    assert not np.array_equal(together[:, 0], together[:, 1])


@pytest.mark.parametrize("cells", [(2, 2), (4, 4), (8, 8)])
def test_guided_inpainting_leaves_known_cells_out(cells):
    doubts = np.asarray(drawn.normal(2, 8, 8, 1))
    for make in (UncertaintyGuided, DualLoop):
        levels = run(make(linear(4), cells, HALF), doubts)
        rows = levels.shape[2]
        assert (levels[:, :, : rows // 2] == 0).all()
        assert (levels[0, :, rows // 2 :] == 1).all()
        assert (levels[-1] == 0).all()
        # the ranks of the unknown cells are those of a run on the lower half alone
        lower = run(make(linear(4), (cells[0] // 2, cells[1])), doubts[:, 4:])
        lower = np.repeat(np.repeat(lower, levels.shape[2] // cells[0], 2), levels.shape[3] // cells[1], 3)
        assert (levels[:, :, rows // 2 :] == lower).all()


def test_dual_loop_takes_confident_cells_at_once_and_the_others_in_parts():
    doubts = np.arange(10, dtype=np.float32).reshape(1, 2, 5, 1)
    levels = run(DualLoop(linear(2), (2, 5)), doubts)[:, 0].reshape(9, 10)
    np.testing.assert_allclose(levels[:, :4], np.repeat([[1], *[[0.5]] * 4, *[[0]] * 4], 4, 1), atol=1e-7)
    np.testing.assert_allclose(levels[:, 4:], np.repeat(np.linspace(1, 0, 9)[:, None], 6, 1), atol=1e-7)


def test_guided_schedules_need_a_log_variance():
    x = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    for schedule in (UncertaintyGuided(linear(2), (2, 2)), DualLoop(linear(2), (2, 2))):
        with pytest.raises(ValueError, match="expected a network with a log-variance head"):
            jax.eval_shape(
                lambda x, schedule=schedule: sample(
                    lambda x, times: Prediction(x, x, {}),
                    DDIM(RectifiedFlow()),
                    schedule,
                    jax.random.key(0),
                    x,
                    num_steps=schedule.num_steps,
                ),
                x,
            )
    for wrong in (
        lambda: UncertaintyGuided(linear(2), (2, 2), spread=1.0),
        lambda: DualLoop(linear(2), (2, 2), confident=1.0),
        lambda: DualLoop(linear(2), (2, 2), substeps=1),
    ):
        with pytest.raises(ValueError, match=r"expected (0 <|substeps >= 2)"):
            wrong()


# ----------------------------------------------------------------------------------------------------- RePaint
def test_repaint_costs_what_the_paper_says():
    assert repaint_cost(250) == (2410, 2160)
    path = repaint_path(250)
    assert path[0] == 250
    assert path[-1] == 0
    assert set(np.diff(path)) == {-1, 9}  # one call down, and perhaps ten levels up
    # every stretch of ten levels between the first jump and the last is resampled ten times
    visits = np.bincount(path)
    assert (visits[13:240] == 10).all()
    # each jump starts at noise index 0, 10, ..., 230, that is at level 1, 11, ..., 231
    below = (path[:-1] - 1)[np.diff(path) > 0]
    assert sorted(set(below)) == list(range(1, 232, 10))
    assert (np.unique(below, return_counts=True)[1] == 9).all()


@pytest.mark.parametrize("wrong", [(250, 0, 10), (10, 10, 10), (250, 10, 0)])
def test_impossible_jumps_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected (1 <= jump <= \d+|resample >= 1)"):
        repaint_path(*wrong)


def test_a_jump_of_one_level_repeats_each_step():
    assert repaint_path(3, 1, 2).tolist() == [3, 3, 2, 2, 1, 0]
    assert repaint_cost(100, 1, 10) == (991, 891)


def test_repaint_wastes_no_call_and_brings_the_two_sides_together():
    # two strongly correlated pixels, the first known to be 1: the second should be near its conditional mean
    data = gaussian((1, 2, 1))._replace(mean=np.zeros(2), cov=np.asarray([[0.25, 0.2], [0.2, 0.25]]))
    known = np.tile(np.float32([1, np.nan]).reshape(1, 1, 2, 1), (128, 1, 1, 1))
    mask = np.float32([0, 1]).reshape(1, 1, 2, 1)
    process, traces = RectifiedFlow(), []

    def denoise(x, times):
        traces.append(x.shape)
        return data.denoiser(process)(x, times)

    @functools.partial(jax.jit, static_argnums=0)
    def run(resample, key, known, mask):
        schedule, solver = repaint(process, linear(20), known, mask, jump=4, resample=resample)
        assert schedule.num_steps == repaint_cost(20, 4, resample)[0]
        x = start(process, schedule, key, known)
        return sample(denoise, solver, schedule, key, x, num_steps=schedule.num_steps)[0].x

    def ends(resample):
        x = np.asarray(run(resample, jax.random.key(0), known, mask))
        assert (x[:, :, 0] == 1).all()
        return x[:, 0, 1, 0]

    once, often = ends(1), ends(6)
    assert len(traces) == 2  # the network stands once in each loop's body, and each step of it is one call
    conditional = 0.2 / 0.25
    assert abs(often.mean() - conditional) < 0.6 * abs(once.mean() - conditional)
