"""Make docs/results_tpm_digits.md or _scenes.md: what does it gain to learn which time a denoiser is told?

  python -m launch.train --config=configs/digits.py
  python -m launch.studies.tpm digits

  python -m launch.studies.text        # for its network of captioned scenes: hours
  python -m launch.studies.train_alignment
  python -m launch.studies.tpm scenes

  python -m launch.studies.tpm digits --tiny --out=smoke.md --runs=runs/smoke     # to see it work

Trains timestep policies (`launch.train_tpm`) for a class-conditional denoiser of digits or a text-to-image network of
captioned scenes, at 5 and at 10 steps, with three seeds each, and compares them with what needs no learning, on noise
(and captions) that none of them has seen. What is finished is kept in --runs and not done again.
"""

import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import UInt8
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data import scenes
from asyncpatch_jax.files import writing
from asyncpatch_jax.sampling.schedules.tpm import ConstantDeviation
from asyncpatch_jax.training import policies
from configs import tpm_digits, tpm_scenes
from launch import evaluate, train_tpm
from launch.policy import pages, rewarding, subjects
from launch.policy.pages import Made
from launch.policy.subjects import Subject
from launch.shared import cli, digits_judge, outputs, prompt_files
from launch.shared.records import plain
from launch.studies import tpm_page, train_alignment
from launch.studies.tpm_page import LIFTED, PAPER, PLAIN, SPATIAL, TPM, Results, Row, Study

STEPS = (5, 10)  # of sampling
SEEDS = (0, 1, 2)
GAMMAS = (0.5, 1.0, 2.0)
GRID = tuple(i / 10 for i in range(11))
# noise that constants are chosen by, and that all are compared on
_TUNING, _HELD_OUT = 50, 60
_BATCH = 500


def digits(values: flags.FlagValues, steps: int) -> Study:
    """Classes, without guidance, rewarded by a classifier."""
    config = _config(values, tpm_digits.get_config, steps)
    config.denoiser = values.denoiser
    subject = subjects.load(values.denoiser, (), subjects.Choice(**config.sample), sharding.make_mesh())
    paper = {"grpo.noises": config.grpo.noises * config.grpo.draws, "grpo.draws": 1}
    real = evaluate.real_images("", values.denoiser, subject)

    def distance(images: UInt8[np.ndarray, "b h w c"]) -> float:
        return digits_judge.distance(images.astype(np.float32) / 127.5 - 1)

    rewards = rewarding.parse(f"{config.rewards}, digits_judge").of
    kinds = {**_kinds(config), PAPER: paper}
    return Study("digits", config, kinds, subject, subject, rewards, values.num, None, real, distance)


