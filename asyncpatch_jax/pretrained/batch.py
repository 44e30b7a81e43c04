"""One batch of requests: as arrays, and what the networks make of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.pretrained.folders.loading import Pretrained
from asyncpatch_jax.pretrained.latents import decode_latents, encode_images
from asyncpatch_jax.pretrained.plans import Plan
from asyncpatch_jax.pretrained.requests import Request, factor, first_objects, inpaints, latent_shape
from asyncpatch_jax.pretrained.sampling import Inputs, Net, noise, sample_latents
from asyncpatch_jax.pretrained.settings import Settings, solver
from asyncpatch_jax.pretrained.text.prompts import Encoded, encode_prompts
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer
from asyncpatch_jax.sampling.paste import stitch
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.sampling.schedules.masks import thresholded
from asyncpatch_jax.types import Condition, ImageKeys, Spans

Follow = Callable[[Schedule, Condition], Schedule]


class Batch(NamedTuple):
    """Requests as arrays on the host, with a row for each; None where none has it.

    omegas: of each object; negative for those that only other requests have.
    first: the object that all cells begin with; None: the slowest.
    image: in [-1, 1]; mask: how much of it changes.
    object_masks: where objects are drawn.
    fresh: of each step, what is drawn in it.
    """

    keys: ImageKeys
    cond: Condition
    uncond: Condition | None
    scale: Float[np.ndarray, "b"] | None
    omegas: Float[np.ndarray, "b k"]
    first: Int[np.ndarray, "b"] | None
    image: Float[np.ndarray, "b h w c"] | None
    mask: Float[np.ndarray, "b h w 1"] | None
    object_masks: Float[np.ndarray, "b h w k"] | None
    noise: Float[np.ndarray, "b h2 w2 c2"] | None
    fresh: Float[np.ndarray, "b s h2 w2 c2"] | None


class Drawn(NamedTuple):
    """A batch of images in [-1, 1] [b, ...], with what `Made` has of each; on the host."""

    images: Float[np.ndarray, "b h w c"]
    fields: Float[np.ndarray, "b s gh gw 1"]
    maps: Float[np.ndarray, "b s2 gh2 gw2 k"] | None
    masks: Bool[np.ndarray, "b s3 gh3 gw3 k"] | None


def prepare(
    pretrained: Pretrained,
    tokenizers: Mapping[str, Tokenizer],
    requests: Sequence[Request],
    settings: Settings,
    slow: Float[np.ndarray, "b k"],
    objects: Spans | None = None,
    *,
    mesh: Mesh | None = None,
    known: dict[str, Encoded] | None = None,
) -> Batch:
    """Requests as one batch; every text is encoded once.

    Args:
        tokenizers: from `read_tokenizers`.
        slow: rows of `omegas`.
        objects: rows of `named`.
        known: texts that were encoded before; new ones are added.
    """
    negatives = [request.negative for request in requests]
    config = pretrained.denoiser.config
    cond, uncond = encode_prompts(
        pretrained.family,
        pretrained.components,
        tokenizers,
        [request.prompt for request in requests],
        None if all(text is None for text in negatives) else [text or "" for text in negatives],
        size=(settings.height, settings.width),
        guidance=settings.guidance if config.get("guidance_embeds") else None,
        width=config.get("joint_attention_dim"),
        t5_length=settings.t5_length,
        zero_negatives=pretrained.index.get("force_zeros_for_empty_prompt", True),
        mesh=mesh,
        known=known,
    )
    if settings.method == "s-cfg" and cond.tokens is not None:
        objects = _every_token(*cond.tokens.shape[:2])
    scale = settings.negative_guidance if pretrained.family in ("flux", "kontext") else settings.guidance
    guided = scale != 1.0 or settings.method != "cfg"
    drawn = [request.object_masks for request in requests if settings.draws_masks]
    return Batch(
        keys=jnp.stack([of_seed(request.seed) for request in requests]),
        cond=cond._replace(spans=objects),
        uncond=uncond if guided else None,
        scale=np.full(len(requests), scale, np.float32) if guided else None,
        omegas=slow,
        first=first_objects(requests, settings),
        image=_stacked([request.image for request in requests], lambda x: x.astype(np.float32) / 127.5 - 1),
        mask=_stacked([request.mask for request in requests], np.float32),
        object_masks=_stacked(drawn, partial(_padded, slow.shape[1])),
        noise=_stacked([request.noise for request in requests], np.float32),
        fresh=_stacked([request.fresh_noise for request in requests], np.float32),
    )


def make(
    pretrained: Pretrained,
    settings: Settings,
    when: Plan,
    part: Batch,
    *,
    mesh: Mesh | None = None,
    follow: Follow | None = None,
) -> Drawn:
    """The images of one batch; arguments as of `text2image`."""
    net = Net(
        pretrained.denoiser.module,
        pretrained.scheduler,
        solver(settings, pretrained.scheduler.process),
        settings.method,
        mesh,
    )
    # where a family asks for an image or a mask, `requests.check` has seen one
    image: Any = part.image
    mask: Any = part.mask
    cond, uncond = part.cond, part.uncond
    moving = None if inpaints(pretrained) else part.mask
    reference: Any = None
    known: Any = None
    if pretrained.family == "kontext":
        reference = encode_images(pretrained, image, mesh)
    elif inpaints(pretrained):
        reference = _shown(pretrained, image, mask, mesh)
    if reference is not None:
        cond = cond._replace(reference=reference)
        uncond = None if uncond is None else uncond._replace(reference=reference)
    if moving is not None:
        known = encode_images(pretrained, _without(image, mask), mesh)
    begun: Any = noise(part.keys, latent_shape(pretrained, settings)) if part.noise is None else part.noise
    scale: Any = part.scale

    def run(when: Plan, object_masks: Any) -> Any:
        """A `Sampled` on the host, as NumPy's arrays."""
        schedule: Any = when.schedule(moving, part.omegas, object_masks, part.first)
        if follow is not None:
            schedule = follow(schedule, Condition(tokens=part.cond.tokens, mask=part.cond.mask))
        # a run that leaves out its first steps, in which nothing moves, leaves out their noise
        fresh: Any = None if part.fresh is None else part.fresh.swapaxes(0, 1)[-schedule.num_steps :]
        inputs = Inputs(begun, part.keys, schedule, cond, uncond, scale, known, when.start, fresh)
        return jax.device_get(sample_latents(net, pretrained.denoiser.params, inputs))

    masks = None if part.object_masks is None else part.object_masks[:, None] > 0.5
    if settings.schedule == "asyndm" and settings.masks == "fixed":
        first = run(when.synchronous(), None)
        masks = np.asarray(thresholded(jnp.asarray(first.maps.mean(0)), settings.threshold))[:, None]
    result = run(when, None if masks is None else masks[:, 0].astype(np.float32))
    images = decode_latents(pretrained, result.latents, mesh)
    if part.mask is not None:
        # an autoencoder's decoder is off by a shade everywhere: over a few latents' width, the hole follows the rest
        images = np.stack(
            [
                stitch(given, made, hole > 0, hole == 0, float(factor(pretrained)))
                for given, made, hole in zip(image, images, mask, strict=True)
            ]
        )
    maps = None if result.maps is None else result.maps.swapaxes(0, 1)
    if maps is not None and masks is None:
        each = thresholded(jnp.asarray(maps.reshape(-1, *maps.shape[2:])), settings.threshold)
        masks = np.asarray(each).reshape(maps.shape)
    return Drawn(images, result.fields.swapaxes(0, 1), maps, masks)


