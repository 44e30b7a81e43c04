"""Make a page of results: how networks and methods fill holes, on any data, with spread over seeds.

  python -m launch.studies.inpainting --config=configs/fashion.py --config.data.path=FOLDER --lpips=weights/lpips_alex
  python -m launch.studies.inpainting --config=configs/fashion.py:smoke --out=smoke.md --seeds=2     # to see it work

After Tables 1 to 4 and Figure 4 of AsyncPatch Diffusion. Networks that differ in nothing but what they were trained for
(synchronous times, the holes themselves, fields of several samplers) make images, and fill the same holes: the one of
synchronous times by every method there is for ordinary networks, the others by their own. Each is trained in --runs
unless it is there, on whatever mesh the configuration says; what is filled is kept there too, beside how long it took,
and each table is made from that: measuring with other features samples nothing anew.

Distances need a network that sees: --lpips=FOLDER for paired distances, and the same or --inception=FOLDER for the
Frechet distance (the FID, with the latter). Without, errors are all that is measured.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from asyncpatch_jax.data import masks
from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.sampling.inpainting import Inpainter
from asyncpatch_jax.texts import read_text
from asyncpatch_jax.viz import to_uint8
from launch import judge, train
from launch.shared import autoencoders, build, cli, datasets, inpainters, outputs
from launch.shared.generate import image_keys
from launch.shared.inpainting import inpaint
from launch.studies import inpainting_page, inpainting_scores
from launch.studies.inpainting_page import Cell, Results

# what a network is trained for: changes of the configuration
_ENDS = {"times.name": "asyncpatch", "times.ends": (0.25, 0.5)}
NETWORKS: dict[str, dict[str, Any]] = {
    "synchronous": {"times.name": "synchronous"},
    "supervised": {"times.name": "synchronous", "supervised.masks": "square,thin,wide"},
    "perlin": {"times.name": "perlin"},
    "patchwise": {"times.name": "patchwise"},
    "asyncpatch": {"times.name": "asyncpatch", "times.ends": (0.0, 0.0)},
    "asyncpatch_ends": _ENDS,
    # two other ways to tell a network about times
    "synchronous_1000": {"times.name": "synchronous", "model.radians": 1000.0},
    "asyncpatch_mean": {**_ENDS, "model.mean_of": "times"},
}
# settings that belong to data and number of steps: tried on training images
TUNED: dict[str, tuple[str, tuple[float, ...]]] = {
    "mcg": ("step_size", (0.03, 0.1, 0.3, 1.0, 3.0)),
    "dps": ("step_size", (0.03, 0.1, 0.3, 1.0, 3.0)),
    "pigdm": ("weight", (0.1, 0.25, 0.5, 1.0, 2.0)),
}
_TUNE_MASK = "wide"


def methods(network: str, steps: int) -> dict[str, str]:
    """How a network fills holes, as `inpainters.method` reads it, by name; "" is what it was trained for.

    DeqIR is not among them: it is DDNM with eta = 0, computed otherwise. RePaint jumps 10 levels, or a fifth of them.
    """
    if network == "synchronous_1000":  # only makes images
        return {}
    if network != "synchronous":
        return {"": ""}
    names = ("score_sde", "repaint", "ddrm", "ddnm", "mcg", "dps", "pigdm")
    return {name: name for name in names} | {"repaint": f"repaint:jump={min(10, max(1, steps // 5))}"}


class Task(NamedTuple):
    """What is to be filled: the same for all networks and methods."""

    images: UInt8[np.ndarray, "n h w c"]
    label: Int[np.ndarray, "n"]
    holes: dict[str, Float[np.ndarray, "n h w 1"]]


def configured(config: ConfigDict, name: str, seed: int, folder: Path) -> ConfigDict:
    """The configuration of one network."""
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.times.update({key: None for key in config.times if key not in ("name", "grid")})
        config.supervised.update({"masks": None, "whole": None})
        config.update_from_flattened_dict(NETWORKS[name])
    config.update({"seed": seed, "workdir": str(folder)})
    config.train.sample_every = 0
    return config


def trained(config: ConfigDict) -> build.Run:
    """The run of a configuration, trained unless it is there.

    Raises:
        ValueError: the training was stopped before its end.
    """
    train.run(config)
    run = build.load_run(config.workdir, mesh=build.mesh(config))
    if run.step < config.train.steps:
        raise ValueError(f"stopped after step {run.step} of {config.workdir}; the same command continues from here")
    run.config.sample.update(config.sample)
    return run


def some(config: ConfigDict, split: str | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split and their classes, at even distances."""
    source = datasets.dataset(config, split).source
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, min(count, len(source))).round()]
    return np.stack([one["image"] for one in records]), np.array([one["label"] for one in records], np.int32)


