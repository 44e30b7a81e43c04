"""From a pretrained network and its scheduler to the function that samplers call."""

from typing import Any

from flax import linen as nn

from asyncpatch_jax import denoiser, timefield
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.types import Condition, Denoiser, Image, Prediction, Times


def bind(module: nn.Module, params: Any, scheduler: Scheduler, cond: Condition) -> Denoiser:
    """The denoiser of a network that counts time as its scheduler does: `denoiser.bind` for pretrained networks.

    The network is told `times.told` in its own units, and of `times.text` what its text tokens are told.

    Raises:
        ValueError: the batch is no multiple of the condition's.
    """

    def denoise(x: Image, times: Times) -> Prediction:
        text = None if times.text is None else scheduler.timestep(times.text)
        told = times._replace(told=timefield.mapped(times.told, scheduler.timestep))
        inner = denoiser.bind(module, params, scheduler.process, scheduler.kind, cond._replace(text_time=text))
        return inner(x, told)

    return denoise
