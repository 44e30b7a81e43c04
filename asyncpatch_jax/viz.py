"""Pictures of images and of their time fields, as uint8 arrays; and the writers of PNG files and animations.

Everything here is NumPy and Pillow on the host. Small images are enlarged by repeating pixels, so that 8x8 digits can
be seen and nothing is smoothed away.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Float, Shaped, UInt8
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont, PngImagePlugin

from asyncpatch_jax.files import writing

Picture = UInt8[np.ndarray, "_h _w 3"]
Images = Float[np.ndarray | Array, "*n h w c"] | UInt8[np.ndarray | Array, "*n h w c"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# viridis (van der Walt and Smith 2015, CC0) at 17 equal distances: perceptually uniform, and readable when colour-blind
_VIRIDIS = np.frombuffer(
    bytes.fromhex(
        "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
        "1f9f88 27ad81 3dbc74 5cc863 81d34d aadc32 d5e21a fde725"
    ),
    np.uint8,
).reshape(-1, 3)
_GUTTER = 4
_FONT = 14
_SEEN = 64  # pixels that a small image is enlarged to


def to_uint8(images: Images) -> UInt8[np.ndarray, "*n h w c"]:
    """[-1, 1] to 0 ... 255, rounded to the nearest (half a grey level of error at most); uint8 passes as it is.

    Values outside [-1, 1], which samplers produce, are clipped.

    Raises:
        ValueError: NaN or infinite pixels.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if not np.isfinite(images).all():
        bad = np.count_nonzero(~np.isfinite(images))
        raise ValueError(f"expected finite pixels in [-1, 1], got {bad} of {images.size} that are NaN or infinite")
    return np.rint(np.clip(images.astype(np.float64) * 127.5 + 127.5, 0, 255)).astype(np.uint8)


def colour(images: Images) -> UInt8[np.ndarray, "*n h w 3"]:
    """`to_uint8`, and grey becomes three equal channels.

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    images = to_uint8(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"expected images with 1 or 3 channels, got {images.shape[-1]}")
    return np.repeat(images, 3 // images.shape[-1], axis=-1)


def heat(fields: Float[np.ndarray | Array, "*n gh gw 1"]) -> UInt8[np.ndarray, "*n gh gw 3"]:
    """A time field in viridis: dark violet is data (0), yellow is noise (1).

    Raises:
        ValueError: a time outside [0, 1], or NaN.
    """
    fields = np.asarray(fields, np.float64)[..., 0]
    if not ((fields >= -1e-6) & (fields <= 1 + 1e-6)).all():
        raise ValueError(f"expected times in [0, 1], got {fields.min()} ... {fields.max()}")
    places = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(fields, places, _VIRIDIS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def enlarge(images: Shaped[np.ndarray, "*n h w c"], size: tuple[int, int]) -> Shaped[np.ndarray, "*n _h _w c"]:
    """Repeat pixels until the image has `size` = (height, width): also brings a field's cells to its image's size.

    Raises:
        ValueError: `size` is no multiple of the image's.
    """
    h, w = images.shape[-3:-1]
    if size[0] % h or size[1] % w:
        raise ValueError(f"expected a size that {h}x{w} divides, got {size[0]}x{size[1]}")
    return np.repeat(np.repeat(images, size[0] // h, axis=-3), size[1] // w, axis=-2)


def hatch(tiles: UInt8[np.ndarray, "*n h w 3"], unknown: Bool[np.ndarray, "*n h w"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Cover what is unknown with diagonal stripes, which no image is taken for."""
    h, w = unknown.shape[-2:]
    stripes = (np.arange(h)[:, None] + np.arange(w)[None, :]) // 4 % 2
    cover = np.array([[214, 224, 240], [150, 170, 205]], np.uint8)[stripes]
    return np.where(unknown[..., None], cover, tiles)


