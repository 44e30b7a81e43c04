"""Checkpoints of a run: state, the data's position, and what the run was, in one atomic folder per step (Orbax).

A step's folder appears under its name once it is complete, and not before. It holds

- `about`: JSON with the format, the run's record, shapes and types, a checksum of every array; and a hash of itself
- `ema`: averaged parameters, all that sampling reads
- `train`: step, parameters, optimiser state
- `data`: the position in the stream of batches, one for all processes, which draw their parts of it together

What is stored does not depend on how arrays lay on devices, nor on the number of processes: `restore` lays them out as
it is asked to. What comes back is what was saved, or the step is damaged; then the newest whole one is taken, and said.
"""

import errno
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
from etils import epath

from asyncpatch_jax.training.checksums import checksums
from asyncpatch_jax.training.lock import Lock
from asyncpatch_jax.training.records import digest, read_record, sealed, summary
from asyncpatch_jax.training.step import TrainState
from asyncpatch_jax.training.stored import FORMAT, DamagedError, Stored, anywhere, check_same, listed

# what file systems and Orbax's storage layers say when there is no room left
_NO_ROOM = ("no space left", "disk quota exceeded", "file too large", "resource_exhausted", "enospc")
T = TypeVar("T")


def _absolute(path: epath.Path) -> epath.Path:
    # gs://bucket is absolute, but its `absolute()` is a local path
    return path if path.is_absolute() else path.absolute()


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _locked(path: epath.Path) -> Lock | None:
    """The lock, which the first process takes for all."""
    lock = refusal = None
    if jax.process_index() == 0:
        try:
            lock = Lock(path)
        except (ValueError, OSError) as error:
            refusal = error
    if anywhere(refusal is not None):
        raise refusal or ValueError(f"expected {path.parent} to be free, got another training there: see process 0")
    return lock


