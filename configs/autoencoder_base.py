"""Every setting of `launch.train_autoencoder` with its default. The experiments beside this file and flags change some.

None means: the preset's. The remark behind a setting is what `--help` says of it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.base import common


def settings(arg: str = "") -> ConfigDict:
    """The defaults: VQGAN's losses (arXiv 2012.09841) with the weights of LDM's vq-f4 (arXiv 2112.10752).

    Raises:
        ValueError: `arg` is neither empty nor "smoke".
    """
    config = common(arg, "runs/autoencoder")

    config.data = data = ConfigDict()
    data.name = "photos"  # digits, photos, mnist_digits, fashion_mnist, idx, folder, tfds
    data.path = ""  # folder, fashion_mnist, idx: the directory; tfds: its data_dir
    data.dataset = ""  # tfds: e.g. imagenet2012; idx: what its files' names begin with, e.g. emnist-letters-
    data.split = "train"  # which part of the data set; a folder has no other
    data.size = 256  # side of the images in pixels
    data.channels = 3  # 1: grey, 3: colour
    data.augment = "none"  # none; flip: mirrored, or not, at random
    data.on_error = "raise"  # folder: raise, or skip what is no readable image
    data.max_pixels = 89_478_485  # folder, tfds: larger images are refused, as they may be decompression bombs

    config.masks = masks = ConfigDict()  # shares of the images with holes of a kind; what they leave to 1 has none
    masks.thin = 0.125  # LaMa's thin strokes
    masks.medium = 0.125  # LaMa's medium ones
    masks.wide = 0.125  # LaMa's wide ones
    masks.square = 0.125  # half the side, anywhere
    masks.extrema = 0.125  # all but such a square
    masks.half = 0.125  # the right half

    config.model = model = ConfigDict()
    model.preset = "f4"  # tiny (32x32), f4, f8
    model.dtype = "float32"  # compute: float32, bfloat16; parameters are float32 always
    model.remat = "none"  # none; products or blocks: less memory, more arithmetic
    model.latent_channels = placeholder(int)  # of a cell
    model.codes = placeholder(int)  # in the codebook
    model.lookup = placeholder(str)  # l2: the nearest code; cosine: that of the smallest angle
    model.base = placeholder(int)  # width of the first level
    model.multipliers = placeholder(tuple)  # widths of the levels, in multiples of base; each halves the resolution
    model.blocks = placeholder(int)  # residual blocks of a decoder's level
    model.encoder_blocks = placeholder(int)  # of an encoder's
    model.windows = placeholder(tuple)  # sides of an encoder's convolutions, level by level: how far a cell sees
    model.norm = placeholder(str)  # rms: of each position alone; group: of whole images
    model.attention = placeholder(str)  # none; decoder or both: which halves attend over their coarsest level
    model.head_dim = placeholder(int)  # width of an attention head
    model.told = placeholder(bool)  # whether blocks are told the mask

    config.loss = loss = ConfigDict()
    loss.lpips = ""  # folder of an LPIPS that launch.convert_metric made; "": no perceptual loss
    loss.perceptual = 1.0  # its weight, against 1 of the mean absolute difference
    loss.codebook = 1.0  # weight of what pulls codes to latents; of no account with means
    loss.commitment = 0.25  # weight of what pulls latents to their codes
    loss.means = False  # codes are running means of their latents instead of learning by gradient
    loss.decay = 0.99  # of these means, and of how much each code is used
    loss.restart = 0.01  # share of its fair use below which a code begins again; 0: never
    loss.adversarial = 0.75  # weight of the discriminator's loss on top of the adaptive one; 0: no discriminator
    loss.start = 0  # step at which the discriminator begins

    config.discriminator = discriminator = ConfigDict()
    discriminator.width = 64  # of its first layer
    discriminator.layers = 3  # that halve the resolution; 3 see patches of 70 pixels, 2 of 34, 1 of 16

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-4  # after the warm-up, of Adam, for both networks
    optim.schedule = "constant"  # after the warm-up: constant, cosine (to 0 at the last step), rsqrt
    optim.warmup = 100  # steps in which the learning rate rises from 0
    optim.b1 = 0.5  # decay of the mean of gradients
    optim.b2 = 0.9  # decay of the mean of their squares
    optim.clip = 0.0  # of each gradient's global norm; 0: none
    optim.ema = 0.999  # decay of the averaged parameters, which are exported

    train = config.train
    train.steps = 200_000  # in all
    train.batch = 32  # images a step
    train.checkpoint_every = 1000  # steps
    train.log_every = 50  # steps
    train.sample_every = 10_000  # steps; pictures and measures then and at the end; 0: none at all
    train.held_out = 64  # images that are measured then, of the data's test part where it has one
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """The `:smoke` variant: another folder, small images, a network of some thousand weights, eight steps."""
    config.workdir += "_smoke"
    config.data.size = min(config.data.size, 32)
    config.model.update({"base": 4, "codes": 32, "blocks": 1, "dtype": "float32", "remat": "none"})
    config.discriminator.update({"width": 8, "layers": 2})
    config.optim.update({"learning_rate": 2e-3, "warmup": 1})
    config.loss.start = min(config.loss.start, 4)
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    config.train.update({"steps": 8, "batch": 8, "checkpoint_every": 4, "log_every": 2, "sample_every": 8})
    config.train.held_out = 8
    return config
