"""Make docs/results_tpm.md: what does it gain to learn which time a denoiser is told?

  python -m launch.train --config=configs/digits.py
  python -m launch.results_text        # for its networks of captioned scenes: hours
  python -m launch.train_alignment
  python -m launch.results_tpm

  python -m launch.results_tpm --studies=digits --tiny --out=smoke.md --runs=runs/smoke     # to see it work

Trains timestep policies (`launch.train_tpm`) for a class-conditional denoiser of digits and a text-to-image network of
captioned scenes, at 5 and at 10 steps, with three seeds each, unless that is done, and compares them with what needs no
learning, on noise (and captions) that none of them has seen.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data import scenes
from asyncpatch_jax.files import check_writable, writing
from asyncpatch_jax.metrics.intervals import Interval, bootstrap
from asyncpatch_jax.metrics.spectrum import residual
from asyncpatch_jax.sampling.schedules.tpm import ConstantDeviation
from configs import tpm_digits, tpm_scenes
from launch import cli, evaluate, judge, policies, rewarding, subjects, tpm_pages, train_alignment, train_tpm
from launch.rewarding import Rewards
from launch.subjects import Subject
from launch.tpm_pages import Made

STEPS = (5, 10)
SEEDS = (0, 1, 2)
# of trainings: changes of the configuration. A spatial policy draws more, and takes longer to learn from it
KINDS: dict[str, dict[str, Any]] = {"TPM": {}, "TPM, lifted bound": {"policy.gain": 2.0}}
SPATIAL = "spatial TPM"
PAPER = "TPM, paper's groups"
GAMMAS = (0.5, 1.0, 2.0)
GRID = tuple(i / 10 for i in range(11))
# noise that constants are chosen by, and that all are compared on
_TUNING, _HELD_OUT = 50, 60
_BATCH = 500


class Study(NamedTuple):
    """A denoiser, what it is rewarded for, and how methods are compared on it.

    config: of a training.
    kinds: of trainings, changes of `config`.
    known, unseen: what constants are chosen on, and what all are compared on: one network and other prompts.
    rewards: the one that is trained on, and one that is not.
    num: of images.
    grouped: images of one prompt belong together in intervals: prompts are a sample of all that one may ask for.
    real: images, for the residual.
    distance: a column more.
    """

    name: str
    config: ConfigDict
    kinds: dict[str, dict[str, Any]]
    known: Subject
    unseen: Subject
    rewards: Rewards
    num: int
    grouped: bool
    real: UInt8[np.ndarray, "m h w c"]
    distance: Callable[[UInt8[np.ndarray, "b h w c"]], float] | None

    @property
    def reward(self) -> str:
        """What policies are trained on."""
        return next(iter(self.rewards.of))

    @property
    def judge(self) -> str:
        """What they are not."""
        return list(self.rewards.of)[1]

    @property
    def index(self) -> Int[np.ndarray, "num"]:
        """The prompt of each image."""
        return np.arange(self.num, dtype=np.int32) % len(self.unseen.prompts)

    def interval(self, values: Float[np.ndarray, "num"]) -> Interval:
        """Of a mean over images."""
        return bootstrap(values, self.index if self.grouped else None)

    def make(self, follow: Any, deviates: bool = True) -> Made:
        """Images of a schedule, that all are compared on."""
        return self._images(self.unseen, follow, self.num, _HELD_OUT, deviates)

    def tried(self, follow: Any) -> float:
        """Mean reward on other noise, and on what is trained on."""
        made = self._images(self.known, follow, max(self.num // 4, len(SEEDS)), _TUNING, deviates=True)
        return float(made.scores[self.reward].mean())

    def _images(self, subject: Subject, follow: Any, num: int, seed: int, deviates: bool) -> Made:
        index = np.arange(num, dtype=np.int32) % len(subject.prompts)
        return tpm_pages.make(subject, self.rewards.of, follow, index, seed, deviates=deviates, batch=min(_BATCH, num))


def digits(values: flags.FlagValues, steps: int) -> Study:
    """Classes, without guidance, rewarded by a classifier."""
    config = _config(values, tpm_digits.get_config, steps)
    config.denoiser = values.denoiser
    subject = subjects.load(values.denoiser, "", subjects.Choice(**config.sample), sharding.make_mesh())
    longer = {"policy.cell": 1, "train.steps": 2 * config.train.steps}
    kinds = {**KINDS, SPATIAL: longer, PAPER: {"grpo.noises": config.grpo.noises * config.grpo.draws, "grpo.draws": 1}}
    real = evaluate.real_images("", values.denoiser, subject.shape)

    def distance(images: UInt8[np.ndarray, "b h w c"]) -> float:
        return judge.distance(images.astype(np.float32) / 127.5 - 1)

    rewards = rewarding.parse(f"{config.rewards}, digits_judge")
    return Study("digits", config, kinds, subject, subject, rewards, values.num, False, real, distance)


def captioned(values: flags.FlagValues, steps: int) -> Study:
    """Captions of scenes, under guidance, rewarded by a small CLIP of them."""
    config = _config(values, tpm_scenes.get_config, steps)
    folder = Path(config.prompts).parent
    known, unseen = (
        subjects.load(config.denoiser, str(folder / name), subjects.Choice(**config.sample), sharding.make_mesh())
        for name in train_alignment.SPLITS.values()
    )
    kinds = {**KINDS, SPATIAL: {"policy.cell": 1, "train.steps": 2 * config.train.steps}}
    source = scenes.scenes("test").source
    real = np.stack([source[i]["image"] for i in range(1000)])
    rewards = rewarding.parse(f"{config.rewards}, scenes_judge")
    return Study("scenes", config, kinds, known, unseen, rewards, max(values.num // 8, 10), True, real, None)


STUDIES: dict[str, Callable[[flags.FlagValues, int], Study]] = {"digits": digits, "scenes": captioned}


def _config(values: flags.FlagValues, get_config: Callable[[str], ConfigDict], steps: int) -> ConfigDict:
    config = get_config("smoke" if values.tiny else "")
    config.sample.steps = steps
    config.train.sample_every = 0
    return config


def config_of(values: flags.FlagValues, study: Study, kind: str, seed: int) -> ConfigDict:
    """The training of a policy."""
    config = study.config.copy_and_resolve_references()
    name = f"{config.sample.steps} steps, {kind}, {seed}".replace(",", "").replace("'", "").replace(" ", "_").lower()
    config.update({"workdir": str(Path(values.runs) / study.name / name), "seed": seed})
    config.update_from_flattened_dict(study.kinds[kind])
    return config


class Row(NamedTuple):
    """A method's images, of each seed of training; one where nothing is trained."""

    name: str
    made: list[Made]

    def scores(self, reward: str) -> Float[np.ndarray, "seeds num"]:
        """Of each seed's images."""
        return np.stack([one.scores[reward] for one in self.made]).astype(np.float64)


