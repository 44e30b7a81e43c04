"""What the transformers with joint attention of image and text share: SD3 (MM-DiT, arXiv 2403.03206) and FLUX.

Image and text are two streams of tokens with weights of their own that attend to each other. A stream is a grid of
tokens [b, rows, columns, d], the text one of a single row, so that the time of each token modulates both alike.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.models.attention import attend, attend_columns, mean_weights
from asyncpatch_jax.models.times import LevelTimes, modulation
from asyncpatch_jax.pretrained.networks.blur import blurred
from asyncpatch_jax.pretrained.networks.layers import ACTIVATIONS, LayerNorm, RMSNorm, wide
from asyncpatch_jax.pretrained.networks.rotary import Rotation, rotated
from asyncpatch_jax.sharding import constrain, images_per_device
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Condition, Spans

Stream = Float[Array, "b rows cols width"]
Modulation = Float[Array, "b #rows #cols width"]
Heads = Float[Array, "b n h d"]
# of every norm of both families
_EPS = 1e-6
gelu = ACTIVATIONS["gelu_pytorch_tanh"]


class Maps(NamedTuple):
    """Sums over the layers so far of the attention of the image's first n tokens, averaged over heads, in float32.

    objects: to k objects [b, n, k].
    own: to each other [b, n, n], shares of all that they attend to; None: not here. XLA computes none of it unless
        somebody reads it.
    """

    objects: Float[Array, "b n k"]
    own: Float[Array, "b n n"] | None = None


class Streams(NamedTuple):
    """What goes from layer to layer.

    image: tokens of the image, and of a reference after them.
    text: tokens of the text.
    maps: `Maps`; None if nobody asks.
    layer: the number of the layer, where layers differ by it; else None.
    """

    image: Any
    text: Any
    maps: Any
    layer: Any = None


class JointBlock(nn.Module):
    """A block of two streams: diffusers' `JointTransformerBlock` and `FluxTransformerBlock`, as a step of `nn.scan`.

    Attributes:
        heads: number of them.
        qk_norm: RMS norms of queries and keys.
        dual: a second attention, of the image to itself (MMDiT-X).
        last: the text is attended to and goes no further.
        text_first: the text's place in the joint sequence.
    """

    heads: int
    qk_norm: bool = True
    dual: bool = False
    last: bool = False
    text_first: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        times: LevelTimes,
        text_times: LevelTimes,
        rotation: Rotation | None,
        spans: Spans | None,
        blur: Float[Array, "layers b"] | None = None,
    ) -> tuple[Streams, None]:
        image, text, maps, layer = streams
        width = image.shape[-1]
        of_image = modulations(dense((9 if self.dual else 6) * width, "norm1.linear", self.dtype), times, image)
        shift, scale, gate, shift_m, scale_m, gate_m, *of_dual = of_image
        projection = dense((2 if self.last else 6) * width, "norm1_context.linear", self.dtype)
        of_text = modulations(projection, text_times, text)
        # a norm without a gate says its scale first
        text_shift, text_scale = of_text[1::-1] if self.last else of_text[:2]

        normed = norm(image, self.dtype)
        heads = [
            self._heads(modulated(normed, shift, scale, self.dtype), "attn", "to_{}", "norm_{}"),
            self._heads(
                modulated(norm(text, self.dtype), text_shift, text_scale, self.dtype),
                "attn",
                "add_{}_proj",
                "norm_added_{}",
            ),
        ]
        heads[0] = self._blurred(heads[0], streams, blur)
        sizes = [part[0].shape[1] for part in heads]
        q, k, v = (jnp.concatenate(parts[:: -1 if self.text_first else 1], 1) for parts in zip(*heads, strict=True))
        at_image, at_text = (sizes[1], 0) if self.text_first else (0, sizes[0])
        if self.last:
            # what the text would learn is not read
            q = heads[0][0]
        out, maps = attention(q, k, v, rotation, spans, maps, at_image, at_text)

        def project(start: int, size: int, name: str, like: jax.Array) -> jax.Array:
            return dense(width, name, self.dtype)(out[:, start : start + size]).reshape(like.shape)

        image = gated(image, gate, project(at_image, sizes[0], "attn.to_out.0", image), times)
        if self.dual:
            parts = self._heads(modulated(normed, of_dual[0], of_dual[1], self.dtype), "attn2", "to_{}", "norm_{}")
            q, k, v = self._blurred(parts, streams, blur)
            alone = dense(width, "attn2.to_out.0", self.dtype)(joined(attend(q, k, v)))
            image = gated(image, of_dual[2], alone.reshape(image.shape), times)
        h = feed_forward(modulated(norm(image, self.dtype), shift_m, scale_m, self.dtype), "ff")
        image = gated(image, gate_m, h, times)
        if not self.last:
            gate, shift_m, scale_m, gate_m = of_text[2:]
            text = text + gate * project(at_text, sizes[1], "attn.to_add_out", text)
            h = modulated(norm(text, self.dtype), shift_m, scale_m, self.dtype)
            text = text + gate_m * feed_forward(h, "ff_context")
        after = None if layer is None else layer + 1
        return Streams(along_batch(image), along_batch(text), maps, after), None

    def _blurred(
        self, parts: tuple[Heads, Heads, Heads], streams: Streams, blur: Float[Array, "layers b"] | None
    ) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of the image, whose queries are blurred over its grid by this layer's blur (SEG)."""
        if blur is None:
            return parts
        q, k, v = parts
        flat = blurred(joined(q), blur[streams.layer], streams.image.shape[1:3])
        return flat.reshape(q.shape), k, v

    def _heads(self, x: Stream, prefix: str, name: str, norm_name: str) -> tuple[Heads, Heads, Heads]:
        norms = f"{prefix}.{norm_name}" if self.qk_norm else None
        return heads_of(x.reshape(x.shape[0], -1, x.shape[-1]), self.heads, f"{prefix}.{name}", norms, self.dtype)


