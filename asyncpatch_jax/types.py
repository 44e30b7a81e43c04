"""The few types that every module shares.

Letters in shapes: b batch, h w pixels, gh gw cells of a field, c channels, n tokens, d width, l text tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key

Image = Float[Array, "b h w c"]
TimeField = Float[Array, "b _gh _gw 1"]
ImageKeys = Key[Array, "b"]


class FewTimes(NamedTuple):
    """A field that holds at most k distinct times an image, by construction; `timefield.few` makes and checks one.

    A network embeds the k times instead of every cell's, so that such a field costs what a scalar time costs.

    values: float32 [b, k], or [1, k] for all images.
    index: which of them each cell has, an integer in 0 ... k - 1 [b|1, gh, gw, 1], on a grid that tiles the image.
    """

    values: Float[Array, "_b k"]
    index: Int[Array, "_b2 gh gw 1"]


class Times(NamedTuple):
    """Where each cell of an image is, and what the network is told about it.

    Fields [b, gh, gw, 1] with 0 = data and 1 = noise; an axis of size 1 stands for the whole image. They are the same
    field, which `told` may hold as `FewTimes`; other times are told by a learned schedule (TPM) alone.
    """

    level: TimeField
    told: TimeField | FewTimes


class Prediction(NamedTuple):
    """A denoiser's answer: `x = alpha(t) * x0 + sigma(t) * eps` holds per element, at the level of `x`.

    `aux` carries what else the network computed (log-variance, attention maps, ...); jit drops what nobody reads.
    """

    x0: Image
    eps: Image
    aux: dict[str, Any]


class Condition(NamedTuple):
    """What an image is conditioned on; a field that is None does not exist for the model.

    label: class index [b]; the index `num_classes` means "no class" (the unconditional branch).
    tokens: a sequence of embeddings [b, l, d], attended to by cross-attention.
    mask: which tokens count [b, l]; None means all of them.
    """

    label: Int[Array, "b"] | None = None
    tokens: Float[Array, "b l d"] | None = None
    mask: Bool[Array, "b l"] | None = None


Denoiser = Callable[[Image, Times], Prediction]
