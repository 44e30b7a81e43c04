"""Trained timestep policies: what a folder of `launch.train_tpm` holds, and the schedules that follow it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.files import write_json
from asyncpatch_jax.models.tpm import TPM, Observation
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.types import Condition
from launch.shared.build import plain, read_record


class Policy(NamedTuple):
    """A timestep prediction module and what its answers mean."""

    module: TPM
    params: Any
    gain: float
    space: str

    def schedule(self, base: Schedule, cond: Condition | None, *, gamma: Any = 1.0, mode: str = "mode") -> TPMSchedule:
        """`base`, with what this policy tells of it; `gamma` scales deviations."""
        gain = jnp.float32(self.gain * gamma)
        return TPMSchedule(base, self.module, self.params, cond, gain, mode, self.space)


def module(config: ConfigDict, num_classes: int, context_dim: int) -> TPM:
    """The module of `config.policy`.

    Args:
        num_classes, context_dim: of what is known of images, see `TPM`.

    Raises:
        ValueError: a setting out of range.
    """
    settings = {name: value for name, value in config.policy.items() if name not in ("gain", "space")}
    return TPM(**settings, num_classes=num_classes, context_dim=context_dim)


def shapes(built: TPM, shape: tuple[int, int, int]) -> Any:
    """Shapes of the module's parameters, for latents of `shape`.

    Raises:
        ValueError: latents that are no whole number of the module's patches or cells.
    """
    return jax.eval_shape(lambda key: init(built, key, shape), jax.random.key(0))


def init(built: TPM, key: jax.Array, shape: tuple[int, int, int]) -> Any:
    """Parameters of a module that deviates from nothing yet."""
    x = jnp.zeros((1, *shape))
    seen = Observation(x, x, x, jnp.ones((1, 1, 1, 1)), jnp.zeros((1,)))
    label = jnp.zeros((1,), jnp.int32) if built.num_classes else None
    tokens = jnp.zeros((1, 1, built.context_dim)) if built.context_dim else None
    return built.init(key, seen, Condition(label=label, tokens=tokens))["params"]


def record(config: ConfigDict, built: TPM, shape: tuple[int, int, int]) -> None:
    """Write what the training in `config.workdir` is."""
    about = {"num_classes": built.num_classes, "context_dim": built.context_dim, "shape": shape}
    write_json(_record(config.workdir), {"config": plain(config), "policy": about}, overwrite=True)


def recorded(workdir: epath.PathLike) -> dict[str, Any] | None:
    """{"config", "policy"} as `record` wrote it; None if nothing was started there.

    Raises:
        ValueError: the record is damaged.
    """
    return read_record(_record(workdir), "policy")


def load(workdir: epath.PathLike, step: int | None = None, mesh: Mesh | None = None) -> Policy:
    """The policy that was trained in a folder, after a number of iterations (default: the newest checkpoint).

    Each device of the mesh has it; without one, the first.

    Raises:
        FileNotFoundError: nothing was trained there, or no such checkpoint.
        ValueError: a damaged record, or a checkpoint of another module.
    """
    content = recorded(workdir)
    if content is None:
        raise FileNotFoundError(
            f"expected a trained policy in {workdir}, found none; train one: python -m launch.train_tpm --config=..."
        )
    config, about = ConfigDict(content["config"]), content["policy"]
    built = module(config, about["num_classes"], about["context_dim"])
    like = shapes(built, tuple(about["shape"]))
    if mesh is not None:
        like = sharding.abstract(like, sharding.replicated(mesh))
    with Checkpoints(epath.Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        params = checkpoints.restore_ema(like, step)
    return Policy(built, params, config.policy.gain, config.policy.space)


def _record(workdir: epath.PathLike) -> epath.Path:
    return epath.Path(workdir) / "policy.json"
