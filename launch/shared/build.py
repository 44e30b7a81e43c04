"""From a configuration to the library's objects, and from a run's folder back to a network that samples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.models import DiT, UNet, dit, unet
from asyncpatch_jax.pretrained.autoencoders import Autoencoder, unknown_cells
from asyncpatch_jax.pretrained.text_encoder import TextEncoder
from asyncpatch_jax.process import KINDS, Cosine, Discrete, Kind, Process, RectifiedFlow
from asyncpatch_jax.sampling import solvers
from asyncpatch_jax.sampling.schedules import grids
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.training import losses
from asyncpatch_jax.training import times as times_lib
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import LossFn, adam, learning_rate
from asyncpatch_jax.training.supervised import supervised_loss
from asyncpatch_jax.types import Condition
from launch.shared import autoencoders, datasets, texts
from launch.shared.records import record_of

PROCESSES = {"rectified_flow": RectifiedFlow, "cosine": Cosine, "discrete": Discrete}
MODELS = {"unet": (UNet, unet.PRESETS), "dit": (DiT, dit.PRESETS)}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TIMES = {
    "asyncpatch": times_lib.AsyncPatch,
    "synchronous": times_lib.Synchronous,
    "independent": times_lib.Independent,
    "patchwise": times_lib.Patchwise,
    "perlin": times_lib.Perlin,
    "rad": times_lib.RAD,
    "uniform_mean": times_lib.UniformMean,
    "logit_normal_truncated": times_lib.LogitNormalTruncated,
}
SOLVERS: dict[str, Callable[[Process], solvers.Solver]] = {
    "ddim": solvers.DDIM,
    "ddpm": solvers.DDPM,
    "euler": solvers.Euler,
    "heun": solvers.Heun,
    "dpm2m": solvers.DPMSolver2M,
}


def _choose(what: str, name: str, options: Mapping[str, Any]) -> Any:
    if name not in options:
        raise ValueError(f"expected {what} out of {', '.join(map(str, options))}, got {name!r}")
    return options[name]


def _given(what: str, target: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None, if `target` has them all."""
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if v is not None}
    fields = {field.name for field in dataclasses.fields(target)}
    unknown = sorted(given.keys() - fields)
    if unknown:
        theirs = ", ".join(sorted(fields & settings.keys())) or "none"
        raise ValueError(f"{target.__name__} takes of config.{what} only {theirs}, got {', '.join(unknown)}")
    return given


def model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of `config.model`: its preset, with what is set beside it. One class is no class.

    A supervised run's is shown the known pixels, and where they are.

    Raises:
        ValueError: unknown name, preset or dtype, or a setting that this network does not have.
    """
    settings = config.model.to_dict()
    network, presets = _choose("config.model.name", settings.pop("name"), MODELS)
    preset = settings.pop("preset")
    shape = _choose("config.model.preset", preset, presets) if preset else {}
    settings["dtype"] = _choose("config.model.dtype", settings["dtype"], DTYPES)
    width = text_width(config)
    settings["num_classes"] = num_classes if num_classes > 1 and not width else 0
    settings["context_dim"] = width
    if datasets.holes(config):
        settings["reference"] = (config.data.get("latent_channels") or config.data.channels) + 1
    for name in ("base", "multipliers", "blocks", "head_dim", "patch", "width", "depth", "heads", "mlp_ratio"):
        value = settings.get(name)
        if value is not None and not np.size(value):
            raise ValueError(f"expected config.model.{name} of one level or more, such as (1, 2), got ()")
        if value is not None and np.min(value) < 1:
            raise ValueError(f"expected config.model.{name} of at least 1, got {value}")
    return network(**{**shape, **_given("model", network, settings)})


def text_width(config: ConfigDict) -> int:
    """Of the vectors of texts that a network learns from; 0: from none."""
    return (config.get("text") or {}).get("width") or 0  # runs of before have no such settings


def process(config: ConfigDict) -> Process:
    """The noise process. Raises ValueError on an unknown name."""
    return _choose("config.process", config.process, PROCESSES)()


def kind(config: ConfigDict) -> Kind:
    """What the network predicts. Raises ValueError on an unknown name."""
    return _choose("config.kind", config.kind, {name: name for name in KINDS})


def times(config: ConfigDict) -> times_lib.TimeSampler:
    """The sampler of training times. Raises ValueError on an unknown name or a setting that it does not have."""
    settings = config.times.to_dict()
    sampler = _choose("config.times.name", settings.pop("name"), TIMES)
    settings.pop("grid")
    return sampler(**_given("times", sampler, settings))


def field_grid(config: ConfigDict) -> Grid:
    """Cells of a training field; one per pixel, or cell of latents, unless configured.

    Raises:
        ValueError: the grid does not tile the images.
    """
    factor = config.data.get("factor") or 1
    size, what = config.data.size // factor, "pixels" if factor == 1 else "latents"
    grid = tuple(config.times.grid) or (size, size)
    if len(grid) != 2 or any(cells < 1 or size % cells for cells in grid):
        raise ValueError(f"expected config.times.grid = (rows, columns) that tile {size}x{size} {what}, got {grid}")
    return grid


def weight(config: ConfigDict) -> losses.Weight:
    """Weight of a cell's error by its time. Raises ValueError on an unknown name."""
    name = _choose("config.loss.weight", config.loss.weight, {name: name for name in ("uniform", "sid2")})
    return losses.Uniform() if name == "uniform" else losses.SiD2(config.loss.bias)


