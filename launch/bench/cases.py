"""What the benchmark runs: every schedule, a training step with every sampler of times, and single calls by field."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from asyncpatch_jax import sharding
from asyncpatch_jax.data import masks
from asyncpatch_jax.sampling import Graded, Inpaint, Table, repaint, sample, start
from asyncpatch_jax.training.step import TrainState, create
from asyncpatch_jax.types import FewTimes, Image
from launch.shared import build, fields, programs
from launch.shared.generate import Inputs, Net, denoiser, generate
from launch.shared.inpainting import field
from launch.shared.plans import Plan, plan
from launch.shared.programs import Program


class Case(NamedTuple):
    """A way to sample: how many steps the loop takes, and `images(net, params, inputs)`."""

    steps: int
    images: Callable[[Net, Any, Inputs], Image]


def schedules(run: build.Run) -> dict[str, Case]:
    """Every schedule by name, at the run's own number of steps; "sync" comes first.

    What is inpainted is the right half. RePaint goes 10 levels up, 9 times over, as in its paper; fewer levels where a
    run has not that many.
    """
    grid = build.grid(run.config, run.config.sample.steps, run.process)
    steps = len(grid) - 1
    mask = jnp.asarray(masks.draw("half", 0, 1, run.shape[:2]))
    hole = field(run, np.asarray(mask))
    per_pixel = jnp.broadcast_to(grid[:, None, None, None], (steps + 1, 1, *run.shape[:2]))
    names = ["autoregressive", *(["uncertainty", "dual_loop", "look_ahead"] if run.model.log_variance else [])]
    cases = {
        "sync": _planned(plan("sync", run)),
        "table, a time per pixel": _planned(Plan(Table(per_pixel), steps)),
        **{name: _planned(plan(name, run)) for name in names},
        "inpaint": _planned(Plan(Inpaint(hole, grid), steps)),
        "inpaint, input guidance": _planned(Plan(Inpaint(hole, grid), steps), input_guidance=1.0, hint=hole),
        "graded": _planned(Plan(Graded(0.5 * hole, grid), steps)),
    }
    if run.num_classes:
        cases["sync, classifier-free"] = _planned(plan("sync", run), guidance=2.0)
    jump = min(10, steps - 1)
    if jump >= 2:
        schedule, _ = repaint(run.process, grid, jnp.zeros((1, *run.shape)), mask, jump)
        cases[f"repaint, jumps of {jump}"] = Case(schedule.num_steps, partial(_repainted, grid, mask, jump))
    return cases


def _planned(chosen: Plan, **more: Any) -> Case:
    def images(net: Net, params: Any, inputs: Inputs) -> Image:
        schedule, num_steps, ahead = chosen
        return generate(net, params, schedule, inputs._replace(**more), num_steps=num_steps, ahead=ahead).images

    return Case(chosen.num_steps, images)


def _repainted(grid: Array, mask: Array, jump: int, net: Net, params: Any, inputs: Inputs) -> Image:
    mask = jnp.broadcast_to(mask, (len(inputs.known), *mask.shape[1:]))
    schedule, solver = repaint(net.process, grid, inputs.known, mask, jump)
    x = start(net.process, schedule, inputs.keys, inputs.known)
    denoise = denoiser(net, params, inputs)
    return sample(denoise, solver, schedule, inputs.keys, x, num_steps=schedule.num_steps)[0].x


@jax.jit
def _network(x: Image) -> Image:
    """Its name marks a call of the network in a traced program."""
    return jnp.zeros_like(x)


class Marker(nn.Module):
    """Stands in for a network where its calls are counted."""

    num_classes: int
    dtype: Any = jnp.float32

    def logical_axes(self, params: Any) -> Any:
        return params  # it has none

    def __call__(self, x: Image, t: Any, cond: Any) -> tuple[Image, dict[str, Array]]:
        return _network(x), {"log_variance": jnp.zeros((*x.shape[:3], 1))}


def model_calls(case: Case, net: Net, inputs: Inputs) -> float:
    """How often each image goes through the network: counted in the program itself, loops as often as they run."""
    marked = net._replace(model=Marker(net.model.num_classes))
    return _marks(jax.make_jaxpr(partial(case.images, marked, {}))(inputs)) / len(inputs.known)


def _marks(program: Any) -> int:
    total = 0
    for eqn in getattr(program, "jaxpr", program).eqns:
        if eqn.params.get("name") == _network.__name__:
            total += eqn.invars[0].aval.shape[0]
        inner = jax.tree.leaves(eqn.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"))
        found = sum(_marks(leaf) for leaf in inner if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"))
        if found and eqn.primitive.name in ("while", "cond"):
            raise NotImplementedError("a network inside a loop of unknown length, or in a branch")
        total += found * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def batch_of(run: build.Run, batch: int) -> dict[str, Array]:
    """A batch to train on."""
    images = np.random.default_rng(0).uniform(-1, 1, (batch, *run.shape))
    return {"image": jnp.asarray(images, jnp.float32), "label": jnp.zeros(batch, jnp.int32)}


def train_steps(run: build.Run, only: str = "") -> tuple[TrainState, dict[str, Any]]:
    """A state, and for each sampler of times (or `only` one) a jitted step of it and a batch; "synchronous" first."""
    mesh, steps = sharding.make_mesh(1, devices=jax.devices()[:1]), {}
    for name in [only] if only else sorted(build.TIMES, key=lambda name: name != "synchronous"):
        config = run.config.copy_and_resolve_references()
        with config.ignore_type():
            config.times.update({setting: None for setting in config.times if setting not in ("name", "grid")})
        config.times.name = name
        steps[name] = programs.training(config, run, mesh).fn
    return create(jax.tree.map(jnp.copy, run.params), build.optimizer(run.config)), steps


FIELDS: dict[str, int | str] = {
    "synchronous": 1,
    "2 times (inpainting)": 2,
    "3 times (autoregression)": 3,
    "a time per pixel": fields.PIXELS,
}


def field_programs(run: build.Run, batch: int) -> dict[str, dict[str, Program]]:
    """One call of the denoiser, and one gradient of the loss, for each of `FIELDS`, by name."""
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    made = {"one call": fields.forward, "one gradient": fields.gradient}
    return {
        what: {name: make(run, mesh, batch, times) for name, times in FIELDS.items()} for what, make in made.items()
    }


def arguments(run: build.Run, program: Program) -> tuple[Any, ...]:
    """The run's parameters, and numbers of the shapes of a field's program: images, labels, field [, key]."""
    rng = np.random.default_rng(0)
    _, images, label, told, *key = program.args
    x = jnp.asarray(rng.normal(size=images.shape), images.dtype)
    if isinstance(told, FewTimes):
        # each of the times somewhere in every image
        index = rng.integers(0, told.values.shape[1], told.index.shape)
        times: Any = FewTimes(
            jnp.asarray(rng.uniform(size=told.values.shape), jnp.float32), jnp.asarray(index, jnp.int8)
        )
    else:
        times = jnp.asarray(rng.uniform(size=told.shape), jnp.float32)
    return run.params, x, jnp.zeros(label.shape, jnp.int32), times, *([jax.random.key(0)] if key else [])
