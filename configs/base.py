"""Every setting of `launch.train` with its default. The experiments beside this file and the command line change some.

None means: the preset's, or the class's own default. The remark behind a setting is what `--help` says of it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def common(arg: str, workdir: str, known: tuple[str, ...] = ("smoke",)) -> ConfigDict:
    """What the settings of all trainings have. An experiment's own argument comes here, so that all refuse alike.

    Raises:
        ValueError: `arg` is neither empty nor known.
    """
    if arg and arg not in known:
        raise ValueError(f"expected no argument or :{' or :'.join(known)} after the configuration's name, got :{arg}")
    config = ConfigDict()
    config.seed = 0  # of all that is drawn
    config.workdir = workdir  # everything a run writes goes here; a run that is there continues

    config.mesh = mesh = ConfigDict()  # sizes multiply to the number of devices; one may be -1: what the others leave
    mesh.data = -1  # copies of the network, each on its part of the batch; -1: as many as the devices allow
    mesh.fsdp = 1  # parts of each copy; the batch is spread over them too
    mesh.tensor = 1  # parts of each layer

    config.train = train = ConfigDict()
    train.keep = 3  # checkpoints that are kept, the newest ones
    train.fall_back = True  # go on from the newest whole checkpoint if the newest is damaged; False: refuse
    return config


def settings(arg: str = "", known: tuple[str, ...] = ("smoke",)) -> ConfigDict:
    """The defaults.

    Raises:
        ValueError: `arg` is neither empty nor known.
    """
    config = common(arg, "runs/run", known)

    config.data = data = ConfigDict()
    data.name = "digits"  # digits, photos, mnist_digits, fashion_mnist, idx, folder, tfds, captions, scenes
    data.path = ""  # folder, fashion_mnist, idx: the directory; tfds: its data_dir; captions: folder, table, archive
    data.text = ""  # captions: the column of texts, if several may be; tfds: the feature of texts
    data.picture = ""  # captions: the column of pictures, if several may be
    data.root = ""  # captions: the folder that a table's paths begin in; the table's own
    data.dataset = ""  # tfds: e.g. imagenet2012; idx: what its files' names begin with, e.g. emnist-letters-
    data.split = "train"  # which part of the data set; a folder has no other
    data.size = 8  # side of the images in pixels
    data.channels = 1  # 1: grey, 3: colour
    data.augment = "none"  # none; flip: mirrored, or not, at random
    data.on_error = "raise"  # folder: raise, or skip what is no readable image
    data.autoencoder = ""  # folder of one, to train on its latents; size and channels above are those of images then
    data.latents = ""  # "": images themselves; a folder that launch.encode fills; online: encoded while it trains
    data.factor = placeholder(int)  # latents: pixels to a side of a cell; the autoencoder's
    data.latent_channels = placeholder(int)  # latents: their channels; the autoencoder's
    data.max_pixels = 89_478_485  # folder, tfds: larger images are refused, as they may be decompression bombs

    config.model = model = ConfigDict()
    model.name = "unet"  # unet, dit
    model.preset = "tiny"  # unet: tiny, 60M, 600M; dit: tiny, S/2 ... XL/8
    model.dtype = "float32"  # compute: float32, bfloat16; parameters are float32 always
    model.log_variance = True  # predict its own uncertainty too
    model.dropout = placeholder(float)  # share of features dropped in training
    model.radians = placeholder(float)  # that time features turn from t = 0 to 1; above 8 fields of pixels cost more
    model.mean_of = placeholder(str)  # modulations, times: which of them a coarser level is told the mean of
    model.remat = "none"  # none; products or blocks: less memory, more arithmetic
    model.scan = False  # loop over equal blocks: compiles faster, and is slow on CPUs
    model.base = placeholder(int)  # unet: width of the first level
    model.multipliers = placeholder(tuple)  # unet: widths of the levels, in multiples of base
    model.blocks = placeholder(int)  # unet: residual blocks a level
    model.attention = placeholder(tuple)  # unet: levels with attention, 0 the finest
    model.head_dim = placeholder(int)  # unet: width of an attention head
    model.norm = placeholder(str)  # unet: group, rms
    model.patch = placeholder(int)  # dit: side of a token in pixels
    model.width = placeholder(int)  # dit: of the tokens
    model.depth = placeholder(int)  # dit: number of layers
    model.heads = placeholder(int)  # dit: of attention
    model.mlp_ratio = placeholder(int)  # dit: width of the hidden layers, in widths

    config.text = text = ConfigDict()  # a network that is told what an image shows
    text.encoder = ""  # folder of CLIP's, T5's or BERT's, which reads the texts and does not learn; none: no texts
    text.tokenizer = ""  # its folder, if it lies neither in the encoder's nor beside it
    text.length = placeholder(int)  # tokens of a text; as many as the encoder takes
    text.width = placeholder(int)  # of its vectors; the encoder's
    text.digest = placeholder(str)  # hash of its weights; the encoder's

    config.supervised = supervised = ConfigDict()  # a network that is shown what is known of an image, and fills holes
    supervised.masks = placeholder(str)  # holes to learn from, such as square,thin,wide; none: an ordinary network
    supervised.whole = placeholder(float)  # share of images that are all hole, so that it makes whole ones too; .1

    config.process = "rectified_flow"  # rectified_flow, cosine, discrete
    config.kind = "velocity"  # what the network predicts: x0, eps, v, velocity

    config.times = times = ConfigDict()
    times.name = "asyncpatch"  # synchronous, independent, patchwise, perlin, rad, uniform_mean, logit_normal_truncated
    times.grid = ()  # cells of a training field: (rows, columns), or () for one per pixel
    times.distribution = placeholder(str)  # asyncpatch, synchronous: uniform, logit_normal
    times.loc = placeholder(float)  # logit_normal, logit_normal_truncated: where times lie, before the sigmoid
    times.scale = placeholder(float)  # logit_normal, logit_normal_truncated: how far they spread
    times.spread = placeholder(tuple)  # asyncpatch: least and most spread within an image, 0 ... 1
    times.ends = placeholder(tuple)  # asyncpatch: shares of images with no spread and with all of it; others: spread
    times.base = placeholder(str)  # asyncpatch: uniform, two_level, mixed
    times.share = placeholder(float)  # rad: of its clock, in which the region is noised; the rest is after that
    times.sharpness = placeholder(float)  # uniform_mean: larger keeps cells closer to the mean; above .5

    config.loss = loss = ConfigDict()
    loss.weight = "sid2"  # uniform, sid2
    loss.bias = 0.0  # sid2: a larger bias weighs cleaner cells more
    loss.uncertainty = 0.01  # weight of the log-variance head's likelihood
    loss.label_dropout = 0.1  # share of images trained without their class or text, for classifier-free guidance

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-3  # after the warm-up, of Adam
    optim.schedule = "cosine"  # after the warm-up: constant, cosine (to 0 at the last step), rsqrt
    optim.warmup = 100  # steps in which the learning rate rises from 0
    optim.b1 = 0.9  # decay of the mean of gradients
    optim.b2 = 0.99  # decay of the mean of their squares
    optim.clip = 1.0  # of the gradient's global norm; 0: none
    optim.ema = 0.999  # decay of the averaged parameters, which images are made with
    optim.accumulate = 1  # parts that a batch is split in, to save memory
    optim.only = ""  # ""; log_variance: train that head alone and leave the rest as it is

    train = config.train
    train.steps = 3000  # in all
    train.batch = 128  # images a step
    train.init = ""  # begin with the averaged parameters of the run in this folder
    train.checkpoint_every = 500  # steps
    train.log_every = 50  # steps
    train.sample_every = 1000  # steps; pictures then and at the end; 0: none at all

    config.sample = sample = ConfigDict()
    sample.solver = "ddim"  # ddim, ddpm, euler, heun, dpm2m
    sample.eta = 0.0  # ddim: share of fresh noise
    sample.steps = 50  # calls of the network (heun: twice as many)
    sample.grid = "linear"  # linear, shifted, cosine, logsnr
    sample.shift = 3.0  # shifted: more than 1 spends more steps at high noise
    sample.guidance = 1.0  # classifier-free; 1: none
    sample.input_guidance = 0.0  # towards what is known of an image, in inpainting; 0: none
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """The `:smoke` variant of an experiment: another folder, a network of a few thousand weights, eight steps."""
    config.workdir += "_smoke"
    if config.data.name in ("folder", "photos"):
        config.data.size = min(config.data.size, 16)
    config.model.update(
        {"preset": "tiny", "base": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 8}
    )
    config.optim.update({"warmup": 1, "learning_rate": 1e-3, "accumulate": 1})
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    config.train.update({"steps": 8, "batch": 8, "checkpoint_every": 4, "log_every": 2})
    config.sample.steps = 4
    return config