def loss(config: ConfigDict, model: nn.Module, sampler: times_lib.TimeSampler | None = None) -> LossFn:
    """The loss of a batch `(params, keys, {"image", "label"}) -> (scalar, metrics)`, labels dropped at their rate.

    Of a supervised run a batch has a "mask" too.

    Args:
        sampler: of training times; None for what is configured.

    Raises:
        ValueError: a setting out of range, or the weight of a head that the model does not have.
    """
    settings = config.loss
    if not 0 <= settings.label_dropout <= 1 or settings.uncertainty < 0:
        raise ValueError(
            "expected config.loss.label_dropout in [0, 1] and config.loss.uncertainty >= 0, got "
            f"{settings.label_dropout} and {settings.uncertainty}"
        )
    # a run that trains the head alone needs its likelihood, and a model without the head has none to train
    uncertainty = settings.uncertainty if model.log_variance else 0.0
    if config.optim.only and not uncertainty:
        raise ValueError(
            f"expected config.model.log_variance and config.loss.uncertainty > 0 to train {config.optim.only!r} alone"
        )
    static: dict[str, Any] = {
        "model": model,
        "process": process(config),
        "kind": kind(config),
        "times": sampler or times(config),
        "weight": weight(config),
        "uncertainty": uncertainty,
    }
    supervised, grid = datasets.holes(config), field_grid(config)
    rate, null, told = settings.label_dropout, model.num_classes, bool(text_width(config))

    def loss_fn(params: Any, keys: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        cond = losses.drop_labels(keys, Condition(label=batch["label"]), rate, null) if null else None
        if told:
            cond = losses.drop_texts(keys, Condition(tokens=batch["tokens"], mask=batch["counted"]), rate)
        params = sharding.gather(params, model.logical_axes(params), model.dtype)
        if supervised:
            return supervised_loss(params, keys, batch["image"], batch["mask"], cond, **static)
        return losses.loss(params, keys, batch["image"], cond, grid=grid, **static)

    return loss_fn


def rate(config: ConfigDict) -> optax.Schedule:
    """The learning rate by step. Raises ValueError on settings out of range."""
    optim = config.optim
    return learning_rate(optim.learning_rate, warmup=optim.warmup, decay=optim.schedule, steps=config.train.steps)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam with clipping and schedule. Raises ValueError on settings out of range."""
    optim = config.optim
    return adam(rate(config), b1=optim.b1, b2=optim.b2, clip=optim.clip, only=optim.only)


def solver(config: ConfigDict, process: Process) -> solvers.Solver:
    """How a sample moves. Raises ValueError on an unknown name."""
    make = _choose("config.sample.solver", config.sample.solver, SOLVERS)
    return make(process, config.sample.eta) if config.sample.solver == "ddim" else make(process)


def grid(config: ConfigDict, num_steps: int, process: Process) -> Float[Array, "s"]:
    """The times of a synchronous run [num_steps + 1], from 1 to 0. Raises ValueError on an unknown name."""
    name = config.sample.grid
    if name == "shifted":
        return grids.shifted(num_steps, config.sample.shift)
    if name == "logsnr":
        return grids.logsnr(num_steps, process)
    plain = {"linear": grids.linear, "cosine": grids.cosine}
    return _choose("config.sample.grid", name, {**plain, "shifted": None, "logsnr": None})(num_steps)


class Run(NamedTuple):
    """A trained network, and what one needs to sample from it."""

    config: ConfigDict  # what it was trained with
    model: nn.Module
    process: Process
    kind: Kind
    params: Any  # averaged over the training
    step: int
    num_classes: int  # 0: trained without classes
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # h, w, c of the images, or of their latents: what the network is shown
    mesh: Mesh | None = None  # devices that batches are spread over; None: the default device
    autoencoder: Autoencoder | None = None  # what lies between pixels and the network; None: nothing does
    encoder: TextEncoder | None = None  # what reads texts for the network; None: it has none, or nobody asked
    prompts: texts.Prompts | None = None  # what labels are the indices of; None: of classes

    @property
    def pixels(self) -> tuple[int, int, int]:
        """h, w, c of the images."""
        if self.autoencoder is None:
            return self.shape
        h, w = (side * self.autoencoder.factor for side in self.shape[:2])
        return h, w, self.autoencoder.channels

    def encoded(
        self, images: Float[Any, "b h w c"], mask: Float[Any, "b h w 1"] | None = None, *, whole: bool = True
    ) -> Float[Any, "b _h _w _c"]:
        """Images in [-1, 1] as the network is shown them: themselves, or their latents (`Autoencoder.encode`).

        Args:
            mask: 1 where an autoencoder must not look.
        """
        return images if self.autoencoder is None else self.autoencoder.encode(images, mask, whole=whole)

    def decoded(self, x: Float[Any, "b _h _w _c"], mask: Float[Any, "b h w 1"] | None = None) -> Float[Any, "b h w c"]:
        """Images in about [-1, 1] of what the network makes.

        Args:
            mask: the one that what is known was encoded with.
        """
        return x if self.autoencoder is None else self.autoencoder.decode(x, mask)

    def told(self, prompts: Sequence[str]) -> "Run":
        """The same, whose labels are the indices of these texts. Raises ValueError for a run without an encoder."""
        if self.encoder is None:
            raise ValueError("expected a run with a text encoder for prompts, got one without")
        return self._replace(prompts=texts.prompts(self.encoder, prompts))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What labels stand for: prompts, or classes; () for a network that is told neither."""
        if self.prompts is not None:
            return self.prompts.texts
        return self.class_names if self.num_classes else ()

    def unknown(self, mask: Float[Any, "b h w 1"]) -> Float[Any, "b _h _w 1"]:
        """A mask of pixels on what the network is shown: a cell of latents with anything unknown is unknown."""
        return mask if self.autoencoder is None else unknown_cells(mask, self.autoencoder.factor)


def mesh(config: ConfigDict) -> Mesh:
    """The devices of all processes in the shape of `config.mesh`. Raises ValueError if there are more or fewer."""
    return sharding.make_mesh(**config.mesh)


def layout(run: Run, mesh: Mesh) -> Any:
    """Where each parameter lies on a mesh: a tree of shardings."""
    return sharding.parameters(mesh, run.params, run.model.logical_axes(run.params))


def init_params(model: nn.Module, key: jax.Array, shape: tuple[int, int, int], layout: Any = None) -> Any:
    """Random parameters for images of `shape`, made where `layout` wants them (default: on the default device)."""

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, *shape)), jnp.zeros((1, 1, 1, 1)))["params"]

    return jax.jit(init, out_shardings=layout)(key)


