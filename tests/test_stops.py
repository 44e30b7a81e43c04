"""Signals while training: what is saved before pictures are drawn, and how soon a process ends."""

import hashlib
import os
import signal
import time
import warnings

import jax.numpy as jnp
import pytest

from asyncpatch_jax.training import loop
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import TrainState


class Saved(Checkpoints):
    """Stands for checkpoints, and keeps a diary."""

    def __init__(self):
        self.diary = []

    def save(self, step, state, batches):
        self.diary.append(f"save {step}")

    def wait(self):
        self.diary.append("wait")

    def advice(self):
        return ""


def fit(saved, on_step=lambda done: None, on_sample=None, sample_every=2):
    ones = {"w": jnp.ones(2)}
    state = TrainState(0, ones, ones, ())
    draw = on_sample or (lambda done, state: saved.diary.append(f"draw {done}"))
    metrics = {"finite": jnp.ones(()), "loss": jnp.ones(())}
    return loop.fit(
        state,
        iter(range(99)),
        lambda state, batch: (state, metrics),
        steps=3,
        checkpoints=saved,
        checkpoint_every=99,
        log_every=1,
        sample_every=sample_every,
        on_step=on_step,
        on_log=lambda done, metrics: None,
        on_sample=draw,
    )


def test_all_is_saved_before_pictures_are_drawn():
    saved = Saved()
    assert fit(saved)[1]
    assert saved.diary == ["save 2", "wait", "draw 2", "save 3", "wait", "draw 3", "wait"]


@pytest.mark.parametrize(
    ("step", "sample_every", "diary", "done"),
    [
        (1, 2, ["save 1", "wait"], False),
        (2, 2, ["save 2", "wait"], False),
        (3, 2, ["save 2", "wait", "draw 2", "save 3", "wait"], False),  # the next start draws the last pages
        (3, 0, ["save 3", "wait"], True),
    ],
)
def test_who_is_asked_to_stop_draws_nothing_any_more(step, sample_every, diary, done):
    saved = Saved()
    asked = fit(saved, lambda now: now == step and os.kill(os.getpid(), signal.SIGTERM), sample_every=sample_every)
    assert saved.diary == diary
    assert asked[1] == done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_pictures_are_drawn_is_honoured_at_once(tmp_path, number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the threads of others do nothing in the child
        child = os.fork()
    if not child:
        try:
            with loop.StopSignal() as stop, stop.at_once():
                (tmp_path / "drawing").touch()
                hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000_000)  # minutes in which this thread runs no Python
        finally:
            os._exit(3)
    while not (tmp_path / "drawing").exists():
        time.sleep(0.01)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    before = time.monotonic()
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0
    assert time.monotonic() - before < 5


def test_the_signals_are_as_before_when_pictures_are_done():
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    fit(Saved())
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
