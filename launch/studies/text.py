"""Make docs/results_text.md: do schedules with a time per cell help a text-to-image network to do as it is told?

  python -m launch.studies.text
  python -m launch.studies.text --tiny --steps=4 --captions=4 --seeds=2 --out=smoke.md     # to see it work

Small text-to-image networks are trained on captioned scenes of real digits (`launch.studies.train_scenes`), unless that
is done, and asked for held-out captions: by ordinary sampling, by AsynDM and by the methods that it is compared with. A
classifier says which digits the images show (`launch.shared.scenes_judge`). All methods begin with the same noise. What
is finished is kept in --runs and not done again.
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Int

from asyncpatch_jax.data import scenes
from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.metrics.alignment import Verdict, spots
from asyncpatch_jax.pretrained import pipelines
from asyncpatch_jax.pretrained.folders.loading import Pretrained, load_pretrained
from asyncpatch_jax.pretrained.requests import Request
from asyncpatch_jax.pretrained.settings import METHODS as SUPPORTED
from asyncpatch_jax.pretrained.settings import Settings, defaults
from asyncpatch_jax.texts import read_text
from launch.shared import cli, outputs, scenes_judge
from launch.studies import scenes_model, text_page, train_scenes

GUIDANCE = (2.0, 4.0, 6.0, 8.0)  # tried on captions that were trained on
SCHEDULES: dict[str, dict[str, Any]] = {
    "DM": {},
    "DM_concave, ω = .5": {"schedule": "concave", "omega": 0.5},
    "AsynDM, ω = .3": {"schedule": "asyndm", "omega": 0.3},
    "AsynDM, ω = .5": {"schedule": "asyndm", "omega": 0.5},
    "AsynDM, ω = .7": {"schedule": "asyndm", "omega": 0.7},
    "AsynDM, ω = .5, fixed masks": {"schedule": "asyndm", "omega": 0.5, "masks": "fixed"},
    # a control: masks that are where digits are, whatever the network attends to
    "AsynDM, ω = .5, DM's digits": {"schedule": "asyndm", "omega": 0.5, "masks": "drawn"},
}
BASELINES: dict[str, dict[str, Any]] = {
    "Z-Sampling": {"method": "z-sampling", "solver": "ddim"},
    "SEG": {"method": "seg"},
    "S-CFG": {"method": "s-cfg"},
    "CFG++": {"method": "cfg++", "solver": "ddim", "guidance": 0.6},
}
# the noise that AsynDM's authors sample Stable Diffusion with
NOISY = ("DM", "DM_concave, ω = .5", "AsynDM, ω = .5")
_BATCH = 64
_TRAIN_RATE = {"sd": 2e-3, "sd3": 1e-3}


class Cell(NamedTuple):
    """A method's images with one seed."""

    images: np.ndarray  # uint8 [n, h, w, 1]
    verdicts: list[Verdict]
    seconds: float  # an image; the first of a method also compiles


def methods(family: str) -> dict[str, dict[str, Any]]:
    """The methods that a family supports, by name: changes of its settings."""
    able = {name: new for name, new in BASELINES.items() if family in SUPPORTED[new["method"]]}
    noisy = {f"{name}, η = 1": {**SCHEDULES[name], "eta": 1.0} for name in NOISY} if family == "sd" else {}
    return {**SCHEDULES, **able, **noisy}


def chosen_captions(split: scenes.Split, count: int) -> Int[np.ndarray, "n"]:
    """Captions of a split, all kinds that have a relation, a place or a count, as even as can be; always the same."""
    rng = np.random.default_rng(0)
    kinds = [kind for kind in scenes.KINDS if kind != "single"]
    labels = np.array(scenes.split_captions(split))
    by_kind = [rng.permutation([i for i in labels if scenes.captions()[i].kind == kind]) for kind in kinds]
    # the kinds in turns, until each is used up
    order = [part[i] for i in range(max(map(len, by_kind))) for part in by_kind if i < len(part)]
    return np.array(order[:count])


def settings(family: str, steps: int, guidance: float, changes: dict[str, Any]) -> Settings:
    """How a method samples: the family's defaults, deterministic, and its changes."""
    common = {"num_steps": steps, "guidance": guidance, "t5_length": 0 if family == "sd3" else None}
    return defaults(family, scenes.scenes().shape[0], **{**common, **changes})


def requests(labels: Sequence[int] | Int[np.ndarray, "n"], seed: int) -> list[Request]:
    """One image for each caption. A seed gives each caption its noise, the same for all methods."""
    captions = [scenes.captions()[i] for i in labels]
    return [Request(c.text, seed=10_000 * seed + i, objects=c.objects) for i, c in enumerate(captions)]


def _drawn(request: Request, image: np.ndarray) -> Request:
    """A request whose objects are masked where an image has digits, all of them and a pixel around."""
    mask = np.zeros(image.shape[:2], np.float32)
    for spot in spots(image[..., 0]):
        top, left, height, width = spot.box
        mask[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1] = 1
    return request._replace(object_masks=np.repeat(mask[..., None], len(request.objects), -1))


