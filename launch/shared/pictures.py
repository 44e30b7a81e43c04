"""The pages that show what a network can do: written while it trains, at the end, and by `launch.sample`.

Each page is a function from a run to an array; `write_all` makes and writes them.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, Key, UInt8

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import viz
from asyncpatch_jax.data import masks
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.sampling.paste import paste_back
from asyncpatch_jax.sampling.schedules import Inpaint
from asyncpatch_jax.timefield import from_mask
from launch.shared import build
from launch.shared.generate import Inputs, Net, Result, generate
from launch.shared.plans import plan

_CLASSES = 10  # on a page
_SAMPLES = 10  # of each
_INPAINTED = 3
_MASKS = ("square", "half", "expand", "extrema", "wide", "thin", "every_second_line")
_RUNS = 4  # on a film strip
_MOMENTS = 10
_FRAMES = 64  # of an animation


def net(run: build.Run) -> Net:
    """What jit compiles in for this run, with the solver of its configuration."""
    return Net(run.model, run.process, run.kind, build.solver(run.config, run.process), run.mesh)


def inputs(run: build.Run, key: Key[Array, "..."], known: Float[np.ndarray, "b h w c"], label: np.ndarray) -> Inputs:
    """A batch with the run's classifier-free guidance; labels of a model without classes and prompts are dropped."""
    scale, told = run.config.sample.guidance, {}
    if run.prompts is not None:
        told = {"tokens": jnp.asarray(run.prompts.vectors[label]), "counted": jnp.asarray(run.prompts.counted[label])}
    return Inputs(
        keys=keys_lib.per_image(key, len(known)),
        known=jnp.asarray(known, jnp.float32),
        label=jnp.asarray(label, jnp.int32) if run.num_classes else None,
        guidance=jnp.full(len(known), scale, jnp.float32) if run.kinds and scale != 1.0 else None,
        **told,
    )


def cycled_labels(run: build.Run, count: int) -> Int[np.ndarray, "b"]:
    """0, 1, 2, ... over the classes or prompts, again and again; zeros for a model without."""
    return np.arange(count, dtype=np.int32) % max(len(run.kinds), 1)


def some_texts(dataset: Dataset) -> list[str]:
    """Texts of a data set for the rows of a page, at even distances."""
    places = np.linspace(0, len(dataset.source) - 1, min(_CLASSES, len(dataset.source))).astype(int)
    return [dataset.source[int(place)]["texts"][0] for place in places]


def watched(run: build.Run, name: str, key: Key[Array, "..."], count: int) -> Result:
    """`count` images of as many classes, made from noise along the schedule `name`, with every step recorded."""
    schedule, num_steps, ahead = plan(name, run)
    batch = inputs(run, key, np.zeros((count, *run.shape), np.float32), cycled_labels(run, count))
    return generate(net(run), run.params, schedule, batch, num_steps=num_steps, ahead=ahead, watch=count)


def samples(run: build.Run, key: Key[Array, "..."]) -> UInt8[np.ndarray, "_h _w 3"]:
    """Synchronous samples, a row for each class or prompt (the first ten); ten rows of anything without."""
    rows = min(len(run.kinds), _CLASSES) or _CLASSES
    label = np.repeat(np.arange(rows, dtype=np.int32), _SAMPLES)
    schedule, num_steps, _ = plan("sync", run)
    batch = inputs(run, key, np.zeros((len(label), *run.shape), np.float32), label)
    images = run.decoded(generate(net(run), run.params, schedule, batch, num_steps=num_steps).images)
    tiles = viz.tiles(images).reshape(rows, _SAMPLES, *viz.visible(run.pixels[:2]), 3)
    return viz.page(tiles, row_names=run.kinds[:rows])


