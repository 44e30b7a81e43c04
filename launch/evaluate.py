r"""Schedules against rewards: a table with intervals, of images that begin with the same noise.

  python -m launch.evaluate --denoiser=runs/digits --steps=5 --guidance=1 --rewards="digits, digits_judge" \
      --schedules="sync, constant=.2, tpm=runs/tpm_digits, tpm=runs/tpm_digits*2"
  python -m launch.evaluate --denoiser=stable-diffusion-3.5-medium --prompts=prompts.txt --steps=15 \
      --rewards="hps_v2.1=rewards/hps" --schedules="sync, tpm=runs/tpm_sd35" --real=photos

Schedules: sync; constant=RHO, the same deviation for all (1/2 is none); tpm=FOLDER of launch.train_tpm; concave=OMEGA,
all cells on AsynDM's curve (DM_concave, as launch.text2image --schedule=concave has it). *FACTOR multiplies the
deviations of constant and tpm (the paper's gamma). Brackets are 95 % bootstrap intervals; differences are paired with
the first schedule. Residual is the energy at high frequencies over that of real images (1: as they have; the paper
names it as what rewards miss). Writes evaluation.json, evaluation.md and made.json, which says how they were made, into
--out.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from asyncpatch_jax import sharding
from asyncpatch_jax.data import sources
from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.metrics.intervals import Interval, bootstrap
from asyncpatch_jax.metrics.spectrum import residual
from asyncpatch_jax.sampling.schedules import Schedule
from asyncpatch_jax.sampling.schedules.masks import everywhere
from asyncpatch_jax.sampling.schedules.tpm import ConstantDeviation
from asyncpatch_jax.training import policies
from asyncpatch_jax.types import Condition
from launch.policy import pages, rewarding, subjects
from launch.policy.rewarding import Rewards
from launch.policy.subjects import Subject
from launch.shared import cli, datasets, inputs, outputs, prompt_files, seeding, trained
from launch.shared.records import recorded

RESIDUAL = "residual"
_FILES = ("evaluation.json", "evaluation.md")
_RECORDED = (
    *("denoiser", "prompts", "sample", "sample_seed", "rewards", "schedules", "num", "seeds", "seed"),
    *("steps", "guidance", "solver", "size", "real"),
)
_REAL = 2000  # real images


class Entry(NamedTuple):
    """A line of the table.

    follow: `(base, known of a batch) -> Schedule`.
    deviates: whether that has deviations.
    """

    name: str
    follow: Callable[[Schedule, Condition], Any]
    deviates: bool


class Scores(NamedTuple):
    """Of one schedule: each reward and the residual of each image [seeds * images]; mean deviation by call."""

    of: dict[str, Float[np.ndarray, "n"]]
    deviations: list[float] | None


def parse(text: str, subject: Subject, *, fall_back: bool = True) -> list[Entry]:
    """The schedules of a flag.

    Args:
        fall_back: whether to use an older checkpoint of a policy if the newest is damaged.

    Raises:
        ValueError: an unknown name, or a number that is none.
        FileNotFoundError: a folder without a policy.
    """
    entries = [_entry(part.strip(), subject, fall_back) for part in text.split(",") if part.strip()]
    if not entries or len({entry.name for entry in entries}) < len(entries):
        raise ValueError(f"expected schedules, each once, got {text!r}")
    return entries


def _entry(text: str, subject: Subject, fall_back: bool) -> Entry:
    name, _, rest = text.partition("=")
    value, _, factor = rest.partition("*")
    gamma = _number(factor or "1", text)
    if name == "sync" and not rest:
        return Entry(text, lambda base, known: base, False)
    if name == "constant":
        rho = jnp.float32(_number(value, text))
        if not 0 <= rho <= 1:
            raise ValueError(f"expected a deviation RHO of 0 ... 1 (1/2 is none), got {value} in {text!r}")
        return Entry(text, lambda base, known: ConstantDeviation(base, rho, jnp.float32(gamma)), True)
    if name == "tpm":
        policy = policies.load(value, mesh=subject.net.mesh, fall_back=fall_back)
        return Entry(text, partial(policy.schedule, gamma=gamma), True)
    if name == "concave" and not factor:
        slower = subject.behind.concave(jnp.float32(_number(value, text)), everywhere(), (1, 1), "quadratic")
        return Entry(text, lambda base, known: slower, False)
    raise ValueError(f"expected sync, constant=RHO, tpm=FOLDER or concave=OMEGA as a schedule, got {text!r}")


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"expected a number in {text!r}, got {value!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number in {text!r}, got {value}")
    return number


def evaluate(
    subject: Subject,
    rewards: Rewards,
    entries: Sequence[Entry],
    real: UInt8[np.ndarray, "m h w c"] | None,
    *,
    count: int,
    seeds: Sequence[int],
    batch: int,
) -> tuple[dict[str, Scores], Int[np.ndarray, "n"]]:
    """Scores by schedule, and the number of each image's prompt; `count` images of each seed, evenly over prompts."""
    index = pages.numbers(count, len(subject.prompts))
    found = {}
    for entry in tqdm(entries, unit="schedule"):
        makes = partial(pages.make, subject, rewards.of, entry.follow, index, deviates=entry.deviates, batch=batch)
        made = [makes(seed=seed) for seed in seeds]
        scores = {name: np.concatenate([one.scores[name] for one in made]).astype(np.float64) for name in rewards.of}
        if real is not None:
            scores[RESIDUAL] = np.concatenate([residual(one.images, real) for one in made])
        calls = np.concatenate([one.deviations for one in made]).mean((0, 2, 3)).tolist() if entry.deviates else None
        found[entry.name] = Scores(scores, calls)
    return found, np.tile(index, len(seeds))


