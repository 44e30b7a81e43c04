"""Trained timestep policies: what a folder of `launch.train_tpm` holds, and the schedules that follow it.

schedule = policies.load("runs/tpm_digits").schedule(Synchronous(grid), cond, gamma=1.0)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from asyncpatch_jax import sharding
from asyncpatch_jax.models.tpm import TPM, Observation
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.training import checkpoints as checkpoints_lib
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.types import Condition


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


def module(settings: Mapping[str, Any], num_classes: int, context_dim: int) -> TPM:
    """The module of the settings `policy` of a training.

    Args:
        num_classes, context_dim: of what is known of images, see `TPM`.

    Raises:
        ValueError: a setting out of range.
    """
    own = {name: value for name, value in settings.items() if name not in ("gain", "space")}
    return TPM(**own, num_classes=num_classes, context_dim=context_dim)


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


def recorded(workdir: epath.PathLike, step: int | None = None, fall_back: bool = True) -> dict[str, Any] | None:
    """{"config", "policy"} of the training in a folder; None if there is none. Errors as `checkpoints.recorded`."""
    return checkpoints_lib.recorded(workdir, "policy.json", "policy", step, fall_back)


def load(
    workdir: epath.PathLike, step: int | None = None, mesh: Mesh | None = None, *, fall_back: bool = True
) -> Policy:
    """The policy that was trained in a folder, after a number of iterations (default: the newest whole checkpoint).

    Each device of the mesh has it; without one, the first.

    Args:
        fall_back: whether to use an older checkpoint, with a warning, if the newest is damaged.

    Raises:
        FileNotFoundError: nothing was trained there, or no such checkpoint.
        DamagedError: the checkpoint is damaged, or all are.
        ValueError: a checkpoint of another module; or of before checkpoints said what they are of, without policy.json.
    """
    content = recorded(workdir, step, fall_back)
    if content is None:
        raise FileNotFoundError(
            f"expected a trained policy in {workdir}, found none; train one: python -m launch.train_tpm --config=..."
        )
    if "policy" not in content:
        raise ValueError(f"expected checkpoints of a policy in {workdir}, with policy.json if they are old, got others")
    settings, about = content["config"]["policy"], content["policy"]
    built = module(settings, about["num_classes"], about["context_dim"])
    like = shapes(built, tuple(about["shape"]))
    if mesh is not None:
        like = sharding.abstract(like, sharding.replicated(mesh))
    with Checkpoints(epath.Path(workdir) / "checkpoints", read_only=True, fall_back=fall_back) as checkpoints:
        params, _ = checkpoints.restore_ema(like, step)
    return Policy(built, params, settings["gain"], settings["space"])