def dense(width: int, name: str, dtype: Any) -> nn.Dense:
    """A linear layer of the module in whose `__call__` this is called, as all functions here that take a name."""
    return nn.Dense(width, dtype=dtype, name=name)


def heads_of(
    x: Float[Array, "b n width"], heads: int, name: str, norm_name: str | None, dtype: Any
) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values; `name` has a place for q, k or v, and `norm_name`, unless None, for q or k."""
    q, k, v = (
        constrain(
            dense(x.shape[-1], name.format(which), dtype)(x).reshape(*x.shape[:2], heads, -1),
            "batch",
            None,
            "heads",
            None,
        )
        for which in "qkv"
    )
    if norm_name is not None:
        q, k = (RMSNorm(_EPS, dtype, name=norm_name.format(which))(h) for which, h in (("q", q), ("k", k)))
    return q, k, v


def attention(
    q: Heads,
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    rotation: Rotation | None,
    spans: Spans | None,
    maps: Maps | None,
    at_image: int,
    at_text: int,
) -> tuple[Float[Array, "b n d2"], Maps | None]:
    """Attention of the joint sequence, heads joined; and `maps` with this layer's added, if `spans` are given.

    Args:
        at_image: index of the image's first query, and of its first key.
        at_text: index of the text's first key.
    """
    if rotation is not None:
        q, k = rotated(q, rotation), rotated(k, rotation)
    if spans is None or maps is None:
        return joined(attend(q, k, v)), maps
    out, shares = attend_columns(q, k, v, spans.index + at_text)
    stop = at_image + maps.objects.shape[1]
    weight = spans.weight.astype(jnp.float32)
    objects = maps.objects + jnp.einsum("bim,bmk->bik", shares[:, at_image:stop], weight, precision="highest")
    own = maps.own
    if own is not None:
        own = own + mean_weights(q[:, at_image:stop], k)[:, :, at_image:stop]
    return joined(out), Maps(objects, own)


def joined(x: Heads) -> Float[Array, "b n d2"]:
    """Heads next to each other."""
    return x.reshape(*x.shape[:2], -1)


def norm(x: Stream, dtype: Any) -> Stream:
    """A layer norm without parameters, in the type that modulates it."""
    return LayerNorm(_EPS, affine=False, dtype=wide(dtype))(x)


def modulated(normed: Stream, shift: Modulation, scale: Modulation, dtype: Any) -> Stream:
    """`normed (1 + scale) + shift`."""
    return (normed * (1.0 + scale.astype(normed.dtype)) + shift.astype(normed.dtype)).astype(dtype)


def gated(x: Stream, gate: Modulation, h: Stream, times: LevelTimes) -> Stream:
    """`x + gate h`, for a gate of these times."""
    if times.position is not None and images_per_device(x.shape[0]) > 1:
        # A TPU computes this with the product that gives h, and would write out every time's gate for every token
        # first. Of one image it would not.
        h = jax.lax.optimization_barrier(h)
    return x + gate * h


def modulations(layer: nn.Dense, times: LevelTimes, x: Stream) -> list[Modulation]:
    """Maps [b, h|1, w|1, d] from the times of a stream's tokens, as many as the layer gives."""
    table = constrain(layer(times.emb), "batch", None, None)
    return modulation(table, times, layer.features // x.shape[-1], timefield.grid_of(x))


def feed_forward(x: Stream, name: str) -> Stream:
    """Linear, GELU (by tanh), linear, four times as wide inside."""
    h = dense(4 * x.shape[-1], f"{name}.net.0.proj", x.dtype)(x)
    h = gelu(constrain(h, "batch", None, None, "hidden"))
    return dense(x.shape[-1], f"{name}.net.2", x.dtype)(h)


def along_batch(x: Stream) -> Stream:
    """The stream between two layers: split along the batch alone."""
    return constrain(x, "batch", None, None, None)


def last_modulation(x: Stream, times: LevelTimes, dtype: Any) -> Stream:
    """diffusers' `AdaLayerNormContinuous` before the output."""
    scale, shift = modulations(dense(2 * x.shape[-1], "norm_out.linear", dtype), times, x)
    return modulated(norm(x, dtype), shift, scale, dtype)


def no_maps(cond: Condition, batch: int, grid: Grid, *, own: bool = False) -> Maps | None:
    """Maps before the first layer, if the condition names objects; with the image's own if asked to."""
    if cond.spans is None:
        return None
    n = grid[0] * grid[1]
    objects = jnp.zeros((batch, n, cond.spans.weight.shape[-1]), jnp.float32)
    return Maps(objects, jnp.zeros((batch, n, n), jnp.float32) if own else None)


def mean_maps(maps: Maps | None, layers: int, grid: Grid) -> dict[str, jax.Array]:
    """What a network says of its maps after so many layers: means to objects, and shares of what goes to the image."""
    if maps is None:
        return {}
    found = {"maps": (maps.objects / layers).reshape(len(maps.objects), *grid, -1)}
    if maps.own is not None:
        found["self_maps"] = maps.own / maps.own.sum(-1, keepdims=True)
    return found
