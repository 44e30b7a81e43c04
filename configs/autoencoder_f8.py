"""The localised autoencoder of 256x256 images that AsyncPatch's latent experiments need: 32x32x4, 16,384 codes.

    python -m launch.train_autoencoder --config=configs/autoencoder_f8.py --config.data.path=TFDS_DIRECTORY \
        --config.loss.lpips=weights/lpips_vgg

The second folder is made by `launch.convert_metric lpips_vgg` (docs/metrics.md). Without it there is no perceptual
loss, and pictures are softer. `--config=configs/autoencoder_f8.py:smoke` needs no files: it trains a shrunk network on
the bundled photographs, for seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs.autoencoder_base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """Codes, latents, widths, discriminator and learning rate as LDM's vq-f8 (Rombach et al. 2022), on ImageNet."""
    config = settings(arg)
    config.workdir = "runs/autoencoder_f8"
    config.data.update({"name": "tfds", "dataset": "imagenet2012", "augment": "flip"})
    config.model.update({"preset": "f8", "dtype": "bfloat16", "remat": "products"})
    config.loss.update({"adversarial": 0.6, "start": 1})
    config.discriminator.layers = 2
    # a base rate of 4.5e-6 an image
    config.optim.update({"learning_rate": 4.5e-6 * 256, "warmup": 5000})
    config.train.update({"steps": 250_000, "batch": 256, "checkpoint_every": 1000, "sample_every": 5000})
    if arg == "smoke":
        config.data.update({"name": "photos", "dataset": "", "augment": "none"})
        shrink(config)
    return config
