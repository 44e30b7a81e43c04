"""What is saved comes back bit for bit, and nothing half-written or foreign ever does."""

import errno
import json
import os
import subprocess

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.records import differences, flatten
from asyncpatch_jax.training.step import adam, create

OPTIMIZER = adam(1e-2)
CONFIG = {"model": {"width": 3, "shape": (1, 2)}, "seed": 0}


def make_state(width=3, fill=0.0, name="w"):
    return create({"body": {name: jnp.full((width, 2), fill)}, "head": {"b": jnp.full((2,), fill)}}, OPTIMIZER)


def make_batches():
    dataset = grain.MapDataset.source(list(range(100))).shuffle(seed=1).repeat().batch(4)
    return iter(dataset.to_iter_dataset())


def shapes(state):
    return jax.eval_shape(lambda: state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_state_and_data_come_back_though_both_moved_on_at_once(tmp_path):
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state, batches, kept, ahead = make_state(), make_batches(), {}, {}
    with Checkpoints(tmp_path / "c", keep=2, record={"config": CONFIG}) as checkpoints:
        for step in (1, 2, 3):
            for _ in range(step):
                next(batches)
            state = bump(state)
            kept[step] = jax.tree.map(np.array, state)
            checkpoints.save(step, state, batches)
            state = bump(state)  # donated while the save is under way
            ahead[step] = next(batches)
        checkpoints.save(3, state, batches)  # there already: left as it is
        checkpoints.wait()
        assert checkpoints.steps == [2, 3]
    with Checkpoints(tmp_path / "c", keep=2, record={"config": CONFIG}) as checkpoints:
        assert checkpoints.latest == 3
        for step in (2, 3):
            batches = make_batches()
            assert_same(checkpoints.restore(shapes(state), batches, step), kept[step])
            np.testing.assert_array_equal(next(batches), ahead[step])
        found, step = checkpoints.restore_ema(shapes(state).params)
        assert step == 3
        assert_same(found, kept[3].ema)
        assert checkpoints.about()["config"] == {"model": {"width": 3, "shape": [1, 2]}, "seed": 0}


def saved(tmp_path, **settings):
    folder = tmp_path / "c"
    with Checkpoints(folder, record={"config": CONFIG}) as checkpoints:
        checkpoints.save(5, make_state(**settings), make_batches())
    return folder


def test_half_written_steps_are_never_picked_up(tmp_path):
    folder = saved(tmp_path)
    half = folder / "9.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "ema").mkdir()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps == [5]
        assert half.exists()  # a reader touches nothing
    with Checkpoints(folder, record={"config": CONFIG}) as checkpoints:
        assert checkpoints.steps == [5]
        checkpoints.save(9, make_state(fill=2.0), make_batches())
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps == [5, 9]
        assert float(checkpoints.restore_ema(shapes(make_state()).params)[0]["head"]["b"][0]) == 2.0


def test_a_checkpoint_of_another_model_is_refused_with_every_difference(tmp_path):
    folder = saved(tmp_path)
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(ValueError, match=r"body/w: 'float32\[3, 2\]' -> 'float32\[4, 2\]'"):
            checkpoints.restore(shapes(make_state(width=4)), make_batches())
        with pytest.raises(ValueError, match=r"(?s)body/v: '\(not there\)' ->.*body/w: .* -> '\(not there\)'"):
            checkpoints.restore_ema(shapes(make_state(name="v")).params)


def test_what_is_not_there_and_what_is_too_new(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Checkpoints(tmp_path / "none", read_only=True)
    with Checkpoints(tmp_path / "empty") as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*empty, got steps \[\]"):
            checkpoints.about()
        assert "no checkpoint was written yet" in checkpoints.advice()
    folder = saved(tmp_path)
    about = next((folder / "5" / "about").iterdir())
    about.write_text(json.dumps({"format": 99}))
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(FileNotFoundError, match=r"expected checkpoint 4 in .*, got steps \[5\]"):
            checkpoints.restore_ema(shapes(make_state()).params, 4)
        with pytest.raises(ValueError, match="format 3, got 99"):
            checkpoints.restore_ema(shapes(make_state()).params)
    with pytest.raises(ValueError, match="at least one checkpoint, got 0"):
        Checkpoints(folder, keep=0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where the machine lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(small_disk):
    state, batches = make_state(fill=1.0), make_batches()
    message = r"no space left .* the last good checkpoint is step 1 in .*; the same command continues"
    with (  # noqa: PT012, the error may come late
        pytest.raises(OSError, match=message) as caught,
        Checkpoints(small_disk / "c", record={"config": CONFIG}) as checkpoints,
    ):
        checkpoints.save(1, state, batches)
        checkpoints.wait()
        with pytest.raises(OSError, match="MB of space for a checkpoint"):
            checkpoints.check_room(make_state(width=100_000))
        (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
        checkpoints.save(2, make_state(fill=2.0), batches)
        checkpoints.wait()
    assert caught.value.errno == errno.ENOSPC
    (small_disk / "filler").unlink()
    with Checkpoints(small_disk / "c", record={"config": CONFIG}) as after:
        assert after.steps == [1]
        assert_same(after.restore(shapes(state), make_batches()), state)
        after.save(2, make_state(fill=2.0), batches)
        after.wait()
        assert after.steps == [1, 2]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "x"), ValueError("RESOURCE_EXHAUSTED: No space left on device")]
)
def test_every_spelling_of_a_full_disk(tmp_path, monkeypatch, error):
    def full(*args, **settings):
        raise error

    with Checkpoints(tmp_path / "c", record={"config": CONFIG}) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(OSError, match="no checkpoint was written yet"):
            checkpoints.save(1, make_state(), make_batches())


def test_differences_of_settings():
    old = {"a": {"b": 1, "c": (1, 2)}, "d": None, "gone": 1}
    new = {"a": {"b": 2, "c": [1, 2]}, "d": None, "fresh": {"x": 3}}
    assert flatten(old) == {"a.b": 1, "a.c": [1, 2], "d": None, "gone": 1}
    assert differences(old, new) == ["a.b: 1 -> 2", "fresh.x: '(not there)' -> 3", "gone: 1 -> '(not there)'"]
    assert differences(old, new, ignore=("a", "gone", "fresh.x")) == []
    assert differences({"ab": 1}, {"ab": 2}, ignore=("a",)) == ["ab: 1 -> 2"]
    # a setting of which a run of before knows nothing, at its default
    assert differences({"a": 1}, {"a": 1, "new": None}) == differences({"a": 1, "gone": None}, {"a": 1}) == []
