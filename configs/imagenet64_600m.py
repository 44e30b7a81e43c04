"""ImageNet at 64x64 with the UNet of 600M parameters: FID 1.77 in AsyncPatch Diffusion (arXiv 2606.07079).

    python -m launch.train --config=configs/imagenet64_600m.py --config.data.path=TFDS_DIRECTORY

Data as for imagenet64_60m.py; the paper took 360 TPU v6e chip-hours. The batch fits 64 v6e chips; fewer or smaller ones
trade time for memory with `--config.model.remat=blocks` and `--config.optim.accumulate=4` (`python -m launch.compile`
tells before a chip is rented).

`--config=configs/imagenet64_600m.py:smoke` needs no ImageNet: it trains a shrunk network on 16x16 crops of the bundled
photographs, for seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs import imagenet64_60m


def get_config(arg: str = "") -> ConfigDict:
    """The 60M experiment with the large network."""
    config = imagenet64_60m.get_config(arg)
    config.workdir = config.workdir.replace("60m", "600m")
    if arg != "smoke":
        config.model.preset = "600M"
        config.optim.learning_rate = 1e-4
    return config
