"""Handwritten digits (scikit-learn, 8x8, real): minutes on two CPU cores.

    python -m launch.train --config=configs/digits.py

`--config=configs/digits.py:smoke` runs in seconds.
"""

from ml_collections import ConfigDict

from configs.base import settings


def get_config(arg: str = "") -> ConfigDict:
    """The tiny UNet on pixels, one noise level per pixel."""
    config = settings(arg)
    config.workdir = "runs/digits"
    if arg == "smoke":
        config.workdir = "runs/digits_smoke"
        config.model.update(base=8, head_dim=8)
        config.optim.warmup = 2
        config.train.update(steps=8, batch=16, checkpoint_every=4, log_every=2)
        config.sample.steps = 4
    return config