def kept(
    folder: Path, name: str, about: dict[str, Any], like: jax.ShapeDtypeStruct, make: Callable[[], tuple[Any, float]]
) -> tuple[np.ndarray, float]:
    """An array and the seconds that each of it took: out of a folder, if what it is about is the same, or made now.

    Several processes make it together; the first one alone reads and writes, and tells the others.

    Args:
        like: its shape and type.
    """
    record, file = folder / f"{name}.json", folder / f"{name}.npz"
    about, first, seconds, array = json.loads(json.dumps(about)), jax.process_index() == 0, -1.0, None
    if first and record.exists() and (done := json.loads(read_text(record)))["about"] == about:
        with np.load(file, allow_pickle=False) as archive:
            array, seconds = archive["arr_0"], done["seconds"]
    seconds = float(multihost_utils.broadcast_one_to_all(np.float64(seconds)))
    if seconds >= 0:
        array = np.zeros(like.shape, like.dtype) if array is None else array
        return np.asarray(multihost_utils.broadcast_one_to_all(array)), seconds
    array, seconds = make()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)  # stopped between the two, an old record must not speak of a new array
        with writing(file, overwrite=True) as stream:
            np.savez_compressed(stream, arr_0=array)
        write_json(record, {"about": about, "seconds": seconds}, overwrite=True)
    return array, seconds


def saved_masks(folder: Path, name: str, count: int, size: tuple[int, int]) -> Float[np.ndarray, "n h w 1"]:
    """Masks of a kind, drawn once: files that other programs read too."""
    about = {"kind": name, "count": count, "size": size, "seed": 0}
    like = jax.ShapeDtypeStruct((count, *size, 1), np.uint8)
    hole, _ = kept(folder, name, about, like, lambda: (masks.draw(name, 0, count, size).astype(np.uint8), 0.0))
    return hole.astype(np.float32)


def filled(run: build.Run, folder: Path, text: str, how: Inpainter, task: Task, mask: str, seed: int) -> Cell:
    """The images of a task with holes of one kind filled."""
    hole, steps = task.holes[mask], run.config.sample.steps
    about = {
        "method": repr(how),
        "step": run.step,
        "sample": run.config.sample.to_dict(),
        "holes": inpainting_scores.digest(hole),
        "images": inpainting_scores.digest(task.images),
    }
    batch, keys = min(flags.FLAGS.batch, len(task.images)), image_keys(seed, len(task.images))

    def fill(part: slice) -> np.ndarray:
        return inpaint(run, keys[part], task.images[part], hole[part], task.label[part], batch=batch, method=how)

    def make() -> tuple[np.ndarray, float]:
        fill(slice(0, batch))  # compiles, which is no part of the time
        begin = time.perf_counter()
        found = fill(slice(None))
        seconds = (time.perf_counter() - begin) / len(found)
        print(f"{folder.parent.name}: {text or 'own'}, {mask}: {seconds:.3f} s an image", flush=True)
        return np.where(hole > 0, found, task.images), seconds

    name = f"{text.partition(':')[0] or 'own'}-{mask}"
    like = jax.ShapeDtypeStruct(task.images.shape, task.images.dtype)
    images, seconds = kept(folder, name, about, like, make)
    return Cell(images, how.calls(steps), how.gradients(steps), seconds)


def made(run: build.Run, folder: Path, count: int, seed: int) -> UInt8[np.ndarray, "n h w c"]:
    """Images of a run, as many of each class."""
    about = {"step": run.step, "sample": run.config.sample.to_dict(), "count": count, "seed": seed}

    def make() -> tuple[np.ndarray, float]:
        begin = time.perf_counter()
        images = to_uint8(judge.generated(run, "sync", count, min(flags.FLAGS.batch, count), seed)[0])
        return images, (time.perf_counter() - begin) / count

    return kept(folder, "made", about, jax.ShapeDtypeStruct((count, *run.pixels), np.uint8), make)[0]


