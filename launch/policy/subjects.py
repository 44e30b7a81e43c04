"""A frozen denoiser and what it is asked for: what a policy is trained on, and what schedules are compared on.

A folder of `launch.train` with classes (a prompt is the name of a class), or a text-to-image folder in the layout of
diffusers (a prompt is a text).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from asyncpatch_jax import denoiser as denoisers
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import sharding, viz
from asyncpatch_jax.pretrained import binding
from asyncpatch_jax.pretrained.batch import Batch, prepare
from asyncpatch_jax.pretrained.folders.loading import Pretrained, load_pretrained
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.latents import decode_latents
from asyncpatch_jax.pretrained.plans import Background, background
from asyncpatch_jax.pretrained.requests import Request, check, factor, latent_shape
from asyncpatch_jax.pretrained.sampling import interleaved
from asyncpatch_jax.pretrained.settings import defaults, solver
from asyncpatch_jax.pretrained.text.prompts import Encoded, read_tokenizers
from asyncpatch_jax.process import Kind, Process
from asyncpatch_jax.sampling.guidance import classifier_free, one_call
from asyncpatch_jax.sampling.loop import sample
from asyncpatch_jax.sampling.schedules import Schedule, Synchronous
from asyncpatch_jax.sampling.solvers import Solver
from asyncpatch_jax.types import Condition, Denoiser, Image, ImageKeys
from launch.shared import build
from launch.shared.records import recorded

# texts whose embeddings are kept; of more, those of the last batch
_KEPT = 512


class Asked(NamedTuple):
    """What a batch of images is to be; all of it is traced. Without `uncond` there is no guidance."""

    cond: Condition
    uncond: Condition | None
    scale: Float[Array, "b"] | None

    @property
    def known(self) -> Condition:
        """What a policy is told of it."""
        return Condition(label=self.cond.label, tokens=self.cond.tokens, mask=self.cond.mask)


@dataclass(frozen=True)
class OfRun:
    """How a network of `launch.train` is read."""

    process: Process
    kind: Kind

    def __call__(self, model: nn.Module, params: Any, cond: Condition) -> Denoiser:
        params = sharding.gather(params, model.logical_axes(params), model.dtype)
        return denoisers.bind(model, params, self.process, self.kind, cond)


@dataclass(frozen=True)
class OfFolder:
    """How a pretrained network is read."""

    scheduler: Scheduler

    def __call__(self, model: nn.Module, params: Any, cond: Condition) -> Denoiser:
        return binding.bind(model, params, self.scheduler, cond)


class Net(NamedTuple):
    """What jit compiles in: the network, how it is read, how images move, and where."""

    model: nn.Module
    bind: OfRun | OfFolder
    solver: Solver
    mesh: Mesh | None


class Subject(NamedTuple):
    """All that images of prompts are made with.

    prompts: what images may be asked for, and rewards are told.
    base: the schedule that images move on.
    behind: the same, for cells that lag behind it.
    shape: of the latents, h, w, c.
    ask: prompts, by number, to what the network is told.
    decode: latents to images.
    """

    net: Net
    params: Any
    prompts: tuple[str, ...]
    base: Schedule
    behind: Background
    shape: tuple[int, int, int]
    ask: Callable[[Int[np.ndarray, "b"]], Asked]
    decode: Callable[[Float[np.ndarray, "b h2 w2 c2"]], Float[np.ndarray, "b h w c"]]

    def pictures(self, latents: Image) -> UInt8[np.ndarray, "b h w c"]:
        """Images as rewards take them.

        Raises:
            ValueError: some are not finite.
        """
        return viz.to_uint8(self.decode(np.asarray(latents)))


class Choice(NamedTuple):
    """How images are made, where a folder leaves a choice; None: as its authors suggest."""

    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    size: int | None = None  # of text-to-image folders: height and width in pixels


def load(
    folder: str, prompts: Sequence[str], choice: Choice, mesh: Mesh | None = None, *, fall_back: bool = True
) -> Subject:
    """The subject of a folder.

    Args:
        prompts: what images may be asked for; of a run, none: all classes.
        fall_back: whether to use an older checkpoint of a run if the newest is damaged.

    Raises:
        ValueError: a folder of neither kind, prompts that are missing or that name no class, or a wrong setting.
        OSError: a file that cannot be read.
    """
    if recorded(folder, fall_back=fall_back) is not None:
        return of_run(build.load_run(folder, mesh=mesh, fall_back=fall_back), prompts, choice, mesh)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return of_folder(load_pretrained(folder, mesh, dtype), prompts, choice, mesh)


def of_run(run: build.Run, prompts: Sequence[str], choice: Choice, mesh: Mesh | None = None) -> Subject:
    """A class-conditional run of `launch.train`, sampled without fresh noise whatever its own setting is.

    Raises:
        ValueError: a run without classes, prompts that name none, or a setting that a run has not.
    """
    if not run.num_classes:
        raise ValueError(f"expected a run with classes, got {run.config.workdir}, which was trained without")
    if choice.size is not None:
        raise ValueError(f"expected a size of text-to-image folders alone, got {choice.size} for a trained run")
    wanted = tuple(prompts) or run.class_names
    if unknown := [name for name in wanted if name not in run.class_names]:
        raise ValueError(f"expected prompts out of {', '.join(run.class_names)}, got {unknown[0]!r}")
    given = {name: value for name, value in choice._asdict().items() if value is not None}
    run.config.sample.update({**given, "eta": 0.0})
    if run.config.sample.solver == "ddpm":
        raise ValueError("expected a solver without fresh noise, such as ddim, got ddpm; choose another one")
    label = np.array([run.class_names.index(name) for name in wanted], np.int32)
    scale = run.config.sample.guidance

    def ask(index: Int[np.ndarray, "b"]) -> Asked:
        cond = Condition(label=jnp.asarray(label[index]))
        if scale == 1.0:
            return Asked(cond, None, None)
        null = Condition(label=jnp.full(len(index), run.num_classes, jnp.int32))
        return Asked(cond, null, jnp.full(len(index), scale, jnp.float32))

    net = Net(run.model, OfRun(run.process, run.kind), build.solver(run.config, run.process), mesh)
    grid = build.grid(run.config, run.config.sample.steps, run.process)
    shift = run.config.sample.shift if run.config.sample.grid == "shifted" else 1.0
    behind = Background(tuple(np.asarray(grid).tolist()), shift)
    return Subject(
        net, run.params, wanted, Synchronous(grid), behind, run.shape, ask, lambda made: np.asarray(run.decoded(made))
    )


def of_folder(pretrained: Pretrained, prompts: Sequence[str], choice: Choice, mesh: Mesh | None = None) -> Subject:
    """A text-to-image folder.

    Raises:
        ValueError: no prompts, a folder that edits images, or a setting that the network cannot take.
    """
    if not prompts:
        raise ValueError("expected a file of prompts for a text-to-image folder, got none")
    if pretrained.family == "kontext":
        raise ValueError("expected a folder that makes images from texts alone, got kontext, which edits images")
    side = choice.size or (pretrained.denoiser.config.get("sample_size") or 128) * factor(pretrained)
    given = {"num_steps": choice.steps, "guidance": choice.guidance, "solver": choice.solver}
    settings = defaults(pretrained.family, side, **given)
    check(pretrained, [Request(text) for text in prompts], settings)
    tokenizers = read_tokenizers(pretrained.family, pretrained.tokenizers)
    known: dict[str, Encoded] = {}

    def prepared(texts: Sequence[str]) -> Batch:
        slow = np.full((len(texts), 1), -1, np.float32)
        wanted = [Request(text) for text in texts]
        return prepare(pretrained, tokenizers, wanted, settings, slow, mesh=mesh, known=known)

    def ask(index: Int[np.ndarray, "b"]) -> Asked:
        if len(known) > _KEPT:
            known.clear()
        texts = [prompts[i] for i in index]
        # one by one, the empty one first: programs for several texts round otherwise, and what is new depends on when a
        # training was continued
        for text in dict.fromkeys(["", *texts]):
            prepared([text])
        part = prepared(texts)
        return jax.tree.map(jnp.asarray, Asked(part.cond, part.uncond, part.scale))

    scheduler, shape = pretrained.scheduler, latent_shape(pretrained, settings)
    behind = background(scheduler, settings.num_steps, shape[0] * shape[1] // 4)
    base = Synchronous(jnp.asarray(behind.grid, jnp.float32))
    net = Net(pretrained.denoiser.module, OfFolder(scheduler), solver(settings, scheduler.process), mesh)
    decode = partial(decode_latents, pretrained, mesh=mesh)
    return Subject(net, pretrained.denoiser.params, tuple(prompts), base, behind, shape, ask, decode)


def denoiser(net: Net, params: Any, asked: Asked) -> Denoiser:
    """The network under classifier-free guidance, both halves in one call."""
    if asked.uncond is None:
        return net.bind(net.model, params, asked.cond)
    both = net.bind(net.model, params, interleaved(asked.cond, asked.uncond))
    return classifier_free(one_call(both, asked.scale.shape[0], 2), asked.scale)


def noise(net: Net, keys: ImageKeys, shape: tuple[int, int, int]) -> Image:
    """What images begin as, each from its own key."""
    return sharding.constrain(keys_lib.normal(keys_lib.fold_in(keys, 0), shape), "batch", None, None, None)


@partial(jax.jit, static_argnames=("net", "shape", "trace"))
def drawn(
    net: Net,
    params: Any,
    schedule: Schedule,
    asked: Asked,
    keys: ImageKeys,
    shape: tuple[int, int, int],
    trace: Callable[..., Any] | None = None,
) -> tuple[Image, Any]:
    """The latents that a schedule ends with, and what `trace` tells of each step (see `sampling.sample`)."""
    with sharding.using(net.mesh):
        keys, asked = jax.tree.map(_spread, (keys, asked))
        denoise = denoiser(net, params, asked)
        steps = schedule.num_steps
        x = noise(net, keys, shape)
        state, told = sample(denoise, net.solver, schedule, keys, x, num_steps=steps, trace=trace)
        # whole on every device, of every process
        return jax.tree.map(lambda leaf: sharding.constrain(leaf, *(None,) * leaf.ndim), (state.x, told))


def _spread(leaf: jax.Array) -> jax.Array:
    return sharding.constrain(leaf, "batch", *(None,) * (leaf.ndim - 1))
