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
    index: Int[Array, "_b2 gh gw 1"]  # type: ignore[assignment]  # hides tuple.index


class Times(NamedTuple):
    """Where each cell of an image is, and what the network is told about it.

    Fields [b, gh, gw, 1] with 0 = data and 1 = noise; an axis of size 1 stands for the whole image. They are the same
    field, which `told` may hold as `FewTimes`; other times are told by a learned schedule (TPM), and to a network that
    sees in another way what is known (`denoiser.one_time`).

    text: the time [b] that the text tokens of a network with joint attention are told; None: the mean of the field
        over all cells but those at 0.
    gain: what the velocity dx/dt that the network predicts is multiplied with, on a grid of its own [b, gh, gw, 1];
        None: nothing.
    """

    level: TimeField
    told: TimeField | FewTimes
    text: Float[Array, "b"] | None = None
    gain: TimeField | None = None


class Prediction(NamedTuple):
    """A denoiser's answer: `x = alpha(t) * x0 + sigma(t) * eps` holds per element, at the level of `x`.

    `aux` carries what else the network computed (log-variance, attention maps, ...); jit drops what nobody reads.
    """

    x0: Image
    eps: Image
    aux: dict[str, Any]


class Spans(NamedTuple):
    """Which text tokens name each of k objects, for the attention maps `aux["maps"]` [b, gh, gw, k] of these objects.

    An object's map is the weighted sum of its tokens' attention; a token of weight 0 fills the row up.

    index: positions of m tokens [b, m].
    weight: of each token in each object's map [b, m, k].
    """

    index: Int[Array, "b m"]  # type: ignore[assignment]  # hides tuple.index
    weight: Float[Array, "b m k"]


class Condition(NamedTuple):
    """What an image is conditioned on; a field that is None does not exist for the model.

    label: class index [b]; the index `num_classes` means "no class" (the unconditional branch).
    tokens: a sequence of embeddings [b, l, d], attended to by cross-attention or joint attention.
    mask: which tokens count [b, l]; None means all of them.

    reference: what is shown beside the image. To a network that was trained to inpaint: the known pixels, and which
        they are (`denoiser.reference_of`) [b, h, w, c2]; to a pretrained one: latents of an image to edit (FLUX
        Kontext), or a mask and latents to inpaint (UNets) [b, h2, w2, c2].

    Pretrained text-to-image networks take more:

    pooled: one embedding of the whole text [b, p].
    sizes: SDXL's original height and width, top and left of the crop, and target height and width, in pixels [b, 6].
    guidance: the guidance scale that a distilled network (FLUX) is told [b].
    text_time: the time that text tokens are told, in the network's units [b]; None: the mean of the field over all
        cells but those at 0.
    spans: the objects whose attention maps are asked for.
    blur: standard deviation, in cells, of the Gaussian that blurs the queries of self-attention (SEG) [b]; 0 is none.
    """

    label: Int[Array, "b"] | None = None
    tokens: Float[Array, "b l d"] | None = None
    mask: Bool[Array, "b l"] | None = None
    pooled: Float[Array, "b p"] | None = None
    sizes: Float[Array, "b 6"] | None = None
    guidance: Float[Array, "b"] | None = None
    reference: Float[Array, "b h2 w2 c2"] | None = None
    text_time: Float[Array, "b"] | None = None
    spans: Spans | None = None
    blur: Float[Array, "b"] | None = None


Denoiser = Callable[[Image, Times], Prediction]
