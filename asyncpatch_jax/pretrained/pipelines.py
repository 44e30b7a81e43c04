"""From prompts to images with a pretrained folder: plain functions, each step of which can be used alone.

`text2image` is all of it: prompts -> embeddings -> the jitted sampler -> autoencoder -> images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from asyncpatch_jax import viz
from asyncpatch_jax.pretrained import autoencoder
from asyncpatch_jax.pretrained.loading import Pretrained
from asyncpatch_jax.pretrained.plans import Plan, plan
from asyncpatch_jax.pretrained.prompts import encode_prompts, read_tokenizers, streams
from asyncpatch_jax.pretrained.requests import Picture, Request, check, latent_shape
from asyncpatch_jax.pretrained.sampling import Inputs, Net, Sampled, noise, sample_latents
from asyncpatch_jax.pretrained.settings import Settings, solver, synchronous
from asyncpatch_jax.pretrained.spans import reference_compat, spans
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.paste import paste_back
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.sampling.schedules.masks import from_maps
from asyncpatch_jax.types import Condition, Image, ImageKeys, Spans


class Made(NamedTuple):
    """An image, the fields of its run [s + 1, gh, gw, 1], and its objects' attention maps [s, gh2, gw2, k], if any."""

    image: Picture
    fields: Float[np.ndarray, "s gh gw 1"]
    maps: Float[np.ndarray, "s2 gh2 gw2 k"] | None


class Batch(NamedTuple):
    """Requests as arrays, with a row for each; None where none has it.

    omegas: of each object; 0 for those that only other requests have.
    image: in [-1, 1]; mask: how much of it changes.
    object_masks: where objects are drawn, or another run's attention has them.
    """

    keys: ImageKeys
    cond: Condition
    uncond: Condition | None
    scale: Any  # Float[Array, "b"]
    omegas: Any  # Float[Array, "b k"]
    image: Any  # Float[Array, "b h w c"]
    mask: Any  # Float[Array, "b h w 1"]
    object_masks: Any  # Float[Array, "b gh gw k"]
    noise: Any  # Float[Array, "b h2 w2 c2"]


def text2image(
    pretrained: Pretrained,
    requests: Sequence[Request],
    settings: Settings,
    *,
    batch: int = 4,
    mesh: Mesh | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Made]:
    """Make an image for each request, `batch` at a time; one program is compiled for all of them.

    Args:
        mesh: the devices that the networks were loaded to.
        on_batch: is told how many images are done.

    Raises:
        ValueError: sizes that the networks cannot take, a guidance that they do not support, words that are not in
            their prompt, objects or images that a schedule needs and that are missing. All of it before any image is
            made.
    """
    check(pretrained, requests, settings)
    whole = prepare(pretrained, requests, settings)
    when = plan(pretrained, settings, whole.mask, whole.omegas)
    call = partial(make, pretrained, settings, when, mesh)
    parts = batched(call, whole, batch=min(batch, len(requests)), on_batch=on_batch)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], part) for part in parts for i in range(len(part.latents))]
    return [Made(viz.to_uint8(row.latents), row.fields, row.maps) for row in rows[: len(requests)]]


def prepare(pretrained: Pretrained, requests: Sequence[Request], settings: Settings) -> Batch:
    """All requests as one batch, on the host; every text is encoded once.

    Raises:
        ValueError: words that are not in their prompt.
    """
    found = _named(pretrained, requests, settings)  # first: it may refuse a word, and costs nothing
    cond, uncond = jax.device_get(conditions(pretrained, requests, settings))
    if settings.method == "s-cfg":
        found = _every_token(*cond.tokens.shape[:2])
    scale = settings.negative_guidance if pretrained.family in ("flux", "kontext") else settings.guidance
    guided = scale != 1.0 or settings.method != "cfg"
    count = max(1, *(len(request.objects) for request in requests))
    omegas = np.zeros((len(requests), count), np.float32)
    for row, request in zip(omegas, requests, strict=True):
        row[: len(request.objects)] = request.omegas or settings.omega
    drawn = settings.schedule == "asyndm" and settings.masks == "drawn"
    return Batch(
        keys=jax.vmap(jax.random.key)(np.array([request.seed for request in requests])),
        cond=cond._replace(spans=found),
        uncond=uncond if guided else None,
        scale=np.full(len(requests), scale, np.float32) if guided else None,
        omegas=omegas,
        image=_stacked([request.image for request in requests], lambda x: x.astype(np.float32) / 127.5 - 1),
        mask=_stacked([request.mask for request in requests], np.float32),
        object_masks=_stacked([request.object_masks for request in requests if drawn], partial(_padded, count)),
        noise=_stacked([request.noise for request in requests], np.float32),
    )


