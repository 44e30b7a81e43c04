"""The few types that every module shares.

Letters in shapes: b batch, h w pixels, gh gw cells of a field, c channels, n tokens, d width, l text tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key

Image = Float[Array, "b h w c"]
TimeField = Float[Array, "b _gh _gw 1"]
ImageKeys = Key[Array, "b"]


class Times(NamedTuple):
    """Where each cell of an image is, and what the network is told about it.

    Both are float32 fields [b, gh, gw, 1] with 0 = data and 1 = noise; an axis of size 1 stands for the whole image.
    They differ only when a learned schedule (TPM) tells the network another time than the true one.
    """

    level: TimeField
    told: TimeField


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
