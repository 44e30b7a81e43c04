"""Concave schedules on the pretrained families' networks, whose own attention gives the masks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.pretrained.binding import bind
from asyncpatch_jax.pretrained.folders import schedulers
from asyncpatch_jax.pretrained.networks import flux, sd3, unet2d
from asyncpatch_jax.sampling import (
    DDIM,
    Concave,
    Dynamic,
    Euler,
    Fixed,
    Synchronous,
    classifier_free,
    everywhere,
    one_call,
    sample,
    two_calls,
)
from asyncpatch_jax.types import Condition, Prediction, Spans
from tests import drawn

STEPS = 4
NOISE = drawn.normal(2, 8, 8, 4, seed=5)
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    # the maps are those of the third level, here of the middle block's alone
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
    "block_out_channels": [8, 8, 8],
    "attention_head_dim": 2,
}
JOINT = {
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
}
SD3 = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "caption_projection_dim": 16, "pos_embed_max_size": 12}
FLUX = {"in_channels": 16, "num_single_layers": 1, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True}
STABLE = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
FAMILIES = {
    "unet": (unet2d, UNET, STABLE, {"cells": (8, 8), "head_start": True, "levels": 1000}),
    "sd3": (sd3, JOINT | SD3, FLOW, {"cells": (4, 4), "shift": 3.0, "text_time": "masked"}),
    "flux": (flux, JOINT | FLUX, FLOW, {"cells": (4, 4), "shift": 3.0, "text_time": "masked"}),
}


class Case(NamedTuple):
    """A family's tiny network, what it is asked for, and the settings of its schedules."""

    module: Any
    params: Any
    scheduler: Any
    cond: Condition
    uncond: Condition
    options: dict[str, Any]

    @property
    def grid(self):
        return self.scheduler.grid(STEPS)

    def schedule(self, k, masks):
        return Concave(self.grid, k, masks, **self.options)


@functools.cache
def case(name):
    family, config, scheduler, options = FAMILIES[name]
    module = family.from_config(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *family.example(module))["params"]
    # two objects of one and of two words; the second image has the first one only
    weight = np.zeros((2, 3, 2), np.float32)
    weight[:, 0, 0] = weight[0, 1:, 1] = 1
    spans = jax.device_put(Spans(np.int32([[1, 3, 4], [2, 0, 0]]), weight))

    def condition(seed):
        tokens, pooled = drawn.normal(2, 5, 12, seed=seed), drawn.normal(2, 10, seed=seed + 1)
        if name == "unet":
            return Condition(tokens=tokens, spans=spans)
        guidance = jax.device_put(np.full(2, 3.5, np.float32)) if name == "flux" else None
        return Condition(tokens=tokens, pooled=pooled, guidance=guidance, spans=spans)

    scheduler = schedulers.from_config(scheduler, whole=name == "flux")
    return Case(module, drawn.params_like(shapes), scheduler, condition(1), condition(3), options)


def _run(schedule, params, cond, uncond, *, name, together):
    this = case(name)

    def denoise(cond):
        return bind(this.module, params, this.scheduler, cond)

    if together:
        rows = [jax.tree.leaves(cond) for cond in (cond, uncond)]
        rows = [jnp.stack(pair, 1).reshape(-1, *pair[0].shape[1:]) for pair in zip(*rows, strict=True)]
        pair = one_call(denoise(jax.tree.unflatten(jax.tree.structure(cond), rows)), 2)
    else:
        pair = two_calls(denoise(cond), denoise(uncond))
    process = this.scheduler.process
    return sample(
        classifier_free(pair, 3.0),
        DDIM(process, 1.0) if name == "unet" else Euler(process),
        schedule,
        jax.random.key(0),
        NOISE,
        num_steps=STEPS,
        trace=lambda state, pred: (state.times, pred.aux["maps"]),
    )


_programs = {}