def conditions(pretrained: Pretrained, requests: Sequence[Request], settings: Settings) -> tuple[Condition, Condition]:
    """What the network is told of each request's prompt, and of its negative prompt."""
    negatives = [request.negative for request in requests]
    config = pretrained.denoiser.config
    return encode_prompts(
        pretrained.family,
        pretrained.components,
        read_tokenizers(pretrained.family, pretrained.tokenizers),
        [request.prompt for request in requests],
        None if all(text is None for text in negatives) else [text or "" for text in negatives],
        size=(settings.height, settings.width),
        guidance=settings.guidance if config.get("guidance_embeds") else None,
        width=config.get("joint_attention_dim"),
        t5_length=settings.t5_length,
        zero_negatives=pretrained.index.get("force_zeros_for_empty_prompt", True),
    )


def make(pretrained: Pretrained, settings: Settings, when: Plan, mesh: Mesh | None, part: Batch) -> Sampled:
    """The images of one batch in [-1, 1], in the place of their latents; fields and maps [b, s, ...]."""
    net = Net(
        pretrained.denoiser.module,
        pretrained.scheduler,
        solver(settings, pretrained.scheduler.process),
        settings.method,
        mesh,
    )
    cond, uncond, known = part.cond, part.uncond, None
    if pretrained.family == "kontext":
        reference = encode_images(pretrained, jnp.asarray(part.image))
        cond = cond._replace(reference=reference)
        uncond = None if uncond is None else uncond._replace(reference=reference)
    if part.mask is not None:
        known = encode_images(pretrained, _without(part.image, part.mask))
    begun = noise(part.keys, latent_shape(pretrained, settings)) if part.noise is None else jnp.asarray(part.noise)

    def run(when: Plan, object_masks: Any) -> Sampled:
        schedule: Schedule = when.schedule(part.mask, part.omegas, object_masks)
        inputs = Inputs(begun, part.keys, schedule, cond, uncond, part.scale, known)
        return sample_latents(net, pretrained.denoiser.params, inputs)

    object_masks = part.object_masks
    if settings.schedule == "asyndm" and settings.masks == "fixed":
        first = run(plan(pretrained, synchronous(settings), part.mask, part.omegas), None)
        object_masks = from_maps(first.maps.mean(0), settings.threshold).mask
    result = run(when, object_masks)
    images = decode_latents(pretrained, result.latents).astype(jnp.float32)
    if part.mask is not None:
        images = paste_back(images, jnp.asarray(part.image), (jnp.asarray(part.mask) > 0).astype(jnp.float32))
    # of S-CFG every token has maps, which nobody wants to see
    maps = None if result.maps is None or settings.method == "s-cfg" else result.maps.swapaxes(0, 1)
    return Sampled(images, result.fields.swapaxes(0, 1), maps)


def encode_images(pretrained: Pretrained, images: Image) -> Float[Array, "b h2 w2 c2"]:
    """Latents of images in [-1, 1]; the images themselves without an autoencoder."""
    vae = pretrained.components.get("vae")
    return images if vae is None else autoencoder.encode(vae.module, vae.params, images)


def decode_latents(pretrained: Pretrained, latents: Image) -> Float[Array, "b h2 w2 c2"]:
    """Images of latents, in about [-1, 1]; the latents themselves without an autoencoder."""
    vae = pretrained.components.get("vae")
    return latents if vae is None else autoencoder.decode(vae.module, vae.params, latents)


def _named(pretrained: Pretrained, requests: Sequence[Request], settings: Settings) -> Spans | None:
    """The tokens of the requests' objects, where the schedule looks at their attention."""
    if settings.schedule != "asyndm" or settings.masks == "drawn":
        return None
    tokenizers = read_tokenizers(pretrained.family, pretrained.tokenizers)
    prompts = [request.prompt for request in requests]
    if settings.reference_compat:
        return reference_compat(prompts, [request.item_idx for request in requests], tokenizers["tokenizer"].length)
    read = streams(pretrained.family, pretrained.components, tokenizers, t5_length=settings.t5_length)
    return spans(read, prompts, [request.objects for request in requests])


def _every_token(count: int, length: int) -> Spans:
    """Each token as an object of its own, for a guidance that divides the image among all of them."""
    index = np.broadcast_to(np.arange(length, dtype=np.int32), (count, length))
    return Spans(index, np.broadcast_to(np.eye(length, dtype=np.float32), (count, length, length)))


def _stacked(arrays: Sequence[Any], change: Callable[[np.ndarray], np.ndarray]) -> Any:
    return None if not arrays or arrays[0] is None else np.stack([change(array) for array in arrays])


def _padded(count: int, masks: Float[np.ndarray, "h w _k"]) -> Float[np.ndarray, "h w k"]:
    return np.pad(masks, ((0, 0), (0, 0), (0, count - masks.shape[-1]))).astype(np.float32)


def _without(image: Float[np.ndarray, "b h w c"], mask: Float[np.ndarray, "b h w 1"]) -> Float[Array, "b h w c"]:
    """The image without what is to be generated anew, which is no data: the mean colour of the rest in its place."""
    kept = mask < 1
    shown = np.where(kept, image, 0.0)
    mean = shown.sum((1, 2), keepdims=True) / np.maximum(kept.sum((1, 2), keepdims=True), 1)
    return jnp.asarray(np.where(kept, image, mean), jnp.float32)
