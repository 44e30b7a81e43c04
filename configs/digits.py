"""Handwritten digits (scikit-learn, 8x8, real): minutes on two CPU cores.

    python -m launch.train --config=configs/digits.py

`--config=configs/digits.py:smoke` runs in seconds.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """The tiny UNet on pixels, one noise level per pixel."""
    config = settings(arg)
    config.workdir = "runs/digits"
    return shrink(config) if arg == "smoke" else config
