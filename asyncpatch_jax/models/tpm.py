"""The timestep prediction module (TPM) of AsyncDiff (arXiv 2512.18675): what is the denoiser to be told next?

A small transformer without norms that looks at a step of the sampler and answers with Beta distributions of a deviation
rho in (0, 1), where 1/2 is none. The paper has one deviation an image; one for each cell is this library's.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.beta import Beta, phi
from asyncpatch_jax.models.attention import attend
from asyncpatch_jax.models.dit import positions
from asyncpatch_jax.models.layers import AXES, ConditionEmbedding, logical_axes
from asyncpatch_jax.models.times import sinusoid
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.types import Condition, FewTimes, Image, Prediction, TimeField

_AXES = {
    **AXES,
    "patches/kernel": ("pixels", "channels"),
    "cells/kernel": ("frequencies", "channels"),
    "told/kernel": ("frequencies", "channels"),
    "progress/kernel": ("frequencies", "channels"),
    "globals": (None, None, "channels"),
    "qkv/bias": (None, "heads", "head_dim"),
    "out/kernel": ("heads", "head_dim", "channels"),
    "mlp_in/kernel": ("channels", "hidden"),
    "mlp_in/bias": ("hidden",),
    "mlp_out/kernel": ("hidden", "channels"),
    "head/kernel": ("hidden", "channels"),
    "belief/kernel": ("channels", None),
    "belief/bias": (None,),
}
_FREQUENCIES = 64


class Observation(NamedTuple):
    """What a TPM sees of a step of the sampler; `observe` makes one.

    x, x0, velocity: the image, and the network's answer, v = eps - x0 whatever the process (in rectified flow that is
        dx/dt, which in others may be infinite at t = 0) [b, h, w, c].
    told: what the network was told [b, gh, gw, 1].
    progress: i / num_steps of step i [b], so that a TPM may be used with another number of steps than it learned with.
    """

    x: Image
    x0: Image
    velocity: Image
    told: TimeField
    progress: Float[Array, "b"]


def observe(
    x: Image, pred: Prediction, told: TimeField | FewTimes, step: int | jax.Array, num_steps: int
) -> Observation:
    """The observation of step `step` (counted from 0) of `num_steps`."""
    told = timefield.dense(told)
    told = jnp.broadcast_to(told, (x.shape[0], *told.shape[1:]))
    progress = jnp.full((x.shape[0],), step / num_steps, jnp.float32)
    return Observation(x, pred.x0, pred.eps - pred.x0, told, progress)


class TPM(nn.Module):
    """A transformer encoder `(observation, cond) -> Beta`; at first Beta(2, 2) everywhere, whose mode is 1/2.

    Tokens: learned global ones; one for the told time (the mean over cells not at 0) and one for the progress of the
    run; one for a class label; those of a text; and patches of x, x0 and velocity with their places in the image and
    each its own told time. There is no dropout and no layer norm (as in the paper): residual branches start small.

    Attributes:
        patch: side of a patch; height and width must be multiples of it.
        width, depth, heads, mlp_ratio: of the transformer.
        global_tokens: how many of them the one deviation of an image is read from.
        cell: None for one deviation an image; or the side, in patches, of cells that have one each.
        num_classes, context_dim: as in `DiT`: of labels, and the width of text tokens; 0 for none.

    Raises:
        ValueError: a setting below its least, or a width that is no multiple of 4 or of the heads.
    """

    patch: int = 4
    width: int = 256
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    global_tokens: int = 4
    cell: int | None = None
    num_classes: int = 0
    context_dim: int = 0

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads", "mlp_ratio", "global_tokens"):
            checks.whole(name, getattr(self, name))
        for name in ("num_classes", "context_dim"):
            checks.whole(name, getattr(self, name), 0)
        if self.cell is not None:
            checks.whole("cell", self.cell)
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"expected a width that 4 and {self.heads} heads divide, got {self.width}")
        super().__post_init__()

    def logical_axes(self, params: Any) -> Any:
        """The names of every parameter's axes, in a tree like `params`; see `layers.logical_axes`."""
        return logical_axes(params, _AXES)

    def grid(self, height: int, width: int) -> timefield.Grid:
        """The grid of the deviations of an image.

        Raises:
            ValueError: the image is no whole number of patches or cells.
        """
        side = self.patch * (self.cell or 1)
        if height % side or width % side:
            raise ValueError(f"expected height and width to be multiples of {side}, got {height}x{width}")
        return (1, 1) if self.cell is None else (height // side, width // side)

    @nn.compact
    def __call__(self, seen: Observation, cond: Condition | None = None) -> Beta:
        """alpha and beta [b, rh, rw], float32, more than 1.

        Raises:
            ValueError: an image that is no whole number of patches or cells, or a condition that does not fit.
        """
        b, height, width, _ = seen.x.shape
        cells, grid = self.grid(height, width), (height // self.patch, width // self.patch)
        timefield.check(seen.told, b)

        image = jnp.concatenate([seen.x, seen.velocity, seen.x0], axis=-1).astype(jnp.float32)
        patches = rearrange(image, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)
        patches = nn.Dense(self.width, name="patches")(patches) + positions(*grid, self.width)
        told = timefield.resize(seen.told, grid)[..., 0]
        patches = patches + nn.Dense(self.width, name="cells")(sinusoid(told, _FREQUENCIES))
        patches = constrain(patches, "batch", None, None, None).reshape(b, -1, self.width)

        first = self.param("globals", nn.initializers.normal(1.0), (1, self.global_tokens, self.width), jnp.float32)
        mean = timefield.noisy_mean(seen.told)
        tokens = [
            jnp.broadcast_to(first, (b, *first.shape[1:])),
            nn.Dense(self.width, name="told")(sinusoid(mean, _FREQUENCIES))[:, None],
            nn.Dense(self.width, name="progress")(sinusoid(seen.progress, _FREQUENCIES))[:, None],
        ]
        mask = None
        label, context = ConditionEmbedding(self.num_classes, self.context_dim, self.width, name="condition")(cond, b)
        if label is not None:
            tokens.append(label)
        if context is not None:
            own = sum(part.shape[1] for part in tokens)
            mask = jnp.concatenate(
                [jnp.ones((b, own), bool), context[1], jnp.ones((b, patches.shape[1]), bool)], axis=1
            )
            tokens.append(context[0])
        x = jnp.concatenate([*tokens, patches], axis=1).astype(jnp.float32)
        for layer in range(self.depth):
            x = Layer(self.heads, self.mlp_ratio, self.depth, name=f"layer_{layer}")(x, mask)

        if self.cell is None:
            summary = x[:, : self.global_tokens].reshape(b, 1, 1, -1)
        else:
            summary = timefield.resize(x[:, -patches.shape[1] :].reshape(b, *grid, -1), cells)
        hidden = nn.gelu(nn.Dense(self.width, name="head")(summary), approximate=True)
        ab = phi(nn.Dense(2, kernel_init=nn.initializers.zeros, name="belief")(hidden))
        return Beta(ab[..., 0], ab[..., 1])


class Layer(nn.Module):
    """Self-attention and MLP, each added to what it saw; small at first, so that a stack needs no norms."""

    heads: int
    mlp_ratio: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        # logits that begin small keep attention spread, whatever the inputs' scale; both branches of all layers
        # together add a few percent of the input's variance
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        last = nn.initializers.variance_scaling(0.1 / math.sqrt(2 * self.depth), "fan_in", "truncated_normal")
        qkv = nn.DenseGeneral((3, self.heads, width // self.heads), kernel_init=small, name="qkv")(x)
        q, k, v = (constrain(qkv[:, :, i], "batch", None, "heads", None) for i in range(3))
        h = attend(q, k, v, None if mask is None else mask[:, None, None, :])
        x = x + nn.DenseGeneral(width, axis=(-2, -1), kernel_init=last, name="out")(h)
        h = nn.gelu(nn.Dense(self.mlp_ratio * width, kernel_init=small, name="mlp_in")(x), approximate=True)
        h = constrain(h, "batch", None, "hidden")
        x = x + nn.Dense(width, kernel_init=last, name="mlp_out")(h)
        return constrain(x, "batch", None, None)
