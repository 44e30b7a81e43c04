"""One training in a folder at a time: a lock that names its holder, and that no dead process holds.

The kernel holds it for a process (flock, which network file systems share between machines), so that it is gone with
the process, however that ends. Where machines share a folder and no locks (buckets, FUSE mounts, some clusters), the
holder also writes the file anew every few seconds: who finds another machine's file watches it, and takes the lock
over if nothing moves. No machine's clock is compared with another's, but to see what is very old at once.
"""

import json
import os
import platform
import secrets
import threading
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

BEAT = 20.0  # seconds between two signs of life
PATIENCE = 70.0  # without one, a holder is dead
_OLD = 600.0  # clocks of machines differ by less
_SETTLE = 2.0  # until two who write a bucket at once both see who came last
_SIZE = 512  # of the file: signs of life are written in place, also on a full disk


class Holder(NamedTuple):
    """Who holds a lock."""

    host: str
    machine: str  # this boot of this machine
    pid: int
    since: str
    token: str
    beat: float  # seconds since 1970, at its last sign of life

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _own() -> Holder:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return Holder(platform.node(), _machine(), os.getpid(), since, secrets.token_hex(8), time.time())


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.getnode())


class Lock:
    """Takes the lock at `path`, waiting while a dead holder may still be alive. `release` gives it back.

    Raises:
        ValueError: another process holds it; says which.
    """

    def __init__(self, path: epath.Path):
        self._path, self._own = path, _own()
        self._taken_by: Holder | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        kernel: bool
        self._file: Any
        self._file, kernel = _open(path) if _local(path) else (None, False)
        try:
            holder = _read(path)
            if holder and not (kernel and holder.machine == self._own.machine):
                _watch(path, holder)
            self._write()
            if not kernel:
                time.sleep(_SETTLE)
                if (last := _read(path)) and last.token != self._own.token:
                    raise _refusal(path, last)
        except BaseException:
            if self._file is not None:
                os.close(self._file)
            raise
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Call it before anything is written that another process would write too.

        Raises:
            ValueError: another process took the lock, which held this one dead.
        """
        if self._taken_by:
            raise ValueError(f"expected to hold {self._path} still, got {self._taken_by}, who took it over")

    def release(self) -> None:
        """Give it back."""
        self._done.set()
        self._thread.join()
        with suppress(OSError):
            if not self._taken_by:
                self._path.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)

    def _live(self) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):  # of a network that is away for a moment
                last = _read(self._path)
                if last and last.token != self._own.token:
                    self._taken_by = last
                    return
                self._own = self._own._replace(beat=time.time())
                self._write()

    def _write(self) -> None:
        content = json.dumps(self._own._asdict()).ljust(_SIZE - 1) + "\n"
        if self._file is None:
            self._path.write_text(content)
        else:
            os.pwrite(self._file, content.encode(), 0)
            os.fsync(self._file)


def _local(path: epath.Path) -> bool:
    return "://" not in str(path)


def _open(path: epath.Path) -> tuple[int, bool]:
    """The file, and whether the kernel holds it for us; it does not on file systems that have no locks."""
    import fcntl

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise _refusal(path, _read(path)) from error
        except OSError:
            return file, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file, True
        os.close(file)  # its holder gave it back, and with it the file, since we opened it


def _read(path: epath.Path) -> Holder | None:
    """Who the file names; None if there is none, or it is being written."""
    try:
        holder = Holder(**json.loads(path.read_text()))
        return holder._replace(beat=float(holder.beat))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _watch(path: epath.Path, holder: Holder) -> None:
    """Return once the holder is known to be dead.

    Raises:
        ValueError: it lives.
    """
    if time.time() - holder.beat > _OLD:
        return
    warnings.warn(f"{path} names {holder}; waiting up to {PATIENCE:.0f} s for a sign of life", stacklevel=4)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT))
        now = _read(path)
        if now is None:
            return
        if now != holder:
            raise _refusal(path, now)
    warnings.warn(f"there was none; its lock {path} is taken over", stacklevel=4)


def _refusal(path: epath.Path, holder: Holder | None) -> ValueError:
    who = holder or "a process that does not say its name"
    return ValueError(f"expected {path.parent} to be free, got {who}, which trains there; wait until it has ended")
