"""Inpainting masks: 1 = generate, 0 = keep. Drawn by name, cut from margins, or read from a file."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from asyncpatch_jax import checks
from asyncpatch_jax.data.decoding import MAX_PIXELS, ImageFile, decoded, shown
from asyncpatch_jax.data.images import check_settings, resize
from asyncpatch_jax.data.mask_values import Values, alpha_of, check_values, greys_of, strengths

Shape = tuple[int, int]
Hole = Bool[np.ndarray, "h w"]
Convention = Literal["white_generate", "black_generate", "alpha_generate", "alpha_keep"]

# of redraws, where a draw is empty, full or too large; at the sizes that images have, a handful is enough
_TRIES = 1000


@dataclass(frozen=True)
class Boxes:
    """Rectangles of LaMa; pixel numbers are for a side of 256 and scale with the image. Ranges include both ends."""

    count: tuple[int, int]
    side: tuple[int, int]
    margin: int
    weight: float  # against 1 for strokes


@dataclass(frozen=True)
class Lama:
    """One set of LaMa's irregular masks (Suvorov et al. 2022, arXiv 2109.07161, and the settings of its test sets).

    A mask is `strokes` polylines of 1 to 5 segments, or with odds `boxes.weight` : 1 some rectangles. A segment points
    0.01, 1.01, ... radians (below `angle`) away from straight down, to the other side on every other stroke. At a side
    of 256 it is 10 ... length + 9 pixels long and 5 ... width + 4 wide; both scale with the image, a width down to one
    pixel. Masks that cover more than half of the image are drawn again.
    """

    strokes: tuple[int, int]
    width: int
    length: int
    angle: int = 4
    boxes: Boxes | None = None

    def __call__(self, rng: np.random.Generator, shape: Shape) -> Hole:
        image = Image.new("1", shape[::-1])
        scale = min(shape) / 256
        if self.boxes is not None and rng.random() * (1 + self.boxes.weight) < self.boxes.weight:
            _draw_boxes(self.boxes, ImageDraw.Draw(image), rng, shape, scale)
        else:
            self._draw_strokes(ImageDraw.Draw(image), rng, shape, scale)
        return np.asarray(image)

    def _draw_strokes(self, canvas: ImageDraw.ImageDraw, rng: np.random.Generator, shape: Shape, scale: float) -> None:
        for stroke in range(rng.integers(self.strokes[0], self.strokes[1] + 1)):
            y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
            for _ in range(rng.integers(1, 6)):
                angle = 0.01 + rng.integers(self.angle)
                if stroke % 2 == 0:
                    angle = 2 * np.pi - angle
                length = (10 + rng.integers(self.length)) * scale
                width = max(1, round((5 + rng.integers(self.width)) * scale))
                y_end = np.clip(y + length * np.cos(angle), 0, shape[0])
                x_end = np.clip(x + length * np.sin(angle), 0, shape[1])
                canvas.line([(x, y), (x_end, y_end)], fill=1, width=width)
                # round ends, as the brush of the original has
                if width > 2:
                    canvas.circle((x, y), width / 2, fill=1)
                    canvas.circle((x_end, y_end), width / 2, fill=1)
                y, x = y_end, x_end


def _draw_boxes(
    boxes: Boxes, canvas: ImageDraw.ImageDraw, rng: np.random.Generator, shape: Shape, scale: float
) -> None:
    margin = round(boxes.margin * scale)
    for _ in range(rng.integers(boxes.count[0], boxes.count[1] + 1)):
        # a box is at least one pixel, and fits between the margins
        h, w = (
            int(np.clip(round(rng.integers(boxes.side[0], boxes.side[1] + 1) * scale), 1, max(1, side - 2 * margin)))
            for side in shape
        )
        y = int(rng.integers(margin, max(margin, shape[0] - margin - h) + 1))
        x = int(rng.integers(margin, max(margin, shape[1] - margin - w) + 1))
        canvas.rectangle([(x, y), (x + w - 1, y + h - 1)], fill=1)


def _square(rng: np.random.Generator, shape: Shape) -> Hole:
    """A hole of half the shorter side, anywhere (128 in 256)."""
    side = min(shape) // 2
    y, x = rng.integers(0, shape[0] - side + 1), rng.integers(0, shape[1] - side + 1)
    hole = np.zeros(shape, bool)
    hole[y : y + side, x : x + side] = True
    return hole


def _extrema(rng: np.random.Generator, shape: Shape) -> Hole:
    """All but such a square."""
    return ~_square(rng, shape)


def _half(rng: np.random.Generator, shape: Shape) -> Hole:
    """The right half; this and the next three as in RePaint, Lugmayr et al. 2022, arXiv 2201.09865."""
    return np.broadcast_to(np.arange(shape[1]) >= shape[1] // 2, shape)


def _expand(rng: np.random.Generator, shape: Shape) -> Hole:
    """All but the central quarter of each side (64 of 256)."""
    (h, w) = (max(1, side // 4) for side in shape)
    hole = np.ones(shape, bool)
    y, x = (shape[0] - h) // 2, (shape[1] - w) // 2
    hole[y : y + h, x : x + w] = False
    return hole


def _every_second_line(rng: np.random.Generator, shape: Shape) -> Hole:
    """Odd rows."""
    return np.broadcast_to(np.arange(shape[0])[:, None] % 2 == 1, shape)


def _super_resolution(rng: np.random.Generator, shape: Shape) -> Hole:
    """All but every second pixel of every second row: what a 2x smaller image knows."""
    return (np.arange(shape[0])[:, None] % 2 == 1) | (np.arange(shape[1]) % 2 == 1)


def _perlin(rng: np.random.Generator, shape: Shape) -> Hole:
    """Where Perlin noise is lowest: lattice cell U(1, shorter side), area U(0, 1), as in the Perlin training times."""
    pixels = shape[0] * shape[1]
    area = np.clip(rng.random(), 1 / pixels, 1 - 1 / pixels)
    from asyncpatch_jax import keys

    key = keys.of_seed(int(rng.integers(2**32, dtype=np.uint32)))
    return np.asarray(_perlin_region()(key, shape, rng.uniform(1, min(shape)), area)) > 0.5


@functools.cache
def _perlin_region() -> Callable:
    """Compiled once per shape; and a program that draws no Perlin mask does not load JAX for it."""
    import jax

    from asyncpatch_jax.training.perlin import by_rank, perlin_noise

    return jax.jit(lambda key, shape, cell, area: by_rank(perlin_noise(key, shape, cell), area), static_argnums=1)


_KINDS: dict[str, Callable[[np.random.Generator, Shape], Hole]] = {
    "thin": Lama(strokes=(4, 50), width=10, length=40),
    "medium": Lama(strokes=(4, 5), width=50, length=100, boxes=Boxes((1, 5), (10, 50), margin=0, weight=0.3)),
    "wide": Lama(strokes=(1, 5), width=100, length=200, boxes=Boxes((1, 3), (30, 150), margin=10, weight=0.3)),
    "square": _square,
    "extrema": _extrema,
    "half": _half,
    "expand": _expand,
    "every_second_line": _every_second_line,
    "super_resolution": _super_resolution,
    "perlin": _perlin,
}
MASKS: tuple[str, ...] = tuple(_KINDS)


def _check_shape(size: int | Shape) -> Shape:
    shape = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(shape) != 2:
        raise ValueError(f"expected a size (or height and width) of at least 2 pixels, got {size}")
    for side in shape:
        checks.whole("a size in pixels", side, 2)
    return shape


def draw(name: str, seed: int, batch: int, size: int | Shape) -> Float[np.ndarray, "b h w 1"]:
    """Masks [batch, h, w, 1] of a kind out of `MASKS`; image i's depends on (seed, i) only, not on the batch.

    A mask is never empty nor full, and one of LaMa's covers half of the image at most.

    Args:
        name: "thin", "medium", "wide" (LaMa), "square", "extrema" (all but a square), "half", "expand" (outpaint the
            centre), "every_second_line", "super_resolution" (2x), "perlin".
        seed: of NumPy's generator, >= 0.
        batch: number of masks.
        size: side in pixels, or (h, w).

    Raises:
        ValueError: unknown name, size below 2 pixels, negative seed or batch, no mask of this kind fits into the size.
    """
    if name not in _KINDS:
        raise ValueError(f"expected a mask out of {', '.join(MASKS)}, got {name!r}")
    checks.whole("seed", seed, 0)
    checks.whole("batch", batch)
    shape = _check_shape(size)
    return np.stack([draw_one(name, np.random.default_rng([seed, i]), shape) for i in range(batch)])


def draw_one(name: str, rng: np.random.Generator, shape: Shape) -> Float[np.ndarray, "h w 1"]:
    """One mask of a kind out of `MASKS`, by a generator of one's own; see `draw`."""
    kind = _KINDS[name]
    most = 0.5 if isinstance(kind, Lama) else 1.0
    for _ in range(_TRIES):
        hole = kind(rng, shape)
        if hole.any() and not hole.all() and hole.mean() <= most:
            return hole[..., None].astype(np.float32)
    raise ValueError(f"expected an image that a {name!r} mask fits into, got {shape[0]}x{shape[1]} pixels")


