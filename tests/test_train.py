"""Training from the command line: it learns, survives kills bit for bit, and stops cleanly when it goes wrong."""

import os
import random
import re
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.training.checkpoints import Checkpoints
from launch import train
from launch.shared import build, cli, datasets, pictures, records
from tests import OLDER_EMITTERS, mains
from tests.programs import Program

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", "2"))  # KILLS=10 for a long look
SMALL = {
    "times.name": "synchronous",  # compiles fastest
    "model.name": "dit",
    "model.preset": "",
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 1,
    "model.patch": 4,
    "optim.warmup": 2,
    "train.batch": 8,
    "train.steps": 24,
    "train.checkpoint_every": 3,
    "train.log_every": 5,
    "train.sample_every": 0,
}


def small(workdir, **more):
    """A network that compiles in seconds."""
    config = cli.load(str(ROOT / "configs" / "digits.py"))
    config.update_from_flattened_dict({**SMALL, "workdir": str(workdir), **more})
    return config


def leaves(workdir, step):
    """Every array of a checkpoint's state."""
    config = small(workdir)
    network = build.untrained(config, datasets.dataset(config))
    like = jax.eval_shape(lambda: train.create(jax.tree.map(jnp.zeros_like, network.params), build.optimizer(config)))
    with Checkpoints(Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        stream = train.stream(config, datasets.dataset(config), build.mesh(config))
        state = checkpoints.restore(like, stream, step)
    return jax.tree.map(np.asarray, jax.tree.leaves(state)), stream.get_state()


def start(workdir):
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {OLDER_EMITTERS}"}
    return Program("launch.train", f"--config.workdir={workdir}", *flags, environment=environment, cwd=ROOT)


def stop_at(process, step, number):
    """Send a signal once the progress bar has reached a step; returns all that was written."""
    seen = b""
    while chunk := process.stdout.read1():
        seen += chunk
        shown = re.findall(rb"(\d+)/24 ", seen)
        if number and shown and int(shown[-1]) >= step:
            process.send_signal(number)
            number = None
    process.wait()
    return seen.decode()


def test_a_run_that_is_killed_again_and_again_ends_where_an_undisturbed_one_does(tmp_path, capsys):
    rng = random.Random(time.time_ns())
    stops = [*[signal.SIGKILL] * KILLS, signal.SIGTERM]
    rng.shuffle(stops)
    steps = sorted(rng.sample(range(1, 18), len(stops)))
    print("signals", list(zip(steps, stops, strict=True)))

    for step, number in zip(steps, stops, strict=True):
        process = start(tmp_path / "killed")
        text = stop_at(process, step, number)
        if number == signal.SIGTERM:
            assert process.returncode == 0, text
            assert "stopped as asked to" in text
        else:
            assert process.returncode == -signal.SIGKILL, text
    # the last start of the one and the only one of the other, both on their way to the end
    capsys.readouterr()
    train.run(small(tmp_path / "killed"))
    assert "continuing" in capsys.readouterr().out
    train.run(small(tmp_path / "whole"))
    assert "continuing" not in capsys.readouterr().out

    (killed, data_killed), (whole, data_whole) = leaves(tmp_path / "killed", 24), leaves(tmp_path / "whole", 24)
    assert data_killed == data_whole
    assert len(killed) == len(whole) > 20
    for a, b in zip(killed, whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def drawn_parameters(monkeypatch):
    mains.begin_with_drawn_parameters(monkeypatch)


def begun(workdir, config, data=None):
    """A folder as a run leaves it, but for the network, which is a number."""
    record = records.record(config, data or datasets.dataset(config))
    with Checkpoints(workdir / "checkpoints", record=record) as checkpoints:
        checkpoints.save(1, train.create({"w": jnp.zeros(1)}, build.optimizer(config)), Position())
    records.write(workdir, record)


class Position:
    def get_state(self):
        return {"next_index": 0}


def test_a_folder_with_a_run_of_other_settings_is_left_alone(tmp_path):
    config = small(tmp_path / "run")
    begun(tmp_path / "run", config)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"(?s)other settings .*model.depth: 1 -> 2.*optim.b1: 0.9 -> 0.5"):
        train.run(small(tmp_path / "run", **{"model.depth": 2, "optim.b1": 0.5}))
    # with a decay that ends at the last step, the number of steps is what is learned; else it may grow
    with pytest.raises(ValueError, match=r"train.steps: 24 -> 50"):
        train.run(small(tmp_path / "run", **{"train.steps": 50}))
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.usefixtures("drawn_parameters")
def test_training_goes_on_loads_and_starts_another_run(tmp_path, capsys):
    short = {"train.steps": 2, "train.checkpoint_every": 2, "train.log_every": 1, "optim.schedule": "constant"}
    first = tmp_path / "first"
    train.run(small(first, **short))
    train.run(small(first, **short))
    assert "nothing to do: 2 steps are done" in capsys.readouterr().out
    train.run(small(first, **{**short, "train.steps": 4}))
    assert "continuing" in capsys.readouterr().out
    assert list(first.glob("events.out.tfevents.*"))

    run = build.load_run(first)
    assert (run.step, run.num_classes, run.shape, run.class_names[3]) == (4, 10, (8, 8, 1), "3")
    older = build.load_run(first, 2)
    assert not np.array_equal(run.params["patches"]["kernel"], older.params["patches"]["kernel"])

    # the head alone, on what was just trained, in a folder of its own
    head = tmp_path / "head"
    alone = {
        **short,
        "train.init": str(first),
        "optim.only": "log_variance",
        "optim.schedule": "cosine",
        "optim.warmup": 1,
    }
    train.run(small(head, **alone))
    trained = build.load_run(head).params
    for name, module in run.params.items():
        same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (module, trained[name])), strict=True)]
        assert all(same) == (name != "log_variance"), name

    # its cosine has come to its end, and what is said then can be followed
    capsys.readouterr()
    train.run(small(head, **alone))
    said = dict(re.findall(r"--config\.(\S+)=(\S+)", capsys.readouterr().out))
    assert said == {"train.init": str(head), "workdir": f"{head}_2"}
    train.run(small(**{**alone, **said}))
    assert build.load_run(f"{head}_2").step == 2

    with pytest.raises(ValueError, match=r"(?s)expected this model in .*got another.*kernel"):
        train.run(small(tmp_path / "wide", **{**short, "train.init": str(first), "model.width": 32}))
    with pytest.raises(FileNotFoundError, match="expected a trained run"):
        train.run(small(tmp_path / "none", **{**short, "train.init": str(tmp_path / "nothing")}))


