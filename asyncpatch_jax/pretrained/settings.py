"""How images are made from prompts: sizes, steps, guidance, schedule; what each family of networks supports."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from asyncpatch_jax.process import Process
from asyncpatch_jax.sampling import solvers
from asyncpatch_jax.sampling.schedules.curves import Curve

ScheduleName = Literal["sync", "concave", "asyndm"]
Method = Literal["cfg", "cfg++", "z-sampling", "seg", "s-cfg"]
Masks = Literal["dynamic", "fixed", "drawn"]
SolverName = Literal["ddim", "euler", "heun", "dpm2m"]
TextTime = Literal["masked", "mean", "reference", "max", "min"]

# which networks a method is made for: a distilled network (FLUX) has no unconditional half to guide away from
METHODS: dict[str, tuple[str, ...]] = {
    "cfg": ("sd", "sdxl", "sd3", "flux", "kontext"),
    "cfg++": ("sd", "sdxl", "sd3"),
    "z-sampling": ("sd", "sdxl", "sd3"),
    "seg": ("sd", "sdxl", "sd3"),
    "s-cfg": ("sd", "sdxl", "sd3"),
}
_SOLVERS: dict[str, Callable[[Process], solvers.Solver]] = {
    "euler": solvers.Euler,
    "heun": solvers.Heun,
    "dpm2m": solvers.DPMSolver2M,
}


# a slip of a digit shall not ask a machine for all its memory; no network was trained for a sixteenth of it
MOST_PIXELS, MOST_STEPS = 2**14, 10_000


@dataclass(frozen=True)
class Settings:
    """What all images of a run share; `defaults` has a family's own.

    height, width: in pixels.
    num_steps: calls of the network (Heun and Z-Sampling make more).
    guidance: the classifier-free scale, 1 for none; for FLUX the scale that the distilled network is told.
    negative_guidance: FLUX only: the classifier-free scale against a negative prompt; 1 for none.
    method: the guidance. cfg++ reads `guidance` as its lambda, 0 ... 1.
    solver, eta: how cells move; eta is DDIM's stochasticity.
    schedule: when they move. sync: all together; concave: all along `curve`; asyndm: those of the prompt's objects.
    curve: of cells that go slower.
    omega: how much slower, 0 ... 1, for an object that says nothing of its own. With "concave" an image goes as slow as
        its slowest object.
    masks: where an object is. dynamic: by its attention at each step; fixed: by its attention over a whole synchronous
        run, made first; drawn: by a mask that is given.
    threshold: a cell is an object's if its attention is at least so many times the mean.
    text_time: what time the text tokens of joint attention are told, see `schedules.concave`.
    t5_length: tokens of T5's text; None: what the family was published with; 0: Stable Diffusion 3 without T5.
    reference_compat: what the released code of AsynDM does otherwise than its paper and the public samplers: an
        object's tokens are where it takes them (see `spans`), all cells begin with the object whose word comes last,
        and the steps of Stable Diffusion's levels are of 1000 / n, also where n does not divide 1000.

    Raises:
        ValueError: no such name, or a number out of range.
    """

    height: int
    width: int
    num_steps: int
    guidance: float
    negative_guidance: float = 1.0
    method: Method = "cfg"
    solver: SolverName = "ddim"
    eta: float = 0.0
    schedule: ScheduleName = "sync"
    curve: Curve = "quadratic"
    omega: float = 0.5
    masks: Masks = "dynamic"
    threshold: float = 1.0
    text_time: TextTime = "masked"
    t5_length: int | None = None
    reference_compat: bool = False

    def __post_init__(self):
        for name, options in (
            ("method", Method),
            ("solver", SolverName),
            ("schedule", ScheduleName),
            ("curve", Curve),
            ("masks", Masks),
            ("text_time", TextTime),
        ):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"expected {name} out of {', '.join(get_args(options))}, got {getattr(self, name)!r}")
        if min(self.height, self.width, self.num_steps) < 1:
            raise ValueError(
                f"expected height, width and num_steps >= 1, got {self.height}, {self.width}, {self.num_steps}"
            )
        if max(self.height, self.width) > MOST_PIXELS or self.num_steps > MOST_STEPS:
            raise ValueError(
                f"expected at most {MOST_PIXELS} pixels a side and {MOST_STEPS} steps, got {self.height}, {self.width} "
                f"and {self.num_steps}"
            )
        if not (math.isfinite(self.guidance) and math.isfinite(self.negative_guidance) and self.eta >= 0):
            raise ValueError(
                f"expected finite scales and eta >= 0, got {self.guidance}, {self.negative_guidance} and {self.eta}"
            )
        if not (0 <= self.omega <= 1 and 0 < self.threshold < math.inf):
            raise ValueError(f"expected omega in 0 ... 1 and threshold > 0, got {self.omega} and {self.threshold}")
        if self.method == "cfg++" and not 0 <= self.guidance <= 1:
            raise ValueError(f"expected guidance in 0 ... 1 for cfg++ (its lambda), got {self.guidance}")
        if self.method in ("cfg++", "z-sampling") and (self.solver, self.eta) != ("ddim", 0.0):
            raise ValueError(f"expected the ddim solver with eta = 0 for {self.method}, which is made of its steps")
        if self.eta and self.solver != "ddim":
            raise ValueError(f"expected eta = 0 for {self.solver}: only ddim is stochastic, got {self.eta}")
        if self.method == "s-cfg" and self.schedule == "asyndm":
            raise ValueError("expected s-cfg with the schedule sync or concave: both it and asyndm read attention maps")

    @property
    def draws_masks(self) -> bool:
        """Whether each image says where its objects are."""
        return self.schedule == "asyndm" and self.masks == "drawn"


_DEFAULTS: dict[str, dict[str, Any]] = {
    "sd": {"num_steps": 50, "guidance": 7.5},
    "sdxl": {"num_steps": 50, "guidance": 5.0},
    "sd3": {"num_steps": 28, "guidance": 7.0, "solver": "euler"},
    "flux": {"num_steps": 28, "guidance": 3.5, "solver": "euler"},
    "kontext": {"num_steps": 28, "guidance": 2.5, "solver": "euler"},
}
# the guidance of AsynDM's table (arXiv 2510.04504); the methods' own papers have .6 (CFG++'s lambda, arXiv 2406.08070)
# and 5.5 (Z-Sampling, arXiv 2412.10891). Both are made of DDIM's steps.
_OF_METHOD: dict[str, dict[str, Any]] = {
    "cfg++": {"guidance": 0.4, "solver": "ddim"},
    "z-sampling": {"guidance": 5.0, "solver": "ddim"},
}


def defaults(family: str, size: int, **changes: Any) -> Settings:
    """The settings that a family's authors suggest for square images of `size` pixels, with changes by name.

    Raises:
        ValueError: no such family; or as `Settings`.
    """
    if family not in _DEFAULTS:
        raise ValueError(f"expected a family out of {', '.join(_DEFAULTS)}, got {family!r}")
    changes = {name: value for name, value in changes.items() if value is not None}
    method = _OF_METHOD.get(changes.get("method", "cfg"), {})
    return Settings(**{"height": size, "width": size, **_DEFAULTS[family], **method, **changes})


def check_method(family: str, settings: Settings) -> None:
    """Refuse a guidance that a family does not support.

    Raises:
        ValueError: names the families that do.
    """
    if family not in METHODS[settings.method]:
        able = ", ".join(METHODS[settings.method])
        raise ValueError(f"expected a network of {able} for the method {settings.method}, got {family}")
    if settings.negative_guidance != 1.0 and family not in ("flux", "kontext"):
        raise ValueError(f"expected negative_guidance with flux or kontext, got {family}, whose guidance is the same")


def solver(settings: Settings, process: Process) -> solvers.Solver:
    """The solver of these settings."""
    if settings.solver == "ddim":
        return solvers.DDIM(process, settings.eta)
    return _SOLVERS[settings.solver](process)
