"""From a configuration to its data, and to the holes that a supervised run learns from."""

from typing import NamedTuple

from ml_collections import ConfigDict

from asyncpatch_jax.data import MASKS, captions, mnist, prepared, scenes, sources
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.data.decoding import MAX_PIXELS

_GREY = ("digits", "mnist_digits", "fashion_mnist", "idx")
HELD_OUT = (*_GREY, "scenes", "photos")  # data sets with a part that no run is trained on
DATA = (*HELD_OUT, "folder", "tfds", "captions")


def dataset(config: ConfigDict, split: str | None = None) -> Dataset:
    """The data set of `config.data`; `split` instead of the configured one.

    Raises:
        ValueError: unknown name, or what the source raises.
    """
    data = config.data
    split = split or data.split
    if data.name not in DATA:
        raise ValueError(f"expected config.data.name out of {', '.join(DATA)}, got {data.name!r}")
    if data.channels not in (1, 3):
        raise ValueError(f"expected config.data.channels = 1 (grey) or 3 (RGB), got {data.channels}")
    if data.name in (*_GREY, "scenes") and data.channels != 1:
        raise ValueError(f"expected config.data.channels = 1 for {data.name}, got {data.channels}")
    if data.name in ("idx", "folder", "tfds", "captions") and not data.path:
        raise ValueError(f"expected --config.data.path=DIRECTORY for the data set {data.name!r}, got none")
    if data.name == "digits":
        return sources.digits(split, data.size)
    if data.name == "photos":
        return sources.photos(data.size, data.channels, split)
    if data.name == "mnist_digits":
        return mnist.mnist_digits(split, data.size)
    if data.name == "fashion_mnist":
        return mnist.fashion_mnist(data.path, split, data.size)
    if data.name == "idx":
        return mnist.idx(data.path, split, data.size, prefix=data.dataset)
    most = data.get("max_pixels", MAX_PIXELS)  # runs of before have none
    if data.name == "tfds":
        text = data.get("text") or ""
        return prepared.tfds(data.dataset, data.path, split, data.size, data.channels, most, text=text)
    if data.name == "scenes":
        return scenes.scenes(split, data.size)
    if split != "train":
        raise ValueError(
            f"expected the split train of a folder, which has no other, got {split!r}; for images that were not "
            "trained on give another folder as config.data.path"
        )
    if data.name == "captions":
        named = {"images": data.root, "image": data.picture, "text": data.text, "on_error": data.on_error}
        return captions.captioned(data.path, data.size, data.channels, **named, max_pixels=most)
    return sources.folder(data.path, data.size, data.channels, data.on_error, most)


def seen(config: ConfigDict, data: Dataset) -> Dataset:
    """Images as a network that learns in latents sees them: of the latents' shape, by the configuration's numbers."""
    factor, channels = config.data.get("factor"), config.data.get("latent_channels")
    if data.latents or not (factor and channels):  # runs of before have neither
        return data
    h, w, _ = data.shape
    return data._replace(shape=(h // factor, w // factor, channels))


class Holes(NamedTuple):
    """What the holes are that a supervised run learns from."""

    masks: tuple[str, ...]
    whole: float  # share of images that are all hole


def holes(config: ConfigDict) -> Holes | None:
    """Of `config.supervised`; None for the run of an ordinary network.

    Raises:
        ValueError: an unknown mask, a share outside of 0 ... 1 or without masks, or fields of several times.
    """
    settings = config.get("supervised") or {}  # runs of before have none
    masks, whole = settings.get("masks"), settings.get("whole")
    if not masks:
        if whole is not None:
            raise ValueError(f"expected config.supervised.masks for config.supervised.whole={whole}, got none")
        return None
    kinds = tuple(name.strip() for name in masks.split(","))
    if not set(kinds) <= set(MASKS):
        raise ValueError(f"expected config.supervised.masks out of {', '.join(MASKS)}, got {masks!r}")
    if config.times.name != "synchronous":
        raise ValueError(
            "expected --config.times.name=synchronous with config.supervised.masks, as holes have one time each, got "
            f"{config.times.name!r}"
        )
    whole = 0.1 if whole is None else whole
    if not 0 <= whole <= 1:
        raise ValueError(f"expected config.supervised.whole in 0 ... 1, got {whole}")
    return Holes(kinds, whole)
