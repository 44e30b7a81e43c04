"""A checkpoint on disk: what it holds comes back as it was saved, or it is said to be damaged.

Every number of it is in a checksum: arrays by `checksums`, JSON by a hash. Files are not looked at as files: a change
that changes nothing of what is read does not matter.
"""

import gc
import itertools
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
from etils import epath

from asyncpatch_jax import sharding
from asyncpatch_jax.training.checksums import checksums
from asyncpatch_jax.training.records import differences, digest, shortened, summary, unsealed

FORMAT = 3
_UNSEALED = 2  # the format before there were checksums
_MARKER = "commit_success.txt"  # what Orbax writes last
# errors that do not tell of what was read, but of the machine or the way there
_ELSEWHERE = (MemoryError, PermissionError, ConnectionError, TimeoutError, jax.errors.JaxRuntimeError)
_ELSEWHERE_SIGNS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")

_LONGEST = 3600  # seconds that processes wait for each other
_meetings = itertools.count()

T = TypeVar("T")


class DamagedError(ValueError):
    """A checkpoint does not hold what was saved."""


def anywhere(flag: bool) -> bool:
    """Whether the flag is up in any process; all ask alike, and wait for each other."""
    if jax.process_count() == 1:
        return flag
    import orbax.checkpoint as ocp

    # devices wait for half a minute at most on CPUs, and one process may have read, or looked for a lock, for longer
    meet = ocp.multihost.get_barrier_sync_fn()
    meet(key=f"asyncpatch_jax_{next(_meetings)}", timeout_ms=_LONGEST * 1000)
    return bool(sharding.any_process(flag))


def listed(folder: epath.Path) -> list[int]:
    """All steps in a folder that were written to their end, damaged or not."""
    if not folder.exists():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name) and path.is_dir()]
    if "://" in str(folder):
        # a bucket has no renaming: the folder of a step that is being written, or was when its process was killed, has
        # its name too, and Orbax clears it away
        found = [path for path in found if (path / _MARKER).exists()]
    return sorted(int(path.name) for path in found)


def check_same(folder: epath.Path, about: Mapping[str, Any], params: Any, opt_state: Any = None) -> None:
    """Raise ValueError if a checkpoint says that it is of other parameters, or of another optimiser's state."""
    kinds = [("model", "parameter", "parameters", params)]
    if opt_state is not None and "optimiser" in about:
        kinds.append(("optimiser", "its state", "optimiser", opt_state))
    for kind, what, key, tree in kinds:
        if lines := differences(about[key], summary(tree)):
            raise ValueError(
                f"expected a checkpoint of this {kind}, got one of another in {folder} "
                f"({what}: checkpoint -> {kind}):{shortened(lines)}"
            )


class Stored(NamedTuple):
    """One step. In several processes all read it alike, and all raise if one cannot."""

    folder: epath.Path
    step: int

    def about(self) -> dict[str, Any]:
        """What it says of itself; what was written before there were checksums has "format" 2 and no "checksums".

        Raises:
            DamagedError: it cannot be read, or is not what was written.
            ValueError: a format of a later version.
        """
        import orbax.checkpoint as ocp

        path = self.folder / str(self.step)

        def read() -> dict[str, Any]:
            if not (path / _MARKER).exists():
                raise ValueError(f"no {_MARKER}: it was not written, or not copied, to its end")
            content = dict(ocp.JsonCheckpointHandler().restore(path / "about"))
            theirs = content.get("format")
            if "seal" not in content and isinstance(theirs, int) and (theirs == _UNSEALED or theirs > FORMAT):
                return content
            return unsealed(content)

        about = self._whole("about", read)
        if about.get("format") not in (FORMAT, _UNSEALED):
            raise ValueError(f"expected a checkpoint of format {FORMAT}, got {about.get('format')} in {self.folder}")
        return about

    def position(self, about: Mapping[str, Any]) -> Any:
        """Of the stream of batches. Raises DamagedError."""
        import orbax.checkpoint as ocp

        def read() -> Any:
            position = ocp.JsonCheckpointHandler().restore(self.folder / str(self.step) / "data")
            if "checksums" in about and digest(position) != about["checksums"]["data"]:
                raise ValueError("not what was written")
            return position

        return self._whole("data", read)

    def arrays(self, about: Mapping[str, Any], likes: Mapping[str, Any]) -> dict[str, Any]:
        """Items by name, in shapes and placement of `likes`. Raises DamagedError."""
        import orbax.checkpoint as ocp

        def read() -> dict[str, Any]:
            # without a manager's barriers: one process alone may find damage
            handler, path = ocp.StandardCheckpointHandler(), self.folder / str(self.step)
            try:
                return {
                    name: handler.restore(path / name, args=ocp.args.StandardRestore(_abstract(like)))
                    for name, like in likes.items()
                }
            finally:
                handler.close()

        what = ", ".join(likes)
        found = self._whole(what, read)
        if "checksums" in about:
            # outside of what one process may fail in alone: those of split arrays are summed together
            sums = checksums(found)

            def compare() -> None:
                wrong = [name for name, value in sums.items() if about["checksums"].get(name) != value]
                if wrong:
                    raise ValueError(f"not what was written in {len(wrong)} of its arrays, {', '.join(wrong[:3])}")

            self._whole(what, compare)
        return found

    def _whole(self, what: str, read: Callable[[], T]) -> T:
        """What was read, if it could be in all processes.

        Raises:
            DamagedError: it could not.
        """
        found: Any = None
        damage: DamagedError | None = None
        name = f"checkpoint {self.step} in {self.folder}"
        with _quiet():
            try:
                found = read()
            except _ELSEWHERE:
                raise
            except Exception as error:  # readers of formats raise whatever they trip over
                if any(sign in str(error) for sign in _ELSEWHERE_SIGNS):
                    raise
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                damage = DamagedError(f"{name} is damaged ({what}: {reason})")
            if damage is not None:
                _forget()
        if anywhere(damage is not None):
            raise damage or DamagedError(f"{name} is damaged (another process says how)")
        return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block nothing is printed that nobody can catch."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


def _forget() -> None:
    """Collect what Orbax leaves of a reading that failed: at any other time it would print pages about it."""
    time.sleep(0.1)  # the reads that were still under way
    gc.collect()


def _abstract(tree: Any) -> Any:
    """Shapes, types and placement: restored arrays go where those of `tree` are, or to the default device."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or default), tree
    )
