"""Schedules that tell the network another time than the image's own, while the image moves on an ordinary schedule.

AsyncDiff (arXiv 2512.18675; its timestep prediction module is called TPM here, for "AsyncDiff" also names an unrelated
system). A deviation rho in (0, 1) is found at each step k, and acts on the call of step k + 1:
`told = t_{k+1} + gain (rho - 1/2) (t_{k+1} - t_k)`, which is the paper's `t_k + (1/2 + rho) (t_{k+1} - t_k)` at gain 1.
At rho = 1/2 these are the schedule's own times, bit for bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax import beta, checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.beta import Beta
from asyncpatch_jax.models.tpm import TPM, observe
from asyncpatch_jax.sampling.schedules.base import Schedule, spread
from asyncpatch_jax.types import FewTimes, Image, ImageKeys, Prediction, TimeField, Times

# the least time that a cell with noise is told, unless its own is less
SIGMA_MIN = 1e-3
# keeps the draws of a deviation apart from those of the base schedule
_RHO = 0x7E3


class Deviation(NamedTuple):
    """What a schedule that deviates remembers after step `step - 1`.

    step: the steps done, [].
    rho: the deviation that the last of them found [b, rh, rw, 1]; 1/2 before the first.
    belief: the distribution that it is from, alpha and beta [b, rh, rw]; None of a constant one.
    acts: 1 where the deviation changes what a cell is told (or its velocity), 0 where no cell moves on [b, rh, rw].
    times, carry: those of the base schedule.
    """

    step: Int[Array, ""]
    rho: Float[Array, "b rh rw 1"]
    belief: Beta | None
    acts: Float[Array, "b rh rw"]
    times: Times
    carry: Any


def deviation(state: Any, pred: Prediction) -> Float[Array, "b rh rw"]:
    """rho - 1/2 of the call that was just made, 0 where it changes nothing: a `trace` of `sample`, for plots.

    Stacked over the steps it is [num_steps, b, rh, rw]; what a network was told in all is `state.times.told`.
    """
    return jnp.where(state.schedule.acts > 0, state.schedule.rho[..., 0] - 0.5, 0.0)


class _Deviating:
    """What the schedules below share: `base` owns the image's times, `_rho` says how far to deviate from them."""

    # of the subclasses
    base: Any
    gain: Any
    space: str

    @property
    def _whole(self) -> bool:
        """All cells of an image deviate alike."""
        raise NotImplementedError

    def _cells(self, x: Image) -> timefield.Grid:
        raise NotImplementedError

    def _belief(self, batch: int, cells: timefield.Grid) -> Beta | None:
        raise NotImplementedError

    def _rho(
        self, i: jax.Array, state: Any, pred: Prediction, keys: ImageKeys
    ) -> tuple[Float[Array, "b rh rw 1"], Beta | None]:
        raise NotImplementedError

    def _check(self) -> None:
        checks.choice("space", self.space, ("time", "velocity"))
        checks.numbers("gain", self.gain)
        checks.instance("base", self.base, Schedule, "Synchronous(linear(50))")
        if isinstance(self.base, _Deviating):
            raise ValueError(f"expected a base that tells the image's own times, got a {type(self.base).__name__}")

    @property
    def num_steps(self) -> int:
        steps = getattr(self.base, "num_steps", None)
        if steps is None:
            raise ValueError(f"expected a base schedule of a known length, got a {type(self.base).__name__}")
        return steps

    @property
    def distinct(self) -> int | None:
        """As many as the base's where all of an image's cells deviate alike, and its few times are never reshuffled."""
        few = getattr(self.base, "distinct", None)
        if self.space == "velocity" or (self._whole and (few == 1 or getattr(self.base, "steady", False))):
            return few
        return None

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, Deviation]:
        checks.given("gain", self.gain)
        times, carry = self.base.init(keys, x)
        cells = self._cells(x)
        rho = jnp.full((x.shape[0], *cells, 1), 0.5, jnp.float32)
        belief = self._belief(x.shape[0], cells)
        acts = jnp.zeros(rho.shape[:3], jnp.float32)
        return self._told(times, times, rho), Deviation(jnp.int32(0), rho, belief, acts, times, carry)

    def next(self, i: Int[Array, ""], state: Any, pred: Prediction, keys: ImageKeys) -> tuple[Times, Deviation]:
        before = state.schedule.times
        own = state._replace(times=before, schedule=state.schedule.carry)
        after, carry = self.base.next(i, own, pred, keys)
        rho, belief = self._rho(i, state, pred, keys)
        moves = _moves(before.level, after.level)
        # of a deviation's cell any part that moves counts
        acts = timefield.resize(moves.astype(jnp.float32), timefield.finer(moves, rho))
        acts = jnp.broadcast_to(timefield.resize(acts, timefield.grid_of(rho), "max"), rho.shape)[..., 0]
        return self._told(before, after, rho), Deviation(i + 1, rho, belief, acts, after, carry)

    def _told(self, before: Times, after: Times, rho: Float[Array, "b rh rw 1"]) -> Times:
        """What the network is told of `after`, where the image came from `before`."""
        if self.space == "velocity":
            cells = timefield.finer(after.level, rho)
            moves = timefield.resize(_moves(before.level, after.level), cells)
            gain = jnp.where(moves, 1.0 + self.gain * (timefield.resize(rho, cells) - 0.5), 1.0)
            return after._replace(gain=gain.astype(jnp.float32))
        text = after.text
        if text is not None and before.text is not None:
            # the mean of equal numbers is exact here
            text = _deviated(before.text, text, timefield.resize(rho, (1, 1)).reshape(-1), self.gain)
        return after._replace(told=self._field(before, after, rho), text=text)

    def _field(self, before: Times, after: Times, rho: Float[Array, "b rh rw 1"]) -> TimeField | FewTimes:
        old, new, batch = before.told, after.told, rho.shape[0]
        if isinstance(old, FewTimes) and isinstance(new, FewTimes) and self._whole and self._steady:
            was, values = (jnp.broadcast_to(t.values, (batch, t.values.shape[1])) for t in (old, new))
            return timefield.assembled(_deviated(was, values, rho.reshape(-1, 1), self.gain), new.index)
        cells = timefield.finer(after.level, rho)
        old, new, rho = (timefield.resize(spread(t, batch), cells) for t in (before.level, after.level, rho))
        return _deviated(old, new, rho, self.gain)

    @property
    def _steady(self) -> bool:
        return getattr(self.base, "steady", False)


