r"""A TPM for a text-to-image folder: AsyncDiff's settings (arXiv 2512.18675) for Stable Diffusion 3.5 medium.

    python -m launch.train_tpm --config=configs/tpm_text.py --config.denoiser=stable-diffusion-3.5-medium \
        --config.prompts=prompts.txt --config.rewards="hps_v2.1=rewards/hps, image_reward=rewards/image_reward"

For FLUX.1-dev the paper has 10 steps and a learning rate of 2e-5; its guidance is told to the network.
"""

from ml_collections import ConfigDict

from configs.tpm_base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """512 x 512 pixels, 15 steps, guidance 5, one prompt and 16 images an iteration."""
    config = settings(arg)
    config.workdir = "runs/tpm_text"
    config.sample.update({"steps": 15, "guidance": 5.0, "size": 512})
    return shrink(config) if arg == "smoke" else config