def rows(values: flags.FlagValues, study: Study) -> tuple[list[Row], dict[float, dict[float, float]]]:
    """All methods; and of each gain, the constants that were tried with their rewards."""

    def constant(rho: float, gain: float) -> Callable[..., ConstantDeviation]:
        return lambda base, known: ConstantDeviation(base, jnp.float32(rho), jnp.float32(gain))

    tried = {gain: {rho: study.tried(constant(rho, gain)) for rho in GRID} for gain in (1.0, 2.0)}
    found = [Row("synchronous", [study.make(lambda base, known: base, deviates=False)])]
    for gain, name in ((1.0, "best constant"), (2.0, "best constant, lifted bound")):
        rho = max(tried[gain], key=tried[gain].__getitem__)
        found.append(Row(f"{name}: ρ = {rho:g}", [study.make(constant(rho, gain))]))
    for kind in study.kinds:
        trained = [policies.load(config_of(values, study, kind, seed).workdir) for seed in SEEDS]
        for gamma in GAMMAS if kind == "TPM" else (1.0,):
            made = [study.make(partial(policy.schedule, gamma=gamma)) for policy in trained]
            found.append(Row(f"{kind}, γ = {gamma:g}" if kind == "TPM" else kind, made))
    return found, tried


def table(study: Study, found: Sequence[Row]) -> str:
    """In Markdown; an image counts with its mean over the seeds of training."""
    head = ["method", "reward", "of each seed", "against synchronous", "judge", "against synchronous", "residual"]
    if study.distance is not None:
        head.append("Fréchet distance")
    lines = []
    for row in found:
        line = [row.name]
        for name in (study.reward, study.judge):
            scores = row.scores(name)
            mean, low, high = study.interval(scores.mean(0))
            line.append(f"{mean:.4f} [{low:.4f}, {high:.4f}]")
            if name == study.reward:
                line.append(", ".join(f"{one:.4f}" for one in scores.mean(1)) if len(scores) > 1 else "")
            paired = study.interval(scores.mean(0) - found[0].scores(name)[0])
            line.append("" if row is found[0] else f"{paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]")
        line.append(f"{np.mean([residual(one.images, study.real).mean() for one in row.made]):.3f}")
        if study.distance is not None:
            line.append(f"{np.mean([study.distance(one.images) for one in row.made]):.3f}")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def verdict(study: Study, found: Sequence[Row]) -> str:
    """What the table says, by its intervals."""
    by_name = {row.name: row.scores(study.reward).mean(0) for row in found}
    plain, learned = by_name["synchronous"], by_name["TPM, γ = 1"]
    one, other = study.interval(plain), study.interval(learned)
    apart = "do not overlap" if other.low > one.high or other.high < one.low else "overlap"
    lines = [f"The intervals of synchronous sampling and of the TPM (γ = 1) {apart}."]
    lifted = next(row.name for row in found if row.name.startswith("best constant, lifted"))
    for bound, method, baseline in (
        ("within the same bound", "TPM, γ = 1", found[1].name),
        ("with the lifted bound", "TPM, lifted bound", lifted),
    ):
        mean, low, high = study.interval(by_name[method] - by_name[baseline])
        says = "does better than it" if low > 0 else "does worse than it" if high < 0 else "cannot be told from it"
        lines.append(
            f"Against the best constant deviation {bound}, which needs no learning: the TPM {says}, {mean:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]."
        )
    return " ".join(lines)


