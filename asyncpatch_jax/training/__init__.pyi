from . import (
    checkpoints as checkpoints,
    elbo as elbo,
    grpo as grpo,
    loop as loop,
    losses as losses,
    perlin as perlin,
    policies as policies,
    step as step,
    supervised as supervised,
    times as times,
)
from .checkpoints import Checkpoints as Checkpoints
from .elbo import (
    Diagonal as Diagonal,
    Elbo as Elbo,
    RandomEnvironment as RandomEnvironment,
    Raster as Raster,
    bits_per_dim as bits_per_dim,
)
from .loop import fit as fit
from .losses import SiD2 as SiD2, Uniform as Uniform, Weight as Weight, drop_labels as drop_labels, loss as loss
from .policies import Policy as Policy
from .step import (
    TrainState as TrainState,
    adam as adam,
    create as create,
    jit_step as jit_step,
    learning_rate as learning_rate,
    train_step as train_step,
)
from .stored import DamagedError as DamagedError
from .supervised import supervised_loss as supervised_loss
from .times import (
    RAD as RAD,
    AsyncPatch as AsyncPatch,
    Independent as Independent,
    LogitNormalTruncated as LogitNormalTruncated,
    Patchwise as Patchwise,
    Perlin as Perlin,
    Synchronous as Synchronous,
    TimeSampler as TimeSampler,
    UniformMean as UniformMean,
)
