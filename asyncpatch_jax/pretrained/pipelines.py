"""From prompts to images with a pretrained folder: plain functions, each step of which can be used alone.

`text2image` is all of it: prompts -> embeddings -> the jitted sampler -> autoencoder -> images.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from asyncpatch_jax import viz
from asyncpatch_jax.pretrained.batch import Follow, make, prepare
from asyncpatch_jax.pretrained.folders.complete import check_complete
from asyncpatch_jax.pretrained.folders.edges import check_tokenizers
from asyncpatch_jax.pretrained.folders.loading import Pretrained
from asyncpatch_jax.pretrained.plans import Plan, plan
from asyncpatch_jax.pretrained.requests import Picture, Request, check, omegas
from asyncpatch_jax.pretrained.settings import Settings
from asyncpatch_jax.pretrained.text.prompts import Encoded, read_tokenizers, streams
from asyncpatch_jax.pretrained.text.spans import reference_compat, spans
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer
from asyncpatch_jax.types import Spans


class Made(NamedTuple):
    """An image, and how it came about.

    fields: the time of each cell before every step and at the end.
    maps: the attention to each object in every step, if the schedule or a guidance looked at it.
    masks: where each object was taken to be: by the attention of every step [s], or for the whole run [1].
    """

    image: Picture
    fields: Float[np.ndarray, "s gh gw 1"]
    maps: Float[np.ndarray, "s2 gh2 gw2 k"] | None
    masks: Bool[np.ndarray, "s3 gh3 gw3 k"] | None


def text2image(
    pretrained: Pretrained,
    requests: Sequence[Request],
    settings: Settings,
    *,
    batch: int = 4,
    mesh: Mesh | None = None,
    follow: Follow | None = None,
) -> Iterator[Made]:
    """Make an image for each request, in their order, `batch` at a time; one program is compiled for all of them.

    What a batch has made can be taken before the next one begins, and is not kept.

    Args:
        mesh: the devices that the networks were loaded to.
        follow: another schedule in the place of the settings', made of it: `(schedule, known) -> schedule`, such as
            `schedules.TPMSchedule` of a trained policy. `known` is the batch's text.

    Raises:
        ValueError: sizes that the networks cannot take, a guidance that they do not support, words that are not in
            their prompt, objects or images that a schedule needs and that are missing: all of it at once, before any
            network runs. Later, an image that is not finite, by its prompt and seed.
    """
    if batch < 1:
        raise ValueError(f"expected a batch of one image or more, got {batch}")
    checked = ready(pretrained, requests, settings)
    return _in_batches(pretrained, requests, settings, checked, min(batch, len(requests)), mesh, follow)


class Ready(NamedTuple):
    """What a run follows, known before it begins.

    objects: their tokens, a row for each request.
    """

    tokenizers: dict[str, Tokenizer]
    plan: Plan
    objects: Spans | None


def ready(pretrained: Pretrained, requests: Sequence[Request], settings: Settings) -> Ready:
    """Refuse what cannot be made.

    Args:
        pretrained: its parameters are not looked at: `loading.describe` will do.

    Raises:
        ValueError: as `text2image`, but for images that are not finite.
    """
    check_complete(pretrained)
    check(pretrained, requests, settings)
    when = plan(pretrained, requests, settings)
    tokenizers = read_tokenizers(pretrained.family, pretrained.tokenizers)
    check_tokenizers(pretrained.family, pretrained.components, tokenizers)
    # refuses a length of texts, too
    streams(pretrained.family, pretrained.components, tokenizers, t5_length=settings.t5_length)
    return Ready(tokenizers, when, named(pretrained, tokenizers, requests, settings))


def _in_batches(
    pretrained: Pretrained,
    requests: Sequence[Request],
    settings: Settings,
    checked: Ready,
    batch: int,
    mesh: Mesh | None,
    follow: Follow | None,
) -> Iterator[Made]:
    slow, tokenizers, when = omegas(requests, settings), checked.tokenizers, checked.plan
    known: dict[str, Encoded] = {}
    for first in range(0, len(requests), batch):
        # the last batch is filled up: only one size compiles
        index = np.minimum(np.arange(first, first + batch), len(requests) - 1)
        those = [requests[i] for i in index]
        spans_of = jax.tree.map(lambda leaf, index=index: leaf[index], checked.objects)
        part = prepare(pretrained, tokenizers, those, settings, slow[index], spans_of, mesh=mesh, known=known)
        drawn = make(pretrained, settings, when, part, mesh=mesh, follow=follow)
        for row, request in enumerate(those[: len(requests) - first]):
            one = jax.tree.map(lambda leaf, row=row: leaf[row], drawn)
            if not np.isfinite(one.images).all():
                raise ValueError(f"expected a finite image of {request.prompt!r}, seed {request.seed}, got NaN in it")
            yield Made(viz.to_uint8(one.images), *one[1:])
        # texts that no later image has are not kept
        later = {text for request in requests[first + batch :] for text in _texts(request)}
        known = {text: encoded for text, encoded in known.items() if text in later}


def named(
    pretrained: Pretrained, tokenizers: Mapping[str, Tokenizer], requests: Sequence[Request], settings: Settings
) -> Spans | None:
    """The tokens of the requests' objects, if the schedule looks at their attention.

    Raises:
        ValueError: words that are not in their prompt, or that were cut off.
    """
    if settings.schedule != "asyndm" or settings.draws_masks:
        return None
    prompts = [request.prompt for request in requests]
    if settings.reference_compat:
        return reference_compat(prompts, [request.item_idx for request in requests], tokenizers["tokenizer"].length)
    read = streams(pretrained.family, pretrained.components, tokenizers, t5_length=settings.t5_length)
    return spans(read, prompts, [request.objects for request in requests])


def _texts(request: Request) -> tuple[str, str]:
    return request.prompt, request.negative or ""
