"""scheduler_config.json: the noise process of a pretrained network, its prediction, and the times of a sampling run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from msgspec import Meta, Struct, field

from asyncpatch_jax.process import Discrete, Kind, Process, RectifiedFlow
from asyncpatch_jax.sampling.schedules.grids import MOST_STEPS
from asyncpatch_jax.schema import Settings, convert

_FURTHEST = 20
_SPACINGS = ("leading", "trailing", "linspace")
_KINDS: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class _Usual(NamedTuple):
    """What a class of diffusers does where its config.json does not say it."""

    spacing: str = "linspace"
    to_clean: bool = True
    clip: bool = False
    betas: tuple[float, float] = (0.0001, 0.02)


_LATENT = (0.00085, 0.012)
# All of them sample the same process, and it is sampled here by this library's solvers at DDIM's times
_DISCRETE: dict[str, _Usual] = {
    "DDIMScheduler": _Usual("leading", clip=True),
    "DDPMScheduler": _Usual("leading", clip=True),
    "PNDMScheduler": _Usual("leading", to_clean=False),
    "EulerDiscreteScheduler": _Usual(),
    "EulerAncestralDiscreteScheduler": _Usual(),
    "DPMSolverMultistepScheduler": _Usual(),
    "DPMSolverSinglestepScheduler": _Usual(),
    "DPMSolverSDEScheduler": _Usual(betas=_LATENT),
    "UniPCMultistepScheduler": _Usual(),
    "DEISMultistepScheduler": _Usual(),
    "SASolverScheduler": _Usual(),
    "LMSDiscreteScheduler": _Usual(),
    "HeunDiscreteScheduler": _Usual(betas=_LATENT),
    "KDPM2DiscreteScheduler": _Usual(betas=_LATENT),
    "KDPM2AncestralDiscreteScheduler": _Usual(betas=_LATENT),
}
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


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
            levels = np.arange(num_steps, dtype=np.float64)[::-1] * (count // num_steps) + self.offset
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
        if not 1 <= num_steps <= MOST_STEPS:
            raise ValueError(f"expected one step or more, at most {MOST_STEPS}, got {num_steps}")
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
        # beyond e^20, and at or below 0, all times of a run would be the same
        if not (-_FURTHEST <= mu <= _FURTHEST if self.exponential else mu > 0):
            kind = f"from -{_FURTHEST} to {_FURTHEST}" if self.exponential else "above 0"
            raise ValueError(f"expected a shift of times whose mu is {kind} for {tokens} tokens, got {mu:g}")
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
    name = _class_name(config)
    return _flow(config, name, whole) if name in _FLOW else _discrete(config, name)


def notes(config: Mapping[str, Any]) -> list[str]:
    """What a scheduler_config.json asks for that is not followed here: how its own solver goes through the process.

    Raises:
        ValueError: as `from_config`.
    """
    name, found = _class_name(config), []
    if name not in ("DDIMScheduler", _FLOW[0]):
        like = "flow-match Euler's" if name in _FLOW else "DDIM's"
        found.append(f"{name} is a solver: its process is sampled by the solver that is asked for, at {like} times")
    found += [f"{key} is not followed: it places the steps of another solver" for key in _SPACED if config.get(key)]
    if config.get("final_sigmas_type", "zero") != "zero":
        found.append("final_sigmas_type is not followed: the last step ends as set_alpha_to_one says")
    return found


class _Named(Struct, frozen=True):
    name: str = field(name="_class_name")


def _class_name(config: Mapping[str, Any]) -> str:
    name = convert(config, _Named, "a scheduler_config.json").name
    if name not in _DISCRETE and name not in _FLOW:
        raise ValueError(f"expected a scheduler out of {', '.join([*_DISCRETE, *_FLOW])}, got {name!r}")
    return name


_Levels = Annotated[int, Meta(ge=1, le=100_000)]
_Beta = Annotated[float, Meta(ge=1e-9, lt=1)]
_Shift = Annotated[float, Meta(gt=0, le=1000)]
_Mu = Annotated[float, Meta(ge=-20, le=20)]
# where another solver would place its steps between the same two ends; it is not asked here
_SPACED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
)


class DiscreteConfig(Settings, frozen=True):
    """A scheduler_config.json of discrete levels; None is as the class has it, see `_DISCRETE`."""

    num_train_timesteps: _Levels = 1000
    beta_start: _Beta | None = None
    beta_end: _Beta | None = None
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    steps_offset: Annotated[int, Meta(ge=0, lt=100_000)] = 0
    set_alpha_to_one: bool | None = None
    rescale_betas_zero_snr: bool = False

    fixed: ClassVar[Mapping[str, Any]] = {
        "clip_sample": False,
        "thresholding": False,
        "trained_betas": None,
        "use_flow_sigmas": False,
        "timestep_type": "discrete",
    }
    # settings of other solvers than ours
    ignored: ClassVar[frozenset[str]] = frozenset(_SPACED) | {
        "skip_prk_steps", "interpolation_type", "sample_max_value", "dynamic_thresholding_ratio", "clip_sample_range",
        "variance_type", "sigma_min", "sigma_max", "algorithm_type", "solver_type", "solver_order", "solver_p",
        "lower_order_final", "euler_at_final", "final_sigmas_type", "lambda_min_clipped", "flow_shift",
        "time_shift_type", "predict_x0", "disable_corrector", "use_corrector", "noise_sampler_seed",
        "predictor_order", "corrector_order", "tau_func",
    }  # fmt: skip


def _discrete(config: Mapping[str, Any], name: str) -> Scheduler:
    usual = _DISCRETE[name]
    given = convert({"clip_sample": usual.clip, **config}, DiscreteConfig, f"the scheduler_config.json of {name}")
    process = Discrete(
        given.num_train_timesteps,
        given.beta_start or usual.betas[0],
        given.beta_end or usual.betas[1],
        given.beta_schedule,
        given.rescale_betas_zero_snr,
    )
    leveled = Leveled(
        process,
        given.timestep_spacing or usual.spacing,
        given.steps_offset,
        usual.to_clean if given.set_alpha_to_one is None else given.set_alpha_to_one,
    )
    return Scheduler(process, _KINDS[given.prediction_type], leveled)


class FlowConfig(Settings, frozen=True):
    """A scheduler_config.json of rectified flow."""

    num_train_timesteps: _Levels = 1000
    shift: _Shift = 1.0
    use_dynamic_shifting: bool = False
    base_shift: _Mu = 0.5
    max_shift: _Mu = 1.15
    base_image_seq_len: Annotated[int, Meta(ge=1, lt=2**24)] = 256
    max_image_seq_len: Annotated[int, Meta(ge=1, lt=2**24)] = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"

    fixed: ClassVar[Mapping[str, Any]] = {"invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False}
    ignored: ClassVar[frozenset[str]] = frozenset(_SPACED)


def _flow(config: Mapping[str, Any], name: str, whole: bool) -> Scheduler:
    given = convert(config, FlowConfig, f"the scheduler_config.json of {name}")
    if given.use_dynamic_shifting and given.base_image_seq_len == given.max_image_seq_len:
        raise ValueError(
            f"expected a max_image_seq_len other than base_image_seq_len, got {given.max_image_seq_len} for both"
        )
    line = (given.base_image_seq_len, given.base_shift), (given.max_image_seq_len, given.max_shift)
    spaced = Flow(
        num_train_steps=given.num_train_timesteps,
        shift=given.shift,
        mu=line if given.use_dynamic_shifting else None,
        exponential=given.time_shift_type == "exponential",
        whole=whole,
    )
    return Scheduler(RectifiedFlow(), "velocity", spaced)
