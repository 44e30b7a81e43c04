"""Checkpoints of a run: state, the data's position, and what the run was, in one atomic folder per step (Orbax).

A step's folder appears under its name once it is complete, and not before. It holds

- `about`: JSON with the format, the run's settings, shape and type of every parameter
- `ema`: averaged parameters, all that sampling reads
- `train`: step, parameters, optimiser state
- `data`: the position in the stream of batches, one for all processes, which draw their parts of it together

What is stored does not depend on how arrays lay on devices, nor on the number of processes: `restore` lays them out as
it is asked to.
"""

import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
from etils import epath
from jax.tree_util import keystr, tree_leaves_with_path

from asyncpatch_jax.training.step import TrainState

FORMAT = 2
# what file systems and Orbax's storage layers say when there is no room left
_NO_ROOM = ("no space left", "disk quota exceeded", "file too large", "resource_exhausted", "enospc")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; tuples as lists, as they come back from JSON."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """A line per setting that differs, "name: saved value -> wanted value"; those in (or below) `ignore` may differ."""
    old, new = flatten(saved), flatten(wanted)
    free = lambda name: any(name == part or name.startswith(part + ".") for part in ignore)  # noqa: E731
    missing = "(not there)"
    return [
        f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing) and not free(name)
    ]


def summary(params: Any) -> dict[str, str]:
    """Shape and type of every parameter, by path."""
    return {keystr(path, simple=True, separator="/"): _describe(leaf) for path, leaf in tree_leaves_with_path(params)}


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def shortened(lines: list[str], limit: int = 8) -> str:
    """The first lines, each on a line of its own, and how many there are more."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n  ".join(["", *lines[:limit], *more])


def _absolute(path: epath.Path) -> epath.Path:
    # gs://bucket is absolute, but its `absolute()` is a local path
    return path if path.is_absolute() else path.absolute()


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Checkpoints:
    """The checkpoints under one folder. Saving runs in the background; `close` (or leaving the `with`) waits for it.

    A save that was interrupted, by a kill or a full disk, leaves no step behind, and older steps stay. The last `keep`
    are kept.

    Args:
        folder: made if missing, unless `read_only`.
        keep: how many steps to keep.
        config: the run's settings, plain JSON values; stored beside each step.
        read_only: only read; `config` is not used.

    Raises:
        ValueError: `keep` < 1.
        FileNotFoundError: `read_only`, and there is no such folder.
    """

    def __init__(
        self, folder: epath.PathLike, *, keep: int = 3, config: Mapping[str, Any] | None = None, read_only: bool = False
    ):
        import orbax.checkpoint as ocp

        if keep < 1:
            raise ValueError(f"expected to keep at least one checkpoint, got {keep}")
        self.folder = _absolute(epath.Path(folder))
        if read_only and not self.folder.exists():
            raise FileNotFoundError(f"expected checkpoints in {self.folder}, but there is no such folder")
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs ten lines a save
        self._config = dict(config or {})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only, create=not read_only
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save under way, and release the folder."""
        with self._reporting():
            self._manager.close()

    def wait(self) -> None:
        """Wait for the save under way; its errors are raised here."""
        with self._reporting():
            self._manager.wait_until_finished()

    @property
    def steps(self) -> list[int]:
        """All complete steps."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

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
        # from the folder: the manager also counts a step whose writing failed
        steps = [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()]
        good = f"the last good checkpoint is step {max(steps)}" if steps else "no checkpoint was written yet"
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

        A step that is there already is left as it is.

        Args:
            batches: the Grain iterator that the next step would draw from. Every process has its own, at the same
                position.

        Raises:
            OSError: the disk is full; this save or the one before it.
        """
        import orbax.checkpoint as ocp

        if step in self.steps:
            return
        about = {"format": FORMAT, "config": self._config, "parameters": summary(state.params)}
        train = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        items = ocp.args.Composite(
            about=ocp.args.JsonSave(about),
            ema=ocp.args.StandardSave(state.ema),
            train=ocp.args.StandardSave(train),
            data=ocp.args.JsonSave(batches.get_state()),
        )
        with self._reporting():
            self._manager.save(step, args=items, force=True)

    def about(self, step: int | None = None) -> dict[str, Any]:
        """What a step says of itself: {"format", "config", "parameters"}.

        Raises:
            FileNotFoundError: no such step, or no step at all.
            ValueError: written in a format that this version does not read.
        """
        import orbax.checkpoint as ocp

        step = self._existing(step)
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if about.get("format") != FORMAT:
            raise ValueError(f"expected a checkpoint of format {FORMAT}, got {about.get('format')} in {self.folder}")
        return about

    def restore(self, like: TrainState, batches: Any, step: int | None = None) -> TrainState:
        """The state at a step (default: the newest); `batches` is moved to where it was then.

        Args:
            like: a state of the same shapes and types, or its `jax.eval_shape`. Restored arrays lie where those of
                `like` do (`sharding.abstract`), on the default device if it does not say.

        Raises:
            FileNotFoundError: no such step.
            ValueError: the checkpoint's parameters have other names, shapes or types; all of them are told.
        """
        import orbax.checkpoint as ocp

        step = self._existing(step)
        self._check(step, like.params)
        train = {"step": like.step, "params": like.params, "opt_state": like.opt_state}
        items = ocp.args.Composite(
            ema=ocp.args.StandardRestore(_abstract(like.ema)),
            train=ocp.args.StandardRestore(_abstract(train)),
            data=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=items)
        batches.set_state(restored["data"])
        return TrainState(ema=restored["ema"], **restored["train"])

    def restore_ema(self, like: Any, step: int | None = None) -> Any:
        """Only the averaged parameters at a step (default: the newest). Arguments and errors as in `restore`."""
        import orbax.checkpoint as ocp

        step = self._existing(step)
        self._check(step, like)
        return self._manager.restore(step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(_abstract(like))))[
            "ema"
        ]

    def _existing(self, step: int | None) -> int:
        steps = self.steps
        if not steps or (step is not None and step not in steps):
            wanted = "a checkpoint" if step is None else f"checkpoint {step}"
            raise FileNotFoundError(f"expected {wanted} in {self.folder}, got steps {steps}")
        return steps[-1] if step is None else step

    def _check(self, step: int, params: Any) -> None:
        lines = differences(self.about(step)["parameters"], summary(params))
        if lines:
            raise ValueError(
                f"expected a checkpoint of this model, got one of another in {self.folder} "
                f"(parameter: checkpoint -> model):{shortened(lines)}"
            )


def _abstract(tree: Any) -> Any:
    """Shapes, types and placement: restored arrays go where those of `tree` are, or to the default device."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or default), tree
    )