def table(found: dict[str, Scores], groups: Int[np.ndarray, "n"] | None) -> str:
    """In Markdown: means, and paired differences to the first schedule."""
    names = list(next(iter(found.values())).of)
    first = next(iter(found.values())).of
    head = ["schedule", *(part for name in names for part in (name, f"{name}, difference"))]
    lines = []
    for schedule, scores in found.items():
        line = [schedule]
        for name in names:
            line.append(_text(bootstrap(scores.of[name], groups)))
            line.append("" if scores.of is first else _text(bootstrap(scores.of[name] - first[name], groups), "+"))
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _text(value: Interval, sign: str = "") -> str:
    mean, low, high = (format(number, f"{sign}.4g") for number in value)
    return f"{mean} [{low}, {high}]"


def real_images(folder: str, denoiser: str, subject: Subject) -> UInt8[np.ndarray, "m h w c"] | None:
    """Real images of the shape of those that are made: of a folder, or of a run's own data; None if there are none."""
    if folder:
        _, height, _, channels = subject.pictures(np.zeros((1, *subject.shape), np.float32)).shape
        source = sources.folder(folder, height, channels, "raise").source
    elif (there := recorded(denoiser)) is not None:
        config = ConfigDict(there["config"])
        source = datasets.dataset(config, "test" if config.data.name in datasets.HELD_OUT else None).source
    else:
        return None
    # folders are sorted, often by class
    places = pages.numbers(min(len(source), _REAL), len(source))
    return np.stack([source[int(i)]["image"] for i in places])


def main() -> None:
    values = flags.FLAGS
    if not values.denoiser:
        raise ValueError("expected --denoiser=FOLDER")
    planned = outputs.plan(values.out, "launch.evaluate", _FILES, overwrite=values.overwrite)
    inputs.check_there("prompts", "real")
    parts = [part.strip().partition("*")[0] for part in values.schedules.split(",")]
    inputs.check_paths("schedules", [part.removeprefix("tpm=") for part in parts if part.startswith("tpm=")])
    rewards = rewarding.parse(values.rewards)
    choice = subjects.Choice(values.steps, values.guidance, values.solver, values.size)
    texts = prompt_files.texts(values.prompts, values.sample, values.sample_seed)
    subject = subjects.load(values.denoiser, texts, choice, sharding.make_mesh(), fall_back=values.fall_back)
    entries = parse(values.schedules, subject, fall_back=values.fall_back)
    real = real_images(values.real, values.denoiser, subject)
    seeds = range(values.seed, values.seed + values.seeds)
    with outputs.making(planned, {name: values[name].value for name in _RECORDED}) as out:
        found, index = evaluate(subject, rewards, entries, real, count=values.num, seeds=seeds, batch=values.batch)
        # texts are a sample of all that one may ask for; classes are all there are
        text = table(found, index if values.prompts else None)
        content = {
            name: {
                "scores": {key: values.tolist() for key, values in scores.of.items()},
                "deviations": scores.deviations,
            }
            for name, scores in found.items()
        }
        write_json(out / "evaluation.json", {"prompts": index.tolist(), "schedules": content})
        with writing(out / "evaluation.md") as stream:
            stream.write(f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    flags.DEFINE_string(
        "denoiser", None, "Folder of a run of launch.train with classes, or of a text-to-image network."
    )
    trained.define_fall_back()
    flags.DEFINE_string("prompts", "", "File of prompts (docs/data.md); of a run, all its classes unless given.")
    prompt_files.define()
    flags.DEFINE_string("rewards", "digits, digits_judge", f"{rewarding.SYNTAX}.")
    flags.DEFINE_string("schedules", "sync", "Separated by commas; differences are to the first.")
    flags.DEFINE_integer("num", 200, "Images of each seed.", lower_bound=2)
    flags.DEFINE_integer("seeds", 3, "How many seeds of noise.", lower_bound=1)
    seeding.define("The first of them.")
    flags.DEFINE_integer("batch", 100, "Images at a time.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps; as the folder suggests unless given.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Classifier-free scale; as the folder suggests unless given.")
    flags.DEFINE_string("solver", None, "How cells move; as the folder suggests unless given.")
    flags.DEFINE_integer("size", None, "Pixels of a side, of a text-to-image folder.", lower_bound=1)
    flags.DEFINE_string("real", "", "Folder of real images, for the residual; of a run, its data's unless given.")
    flags.DEFINE_string("out", "evaluation", "Folder to write to.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.evaluate made in --out.")
    cli.main_of_flags(main, __doc__)
