"""Impossible values: every constructor says what it expected and what it got, and none takes one in silence.

The table below gives each argument of the library the hostile values of its sort. Nothing is compiled.
"""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.data import masks as data_masks
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.models import TPM, DiT, UNet
from asyncpatch_jax.process import (
    Discrete,
    RectifiedFlow,
    coefficients,
    diffuse,
    output,
    predict,
    renoise,
    scale_velocity,
    target,
)
from asyncpatch_jax.sampling import (
    DDIM,
    DDPM,
    Autoregressive,
    Concave,
    ConstantDeviation,
    DPMSolver2M,
    DualLoop,
    Dynamic,
    Euler,
    Fixed,
    Graded,
    Heun,
    Inpaint,
    Synchronous,
    Table,
    TPMSchedule,
    UncertaintyGuided,
    ZSampling,
    cfg_plus_plus,
    classifier_free,
    cosine,
    everywhere,
    from_maps,
    input_guidance,
    linear,
    logsnr,
    look_ahead,
    one_call,
    paste_back,
    raster,
    repaint,
    repaint_path,
    sample,
    semantic_aware,
    separate_calls,
    shifted,
    shuffled,
    smoothed_energy,
    start,
    two_calls,
)
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.schedules.repaint import RePaint
from asyncpatch_jax.training import times
from asyncpatch_jax.training.elbo import Diagonal, RandomEnvironment, Raster, bits_per_dim, elbo
from asyncpatch_jax.training.grpo import advantages, surrogate
from asyncpatch_jax.training.losses import SiD2, Uniform, drop_labels, loss
from asyncpatch_jax.training.perlin import perlin_noise
from asyncpatch_jax.training.step import adam, learning_rate, train_step
from asyncpatch_jax.types import Condition, FewTimes, Prediction, Times


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """Without the tests' own checks of types, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


FLOW, KEY, NAN, INF = RectifiedFlow(), jax.random.key(0), float("nan"), float("inf")
GRID = np.linspace(1, 0, 5).astype(np.float32)
X = np.zeros((2, 4, 4, 1), np.float32)
T = np.full((2, 1, 1, 1), 0.5, np.float32)
MASK = np.ones((2, 4, 4, 1), np.float32)
ORDER = raster((2, 2))
FIELD = Times(T, T)
NET = UNet(base=8, multipliers=(1,), blocks=1, attention=())


def net(x, times):
    return Prediction(x, x, {})


def pair(x, times):
    return net(x, times), net(x, times)


# numbers of an array, written out
WRITTEN_OUT = re.compile(r"\[\s*(nan|-?\d[\d.e+-]*),?\s+(nan|-?\d+\.)")


def raised(call):
    """What a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


def used(thing):
    """Constructed, and asked for its first field: what cannot be told at construction is told there."""
    if hasattr(thing, "init") and hasattr(thing, "next"):
        keys = keys_lib.per_image(KEY, len(X))
        jax.eval_shape(lambda: thing.init(keys, jnp.asarray(X)))
    return thing


