"""The jitted run of a pretrained network: from noise and conditions to latents, under any guidance and schedule."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import sharding, timefield
from asyncpatch_jax.pretrained.binding import bind
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.settings import Method
from asyncpatch_jax.process import diffuse
from asyncpatch_jax.sampling.guidance import (
    cfg_plus_plus,
    classifier_free,
    one_call,
    semantic_aware,
    smoothed_energy,
)
from asyncpatch_jax.sampling.loop import sample
from asyncpatch_jax.sampling.solvers import Solver, ZSampling
from asyncpatch_jax.sampling.state import SamplerState
from asyncpatch_jax.types import Condition, Denoiser, Image, ImageKeys, Prediction

# AsynDM's table (arXiv 2510.04504) has the baselines with these
SEG_SCALE, SEG_BLUR = 3.0, 1.0


class Net(NamedTuple):
    """What jit compiles in: a network, how its times are read, its guidance, and how cells move."""

    module: nn.Module
    scheduler: Scheduler
    solver: Solver
    method: Method = "cfg"
    mesh: Mesh | None = None


class Inputs(NamedTuple):
    """What one batch is made from; all of it is traced.

    noise: the latents of a run that starts from nothing [b, h, w, c].
    keys: one for each image, for solvers that draw noise.
    schedule: when cells move; its arrays may hold a row for each image.
    cond, uncond: what to guide to and away from; without `uncond` there is no guidance.
    scale: of the guidance [b].
    known: latents of an image of which something is kept [b, h, w, c].
    start: the time at and above which cells begin as pure noise.
    fresh: recorded noise of a stochastic solver, of each step [s, b, h, w, c]; None: it draws its own.
    """

    noise: Image
    keys: ImageKeys
    schedule: Any  # a Schedule of a known length
    cond: Condition
    uncond: Condition | None = None
    scale: Float[Array, "b"] | None = None
    known: Image | None = None
    start: float | Float[Array, ""] = 1.0
    fresh: Float[Array, "s b h w c"] | None = None


class Sampled(NamedTuple):
    """Latents [b, h, w, c], the fields of all steps, and the attention maps of the condition's objects, if any."""

    latents: Image
    fields: Float[Array, "s b gh gw 1"]
    maps: Float[Array, "s2 b gh2 gw2 k"] | None


def interleaved(*conditions: Condition) -> Condition:
    """Conditions of the same images next to each other, [b * n, ...], as `one_call` takes them.

    Raises:
        ValueError: one has what another has not.
    """
    structures = {jax.tree.structure(cond) for cond in conditions}
    if len(structures) > 1:
        raise ValueError(f"expected conditions that have the same parts, got {structures}")

    def rows(*leaves: jax.Array) -> jax.Array:
        return jnp.stack(leaves, 1).reshape(-1, *leaves[0].shape[1:])

    return jax.tree.map(rows, *conditions)


def denoiser(net: Net, params: Any, inputs: Inputs) -> Denoiser:
    """The network under its guidance; all branches of an image go through it in one call.

    Raises:
        ValueError: a guidance without an unconditional half, or one of its attention maps without spans.
    """

    def branches(*conditions: Condition) -> Any:
        both = bind(net.module, params, net.scheduler, interleaved(*conditions))
        return one_call(both, inputs.noise.shape[0], len(conditions))

    cond, uncond, scale = inputs.cond, inputs.uncond, inputs.scale
    if uncond is None or scale is None:
        if net.method != "cfg":
            raise ValueError(f"expected an unconditional half and a scale for {net.method}, got none")
        return bind(net.module, params, net.scheduler, cond)
    # the unconditional half gives no maps that anybody reads; its spans only keep both alike
    uncond = uncond._replace(spans=cond.spans)
    if net.method == "seg":
        sharp = jnp.zeros((inputs.noise.shape[0],), jnp.float32)
        sharp_cond, sharp_uncond = cond._replace(blur=sharp), uncond._replace(blur=sharp)
        three = branches(sharp_cond, sharp_uncond, cond._replace(blur=sharp + SEG_BLUR))
        return smoothed_energy(three, scale, SEG_SCALE)
    pair = branches(cond, uncond)
    if net.method == "s-cfg":
        return semantic_aware(pair, scale)
    return (cfg_plus_plus if net.method == "cfg++" else classifier_free)(pair, scale)


def _solver(net: Net, params: Any, inputs: Inputs) -> Solver:
    if net.method != "z-sampling" or inputs.uncond is None:  # without one, `denoiser` refuses that method
        return net.solver
    # back by the unconditional half alone: guidance of scale 0
    weak = bind(net.module, params, net.scheduler, inputs.uncond)
    return ZSampling(net.scheduler.process, weak, inputs.schedule.num_steps - 1)


def begin(net: Net, inputs: Inputs) -> Image:
    """The latents that a run begins with: noise, and `known` where the schedule begins later, noised to that time.

    Cells that begin where the whole run does are pure noise, as the public samplers have it, though Stable Diffusion's
    first time is a little less than all noise.
    """
    times, _ = inputs.schedule.init(inputs.keys, inputs.noise)
    if inputs.known is None:
        return inputs.noise
    noised = diffuse(net.scheduler.process, inputs.known, inputs.noise, times.level)
    return jnp.where(timefield.like(times.level, inputs.noise) >= inputs.start, inputs.noise, noised)


@partial(jax.jit, static_argnames=("net",))
def sample_latents(net: Net, params: Any, inputs: Inputs) -> Sampled:
    """One batch, as one program: the batch is spread over the net's mesh if that divides it.

    Raises:
        ValueError: what the network, the guidance or the schedule refuse.
    """
    with sharding.using(net.mesh):
        place = partial(jax.tree.map, lambda x: sharding.constrain(x, "batch", *(None,) * (x.ndim - 1)))
        inputs = inputs._replace(noise=place(inputs.noise), cond=place(inputs.cond), uncond=place(inputs.uncond))

        # of S-CFG every token has maps, which nobody wants to see
        seen = inputs.cond.spans is not None and net.method != "s-cfg"

        def trace(state: SamplerState, pred: Prediction) -> Any:
            return state.times.level, pred.aux["maps"] if seen else None

        state, (fields, maps) = sample(
            denoiser(net, params, inputs),
            _solver(net, params, inputs),
            inputs.schedule,
            inputs.keys,
            begin(net, inputs),
            num_steps=inputs.schedule.num_steps,
            trace=trace,
            noise=inputs.fresh,
        )
        result = Sampled(state.x, jnp.concatenate([fields, state.times.level[None]]), maps)
        # whole on every device, of every process
        return jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), result)


def noise(keys: ImageKeys, shape: tuple[int, int, int]) -> Image:
    """Standard normal latents [b, h, w, c], each image from its own key."""
    return keys_lib.normal(keys_lib.fold_in(keys, 0), shape)
