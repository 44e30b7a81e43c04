"""A TPM for a denoiser of handwritten digits at 5 steps, rewarded by a classifier: minutes on two CPU cores.

    python -m launch.train --config=configs/digits.py
    python -m launch.train_tpm --config=configs/tpm_digits.py

With `:smoke` behind both configurations both run in seconds.
"""

from ml_collections import ConfigDict

from configs.tpm_base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """All ten classes in every iteration, 16 images each, without guidance, with which 5 steps are enough for all.

    Two draws of each of 8 noises: one of each of 16, as in the paper, learns much less (docs/results_tpm_digits.md).
    """
    config = settings(arg)
    config.workdir = "runs/tpm_digits"
    config.denoiser = "runs/digits_smoke" if arg == "smoke" else "runs/digits"
    config.rewards = "digits"
    config.sample.update({"steps": 5, "guidance": 1.0, "solver": "ddim"})
    config.policy.update({"patch": 2, "width": 64, "depth": 4, "heads": 4})
    config.grpo.update({"prompts": 10, "noises": 8, "draws": 2, "minibatch": 40})
    config.optim.update({"learning_rate": 3e-4})
    config.train.update({"steps": 80, "checkpoint_every": 40, "sample_every": 80, "held_out": 500})
    return shrink(config) if arg == "smoke" else config
