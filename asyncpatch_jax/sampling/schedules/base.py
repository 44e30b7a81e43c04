"""What a schedule is: it owns *when* each cell moves."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asyncpatch_jax import timefield
from asyncpatch_jax.sampling.state import SamplerState
from asyncpatch_jax.types import FewTimes, Image, ImageKeys, Prediction, TimeField, Times


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
    if jnp.ndim(grid) != 1 or jnp.shape(grid)[0] < 2:
        raise ValueError(f"expected a grid of times [num_steps + 1], got shape {jnp.shape(grid)}")
    return jnp.shape(grid)[0] - 1