NOTHING = {"none": None, "text": "1", "object": object(), "class": dict}
# what no setting can be that is a number
NUMBERS = {
    **NOTHING,
    "nan": NAN,
    "inf": INF,
    "-inf": -INF,
    "numpy nan": np.float32("nan"),
    "jax nan": jnp.float32("nan"),
    "complex": 1j,
    "true": True,
    "three": np.ones(3),
}
NEGATIVE = {"-1": -1, "-.1": -0.1, "numpy -2": np.float32(-2), "jax -2": jnp.float32(-2)}
OVER = {"2": 2, "1.5": 1.5, "numpy 2": np.float32(2)}
ZERO = {"0": 0, "0.0": 0.0, "numpy 0": np.float64(0)}
# nor what may be one number for each image, and traced
SCALES = {**NOTHING, "nan": NAN, "inf": INF, "numpy nan": np.float32("nan"), "a nan": jnp.asarray([1.0, NAN])}
WHOLE = {
    **NOTHING,
    "-1": -1,
    "1.5": 1.5,
    "2.0": 2.0,
    "nan": NAN,
    "inf": INF,
    "true": True,
    "numpy float": np.float32(2),
    "numpy -1": np.int64(-1),
    "three": np.ones(3, int),
}
NO_ZERO = {**WHOLE, "0": 0, "numpy 0": np.int32(0)}
CELLS = {
    **NOTHING,
    "0x0": (0, 0),
    "-1x2": (-1, 2),
    "one": (2,),
    "three": (2, 2, 2),
    "floats": (2.0, 2.0),
    "nan": (NAN, 2),
    "a number": 2,
    "booleans": (True, True),
    "an array": np.asarray([2, 2]),
}
GRIDS = {
    **NOTHING,
    "a list": [1.0, 0.5, 0.0],
    "a number": 0.5,
    "empty": np.zeros(0, np.float32),
    "one": np.ones(1, np.float32),
    "a matrix": np.ones((3, 2), np.float32),
    "nan": np.asarray([1, NAN, 0], np.float32),
    "jax nan": jnp.asarray([NAN, 0.5, 0]),
    "inf": np.asarray([INF, 0.5, 0], np.float32),
    "train steps": np.asarray([999, 500, 0]),
    "negative": np.asarray([1, -0.5, 0], np.float32),
    "rising": GRID[::-1],
    "a step up": np.asarray([1, 0.2, 0.5, 0], np.float32),
    "ends at .5": np.asarray([1, 0.75, 0.5], np.float32),
    "jax ends at .5": jnp.asarray([1, 0.75, 0.5]),
    "complex": GRID.astype(complex),
    "texts": np.asarray(["1", "0"]),
}
MASKS = {
    "text": "1",
    "object": object(),
    "a number": 1.0,
    "a list": [1.0, 0.0],
    "[h, w]": MASK[0, ..., 0],
    "[h, w, 1]": MASK[0],
    "[b, h, w]": MASK[..., 0],
    "[b, h, w, 3]": np.ones((2, 4, 4, 3), np.float32),
    "nan": np.where(np.eye(4)[None, ..., None] > 0, NAN, MASK),
    "jax nan": jnp.where(np.eye(4)[None, ..., None] > 0, NAN, MASK),
    "inf": INF * MASK,
    "255": np.full(MASK.shape, 255, np.uint8),
    "negative": -MASK,
    "complex": MASK.astype(complex),
}
NO_MASK = {**MASKS, "none": None}
IMAGES = {
    **NOTHING,
    "uint8": np.zeros(X.shape, np.uint8),
    "jax uint8": jnp.zeros(X.shape, jnp.uint8),
    "integers": np.zeros(X.shape, int),
    "booleans": np.zeros(X.shape, bool),
    "[h, w, c]": X[0],
    "a number": 0.5,
    "a list": X.tolist(),
    "complex": X.astype(complex),
}
PROCESSES = {**NOTHING, "the class": RectifiedFlow, "a number": 1, "a solver": DDIM(FLOW)}
KINDS = {**NOTHING, "flow": "flow", "V": "V", "bytes": b"v", "a number": 3}
KEYS = {
    **NOTHING,
    "an integer": 0,
    "a float": 0.5,
    "an old key": jax.random.PRNGKey(0),
    "numpy": np.zeros(2, np.uint32),
    "three keys": jax.random.split(KEY, 3),
}
ONE_KEY = {name: value for name, value in KEYS.items() if name != "three keys"}
FUNCTIONS = {"none": None, "text": "net", "a class": dict, "a number": 1, "a field": T}
FIELDS = {**NOTHING, "a field": T, "a number": 0.5, "a tuple": (T, T), "a list": [T, T]}
TIMES = {
    **NOTHING,
    "nan": NAN,
    "over": 1.5,
    "under": -0.5,
    "an array's nan": np.asarray([0.5, NAN], np.float32),
    "train steps": np.asarray([999.0, 1.0]),
    "another batch": np.full(3, 0.5),
}
FIELD_ARRAYS = {
    **NOTHING,
    "a number": 0.5,
    "[b]": np.full(2, 0.5, np.float32),
    "[b, gh, gw]": T[..., 0],
    "half": T.astype(np.float16),
    "integers": T.astype(int),
    "another batch": np.full((3, 1, 1, 1), 0.5, np.float32),
}
ORDERS = {
    **NOTHING,
    "99": np.where(ORDER == 3, 99, ORDER),
    "jax 99": jnp.where(ORDER == 3, 99, ORDER),
    "all known": np.full_like(ORDER, -1),
    "floats": ORDER.astype(np.float32),
    "nan": np.full(ORDER.shape, NAN),
    "[gh, gw]": ORDER[0, ..., 0],
    "empty": ORDER[:0],
}
TABLES = {
    **NOTHING,
    "a list": [[1.0], [0.0]],
    "a vector": GRID,
    "one row": np.zeros((1, 1, 2, 2), np.float32),
    "rising": np.linspace(0, 1, 3).reshape(3, 1, 1, 1),
    "ends at .5": np.linspace(1, 0.5, 3).reshape(3, 1, 1, 1),
    "a cell ends at .5": np.asarray([[1, 1], [0.5, 0]]).reshape(2, 1, 1, 2),
    "nan": np.asarray([NAN, 0]).reshape(2, 1, 1, 1),
    "over": np.asarray([2.0, 0]).reshape(2, 1, 1, 1),
    "negative": np.asarray([1, -1, 0]).reshape(3, 1, 1, 1),
}
# what no field of times can be
TIME_FIELDS = {
    **FIELD_ARRAYS,
    "nan": np.where(np.arange(4).reshape(1, 2, 2, 1) == 3, NAN, T).astype(np.float32),
    "jax nan": jnp.full((2, 1, 1, 1), NAN),
    "train steps": np.full((2, 1, 1, 1), 999, np.float32),
    "over": T + 1,
    "under": -T,
    "few over": FewTimes(jnp.asarray([[0.0, 1.5]]), jnp.ones((1, 2, 2, 1), jnp.int8)),
}
OBJECT_MASKS = {**{n: v for n, v in NO_MASK.items() if n not in ("[b, h, w, 3]",)}}


