"""What a schedule is: it owns *when* each cell moves."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Array, Int

from asyncpatch_jax.types import Image, ImageKeys, Prediction, Times

if TYPE_CHECKING:
    from asyncpatch_jax.sampling.loop import SamplerState


@runtime_checkable
class Schedule(Protocol):
    """Decides where each cell goes next and what the network is told; a `flax.struct.dataclass`, since it holds arrays."""

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, Any]:
        """The first field and the schedule's own memory."""

    def next(self, i: Int[Array, ""], state: "SamplerState", pred: Prediction, keys: ImageKeys) -> tuple[Times, Any]:
        """The field after step i (counted from 0) and the memory; same shapes as before."""
