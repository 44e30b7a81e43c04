"""Your own images: any directory, class = subdirectory, any sizes and modes.

    python -m launch.train --config=configs/folder.py --config.data.path=DIRECTORY

Made for a GPU; `--config.data.size=32 --config.model.base=32` suits a CPU. Files that are no images stop it with their
names; `--config.data.on_error=skip` goes on without them.

    python -m launch.train --config=configs/folder.py:smoke --config.data.path=DIRECTORY

reads the directory and trains a very small network for seconds.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """A UNet on 64x64 centre squares."""
    config = settings(arg)
    config.workdir = "runs/folder"
    config.data.update({"name": "folder", "size": 64, "channels": 3, "augment": "flip"})
    config.model.update(
        {"base": 64, "multipliers": (1, 2, 3), "blocks": 2, "attention": (2,), "head_dim": 64, "dropout": 0.1}
    )
    config.optim.update({"learning_rate": 3e-4, "warmup": 1000, "ema": 0.9995})
    config.train.update({"steps": 50_000, "batch": 64, "checkpoint_every": 1000, "sample_every": 5000})
    config.sample.steps = 100
    return shrink(config) if arg == "smoke" else config
