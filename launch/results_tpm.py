"""Make docs/results_tpm.md: what does it gain to learn which time a denoiser is told?

  python -m launch.train --config=configs/digits.py
  python -m launch.results_tpm
  python -m launch.results_tpm --tiny --out=smoke.md --runs=runs/smoke     # to see it work

Trains timestep policies (`launch.train_tpm`) for the digits' denoiser, at 5 and at 10 steps, with three seeds each,
unless that is done, and compares them with what needs no learning, on noise that none of them has seen.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.files import check_writable, writing
from asyncpatch_jax.metrics.intervals import bootstrap
from asyncpatch_jax.metrics.spectrum import residual
from asyncpatch_jax.sampling.schedules.tpm import ConstantDeviation
from configs import tpm_digits
from launch import cli, evaluate, judge, policies, rewarding, subjects, tpm_pages, train_tpm
from launch.subjects import Subject
from launch.tpm_pages import Made

STEPS = (5, 10)
SEEDS = (0, 1, 2)
KINDS: dict[str, dict[str, Any]] = {
    "TPM": {},
    "TPM, lifted bound": {"policy.gain": 2.0},
    "spatial TPM": {"policy.cell": 1},
}
GAMMAS = (0.5, 1.0, 2.0)
GRID = tuple(i / 10 for i in range(11))
REWARD, JUDGE = "digits", "digits_judge"
# noise that constants are chosen by, and that all are compared on
_TUNING, _HELD_OUT = 50, 60
_BATCH = 500


class Row(NamedTuple):
    """A method's images, of each seed of training; one where nothing is trained."""

    name: str
    made: list[Made]


def config_of(values: flags.FlagValues, steps: int, kind: str, seed: int) -> ConfigDict:
    """The training of a policy."""
    config = tpm_digits.get_config("smoke" if values.tiny else "")
    name = f"{steps} steps, {kind}, {seed}".replace(",", "").replace(" ", "_").lower()
    config.update({"workdir": str(Path(values.runs) / name), "denoiser": values.denoiser, "seed": seed})
    config.sample.steps = steps
    config.train.sample_every = 0
    config.update_from_flattened_dict(KINDS[kind])
    return config


def rows(values: flags.FlagValues, subject: Subject, steps: int) -> tuple[list[Row], dict[str, Any]]:
    """All methods at a number of steps; and which constants were best."""
    rewards = rewarding.parse(f"{REWARD}, {JUDGE}").of
    index = np.arange(values.num, dtype=np.int32) % len(subject.prompts)
    make = partial(tpm_pages.make, subject, rewards, batch=min(_BATCH, values.num))

    def constant(rho: float, gain: float, seed: int) -> Made:
        def follow(base: Any, known: Any) -> ConstantDeviation:
            return ConstantDeviation(base, jnp.float32(rho), jnp.float32(gain))

        return make(follow, index, seed, deviates=True)

    best = {}
    for gain in (1.0, 2.0):
        tried = {rho: float(constant(rho, gain, _TUNING).scores[REWARD].mean()) for rho in GRID}
        best[gain] = max(tried, key=tried.__getitem__), tried
    plain = make(lambda base, known: base, index, _HELD_OUT, deviates=False)
    found = [Row("synchronous", [plain])]
    for gain, name in ((1.0, "best constant"), (2.0, "best constant, lifted bound")):
        found.append(Row(f"{name}: ρ = {best[gain][0]:g}", [constant(best[gain][0], gain, _HELD_OUT)]))
    for kind in KINDS:
        loaded = [policies.load(config_of(values, steps, kind, seed).workdir) for seed in SEEDS]
        for gamma in GAMMAS if kind == "TPM" else (1.0,):
            made = [make(partial(p.schedule, gamma=gamma), index, _HELD_OUT, deviates=True) for p in loaded]
            found.append(Row(f"{kind}, γ = {gamma:g}" if kind == "TPM" else kind, made))
    return found, best


def table(found: Sequence[Row], real: UInt8[np.ndarray, "m h w c"]) -> str:
    """In Markdown; an image counts with its mean over the seeds of training."""
    head = ["method", "reward", "of each seed", "against synchronous", "named right, %", "residual", "Fréchet distance"]
    plain = found[0].made[0].scores[REWARD].astype(np.float64)
    lines = []
    for row in found:
        scores = np.stack([one.scores[REWARD] for one in row.made]).astype(np.float64)
        mean, low, high = bootstrap(scores.mean(0))
        paired = bootstrap(scores.mean(0) - plain)
        right = 100 * np.mean([one.scores[JUDGE].mean() for one in row.made])
        noise = np.mean([residual(one.images, real).mean() for one in row.made])
        distance = np.mean([judge.distance(one.images.astype(np.float32) / 127.5 - 1) for one in row.made])
        each = ", ".join(f"{one:.4f}" for one in scores.mean(1)) if len(scores) > 1 else ""
        against = "" if row is found[0] else f"{paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
        line = [
            row.name,
            f"{mean:.4f} [{low:.4f}, {high:.4f}]",
            each,
            against,
            f"{right:.2f}",
            f"{noise:.3f}",
            f"{distance:.3f}",
        ]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def verdict(found: Sequence[Row]) -> str:
    """What the table says, by its intervals."""

    def of(row: Row) -> Float[np.ndarray, "n"]:
        return np.stack([one.scores[REWARD] for one in row.made]).astype(np.float64).mean(0)

    by_name = {row.name: row for row in found}
    plain, learned = bootstrap(of(found[0])), bootstrap(of(by_name["TPM, γ = 1"]))
    apart = "do not overlap" if learned.low > plain.high or learned.high < plain.low else "overlap"
    against = bootstrap(of(by_name["TPM, γ = 1"]) - of(found[1]))
    matches = "beats it" if against.low > 0 else "does worse than it" if against.high < 0 else "cannot be told from it"
    mean, low, high = against
    return (
        f"The intervals of synchronous sampling and of the TPM (γ = 1) {apart}. Compared with the best constant "
        f"deviation within the same bound, which needs no learning, the TPM {matches}: {mean:+.4f} [{low:+.4f}, "
        f"{high:+.4f}]."
    )


