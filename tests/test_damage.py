"""Damage of every kind to every file of a checkpoint: what comes back is what was saved, or an older whole step."""

import gc
import json
import os
import random
import re
import shutil
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from asyncpatch_jax.training import stored
from asyncpatch_jax.training.checkpoints import Checkpoints, recorded
from asyncpatch_jax.training.step import adam, create
from asyncpatch_jax.training.stored import DamagedError

EVERY_BYTE = bool(os.environ.get("EVERY_BYTE"))  # for a long look
OPTIMIZER = adam(1e-2)
DATA = {"num_classes": 2, "class_names": ["a", "b"], "shape": [8, 8, 1]}
RECORD = {"config": {"seed": 0}, "data": {**DATA, "images": 3}}


FORGET = stored._forget


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """To collect what a failed read leaves takes its time."""
    monkeypatch.setattr(stored, "_forget", lambda: None)


class Stream:
    """A stream of batches that is nothing but its position."""

    def __init__(self, position=0):
        self.state = {"next_index": position}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def state_of(step):
    rng = np.random.default_rng(step)
    return create({"a": {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}, "b": jnp.full((2,), step)}, OPTIMIZER)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, record=RECORD) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), Stream(step))
    return folder


def damages(content):
    """Ways to spoil a file, by name; None: it is gone."""
    rng = random.Random(time.time_ns())
    yield "gone", None
    yield "half", content[: rng.randrange(len(content))]
    places = range(len(content)) if EVERY_BYTE else rng.sample(range(len(content)), min(1, len(content)))
    for place in places:
        bit = rng.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_damage_to_any_file_is_found_or_does_not_matter(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    like, fell_back = jax.eval_shape(lambda: state_of(0)), set()
    with Checkpoints(folder, read_only=True) as checkpoints:
        for path in files(folder / "2"):
            content = (folder / "2" / path).read_bytes()
            for name, spoilt in damages(content):
                (folder / "2" / path).unlink() if spoilt is None else (folder / "2" / path).write_bytes(spoilt)
                stream = Stream()
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    state = checkpoints.restore(like, stream)
                step = stream.state["next_index"]
                assert same(state, state_of(step)), (path, name)
                assert step == 2 or any("checkpoint 2" in str(one.message) for one in told), (path, name)
                if step == 1:
                    fell_back.add((str(path), name.split()[0]))
                (folder / "2" / path).write_bytes(content)
    # everything that is read is missed when it is gone, cut off or changed
    for read in ("about/metadata", "data/metadata", "ema/manifest.ocdbt", "train/manifest.ocdbt"):
        assert {(read, kind) for kind in ("gone", "half")} <= fell_back, read
        assert (read, "bit") in fell_back, read
    assert ("commit_success.txt", "gone") in fell_back
    for item in ("ema", "train"):
        assert any(path.startswith(f"{item}/") and "/d/" in path for path, kind in fell_back if kind == "bit")


def test_numbers_that_are_others_are_found_by_their_checksums(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    # another step's arrays, each file of them whole
    shutil.rmtree(folder / "2" / "ema")
    shutil.copytree(folder / "1" / "ema", folder / "2" / "ema")
    like = jax.eval_shape(lambda: state_of(0))
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.warns(
            UserWarning, match=r"checkpoint 2 in .* is damaged .*ema/a/w.* Using checkpoint 1, the newest"
        ):
            params, step = checkpoints.restore_ema(like.ema)
        assert step == 1
        assert same(params, state_of(1).ema)
        with pytest.raises(DamagedError, match=r"checkpoint 2 .*not what was written in 2 of its arrays"):
            checkpoints.restore_ema(like.ema, 2)  # asked for
    with Checkpoints(folder, read_only=True, fall_back=False) as checkpoints, pytest.raises(DamagedError, match="off"):
        checkpoints.restore(like, Stream())


def test_what_is_copied_in_part_is_not_taken_for_whole(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    (folder / "7").mkdir()
    shutil.copytree(folder / "2", folder / "5")
    (folder / "5" / "commit_success.txt").unlink()
    shutil.copytree(folder / "2", folder / "4")
    shutil.rmtree(folder / "4" / "train")
    like, stream = jax.eval_shape(lambda: state_of(0)), Stream()
    with Checkpoints(folder, keep=1, record=RECORD) as checkpoints:
        with pytest.warns(
            UserWarning, match=r"checkpoint 7 .* no commit_success.txt.*checkpoint 5.*checkpoint 4 .*train"
        ):
            state = checkpoints.restore(like, stream)
        assert same(state, state_of(2))
        # training comes to the same step again: nothing of what was there is lost, or in the way
        with pytest.warns(UserWarning, match="damaged checkpoint 5 was moved to .*checkpoints_damaged/5"):
            checkpoints.save(5, state_of(5), Stream(5))
        checkpoints.wait()
        assert checkpoints.steps == [5]
        assert same(checkpoints.restore(like, stream), state_of(5))
    assert sorted(path.name for path in (tmp_path / "checkpoints_damaged").iterdir()) == ["4", "5", "7"]
    assert files(tmp_path / "checkpoints_damaged" / "5") == [
        p for p in files(whole / "2") if p.name != "commit_success.txt" or len(p.parts) > 1
    ]


def test_nothing_whole_is_an_error_that_names_all(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        (folder / str(step)).mkdir(parents=True)
    with (
        Checkpoints(folder, record=RECORD) as checkpoints,
        pytest.raises(DamagedError, match=r"expected a whole checkpoint in .*checkpoint 2 .*checkpoint 1 "),
    ):
        checkpoints.restore(jax.eval_shape(lambda: state_of(0)), Stream())
    assert files(folder) == []  # and nothing was changed


@pytest.mark.parametrize(
    "error", [MemoryError(), PermissionError("no"), ValueError("UNAVAILABLE: the network is away")]
)
def test_trouble_elsewhere_is_not_called_damage(whole, monkeypatch, error):
    def trouble(*args, **more):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", trouble)
    with Checkpoints(whole, read_only=True) as checkpoints, pytest.raises(type(error)) as caught:
        checkpoints.restore_ema(jax.eval_shape(lambda: state_of(0)).ema)
    assert not isinstance(caught.value, DamagedError)


def test_another_optimiser_is_no_damage(whole):
    state = state_of(0)
    other = create(state.params, adam(1e-2, only="a"))
    with (
        Checkpoints(whole, read_only=True) as checkpoints,
        pytest.raises(ValueError, match=r"expected a checkpoint of this optimiser, got one of another") as caught,
    ):
        checkpoints.restore(jax.eval_shape(lambda: other), Stream())
    assert not isinstance(caught.value, DamagedError)


def test_what_a_folder_holds_is_read_from_its_checkpoints(whole, tmp_path):
    assert recorded(whole.parent, "run.json", "data") == RECORD
    assert recorded(tmp_path, "run.json", "data") is None
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    (folder / "2" / "about" / "metadata").write_text("{}")
    assert recorded(tmp_path, "run.json", "data") == RECORD
    with pytest.raises(DamagedError):
        recorded(tmp_path, "run.json", "data", fall_back=False)
    # where a file of that name says something else, checkpoints count
    Path(tmp_path / "run.json").write_text('{"config": 1, "data": 2}')
    assert recorded(tmp_path, "run.json", "data") == RECORD


def test_checkpoints_of_before_there_were_checksums_are_still_read(whole, tmp_path):
    """As format 2 had them: no seal, no checksums, and what the run is in run.json alone."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "2", folder / "2")
    about = json.loads((folder / "2" / "about" / "metadata").read_text())
    old = {"format": 2, "config": about["config"], "parameters": about["parameters"]}
    (folder / "2" / "about" / "metadata").write_text(json.dumps(old))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert same(checkpoints.restore(jax.eval_shape(lambda: state_of(0)), Stream()), state_of(2))
    assert recorded(tmp_path, "run.json", "data") == {"config": RECORD["config"]}
    (tmp_path / "run.json").write_text(json.dumps({"config": {"seed": 5}, "data": {**DATA, "images": 7}}))
    assert recorded(tmp_path, "run.json", "data") == {"config": RECORD["config"], "data": {**DATA, "images": 7}}
    unsealed = {name: value for name, value in about.items() if name != "seal"}
    (folder / "2" / "about" / "metadata").write_text(json.dumps(unsealed))
    with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(DamagedError):
        checkpoints.about()
    # one bit of the format's number makes today's look like it
    (folder / "2" / "about" / "metadata").write_text(json.dumps({**about, "format": 2}))
    with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(DamagedError):
        checkpoints.about()


def test_damage_is_told_in_a_line_and_nothing_else_is_printed(whole, tmp_path, monkeypatch, recwarn):
    """Orbax leaves reads under way when one fails; what becomes of them is of no use to anybody."""
    folder, printed = tmp_path / "checkpoints", []
    shutil.copytree(whole, folder)
    for path in (folder / "2" / "train").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setattr(stored, "_forget", FORGET)
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    gc.freeze()  # what other tests have made is not looked through
    try:
        with Checkpoints(folder, read_only=True) as checkpoints:
            checkpoints.restore(jax.eval_shape(lambda: state_of(0)), Stream())
        gc.collect()
    finally:
        gc.unfreeze()
    assert not printed
    (warning,) = recwarn
    assert re.fullmatch(r"checkpoint 2 in .* Using checkpoint 1, the newest that is whole", str(warning.message))