def captioned(values: flags.FlagValues, steps: int) -> Study:
    """Captions of scenes, under guidance, rewarded by a small CLIP of them."""
    config = _config(values, tpm_scenes.get_config, steps)
    folder = Path(config.prompts).parent
    known, unseen = (
        subjects.load(config.denoiser, texts, subjects.Choice(**config.sample), sharding.make_mesh())
        for texts in (prompt_files.texts(folder / name) for name in train_alignment.SPLITS.values())
    )
    # images of one scene, whichever of its captions they are of, say one thing about scenes
    scene = {caption.text: number for caption, number in zip(scenes.captions(), scenes.scene_numbers(), strict=True)}
    groups = np.array([scene[text] for text in unseen.prompts])
    source = scenes.scenes("test").source
    real = np.stack([source[i]["image"] for i in range(1000)])
    rewards = rewarding.parse(f"{config.rewards}, scenes_judge").of
    num = max(values.num // 8, 10)
    kind, every = train_alignment.found(folder / "clip", "test", 1000, seed=10**6)
    note = (
        f"Of 1000 real scenes with held-out captions and digits, {kind:.1%} fit their own caption better than another "
        f"one of its kind, and {every:.1%} better than all others."
    )
    return Study("scenes", config, _kinds(config), known, unseen, rewards, num, groups, real, note=note)


STUDIES: dict[str, Callable[[flags.FlagValues, int], Study]] = {"digits": digits, "scenes": captioned}


def _config(values: flags.FlagValues, get_config: Callable[[str], ConfigDict], steps: int) -> ConfigDict:
    config = get_config("smoke" if values.tiny else "")
    config.sample.steps = steps
    config.train.sample_every = 0
    return config


def _kinds(config: ConfigDict) -> dict[str, dict[str, Any]]:
    # a spatial policy draws more, and takes longer to learn from it
    longer = {"policy.cell": 1, "train.steps": 2 * config.train.steps}
    return {TPM: {}, LIFTED: {"policy.gain": 2.0}, SPATIAL: longer}


def config_of(values: flags.FlagValues, study: Study, kind: str, seed: int) -> ConfigDict:
    """The training of a policy."""
    config = study.config.copy_and_resolve_references()
    config.update({"workdir": str(_folder(values, study) / _file(f"{study.steps} steps, {kind}, {seed}"))})
    config.update({"seed": seed})
    config.update_from_flattened_dict(study.kinds[kind])
    return config


def _folder(values: flags.FlagValues, study: Study) -> Path:
    return Path(values.runs) / study.name


def _file(name: str) -> str:
    return name.replace(",", "").replace("'", "").replace(" ", "_").lower()


def kept(path: Path, about: dict[str, Any], make: Callable[[], Made]) -> Made:
    """`make()`, unless the file holds what it made of the same settings."""
    text = json.dumps(about, sort_keys=True)
    if path.exists():
        with np.load(path) as there:
            if there["about"].item() == text:
                scores = {name.removeprefix("scores/"): there[name] for name in there if name.startswith("scores/")}
                return Made(there["images"], scores, there.get("deviations"))
    made = make()
    arrays = {f"scores/{name}": values for name, values in made.scores.items()}
    if made.deviations is not None:
        arrays["deviations"] = made.deviations
    with writing(path, overwrite=True) as stream:
        np.savez(stream, about=text, images=made.images, **arrays)
    return made


def results(values: flags.FlagValues, study: Study) -> Results:
    """Train what is missing, and all methods' images.

    Raises:
        SystemExit: a training was stopped.
    """
    for kind in study.kinds:
        for seed in SEEDS:
            if not train_tpm.run(config_of(values, study, kind, seed)):
                sys.exit(1)
    images = _folder(values, study) / "images"

    def make(
        name: str,
        follow: Any,
        about: Any,
        *,
        subject: Subject = study.unseen,
        num: int = study.num,
        seed: int = _HELD_OUT,
        deviates: bool = True,
    ) -> Made:
        index = pages.numbers(num, len(subject.prompts))
        call = partial(pages.make, subject, study.rewards, follow, index, seed, deviates=deviates, batch=_BATCH)
        asked = {"study": plain(study.config), "follow": about, "num": num, "seed": seed}
        return kept(images / f"{_file(f'{study.steps} steps, {name}, {num}, {seed}')}.npz", asked, call)

    def constant(rho: float, gain: float, **more: Any) -> Made:
        def follow(base: Any, known: Any) -> ConstantDeviation:
            return ConstantDeviation(base, jnp.float32(rho), jnp.float32(gain))

        return make(f"constant {rho:g} times {gain:g}", follow, [rho, gain], **more)

    def learned(kind: str, seed: int, gamma: float, **more: Any) -> Made:
        config = config_of(values, study, kind, seed)
        policy = policies.load(config.workdir, mesh=study.unseen.net.mesh)
        follow = partial(policy.schedule, gamma=gamma)
        return make(f"{kind} {seed} times {gamma:g}", follow, [plain(config), gamma], **more)

    tuning = {"subject": study.known, "num": study.few, "seed": _TUNING}
    tried = {
        gain: {rho: float(constant(rho, gain, **tuning).scores[study.reward].mean()) for rho in GRID}
        for gain in (1.0, 2.0)
    }
    found = [Row(PLAIN, [make(PLAIN, lambda base, known: base, None, deviates=False)])]
    for gain, name in ((1.0, "best constant"), (2.0, "best constant, lifted bound")):
        rho = max(tried[gain], key=tried[gain].__getitem__)
        found.append(Row(f"{name}: ρ = {rho:g}", [constant(rho, gain)]))
    for kind in study.kinds:
        for gamma in GAMMAS if kind == TPM else (1.0,):
            name = f"{kind}, γ = {gamma:g}" if kind == TPM else kind
            found.append(Row(name, [learned(kind, seed, gamma) for seed in SEEDS]))
    curve = {gamma: learned(TPM, SEEDS[0], gamma, num=study.few) for gamma in pages.GAMMAS}
    return Results(study, found, tried, curve)


def main(name: str) -> None:
    values = flags.FLAGS
    if name not in STUDIES:
        raise ValueError(f"expected {' or '.join(STUDIES)}, got {name!r}")
    out = Path(values.out or f"docs/results_tpm_{name}.md")
    outputs.check_page(out, tpm_page.TITLE)
    studies = [STUDIES[name](values, steps) for steps in STEPS]
    command = shlex.join(["python", "-m", "launch.studies.tpm", *sys.argv[1:]])
    for path in tpm_page.write(out, command, [results(values, study) for study in studies], len(SEEDS)):
        print(f"wrote {path}")


if __name__ == "__main__":
    flags.DEFINE_string("denoiser", "runs/digits", "Folder of the digits' run.")
    flags.DEFINE_string("runs", "runs/results_tpm", "Folder of the policies and of what is made with them.")
    flags.DEFINE_string("out", None, "The page, docs/results_tpm_STUDY.md unless given; its pictures go beside it.")
    flags.DEFINE_integer("num", 8000, "Images that methods are compared on; of scenes, an eighth.", lower_bound=10)
    flags.DEFINE_bool("tiny", False, "Policies that learn nothing, for a try.")
    cli.main_of_flags(main, __doc__, takes=["STUDY"])
