"""One training in a folder: who comes second is told who is there, and the dead hold nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from asyncpatch_jax.training import lock
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.lock import Lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("BEAT", 0.05), ("PATIENCE", 0.3), ("_SETTLE", 0.1)):
        monkeypatch.setattr(lock, name, seconds)


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "run" / "lock")


@pytest.fixture
def no_kernel(monkeypatch):
    """A file system that has no locks: another machine sees the file and nothing else."""
    import fcntl

    def refused(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)


def other(path, **changes):
    """The lock of a process on another machine, as it left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"host": "far", "machine": "another boot", "pid": 7, "since": "yesterday", "token": "t", "beat": time.time()}
    path.write_text(json.dumps({**own, **changes}).ljust(511) + "\n")


def test_the_second_is_told_who_the_first_is_until_it_has_ended(path):
    first = Lock(path)
    with pytest.raises(ValueError, match=rf"run to be free, got process {os.getpid()} on .*, since \d{{4}}-"):
        Lock(path)
    first.check()
    first.release()
    assert not path.exists()
    Lock(path).release()


def test_a_process_that_was_killed_holds_nothing(path):
    hold = "import sys; from etils import epath; from asyncpatch_jax.training.lock import Lock\n"
    hold += "lock = Lock(epath.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"got process {process.pid} on"):
        Lock(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begin = time.monotonic()
    Lock(path).release()
    assert time.monotonic() - begin < lock.PATIENCE  # at once: the kernel knows


def test_another_machine_s_lock_is_watched_and_taken_over_if_it_is_dead(path):
    other(path)
    with pytest.warns(UserWarning, match="process 7 on far, since yesterday; waiting") as told:
        held = Lock(path)
    assert "taken over" in str(told[-1].message)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    held.release()
    # after minutes without a sign of life nobody waits
    other(path, beat=time.time() - 3600)
    begin = time.monotonic()
    Lock(path).release()
    assert time.monotonic() - begin < lock.PATIENCE


def test_another_machine_that_lives_is_not_disturbed(path, no_kernel, monkeypatch):
    """Both without locks of the kernel, which is all that a bucket or a FUSE mount has."""
    monkeypatch.setattr(lock, "PATIENCE", 20.0)  # a sign of life ends the wait
    first = Lock(path)
    with pytest.warns(UserWarning, match="waiting"), pytest.raises(ValueError, match=f"got process {os.getpid()} on"):
        Lock(path)
    first.check()
    first.release()
    Lock(path).release()


def test_of_two_that_come_at_once_one_goes(path, no_kernel, monkeypatch):
    sleep = time.sleep

    def overtaken(seconds):
        if seconds == lock._SETTLE:
            other(path)
        sleep(seconds)

    monkeypatch.setattr(lock.time, "sleep", overtaken)
    with pytest.raises(ValueError, match="got process 7 on far"):
        Lock(path)
    assert json.loads(path.read_text())["pid"] == 7


def test_who_was_held_dead_writes_no_more(path):
    held = Lock(path)
    other(path)
    end = time.monotonic() + 10
    while held._taken_by is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(ValueError, match="got process 7 on far, since yesterday, who took it over"):
        held.check()
    held.release()
    assert path.exists()  # it is theirs


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "null"])
def test_a_file_that_says_nothing_holds_nothing(path, content):
    path.parent.mkdir()
    path.write_text(content)
    Lock(path).release()


def test_buckets_have_locks_too(path, monkeypatch):
    """Through files alone, as it is for any path with a scheme."""
    assert lock._local(path)
    assert not lock._local(epath.Path("gs://bucket/run/lock"))
    monkeypatch.setattr(lock, "_local", lambda path: False)
    monkeypatch.setattr(lock, "PATIENCE", 20.0)  # a sign of life ends the wait
    first = Lock(path)
    with pytest.warns(UserWarning, match="waiting"), pytest.raises(ValueError, match=f"got process {os.getpid()} on"):
        Lock(path)
    first.release()
    assert not path.exists()


def test_checkpoints_hold_it_and_readers_do_not_care(tmp_path):
    with Checkpoints(tmp_path / "c"):
        with pytest.raises(ValueError, match="which trains there; wait until it has ended"):
            Checkpoints(tmp_path / "c")
        Checkpoints(tmp_path / "c", read_only=True).close()
    with pytest.raises(KeyError), Checkpoints(tmp_path / "c"):
        raise KeyError
    Checkpoints(tmp_path / "c").close()
