"""scheduler_config.json: the noise process of a pretrained network, its prediction, and the times of a sampling run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax.pretrained.networks.configuration import check
from asyncpatch_jax.process import Discrete, Kind, Process, RectifiedFlow

_SPACINGS = ("leading", "trailing", "linspace")
_KINDS: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# what diffusers' schedulers of discrete levels do where config.json does not say it: (timestep_spacing,
# set_alpha_to_one, clip_sample). All of them sample the same process, and it is sampled here by DDIM's grid.
_DISCRETE: dict[str, tuple[str, bool, bool]] = {
    "DDIMScheduler": ("leading", True, True),
    "DDPMScheduler": ("leading", True, True),
    "PNDMScheduler": ("leading", False, False),
    "EulerDiscreteScheduler": ("linspace", True, False),
    "EulerAncestralDiscreteScheduler": ("linspace", True, False),
    "DPMSolverMultistepScheduler": ("linspace", True, False),
}
_FLOW = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class Leveled:
    """The grid of Stable Diffusion: whole levels of `process`, as diffusers' `DDIMScheduler` spaces them.

    offset: added to the levels of "leading" spacing.
    to_clean: the last move ends at clean data, else at level 0.
    """

    process: Discrete
    spacing: str
    offset: int
    to_clean: bool

    def __post_init__(self):
        if self.spacing not in _SPACINGS:
            raise ValueError(f"expected timestep_spacing out of {', '.join(_SPACINGS)}, got {self.spacing!r}")

    def levels(self, num_steps: int) -> np.ndarray:
        """The levels [num_steps] that the network is asked at, falling.

        Raises:
            ValueError: more steps than levels.
        """
        count = self.process.num_steps
        if not 1 <= num_steps <= count:
            raise ValueError(f"expected 1 to {count} steps, got {num_steps}")
        if self.spacing == "linspace":
            levels = np.linspace(0, count - 1, num_steps).round()[::-1]
        elif self.spacing == "trailing":
            levels = np.round(count - np.arange(num_steps) * (count / num_steps)) - 1
        else:
            levels = np.arange(num_steps)[::-1] * (count // num_steps) + self.offset
        if levels[0] >= count:
            raise ValueError(
                f"expected fewer steps: with the offset {self.offset}, {num_steps} begin above {count - 1}"
            )
        return levels.astype(np.int64)

    def grid(self, num_steps: int, tokens: int | None) -> np.ndarray:
        count, levels = self.process.num_steps, self.levels(num_steps)
        last = levels[-1] - count // num_steps
        end = (last + 1) / count if last >= 0 else 0.0 if self.to_clean else 1 / count
        return np.append((levels + 1) / count, end)

    def shift_of(self, tokens: int | None) -> float:
        return 1.0

    def timestep(self, t: jax.Array) -> jax.Array:
        # 1024ths: a level's float32 time then is exactly that level. No network was trained on clean data: it is told
        # the least noise that it knows
        return jnp.maximum(jnp.round(self.process.index(t) * 1024) / 1024, 0.0)


@dataclass(frozen=True)
class Flow:
    """The grid of rectified flow, shifted towards noise: diffusers' `FlowMatchEulerDiscreteScheduler`.

    shift: `s t / (1 + (s - 1) t)`; with dynamic shifting, s = e^mu or mu, of which mu is linear in the image's tokens.
    mu: ((tokens, mu), (tokens, mu)) that the line goes through; None: no dynamic shifting.
    exponential: s = e^mu.
    whole: the unshifted times of n steps are 1, (n - 1) / n, ..., 1 / n, as FLUX's pipelines have them; else they go
        from 1 to the (shifted) first of `num_train_steps` in equal steps, as for Stable Diffusion 3.
    """

    num_train_steps: int
    shift: float
    mu: tuple[tuple[int, float], tuple[int, float]] | None
    exponential: bool
    whole: bool

    def __post_init__(self):
        if self.shift <= 0:
            raise ValueError(f"expected shift > 0, got {self.shift}")

    def grid(self, num_steps: int, tokens: int | None) -> np.ndarray:
        if num_steps < 1:
            raise ValueError(f"expected one step or more, got {num_steps}")
        least = 1 / self.num_train_steps
        end = 1 / num_steps if self.whole else _shifted(least, self.shift) if self.mu is None else least
        return np.append(_shifted(np.linspace(1, end, num_steps), self.shift_of(tokens)), 0.0)

    def shift_of(self, tokens: int | None) -> float:
        if self.mu is None:
            return self.shift
        if tokens is None:
            raise ValueError("expected the image's number of tokens, by which this scheduler shifts times, got None")
        (low, first), (high, last) = self.mu
        mu = first + (tokens - low) * (last - first) / (high - low)
        return math.exp(mu) if self.exponential else mu

    def timestep(self, t: jax.Array) -> jax.Array:
        return t * self.num_train_steps


def _shifted(t: Any, shift: float) -> Any:
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class Scheduler:
    """How a pretrained network's times and outputs are to be read.

    kind: of the network's prediction, as in `process.predict`.
    """

    process: Process
    kind: Kind
    spaced: Leveled | Flow

    def grid(self, num_steps: int, tokens: int | None = None) -> Float[Array, "s"]:
        """Library times [num_steps + 1] of a synchronous run, falling: those of diffusers' DDIM or flow-match Euler.

        For levels that the number of steps does not divide, "trailing" and "linspace" move from each level to the
        next. (diffusers' DDIM there ends each move a level off of where the next begins.)

        Args:
            tokens: of the image, for a scheduler that shifts times by them.

        Raises:
            ValueError: too few or too many steps, or no tokens where they are needed.
        """
        return jnp.asarray(self.spaced.grid(num_steps, tokens), jnp.float32)

    def shift(self, tokens: int | None = None) -> float:
        """The shift a of `a u / (1 + (a - 1) u)` that the grid has; 1 is none.

        Raises:
            ValueError: no tokens where they are needed.
        """
        return self.spaced.shift_of(tokens)

    def timestep(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """From library times to the network's units: levels 0 ... 999 (fractions too), or 1000 t in flow."""
        return self.spaced.timestep(t)


def from_config(config: Mapping[str, Any], *, whole: bool = False) -> Scheduler:
    """The scheduler of a scheduler_config.json.

    Args:
        whole: the pipeline asks for unshifted flow times 1, ..., 1 / n, as FLUX's do.

    Raises:
        ValueError: a class or a setting that is not implemented, by name.
    """
    name = config.get("_class_name")
    if name == _FLOW:
        return _flow(config, whole)
    if name in _DISCRETE:
        return _discrete(config, *_DISCRETE[name])
    raise ValueError(f"expected a scheduler out of {', '.join([*_DISCRETE, _FLOW])}, got {name!r}")


def _discrete(config: Mapping[str, Any], spacing: str, to_clean: bool, clip: bool) -> Scheduler:
    used = {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "set_alpha_to_one",
        "rescale_betas_zero_snr",
    }
    fixed = {
        "clip_sample": False,
        "thresholding": False,
        "trained_betas": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    }
    # settings of other solvers than ours
    ignored = {
        "skip_prk_steps",
        "interpolation_type",
        "sample_max_value",
        "dynamic_thresholding_ratio",
        "clip_sample_range",
        "variance_type",
        "sigma_min",
        "sigma_max",
        "algorithm_type",
        "solver_type",
        "solver_order",
        "lower_order_final",
        "euler_at_final",
        "lambda_min_clipped",
        "flow_shift",
        "time_shift_type",
    }
    name = config["_class_name"]
    check({"clip_sample": clip, **config}, name, used, fixed, ignored)
    if (prediction := config.get("prediction_type", "epsilon")) not in _KINDS:
        raise ValueError(f"expected a prediction_type out of {', '.join(_KINDS)}, got {prediction!r}")
    process = Discrete(
        config.get("num_train_timesteps", 1000),
        config.get("beta_start", 0.0001),
        config.get("beta_end", 0.02),
        config.get("beta_schedule", "linear"),
        config.get("rescale_betas_zero_snr", False),
    )
    leveled = Leveled(
        process,
        config.get("timestep_spacing", spacing),
        config.get("steps_offset", 0),
        config.get("set_alpha_to_one", to_clean),
    )
    return Scheduler(process, _KINDS[prediction], leveled)


def _flow(config: Mapping[str, Any], whole: bool) -> Scheduler:
    used = {
        "num_train_timesteps",
        "shift",
        "use_dynamic_shifting",
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "time_shift_type",
    }
    fixed = {
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "stochastic_sampling": False,
    }
    check(config, _FLOW, used, fixed, set())
    if (kind := config.get("time_shift_type", "exponential")) not in ("exponential", "linear"):
        raise ValueError(f"expected time_shift_type = 'exponential' or 'linear', got {kind!r}")
    line = (
        (config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)),
        (config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)),
    )
    spaced = Flow(
        num_train_steps=config.get("num_train_timesteps", 1000),
        shift=config.get("shift", 1.0),
        mu=line if config.get("use_dynamic_shifting", False) else None,
        exponential=kind == "exponential",
        whole=whole,
    )
    return Scheduler(RectifiedFlow(), "velocity", spaced)
