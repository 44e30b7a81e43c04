"""diffusers' SD3 and FLUX in float64, also with a time per token, and what their attention attends to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.embeddings import Timesteps
from torch.nn import functional

from asyncpatch_jax.types import Condition, FewTimes, Spans
from tests import tiny

# of latents, of their tokens, and of a text; times of two images
SIZE, GRID, TEXT = (6, 10), (3, 5), 7
TIMES = np.array([713.25, 80.5], np.float32)
# of two objects in two images
SPANS = Spans(
    np.array([[2, 3, 6], [0, 5, 5]]), np.array([[[1, 0], [0.5, 0], [0, 1]], [[0, 2], [1, 0], [0, 0]]], np.float32)
)


def reference(kind, config):
    """A network of diffusers with random weights, in float64."""
    net = tiny.randomised(kind(**config).double(), seed=1)
    net.time_text_embed.time_proj = tiny.WideSinusoid(256)
    return net


def to_float32(net):
    """In place, with diffusers' own sinusoid: a guidance of 3.5 is an angle of 3500, which float32 has to 1e-4."""
    net.float().time_text_embed.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)


def inputs(**more):
    """Latents of two images and a condition, of which `more` is part."""
    cond = Condition(tokens=random(2, TEXT, 12, seed=1), pooled=random(2, 10, seed=2), **more)
    return random(2, *SIZE, 4), cond


def _apply(module, params, x, t, cond):
    return module.apply({"params": params}, x, t, cond)


_compiled = jax.jit(_apply, static_argnames="module")


def ours(family, net, x, t, cond, dtype=jnp.float64, *, anew=False):
    """(out, aux) of our module with the network's weights; `family` is `sd3` or `flux`.

    Args:
        anew: trace it, though the same network has been before: something of the library was patched.
    """
    with jax.enable_x64(dtype == jnp.float64):
        kind = np.float32 if dtype == jnp.bfloat16 else dtype
        module, params = tiny.built(family, net.config, net, dtype)
        floats = ("tokens", "pooled", "reference")
        cond = cond._replace(**{f: np.asarray(a, kind) for f in floats if (a := getattr(cond, f)) is not None})
        run = jax.jit(functools.partial(_apply, module)) if anew else functools.partial(_compiled, module)
        out, aux = run(params, np.asarray(x, kind), t, cond)
        return np.asarray(out, np.float64), {name: np.asarray(value) for name, value in aux.items()}


def scalar(times=TIMES):
    """A time for each image, as a field of one cell."""
    return times.reshape(-1, 1, 1, 1)


def few(grid=GRID):
    """Three times an image, whose last one none of the cells has."""
    index = np.random.default_rng(5).integers(0, 2, (2, *grid, 1))
    return FewTimes(np.array([[900.5, 333.25, 1.0], [0.5, 612.0, 7.0]], np.float32), index.astype(np.int8))


def dense(t):
    """The field of few times."""
    return np.take_along_axis(t.values[:, None, None], t.index.astype(int), 3)


def constant_fields():
    """Fields, dense and of few times, all of whose cells have the time of their image."""
    return np.broadcast_to(scalar(), (2, *GRID, 1)), FewTimes(np.repeat(TIMES[:, None], 3, 1), few().index)


def object_maps(rows):
    """What tokens attend to the objects of SPANS, from the softmax weights [b, n, l] of their attention to a text."""
    columns = np.stack([row[:, index] for row, index in zip(rows, SPANS.index, strict=True)])
    return np.einsum("bnm,bmk->bnk", columns, SPANS.weight).reshape(2, *GRID, 2)


def two_close_times(family, net, theirs, x, cond):
    """Outputs at 1000 and 999, neighbours of which bfloat16 has but the first: ours computed in it, and exact ones."""
    pairs = [np.array([t, t], np.float32) for t in (1000.0, 999.0)]
    outs = [ours(family, net, x, scalar(times), cond, jnp.bfloat16)[0] for times in pairs]
    return outs, [theirs(net, x, cond, times) for times in pairs]


def random(*shape, seed=0):
    """Normal numbers, which float32 holds too."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(x, like):
    """In the type of a network."""
    return torch.from_numpy(np.array(x)).to(like.dtype)


def error(ours, theirs):
    """Largest difference, as a share of the largest value."""
    theirs = np.asarray(theirs, np.float64)
    return np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max()


def joint_weights(monkeypatch, tokens):
    """A list that fills with the softmax weights [b, heads, n, n] of each attention to that many tokens."""
    seen, plain = [], functional.scaled_dot_product_attention

    def recorded(query, key, value, **kwargs):
        if key.shape[2] == tokens:
            seen.append(torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1))
        return plain(query, key, value, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    return seen


def per_token(monkeypatch, net, times, text_times):
    """Patch a network so that image tokens are told `times` [b, n], and text tokens `text_times` [b].

    `temb` becomes a pair: the image tokens' [b, n, d] and the text's [b, 1, d].
    """

    def embed(_, *guidance_and_pooled):
        *guidance, pooled = guidance_and_pooled
        parts = net.time_text_embed
        rest = parts.text_embedder(pooled)[:, None]
        for scale in guidance:
            rest = rest + parts.guidance_embedder(parts.time_proj(scale))[:, None]
        return tuple(parts.timestep_embedder(parts.time_proj(t)) + rest for t in (times, text_times[:, None]))

    monkeypatch.setattr(net.time_text_embed, "forward", embed)
    for block in net.transformer_blocks:
        monkeypatch.setattr(block, "forward", _double(block))
    for block in getattr(net, "single_transformer_blocks", []):
        monkeypatch.setattr(block, "forward", _single(block))

    def norm_out(x, temb):
        scale, shift = net.norm_out.linear(functional.silu(temb[0])).chunk(2, -1)
        return net.norm_out.norm(x) * (1 + scale) + shift

    monkeypatch.setattr(net.norm_out, "forward", norm_out)


def _double(block):
    def forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None, **kwargs):
        x, c = hidden_states, encoder_hidden_states
        shift, scale, gate, shift_m, scale_m, gate_m, *dual = block.norm1.linear(functional.silu(temb[0])).chunk(
            9 if getattr(block, "attn2", None) is not None else 6, -1
        )
        last = getattr(block, "context_pre_only", False)
        mods = block.norm1_context.linear(functional.silu(temb[1])).chunk(2 if last else 6, -1)
        normed = block.norm1.norm(x)
        text_scale, text_shift = mods if last else mods[1::-1]
        text = block.norm1_context.norm(c) * (1 + text_scale) + text_shift
        out, text_out = block.attn(normed * (1 + scale) + shift, encoder_hidden_states=text, **kwargs)
        x = x + gate * out
        if dual:
            x = x + dual[2] * block.attn2(normed * (1 + dual[1]) + dual[0])
        x = x + gate_m * block.ff(block.norm2(x) * (1 + scale_m) + shift_m)
        if last:
            return None, x
        c = c + mods[2] * text_out
        return c + mods[5] * block.ff_context(block.norm2_context(c) * (1 + mods[4]) + mods[3]), x

    return forward


def _single(block):
    def forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None, **kwargs):
        length = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], 1)
        emb = torch.cat([temb[1].expand(-1, length, -1), temb[0]], 1)
        shift, scale, gate = block.norm.linear(functional.silu(emb)).chunk(3, -1)
        h = block.norm.norm(x) * (1 + scale) + shift
        both = torch.cat([block.attn(h, **kwargs), block.act_mlp(block.proj_mlp(h))], -1)
        x = x + gate * block.proj_out(both)
        return x[:, :length], x[:, length:]

    return forward
