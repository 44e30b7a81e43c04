"""ImageNet at 256x256 with DiT-XL/2 (Peebles & Xie 2023, arXiv 2212.09748) on latents of 32x32x4.

    python -m launch.encode --config=configs/imagenet256_dit_xl2.py --config.data.path=TFDS_DIRECTORY
    python -m launch.train --config=configs/imagenet256_dit_xl2.py

Their autoencoder is stabilityai/sd-vae-ft-ema: `hf download stabilityai/sd-vae-ft-ema` fetches it, a run does not. Any
other of 8 pixels to a cell and 4 channels will do: `--config.data.autoencoder=FOLDER`.

`--config=configs/imagenet256_dit_xl2.py:smoke` goes through it on 32x32 crops of the bundled photographs, in a few
minutes on a CPU:

    python -m launch.train_autoencoder --config=configs/autoencoder_f8.py:smoke
    python -m launch.encode --config=configs/imagenet256_dit_xl2.py:smoke --num=64
    python -m launch.train --config=configs/imagenet256_dit_xl2.py:smoke
    python -m launch.sample --config=configs/imagenet256_dit_xl2.py:smoke --num=8 --out=runs/imagenet256_dit_made
"""

from ml_collections import ConfigDict

from configs.base import settings
from configs.imagenet256_unet_600m import smoke


def get_config(arg: str = "") -> ConfigDict:
    """Batch, learning rate and average as in the paper; its 7M steps; the process and times of this library."""
    config = settings(arg)
    config.workdir = "runs/imagenet256_dit_xl2"
    config.data.update({"name": "tfds", "dataset": "imagenet2012", "size": 256, "channels": 3, "augment": "flip"})
    config.data.update({"autoencoder": "stabilityai/sd-vae-ft-ema", "latents": "runs/imagenet256_sd_latents"})
    config.data.update({"factor": 8, "latent_channels": 4})
    config.model.update({"name": "dit", "preset": "XL/2", "dtype": "bfloat16", "scan": True, "remat": "blocks"})
    config.optim.update({"learning_rate": 1e-4, "schedule": "constant", "warmup": 0, "b2": 0.999, "ema": 0.9999})
    config.train.update(
        {"steps": 7_000_000, "batch": 256, "checkpoint_every": 5000, "log_every": 100, "sample_every": 50_000}
    )
    # 675M parameters with their average and Adam's moments are 10.8 GB: too much for one v5e chip beside activations
    config.mesh.update({"data": 1, "fsdp": -1})
    if arg == "smoke":
        smoke(config, "imagenet256_dit", "f8")
        config.model.update({"base": None, "multipliers": None, "blocks": None, "attention": None, "head_dim": None})
        config.model.update({"width": 32, "depth": 2, "heads": 2})
    return config
