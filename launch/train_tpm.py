r"""Train a timestep prediction module (TPM) by GRPO: what a frozen denoiser is told, for the rewards that you name.

  python -m launch.train_tpm --config=configs/tpm_digits.py
  python -m launch.train_tpm --config=configs/tpm_digits.py --config.workdir=runs/lifted --config.policy.gain=2
  python -m launch.train_tpm --config=configs/tpm_text.py --config.denoiser=stable-diffusion-3.5-medium \
      --config.prompts=prompts.txt --config.rewards="hps_v2.1=rewards/hps, image_reward=rewards/image_reward"

Rewards: NAME, NAME=FOLDER or MODULE:FUNCTION (a function of uint8 images [b, h, w, c] and b prompts), each with *WEIGHT
if it is not 1. Writes into the configuration's workdir: checkpoints, TensorBoard files, policy.json, and pages of the
policy's deviations and rewards. Stop it with Ctrl-C or SIGTERM: it saves first, and the same command continues where it
was. AsyncDiff, arXiv 2512.18675.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int
from ml_collections import ConfigDict

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import sharding
from asyncpatch_jax.files import write_json
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.metrics.rewards import combine
from asyncpatch_jax.models.tpm import TPM
from asyncpatch_jax.training import grpo, policies
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.checksums import checksums
from asyncpatch_jax.training.policies import Policy
from asyncpatch_jax.training.records import differences, digest
from asyncpatch_jax.training.step import TrainState, create
from asyncpatch_jax.training.stored import listed
from launch.policy import iteration, pages, rewarding, subjects
from launch.policy.rewarding import Rewards
from launch.policy.subjects import Asked, Subject
from launch.shared import build, cli, fitting, processes, prompt_files, records

# settings that may change between two starts; what denoiser, prompts and rewards are, is compared in place of where
# they lie
_FREE = (
    *("workdir", "mesh", "train.steps", "train.checkpoint_every", "train.log_every"),
    *("train.sample_every", "train.held_out", "train.keep", "train.fall_back"),
)
_PLACES = ("denoiser", "prompts", "prompts_sample", "prompts_seed", "rewards")

_REWARDING = 3600.0  # seconds that rewards may take

# of an iteration's images
_SIZES = ("prompts", "noises", "draws")


class Prompts:
    """Endless numbers of prompts, some at a time: every epoch is a new permutation. Its position is a number."""

    def __init__(self, count: int, each: int, seed: int):
        self.count, self.each, self.seed, self.position = count, each, seed, 0

    def __next__(self) -> Int[np.ndarray, "p"]:
        place = np.arange(self.position * self.each, (self.position + 1) * self.each)
        self.position += 1
        orders = {epoch: self._order(epoch) for epoch in np.unique(place // self.count).tolist()}
        return np.array([orders[i // self.count][i % self.count] for i in place.tolist()], np.int32)

    def _order(self, epoch: int) -> Int[np.ndarray, "n"]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.count)

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.position}

    def set_state(self, state: Mapping[str, int]) -> None:
        self.position = state["next_index"]


class Trainer:
    """One training's step: `(state, prompts) -> (state, metrics)`, as `training.loop.fit` takes it."""

    def __init__(self, config: ConfigDict, subject: Subject, rewards: Rewards, policy: Policy):
        self.config, self.subject, self.rewards, self.policy = config, subject, rewards, policy
        self.optimizer = iteration.optimizer(**config.optim)
        settings = {name: value for name, value in config.grpo.items() if name not in _SIZES}
        self.settings = {"module": policy.module, "optimizer": self.optimizer, **settings}

    def __call__(self, state: TrainState, prompts: Int[np.ndarray, "p"]) -> tuple[TrainState, dict[str, Any]]:
        settings = self.config.grpo
        index = np.repeat(prompts, settings.noises * settings.draws)
        rolled = self.rolled(state.params, state.step, self.subject.ask(index))
        scores = self.scores(rolled.images, index)
        total = combine(scores, self.rewards.weights).reshape(len(prompts), -1)
        advantage, used = grpo.advantages(jnp.asarray(total), settings.draws)
        args = self.subject.net.mesh, state, rolled.trajectory, advantage, used, of_seed(self.config.seed)
        state, metrics = iteration.update(*args, **self.settings)
        return state, {**metrics, **{f"reward/{name}": float(value.mean()) for name, value in scores.items()}}

    def rolled(self, params: Any, step: Any, asked: Asked) -> grpo.Rollout:
        """An iteration's images; the draws of a noise are next to each other."""
        subject, draws = self.subject, self.config.grpo.draws
        keys = jax.random.fold_in(of_seed(self.config.seed), step)
        keys = keys_lib.per_image(keys, math.prod(self.config.grpo[name] for name in _SIZES))
        begin = grpo.grouped(keys[::draws], draws)
        schedule = self.policy._replace(params=params).schedule(subject.base, asked.known, mode="sample")
        return iteration.roll(subject.net, subject.params, schedule, asked, begin, keys, subject.shape)

    def scores(self, latents: Any, index: Int[np.ndarray, "b"]) -> dict[str, np.ndarray]:
        """Of each reward, of images of these prompts; of several processes, the first asks and tells the others.

        So that all learn from the same, of a reward that never answers twice alike too.
        """
        images, texts = self.subject.pictures(latents), [self.subject.prompts[i] for i in index]
        found = np.zeros((len(self.rewards.of), len(index)), np.float32)
        if jax.process_index() == 0:
            found = np.stack([reward(images, texts) for reward in self.rewards.of.values()])
        if jax.process_count() > 1:
            with processes.waiting("the first process's rewards", _REWARDING):
                found = np.asarray(multihost_utils.broadcast_one_to_all(found))
        return dict(zip(self.rewards.of, found, strict=True))

    def check(self) -> None:
        """Find mistakes that show when an iteration is traced, before anything is written.

        Raises:
            ValueError: says what was expected.
        """
        asked = self.subject.ask(np.zeros(math.prod(self.config.grpo[name] for name in _SIZES), np.int32))
        jax.eval_shape(lambda params: self.rolled(params, 0, asked), self.policy.params)


