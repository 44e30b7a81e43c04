"""What a schedule is: it owns *when* each cell moves."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Float, Int

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.sampling.state import SamplerState
from asyncpatch_jax.types import FewTimes, Image, ImageKeys, Prediction, TimeField, Times

# a run ends at clean data, or at the least noise that a network knows: 1 / 1000 in Stable Diffusion's
CLEAN = 0.1


@runtime_checkable
class Schedule(Protocol):
    """Decides where each cell goes next and what the network is told; a `flax.struct.dataclass`, since it holds arrays.

    A schedule of a fixed length also has a `num_steps`, which the loop compares with its own. One whose images never
    hold more than so many distinct times may say so in `distinct` (None, or no such attribute: any number) and give
    `told` as `FewTimes` of at most so many; the loop holds it to that. Where the index of such a field is the same at
    every step, it may say so by `steady = True`: what deviates from it (TPM) then is a field of few times too.
    """

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, Any]:
        """The first field and the schedule's own memory."""

    def next(self, i: Int[Array, ""], state: SamplerState, pred: Prediction, keys: ImageKeys) -> tuple[Times, Any]:
        """The field after step i (counted from 0) and the memory; same shapes as before."""


class Planned:
    """Base of the schedules whose fields are known before the run: they only say `num_steps` and `field`."""

    distinct: ClassVar[int | None] = None

    @property
    def num_steps(self) -> int:
        """How many steps the schedule lasts."""
        raise NotImplementedError

    def field(self, i: int | Int[Array, ""]) -> Float[Array, "_b gh gw 1"] | FewTimes:
        """The field after i steps, for every image [b, gh, gw, 1] or one for all of them [1, gh, gw, 1]."""
        raise NotImplementedError

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, None]:
        return same_for_network(self.field(0), x.shape[0]), None

    def next(self, i: jax.Array, state: SamplerState, pred: Prediction, keys: ImageKeys) -> tuple[Times, None]:
        return same_for_network(self.field(i + 1), state.x.shape[0]), None


def same_for_network(t: Float[Array, "_b gh gw 1"] | FewTimes, batch: int) -> Times:
    """The network is told the true times; a field for all images [1, gh, gw, 1] is repeated for each of them.

    Raises:
        ValueError: no float32 field, or one of another batch.
    """
    timefield.check(t, batch)
    level = spread(timefield.dense(t), batch)
    return Times(level, t if isinstance(t, FewTimes) else level)


def spread(t: Float[Array, "_b gh gw 1"], batch: int) -> TimeField:
    """A field for all images [1, gh, gw, 1] repeated for each of them.

    Raises:
        ValueError: no float32 field, or one of another batch.
    """
    timefield.check(t, batch)
    return jnp.broadcast_to(t, (batch, *t.shape[1:]))


def length(grid: Any) -> int:
    """How many steps a grid of times has.

    Raises:
        ValueError: not a vector of at least two times.
    """
    numeric = hasattr(grid, "shape") and checks.is_numeric(grid.dtype)
    shape: tuple[int, ...] = grid.shape if numeric else ()
    if len(shape) != 1 or shape[0] < 2:
        found = f"shape {shape}" if numeric else checks.shown(grid)
        raise ValueError(f"expected a grid of times [num_steps + 1], got {found}")
    return shape[0] - 1


def check_grid(grid: Any, *, falls: bool = True) -> None:
    """Refuse a grid of times that is none; what is no array (yet) passes, `length` refuses it where it is used.

    Raises:
        ValueError: not a vector of two times or more in 0 ... 1, one that rises (unless it may), or ends before 0.
    """
    if checks.is_array(grid):
        length(grid)
        checks.numbers("a grid of times", grid, 0, 1)
        _check_course(grid, "a grid of times", falls)


def _check_course(levels: Any, name: str, falls: bool) -> None:
    """Refuse times [num_steps + 1, ...] that rise, if they may not, or end as noise."""
    if isinstance(levels, jax.core.Tracer):
        rise = jnp.diff(levels, axis=0).max() if falls else jnp.zeros((), levels.dtype)
        checkify.debug_check(rise <= 0, f"expected {name} that falls, got a step up by {{rise}}", rise=rise)
        last = levels[-1].max()
        checkify.debug_check(last <= CLEAN, f"expected {name} that ends at 0 (clean), got {{last}}", last=last)
        return
    known = checks.known(levels)
    if known is None:
        return
    if falls and (seen := not_falling(known)) is not None:
        raise ValueError(f"expected {name} that falls, got {seen}")
    if known[-1].max() > CLEAN:
        raise ValueError(f"expected {name} that ends at 0 (clean), got {known[-1].max():g}")


def not_falling(times: np.ndarray, *, strictly: bool = False) -> str | None:
    """The first two times of a grid of which the second is above the first one, as an error says them; or None.

    Args:
        strictly: also of two that are equal.
    """
    steps = np.diff(times)
    wrong = steps >= 0 if strictly else steps > 0
    i = int(wrong.argmax()) if wrong.size else 0
    return f"{times[i]:g} and then {times[i + 1]:g}" if wrong.any() else None


def check_table(levels: Any) -> None:
    """Refuse a table of fields [num_steps + 1, ...] with times outside of 0 ... 1, or that does not end at 0.

    Raises:
        ValueError: as said.
    """
    if checks.is_array(levels):
        checks.numbers("a table's times", levels, 0, 1)
        _check_course(levels, "a table of fields", falls=False)


def check_mask(mask: Any, name: str = "mask") -> None:
    """Refuse a mask (1 = generate) that is none; what is no array (yet) passes, and is refused where it is used.

    Raises:
        ValueError: not [b, h, w, 1], or numbers outside of 0 ... 1.
    """
    if checks.is_array(mask):
        checks.mask(name, mask)