@checks.dataclass
class ConstantDeviation(_Deviating):
    """The same deviation for all images, without learning: the baseline that a TPM has to beat.

    Attributes:
        base: the schedule that the image moves on.
        rho: 0 ... 1, one number [] or one for each step [num_steps], of which the last acts on no call; 1/2 is none.
        gain: what rho - 1/2 is multiplied with: 1, or 2 for the paper's lifted bound `2 rho`; times gamma.
        space: deviate in the "time" that the network is told, or multiply its "velocity" by `1 + gain (rho - 1/2)`.

    Raises:
        ValueError: an unknown space, a base that is no schedule or deviates itself, rho of another shape or outside of
            0 ... 1, or no gain.
    """

    base: Any  # Schedule
    rho: Any  # Float[Array, ""] | Float[Array, "s"]
    gain: Any = 1.0
    space: str = struct.field(pytree_node=False, default="time")

    def __post_init__(self) -> None:
        self._check()
        checks.numbers("rho", self.rho, 0, 1)

    @property
    def _whole(self) -> bool:
        return True

    def _cells(self, x: Image) -> timefield.Grid:
        if not checks.is_array(self.rho):
            checks.number("rho", self.rho, 0, 1)
        if jnp.shape(self.rho) not in ((), (self.num_steps,)):
            raise ValueError(f"expected rho as [] or [{self.num_steps}], got shape {jnp.shape(self.rho)}")
        return 1, 1

    def _belief(self, batch: int, cells: timefield.Grid) -> None:
        return None

    def _rho(self, i: jax.Array, state: Any, pred: Prediction, keys: ImageKeys) -> tuple[Float[Array, "b 1 1 1"], None]:
        rho = jnp.asarray(self.rho, jnp.float32)
        rho = rho[i] if rho.ndim else rho
        return jnp.broadcast_to(rho.reshape(1, 1, 1, 1), (state.x.shape[0], 1, 1, 1)), None


@checks.dataclass
class TPMSchedule(_Deviating):
    """A TPM finds the deviation from what it sees of each step, one for the image or one for each of its cells.

    Attributes:
        base: the schedule that the image moves on.
        module, params: a `TPM`.
        cond: what it knows of the images [b]; None: nothing.
        gain: what rho - 1/2 is multiplied with: 1 in training (the paper's bound), or 2 for its lifted bound `2 rho`;
            times gamma at deployment.
        mode: rho is the "mode" of the TPM's Beta distribution, or a "sample" of it (for training).
        space: deviate in the "time" that the network is told, or multiply its "velocity" by `1 + gain (rho - 1/2)`; the
            module sees the true times then.

    Raises:
        ValueError: an unknown mode or space, a base that is no schedule or deviates itself, no module, or no gain.
    """

    base: Any  # Schedule
    module: TPM = struct.field(pytree_node=False)
    params: Any
    cond: Any = None  # Condition
    gain: Any = 1.0
    mode: str = struct.field(pytree_node=False, default="mode")
    space: str = struct.field(pytree_node=False, default="time")

    def __post_init__(self) -> None:
        self._check()
        checks.instance("module", self.module, TPM, "TPM(patch=4)")
        checks.choice("mode", self.mode, ("mode", "sample"))

    @property
    def _whole(self) -> bool:
        return self.module.cell is None

    def _cells(self, x: Image) -> timefield.Grid:
        return self.module.grid(*x.shape[1:3])

    def _belief(self, batch: int, cells: timefield.Grid) -> Beta:
        two = jnp.full((batch, *cells), 2.0, jnp.float32)
        return Beta(two, two)

    def _rho(self, i: jax.Array, state: Any, pred: Prediction, keys: ImageKeys) -> tuple[jax.Array, Beta]:
        seen = observe(state.x, pred, state.times.told, i, self.num_steps)
        belief: Any = self.module.apply({"params": self.params}, seen, self.cond)
        if self.mode == "mode":
            return beta.mode(belief)[..., None], belief
        return beta.sample(keys_lib.fold_in(keys, _RHO), belief)[..., None], belief


def _moves(before: Float[Array, "*t"], after: Float[Array, "*t"]) -> Bool[Array, "*t"]:
    """Where a cell has moved and is not done: the others are told their own time."""
    return (after != before) & (after > 0)


def _deviated(
    before: Float[Array, "..."], after: Float[Array, "..."], rho: Float[Array, "..."], gain: Any
) -> Float[Array, "..."]:
    """The times told; the bounds are such that they let `after` itself pass."""
    told = after + gain * (rho - 0.5) * (after - before)
    told = jnp.clip(told, jnp.minimum(SIGMA_MIN, after), jnp.maximum(1.0, after))
    return jnp.where(_moves(before, after), told, after).astype(jnp.float32)