def _every_token(count: int, length: int) -> Spans:
    """Each token as an object of its own, for a guidance that divides the image among all of them."""
    index: Any = np.broadcast_to(np.arange(length, dtype=np.int32), (count, length))
    weight: Any = np.broadcast_to(np.eye(length, dtype=np.float32), (count, length, length))
    return Spans(index, weight)


def _stacked(arrays: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    return None if not arrays or arrays[0] is None else np.stack([change(array) for array in arrays])


def _padded(count: int, masks: Float[np.ndarray, "h w _k"]) -> Float[np.ndarray, "h w k"]:
    return np.pad(masks, ((0, 0), (0, 0), (0, count - masks.shape[-1]))).astype(np.float32)


def _shown(
    pretrained: Pretrained, image: Float[np.ndarray, "b h w c"], mask: Float[np.ndarray, "b h w 1"], mesh: Mesh | None
) -> Float[np.ndarray, "b h2 w2 c2"]:
    """What a network for inpainting is shown beside its latents, as diffusers has it.

    The mask, a pixel for each latent, and the latents of the image with grey in the place of what is made anew.
    """
    kept = encode_images(pretrained, image * (mask < 0.5), mesh)
    side = mask.shape[1] // kept.shape[1]
    return np.concatenate([mask[:, ::side, ::side], kept], axis=-1)


def _without(image: Float[np.ndarray, "b h w c"], mask: Float[np.ndarray, "b h w 1"]) -> Float[np.ndarray, "b h w c"]:
    """The image without what is to be generated anew, which is no data: the mean colour of the rest in its place."""
    kept = mask < 1
    shown = np.where(kept, image, 0.0)
    mean = shown.sum((1, 2), keepdims=True) / np.maximum(kept.sum((1, 2), keepdims=True), 1)
    return np.where(kept, image, mean).astype(np.float32)
