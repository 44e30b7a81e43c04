"""The autoencoder of a training in latents, and of a run that was trained in them: read, measured, recognised."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax.data import encoded
from asyncpatch_jax.data.dataset import Dataset, Latents
from asyncpatch_jax.pretrained.autoencoders import Autoencoder, read_autoencoder
from launch.shared import datasets

ONLINE = "online"
_MEASURED, _BATCH = 1024, 32  # images that shift and scale are measured on, where none are cached

# settings that say which images there are; where they lie does not matter
_DATA = ("name", "dataset", "split", "size", "channels")


def chosen(config: ConfigDict, mesh: Mesh | None) -> Autoencoder | None:
    """That of `config.data.autoencoder`, whose sizes are written into the configuration; None for images themselves.

    Raises:
        ValueError: latents without an autoencoder, or the other way round; one that does not fit `config.data`.
    """
    data = config.data
    if not data.latents and not data.autoencoder and not data.latent_channels:
        return None
    if not data.autoencoder:
        raise ValueError(
            "expected --config.data.autoencoder=FOLDER to learn in its latents (docs/latents.md), got none"
        )
    if not data.latents:
        raise ValueError(
            "expected --config.data.latents=FOLDER, which launch.encode fills, or online, to learn in latents of "
            f"{data.autoencoder} (docs/latents.md), got neither"
        )
    return fitting(config, read_autoencoder(data.autoencoder, mesh))


def fitting(config: ConfigDict, autoencoder: Autoencoder) -> Autoencoder:
    """Write an autoencoder's sizes into the configuration.

    Raises:
        ValueError: it says others, or images that do not fit.
    """
    data = config.data
    for name in ("factor", "latent_channels"):
        own = getattr(autoencoder, name)
        if data[name] not in (None, own):
            raise ValueError(f"expected an autoencoder with {name} = {data[name]}, got {own} in {data.autoencoder}")
        data[name] = own
    if data.channels != autoencoder.channels:
        raise ValueError(
            f"expected config.data.channels = {autoencoder.channels}, as {data.autoencoder} takes, got {data.channels}"
        )
    if data.size % autoencoder.factor:
        raise ValueError(
            f"expected config.data.size to be a multiple of {autoencoder.factor}, as {data.autoencoder} takes, got "
            f"{data.size}"
        )
    return autoencoder


def about(
    config: ConfigDict, data: Dataset, autoencoder: Autoencoder, *, dtype: str, images: int, shard: int
) -> encoded.About:
    """What the latents of a configuration's images are.

    Args:
        images: how many of them, at even distances.
        shard: images in a file.
    """
    seen = datasets.seen(config, data)
    return encoded.About(
        autoencoder=autoencoder.digest,
        pixels=data.shape,
        shape=seen.shape,
        dtype=dtype,
        flips=config.data.augment == "flip",
        images=images,
        shard=shard,
        data=settings(config),
        names=data.names,
        class_names=data.class_names,
    )


def settings(config: ConfigDict) -> dict[str, Any]:
    """What a configuration says of which images there are."""
    return {name: config.data[name] for name in _DATA}


def training_data(config: ConfigDict, autoencoder: Autoencoder | None) -> Dataset:
    """What a training reads: images, or the latents of them that `config.data.latents` has.

    Raises:
        ValueError: latents that are not there, of other images, or of another autoencoder.
    """
    where = config.data.latents
    if autoencoder is None or where == ONLINE:
        return datasets.dataset(config)
    data, what = encoded.latents(where), encoded.read_about(where)
    if what.autoencoder != autoencoder.digest:
        raise ValueError(
            f"expected latents of {config.data.autoencoder} ({autoencoder.digest}) in {where}, got those of another "
            f"autoencoder ({what.autoencoder})"
        )
    wanted = settings(config)
    if lines := [f"{k}: {what.data.get(k)!r} -> {v!r}" for k, v in wanted.items() if what.data.get(k) != v]:
        raise ValueError(f"expected latents of the images of config.data in {where}, got others: {'; '.join(lines)}")
    return data


def measured(
    config: ConfigDict, data: Dataset, autoencoder: Autoencoder | None, there: Mapping[str, Any] | None
) -> tuple[Dataset, Autoencoder | None]:
    """Data as the network sees it (its batches come from `data` itself), and the autoencoder with its shift and scale.

    Args:
        there: "data" in the record of the run that goes on, if one does.

    Raises:
        ValueError: a channel that is constant.
    """
    if autoencoder is None:
        return data, None
    found = data.latents
    if found is None:
        known = (there or {}).get("latents") or {}
        if known.get("autoencoder") == autoencoder.digest:
            shift, scale = (np.array(known[name], np.float32) for name in ("shift", "scale"))
        else:
            how = {"count": _MEASURED, "batch": _BATCH, "flips": config.data.augment == "flip"}
            shift, scale = encoded.measure(data, autoencoder.encode, **how)
        found = Latents(autoencoder.digest, autoencoder.factor, shift, scale, False)
    return datasets.seen(config, data)._replace(latents=found), autoencoder.standardised(found.shift, found.scale)


def of_run(
    config: ConfigDict, latents: Mapping[str, Any] | None, mesh: Mesh | None, folder: str | None
) -> Autoencoder | None:
    """The autoencoder that a trained run needs; None for one that learned from images themselves.

    Args:
        latents: what the run's record says of them.
        folder: where it lies now; None: where it lay.

    Raises:
        ValueError: it is not there, or is another one.
    """
    if not latents:
        if folder:
            raise ValueError(f"expected no --autoencoder for a run that learned from images themselves, got {folder}")
        return None
    where = folder or config.data.autoencoder
    try:
        autoencoder = read_autoencoder(where, mesh)
    except ValueError as error:
        hint = "" if folder else "; --autoencoder=FOLDER says where the one that this run was trained with lies now"
        raise ValueError(f"{error}{hint}") from error
    if autoencoder.digest != latents["autoencoder"]:
        raise ValueError(
            f"expected the autoencoder that the run was trained with ({latents['autoencoder']}), got another one "
            f"({autoencoder.digest}) in {where}; say where it lies by --autoencoder=FOLDER"
        )
    return autoencoder.standardised(*(np.array(latents[name], np.float32) for name in ("shift", "scale")))
