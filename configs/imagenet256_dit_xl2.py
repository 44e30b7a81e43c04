"""ImageNet at 256x256 with DiT-XL/2 (Peebles & Xie 2023, arXiv 2212.09748) on latents of 32x32x4.

    python -m launch.train --config=configs/imagenet256_dit_xl2.py --config.data.path=TFDS_DIRECTORY

There is no autoencoder here yet that makes the latents, and sources read images of one or three channels only: so the
command above stops with a message, and what works today is to compile it (docs/performance.md),

    python -m launch.compile --config=configs/imagenet256_dit_xl2.py --topology=v5e:4x4

and `--config=configs/imagenet256_dit_xl2.py:smoke`, which trains a shrunk network on 16x16 crops of the bundled
photographs, for seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """Batch, learning rate and average as in the paper; its 7M steps; the process and times of this library."""
    config = settings(arg)
    config.workdir = "runs/imagenet256_dit_xl2"
    config.data.update({"name": "tfds", "dataset": "imagenet2012", "size": 32, "channels": 4})
    config.model.update({"name": "dit", "preset": "XL/2", "dtype": "bfloat16", "scan": True, "remat": "blocks"})
    config.optim.update({"learning_rate": 1e-4, "schedule": "constant", "warmup": 0, "b2": 0.999, "ema": 0.9999})
    config.train.update(
        {"steps": 7_000_000, "batch": 256, "checkpoint_every": 5000, "log_every": 100, "sample_every": 50_000}
    )
    # 675M parameters with their average and Adam's moments are 10.8 GB: too much for one v5e chip beside activations
    config.mesh.update({"data": 1, "fsdp": -1})
    if arg == "smoke":
        config.data.update({"name": "photos", "dataset": "", "size": 16, "channels": 3})
        shrink(config)
        config.model.update({"base": None, "multipliers": None, "blocks": None, "attention": None, "head_dim": None})
        config.model.update({"width": 32, "depth": 2, "heads": 2})
    return config