def concave(**changes):
    return Concave(**{"grid": GRID, "k": 0.5, "masks": everywhere(), "cells": (4, 4), **changes})


def guided(**changes):
    return input_guidance(
        **{"denoise": net, "process": FLOW, "kind": "x0", "hint": MASK, "key": KEY, "scale": 1.0, **changes}
    )


def trained(**changes):
    model = {"model": NET, "process": FLOW, "kind": "x0", "times": times.AsyncPatch(), "grid": (4, 4)}
    rest = {"weight": Uniform(), "params": {}, "key": KEY, "x0": X, "cond": None}
    return loss(**{**model, **rest, **changes})


def bound(**changes):
    given = {"key": KEY, "x0": X, "denoise": net, "process": FLOW, "path": Diagonal(), "num_samples": 2}
    return elbo(**{**given, **changes})


def run(**changes):
    given = {"denoise": net, "solver": DDIM(FLOW), "schedule": Synchronous(GRID), "key": KEY, "x": X, "num_steps": 4}
    return jax.eval_shape(lambda: sample(**{**given, **changes})[0].x)


def begun(**changes):
    given = {"process": FLOW, "schedule": Synchronous(GRID), "key": KEY, "known": X}
    return jax.eval_shape(lambda: start(**{**given, **changes}))


def painted(**changes):
    return repaint(**{"process": FLOW, "grid": GRID, "known": X, "mask": MASK, "jump": 2, "resample": 2, **changes})


def stepped(**changes):
    given = {"loss_fn": net, "optimizer": adam(1e-3), "ema": 0.9, "accumulate": 1}
    return train_step(None, X, KEY, **{**given, **changes})


def denoised(**changes):
    return bind(**{"model": NET, "params": {}, "process": FLOW, "kind": "v", **changes})


SCHEDULES = {
    "synchronous": lambda grid: Synchronous(grid),
    "inpaint": lambda grid: Inpaint(MASK, grid),
    "graded": lambda grid: Graded(MASK, grid),
    "autoregressive": lambda grid: Autoregressive(ORDER, grid, 4),
    "uncertainty": lambda grid: UncertaintyGuided(grid, (2, 2)),
    "dual": lambda grid: DualLoop(grid, (2, 2)),
    "concave": lambda grid: concave(grid=grid),
    "repaint": lambda grid: painted(grid=grid),
}
SAMPLERS = {
    "synchronous": times.Synchronous(),
    "independent": times.Independent(),
    "patchwise": times.Patchwise(),
    "perlin": times.Perlin(),
    "uniform mean": times.UniformMean(),
    "truncated": times.LogitNormalTruncated(),
    "async patch": times.AsyncPatch(),
}
NETWORKS = {
    UNet: ("base", "blocks", "head_dim"),
    DiT: ("patch", "width", "depth", "heads", "mlp_ratio"),
    TPM: ("patch", "width", "depth", "heads", "mlp_ratio", "global_tokens"),
}

