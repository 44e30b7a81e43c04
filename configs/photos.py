"""Crops of the photographs that ship with scikit-image and scikit-learn, each a class: textures, outpainting.

    python -m launch.train --config=configs/photos.py

Hours on two CPU cores, minutes on a GPU. `--config=configs/photos.py:smoke` runs in seconds.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """A UNet of 8M parameters on 32x32 crops."""
    config = settings(arg)
    config.workdir = "runs/photos"
    config.data.update({"name": "photos", "size": 32, "channels": 3})
    config.model.update(
        {"base": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (1, 2), "head_dim": 32, "dropout": 0.1}
    )
    config.optim.update({"learning_rate": 5e-4, "warmup": 500})
    config.train.update({"steps": 20_000, "batch": 64, "checkpoint_every": 1000, "sample_every": 2000})
    config.sample.steps = 100
    return shrink(config) if arg == "smoke" else config
