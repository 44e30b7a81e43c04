"""A TPM for a small text-to-image network of captioned scenes at 5 steps, rewarded by a CLIP of those scenes.

    python -m launch.studies.text        # trains the network, and measures schedules with it: hours
    python -m launch.studies.train_alignment     # trains the CLIP: a quarter of an hour
    python -m launch.train_tpm --config=configs/tpm_scenes.py

`--config=configs/tpm_scenes.py:smoke` runs in seconds (after the first two lines).
"""

from ml_collections import ConfigDict

from configs.tpm_base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """Eight captions in every iteration, two draws of each of four noises, at the guidance that suits the network."""
    config = settings(arg)
    config.workdir = "runs/tpm_scenes"
    config.denoiser = "runs/results_text/sd/pipeline"
    config.prompts = "runs/scenes_clip/captions.txt"
    config.rewards = "clip_score=runs/scenes_clip/clip"
    config.sample.update({"steps": 5, "guidance": 6.0, "size": 24})
    config.policy.update({"patch": 4, "width": 64, "depth": 4, "heads": 4})
    config.grpo.update({"prompts": 8, "noises": 4, "draws": 2, "minibatch": 16})
    config.optim.update({"learning_rate": 3e-4})
    config.train.update({"steps": 100, "checkpoint_every": 50, "sample_every": 100, "held_out": 128})
    return shrink(config) if arg == "smoke" else config
