"""Handwritten digits (scikit-learn, 8x8, real): minutes on two CPU cores.

    python -m launch.train --config=configs/digits.py

`--config=configs/digits.py:smoke` runs in seconds.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """The tiny UNet on pixels, one noise level per pixel: 600 steps take about three minutes."""
    config = settings(arg)
    config.workdir = "runs/digits"
    config.optim.update({"learning_rate": 2e-3, "ema": 0.995})
    config.train.update({"steps": 600, "checkpoint_every": 200, "sample_every": 300, "log_every": 20})
    # a little guidance: clear digits that still differ; a little noise: unsure steps are mended by later ones
    config.sample.update({"guidance": 1.5, "eta": 0.3})
    return shrink(config) if arg == "smoke" else config
