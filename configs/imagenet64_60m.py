"""ImageNet at 64x64 with the UNet of 60M parameters: the ablation of AsyncPatch Diffusion (arXiv 2606.07079).

    python -m launch.train --config=configs/imagenet64_60m.py --config.data.path=TFDS_DIRECTORY

The data set is TensorFlow Datasets' imagenet2012, prepared once as docs/data.md says: whole photographs, cropped to
their centre square and then resized, as the paper's are. (`--config.data.dataset=imagenet_resized/64x64` is smaller and
faster to read, and is other data: there whole photographs were squashed to a square.)

20,000 steps take at least 4.7 v6e chip-hours by the compiler's numbers (docs/pods.md); the paper's ablation took about
5. `--config=configs/imagenet64_60m.py:long` trains 500,000 steps, at least 118 chip-hours. Made for accelerators:
`--config=configs/imagenet64_60m.py:smoke` needs no ImageNet, and trains a shrunk network on 16x16 crops of the bundled
photographs, for seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """The settings that are published; learning rate, warm-up and steps are choices made here."""
    config = settings(arg, ("long", "smoke"))
    config.workdir = "runs/imagenet64_60m"
    config.data.update({"name": "tfds", "dataset": "imagenet2012", "size": 64, "channels": 3, "augment": "flip"})
    config.model.update({"preset": "60M", "norm": "rms", "dtype": "bfloat16", "scan": True})
    config.loss.bias = 2.0
    # what is averaged and what warms up are shares of a short run
    config.optim.update({"learning_rate": 2e-4, "schedule": "constant", "warmup": 1000, "ema": 0.9995})
    config.train.update(
        {"steps": 20_000, "batch": 2048, "checkpoint_every": 2000, "log_every": 100, "sample_every": 5000}
    )
    # the optimiser of all parameters on every chip would read and write as much as a third of a forward pass
    config.mesh.update({"data": 1, "fsdp": -1})
    # the published stochastic coefficient of .25 is about this eta, see docs/schedules.md
    config.sample.update({"steps": 250, "eta": 0.5})
    if arg == "long":
        lengthen(config)
    if arg == "smoke":
        config.data.update({"name": "photos", "dataset": "", "size": 16})
        shrink(config)
    return config


def lengthen(config: ConfigDict) -> ConfigDict:
    """A long run: its averages and its warm-up are those of the public configuration nearest to the paper's."""
    config.workdir += "_long"
    config.optim.update({"warmup": 10_000, "ema": 0.9999})
    config.train.update({"steps": 500_000, "checkpoint_every": 5000, "sample_every": 25_000})
    return config