def section(values: flags.FlagValues, study: Study, pictures: Path) -> str:
    """One number of steps."""
    steps = study.config.sample.steps
    for kind in study.kinds:
        for seed in SEEDS:
            if not train_tpm.run(config_of(values, study, kind, seed)):
                sys.exit(1)
    found, tried = rows(values, study)
    # every call but the first, which is told its own time; all cells of all images of all seeds
    calls = {
        row.name: np.concatenate([one.deviations[:, 1:].reshape(study.num, steps - 1, -1) for one in row.made])
        for row in found
        if row.name in ("TPM, γ = 1", *list(study.kinds)[1:])
    }
    deviations, gamma = (pictures / f"results_tpm_{study.name}_{name}_{steps}.png" for name in ("deviations", "gamma"))
    tpm_pages.plot_deviations(deviations, calls, 1.0)
    tpm_pages.plot_gamma(gamma, gammas(values, study))
    listed = {gain: ", ".join(f"{rho:g}: {score:.4f}" for rho, score in tried[gain].items()) for gain in tried}
    return f"""### {steps} steps

{table(study, found)}

{verdict(study, found)}

Constants that were tried, on other noise (ρ: reward). Within the bound: {listed[1.0]}. Lifted: {listed[2.0]}.

![Deviations](images/{deviations.name})

*Deviation of each call before the gain, which doubles the lifted policy's; lines are means over images and seeds, areas
hold 80 % of them.*

![Reward against gamma](images/{gamma.name})

*The first seed's TPM with its deviations scaled by γ, and 95 % intervals.*
"""