def make(pretrained: Pretrained, how: Settings, labels: Int[np.ndarray, "n"], seed: int, plain: Cell | None) -> Cell:
    """Images of captions, judged; `plain` has those of ordinary sampling, for masks that are drawn after them."""
    begin = time.perf_counter()
    asked = requests(labels, seed)
    if how.masks == "drawn" and plain is not None:
        asked = [_drawn(*pair) for pair in zip(asked, plain.images, strict=True)]
    made = list(pipelines.text2image(pretrained, asked, how, batch=min(_BATCH, len(labels))))
    seconds = (time.perf_counter() - begin) / len(labels)
    images = np.stack([one.image for one in made])
    return Cell(images, scenes_judge.judge(images, labels), seconds)


def kept(
    folder: Path,
    about: dict[str, Any],
    pretrained: Pretrained,
    how: Settings,
    labels: Int[np.ndarray, "n"],
    seed: int,
    plain: Cell | None = None,
) -> Cell:
    """`make`, unless it is in the folder already, made with the same settings."""
    about = json.loads(json.dumps({**about, "settings": asdict(how), "labels": [int(i) for i in labels], "seed": seed}))
    record, pixels = folder / f"{seed}.json", folder / f"{seed}.npy"
    if record.exists():
        done = json.loads(read_text(record))
        if done["about"] == about:
            return Cell(np.load(pixels), [Verdict(*parts) for parts in done["verdicts"]], done["seconds"])
    cell = make(pretrained, how, labels, seed, plain)
    with writing(pixels, overwrite=True) as stream:
        np.save(stream, cell.images)
    write_json(record, {"about": about, "verdicts": cell.verdicts, "seconds": cell.seconds}, overwrite=True)
    alignment, strict = scenes_judge.summary(cell.verdicts)
    print(f"{folder.name}, seed {seed}: alignment {alignment:.3f}, strict {strict:.3f}", flush=True)
    return cell


def family_results(values: flags.FlagValues, family: str, folder: Path) -> text_page.Results | None:
    """Train, choose the guidance, and sample with every method; None if the training was stopped."""
    training = {
        "family": family,
        "batch": 32,
        "learning_rate": _TRAIN_RATE[family],
        "seed": 0,
        "cycles": [8] if values.tiny else [int(steps) for steps in values.cycles],
        "tiny": values.tiny,
    }
    pipeline = train_scenes.pipeline_of(training, folder)
    if pipeline is None:
        return None
    pretrained = load_pretrained(pipeline, dtype=jnp.float32)
    training["step"] = train_scenes.load(folder).step
    about = {"training": training}
    known = chosen_captions("train", values.captions)

    def cell(name: str, scale: float, changes: dict[str, Any], labels: Any, seed: int, plain: Any = None) -> Cell:
        how = settings(family, values.steps, scale, changes)
        return kept(folder / name, about, pretrained, how, labels, seed, plain)

    tried = {scale: cell(f"guidance {scale}", scale, {}, known, 0) for scale in GUIDANCE}
    guidance = max(tried, key=lambda scale: scenes_judge.summary(tried[scale].verdicts)[0])
    labels = chosen_captions("test", values.captions)
    cells: dict[str, list[Cell]] = {}
    for name, changes in methods(family).items():
        plain = cells.get("DM", [None] * values.seeds)
        cells[name] = [cell(name, guidance, changes, labels, seed, plain[seed]) for seed in range(values.seeds)]
    how = settings(family, values.steps, guidance, SCHEDULES["AsynDM, ω = .5"])
    runs = list(pipelines.text2image(pretrained, requests(labels, 0), how, batch=min(_BATCH, len(labels))))
    parameters = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part.params)) for name, part in pretrained.components.items()
    }
    return text_page.Results(family, training, parameters, tried, guidance, labels, cells, runs)


def make_page(values: flags.FlagValues, command: str) -> None:
    """Do what the flags say that is not done yet, and write the page.

    Raises:
        ValueError: unknown family, or trainings of other settings in --runs.
    """
    for name in values.families:
        if name not in scenes_model.FAMILIES:
            raise ValueError(f"expected --families out of {', '.join(scenes_model.FAMILIES)}, got {name!r}")
    outputs.check_page(values.out, text_page.TITLE)
    results = [family_results(values, name, Path(values.runs) / name) for name in values.families]
    if any(result is None for result in results):
        print("stopped as asked to; the same command continues from here")
        return
    for path in text_page.write(Path(values.out), command, results, values.steps):
        print(f"wrote {path}")


def main() -> None:
    make_page(flags.FLAGS, shlex.join(["python", "-m", "launch.studies.text", *sys.argv[1:]]))


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this main in `values`."""
    to = {"flag_values": values}
    flags.DEFINE_list("families", list(scenes_model.FAMILIES), "Networks: sd (a UNet), sd3 (an MM-DiT).", **to)
    flags.DEFINE_string("runs", "runs/results_text", "Folder for trained networks, images and their numbers.", **to)
    flags.DEFINE_string("out", "docs/results_text.md", "Page to write, and its pictures; they are replaced.", **to)
    flags.DEFINE_list("cycles", ["3000", "5500"], "Training steps of each cosine decay.", **to)
    flags.DEFINE_integer("captions", 128, "Captions, each an image for every method and seed.", lower_bound=2, **to)
    flags.DEFINE_integer("seeds", 6, "Noises for each caption.", lower_bound=2, **to)
    flags.DEFINE_integer("steps", 20, "Steps of sampling.", lower_bound=2, **to)
    flags.DEFINE_bool("tiny", False, "Networks that learn nothing, to see it work.", **to)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.main_of_flags(main, __doc__)