class Checkpoints:
    """The checkpoints under one folder. Saving runs in the background; `close` (or leaving the `with`) waits for it.

    A save that was interrupted, by a kill or a full disk, leaves no step behind, and older steps stay. The last `keep`
    are kept. Who may write holds a lock, in one process of all; reading takes none.

    A damaged step is never written over: the next save first moves it to a folder beside this one, NAME_damaged.

    Args:
        folder: made if missing, unless `read_only`.
        keep: how many steps to keep.
        record: what the run is, plain JSON values by name ("config", ...); stored in each step.
        read_only: only read; `record` is not used.
        fall_back: if the newest step is damaged, take the newest whole one, with a warning.

    Raises:
        ValueError: `keep` < 1; another process writes there.
        FileNotFoundError: `read_only`, and there is no such folder.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        keep: int = 3,
        record: Mapping[str, Any] | None = None,
        read_only: bool = False,
        fall_back: bool = True,
    ):
        if keep < 1:
            raise ValueError(f"expected to keep at least one checkpoint, got {keep}")
        self.folder = _absolute(epath.Path(folder))
        if read_only and not self.folder.exists():
            raise FileNotFoundError(f"expected checkpoints in {self.folder}, but there is no such folder")
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs ten lines a save
        self._keep, self._record, self._fall_back = keep, dict(record or {}), fall_back
        self._damaged: list[int] = []
        self._manager: Any = None
        self._lock = None if read_only else _locked(self.folder / "lock")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save under way, and release the folder."""
        try:
            if self._manager is not None:
                with self._reporting():
                    self._manager.close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def wait(self) -> None:
        """Wait for the save under way; its errors are raised here."""
        if self._manager is not None:
            with self._reporting():
                self._manager.wait_until_finished()

    @property
    def steps(self) -> list[int]:
        """All steps that were written to their end, damaged or not."""
        return listed(self.folder)

    @property
    def latest(self) -> int | None:
        """The newest step, damaged or not, or None."""
        return max(self.steps, default=None)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = f"{error} {error.__cause__ or ''}".lower()
            if getattr(error, "errno", None) == errno.ENOSPC or any(sign in text for sign in _NO_ROOM):
                raise OSError(errno.ENOSPC, f"no space left to write a checkpoint; {self.advice()}") from error
            raise

    def advice(self) -> str:
        """What is safe now, and how to go on: the second half of an error message."""
        with suppress(Exception):  # another error is on its way to the user
            self._manager.wait_until_finished()
        latest = self.latest
        good = "no checkpoint was written yet" if latest is None else f"the last good checkpoint is step {latest}"
        return f"{good} in {self.folder}; the same command continues from there once the cause is removed"

    def check_room(self, state: TrainState) -> None:
        """Refuse to start a run whose first checkpoint would not fit.

        Raises:
            OSError: less space is free than one checkpoint of `state` takes.
        """
        if "://" in str(self.folder):
            return  # a bucket is never full
        need, free = _size(state), shutil.disk_usage(self.folder).free
        if free < need:
            raise OSError(
                errno.ENOSPC,
                f"expected {need / 1e6:.0f} MB of space for a checkpoint in {self.folder}, got {free / 1e6:.0f} MB",
            )

    def save(self, step: int, state: TrainState, batches: Any) -> None:
        """Begin to write a step, and return once the arrays are copied: `state` may be donated, `batches` drawn from.

        A step that is there already is left as it is, unless it was found damaged.

        Args:
            batches: the Grain iterator that the next step would draw from. Every process has its own, at the same
                position.

        Raises:
            OSError: the disk is full; this save or the one before it.
            ValueError: another process has taken over the folder.
        """
        import orbax.checkpoint as ocp

        if self._lock is not None:
            self._lock.check()
        with self._reporting():
            self._manager = self._manager or self._opened()
            if step in self._manager.all_steps():
                return
            position = batches.get_state()
            arrays = {"ema": state.ema, "train": _trained(state)}
            about = {
                **self._record,
                "format": FORMAT,
                "parameters": summary(state.params),
                "optimiser": summary(state.opt_state),
                "checksums": {**checksums(arrays), "data": digest(position)},
            }
            items = ocp.args.Composite(
                about=ocp.args.JsonSave(sealed(about)),
                data=ocp.args.JsonSave(position),
                **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
            )
            self._manager.save(step, args=items, force=True)

    def _opened(self) -> Any:
        import orbax.checkpoint as ocp

        if self._damaged and jax.process_index() == 0:
            aside = self.folder.parent / f"{self.folder.name}_damaged"
            aside.mkdir(parents=True, exist_ok=True)
            for step in self._damaged:
                taken = len([path for path in aside.iterdir() if path.name.split(".")[0] == str(step)])
                place = aside / (f"{step}.{taken}" if taken else str(step))
                (self.folder / str(step)).rename(place)
                warnings.warn(f"the damaged checkpoint {step} was moved to {place}", stacklevel=4)
        anywhere(False)  # none looks at the folder before
        self._damaged = []
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, cleanup_tmp_directories=True)
        return ocp.CheckpointManager(self.folder, options=options)

    def about(self, step: int | None = None) -> dict[str, Any]:
        """What a step (default: the newest whole one) says of itself: the run's record, "format", "parameters".

        Raises:
            FileNotFoundError: no such step, or no step at all.
            DamagedError: as `restore`.
            ValueError: written in a format that this version does not read.
        """
        return self._of(step, Stored.about)[0]

    def restore(self, like: TrainState, batches: Any, step: int | None = None) -> TrainState:
        """The state at a step (default: the newest whole one); `batches` is moved to where it was then.

        Args:
            like: a state of the same shapes and types, or its `jax.eval_shape`. Restored arrays lie where those of
                `like` do (`sharding.abstract`), on the default device if it does not say.

        Raises:
            FileNotFoundError: no such step.
            DamagedError: the step was asked for, or none is to be fallen back from, or no step is whole.
            ValueError: the checkpoint's parameters or optimiser state have other names, shapes or types; all of them
                are told.
        """

        def read(stored: Stored) -> tuple[TrainState, Any]:
            about = stored.about()
            check_same(self.folder, about, like.params, like.opt_state)
            found = stored.arrays(about, {"ema": like.ema, "train": _trained(like)})
            return TrainState(ema=found["ema"], **found["train"]), stored.position(about)

        (state, position), _ = self._of(step, read)
        batches.set_state(position)
        return state

    def restore_ema(self, like: Any, step: int | None = None) -> tuple[Any, int]:
        """Only the averaged parameters, and the step that they are of. Arguments and errors as in `restore`."""

        def read(stored: Stored) -> Any:
            about = stored.about()
            check_same(self.folder, about, like)
            return stored.arrays(about, {"ema": like})["ema"]

        return self._of(step, read)

    def _of(self, step: int | None, read: Callable[[Stored], T]) -> tuple[T, int]:
        """What is read of a step (None: the newest that is whole), and which one that is."""
        steps = self.steps
        if not steps or (step is not None and step not in steps):
            wanted = "a checkpoint" if step is None else f"checkpoint {step}"
            raise FileNotFoundError(f"expected {wanted} in {self.folder}, got steps {steps}")
        if step is not None:
            return read(Stored(self.folder, step)), step
        damage: list[str] = []
        for candidate in reversed(steps):
            try:
                found = read(Stored(self.folder, candidate))
            except DamagedError as error:
                if not self._fall_back:
                    raise DamagedError(f"{error}; none before it is used, as falling back is off") from error
                damage.append(str(error))
                continue
            if damage:
                warnings.warn(
                    f"{'; '.join(damage)}. Using checkpoint {candidate}, the newest that is whole", stacklevel=4
                )
            self._damaged = [other for other in steps if other > candidate]
            return found, candidate
        wrong = "; ".join(damage)
        raise DamagedError(f"expected a whole checkpoint in {self.folder}, got {wrong}. To begin anew, move them away")


def _trained(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def recorded(
    workdir: epath.PathLike, file: str, about: str, step: int | None = None, fall_back: bool = True
) -> dict[str, Any] | None:
    """{"config", about}: what was trained in a folder, as the checkpoint (the newest whole one) has it.

    Where none does, as checkpoints of before did not, it is what the file of that name says. None: nothing was trained.

    Raises:
        FileNotFoundError: there is no such step.
        DamagedError: no checkpoint is whole; or the newest is not, and none is to be fallen back from.
        ValueError: the file is damaged.
    """
    workdir = epath.Path(workdir)
    if not listed(workdir / "checkpoints"):
        return read_record(workdir / file, about)
    with Checkpoints(workdir / "checkpoints", read_only=True, fall_back=fall_back) as checkpoints:
        found = checkpoints.about(step)
    if about not in found:
        beside = read_record(workdir / file, about) or {}
        return {**beside, "config": found["config"]}
    return {"config": found["config"], about: found[about]}
