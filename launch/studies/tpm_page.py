"""The pages of `launch.studies.tpm`: what was compared, tables with intervals, what they say, and pictures."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from asyncpatch_jax.files import writing
from asyncpatch_jax.metrics.intervals import Interval, bootstrap
from asyncpatch_jax.metrics.rewards import Reward
from asyncpatch_jax.metrics.spectrum import residual
from launch.policy import pages
from launch.policy.pages import Made
from launch.policy.subjects import Subject
from launch.shared import markdown

PLAIN, TPM, LIFTED, SPATIAL, PAPER = (
    *("synchronous", "TPM", "TPM, lifted bound"),
    *("spatial TPM", "TPM, paper's groups"),
)
TITLE = "Learning which time the denoiser is told"
_TITLES = {"digits": "classes of digits", "scenes": "captioned scenes"}
_BEFORE = {
    "digits": ("python -m launch.train --config=configs/digits.py",),
    "scenes": ("python -m launch.studies.text", "python -m launch.studies.train_alignment"),
}


class Study(NamedTuple):
    """A denoiser, what it is rewarded for, and how methods are compared on it.

    config: of a training.
    kinds: of trainings, changes of `config`.
    known, unseen: what constants are chosen on, and what all are compared on: one network and other prompts.
    rewards: the one that is trained on, and one that is not.
    num: of images.
    groups: of each prompt of `unseen`: images of one group belong together in intervals, as prompts are a sample of all
        that one may ask for. None: each image is its own.
    real: images, for the residual.
    distance: a column more.
    note: a sentence more about the reward.
    """

    name: str
    config: ConfigDict
    kinds: dict[str, dict[str, Any]]
    known: Subject
    unseen: Subject
    rewards: Mapping[str, Reward]
    num: int
    groups: Int[np.ndarray, "p"] | None
    real: UInt8[np.ndarray, "m h w c"]
    distance: Callable[[UInt8[np.ndarray, "b h w c"]], float] | None = None
    note: str = ""

    @property
    def steps(self) -> int:
        """Of sampling."""
        return self.config.sample.steps

    @property
    def reward(self) -> str:
        """What policies are trained on."""
        return next(iter(self.rewards))

    @property
    def judge(self) -> str:
        """What they are not."""
        return list(self.rewards)[1]

    @property
    def few(self) -> int:
        """Images to choose by, and to draw curves of."""
        return max(self.num // 4, 2)

    def interval(self, values: Float[np.ndarray, "n"]) -> Interval:
        """Of a mean over n images."""
        values = np.asarray(values, np.float64)
        if self.groups is None:
            return bootstrap(values)
        return bootstrap(values, self.groups[pages.numbers(len(values), len(self.groups))])


class Row(NamedTuple):
    """A method's images, of each seed of training; one where nothing is trained."""

    name: str
    made: list[Made]

    def scores(self, reward: str) -> Float[np.ndarray, "seeds num"]:
        """Of each seed's images."""
        return np.stack([one.scores[reward] for one in self.made]).astype(np.float64)


class Results(NamedTuple):
    """What was found at one number of steps.

    tried: rewards of constants, by gain and rho.
    curve: images of the first seed's TPM, by gamma.
    """

    study: Study
    rows: list[Row]
    tried: dict[float, dict[float, float]]
    curve: dict[float, Made]


def table(study: Study, rows: Sequence[Row]) -> str:
    """In Markdown; an image counts with its mean over the seeds of training."""
    head = ["method", "reward", "of each seed", "against synchronous", "judge", "against synchronous", "residual"]
    if study.distance is not None:
        head.append("Fréchet distance")
    lines = []
    for row in rows:
        line = [row.name]
        for name in (study.reward, study.judge):
            scores = row.scores(name)
            mean, low, high = study.interval(scores.mean(0))
            line.append(f"{mean:.4f} [{low:.4f}, {high:.4f}]")
            if name == study.reward:
                line.append(", ".join(f"{one:.4f}" for one in scores.mean(1)) if len(scores) > 1 else "")
            paired = study.interval(scores.mean(0) - rows[0].scores(name)[0])
            line.append("" if row is rows[0] else f"{paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]")
        line.append(f"{np.mean([residual(one.images, study.real).mean() for one in row.made]):.3f}")
        if study.distance is not None:
            line.append(f"{np.mean([study.distance(one.images) for one in row.made]):.3f}")
        lines.append(line)
    return markdown.table(head, lines)