def gammas(values: flags.FlagValues, study: Study) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Rewards by gamma, of the first seed."""
    policy = policies.load(config_of(values, study, "TPM", SEEDS[0]).workdir)
    made = {gamma: study.make(partial(policy.schedule, gamma=gamma)) for gamma in tpm_pages.GAMMAS}
    return {
        name: {str(gamma): study.interval(one.scores[name].astype(np.float64))._asdict() for gamma, one in made.items()}
        for name in study.rewards.of
    }


def _intro(study: Study) -> str:
    """What a study is; for people."""
    config, spatial = study.config, study.kinds[SPATIAL]["train.steps"]
    sizes, prompts = config.grpo, len(study.unseen.prompts)
    training = (
        f"{config.train.steps} iterations ({spatial} of the spatial one) of {sizes.prompts} prompts x {sizes.noises} "
        f"noises x {sizes.draws} draws, learning rate {config.optim.learning_rate:g}"
    )
    if study.name == "digits":
        return f"""## Classes of digits

The class-conditional denoiser of real 8x8 digits, without guidance. Policies: {training}; those with the *paper's
groups* have as many images, one draw of each noise.

The *reward* is the log-probability of the class that was asked for, by a small network that has seen only real digits;
the *judge*, the share of images that a support vector machine names as asked for, is what no policy was trained on.
Fréchet distance is to real digits, less is better. All methods begin with the same {study.num} noises. Intervals are
over images."""
    return f"""## Captioned scenes

The UNet of [results_text.md](results_text.md), guidance {config.sample.guidance:g}. Policies: {training}, on captions
that the network was trained on; compared on {prompts} that it was not, {study.num} images.

The *reward* is CLIPScore (2.5 max(cosine, 0)) by a CLIP that the project trains on real scenes; the *judge*, the share
of a caption's claims that a classifier finds in the image, is what no policy was trained on. Intervals are over
captions."""


def main() -> None:
    values = flags.FLAGS
    for name in values.studies:
        if name not in STUDIES:
            raise ValueError(f"expected --studies out of {', '.join(STUDIES)}, got {name!r}")
    check_writable(values.out)
    out = Path(values.out)
    sections = []
    for name in values.studies:
        of_steps = [STUDIES[name](values, steps) for steps in STEPS]
        sections.append(_intro(of_steps[0]))
        sections += [section(values, study, out.parent / "images") for study in of_steps]
    command = shlex.join(["python", "-m", "launch.results_tpm", *sys.argv[1:]])
    page = f"""# Learning which time the denoiser is told

Written by these commands, the last of which trains what is missing:

    python -m launch.train --config=configs/digits.py
    python -m launch.results_text
    python -m launch.train_alignment
    {command}

Timestep prediction modules (TPM, AsyncDiff, arXiv 2512.18675) for two frozen denoisers, sampled by DDIM without fresh
noise. Each kind is trained by GRPO with {len(SEEDS)} seeds, and compared on noise that no training has seen, the same
for all methods. In brackets are 95 % bootstrap intervals; an image of a learned method counts with its mean over the
seeds. *Residual* is the energy at high spatial frequencies over that of real images (1: as they have).

{chr(10).join(f"{one.strip()}{chr(10)}" for one in sections)}"""
    with writing(out, overwrite=True) as stream:
        stream.write(page.encode())
    print(f"wrote {out}")


if __name__ == "__main__":
    flags.DEFINE_list("studies", list(STUDIES), f"Of: {', '.join(STUDIES)}.")
    flags.DEFINE_string("denoiser", "runs/digits", "Folder of the digits' run.")
    flags.DEFINE_string("runs", "runs/results_tpm", "Folder of the policies.")
    flags.DEFINE_string("out", "docs/results_tpm.md", "The page; its pictures go beside it into images/.")
    flags.DEFINE_integer("num", 8000, "Images that methods are compared on; of scenes, an eighth.", lower_bound=10)
    flags.DEFINE_bool("tiny", False, "Policies that learn nothing, for a try.")
    cli.main_of_flags(main, __doc__)
