"""ImageNet at 64x64 with the UNet of 600M parameters: FID 1.77 in AsyncPatch Diffusion (arXiv 2606.07079).

    python -m launch.train --config=configs/imagenet64_600m.py --config.data.path=TFDS_DIRECTORY

Data as for imagenet64_60m.py. 200,000 steps take at least 304 v6e chip-hours by the compiler's numbers (docs/pods.md),
the paper took 360: so many steps fit if the chips do 84 % of what the compiler counts.
`--config=configs/imagenet64_600m.py:long` trains 500,000 steps, at least 759 chip-hours. The batch fits 64 v6e chips;
fewer or smaller ones trade time for memory with `--config.model.remat=blocks` and `--config.optim.accumulate=4`
(`python -m launch.compile` tells before a chip is rented).

`--config=configs/imagenet64_600m.py:smoke` needs no ImageNet: it trains a shrunk network on 16x16 crops of the bundled
photographs, for seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs import imagenet64_60m


def get_config(arg: str = "") -> ConfigDict:
    """The large network, for as many steps as the paper's chip-hours allow."""
    # what is averaged and what warms up are those of a long run
    config = imagenet64_60m.get_config("long" if arg == "" else arg)
    if arg == "":
        config.workdir = "runs/imagenet64_60m"
        config.train.steps = 200_000
    config.workdir = config.workdir.replace("60m", "600m")
    if arg != "smoke":
        config.model.preset = "600M"
        config.optim.learning_rate = 1e-4
    return config
