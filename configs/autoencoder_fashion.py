"""The localised autoencoder of Fashion-MNIST at 32x32, to latents of 8x8x3: minutes on a GPU, an hour or two on a CPU.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb data
    python -m launch.train_autoencoder --config=configs/autoencoder_fashion.py \
        --config.data.path=data/usr/share/datasets/fashion-mnist

`--config=configs/autoencoder_fashion.py:smoke` needs no files: it trains a shrunk network on the bundled digits, for
seconds.
"""

from ml_collections import ConfigDict

from configs.autoencoder_base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """The preset for 32x32. No perceptual loss, whose networks know photographs; a discriminator from half way on."""
    config = settings(arg)
    config.workdir = "runs/autoencoder_fashion"
    # where the package puts its files if root installs it
    config.data.update(
        {"name": "fashion_mnist", "path": "/usr/share/datasets/fashion-mnist", "size": 32, "channels": 1}
    )
    config.model.update({"preset": "tiny"})
    config.loss.update({"adversarial": 0.1, "start": 2000})
    config.discriminator.update({"width": 32, "layers": 2})
    config.optim.update({"learning_rate": 1e-3, "schedule": "cosine", "b1": 0.9, "b2": 0.99, "clip": 1.0})
    config.train.update({"steps": 4000, "batch": 64, "checkpoint_every": 500, "sample_every": 1000})
    if arg == "smoke":
        config.data.update({"name": "digits", "path": ""})
        shrink(config)
    return config
