"""Photos of any size for networks that are told prompts: their holes are filled window by window.

`launch.text2image --image` makes of a photo and its mask one `Original`, of each request a job, and of each window of
it a request of the network's size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from asyncpatch_jax.data.channels import read_photo, with_channels
from asyncpatch_jax.data.masks import read_mask
from asyncpatch_jax.pretrained.batch import Follow
from asyncpatch_jax.pretrained.folders.loading import Pretrained
from asyncpatch_jax.pretrained.pipelines import Made, text2image
from asyncpatch_jax.pretrained.requests import Request
from asyncpatch_jax.pretrained.settings import Settings
from asyncpatch_jax.sampling.painting import Job, Shown, look, most, repaint, together
from asyncpatch_jax.sampling.windows import Size, Window, plan, whole
from launch.shared import masks

_CHANNELS = 3  # of all public networks


class Original(NamedTuple):
    """A photo, and what of it is to change.

    photo: with the channels of its file.
    strength: how much each pixel changes; None: Kontext edits it as a whole.
    drawn: where objects are drawn [H W k], if they are.
    """

    photo: UInt8[np.ndarray, "H W c"]
    strength: Float[np.ndarray, "H W 1"] | None
    drawn: Float[np.ndarray, "H W k"] | None


def read(values: flags.FlagValues) -> Original:
    """The files of --image, --mask (or --strength) and --object_mask.

    Raises:
        ValueError: one cannot be read, or the masks have not the photo's size.
    """
    photo = read_photo(values.image, max_pixels=values.max_pixels)
    size, strength = photo.shape[:2], None
    if values.mask is not None:
        strength = read_mask(values.mask, size, values.convention, graded=values.graded, **mask_settings(values))
    elif values.strength is not None:
        strength = np.full((*size, 1), values.strength, np.float32)
    return Original(photo, strength, drawn_objects(values, size))


def drawn_objects(values: flags.FlagValues, size: Size) -> Float[np.ndarray, "H W k"] | None:
    """The files of --object_mask, which have the size of the image that they are for."""
    drawn = [read_mask(file, size, values.convention, **mask_settings(values)) for file in values.object_mask]
    return np.concatenate(drawn, -1) if drawn else None


def mask_settings(values: flags.FlagValues) -> dict[str, Any]:
    """How all masks of a command are read."""
    return {"mask_values": masks.mask_values(), "max_pixels": values.max_pixels}


def shown_size(original: Original, multiple: int, side: int, local: bool) -> Size:
    """Height and width at which a network is shown a photo, unless the user says so.

    The photo's own if the network can take them and has seen as much; else, for a mask (`local`), the network's own
    square, and for a photo that changes everywhere the same number of pixels in about the photo's shape.

    Args:
        multiple: of which the network's sides are.
        side: of its own square.
    """
    height, width = original.photo.shape[:2]
    if height % multiple == 0 and width % multiple == 0 and height * width <= side**2:
        return height, width
    if local:
        return side, side
    stretch = math.sqrt(height / width)
    rows, columns = (max(multiple, round(side * s / multiple) * multiple) for s in (stretch, 1 / stretch))
    return rows, columns


def windows_of(original: Original, size: Size, *, local: bool, detail: float | None) -> list[Window]:
    """What the network is shown of a photo: windows around the holes, or all of it at once."""
    strength = original.strength
    if strength is None:
        strength = np.ones((*original.photo.shape[:2], 1), np.float32)
    if local and original.photo.shape[:2] != size:
        return plan(strength, size, overlap=min(size) // 4, detail=detail)
    return [whole(strength, size)]


def examples(
    requests: Sequence[Request], original: Original | None, windows: Sequence[Window], settings: Settings
) -> list[Request]:
    """The requests as they are of the photo's first and last windows, to be checked; as they are without a photo."""
    if original is None:
        return list(requests)
    size = (settings.height, settings.width)
    photo = with_channels(original.photo, _CHANNELS)
    return [
        windowed(request, Shown(0, 0, *look(photo, window, size)), original, window, size)
        for window in (windows[0], windows[-1])
        for request in requests
    ]


def repainted(
    pretrained: Pretrained,
    original: Original,
    windows: Sequence[Window],
    requests: Sequence[Request],
    settings: Settings,
    *,
    batch: int,
    mesh: Mesh | None,
    follow: Follow | None,
    on_windows: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[UInt8[np.ndarray, "H W c"], Made]]:
    """The photo as each request wants it, and how its first window came about.

    Args:
        on_windows: is told how many more are done.
    """
    size = (settings.height, settings.width)
    shown_photo = with_channels(original.photo, _CHANNELS)
    for first in range(0, len(requests), batch):
        group = requests[first : first + batch]
        jobs = [Job(shown_photo, windows, request) for request in group]
        width = together(jobs, batch)
        firsts: dict[int, Made] = {}

        def fill(
            shown: list[Shown],
            group: Sequence[Request] = group,
            width: int = width,
            firsts: dict[int, Made] = firsts,
        ) -> list[UInt8[np.ndarray, "h w c"]]:
            asked = [windowed(group[one.job], one, original, windows[one.window], size) for one in shown]
            filled = [*asked, *asked[-1:] * (width - len(asked))]  # only one size compiles
            made = list(text2image(pretrained, filled, settings, batch=width, mesh=mesh, follow=follow))[: len(asked)]
            firsts.update({one.job: each for one, each in zip(shown, made, strict=True) if one.window == 0})
            on_windows(len(shown))
            return [each.image for each in made]

        # Kontext is told all of what it is to edit
        for j, canvas in repaint(jobs, size, fill, batch=width, erase=pretrained.family != "kontext"):
            image = with_channels(canvas, original.photo.shape[2])
            if original.strength is not None:
                image = np.where(original.strength > 0, image, original.photo)
            yield image, firsts[j]


def windowed(request: Request, shown: Shown, original: Original, window: Window, size: Size) -> Request:
    """A request for what is to be seen in one window; the first has the request's seed, each other one its own."""
    drawn = None
    if original.drawn is not None:
        drawn = most(original.drawn[window.place], size)
    seed = request.seed
    if shown.window:
        seed = int(np.random.SeedSequence([seed, shown.window]).generate_state(1)[0])
    mask = None if original.strength is None else shown.strength
    return request._replace(seed=seed, image=shown.image, mask=mask, object_masks=drawn)