# argument: (what is done with a value, hostile values)
TABLE = {
    # keys and time fields
    "of_seed": (keys_lib.of_seed, {**WHOLE, "2^64": 2**64}),
    "per_image.key": (lambda v: keys_lib.per_image(v, 2), KEYS),
    "per_image.batch": (lambda v: keys_lib.per_image(KEY, v), NO_ZERO),
    "threefry": (keys_lib.threefry, ONE_KEY),
    "constant.t": (lambda v: timefield.constant(v, 2), TIMES),
    "constant.batch": (lambda v: timefield.constant(0.5, v), NO_ZERO),
    "few.values": (
        lambda v: timefield.few(v, np.zeros((1, 2, 2, 1), int)),
        {**FIELD_ARRAYS, "nan": np.asarray([[NAN, 0]], np.float32), "over": np.asarray([[1, 2]], np.float32)},
    ),
    "few.index": (
        lambda v: timefield.few(np.asarray([[0, 1]], np.float32), v),
        {**NOTHING, "-1": np.full((1, 2, 2, 1), -1), "9": jnp.full((1, 2, 2, 1), 9), "floats": MASK, "flat": ORDER[0]},
    ),
    "like": (lambda v: timefield.like(v, X), FIELD_ARRAYS),
    "check": (lambda v: timefield.check(v, 2), FIELD_ARRAYS),
    "resize.grid": (lambda v: timefield.resize(T, v), {k: v for k, v in CELLS.items() if k != "a list"}),
    "resize.how": (lambda v: timefield.resize(T, (2, 2), v), KINDS),
    "from_mask.mask": (timefield.from_mask, NO_MASK),
    "from_mask.t": (lambda v: timefield.from_mask(MASK, v), {"nan": NAN, "2": 2.0, "-1": -1.0, "inf": INF}),
    "from_mask.known": (lambda v: timefield.from_mask(MASK, known=v), {"nan": NAN, "2": 2.0, "-1": -1.0}),
    "from_mask.grid": (lambda v: timefield.from_mask(MASK, grid=v), {k: v for k, v in CELLS.items() if v is not None}),
    # processes
    "Discrete.num_steps": (lambda v: Discrete(v), NO_ZERO),
    "Discrete.beta_start": (lambda v: Discrete(beta_start=v), {**NUMBERS, **NEGATIVE, **ZERO, **OVER}),
    "Discrete.beta_end": (lambda v: Discrete(beta_end=v), {**NUMBERS, **NEGATIVE, **ZERO, **OVER, "1": 1.0}),
    "Discrete.betas": (lambda v: Discrete(betas=v), KINDS),
    "diffuse.process": (lambda v: diffuse(v, X, X, T), PROCESSES),
    "diffuse.x0": (lambda v: diffuse(FLOW, v, X, T), IMAGES),
    "diffuse.eps": (lambda v: diffuse(FLOW, X, v, T), {**IMAGES, "another shape": np.zeros((2, 4, 4, 3), np.float32)}),
    "diffuse.t": (lambda v: diffuse(FLOW, X, X, v), TIME_FIELDS),
    "target.kind": (lambda v: target(FLOW, v, X, X, T), KINDS),
    "target.t": (lambda v: target(FLOW, "v", X, X, v), TIME_FIELDS),
    "target.process": (lambda v: target(v, "v", X, X, T), PROCESSES),
    "predict.kind": (lambda v: predict(FLOW, v, X, X, T), KINDS),
    "predict.out": (lambda v: predict(FLOW, "v", v, X, T), {**IMAGES, "2c": np.zeros((2, 4, 4, 2), np.float32)}),
    "predict.t": (lambda v: predict(FLOW, "v", X, X, v), TIME_FIELDS),
    "output.t": (lambda v: output(FLOW, "v", Prediction(X, X, {}), v), TIME_FIELDS),
    "scale_velocity.t": (lambda v: scale_velocity(FLOW, Prediction(X, X, {}), T, v), TIME_FIELDS),
    "scale_velocity.gain": (
        lambda v: scale_velocity(FLOW, Prediction(X, X, {}), v, T),
        {**FIELD_ARRAYS, "jax nan": jnp.full((2, 1, 1, 1), NAN), "inf": np.full((2, 1, 1, 1), INF, np.float32)},
    ),
    "output.kind": (lambda v: output(FLOW, v, Prediction(X, X, {}), T), KINDS),
    "coefficients.kind": (lambda v: coefficients(FLOW, v, T), {**KINDS, "score": "score"}),
    "renoise.eps": (lambda v: renoise(FLOW, X, v, T, T), IMAGES),
    "renoise.t": (lambda v: renoise(FLOW, X, X, v, T), TIME_FIELDS),
    "renoise.t_next": (lambda v: renoise(FLOW, X, X, T, v), TIME_FIELDS),
    # networks as functions
    "bind.model": (lambda v: denoised(model=v), FUNCTIONS),
    "bind.process": (lambda v: denoised(process=v), PROCESSES),
    "bind.kind": (lambda v: denoised(kind=v), KINDS),
    "bind.cond": (lambda v: denoised(cond=v), {"labels": np.zeros(2, int), "text": "cat", "a tuple": (None, None)}),
    "denoise.times": (lambda v: denoised()(X, v), FIELDS),
    "denoise.x": (lambda v: denoised()(v, FIELD), IMAGES),
    # grids
    "linear": (linear, NO_ZERO),
    "cosine": (cosine, NO_ZERO),
    "shifted.num_steps": (lambda v: shifted(v, 3.0), NO_ZERO),
    "shifted.shift": (lambda v: shifted(2, v), {**SCALES, **NEGATIVE, **ZERO}),
    "logsnr.num_steps": (lambda v: logsnr(v, FLOW), NO_ZERO),
    "logsnr.process": (lambda v: logsnr(2, v), PROCESSES),
    "logsnr.limit": (lambda v: logsnr(4, Discrete(), v), {**NUMBERS, **NEGATIVE, **ZERO, "too far": 1e3}),
    "logsnr.no range": (lambda v: logsnr(4, Discrete(10, 1e-5, 2e-5), v), {"8": 8.0, "5": 5.0}),
    # schedules
    **{f"{name}.grid": (lambda v, make=make: used(make(v)), GRIDS) for name, make in SCHEDULES.items()},
    "Table": (lambda v: used(Table(v)), TABLES),
    "Inpaint.mask": (lambda v: used(Inpaint(v, GRID)), NO_MASK),
    "Graded.strength": (lambda v: used(Graded(v, GRID)), NO_MASK),
    "UncertaintyGuided.mask": (lambda v: used(UncertaintyGuided(GRID, (2, 2), v)), MASKS),
    "UncertaintyGuided.cells": (lambda v: used(UncertaintyGuided(GRID, v)), CELLS),
    "UncertaintyGuided.spread": (
        lambda v: UncertaintyGuided(GRID, (2, 2), spread=v),
        {**NUMBERS, **NEGATIVE, **OVER, "1": 1.0},
    ),
    "DualLoop.mask": (lambda v: used(DualLoop(GRID, (2, 2), v)), MASKS),
    "DualLoop.cells": (lambda v: used(DualLoop(GRID, v)), CELLS),
    "DualLoop.confident": (lambda v: DualLoop(GRID, (2, 2), confident=v), {**NUMBERS, **NEGATIVE, **OVER, **ZERO}),
    "DualLoop.substeps": (lambda v: DualLoop(GRID, (2, 2), substeps=v), {**NO_ZERO, "1": 1}),
    "Autoregressive.order": (lambda v: used(Autoregressive(v, GRID, 4)), ORDERS),
    "Autoregressive.groups": (
        lambda v: used(Autoregressive(ORDER, GRID, v)),
        {**NO_ZERO, "too few": 3, "too many": 5},
    ),
    "raster.cells": (raster, CELLS),
    "raster.patch": (lambda v: raster((4, 4), v), {**CELLS, "3x3": (3, 3)}),
    "shuffled.key": (lambda v: shuffled(v, ORDER, 4), ONE_KEY),
    "shuffled.order": (lambda v: shuffled(KEY, v, 4), ORDERS),
    "shuffled.groups": (lambda v: shuffled(KEY, ORDER, v), {**NO_ZERO, "too few": 3, "too many": 5}),
    "Concave.k": (
        lambda v: used(concave(k=v)),
        {**NOTHING, "nan": NAN, "2": 2.0, "-1": -0.1, "a nan": np.asarray([0.5, NAN]), "cube": np.zeros((1, 1, 1))},
    ),
    "Concave.masks": (lambda v: used(concave(masks=v)), {**NOTHING, "an array": MASK, "a class": Dynamic}),
    "Concave.cells": (lambda v: used(concave(cells=v)), CELLS),
    "Concave.curve": (lambda v: concave(curve=v), KINDS),
    "Concave.levels": (lambda v: concave(levels=v), {k: v for k, v in NO_ZERO.items() if v is not None}),
    "Concave.shift": (lambda v: used(concave(shift=v)), {**NOTHING, "nan": NAN, "0": 0.0, "-1": -1.0, "inf": INF}),
    "Concave.text_time": (lambda v: concave(text_time=v), {k: v for k, v in KINDS.items() if v is not None}),
    "Concave.mask": (lambda v: used(concave(mask=v)), MASKS),
    "Concave.strength": (lambda v: used(concave(strength=v)), MASKS),
    "Concave.first": (
        lambda v: used(concave(k=np.asarray([0.5, 0.4]), masks=Dynamic(), first=v)),
        {"text": "1", "object": object(), "9": 9, "-1": -1, "half": 0.5, "nan": NAN, "true": True},
    ),
    "batched": (lambda v: batched(net, X, batch=v), NO_ZERO),
    "Dynamic.threshold": (Dynamic, {"nan": NAN, "-1": -1.0, "inf": INF, "jax nan": jnp.float32("nan")}),
    "Dynamic.threshold, used": (
        lambda v: Dynamic(v).masks(Prediction(X, X, {"maps": MASK}), (4, 4), None),
        NOTHING,
    ),
    "Fixed.mask": (lambda v: used(concave(masks=Fixed(v))), OBJECT_MASKS),
    "from_maps.maps": (from_maps, {name: value for name, value in OBJECT_MASKS.items() if name != "255"}),
    "from_maps.threshold": (lambda v: from_maps(MASK, v), {**NOTHING, "nan": NAN, "-1": -1.0}),
    "ConstantDeviation.base": (lambda v: used(ConstantDeviation(v, 0.5)), {**NOTHING, "a solver": DDIM(FLOW)}),
    "ConstantDeviation.rho": (
        lambda v: used(ConstantDeviation(Synchronous(GRID), v)),
        {**NUMBERS, **OVER, **NEGATIVE, "a nan": np.asarray([0.5, NAN, 0.5, 0.5])},
    ),
    "ConstantDeviation.gain": (
        lambda v: used(ConstantDeviation(Synchronous(GRID), 0.5, v)),
        {**NOTHING, "nan": NAN, "inf": INF, "jax nan": jnp.float32("nan")},
    ),
    "ConstantDeviation.space": (lambda v: ConstantDeviation(Synchronous(GRID), 0.5, space=v), KINDS),
    "TPMSchedule.module": (lambda v: TPMSchedule(Synchronous(GRID), v, {}), {**NOTHING, "another": NET}),
    "TPMSchedule.mode": (lambda v: TPMSchedule(Synchronous(GRID), TPM(), {}, mode=v), KINDS),
    "TPMSchedule.base": (lambda v: used(TPMSchedule(v, TPM(), {})), {**NOTHING, "a solver": DDIM(FLOW)}),
    # RePaint
    **{
        f"repaint_path.{name}": (
            lambda v, name=name: repaint_path(**{"num_steps": 20, "jump": 5, "resample": 2, name: v}),
            {**NO_ZERO, **({"20": 20} if name == "jump" else {})},
        )
        for name in ("num_steps", "jump", "resample")
    },
    "repaint.process": (lambda v: painted(process=v), PROCESSES),
    "repaint.known": (lambda v: painted(known=v), IMAGES),
    "repaint.mask": (lambda v: painted(mask=v), NO_MASK),
    "repaint.eta": (lambda v: painted(eta=v), {**NUMBERS, **NEGATIVE}),
    "repaint.jump": (lambda v: painted(jump=v), {**NO_ZERO, "1": 1}),
    "RePaint.known": (lambda v: RePaint(FLOW, GRID, v, MASK), {"uint8": IMAGES["uint8"], "[h, w, c]": X[0]}),
    # solvers
    **{f"{s.__name__}.process": (s, PROCESSES) for s in (DDIM, DDPM, Euler, Heun, DPMSolver2M)},
    "DDIM.eta": (lambda v: DDIM(FLOW, v), {**NUMBERS, **NEGATIVE}),
    "ZSampling.process": (lambda v: ZSampling(v, net, 1), PROCESSES),
    "ZSampling.weak": (lambda v: ZSampling(FLOW, v, 1), FUNCTIONS),
    "ZSampling.zigzags": (lambda v: ZSampling(FLOW, net, v), WHOLE),
    # guidance
    "two_calls": (lambda v: two_calls(net, v), FUNCTIONS),
    "separate_calls": (lambda v: separate_calls(v), FUNCTIONS),
    "one_call.denoise": (lambda v: one_call(v, 2), FUNCTIONS),
    "one_call.images": (lambda v: one_call(net, v), NO_ZERO),
    "one_call.copies": (lambda v: one_call(net, 2, v), NO_ZERO),
    "classifier_free.pair": (lambda v: classifier_free(v, 2.0), FUNCTIONS),
    "classifier_free.scale": (lambda v: classifier_free(pair, v), SCALES),
    "classifier_free.interval": (
        lambda v: classifier_free(pair, 2.0, v),
        {"nan": (NAN, 0.5), "turned": (0.6, 0.4), "train steps": (0, 999), "one": (0.5,), "text": "01", "number": 1.0},
    ),
    "cfg_plus_plus.lam": (lambda v: cfg_plus_plus(pair, v), {**SCALES, **NEGATIVE, **OVER}),
    "smoothed_energy.scale": (lambda v: smoothed_energy(pair, v), SCALES),
    "smoothed_energy.gamma": (lambda v: smoothed_energy(pair, 1.0, v), SCALES),
    "semantic_aware.scale": (lambda v: semantic_aware(pair, v), {**SCALES, **NEGATIVE}),
    "input_guidance.denoise": (lambda v: guided(denoise=v), FUNCTIONS),
    "input_guidance.process": (lambda v: guided(process=v), PROCESSES),
    "input_guidance.kind": (lambda v: guided(kind=v), KINDS),
    "input_guidance.hint": (lambda v: guided(hint=v), NO_MASK),
    "input_guidance.key": (lambda v: guided(key=v), ONE_KEY),
    "input_guidance.scale": (lambda v: guided(scale=v), SCALES),
    "input_guidance.noisier": (lambda v: guided(noisier=v), {**SCALES, **NEGATIVE, **OVER}),
    "look_ahead.denoise": (lambda v: look_ahead(v, FLOW, (2, 2)), FUNCTIONS),
    "look_ahead.cells": (lambda v: look_ahead(net, FLOW, v), CELLS),
    "look_ahead.confident": (
        lambda v: look_ahead(net, FLOW, (2, 2), v),
        {**NUMBERS, **NEGATIVE, **ZERO, **OVER},
    ),
    "look_ahead.ratio": (lambda v: look_ahead(net, FLOW, (2, 2), ratio=v), {**NUMBERS, **NEGATIVE, **ZERO}),
    # the loop, and putting back
    "start.process": (lambda v: begun(process=v), PROCESSES),
    "start.schedule": (lambda v: begun(schedule=v), {**FUNCTIONS, "a grid": GRID}),
    "start.key": (lambda v: begun(key=v), KEYS),
    "start.known": (lambda v: begun(known=v), IMAGES),
    "sample.denoise": (lambda v: run(denoise=v), FUNCTIONS),
    "sample.answer": (lambda v: run(denoise=lambda x, times: v), {**NOTHING, "a tuple": (X, X, {}), "an image": X}),
    "sample.solver": (lambda v: run(solver=v), {**FUNCTIONS, "a process": FLOW, "a class": DDIM}),
    "sample.schedule": (lambda v: run(schedule=v), {**FUNCTIONS, "a grid": GRID, "a class": Synchronous}),
    "sample.key": (lambda v: run(key=v), KEYS),
    "sample.x": (lambda v: run(x=v), {**IMAGES, "half": jnp.asarray(X, jnp.bfloat16)}),
    "sample.num_steps": (lambda v: run(num_steps=v), {**NO_ZERO, "3": 3}),
    "sample.trace": (lambda v: run(trace=v), {"text": "x", "a number": 1}),
    "sample.noise": (
        lambda v: run(noise=v, solver=DDPM(FLOW)),
        {
            **{name: value for name, value in NOTHING.items() if value is not None},
            "nan": np.full((4, *X.shape), NAN),
            "one step": np.zeros(X.shape),
        },
    ),
    "paste_back.x": (lambda v: paste_back(v, X, MASK), IMAGES),
    "paste_back.known": (lambda v: paste_back(X, v, MASK), {**IMAGES, "smaller": X[:, :2]}),
    "paste_back.mask": (lambda v: paste_back(X, X, v), {**NO_MASK, "smaller": MASK[:, :2]}),
    # training
    **{f"{n}.key": (lambda v, s=s: s(v, 2, (4, 4)), KEYS) for n, s in SAMPLERS.items()},
    **{f"{n}.grid": (lambda v, s=s: s(KEY, 2, v), CELLS) for n, s in SAMPLERS.items()},
    "Synchronous.distribution": (lambda v: times.Synchronous(v), KINDS),
    "Synchronous.loc": (lambda v: times.Synchronous(loc=v), NUMBERS),
    "Synchronous.scale": (lambda v: times.Synchronous(scale=v), {**NUMBERS, **NEGATIVE, **ZERO}),
    "RAD.share": (lambda v: times.RAD(v), {**NUMBERS, **NEGATIVE, **ZERO, "1": 1.0}),
    "UniformMean.sharpness": (lambda v: times.UniformMean(v), {**NUMBERS, **NEGATIVE, "0.5": 0.5}),
    "LogitNormalTruncated.loc": (lambda v: times.LogitNormalTruncated(v), NUMBERS),
    "LogitNormalTruncated.scale": (lambda v: times.LogitNormalTruncated(0.7, v), {**NUMBERS, **NEGATIVE, **ZERO}),
    "AsyncPatch.spread": (
        lambda v: times.AsyncPatch(spread=v),
        {
            **NOTHING,
            "nan": (0, NAN),
            "turned": (0.6, 0.4),
            "over": (0, 2),
            "under": (-1, 1),
            "one": (1,),
            "number": 0.5,
        },
    ),
    "AsyncPatch.base": (lambda v: times.AsyncPatch(base=v), KINDS),
    "perlin_noise.cell": (lambda v: perlin_noise(KEY, (4, 4), v), {"nan": NAN, "0": 0, "-1": np.float32(-1)}),
    "perlin_noise.grid": (lambda v: perlin_noise(KEY, v, 2.0), CELLS),
    "SiD2.bias": (lambda v: SiD2(v), NUMBERS),
    "drop_labels.cond": (lambda v: drop_labels(KEY, v, 0.1, 10), {**NOTHING, "empty": Condition(), "labels": ORDER}),
    "drop_labels.rate": (
        lambda v: drop_labels(KEY, Condition(np.zeros(2, int)), v, 10),
        {**NUMBERS, **NEGATIVE, **OVER},
    ),
    "drop_labels.null": (lambda v: drop_labels(KEY, Condition(np.zeros(2, int)), 0.1, v), WHOLE),
    "drop_labels.key": (lambda v: drop_labels(v, Condition(np.zeros(2, int)), 0.1, 10), KEYS),
    "loss.process": (lambda v: trained(process=v), PROCESSES),
    "loss.kind": (lambda v: trained(kind=v), KINDS),
    "loss.x0": (lambda v: trained(x0=v), IMAGES),
    "loss.key": (lambda v: trained(key=v), KEYS),
    "loss.times": (lambda v: trained(times=v), FUNCTIONS),
    "loss.weight": (lambda v: trained(weight=v), FUNCTIONS),
    "loss.grid": (lambda v: trained(grid=v), {**CELLS, "3x3": (3, 3)}),
    "loss.uncertainty": (lambda v: trained(uncertainty=v), {**NUMBERS, **NEGATIVE}),
    "elbo.key": (lambda v: bound(key=v), KEYS),
    "elbo.x0": (lambda v: bound(x0=v), IMAGES),
    "elbo.denoise": (lambda v: bound(denoise=v), FUNCTIONS),
    "elbo.process": (lambda v: bound(process=v), PROCESSES),
    "elbo.path": (lambda v: bound(path=v), FUNCTIONS),
    "elbo.num_samples": (lambda v: bound(num_samples=v), {**NO_ZERO, "3": 3}),
    "elbo.t_min": (lambda v: bound(t_min=v), {**NUMBERS, **NEGATIVE, **ZERO, **OVER}),
    "elbo.levels": (lambda v: bound(levels=v), {**WHOLE, "1": 1}),
    "Raster": (Raster, CELLS),
    "RandomEnvironment": (RandomEnvironment, CELLS),
    "bits_per_dim": (lambda v: bits_per_dim(np.ones(2), (4, v, 1)), NO_ZERO),
    "advantages.rewards": (
        advantages,
        {
            **NOTHING,
            "nan": np.asarray([[1, NAN]]),
            "inf": np.asarray([[INF, 0]]),
            "flat": np.ones(4),
            "one": np.ones((2, 1)),
        },
    ),
    "advantages.draws": (lambda v: advantages(np.ones((2, 4)), v), {**NO_ZERO, "3": 3}),
    "advantages.least": (lambda v: advantages(np.ones((2, 4)), 1, v), {**NUMBERS, **NEGATIVE, **ZERO}),
    "surrogate.clip": (lambda v: surrogate({}, None, module=TPM(), clip=v), {**NUMBERS, **NEGATIVE}),
    "surrogate.kl": (lambda v: surrogate({}, None, module=TPM(), kl=v), {**NUMBERS, **NEGATIVE}),
    "learning_rate.peak": (learning_rate, {"nan": NAN, "inf": INF, "0": 0.0, "-1": -1.0}),
    "adam.b1": (lambda v: adam(1e-3, b1=v), {"nan": NAN, "1": 1.0, "-1": -1.0}),
    "adam.clip": (lambda v: adam(1e-3, clip=v), {"nan": NAN, "inf": INF, "-1": -1.0}),
    "train_step.ema": (lambda v: stepped(ema=v), {**NUMBERS, **NEGATIVE, **OVER}),
    "train_step.accumulate": (lambda v: stepped(accumulate=v), NO_ZERO),
    # networks
    **{
        f"{network.__name__}.{name}": (lambda v, network=network, name=name: network(**{name: v}), NO_ZERO)
        for network, names in NETWORKS.items()
        for name in names
    },
    **{
        f"{network.__name__}.{name}": (lambda v, network=network, name=name: network(**{name: v}), WHOLE)
        for network in NETWORKS
        for name in ("num_classes", "context_dim", *(("reference",) if network in (UNet, DiT) else ()))
    },
    **{
        f"{network.__name__}.{name}": (lambda v, network=network, name=name: network(**{name: v}), values)
        for network in (UNet, DiT)
        for name, values in (
            ("dropout", {**NUMBERS, **NEGATIVE, **OVER, "1": 1.0}),
            ("remat", KINDS),
            ("radians", {**NUMBERS, **NEGATIVE, **ZERO, ".1": 0.1}),
            ("mean_of", KINDS),
        )
    },
    "UNet.norm": (lambda v: UNet(norm=v), KINDS),
    "UNet.multipliers": (lambda v: UNet(multipliers=v), {**NOTHING, "empty": (), "0": (1, 0), "halves": (1, 1.5)}),
    "UNet.attention": (lambda v: UNet(attention=v), {**NOTHING, "9": (9,), "-1": (-1,), "a number": 2}),
    "TPM.cell": (lambda v: TPM(cell=v), {k: v for k, v in NO_ZERO.items() if v is not None}),
    # masks that are drawn
    "draw.name": (lambda v: data_masks.draw(v, 0, 1, 8), KINDS),
    "draw.seed": (lambda v: data_masks.draw("half", v, 1, 8), WHOLE),
    "draw.batch": (lambda v: data_masks.draw("half", 0, v, 8), NO_ZERO),
    "draw.size": (lambda v: data_masks.draw("half", 0, 1, v), {**NO_ZERO, "1": 1, "one": (8,), "nan": (8, NAN)}),
    "outpaint.margin": (lambda v: data_masks.outpaint(8, left=v), {**NO_ZERO, "8": 8}),
}
CASES = sum(len(values) for _, values in TABLE.values())


@pytest.mark.parametrize("argument", TABLE)
def test_impossible_values_are_refused_by_name(argument):
    make, values = TABLE[argument]
    wrong = {}
    for name, value in values.items():
        error = raised(lambda value=value: make(value))
        said = isinstance(error, ValueError) and re.fullmatch(r".*expected .*got .*", str(error))
        if not said or len(str(error)) > 250 or WRITTEN_OUT.search(str(error)):
            wrong[name] = error if error is None else repr(error)[:300]
    assert not wrong


def test_the_table_is_as_large_as_it_should_be():
    assert len(TABLE) > 150
    assert CASES > 1200