def outpaint(
    size: int | Shape, *, top: int = 0, right: int = 0, bottom: int = 0, left: int = 0
) -> Float[np.ndarray, "h w 1"]:
    """The mask [h, w, 1] of an enlarged image: its margins, in pixels, are generated, the rest is kept.

    Raises:
        ValueError: no margin, negative ones, or margins that leave nothing to keep.
    """
    h, w = _check_shape(size)
    margins = (top, right, bottom, left)
    for margin in margins:
        checks.whole("a margin in pixels", margin, 0)
    if min(margins) < 0 or max(margins) == 0 or top + bottom >= h or left + right >= w:
        raise ValueError(f"expected margins (top, right, bottom, left) within {h}x{w} pixels, got {margins}")
    mask = np.ones((h, w, 1), np.float32)
    mask[top : h - bottom, left : w - right] = 0
    return mask


@contextmanager
def _named(path: ImageFile) -> Iterator[None]:
    """What is wrong with a mask is said with its file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}, in {shown(path)}") from error


def read_mask(
    path: ImageFile,
    image_shape: Shape,
    convention: Convention = "white_generate",
    *,
    size: int | None = None,
    graded: bool = False,
    mask_values: Values | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Float[np.ndarray, "h w 1"]:
    """The mask [h, w, 1] in an image file, for an image file of `image_shape` (h, w).

    A pixel is one to generate where at least half of it is marked; with `graded` the mark itself, 0 ... 1, is the
    strength. With `size` the mask follows its image through `images.resize` to size x size, a graded one by area; of a
    hard mask every pixel is marked into which the image's filter mixes anything of a marked one.

    Args:
        path: any image file that `read_image` takes.
        image_shape: height and width of the (upright) image that the mask belongs to.
        convention: "white_generate", "black_generate": grey values; "alpha_generate": what is transparent is generated
            (OpenAI's image edits); "alpha_keep": what is painted on a transparent layer is generated.
        size: side of the model's images, None for the mask's own.
        graded: keep grey values as strengths.
        mask_values: the numbers in the file that are black and white (transparent and opaque), where they do not
            show: (0, 1) for maps of 0 and 1. A file that has its kind's white (255; 65535 of 16 bits; 1 of floats), or
            is all black, needs none.
        max_pixels: refuse larger masks.

    Raises:
        ValueError: unreadable file, unknown convention, another size than the image, transparency that the convention
            does not speak of (or none where it does), colours, numbers that may mean two things, or nothing to
            generate. A full mask is valid.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"expected a mask convention out of {', '.join(get_args(Convention))}, got {convention!r}")
    check_settings(size, 1)
    check_values(mask_values)
    by_alpha = convention.startswith("alpha")
    with decoded(path, max_pixels) as image, _named(path):
        if (image.height, image.width) != tuple(image_shape):
            raise ValueError(
                f"expected a mask of the image's {image_shape[1]}x{image_shape[0]} pixels (width x height), got "
                f"{image.width}x{image.height}"
            )
        alpha = alpha_of(image)
        if by_alpha != (alpha is not None):
            wanted, found = ("with", "without") if by_alpha else ("without", "with")
            raise ValueError(f"expected a mask {wanted} transparency for {convention!r}, got one {found}")
        values, white = greys_of(image) if alpha is None else (alpha, 255.0)
        mask = strengths(values, white, mask_values, graded)
    if convention in ("black_generate", "alpha_generate"):
        mask = 1 - mask
    if not graded:
        mask = (mask >= 0.5).astype(np.float32)
    if size is not None:
        if graded:
            mask = np.clip(np.asarray(resize(Image.fromarray(mask), size, Image.Resampling.BOX)), 0, 1)
        else:
            # by the filter that resizes the image: a pixel that holds a trace of what is to be generated is not known
            mask = (np.abs(np.asarray(resize(Image.fromarray(mask), size))) > 1e-6).astype(np.float32)
    if not mask.any():
        raise ValueError(f"expected a mask with something to generate ({convention}), got an empty one: {shown(path)}")
    return mask[..., None]