def tuned(run: build.Run, folder: Path, config: ConfigDict, scores: inpainting_scores.Scores) -> dict[str, str]:
    """The best of `TUNED` on training images: a method's text by its name."""
    images, label = some(config, None, flags.FLAGS.tune)
    task = Task(images, label, {_TUNE_MASK: masks.draw(_TUNE_MASK, 1, len(images), run.pixels[:2])})
    best = {}
    for name, (setting, values) in TUNED.items():
        found = {}
        for value in values:
            text = f"{name}:{setting}={value}"
            cell = filled(run, folder / f"{setting}={value}", text, inpainters.method(run, text), task, _TUNE_MASK, 0)
            found[text] = scores.paired(cell.images, task.images, task.holes[_TUNE_MASK])[scores.decisive].mean()
        # rounding may differ between processes, which go on together
        place = multihost_utils.broadcast_one_to_all(np.argmin(list(found.values())))
        best[name] = list(found)[int(place)]
        print(f"{best[name]} is best of {json.dumps({k: round(float(v), 4) for k, v in found.items()})}", flush=True)
    return best


def run(config: ConfigDict) -> None:
    """Train, fill, measure and write the page.

    Raises:
        ValueError: unknown networks or masks, weights that are not there, or runs of other settings in --runs.
    """
    values = flags.FLAGS
    names = values.networks or list(NETWORKS)
    for what, given, known in (("networks", names, NETWORKS), ("masks", values.masks, masks.MASKS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"expected --{what} out of {', '.join(known)}, got {', '.join(unknown)}")
        if not given or len(set(given)) < len(given):
            raise ValueError(f"expected --{what} each once, at least one, got {', '.join(given) or 'none'}")
    outputs.check_page(values.out, inpainting_page.TITLE)
    scores = inpainting_scores.read(values.lpips, values.inception)
    autoencoders.chosen(config, None)  # the sizes of its latents are settings of every network
    runs = Path(values.runs)
    # the same programs are compiled for every seed
    jax.config.update("jax_compilation_cache_dir", str(runs / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    split = values.split or ("test" if config.data.name in datasets.HELD_OUT else None)
    images, label = some(config, split, values.test)
    size = images.shape[1:3]
    task = Task(images, label, {name: saved_masks(runs / "masks", name, len(images), size) for name in values.masks})
    reference = some(config, split, values.reference)[0]
    for name in names:  # a method that does not go with the number of steps is told before hours of training
        untrained = build.untrained(configured(config, name, 0, runs), datasets.dataset(config))
        for text in methods(name, config.sample.steps).values():
            inpainters.method(untrained, text)
    results = Results(config, split, task.images, task.holes, len(reference), scores.names)
    for seed in range(values.seeds):
        for name in names:
            folder, ways = runs / f"{name}_{seed}", methods(name, config.sample.steps)
            network = trained(configured(config, name, seed, folder))
            if "dps" in ways and not results.tuned:
                results.tuned = tuned(network, folder / "tried", config, scores)
            results.add_made(name, scores.sets(made(network, folder, values.num, seed), reference))
            for method, text in ways.items():
                text = results.tuned.get(method, text)
                how = inpainters.method(network, text)
                for mask, hole in task.holes.items():
                    cell = filled(network, folder / "filled", text, how, task, mask, seed)
                    paired = scores.paired(cell.images, task.images, hole)
                    means = {key: float(found.mean()) for key, found in paired.items()}
                    results.add_filled((name, method), mask, cell, {**means, **scores.sets(cell.images, reference)})
    command = shlex.join(["python", "-m", "launch.studies.inpainting", *sys.argv[1:]])
    if jax.process_index() == 0:
        inpainting_page.write(Path(values.out), command, results)
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("runs", "runs/inpainting", "Folder for trained networks, masks, images and how long they took.")
    about = "Page to write; it is replaced, and so is its picture in images/ beside it."
    flags.DEFINE_string("out", "runs/inpainting/results.md", about)
    flags.DEFINE_list("networks", None, "What is trained and measured; all unless given.")
    flags.DEFINE_list("masks", ["extrema", "square", "thin", "wide"], "Kinds of holes.")
    flags.DEFINE_integer("seeds", 3, "Networks of each kind.", lower_bound=1)
    flags.DEFINE_integer("num", 2000, "Images that each network makes.", lower_bound=2)
    about = "Split whose images are filled and compared with, such as validation of tfds; test where a set has one."
    flags.DEFINE_string("split", None, about)
    flags.DEFINE_integer("test", 256, "Images whose holes are filled.", lower_bound=2)
    flags.DEFINE_integer("reference", 10_000, "Real images that sets of images are compared with.", lower_bound=2)
    flags.DEFINE_integer("tune", 64, "Training images on which step sizes are chosen.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Images sampled at a time.", lower_bound=1)
    flags.DEFINE_string("lpips", None, "Folder of LPIPS' weights (docs/metrics.md).")
    flags.DEFINE_string("inception", None, "Folder of the FID's Inception (docs/metrics.md).")
    cli.main(run, __doc__)