@pytest.mark.usefixtures("drawn_parameters")
def test_a_loss_that_explodes_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    wild = {"optim.learning_rate": 1e30, "optim.warmup": 0, "optim.schedule": "constant", "optim.clip": 0.0}
    quick = {"train.steps": 6, "train.checkpoint_every": 1, "train.log_every": 6}
    with pytest.raises(FloatingPointError, match=r"step \d is not finite .*; .* lower the learning rate") as caught:
        train.run(small(tmp_path / "wild", **wild, **quick))
    step = int(re.search(r"step (\d)", str(caught.value)).group(1))
    with Checkpoints(tmp_path / "wild" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest == (step - 1 or None)
        if step > 1:
            assert f"the last good checkpoint is step {step - 1}" in str(caught.value)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(build.load_run(tmp_path / "wild").params))


@pytest.mark.usefixtures("drawn_parameters")
def test_parameters_that_overflow_are_not_saved(tmp_path):
    wild = {"optim.learning_rate": 1e39, "optim.warmup": 0, "optim.schedule": "constant"}
    with pytest.raises(FloatingPointError, match="parameters are not finite after step 1, which is not saved"):
        train.run(small(tmp_path / "wild", **wild, **{"train.steps": 2, "train.checkpoint_every": 1}))
    with Checkpoints(tmp_path / "wild" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("times.grid", (3, 3), r"tile 8x8 pixels, got \(3, 3\)"),
        ("times.name", "perlinn", "out of asyncpatch, synchronous, .* got 'perlinn'"),
        ("times.sharpness", 2.0, "Synchronous takes of config.times only .*, got sharpness"),
        ("data.size", 10, "multiples of 4, got 10x10"),
        ("data.name", "folder", "--config.data.path=DIRECTORY"),
        ("data.channels", 3, "channels = 1 for digits"),
        ("model.base", 32, "DiT takes of config.model only .*, got base"),
        ("model.patch", 3, "multiples of 3, got 8x8"),
        ("model.dtype", "float16", "float32, bfloat16, got 'float16'"),
        ("model.preset", "L/3", "out of tiny, S/2"),
        ("process", "vp", "rectified_flow, cosine, discrete, got 'vp'"),
        ("kind", "x", "out of x0, eps, v, velocity"),
        ("loss.weight", "snr", "uniform, sid2, got 'snr'"),
        ("loss.label_dropout", 1.5, r"in \[0, 1\]"),
        ("optim.schedule", "linear", "constant, cosine, rsqrt, got 'linear'"),
        ("optim.accumulate", 3, "divisor of the batch 8, got 3"),
        ("optim.accumulate", 0, "accumulate of at least 1, got 0"),
        ("optim.ema", 1.0, "ema < 1, got 1.0"),
        ("optim.only", "head", "log_variance, .* alone, got 'head'"),
        ("train.batch", 5000, "expected a batch"),
        ("train.keep", 0, "keep >= 1"),
        ("sample.solver", "dpm", "ddim, ddpm, euler, heun, dpm2m, got 'dpm'"),
        ("sample.grid", "log", "linear, cosine, shifted, logsnr, got 'log'"),
        ("sample.steps", 0, "num_steps >= 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, name, value, message):
    config = small(tmp_path / "run")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=message):
        train.run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("drawn_parameters")
def test_the_last_pages_are_made_up_for_if_the_run_ended_before_them(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(pictures, "write_samples", lambda folder, run, key: made.append(("samples", run.step)))

    def killed(folder, run, dataset, key):
        raise KeyboardInterrupt

    def whole(folder, run, dataset, key):
        made.append(("all", run.step))
        folder.mkdir(parents=True)
        (folder / "uncertainty.gif").touch()
        return []

    config = small(tmp_path / "run", **{"train.steps": 4, "train.sample_every": 2, "optim.schedule": "constant"})
    monkeypatch.setattr(pictures, "write_all", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run(config)
    monkeypatch.setattr(pictures, "write_all", whole)
    train.run(config)
    train.run(config)
    assert made == [("samples", 2), ("all", 4)]
