"""One jitted sampling run, shared by all mains: from noise or from an image of which something is known, in batches."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import sharding, timefield
from asyncpatch_jax.denoiser import bind, one_time, reference_of
from asyncpatch_jax.process import Kind, Process
from asyncpatch_jax.sampling.guidance import classifier_free, input_guidance, look_ahead, two_calls
from asyncpatch_jax.sampling.inpainting import Inpainter, Supervised
from asyncpatch_jax.sampling.loop import sample, start
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.sampling.solvers import Solver
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Condition, Denoiser, Image, ImageKeys, TimeField

_IMAGE = ("batch", None, None, None)


class Net(NamedTuple):
    """What jit compiles in: the network, what it was trained for, and how an image moves."""

    model: nn.Module
    process: Process
    kind: Kind
    solver: Solver
    mesh: Mesh | None = None  # devices that a batch is spread over


class Inputs(NamedTuple):
    """What one batch is made from; all of it is traced, so new values do not recompile. None switches a part off."""

    keys: ImageKeys
    known: Image  # zeros where nothing is known
    label: Any = None  # Int[Array, "b"]
    tokens: Any = None  # Float[Array, "b l d"]: vectors of a text
    counted: Any = None  # Bool[Array, "b l"]: which of them count
    guidance: Any = None  # classifier-free scale
    input_guidance: Any = None  # scale of the hint
    hint: Any = None  # Float[Array, "b gh gw 1"]: 0 where the image is known; also what a supervised network is shown


class Result(NamedTuple):
    """Images [b, h, w, c], and the run of the first few of them: [s + 1, n, ...] images with their fields."""

    images: Image
    run: Float[Array, "s n h w c"]
    fields: Float[Array, "s n gh gw 1"]


def denoiser(net: Net, params: Any, inputs: Inputs) -> Denoiser:
    """The network under the guidance that `inputs` asks for; a supervised one is shown what is known.

    Raises:
        ValueError: guidance of a network without classes, input guidance without a hint, or of a supervised network.
    """
    batch = inputs.known.shape[0]
    supervised, reference = bool(net.model.reference), None
    if supervised and inputs.input_guidance is not None:
        raise ValueError(
            "expected no input guidance of a supervised network, which is told one time an image, got some"
        )
    if supervised and inputs.hint is not None:
        hole = timefield.resize(inputs.hint, timefield.grid_of(inputs.known))
        reference = reference_of(inputs.known, jnp.broadcast_to(hole, (*inputs.known.shape[:3], 1)))

    def conditioned(label: Any, tokens: Any = None, counted: Any = None) -> Denoiser:
        none = label is None and reference is None and tokens is None
        cond = None if none else Condition(label=label, tokens=tokens, mask=counted, reference=reference)
        bound = bind(net.model, params, net.process, net.kind, cond)
        return one_time(bound) if supervised else bound

    denoise = conditioned(inputs.label, inputs.tokens, inputs.counted)
    if inputs.guidance is not None:
        if inputs.label is None and inputs.tokens is None:
            raise ValueError("expected a model with classes, or texts, for classifier-free guidance, got neither")
        null = None if inputs.label is None else jnp.full((batch,), net.model.num_classes, jnp.int32)
        denoise = classifier_free(two_calls(denoise, conditioned(null)), inputs.guidance)
    if inputs.input_guidance is not None:
        if inputs.hint is None:
            raise ValueError("expected a mask for input guidance, got none")
        denoise = input_guidance(denoise, net.process, net.kind, inputs.hint, inputs.keys, inputs.input_guidance)
    return denoise


@partial(jax.jit, static_argnames=("net", "num_steps", "ahead", "watch"))
def generate(
    net: Net,
    params: Any,
    schedule: Schedule,
    inputs: Inputs,
    *,
    num_steps: int,
    ahead: Grid | None = None,
    watch: int = 0,
) -> Result:
    """Sample one batch; `watch` images are recorded at every step, and the cells of `ahead`, if any, look ahead.

    The batch is spread over the net's mesh if that divides it; every device (of every process) gets the whole result.
    """
    with sharding.using(net.mesh):
        params = sharding.gather(params, net.model.logical_axes(params), net.model.dtype)
        result = _generate(net, params, schedule, inputs, num_steps, ahead, watch)
        return jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), result)


def _generate(
    net: Net, params: Any, schedule: Schedule, inputs: Inputs, num_steps: int, ahead: Grid | None, watch: int
) -> Result:
    denoise = denoiser(net, params, inputs)
    if ahead is not None:
        denoise = look_ahead(denoise, net.process, ahead)

    def record(x: Image, level: TimeField) -> tuple[Image, TimeField]:
        return x[:watch], level[:watch]

    known = sharding.constrain(inputs.known, *_IMAGE)
    inputs = inputs._replace(known=known, keys=sharding.constrain(inputs.keys, "batch"))
    x = sharding.constrain(start(net.process, schedule, inputs.keys, known), *_IMAGE)
    state, (run, fields) = sample(
        denoise,
        net.solver,
        schedule,
        inputs.keys,
        x,
        num_steps=num_steps,
        trace=lambda state, pred: record(state.x, state.times.level),
    )
    last = record(state.x, state.times.level)
    run, fields = (jnp.concatenate([steps, end[None]]) for steps, end in zip((run, fields), last, strict=True))
    return Result(state.x, run, fields)


@partial(jax.jit, static_argnames=("net", "method"))
def fill(
    net: Net,
    params: Any,
    method: Inpainter,
    inputs: Inputs,
    mask: Float[Array, "b h w 1"],
    grid: Float[Array, "s"],
) -> Image:
    """Inpaint one batch by a method (the net's own solver has no part in it): `inputs.known` where the mask is 0.

    A supervised network is shown what is known by the method of that name, and nothing by others.

    Spread over the net's mesh as `generate` spreads it.
    """
    with sharding.using(net.mesh):
        params = sharding.gather(params, net.model.logical_axes(params), net.model.dtype)
        known = sharding.constrain(inputs.known, *_IMAGE)
        inputs = inputs._replace(known=known, keys=sharding.constrain(inputs.keys, "batch"))
        if isinstance(method, Supervised):
            inputs = inputs._replace(hint=mask)
        x = method(denoiser(net, params, inputs), net.process, inputs.keys, known, mask, grid)
        return sharding.constrain(x, None, None, None, None)


def image_keys(seed: int, count: int, first: int = 0) -> ImageKeys:
    """Keys of images `first` ... of a seed: image i is the same whatever it is drawn together with."""
    return keys_lib.per_image(keys_lib.of_seed(seed), first + count)[first:]
