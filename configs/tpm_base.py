"""Every setting of `launch.train_tpm` with its default. The experiments beside this file and flags change some.

None means: as the denoiser's folder suggests. The remark behind a setting is what `--help` says of it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.base import common


def settings(arg: str = "") -> ConfigDict:
    """The defaults, which are the paper's (AsyncDiff, arXiv 2512.18675; SD3.5) where it has them.

    Raises:
        ValueError: `arg` is neither empty nor "smoke".
    """
    config = common(arg, "runs/tpm")
    config.denoiser = ""  # folder of a run of launch.train with classes, or a text-to-image folder
    config.prompts = ""  # file of prompts; of a run, "" for all its classes
    config.prompts_sample = placeholder(int)  # so many of the file, drawn by prompts_seed; None: all
    config.prompts_seed = 42  # which ones, the same as --sample_seed of other commands
    config.rewards = ""  # NAME, NAME=FOLDER or MODULE:FUNCTION, each with *WEIGHT if it is not 1; separated by commas

    config.sample = sample = ConfigDict()  # how images are made
    sample.steps = placeholder(int)  # calls of the denoiser
    sample.guidance = placeholder(float)  # classifier-free; 1: none
    sample.solver = placeholder(str)  # ddim, ddpm, euler, heun, dpm2m
    sample.size = placeholder(int)  # of text-to-image folders, in pixels

    config.policy = policy = ConfigDict()
    policy.patch = 4  # side of the module's tokens, in latents
    policy.width = 256  # of its tokens
    policy.depth = 4  # layers
    policy.heads = 4  # of attention
    policy.global_tokens = 4  # which the deviation is read from
    policy.cell = placeholder(int)  # side, in patches, of cells with a deviation of their own; None: one an image
    policy.gain = 1.0  # 1: deviations of half a step; 2: the lifted bound, a whole step
    policy.space = "time"  # time: that the network is told; velocity: that images move with

    config.grpo = grpo = ConfigDict()
    grpo.prompts = 1  # of an iteration
    grpo.noises = 16  # of each prompt, a group
    grpo.draws = 1  # of each noise; several are compared with each other, which takes out the noise's share
    grpo.minibatch = 4  # images a step of the optimizer
    grpo.passes = 1  # over an iteration's images
    grpo.clip = 0.2  # how far the ratio of probabilities counts from 1
    grpo.kl = 0.0  # weight of the divergence from the start

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-5  # of Adam
    optim.b1 = 0.9  # decay of the mean of gradients
    optim.b2 = 0.99  # decay of the mean of their squares
    optim.clip = 1.0  # of the gradient's global norm

    train = config.train
    train.steps = 4000  # iterations in all
    train.checkpoint_every = 100  # iterations
    train.log_every = 10  # iterations
    train.sample_every = 500  # iterations; pages with the policy's deviations and rewards, then and at the end; 0: none
    train.held_out = 64  # images that those pages are about
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """The `:smoke` variant: another folder, a tiny module, four iterations."""
    config.workdir += "_smoke"
    config.policy.update({"width": 16, "depth": 1, "heads": 2, "global_tokens": 2})
    config.grpo.update({"noises": 4})
    config.train.update({"steps": 4, "checkpoint_every": 2, "log_every": 2, "sample_every": 4, "held_out": 8})
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    return config
