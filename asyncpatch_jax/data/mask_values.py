"""What the numbers in a mask's file mean. What could mean two things is asked for, and not guessed."""

import math

import numpy as np
from jaxtyping import Float, Num
from PIL import Image

from asyncpatch_jax.data.images import converted, numbers

Values = tuple[float, float]
"""The numbers in a file that are black and white: (0, 255) of most, (0, 1) of many label maps."""

# of white: JPEG writes a few levels less
_NEARLY = 0.98
# levels between the largest and the smallest of red, green and blue, above which a colour is no grey; JPEG again
_TINT = 32


def check_values(values: Values | None) -> None:
    """Raise ValueError unless `values` are None or finite numbers with black below white."""
    if values is not None and not (all(map(math.isfinite, values)) and values[0] < values[1]):
        raise ValueError(f"expected mask_values = (black, white) with black < white, got {values}")


def alpha_of(image: Image.Image) -> Num[np.ndarray, "h w"] | None:
    """How opaque each pixel is, 0 ... 255; None where the image has no transparency, or all of it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(converted(image, 4))[..., 3]
    return alpha if (alpha < 255).any() else None


def greys_of(image: Image.Image) -> tuple[Num[np.ndarray, "h w"], float]:
    """The numbers of a mask of greys, and which of them is white in images of its kind.

    Raises:
        ValueError: colours, which neither black nor white is.
    """
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return numbers(image)
    if image.mode != "LA":
        pixels = np.asarray(converted(image, 4))[..., :3].astype(np.int16)
        spread = pixels.max(-1) - pixels.min(-1)
        if spread.max() > _TINT:
            y, x = np.argwhere(spread > _TINT)[0]
            colour = tuple(int(value) for value in pixels[y, x])
            kind = "the palette of a map of labels?" if image.mode == "P" else "a mask painted in colour?"
            raise ValueError(f"expected black, white and greys, got the colour {colour} at x={x}, y={y}: {kind}")
    return np.asarray(converted(image, 4).getchannel("R")), 255.0


def strengths(
    numbers: Num[np.ndarray, "h w"], white: float, told: Values | None, graded: bool
) -> Float[np.ndarray, "h w"]:
    """The numbers of a file as 0 (black) ... 1 (white).

    Args:
        white: what is white in files of this kind.
        told: what is black and white in this one; None: it must show. White is there, or all is black; and unless
            greys are strengths (`graded`), what is not white is not all dark beside it, as the labels 1, 2, ... are in
            maps where 255 stands for "unknown".

    Raises:
        ValueError: numbers beyond those told, or, where none were, numbers that may mean two things.
    """
    least, most = float(numbers.min()), float(numbers.max())
    if not math.isfinite(least + most):
        raise ValueError(f"expected finite numbers in a mask, got some from {least:g} to {most:g}")
    if told is None:
        if (other := _other_white(numbers, white, graded)) is not None:
            there = [f"{number:g}" for number in np.unique(numbers)]
            listed = ", ".join(there if len(there) < 7 else [*there[:3], "...", *there[-3:]])
            raise ValueError(
                f"expected a mask of greys from 0 to a white of {white:g}, got {listed}; is white {other:g} or "
                f"{white:g}? Say so: mask_values=(0, {other:g}) or (0, {white:g}); commands: --mask_values=0,{other:g}"
            )
        told = (0.0, white)
    black, white = told
    outside = int(((numbers < black) | (numbers > white)).sum())
    if outside:
        raise ValueError(
            f"expected numbers from {black:g} to {white:g} (mask_values) in a mask, got {outside} others in "
            f"{least:g} ... {most:g}"
        )
    return ((numbers.astype(np.float64) - black) / (white - black)).astype(np.float32)


def _other_white(numbers: Num[np.ndarray, "h w"], white: float, graded: bool) -> float | None:
    """A number that may be white instead of the usual one; None where only that one can be."""
    most = float(numbers.max())
    if numbers.min() < 0 or most > white or 0 < most < _NEARLY * white:
        return most
    labels = numbers[(numbers > 0) & (numbers < white / 4)]
    greys = (numbers >= white / 4) & (numbers < _NEARLY * white)
    return float(labels.max()) if labels.size and most and not greys.any() and not graded else None