def inpaintings(run: build.Run, dataset: Dataset, key: Key[Array, "..."]) -> UInt8[np.ndarray, "_h _w 3"]:
    """Images of a data set, each as it is, with a part taken away, and inpainted; a row for each kind of mask."""
    places = np.linspace(0, len(dataset.source) - 1, len(_MASKS) * _INPAINTED).astype(int)
    records = [dataset.source[int(place)] for place in places]
    original = np.stack([record["image"] for record in records])
    if dataset.latents:  # all that there is: their images are the originals
        original = viz.to_uint8(run.decoded(original))
    label = np.array([record["label"] for record in records], np.int32)
    if run.encoder is not None:
        run, label = run.told([record["texts"][0] for record in records]), np.arange(len(records), dtype=np.int32)
    mask = np.concatenate([masks.draw(name, 0, _INPAINTED, run.pixels[:2]) for name in _MASKS])
    known = original.astype(np.float32) / 127.5 - 1

    grid = build.grid(run.config, run.config.sample.steps, run.process)
    field = from_mask(jnp.asarray(mask), grid=build.field_grid(run.config))
    batch = inputs(run, key, run.encoded(known, mask), label)
    if run.model.reference:
        batch = batch._replace(hint=field)
    result = generate(net(run), run.params, Inpaint(field, grid), batch, num_steps=len(grid) - 1)
    images = viz.to_uint8(paste_back(run.decoded(result.images, mask), jnp.asarray(known), jnp.asarray(mask)))

    hidden = viz.hatch(viz.tiles(original), viz.enlarge(mask > 0.5, viz.visible(run.pixels[:2]))[..., 0])
    columns = np.stack([viz.tiles(original), hidden, viz.tiles(images)], 1)  # [masks * images, 3, h, w, 3]
    return viz.page(
        columns.reshape(len(_MASKS), _INPAINTED * 3, *columns.shape[2:]),
        row_names=[name.replace("_", " ") for name in _MASKS],
        column_names=["original", "masked", "inpainted"] * _INPAINTED,
    )


def moments(count: int, most: int) -> Int[np.ndarray, "_s"]:
    """At most `most` indices evenly over 0 ... count - 1, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _recorded(run: build.Run, result: Result, shown: Int[np.ndarray, "_s"], count: int) -> tuple[Any, Any]:
    """Some moments of the first images of a recorded run, and their fields."""
    steps, fields = (np.asarray(part)[shown, :count] for part in (result.run, result.fields))
    images = run.decoded(steps.reshape(-1, *steps.shape[2:]))
    return np.asarray(images).reshape(*steps.shape[:2], *images.shape[1:]), fields


def film(run: build.Run, result: Result, title: str) -> UInt8[np.ndarray, "_h _w 3"]:
    """A recorded run as a film strip."""
    shown = moments(len(result.run), _MOMENTS)
    return viz.film(*_recorded(run, result, shown, _RUNS), [f"step {i}" for i in shown], title)


def animation(run: build.Run, result: Result, title: str) -> UInt8[np.ndarray, "_s _h _w 3"]:
    """A recorded run as the frames of an animation, images above their time fields."""
    shown = moments(len(result.run), _FRAMES)
    return viz.frames(*_recorded(run, result, shown, result.run.shape[1]), title)


def _films(run: build.Run) -> dict[str, str]:
    """Title of each recorded run, by schedule; none of a network that is told one time an image."""
    if run.model.reference:
        return {}
    films = {"autoregressive": "Patch after patch, in reading order"}
    return {**films, "uncertainty": "Surest cells first"} if run.model.log_variance else films


def complete(folder: epath.PathLike, run: build.Run) -> bool:
    """Whether `write_all` came to its end there."""
    last = [f"{name}.gif" for name in _films(run)] or ["inpainting.png"]
    return (epath.Path(folder) / last[-1]).exists()


def write_samples(folder: epath.PathLike, run: build.Run, key: Key[Array, ""]) -> list[epath.Path]:
    """Only the page of samples, `folder/samples.png`: cheap enough to make while training.

    Raises:
        ValueError: the network's images are not finite.
        OSError: it cannot be written.
    """
    path = epath.Path(folder) / "samples.png"
    viz.save_png(path, samples(run, key), overwrite=True)
    return [path]


def write_all(folder: epath.PathLike, run: build.Run, dataset: Dataset, key: Key[Array, ""]) -> list[epath.Path]:
    """All pages of a run; what is there under their names is replaced, so that a resumed training may repeat itself.

    `samples.png` and `inpainting.png`; a film strip `.png` and an animation `.gif`, of images beside their time fields,
    in raster order and, if the network has a log-variance head, guided by its uncertainty.

    Args:
        dataset: where the images to be inpainted come from.

    Returns:
        The paths written.

    Raises:
        ValueError: the network's images are not finite.
        OSError: a page cannot be written.
    """
    folder = epath.Path(folder)
    paths = write_samples(folder, run, key)
    paths.append(folder / "inpainting.png")
    viz.save_png(paths[-1], inpaintings(run, dataset, key), overwrite=True)
    for name, title in _films(run).items():
        result = watched(run, name, key, 2 * _RUNS)
        paths += [folder / f"{name}.png", folder / f"{name}.gif"]
        viz.save_png(paths[-2], film(run, result, title), overwrite=True)
        viz.save_animation(paths[-1], animation(run, result, title), overwrite=True)
    return paths
