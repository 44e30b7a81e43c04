"""ImageNet at 256x256 with the UNet of 600M parameters on latents of 32x32x4: Table 2 of arXiv 2606.07079.

    python -m launch.train_autoencoder --config=configs/autoencoder_f8.py --config.data.path=TFDS_DIRECTORY
    python -m launch.encode --config=configs/imagenet256_unet_600m.py --config.data.path=TFDS_DIRECTORY
    python -m launch.train --config=configs/imagenet256_unet_600m.py

The first makes the autoencoder, localised by masks as the paper's; any other of 8 pixels to a cell and 4 channels will
do (`--config.data.autoencoder=FOLDER`, such as Stable Diffusion's). The second keeps the latents of all images and of
their mirrors in files: 21 GB. Without them, `--config.data.latents=online --config.data.path=TFDS_DIRECTORY` encodes
while it trains.

300,000 steps take at least 159 v6e chip-hours by the compiler's numbers (docs/pods.md); the paper's network took 192:
so many steps fit if the chips do 83 % of what the compiler counts.

`--config=configs/imagenet256_unet_600m.py:smoke` goes through all of it on 32x32 crops of the bundled photographs, in
a few minutes on a CPU:

    python -m launch.train_autoencoder --config=configs/autoencoder_f8.py:smoke
    python -m launch.encode --config=configs/imagenet256_unet_600m.py:smoke --num=64
    python -m launch.train --config=configs/imagenet256_unet_600m.py:smoke
    python -m launch.sample --config=configs/imagenet256_unet_600m.py:smoke --num=8 --out=runs/imagenet256_made
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """The settings of the 600M network in pixels, on latents."""
    config = settings(arg)
    config.workdir = "runs/imagenet256_unet_600m"
    config.data.update({"name": "tfds", "dataset": "imagenet2012", "size": 256, "channels": 3, "augment": "flip"})
    config.data.update({"autoencoder": "runs/autoencoder_f8/autoencoder", "latents": "runs/imagenet256_latents"})
    config.data.update({"factor": 8, "latent_channels": 4})
    config.model.update({"preset": "600M", "norm": "rms", "dtype": "bfloat16", "scan": True})
    config.loss.bias = 2.0
    config.optim.update({"learning_rate": 1e-4, "schedule": "constant", "warmup": 10_000, "ema": 0.9999})
    config.train.update(
        {"steps": 300_000, "batch": 2048, "checkpoint_every": 5000, "log_every": 100, "sample_every": 25_000}
    )
    config.mesh.update({"data": 1, "fsdp": -1})
    # the published stochastic coefficient of .25 is about this eta, see docs/schedules.md
    config.sample.update({"steps": 250, "eta": 0.5})
    return smoke(config, "imagenet256", "f8") if arg == "smoke" else config


def smoke(config: ConfigDict, name: str, autoencoder: str) -> ConfigDict:
    """The `:smoke` variant of a network on latents, by that of its autoencoder, which takes larger crops."""
    config.data.update({"name": "photos", "dataset": "", "latents": f"runs/{name}_latents_smoke"})
    config.data.autoencoder = f"runs/autoencoder_{autoencoder}_smoke/autoencoder"
    shrink(config)
    config.data.size = 32
    return config
