"""What the benchmark runs: every schedule, a training step with every sampler of times, and single calls by field."""

import math
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
from asyncpatch_jax.models import TPM, UNet
from asyncpatch_jax.pretrained.plans import Background
from asyncpatch_jax.sampling import Graded, Inpaint, Synchronous, Table
from asyncpatch_jax.sampling.inpainting import RePaint
from asyncpatch_jax.sampling.schedules.masks import Fixed
from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.training import policies
from asyncpatch_jax.training.step import TrainState, create
from asyncpatch_jax.types import Condition, FewTimes, Image
from launch.shared import build, fields, programs
from launch.shared.generate import Inputs, Net, fill, generate
from launch.shared.inpainting import field
from launch.shared.plans import Plan, cells, plan
from launch.shared.programs import Program


class Case(NamedTuple):
    """A way to sample: how many steps the loop takes, and `images(net, params, inputs)`."""

    steps: int
    images: Callable[[Net, Any, Inputs], Image]


def schedules(run: build.Run) -> dict[str, Case]:
    """Every schedule by name, at the run's own number of steps; "sync" comes first.

    What is inpainted, or lags behind on a concave curve, is the right half. Timestep policies have random weights: they
    cost as much as trained ones. RePaint goes 10 levels up, 9 times over, as in its paper; fewer levels where a run has
    not that many.
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
    behind = partial(Background(tuple(np.asarray(grid).tolist())).concave, jnp.float32(0.5), curve="quadratic")
    drawn, square = Fixed(mask), cells(run)
    # cells that wait, each for its own time, as if a photo were edited from left to right
    wait = jnp.broadcast_to(jnp.linspace(0.5, 1.0, run.shape[1]).reshape(1, 1, -1, 1), (1, *run.shape[:2], 1))
    cases |= {
        "concave, drawn mask": _planned(Plan(behind(drawn, square), steps)),
        "concave, a time per cell": _planned(Plan(behind(drawn, square, strength=wait), steps)),
    }
    for name, cell in TPMS.items():
        module, params = policy(run.shape, cell, num_classes=run.num_classes)
        cases[name] = Case(steps, partial(_told, Synchronous(grid), module, params))
    if run.num_classes:
        cases["sync, classifier-free"] = _planned(plan("sync", run), guidance=2.0)
    jump = min(10, steps - 1)
    if jump >= 2:
        method = RePaint(jump)
        cases[f"repaint, jumps of {jump}"] = Case(method.calls(steps), partial(_repainted, method, mask, grid))
    return cases


# by name: the side, in patches, of the cells that a deviation is found for; None: one an image
TPMS = {"TPM": None, "TPM, a deviation per patch": 1}
_PATCHES = 8  # of a policy, to a side at most
_POLICY = {"width": 64, "depth": 4, "heads": 4}  # as configs/tpm_digits.py has it


def policy(shape: tuple[int, int, int], cell: int | None, **knows: int) -> tuple[TPM, Any]:
    """A timestep policy for images or latents of `shape`, and its parameters; at most 8 patches to a side if it can be.

    Patches are 2x2 at least, as configs/tpm_digits.py has them, unless that divides no side.
    """
    side = math.gcd(*shape[:2])
    patch = min((p for p in range(2, side + 1) if side % p == 0 and max(shape[:2]) <= p * _PATCHES), default=side)
    module = TPM(patch=patch, cell=cell, **_POLICY, **knows)
    return module, like(policies.shapes(module, shape))


def like(shapes: Any) -> Any:
    """Small random numbers in arrays of these shapes; made without compiling anything."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def _told(base: Synchronous, module: TPM, tpm: Any, net: Net, params: Any, inputs: Inputs) -> Image:
    cond = None if inputs.label is None else Condition(label=inputs.label)
    schedule = TPMSchedule(base, module, tpm, cond)
    return generate(net, params, schedule, inputs, num_steps=base.num_steps).images


def _planned(chosen: Plan, **more: Any) -> Case:
    def images(net: Net, params: Any, inputs: Inputs) -> Image:
        schedule, num_steps, ahead = chosen
        return generate(net, params, schedule, inputs._replace(**more), num_steps=num_steps, ahead=ahead).images

    return Case(chosen.num_steps, images)


def _repainted(method: RePaint, mask: Array, grid: Array, net: Net, params: Any, inputs: Inputs) -> Image:
    return fill(net, params, method, inputs, mask, grid)


@jax.jit
def _network(x: Image) -> Image:
    """Its name marks a call of the network in a traced program."""
    return jnp.zeros_like(x)


class Marker(nn.Module):
    """Stands in for a network where its calls are counted."""

    num_classes: int
    reference: int = 0
    dtype: Any = jnp.float32

    def logical_axes(self, params: Any) -> Any:
        return params  # it has none

    def __call__(self, x: Image, t: Any, cond: Any) -> tuple[Image, dict[str, Array]]:
        return _network(x), {"log_variance": jnp.zeros((*x.shape[:3], 1))}


def model_calls(case: Case, net: Net, inputs: Inputs) -> float:
    """How often each image goes through the network: counted in the program itself, loops as often as they run."""
    marked = net._replace(model=Marker(net.model.num_classes, net.model.reference))
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
    optimizer = build.optimizer(run.config)
    # the steps are given the state for good, and shall not take the run's own parameters
    return jax.jit(lambda params: create(jax.tree.map(jnp.copy, params), optimizer))(run.params), steps


FIELDS: dict[str, int | str] = {
    "synchronous": 1,
    "2 times (inpainting)": 2,
    "3 times (autoregression)": 3,
    "a time per pixel": fields.PIXELS,
}


BLOCKS: dict[str, dict[str, Any]] = {
    "1 block a level": {"blocks": 1, "scan": False},
    "2 blocks": {"blocks": 2, "scan": False},
    "3 blocks": {"blocks": 3, "scan": False},
    "3 blocks, as a loop": {"blocks": 3, "scan": True},
}


def field_programs(run: build.Run, batch: int) -> dict[str, dict[str, Program]]:
    """One call of the denoiser, and one gradient of the loss, for each of `FIELDS`, by name."""
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    made = {"one call": fields.forward, "one gradient": fields.gradient}
    return {
        what: {name: make(run, mesh, batch, times) for name, times in FIELDS.items()} for what, make in made.items()
    }


def block_programs(run: build.Run, batch: int) -> dict[str, tuple[build.Run, Program]]:
    """A UNet's gradient with 1, 2 and 3 blocks a level, and with those of 3 in a loop; none of another network."""
    if not isinstance(run.model, UNet):
        return {}
    mesh, made = sharding.make_mesh(1, devices=jax.devices()[:1]), {}
    for name, settings in BLOCKS.items():
        model = run.model.clone(**settings)
        params = jax.eval_shape(partial(build.init_params, model, shape=run.shape), jax.random.key(0))
        other = run._replace(model=model, params=like(params))
        made[name] = other, fields.gradient(other, mesh, batch, 1)
    return made


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