def verdict(study: Study, rows: Sequence[Row]) -> str:
    """What the table says, by its intervals."""
    by_name = {row.name: row.scores(study.reward) for row in rows}
    plain = study.interval(by_name[PLAIN][0])
    learned = by_name[f"{TPM}, γ = 1"]
    above, below = (
        sum(side(study.interval(seed)) for seed in learned)
        for side in (lambda one: one.low > plain.high, lambda one: one.high < plain.low)
    )
    mean = study.interval(learned.mean(0))
    lines = [
        f"The interval of the TPM (γ = 1) {_apart(mean, plain)} that of synchronous sampling; of the {len(learned)} "
        f"seeds' own intervals, {above} lie above that and {below} below."
    ]
    lifted = next(row.name for row in rows if row.name.startswith("best constant, lifted"))
    for bound, method, baseline in (
        ("within the same bound", f"{TPM}, γ = 1", rows[1].name),
        ("with the lifted bound", LIFTED, lifted),
    ):
        mean, low, high = study.interval(by_name[method].mean(0) - by_name[baseline][0])
        says = "does better than it" if low > 0 else "does worse than it" if high < 0 else "cannot be told from it"
        lines.append(
            f"Against the best constant deviation {bound}, which needs no learning: the TPM {says}, {mean:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]."
        )
    return " ".join(lines)


def _apart(one: Interval, other: Interval) -> str:
    if one.low > other.high:
        return "lies above"
    return "lies below" if one.high < other.low else "overlaps"


def section(found: Results, pictures: Path) -> str:
    """One number of steps; draws its pictures."""
    study, steps = found.study, found.study.steps
    # every call but the first, which is told its own time; all cells of all images of all seeds
    calls = {
        row.name: np.concatenate([one.deviations[:, 1:].reshape(study.num, steps - 1, -1) for one in row.made])
        for row in found.rows
        if row.name in (f"{TPM}, γ = 1", LIFTED, SPATIAL)
    }
    curve = {
        name: {str(gamma): study.interval(one.scores[name])._asdict() for gamma, one in found.curve.items()}
        for name in study.rewards
    }
    deviations, gamma = (pictures / f"results_tpm_{study.name}_{name}_{steps}.png" for name in ("deviations", "gamma"))
    pages.plot_deviations(deviations, calls, 1.0)
    pages.plot_gamma(gamma, curve)
    tried = [", ".join(f"{rho:g}: {score:.4f}" for rho, score in one.items()) for one in found.tried.values()]
    return f"""## {steps} steps

{table(study, found.rows)}

{verdict(study, found.rows)}

Constants that were tried, on other noise (ρ: reward). Within the bound: {tried[0]}. Lifted: {tried[1]}.

![Deviations](images/{deviations.name})

*Deviation of each call before the gain, which doubles the lifted policy's; lines are means over images and seeds, areas
hold 80 % of them.*

![Reward against gamma](images/{gamma.name})

*The first seed's TPM with its deviations scaled by γ, on a quarter of the images, and 95 % intervals.*
"""


def _about(study: Study) -> str:
    config, spatial = study.config, study.kinds[SPATIAL]["train.steps"]
    sizes, prompts = config.grpo, len(study.unseen.prompts)
    training = (
        f"{config.train.steps} iterations (the spatial one {spatial}) of {sizes.prompts} prompts x {sizes.noises} "
        f"noises x {sizes.draws} draws, learning rate {config.optim.learning_rate:g}"
    )
    if study.name == "digits":
        parts = (
            "The denoiser is a class-conditional network of real 8x8 digits, without guidance. Policies: "
            f"{training}; those with the *paper's groups* have as many images, one draw of each noise.",
            "The *reward* is the log-probability of the class that was asked for, by a small network that has seen "
            "only real digits; the *judge*, the share of images that a support vector machine names as asked for, is "
            "what no policy was trained on. Fréchet distance is to real digits, less is better. All methods begin with "
            f"the same {study.num} noises. Intervals are over images.",
        )
    else:
        parts = (
            "The denoiser is the UNet of [results_text.md](results_text.md), at guidance "
            f"{config.sample.guidance:g}. Policies: {training}, on captions that the network was trained on; compared "
            f"on {prompts} that it was not, {study.num} images.",
            "The *reward* is CLIPScore (2.5 max(cosine, 0)) by a CLIP that the project trains on real scenes. "
            f"{study.note} The *judge*, the share of a caption's claims that a classifier finds in the image, is what "
            "no policy was trained on. Intervals are over scenes: two captions may tell of one.",
        )
    return "\n\n".join(textwrap.fill(part, 120, break_long_words=False) for part in parts)


def write(out: Path, command: str, results: Sequence[Results], seeds: int) -> list[Path]:
    """Write the page of a study, and its pictures into images/ beside it."""
    study = results[0].study
    sections = "\n".join(section(found, out.parent / "images") for found in results)
    commands = "\n".join(f"    {line}" for line in (*_BEFORE[study.name], command))
    page = f"""# {TITLE}: {_TITLES[study.name]}

Written by these commands, the last of which trains what is missing:

{commands}

Timestep prediction modules (TPM, AsyncDiff, arXiv 2512.18675) for a frozen denoiser, sampled by DDIM without fresh
noise. Each kind is trained by GRPO with {seeds} seeds, and compared on noise that no training has seen, the same
for all methods. In brackets are 95 % bootstrap intervals; an image of a learned method counts with its mean over the
seeds. *Residual* is the energy at high spatial frequencies over that of real images (1: as they have).

{_about(study)}

{sections}"""
    with writing(out, overwrite=True) as stream:
        stream.write(page.encode())
    return [out]
