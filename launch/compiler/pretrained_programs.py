"""A call of a pretrained network, a run of its sampler, or decoding, compiled for TPUs that are not there.

`launch.compiler.aot.ahead` runs this module in a process of its own; `launch.studies.pretrained_cost` asks and reads.
Weights are shapes: nothing is loaded.
"""

import math
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from asyncpatch_jax import sharding
from asyncpatch_jax.pretrained.folders import families, schedulers
from asyncpatch_jax.pretrained.latents import autoencoded
from asyncpatch_jax.pretrained.networks import axes
from asyncpatch_jax.pretrained.plans import background
from asyncpatch_jax.pretrained.sampling import Inputs, Net, sample_latents
from asyncpatch_jax.pretrained.settings import Settings, defaults, solver
from asyncpatch_jax.sampling.schedules import Schedule, Synchronous
from asyncpatch_jax.sampling.schedules.masks import Dynamic
from asyncpatch_jax.types import Condition, FewTimes, Spans
from launch.compiler import aot
from launch.compiler.flops import model_flops
from launch.compiler.topology import Topology
from launch.shared.programs import Program

# text tokens of the public pipelines: CLIP's 77, and T5's after them or alone
TOKENS = {"sd": 77, "sdxl": 77, "sd3": 77 + 256, "flux": 512, "kontext": 512}
_OBJECTS, _TOKENS_OF_OBJECTS = 2, 4


class Network(NamedTuple):
    """A network whose parameters are shapes with shardings."""

    family: str
    module: nn.Module
    params: Any
    example: Condition  # of the right widths
    mesh: Mesh


def network(request: dict[str, Any]) -> Network:
    """The denoiser of a request, in bfloat16, on a mesh of the first devices of its topology.

    Raises:
        ValueError: a topology with fewer chips than the mesh, or a configuration that is not implemented.
    """
    mesh, config = _mesh(request), request["denoiser"]
    built, params = _module(config, mesh)
    return Network(request["family"], built, params, families.example(built)[2], mesh)


def _mesh(request: dict[str, Any]) -> Mesh:
    where, shape = Topology(request["topology"]), tuple(request["mesh"])
    if math.prod(shape) > where.chips:
        raise ValueError(f"expected a mesh of at most {where.chips} chips on {where}, got {shape}")
    return sharding.make_mesh(*shape, devices=where.devices()[: math.prod(shape)])