def check(config: ConfigDict) -> None:
    """Find mistakes in the settings, before anything is loaded.

    Raises:
        ValueError: says what was expected.
    """
    settings, train = config.grpo, config.train
    if not config.denoiser or not config.rewards:
        raise ValueError("expected --config.denoiser=FOLDER and --config.rewards=...")
    sizes = [settings[name] for name in _SIZES]
    if min(sizes) < 1 or settings.noises * settings.draws < 2:
        raise ValueError(
            "expected a prompt or more, a noise or more, a draw or more, and groups of 2 or more, got "
            + ", ".join(f"{name} = {size}" for name, size in zip(_SIZES, sizes, strict=True))
        )
    images = math.prod(sizes)
    if settings.minibatch < 1 or images % settings.minibatch or settings.passes < 1:
        raise ValueError(f"expected a minibatch that divides {images} images, got {settings.minibatch}")
    if not 0 < settings.clip < 1 or settings.kl < 0 or config.policy.gain <= 0:
        given = f"{settings.clip}, {settings.kl} and {config.policy.gain}"
        raise ValueError(f"expected 0 < clip < 1, kl >= 0 and gain > 0, got {given}")
    if min(train.steps, train.checkpoint_every, train.log_every, train.keep, train.held_out) < 1:
        raise ValueError("expected config.train.steps, checkpoint_every, log_every, keep and held_out >= 1")
    check_same(config)


def record(config: ConfigDict, module: TPM, subject: Subject, rewards: Rewards) -> dict[str, Any]:
    """What a training is, as its checkpoints and policy.json have it."""
    known = {"num_classes": module.num_classes, "context_dim": module.context_dim, "shape": subject.shape}
    asked = {
        "denoiser": digest(checksums(subject.params)),
        "prompts": f"{len(subject.prompts)}, {digest(subject.prompts)}",
        "rewards": dict(rewards.weights),
    }
    return {"config": records.plain(config), "policy": {**known, "asked": asked}}


def check_same(config: ConfigDict, here: Mapping[str, Any] | None = None) -> None:
    """Refuse to go on with another training, by its settings, and by what it asks for if `here`, a record, is given.

    Raises:
        ValueError: the folder holds a training of other settings, or of another denoiser, prompts or rewards.
        DamagedError: no checkpoint there is whole.
    """
    if not listed(epath.Path(config.workdir) / "checkpoints"):
        return
    there = policies.recorded(config.workdir, fall_back=config.train.fall_back)
    asked = there.get("policy", {}).get("asked")
    if asked is None:  # of before it was kept
        return records.check_same(there, config, _FREE, [])
    lines = [] if here is None else differences(asked, here["policy"]["asked"])
    records.check_same(there, config, (*_FREE, *_PLACES), lines)