def untrained(config: ConfigDict, data: Dataset) -> Run:
    """A run before its first step; its parameters are shapes only.

    Raises:
        ValueError: a setting that does not make sense, or a network that does not fit the images.
    """
    network = model(config, data.num_classes)
    data = datasets.seen(config, data)
    params = _shapes(network, data.shape)
    names, classes = data.class_names, network.num_classes
    return Run(config, network, process(config), kind(config), params, 0, classes, names, data.shape)


def _shapes(network: nn.Module, shape: tuple[int, int, int]) -> Any:
    return jax.eval_shape(lambda key: init_params(network, key, shape), jax.random.key(0))


def load_run(
    workdir: epath.PathLike,
    step: int | None = None,
    mesh: Mesh | None = None,
    *,
    fall_back: bool = True,
    autoencoder: str | None = None,
) -> Run:
    """The run in a folder, with its averaged parameters at a step (default: the newest whole checkpoint).

    They are laid out on `mesh`, whatever they were trained on; by default each device has all of them.

    Args:
        fall_back: whether to use an older checkpoint, with a warning, if the newest is damaged.
        autoencoder: the folder where that of a run in latents lies now; None: where it lay in training.

    Raises:
        FileNotFoundError: nothing was trained there, or no such checkpoint.
        DamagedError: the checkpoint is damaged, or all are.
        ValueError: the checkpoint does not fit the network that the run's record describes, or no such autoencoder.
    """
    there = record_of(workdir, step, fall_back=fall_back)
    config = ConfigDict(there["config"])
    shape = tuple(there["data"]["shape"])
    network = model(config, there["data"]["num_classes"])
    mesh = sharding.make_mesh() if mesh is None else mesh
    names, shapes = tuple(there["data"]["class_names"]), _shapes(network, shape)
    coder = autoencoders.of_run(config, there["data"].get("latents"), mesh, autoencoder)
    run = Run(config, network, process(config), kind(config), shapes, 0, network.num_classes, names, shape, mesh, coder)
    with Checkpoints(epath.Path(workdir) / "checkpoints", read_only=True, fall_back=fall_back) as checkpoints:
        params, step = checkpoints.restore_ema(sharding.abstract(shapes, layout(run, mesh)), step)
    return run._replace(params=params, step=step)