def section(values: flags.FlagValues, steps: int, pictures: Path) -> str:
    """One number of steps."""
    for kind in KINDS:
        for seed in SEEDS:
            if not train_tpm.run(config_of(values, steps, kind, seed)):
                sys.exit(1)
    choice = subjects.Choice(steps, tpm_digits.get_config().sample.guidance, "ddim")
    subject = subjects.load(values.denoiser, "", choice, sharding.make_mesh())
    real = evaluate.real_images("", values.denoiser, subject.shape)
    found, best = rows(values, subject, steps)
    # every call but the first, which is told its own time; all cells of all images of all seeds
    calls = {
        row.name: np.concatenate([one.deviations[:, 1:].reshape(values.num, steps - 1, -1) for one in row.made])
        for row in found
        if row.name in ("TPM, γ = 1", *list(KINDS)[1:])
    }
    deviations, gamma = (pictures / f"results_tpm_{name}_{steps}.png" for name in ("deviations", "gamma"))
    tpm_pages.plot_deviations(deviations, calls, 1.0)
    tpm_pages.plot_gamma(gamma, gammas(values, subject, steps))
    tried = {gain: ", ".join(f"{rho:g}: {score:.4f}" for rho, score in best[gain][1].items()) for gain in best}
    return f"""## {steps} steps

{table(found, real)}

{verdict(found)}

Constants that were tried, on other noise (ρ: reward). Within the bound: {tried[1.0]}. Lifted: {tried[2.0]}.

![Deviations](images/{deviations.name})

*Deviation of each call before the gain, which doubles the lifted policy's; lines are means over images and seeds, areas
hold 80 % of them.*

![Reward against gamma](images/{gamma.name})

*The first seed's TPM with its deviations scaled by γ, and 95 % intervals.*
"""


def gammas(values: flags.FlagValues, subject: Subject, steps: int) -> dict[str, dict[str, dict[str, float]]]:
    """Rewards by gamma, of the first seed."""
    rewards = rewarding.parse(f"{REWARD}, {JUDGE}").of
    policy = policies.load(config_of(values, steps, "TPM", SEEDS[0]).workdir)
    index = np.arange(values.num, dtype=np.int32) % len(subject.prompts)
    made = {
        gamma: tpm_pages.make(
            subject, rewards, partial(policy.schedule, gamma=gamma), index, _HELD_OUT, deviates=True, batch=_BATCH
        )
        for gamma in tpm_pages.GAMMAS
    }
    return {
        name: {str(gamma): bootstrap(one.scores[name].astype(np.float64))._asdict() for gamma, one in made.items()}
        for name in rewards
    }


def main() -> None:
    values = flags.FLAGS
    check_writable(values.out)
    out = Path(values.out)
    sections = "\n".join(section(values, steps, out.parent / "images") for steps in STEPS)
    config = tpm_digits.get_config()
    settings = config.grpo
    page = f"""# Learning which time the denoiser is told

Written by these commands, which train what is missing:

    python -m launch.train --config=configs/digits.py
    python -m launch.results_tpm

A timestep prediction module (TPM, AsyncDiff, arXiv 2512.18675) for the class-conditional denoiser of real 8x8 digits,
frozen, deterministic DDIM without guidance. Trained by GRPO for {config.train.steps} iterations of {settings.prompts}
classes x {settings.noises} images (learning rate {config.optim.learning_rate:g}), each kind with {len(SEEDS)} seeds.

The *reward* is the log-probability of the class that was asked for, by a small network that has seen only real digits;
*named right* is the judgement of a support vector machine that no policy was trained on. *Residual* is the energy at
high spatial frequencies over that of real digits (1: as they have); Fréchet distance is to real digits, less is better.
All methods begin with the same {values.num} noises, which no training has seen. In brackets are 95 % bootstrap
intervals over images; an image of a learned method counts with its mean over the seeds.

{sections}"""
    with writing(out, overwrite=True) as stream:
        stream.write(page.encode())
    print(f"wrote {out}")


if __name__ == "__main__":
    flags.DEFINE_string("denoiser", "runs/digits", "Folder of the digits' run.")
    flags.DEFINE_string("runs", "runs/results_tpm", "Folder of the policies.")
    flags.DEFINE_string("out", "docs/results_tpm.md", "The page; its pictures go beside it into images/.")
    flags.DEFINE_integer("num", 2000, "Images that methods are compared on.", lower_bound=10)
    flags.DEFINE_bool("tiny", False, "Policies that learn nothing, for a try.")
    cli.main_of_flags(main, __doc__)
