"""What moves during sampling, as the loop holds it and schedules see it."""

from typing import Any, NamedTuple

from asyncpatch_jax.types import Image, Times


class SamplerState(NamedTuple):
    """All that moves during sampling: the image, its times, and what solver and schedule remember."""

    x: Image
    times: Times
    solver: Any
    schedule: Any
