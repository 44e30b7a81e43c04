r"""LSUN bedrooms at 256x256 with the UNet of 600M parameters on latents of 64x64x3 (AsyncPatch, arXiv 2606.07079).

    python -m launch.train_autoencoder --config=configs/autoencoder_f4.py --config.data.dataset=lsun/bedroom \
        --config.data.path=TFDS_DIRECTORY --config.workdir=runs/autoencoder_bedroom
    python -m launch.encode --config=configs/lsun_bedroom_unet_600m.py --config.data.path=TFDS_DIRECTORY
    python -m launch.train --config=configs/lsun_bedroom_unet_600m.py

As configs/imagenet256_unet_600m.py, which says more, but for the autoencoder: 4 pixels to a side of a cell, as latent
diffusion (arXiv 2112.10752) has it for these pictures. Latents of the 3 million with their mirrors are 150 GB. A step
costs what one of configs/imagenet64_600m.py costs, whose pixels are as many: 100,000 take at least 152 v6e chip-hours.

`--config=configs/lsun_bedroom_unet_600m.py:smoke` needs no bedrooms:

    python -m launch.train_autoencoder --config=configs/autoencoder_f4.py:smoke
    python -m launch.encode --config=configs/lsun_bedroom_unet_600m.py:smoke --num=64
    python -m launch.train --config=configs/lsun_bedroom_unet_600m.py:smoke
    python -m launch.sample --config=configs/lsun_bedroom_unet_600m.py:smoke --num=8 --out=runs/bedrooms_made
"""

from ml_collections import ConfigDict

from configs import imagenet256_unet_600m


def get_config(arg: str = "") -> ConfigDict:
    """The settings of ImageNet's network, without classes."""
    config = imagenet256_unet_600m.get_config("" if arg == "smoke" else arg)
    config.workdir = "runs/lsun_bedroom_unet_600m"
    config.train.steps = 100_000
    config.data.update({"dataset": "lsun/bedroom", "factor": 4, "latent_channels": 3})
    config.data.update({"autoencoder": "runs/autoencoder_bedroom/autoencoder", "latents": "runs/bedroom_latents"})
    return imagenet256_unet_600m.smoke(config, "bedroom", "f4") if arg == "smoke" else config
