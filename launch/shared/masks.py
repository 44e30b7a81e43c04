"""The flags that say how the files of images and of masks are read: the same for every command that takes one."""

from typing import get_args

from absl import flags

from asyncpatch_jax.data.decoding import MAX_PIXELS, MOST_PIXELS
from asyncpatch_jax.data.mask_values import Values
from asyncpatch_jax.data.masks import Convention

flags.disclaim_key_flags()  # they belong to the command that asks for them, and show in its --help


def define_max_pixels() -> None:
    """Define --max_pixels, for what takes images and no masks."""
    about = "Refuse larger images and masks: a small file may hold more than a machine has memory for."
    flags.DEFINE_integer("max_pixels", MAX_PIXELS, about, lower_bound=1, upper_bound=MOST_PIXELS)


def define_flags() -> None:
    """Define --convention, --graded, --mask_values and --max_pixels."""
    define_max_pixels()
    flags.DEFINE_enum("convention", "white_generate", get_args(Convention), "How masks mark what they are of.")
    flags.DEFINE_bool("graded", False, "--mask says how much each pixel may change.")
    flags.DEFINE_list("mask_values", None, "Numbers in masks that are black and white, where it does not show: 0,1.")


def mask_values() -> Values | None:
    """What --mask_values says.

    Raises:
        ValueError: not two numbers.
    """
    given = flags.FLAGS.mask_values
    if given is None:
        return None
    try:
        black, white = map(float, given)
    except ValueError as error:
        raise ValueError(f"expected --mask_values=BLACK,WHITE, two numbers, got {','.join(given)}") from error
    return black, white