def _module(config: dict[str, Any], mesh: Mesh) -> tuple[nn.Module, Any]:
    """A module that computes in bfloat16, unless its configuration insists, and shapes of its parameters."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), families.shapes(config))
    layout = sharding.parameters(mesh, shapes, axes.logical_axes(shapes))
    return families.module(config, jnp.bfloat16), sharding.abstract(shapes, layout)


def condition(net: Network, request: dict[str, Any], maps: bool) -> Condition:
    """Shapes of what the public pipelines condition a batch on; with `maps`, on two objects as well."""
    batch, size = request["batch"], request["latents"]

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *sizes), dtype)

    fields: dict[str, Any] = {
        name: shape(*value.shape[1:], dtype=jnp.bfloat16 if value.ndim > 1 else jnp.float32)
        for name, value in net.example._asdict().items()
        if value is not None
    }
    width = net.example.tokens.shape[-1]
    fields["tokens"] = shape(TOKENS[net.family], width, dtype=jnp.bfloat16)
    if net.family == "kontext":
        fields["reference"] = shape(*size)
    if maps:
        index = shape(_TOKENS_OF_OBJECTS, dtype=jnp.int32)
        fields["spans"] = Spans(index, shape(_TOKENS_OF_OBJECTS, _OBJECTS))
    return Condition(**fields)


def cells(net: Network, size: list[int]) -> tuple[int, int]:
    """The grid of a field: latent pixels of a UNet, tokens of a transformer."""
    side = 1 if net.family in ("sd", "sdxl") else net.module.multiple
    return size[0] // side, size[1] // side


def call(net: Network, request: dict[str, Any]) -> Program:
    """One call of the network on a field of "times" (1, a number, or "dense": one for each cell)."""
    batch, grid, times = request["batch"], cells(net, request["latents"]), request["times"]
    t: Any = jax.ShapeDtypeStruct((batch, *(grid if times == "dense" else (1, 1)), 1), jnp.float32)
    if times not in (1, "dense"):
        index = jax.ShapeDtypeStruct((batch, *grid, 1), jnp.int8)
        t = FewTimes(jax.ShapeDtypeStruct((batch, times), jnp.float32), index)
    x = jax.ShapeDtypeStruct((batch, *request["latents"]), jnp.float32)

    def apply(params: Any, x: jax.Array, t: Any, cond: Condition) -> Any:
        with sharding.using(net.mesh):
            return net.module.apply({"params": params}, x, t, cond)

    inputs = placed(net.mesh, batch, (x, t, condition(net, request, request["maps"])))
    return Program(jax.jit(apply), (net.params, *inputs))


def sampler(net: Network, request: dict[str, Any]) -> Program:
    """A whole run, as `launch.text2image` compiles it: under guidance, unless the network is told its scale.

    The request's "schedule" is "sync", or "dynamic": AsynDM's, with masks from the attention maps of every step.
    """
    batch, size = request["batch"], request["latents"]
    scheduler = schedulers.from_config(request["scheduler"], whole=net.family in ("flux", "kontext"))
    settings = defaults(net.family, size[0], num_steps=request["steps"])
    plan = jax.tree.map(jnp.asarray, _schedule(net, request, scheduler, settings))
    dynamic = request["schedule"] == "dynamic"
    guided = net.example.guidance is None
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    cond = condition(net, request, dynamic)
    inputs = Inputs(
        noise=jax.ShapeDtypeStruct((batch, *size), jnp.float32),
        keys=keys,
        schedule=plan,
        cond=cond,
        uncond=cond if guided else None,
        scale=jax.ShapeDtypeStruct((batch,), jnp.float32) if guided else None,
    )
    held = placed(net.mesh, batch, inputs._replace(schedule=None))
    whole = sharding.abstract(plan, sharding.replicated(net.mesh))
    run = Net(net.module, scheduler, solver(settings, scheduler.process), mesh=net.mesh)
    return Program(jax.jit(partial(sample_latents, run)), (net.params, held._replace(schedule=whole)))


def decoder(request: dict[str, Any]) -> Program:
    """Latents of a batch to images, as `launch.text2image` decodes them.

    Raises:
        ValueError: as `network`.
    """
    mesh, batch = _mesh(request), request["batch"]
    built, params = _module(request["vae"], mesh)
    latents = placed(mesh, batch, jax.ShapeDtypeStruct((batch, *request["latents"]), jnp.float32))
    return Program(jax.jit(partial(autoencoded, built, "decode", mesh)), (params, latents))


def _schedule(net: Network, request: dict[str, Any], scheduler: schedulers.Scheduler, settings: Settings) -> Schedule:
    grid, tokens = cells(net, request["latents"]), math.prod(request["latents"][:2]) // 4
    if request["schedule"] == "sync":
        return Synchronous(scheduler.grid(request["steps"], tokens))
    text_time = None if net.family in ("sd", "sdxl") else settings.text_time
    behind = background(scheduler, request["steps"], tokens)
    k, masks = jnp.float32(settings.omega), Dynamic(settings.threshold)
    return behind.concave(k, masks, grid, settings.curve, text_time=text_time)


def placed(mesh: Mesh, batch: int, tree: Any) -> Any:
    """Shapes of arrays of a batch, split over the mesh if it divides the batch, and of numbers."""
    split = batch % sharding.batch_parts(mesh) == 0

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        layout = sharding.batch(mesh) if split and leaf.ndim else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    return jax.tree.map(place, jax.eval_shape(lambda tree: tree, tree))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile here.

    Args:
        request: "family", "denoiser" and "scheduler" (contents of config.json and scheduler_config.json), "topology",
            "mesh" (data, fsdp, tensor), "batch", "latents" [h, w, c], "program" (call, sampler, decoder), "effort"; of
            a call "times" and "maps", of a sampler "schedule" and "steps", of a decoder "vae" (its config.json).

    Returns:
        "images", "parameters", "model_flops" (of all chips), and what `launch.compiler.aot.compiled` gives.

    Raises:
        ValueError: the request makes no sense.
    """
    if request["program"] == "decoder":
        program = decoder(request)
    else:
        program = {"call": call, "sampler": sampler}[request["program"]](network(request), request)
    return reported(request, program)


def reported(request: dict[str, Any], program: Program) -> dict[str, Any]:
    """What `answer` returns of a program, compiled; its first argument is the parameters."""
    found = {
        "images": request["batch"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.args[0])),
        "model_flops": model_flops(program.fn, *program.args),
    }
    return {**found, **aot.compiled(program, math.prod(request["mesh"]), request["effort"])}


if __name__ == "__main__":
    aot.serve(answer, sys.argv)
