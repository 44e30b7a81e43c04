"""SD3's transformer is diffusers', to rounding, on random weights; with a time per token too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.nn import functional

from asyncpatch_jax import timefield
from asyncpatch_jax.pretrained import joint, names, sd3
from asyncpatch_jax.types import Condition, FewTimes, Spans
from tests import joint_oracles as oracle

TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 12,
}
CONFIGS = {
    "sd3": TINY | {"num_layers": 3},
    "sd35": TINY | {"num_layers": 6, "dual_attention_layers": (0, 1, 3), "qk_norm": "rms_norm"},
    "dual to the last": TINY | {"num_layers": 2, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}
SIZE, GRID, TEXT = (6, 10), (3, 5), 7
SMALL = TINY | {"num_layers": 3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
TIMES = np.array([713.25, 80.5], np.float32)


def inputs(**more):
    x, tokens, pooled = oracle.random(2, *SIZE, 4), oracle.random(2, TEXT, 12, seed=1), oracle.random(2, 10, seed=2)
    return x, Condition(tokens=tokens, pooled=pooled, **more)


def scalar(times=TIMES):
    return times.reshape(-1, 1, 1, 1)


def ours(net, x, t, cond, dtype=jnp.float64):
    """(out, aux) of our module with the network's weights."""
    with jax.enable_x64(dtype == jnp.float64):
        kind = jnp.float32 if dtype == jnp.bfloat16 else dtype
        module, params = oracle.built(sd3, net, dtype)
        t = FewTimes(*map(jnp.asarray, t)) if isinstance(t, FewTimes) else jnp.asarray(t)
        floats = {field: jnp.asarray(getattr(cond, field), kind) for field in ("tokens", "pooled")}
        out, aux = jax.jit(module.apply)({"params": params}, jnp.asarray(x, kind), t, cond._replace(**floats))
        return np.asarray(out, np.float64), aux


def theirs(net, x, cond, times=TIMES):
    with torch.no_grad():
        out = net(
            oracle.tensor(x.transpose(0, 3, 1, 2)),
            encoder_hidden_states=oracle.tensor(cond.tokens),
            pooled_projections=oracle.tensor(cond.pooled),
            timestep=oracle.tensor(times),
            return_dict=False,
        )[0]
    return out.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    net, (x, cond) = oracle.reference(SD3Transformer2DModel, CONFIGS[name]), inputs()
    expected = theirs(net, x, cond)
    assert oracle.error(ours(net, x, scalar(), cond)[0], expected) < 2e-7
    assert oracle.error(ours(net, x, scalar(), cond, jnp.float32)[0], expected) < 2e-5
