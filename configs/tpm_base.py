"""Every setting of `launch.train_tpm` with its default. The experiments beside this file and flags change some.

None means: as the denoiser's folder suggests.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def settings(arg: str = "") -> ConfigDict:
    """The defaults, which are the paper's (AsyncDiff, arXiv 2512.18675; SD3.5) where it has them.

    Raises:
        ValueError: `arg` is neither empty nor "smoke".
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"expected no argument or :smoke after the configuration's name, got :{arg}")
    config = ConfigDict()
    config.seed = 0
    config.workdir = "runs/tpm"  # everything a training writes goes here; a training that is there continues
    config.denoiser = ""  # folder of a run of launch.train with classes, or a text-to-image folder
    config.prompts = ""  # file of prompts; of a run, "" for all its classes
    config.rewards = ""  # NAME, NAME=FOLDER or MODULE:FUNCTION, each with *WEIGHT if it is not 1; separated by commas

    config.sample = sample = ConfigDict()  # how images are made
    sample.steps = placeholder(int)
    sample.guidance = placeholder(float)
    sample.solver = placeholder(str)
    sample.size = placeholder(int)  # of text-to-image folders, in pixels

    config.policy = policy = ConfigDict()
    policy.patch = 4
    policy.width = 256
    policy.depth = 4
    policy.heads = 4
    policy.global_tokens = 4
    policy.cell = placeholder(int)  # side, in patches, of cells with a deviation of their own; None: one an image
    policy.gain = 1.0  # 1: deviations of half a step; 2: the lifted bound, a whole step
    policy.space = "time"  # that the network is told, or the "velocity" that images move with

    config.grpo = grpo = ConfigDict()
    grpo.prompts = 1  # of an iteration
    grpo.noises = 16  # of each prompt, a group
    grpo.draws = 1  # of each noise; several are compared with each other, which takes out the noise's share
    grpo.minibatch = 4
    grpo.passes = 1
    grpo.clip = 0.2
    grpo.kl = 0.0  # weight of the divergence from the start

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-5
    optim.b1 = 0.9
    optim.b2 = 0.99
    optim.clip = 1.0  # of the gradient's global norm

    config.train = train = ConfigDict()
    train.steps = 4000  # iterations
    train.checkpoint_every = 100
    train.log_every = 10
    train.sample_every = 500  # pages with the policy's deviations and rewards, then and at the end; 0: none
    train.held_out = 64  # images that those pages are about
    train.keep = 3
    train.fall_back = True  # as in base.py

    config.mesh = mesh = ConfigDict()  # as in base.py
    mesh.data = -1
    mesh.fsdp = 1
    mesh.tensor = 1
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """The `:smoke` variant: another folder, a tiny module, four iterations."""
    config.workdir += "_smoke"
    config.policy.update({"width": 16, "depth": 1, "heads": 2, "global_tokens": 2})
    config.grpo.update({"noises": 4})
    config.train.update({"steps": 4, "checkpoint_every": 2, "log_every": 2, "sample_every": 4, "held_out": 8})
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    return config