def texts(config: ConfigDict) -> list[str]:
    """The prompts of the settings; none for all classes of a run.

    Raises:
        ValueError: a file of none, or of fewer than are to be drawn.
    """
    return prompt_files.texts(config.prompts, config.prompts_sample, config.prompts_seed)


def run(config: ConfigDict) -> bool:
    """Train as configured, or go on training; returns whether all iterations are done.

    Raises:
        ValueError: the configuration does not make sense, or the folder holds a training of another one.
        FloatingPointError: the loss became infinite or NaN.
        OSError: the folder cannot be written, or the disk is full.
    """
    check(config)
    mesh = build.mesh(config)
    rewards = rewarding.parse(config.rewards)
    choice, train = subjects.Choice(**config.sample), config.train
    subject = subjects.load(config.denoiser, texts(config), choice, mesh, fall_back=train.fall_back)
    if len(subject.prompts) < config.grpo.prompts:
        raise ValueError(f"expected config.grpo.prompts <= {len(subject.prompts)} prompts, got {config.grpo.prompts}")
    known = subject.ask(np.zeros(1, np.int32)).known
    classes = subject.net.model.num_classes if known.label is not None else 0
    module = policies.module(config.policy.to_dict(), classes, 0 if known.tokens is None else known.tokens.shape[-1])
    shapes = policies.shapes(module, subject.shape)
    trainer = Trainer(config, subject, rewards, Policy(module, shapes, config.policy.gain, config.policy.space))
    trainer.check()
    here = record(config, module, subject, rewards)
    everywhere = sharding.replicated(mesh)

    @partial(jax.jit, out_shardings=everywhere)
    def first() -> TrainState:
        return create(policies.init(module, of_seed(config.seed), subject.shape), trainer.optimizer)

    like = sharding.abstract(jax.eval_shape(first), jax.tree.map(lambda _: everywhere, jax.eval_shape(first)))
    prompts = Prompts(len(subject.prompts), config.grpo.prompts, config.seed)
    workdir = epath.Path(config.workdir)
    with Checkpoints(workdir / "checkpoints", keep=train.keep, record=here, fall_back=train.fall_back) as checkpoints:
        checkpoints.check_room(like)
        if checkpoints.latest is None:
            state = first()
            count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            print(f"{count:,} parameters; {len(subject.prompts)} prompts; rewards: {', '.join(rewards.of)}")
        else:
            check_same(config, here)
            state = checkpoints.restore(like, prompts)
            print(f"continuing {workdir} at iteration {int(state.step)}")
        if int(state.step) >= config.train.steps:
            if config.train.sample_every and not (_folder(config, int(state.step)) / pages.LAST).exists():
                _pages(trainer, int(state.step), state)  # of a training that was killed after its last checkpoint
            if not (workdir / "policy.json").exists():
                write_json(workdir / "policy.json", here)
            print(f"nothing to do: {config.train.steps} iterations are done; --config.train.steps=N trains on")
            return True
        finished = _fit(trainer, state, prompts, checkpoints, here)
        print(f"wrote {workdir}/checkpoints (iterations {', '.join(map(str, checkpoints.steps))}) and policy.json")
    if not finished:
        print("stopped as asked to; the same command continues from here")
    return finished


def _folder(config: ConfigDict, done: int) -> epath.Path:
    return epath.Path(config.workdir) / "pages" / f"{done:07d}"


def _pages(trainer: Trainer, done: int, state: TrainState) -> None:
    policy = trainer.policy._replace(params=state.params)
    paths = pages.write(_folder(trainer.config, done), trainer.subject, trainer.rewards, policy, trainer.config)
    if done == trainer.config.train.steps:
        print("\n".join(f"wrote {path}" for path in paths))


def _fit(
    trainer: Trainer, state: TrainState, prompts: Prompts, checkpoints: Checkpoints, here: Mapping[str, Any]
) -> bool:
    config = trainer.config

    def said(done: int, metrics: dict[str, float]) -> dict[str, str]:
        shown = {name.split("/")[1]: f"{value:.4f}" for name, value in metrics.items() if name.startswith("reward/")}
        return {**shown, "deviation": f"{metrics['deviation']:+.3f}"}

    return fitting.fit(
        state,
        prompts,
        trainer,
        config,
        checkpoints,
        unit="iteration",
        begin=lambda: write_json(epath.Path(config.workdir) / "policy.json", here, overwrite=True),
        said=said,
        draw=partial(_pages, trainer),
    )


if __name__ == "__main__":
    cli.main(run, __doc__, default="configs/tpm_digits.py")
