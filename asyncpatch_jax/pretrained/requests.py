"""What one image is to be: prompt, seed, objects, known pixels; and what of it a pretrained folder cannot make."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.keys import LARGEST_SEED
from asyncpatch_jax.pretrained.folders.loading import Pretrained, latent_channels
from asyncpatch_jax.pretrained.settings import Settings, check_method

Picture = UInt8[np.ndarray, "h w c"]
_TRANSFORMERS = ("sd3", "flux", "kontext")


class Request(NamedTuple):
    """One image to be made.

    prompt, negative: texts; negative None is "" (or what its family has in its place).
    seed: of its noise, 0 ... 2^64 - 1; an image depends on its own request alone.
    objects: words of the prompt that denoise slower with the schedule "asyndm", as `spans.find` takes them.
    omegas: how much slower, for each object or drawn mask; empty: the settings' omega for all.
    item_idx: of each object, where the released code of AsynDM takes it to be (`reference_compat`).
    image: an image of which something is kept, or that FLUX Kontext edits; uint8, of the settings' size.
    mask: how much of each pixel of `image` may change: 1 is generated anew, 0 comes back bit for bit [h, w, 1].
    object_masks: where each object is drawn, for the masks "drawn" [h, w, k]; these need no words in `objects`.
    noise: the latents to begin with [h2, w2, c]; None: those of the seed.
    fresh_noise: what a stochastic solver draws in each step, to replay a recorded run [s, h2, w2, c]; None: the seed's.
    """

    prompt: str
    seed: int = 0
    negative: str | None = None
    objects: tuple[str, ...] = ()
    omegas: tuple[float, ...] = ()
    item_idx: tuple[int, ...] = ()
    image: Picture | None = None
    mask: Float[np.ndarray, "h w 1"] | None = None
    object_masks: Float[np.ndarray, "h w k"] | None = None
    noise: Float[np.ndarray, "h2 w2 c"] | None = None
    fresh_noise: Float[np.ndarray, "s h2 w2 c"] | None = None


def check(pretrained: Pretrained, requests: Sequence[Request], settings: Settings) -> None:
    """Refuse what cannot be made, before any network runs.

    Raises:
        ValueError: as `text2image`, but for words that are not in their prompt and k of the curve.
    """
    if not requests:
        raise ValueError("expected at least one request, got none")
    check_method(pretrained.family, settings)
    multiple = pretrained.denoiser.module.multiple * factor(pretrained)
    if settings.height % multiple or settings.width % multiple:
        raise ValueError(
            f"expected a height and a width that are multiples of {multiple} for {pretrained.family}, "
            f"got {settings.height} x {settings.width}"
        )
    patches = max(cells(pretrained, settings))
    if patches > (most := getattr(pretrained.denoiser.module, "table", patches)):
        raise ValueError(
            f"expected at most {most * multiple} pixels a side for this network, got {settings.height} x "
            f"{settings.width}"
        )
    for name in ("image", "mask", "noise", "fresh_noise"):
        if len({getattr(request, name) is None for request in requests}) > 1:
            raise ValueError(f"expected requests that all say {name}, or none, got both sorts")
    for request in requests:
        _check_arrays(pretrained, request, settings)
        _check_request(pretrained.family, request, settings)
        if inpaints(pretrained) and (request.mask is None or not np.isin(request.mask, (0, 1)).all()):
            got = "none" if request.mask is None else "shares between them"
            raise ValueError(f"expected an image and a mask of 0 and 1 for this network for inpainting, got {got}")
    if settings.schedule == "asyndm" and not any(count(request) for request in requests):
        raise ValueError("expected objects (words of the prompts) for the schedule asyndm, got none")


def _check_arrays(pretrained: Pretrained, request: Request, settings: Settings) -> None:
    size, shape = (settings.height, settings.width), latent_shape(pretrained, settings)
    vae = pretrained.components.get("vae")
    channels = shape[2] if vae is None else vae.module.channels
    wanted = {
        "image": ((*size, channels), np.uint8, 255),
        "mask": ((*size, 1), np.floating, 1),
        "object_masks": ((*size, count(request)), np.floating, 1),
        "noise": (shape, np.floating, None),
        "fresh_noise": ((settings.num_steps, *shape), np.floating, None),
    }
    for name, (form, kind, most) in wanted.items():
        array = getattr(request, name)
        if array is None:
            continue
        if array.shape != form or not np.issubdtype(array.dtype, kind):
            type_name = "uint8" if kind is np.uint8 else "float"
            raise ValueError(f"expected {name} of {type_name}{list(form)}, got {array.dtype}{list(array.shape)}")
        if most == 1 and not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"expected {name} in 0 ... 1, got {array.min()} to {array.max()}")


def _check_request(family: str, request: Request, settings: Settings) -> None:
    if not isinstance(request.prompt, str) or not isinstance(request.negative, str | None):
        raise ValueError(f"expected texts, got {request.prompt!r} and {request.negative!r}")
    checks.whole("seed", request.seed, 0, LARGEST_SEED)
    # the curve says how large they may be
    if not all(0 <= omega < math.inf for omega in request.omegas):
        raise ValueError(f"expected finite omegas of at least 0, got {checks.shown(list(request.omegas))}")
    if request.mask is not None and request.image is None:
        raise ValueError("expected an image with the mask, got none")
    if request.image is not None and request.mask is None and family != "kontext":
        raise ValueError(f"expected a mask with the image for {family} (only kontext edits an image as a whole)")
    if family == "kontext" and request.image is None:
        raise ValueError("expected an image to edit for kontext, got none")
    if request.fresh_noise is not None and settings.eta == 0:
        raise ValueError("expected eta > 0 with fresh_noise, which a deterministic run has no place for, got 0")
    if request.omegas and len(request.omegas) != count(request):
        raise ValueError(
            f"expected an omega for each of the {count(request)} objects of {request.prompt!r}, "
            f"got {len(request.omegas)}"
        )
    if settings.reference_compat and len(request.item_idx) != len(request.objects):
        raise ValueError(f"expected the item_idx of each object of {request.prompt!r}, got {request.item_idx}")
    if settings.draws_masks and request.object_masks is None:
        raise ValueError(f"expected a drawn mask of the objects of {request.prompt!r}, got none")


def count(request: Request) -> int:
    """How many objects an image has: those that are named, or else those that are drawn."""
    if request.objects or request.object_masks is None or np.ndim(request.object_masks) != 3:
        return len(request.objects)
    return request.object_masks.shape[2]


def inpaints(pretrained: Pretrained) -> bool:
    """Whether the network is shown what is kept: its cells all move together, as it was trained."""
    return getattr(pretrained.denoiser.module, "inpaints", False)


def omegas(requests: Sequence[Request], settings: Settings) -> Float[np.ndarray, "n k"]:
    """How much slower each object of each image goes; -1 for objects that an image does not have."""
    counts = [count(request) for request in requests]
    table = np.full((len(requests), max(1, *counts)), -1, np.float32)
    for row, many, request in zip(table, counts, requests, strict=True):
        row[:many] = request.omegas or settings.omega
    return table


def first_objects(requests: Sequence[Request], settings: Settings) -> Int[np.ndarray, "n"] | None:
    """The object of each image that all its cells begin with in the released code: that with the last position.

    None: the slowest one, which is the paper's first mask of ones for all objects.
    """
    if not settings.reference_compat:
        return None
    return np.array([np.argmax(request.item_idx) if request.item_idx else 0 for request in requests], np.int32)


def factor(pretrained: Pretrained) -> int:
    """Pixels to a side of a latent; 1 without an autoencoder, where latents are pixels."""
    vae = pretrained.components.get("vae")
    return 1 if vae is None else vae.module.factor


def cells(pretrained: Pretrained, settings: Settings) -> timefield.Grid:
    """The cells that a network tells apart: latent pixels of a UNet, tokens of a transformer."""
    side = factor(pretrained) * (pretrained.denoiser.module.multiple if pretrained.family in _TRANSFORMERS else 1)
    return settings.height // side, settings.width // side


def latent_shape(pretrained: Pretrained, settings: Settings) -> tuple[int, int, int]:
    """Height, width and channels of the latents of an image."""
    side = factor(pretrained)
    return settings.height // side, settings.width // side, latent_channels(pretrained)
