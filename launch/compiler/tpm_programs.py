"""What training a TPM on a public network runs, compiled for TPUs that are not there.

`launch.studies.tpm_cost` asks and reads. Weights are shapes: nothing is loaded.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from asyncpatch_jax import sharding
from asyncpatch_jax.models.tpm import TPM, Observation
from asyncpatch_jax.pretrained.folders import schedulers
from asyncpatch_jax.pretrained.settings import defaults, solver
from asyncpatch_jax.sampling.schedules import Synchronous
from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.training import policies
from asyncpatch_jax.training.step import create
from asyncpatch_jax.types import Condition
from launch.compiler import aot, pretrained_programs
from launch.compiler.pretrained_programs import Network, condition, placed
from launch.policy import iteration, subjects
from launch.policy.subjects import Asked
from launch.shared.programs import Program


def _asked(net: Network, request: dict[str, Any]) -> Asked:
    """Shapes of a batch: under classifier-free guidance, unless the network is told its scale."""
    batch = request["batch"]
    cond = condition(net, request, False)
    guided = net.example.guidance is None
    scale = jax.ShapeDtypeStruct((batch,), jnp.float32) if guided else None
    return placed(net.mesh, batch, Asked(cond, cond if guided else None, scale))


def _policy(net: Network, request: dict[str, Any]) -> tuple[TPM, Any]:
    module = TPM(**request["policy"], context_dim=net.example.tokens.shape[-1])
    shapes = policies.shapes(module, tuple(request["latents"]))
    return module, sharding.abstract(shapes, sharding.replicated(net.mesh))


def rollout(net: Network, request: dict[str, Any]) -> Program:
    """An iteration's images, with what the module draws, as `launch.train_tpm` compiles it."""
    batch, size = request["batch"], tuple(request["latents"])
    scheduler = schedulers.from_config(request["scheduler"], whole=net.family == "flux")
    settings = defaults(net.family, size[0], num_steps=request["steps"])
    frozen = subjects.Net(net.module, subjects.OfFolder(scheduler), solver(settings, scheduler.process), net.mesh)
    module, params = _policy(net, request)
    grid = jnp.asarray(scheduler.grid(request["steps"], size[0] * size[1] // 4))
    asked = _asked(net, request)
    keys = placed(net.mesh, batch, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)))

    def run(weights: Any, params: Any, asked: Asked, keys: jax.Array) -> Any:
        schedule = TPMSchedule(Synchronous(grid), module, params, asked.known, mode="sample")
        return iteration.roll(frozen, weights, schedule, asked, keys, keys, size)

    return Program(jax.jit(run), (net.params, params, asked, keys))


def update(net: Network, request: dict[str, Any]) -> Program:
    """The steps that are taken on an iteration's images."""
    rolled = rollout(net, request)
    module, params = _policy(net, request)
    whole = sharding.replicated(net.mesh)
    drawn = jax.eval_shape(rolled.fn, *rolled.args).trajectory
    optimizer = iteration.optimizer(1e-5, 0.9, 0.99, 1.0)
    state = jax.eval_shape(partial(create, optimizer=optimizer), params)
    batch = request["batch"]
    given = (
        sharding.abstract(state, jax.tree.map(lambda _: whole, state)),
        placed(net.mesh, batch, drawn),
        jax.ShapeDtypeStruct((1, batch), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((1,), jnp.bool_, sharding=whole),
        sharding.abstract(jax.eval_shape(lambda: jax.random.key(0)), whole),
    )
    settings = {"minibatch": request["minibatch"], "passes": 1, "clip": 0.2, "kl": 0.0}

    def run(*args: Any) -> Any:
        return iteration.update(net.mesh, *args, module=module, optimizer=optimizer, **settings)

    return Program(jax.jit(run, donate_argnums=0), given)


def module_call(net: Network, request: dict[str, Any]) -> Program:
    """One call of the module."""
    batch, size = request["batch"], request["latents"]
    module, params = _policy(net, request)
    x = jax.ShapeDtypeStruct((batch, *size), jnp.float32)
    told = jax.ShapeDtypeStruct((batch, 1, 1, 1), jnp.float32)
    seen = Observation(x, x, x, told, jax.ShapeDtypeStruct((batch,), jnp.float32))
    known = _asked(net, request).known

    def apply(params: Any, seen: Observation, cond: Condition) -> Any:
        with sharding.using(net.mesh):
            return module.apply({"params": params}, seen, cond)

    return Program(jax.jit(apply), (params, placed(net.mesh, batch, seen), known))


def network_call(net: Network, request: dict[str, Any]) -> Program:
    """One call of the denoiser, of as many images, without guidance."""
    return pretrained_programs.call(net, {**request, "times": 1, "maps": False})


_PROGRAMS = {"network": network_call, "module": module_call, "rollout": rollout, "update": update}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile here.

    Args:
        request: as of `pretrained_programs.answer`, with "program" one of network, module, rollout and update, and
            "steps", "minibatch" and "policy" (settings of the `TPM`).

    Returns:
        As `pretrained_programs.answer`.

    Raises:
        ValueError: the request makes no sense.
    """
    net = pretrained_programs.network(request)
    return pretrained_programs.reported(request, _PROGRAMS[request["program"]](net, request))


if __name__ == "__main__":
    aot.serve(answer, sys.argv)
