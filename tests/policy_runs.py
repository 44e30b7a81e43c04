"""Short trainings of timestep policies, and what two processes run of one; without torch, which takes seconds."""

import os
import sys
from typing import Any
from unittest.mock import Mock, patch

import jax
import numpy as np
from ml_collections import ConfigDict

from asyncpatch_jax.training import loop
from configs import tpm_digits
from launch import train_tpm
from launch.shared import processes

STEPS = 4  # iterations
# before a test puts another in its place
digits_config = tpm_digits.get_config


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


def main(workdir: str, folder: str, prompts: str) -> None:
    """Of several processes: train by a reward that each would give otherwise, and say what was learned."""
    processes.start()
    sys.modules["clu"] = Mock()  # its writers come with TensorFlow
    fit = loop.fit

    def told(*args: Any, **more: Any) -> Any:
        state, done = fit(*args, **more)
        sums = [float(np.abs(leaf.addressable_data(0)).sum()) for leaf in jax.tree.leaves(state.params)]
        print("learned", done, *sums, file=sys.stderr)  # the first process alone prints
        return state, done

    with patch.object(loop, "fit", told):
        train_tpm.run(text_config(workdir, folder, prompts, "tests.policy_runs:whim"))


if __name__ == "__main__":
    main(*sys.argv[1:])
