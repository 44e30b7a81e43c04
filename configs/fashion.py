"""Fashion-MNIST at 16x16: small enough for two CPU cores, rich enough to tell methods apart.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb data
    python -m launch.train --config=configs/fashion.py --config.data.path=data/usr/share/datasets/fashion-mnist

The first line gets Debian's package (31 MB, MIT licence) and needs no root; docs/data.md says more.
`--config=configs/fashion.py:smoke` needs no files: it trains a shrunk network on the bundled digits, for seconds.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """The tiny UNet on pixels, one noise level per pixel: about an hour on two CPU cores."""
    config = settings(arg)
    config.workdir = "runs/fashion"
    # where the package puts its files if root installs it
    config.data.update({"name": "fashion_mnist", "path": "/usr/share/datasets/fashion-mnist", "size": 16})
    config.optim.update({"learning_rate": 2e-3, "ema": 0.998})
    config.train.update({"steps": 2700, "checkpoint_every": 300, "sample_every": 900, "log_every": 50})
    if arg == "smoke":
        config.data.update({"name": "digits", "path": ""})
        shrink(config)
    return config
