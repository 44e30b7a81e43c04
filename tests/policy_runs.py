"""Short trainings of timestep policies, and what two processes run of one; without torch, which takes seconds."""

import atexit
import functools
import os
import sys
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from ml_collections import ConfigDict

from asyncpatch_jax.models.tpm import TPM
from asyncpatch_jax.training import loop, policies
from configs import tpm_digits
from launch import train_tpm
from launch.shared import processes
from tests import drawn

STEPS = 4  # iterations
# before a test puts another in its place
digits_config, init = tpm_digits.get_config, policies.init


def whim(images: np.ndarray, prompts: list[str]) -> np.ndarray:
    """A reward that no other process would give."""
    return np.random.default_rng(os.getpid()).random(len(images))


def config_of(workdir: Any, folder: Any, **changes: Any) -> ConfigDict:
    """The training of a policy for the denoiser of a folder; by default one of digits."""
    config = digits_config("smoke")
    config.update({"workdir": str(workdir), "denoiser": str(folder), "rewards": "tests.test_train_tpm:bright*2"})
    config.sample.steps = 3
    config.policy.update({"patch": 4, "width": 8, "heads": 2})
    config.grpo.update({"prompts": 2, "noises": 2, "draws": 2, "minibatch": 4})
    config.train.update({"steps": STEPS, "checkpoint_every": 2, "log_every": 1, "sample_every": 0, "held_out": 4})
    config.update_from_flattened_dict(changes)
    return config


def text_config(workdir: Any, folder: Any, prompts: Any, rewards: str) -> ConfigDict:
    """The training of a policy for a text-to-image folder, under guidance."""
    config = config_of(workdir, folder, prompts=str(prompts), rewards=rewards)
    config.sample.update({"guidance": 3.0, "size": 32, "solver": None})
    config.train.update({"steps": 2})
    return config


@functools.cache
def begun(module: TPM, shape: tuple[int, int, int]) -> Any:
    """A new module, which deviates from nothing, in the place of `policies.init`: draws take seconds to compile."""
    shapes = jax.eval_shape(lambda key: init(module, key, shape), jax.random.key(0))
    with jax.ensure_compile_time_eval():  # asked for within a program, and kept for others
        params = jax.device_get(drawn.params_like(shapes))
    return {**params, "belief": jax.tree.map(np.zeros_like, params["belief"])}


def main(workdir: str, folder: str, prompts: str) -> None:
    """Of two processes: train by a reward that each would give otherwise; say of what and what was learned."""
    processes.start()
    fit, scores, rewards = loop.fit, train_tpm.Trainer.scores, []

    def scored(*args: Any) -> Any:
        found = scores(*args)
        rewards.extend(float(each.sum()) for each in found.values())
        return found

    def told(*args: Any, **more: Any) -> Any:
        state, done = fit(*args, **more)
        assert "tensorflow" not in sys.modules  # its import takes seconds
        sums = [float(np.abs(leaf.addressable_data(0)).sum()) for leaf in jax.tree.leaves(state.params)]
        # the first process alone prints; and in one piece, for both write to one pipe
        sys.stderr.write(" ".join(map(str, ["learned", done, *rewards, *sums])) + "\n")
        return state, done

    with (
        patch.object(loop, "fit", told),
        patch.object(train_tpm.Trainer, "scores", scored),
        patch.object(policies, "init", lambda module, key, shape: begun(module, shape)),
    ):
        train_tpm.run(text_config(workdir, folder, prompts, "tests.policy_runs:whim"))


def joined(process: int) -> None:
    """The last that the first process does: its exit code tells of both."""
    if os.waitpid(process, 0)[1]:
        os._exit(1)


if __name__ == "__main__":
    # the second is a copy of the first, for which all is imported by now; neither has a device of JAX yet
    second = os.fork()
    os.environ["PROCESS_ID"] = "0" if second else "1"
    if second:
        atexit.register(joined, second)
    main(*sys.argv[1:])
