"""Every setting with its default. The experiments beside this file and the command line change some.

None means: the preset's, or the class's own default.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def settings(arg: str = "") -> ConfigDict:
    """The defaults. An experiment passes its own argument through here, so that all refuse an unknown one alike.

    Raises:
        ValueError: `arg` is neither empty nor "smoke".
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"expected no argument or :smoke after the configuration's name, got :{arg}")
    config = ConfigDict()
    config.seed = 0
    config.workdir = "runs/run"  # everything a run writes goes here; a run that is there continues

    config.data = data = ConfigDict()
    data.name = "digits"  # digits, photos, folder, tfds
    data.path = ""  # folder: the directory; tfds: its data_dir
    data.dataset = ""  # tfds: e.g. imagenet_resized/64x64
    data.split = "train"
    data.size = 8  # images are size x size
    data.channels = 1
    data.augment = "none"  # none, flip
    data.on_error = "raise"  # folder: raise, or skip what is no readable image
    data.max_pixels = 89_478_485  # folder, tfds: larger images are refused, as they may be decompression bombs

    config.model = model = ConfigDict()
    model.name = "unet"  # unet, dit
    model.preset = "tiny"  # unet: tiny, 60M, 600M; dit: tiny, S/2 ... XL/8
    model.dtype = "float32"  # compute: float32, bfloat16; parameters are float32 always
    model.log_variance = True  # predict its own uncertainty too
    model.dropout = placeholder(float)
    model.remat = "none"  # none; products or blocks: less memory, more arithmetic
    model.scan = False
    model.base = placeholder(int)  # from here to norm: unet only
    model.multipliers = placeholder(tuple)
    model.blocks = placeholder(int)
    model.attention = placeholder(tuple)
    model.head_dim = placeholder(int)
    model.norm = placeholder(str)
    model.patch = placeholder(int)  # from here on: dit only
    model.width = placeholder(int)
    model.depth = placeholder(int)
    model.heads = placeholder(int)
    model.mlp_ratio = placeholder(int)

    config.process = "rectified_flow"  # rectified_flow, cosine, discrete
    config.kind = "velocity"  # what the network predicts: x0, eps, v, velocity

    config.times = times = ConfigDict()
    times.name = "asyncpatch"  # synchronous, independent, patchwise, perlin, uniform_mean, logit_normal_truncated
    times.grid = ()  # cells of a training field: (rows, columns), or () for one per pixel
    times.distribution = placeholder(str)  # asyncpatch, synchronous: uniform, logit_normal
    times.loc = placeholder(float)
    times.scale = placeholder(float)
    times.spread = placeholder(tuple)  # asyncpatch
    times.base = placeholder(str)  # asyncpatch
    times.sharpness = placeholder(float)  # uniform_mean

    config.loss = loss = ConfigDict()
    loss.weight = "sid2"  # uniform, sid2
    loss.bias = 0.0  # sid2: a larger bias weighs cleaner cells more
    loss.uncertainty = 0.01  # weight of the log-variance head's likelihood
    loss.label_dropout = 0.1  # share of images trained without their class, for classifier-free guidance

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-3
    optim.schedule = "cosine"  # after the warm-up: constant, cosine (to 0 at the last step), rsqrt
    optim.warmup = 100
    optim.b1 = 0.9
    optim.b2 = 0.99
    optim.clip = 1.0  # of the gradient's global norm; 0: none
    optim.ema = 0.999
    optim.accumulate = 1  # parts that a batch is split in, to save memory
    optim.only = ""  # log_variance: train that head alone and leave the rest as it is

    config.train = train = ConfigDict()
    train.steps = 3000
    train.batch = 128
    train.init = ""  # begin with the averaged parameters of the run in this folder
    train.checkpoint_every = 500
    train.log_every = 50
    train.sample_every = 1000  # pictures, then and at the end; 0: none at all
    train.keep = 3  # checkpoints
    train.fall_back = True  # go on from the newest whole checkpoint if the newest is damaged; False: refuse

    config.mesh = mesh = ConfigDict()  # sizes multiply to the number of devices; one may be -1: what the others leave
    mesh.data = -1  # copies of the network, each on its part of the batch
    mesh.fsdp = 1  # parts of each copy; the batch is spread over them too
    mesh.tensor = 1  # parts of each layer

    config.sample = sample = ConfigDict()
    sample.solver = "ddim"  # ddim, ddpm, euler, heun, dpm2m
    sample.eta = 0.0  # ddim: share of fresh noise
    sample.steps = 50
    sample.grid = "linear"  # linear, shifted, cosine, logsnr
    sample.shift = 3.0  # shifted
    sample.guidance = 1.0  # classifier-free; 1: none
    sample.input_guidance = 0.0
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """The `:smoke` variant of an experiment: another folder, a network of a few thousand weights, eight steps."""
    config.workdir += "_smoke"
    config.model.update(
        {"preset": "tiny", "base": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 8}
    )
    config.optim.update({"warmup": 1, "learning_rate": 1e-3, "accumulate": 1})
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    config.train.update({"steps": 8, "batch": 8, "checkpoint_every": 4, "log_every": 2})
    config.sample.steps = 4
    return config
