"""What a run of `launch.train` is: its settings and its data, in its checkpoints and in run.json."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.files import write_json
from asyncpatch_jax.texts import composed
from asyncpatch_jax.training import checkpoints
from asyncpatch_jax.training.records import differences, read_record, shortened
from asyncpatch_jax.training.stored import listed


def plain(config: ConfigDict) -> dict[str, Any]:
    """The configuration as it comes back from JSON."""
    return json.loads(json.dumps(config.to_dict()))


def record(config: ConfigDict, data: Dataset) -> dict[str, Any]:
    """What a run is, as its checkpoints and run.json have it.

    Args:
        data: as the network sees it.
    """
    about: dict[str, Any] = {"num_classes": data.num_classes, "class_names": data.class_names, "shape": data.shape}
    if (found := data.latents) is not None:
        about["latents"] = {
            "autoencoder": found.autoencoder,
            "shift": np.asarray(found.shift).tolist(),
            "scale": np.asarray(found.scale).tolist(),
        }
    return {"config": plain(config), "data": {**about, "images": len(data.source), "names": data.names}}


def read(workdir: epath.PathLike) -> dict[str, Any] | None:
    """run.json of a folder, None if it is not there or damaged."""
    with suppress(ValueError):
        return read_record(epath.Path(workdir) / "run.json", "data")
    return None


def write(workdir: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Write a `record` as run.json, for people to read; what counts is in the checkpoints."""
    write_json(epath.Path(workdir) / "run.json", content, overwrite=True)


def trained(workdir: epath.PathLike, fall_back: bool = True) -> dict[str, Any] | None:
    """`recorded` of a folder with a checkpoint; None without one, whatever run.json says."""
    return recorded(workdir, fall_back=fall_back) if listed(epath.Path(workdir) / "checkpoints") else None


def recorded(workdir: epath.PathLike, step: int | None = None, fall_back: bool = True) -> dict[str, Any] | None:
    """{"config", "data"} of the run in a folder; None if nothing was trained there. Errors as `checkpoints.recorded`.

    "data" is missing where checkpoints are of before they had it and run.json is lost.
    """
    return checkpoints.recorded(workdir, "run.json", "data", step, fall_back)


def record_of(workdir: epath.PathLike, step: int | None = None, *, fall_back: bool = True) -> dict[str, Any]:
    """What a trained run is, by its record.

    Raises:
        FileNotFoundError: nothing was trained there, or no such checkpoint.
        DamagedError: the checkpoint is damaged, or all are.
        ValueError: checkpoints of before they had records, and no run.json.
    """
    there = recorded(workdir, step, fall_back)
    if there is None:
        raise FileNotFoundError(
            f"expected a trained run in {workdir}, found none; train one first: python -m launch.train --config=..."
        )
    if "data" not in there:
        raise ValueError(
            f"expected {workdir}/run.json beside checkpoints of before they held what it says, got none; the command "
            "that trained the run writes it again"
        )
    return there


def other_data(there: Mapping[str, Any], data: Dataset) -> list[str]:
    """A line for each way in which the data of a record is not `data`. Where either lies does not matter.

    Args:
        there: "data" of a record.
    """
    lines = []
    if max(there["num_classes"], data.num_classes) > 1:
        old, new = ([composed(name) for name in names] for names in (there["class_names"], data.class_names))
        changed = [f"without {name!r}" for name in old if name not in new] + [
            f"with {name!r}" for name in new if name not in old
        ]
        if old != new:
            lines.append(f"classes: {len(old)} -> {len(new)} {shortened(changed) or 'in another order'}")
    if list(there["shape"]) != list(data.shape):
        lines.append(f"shape of images: {tuple(there['shape'])} -> {data.shape}")
    old, new = (there.get("latents") or {}).get("autoencoder"), data.latents and data.latents.autoencoder
    if old != new:
        lines.append(f"latents of the autoencoder: {old} -> {new}")
    if there.get("images", len(data.source)) != len(data.source):
        lines.append(f"images: {there['images']} -> {len(data.source)}")
    elif there.get("names", data.names) != data.names:
        lines.append("images of other names, or others by the same number")
    return lines


def check_same(there: Mapping[str, Any], config: ConfigDict, free: tuple[str, ...], lines: list[str]) -> None:
    """Refuse to go on with a training as another one.

    Args:
        there: the record of what `config.workdir` holds.
        free: settings that may differ, or all below them.
        lines: what differs besides settings.

    Raises:
        ValueError: something differs; says what, and what can be done.
    """
    lines = [*lines, *differences(there["config"], plain(config), free)]
    if lines:
        raise ValueError(
            f"{config.workdir} holds a run of other settings or data (there -> here): {shortened(lines)}\n"
            "choose another --config.workdir, or these settings and this data to continue it"
        )