def program(name, schedule, together=True):
    """One a structure: masks, the share of steps and grids are what it takes."""
    this = case(name)
    args = schedule, this.params, this.cond, this.uncond
    key = name, together, jax.tree.structure(args), *(np.shape(leaf) for leaf in jax.tree.leaves(schedule))
    if key not in _programs:
        _programs[key] = jax.jit(functools.partial(_run, name=name, together=together)).lower(*args).compile()
    return _programs[key]


def run(name, schedule, together=True):
    """The last state, and times and maps of each step, under classifier-free guidance."""
    this = case(name)
    return jax.device_get(program(name, schedule, together)(schedule, this.params, this.cond, this.uncond))


def close(a, b):
    # in float32, of which four steps of a network with random weights lose some
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(b).max())


@functools.partial(jax.jit, static_argnums=1)
def levels(schedule, process):
    """The levels of each step and of the end, of a run without a network."""
    end, levels = sample(
        lambda x, times: Prediction(x, x, {}),
        Euler(process),
        schedule,
        jax.random.key(0),
        NOISE,
        num_steps=STEPS,
        trace=lambda state, pred: state.times.level,
    )
    return jnp.concatenate([levels, end.times.level[None]])


families = pytest.mark.parametrize("name", FAMILIES)


@families
def test_no_mask_is_the_stock_sampler_and_a_whole_one_the_stock_on_the_curve(name):
    this = case(name)
    ours, (times, _) = run(name, this.schedule(np.zeros(2, np.float32), Dynamic()))
    grid = np.asarray(this.grid)
    assert all((level == t).all() for level, t in zip(times.level, grid, strict=False))
    close(ours.x, run(name, Synchronous(this.grid))[0].x)
    cells = this.options["cells"]
    ours, (times, _) = run(name, this.schedule(0.4, Fixed(jax.device_put(np.ones((2, *cells, 1), np.float32)))))
    curve = np.asarray(levels(this.schedule(0.4, everywhere()), this.scheduler.process))
    np.testing.assert_allclose(times.level - curve[:-1], 0, atol=1e-6)
    curved = curve[:, 0].reshape(-1)
    assert (curved[1:3] > grid[1:3]).all()
    on_curve = run(name, Synchronous(jax.device_put(curved)))[0].x
    close(ours.x, on_curve)
    if name == "sd3":  # whatever the network is, it is told these as it is told any others
        whole, (told, _) = run(name, this.schedule(0.4, everywhere()))
        close(whole.x, on_curve)
        assert (times.level == told.level).all()


@families
def test_the_network_s_own_maps_guide_a_run_within_one_program(name):
    this = case(name)
    schedule = this.schedule(np.float32([0.4, 0.3]), Dynamic())
    end, (times, maps) = run(name, schedule)
    # after a head start the last call finds all cells together
    levels = times.level[2]
    assert len(np.unique(levels)) > 1
    assert not np.array_equal(levels[0], levels[1])
    assert (end.times.level == np.asarray(this.grid)[-1]).all()
    # an object without words is nowhere
    assert (maps[:, 1, ..., 1] == 0).all()
    assert (maps[:, 0] > 0).all()
    text = program(name, schedule).as_text()
    assert text.count(f'"known_trip_count":{{"n":"{STEPS}"}}') == 1
    assert not any(word in text for word in ("callback", "infeed", "outfeed"))


def test_one_call_for_both_halves_is_a_call_each_masks_and_all():
    """Of one family, as no network mixes the rows of a batch: in their own tests each is its reference's."""
    schedule = case("sd3").schedule(np.float32([0.4, 0.3]), Dynamic())
    end, (times, _) = run("sd3", schedule)
    apart, (times_apart, _) = run("sd3", schedule, together=False)
    np.testing.assert_array_equal(times_apart.level, times.level)
    close(apart.x, end.x)


@families
def test_few_times_are_the_field_written_out(name):
    this = case(name)
    few, (times, _) = run(name, this.schedule(0.4, Dynamic()))
    assert times.told.values.shape[1:] == (1, STEPS + 1)
    dense, (written, _) = run(name, this.schedule(np.full(2, 0.4, np.float32), Dynamic()))
    np.testing.assert_allclose(times.level, written.level, rtol=0, atol=1e-6)
    close(few.x, dense.x)
