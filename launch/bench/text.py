"""The cases of a tiny text-to-image network, whose attention says where a prompt's objects are; random weights.

A UNet in Stable Diffusion's layout and at its levels, as small as the one that docs/results_text.md is about: of its
call the network is a smaller share than of a real one's, so that a schedule's own price shows.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asyncpatch_jax.data import masks
from asyncpatch_jax.pretrained.folders import families, schedulers
from asyncpatch_jax.pretrained.plans import Background, background
from asyncpatch_jax.pretrained.sampling import Inputs, Net, sample_latents
from asyncpatch_jax.sampling.schedules import Schedule, Synchronous
from asyncpatch_jax.sampling.schedules.masks import Dynamic, Fixed
from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Condition, Spans
from launch.bench import cases
from launch.shared import small_networks
from launch.shared.generate import image_keys
from launch.shared.programs import Program

_SHAPE = (16, 16, 4)  # of the latents
_TOKENS, _WIDTH = 12, 64  # of a prompt
_OBJECTS = 2
_UNET = small_networks.unet(_SHAPE[0], _SHAPE[2], _WIDTH)


def programs(batch: int, steps: int) -> dict[str, Program]:
    """A run along each schedule under classifier-free guidance, by name; "sync" comes first.

    What AsynDM reads from attention includes reading it: the maps of two objects at every step.

    Raises:
        ValueError: more steps than the network has levels.
    """
    scheduler = schedulers.from_config(small_networks.LEVELS)
    net = Net(families.module(_UNET), scheduler, DDIM(scheduler.process))
    params = cases.like(families.shapes(_UNET))
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    cond = Condition(tokens=draw(batch, _TOKENS, _WIDTH))
    schedules = _schedules(background(scheduler, steps, 0), cond)
    given = Inputs(
        draw(batch, *_SHAPE),
        image_keys(0, batch),
        schedules["sync"],
        cond,
        Condition(tokens=draw(batch, _TOKENS, _WIDTH)),
        jnp.full((batch,), 7.5),
    )
    # the first object is the second token, the other one the third
    spans = Spans(jnp.tile(jnp.array([1, 2], jnp.int32), (batch, 1)), jnp.tile(jnp.eye(_OBJECTS), (batch, 1, 1)))

    made = {}
    for name, schedule in schedules.items():
        reads = isinstance(getattr(schedule, "masks", None), Dynamic)
        inputs = given._replace(schedule=schedule, cond=cond._replace(spans=spans if reads else None))
        made[name] = Program(jax.jit(partial(sample_latents, net)), (params, inputs))
    return made


def _schedules(behind: Background, cond: Condition) -> dict[str, Schedule]:
    size = _SHAPE[:2]
    sync = Synchronous(jnp.asarray(behind.grid, jnp.float32))
    half = Fixed(jnp.asarray(masks.draw("half", 0, 1, size)))
    both = jnp.array([0.3, 0.6], jnp.float32)[:_OBJECTS]
    found: dict[str, Schedule] = {"sync": sync}
    for name, cell in cases.TPMS.items():
        module, params = cases.policy(_SHAPE, cell, context_dim=_WIDTH)
        found[name] = TPMSchedule(sync, module, params, cond)
    return {
        **found,
        "concave, drawn mask": behind.concave(jnp.float32(0.5), half, size, "quadratic"),
        "AsynDM, one omega": behind.concave(jnp.float32(0.5), Dynamic(), size, "quadratic"),
        "AsynDM, an omega per object": behind.concave(both, Dynamic(), size, "quadratic"),
    }