def visible(size: tuple[int, int]) -> tuple[int, int]:
    """The size at which an image is shown: the smallest whole multiple with sides of 64 pixels or more."""
    factor = max(1, -(-_SEEN // min(size)))
    return size[0] * factor, size[1] * factor


def tiles(images: Images) -> UInt8[np.ndarray, "*n _h _w 3"]:
    """Images in colour at their `visible` size."""
    images = colour(images)
    return enlarge(images, visible(images.shape[-3:-1]))


def page(
    tiles: UInt8[np.ndarray, "rows columns h w 3"],
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    legend: bool = False,
) -> Picture:
    """A table of tiles with white gutters, names at its left and on top, and the bar of `heat`'s colours at its right.

    Raises:
        ValueError: another number of names than rows or columns.
    """
    rows, columns, h, w, _ = tiles.shape
    for names, count, what in ((row_names, rows, "row"), (column_names, columns, "column")):
        if names and len(names) != count:
            raise ValueError(f"expected {count} {what} names, got {len(names)}")
    font = ImageFont.load_default(_FONT)
    left = _GUTTER + max((_width(font, name) + _GUTTER for name in row_names), default=0)
    head = _FONT + 2 * _GUTTER
    top = _GUTTER + head * bool(title) + head * bool(column_names)
    width, height = left + columns * (w + _GUTTER), top + rows * (h + _GUTTER)
    bar = _legend(font, max(h, _SEEN)) if legend else None
    full_width = max(width + (bar.width + _GUTTER if bar else 0), _width(font, title) + 2 * _GUTTER)
    canvas = Pillow.new("RGB", (full_width, max(height, top + bar.height + _GUTTER if bar else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((_GUTTER, _GUTTER), title, "black", font)
    for j, name in enumerate(column_names):
        draw.text((left + j * (w + _GUTTER) + w / 2, top - _GUTTER), name, "black", font, anchor="md")
    for i, name in enumerate(row_names):
        draw.text((left - _GUTTER, top + i * (h + _GUTTER) + h / 2), name, "black", font, anchor="rm")
    if bar:
        canvas.paste(bar, (width, top))
    out = np.array(canvas)
    for i in range(rows):
        for j in range(columns):
            y, x = top + i * (h + _GUTTER), left + j * (w + _GUTTER)
            out[y : y + h, x : x + w] = tiles[i, j]
    return out


def _width(font: Font, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _legend(font: Font, height: int) -> Pillow.Image:
    times = np.linspace(1, 0, height, dtype=np.float32).reshape(-1, 1, 1)
    names = ("1 noise", "0 data")
    canvas = Pillow.new("RGB", (_FONT + _GUTTER + max(_width(font, name) for name in names), height), "white")
    canvas.paste(Pillow.fromarray(np.repeat(heat(times), _FONT, axis=1)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((_FONT + _GUTTER, 0), names[0], "black", font, anchor="la")
    draw.text((_FONT + _GUTTER, height), names[1], "black", font, anchor="ld")
    return canvas


def grid(images: Images, columns: int) -> Picture:
    """Images [n, h, w, c] in rows of `columns`, each at its `visible` size; missing ones in the last row stay white.

    Raises:
        ValueError: no images, or `columns` < 1.
    """
    if images.ndim != 4 or not len(images) or columns < 1:
        raise ValueError(f"expected images [n, h, w, c] and columns >= 1, got shape {images.shape} and {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shown = tiles(images)
    places = np.full((rows * columns, *shown.shape[1:]), 255, np.uint8)
    places[: len(images)] = shown
    return page(places.reshape(rows, columns, *shown.shape[1:]))


def film(
    images: Images, fields: Float[np.ndarray | Array, "s n gh gw 1"], names: Sequence[str], title: str = ""
) -> Picture:
    """A run as a film strip: [s, n, h, w, c] images at s moments, left to right, each above its time field.

    Raises:
        ValueError: the fields do not tile the images, or another number of names than moments.
    """
    shown, below = _shown(images, fields)
    rows = np.stack([shown, below], 2).swapaxes(0, 1)  # [n, s, 2, h, w, 3]
    rows = rows.swapaxes(1, 2).reshape(-1, len(shown), *shown.shape[2:])
    return page(rows, column_names=names, title=title, legend=True)


def frames(
    images: Images, fields: Float[np.ndarray | Array, "s n gh gw 1"], title: str = ""
) -> UInt8[np.ndarray, "s _h _w 3"]:
    """The frames of an animation: [s, n, h, w, c] images side by side over their time fields.

    Raises:
        ValueError: the fields do not tile the images.
    """
    both = np.stack(_shown(images, fields), 1)
    names = ("image", "time")
    return np.stack([page(tiles, row_names=names, title=title, legend=True) for tiles in both])


def _shown(images: Images, fields: Float[np.ndarray | Array, "s n gh gw 1"]) -> tuple[np.ndarray, np.ndarray]:
    shown = tiles(images)
    return shown, enlarge(heat(fields), shown.shape[-3:-1])


def save_png(
    path: epath.PathLike, image: np.ndarray, *, text: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Write a grey [h, w, 1] or colour [h, w, 3] picture, or one with an alpha channel more, whole or not at all.

    Args:
        text: what the file says of itself, as PNG's text chunks; `PIL.Image.open(path).text` reads it.

    Raises:
        ValueError: `path` exists, or the picture is no uint8 one.
        OSError: the file cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        chunks.add_itxt(name, value)
    with writing(path, overwrite=overwrite) as stream:
        _pillow(image).save(stream, "PNG", pnginfo=chunks)


def save_animation(
    path: epath.PathLike, frames: np.ndarray, *, milliseconds: int = 80, overwrite: bool = False
) -> None:
    """Write frames [s, h, w, 3] as an endless animation that rests on its last frame; the suffix is gif, png or webp.

    GIF has 256 colours, the same in all frames; PNG and WebP are exact.

    Raises:
        ValueError: `path` exists, another suffix, or no frames.
        OSError: the file cannot be written.
    """
    suffix = epath.Path(path).suffix.lower()
    kinds = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
    if suffix not in kinds or not len(frames):
        raise ValueError(f"expected frames, and a path in {', '.join(kinds)}, got {len(frames)} frames and {path}")
    pictures = [_pillow(frame) for frame in frames]
    if suffix == ".gif":
        # one palette for all frames: with one each, what stays the same would change its colour from frame to frame
        palette = _pillow(np.concatenate(frames)).quantize(256, dither=Pillow.Dither.NONE)
        pictures = [picture.quantize(palette=palette, dither=Pillow.Dither.NONE) for picture in pictures]
    durations = [milliseconds] * (len(pictures) - 1) + [max(milliseconds, 1500)]
    exact = {"lossless": True} if suffix == ".webp" else {}
    with writing(path, overwrite=overwrite) as stream:
        pictures[0].save(
            stream, kinds[suffix], save_all=True, append_images=pictures[1:], duration=durations, loop=0, **exact
        )


def _pillow(image: np.ndarray) -> Pillow.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(f"expected a uint8 picture [h, w, 1 ... 4], got {image.dtype} {image.shape}")
    return Pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
