"""Encode a data set once: the latents that networks are trained on, in files.

  python -m launch.encode --config=configs/photos.py --config.data.autoencoder=sd/vae --config.data.latents=runs/latents
  python -m launch.encode --config=configs/imagenet256_unet_600m.py --config.data.path=TFDS_DIRECTORY --batch=64

Reads the images of config.data, and writes config.data.latents: shards of ArrayRecord with the latents of each image
in half precision (with config.data.augment=flip, of the mirrored image too), and latents.json, which says of which
images and of which autoencoder they are, and what shift and scale give each channel mean 0 and variance 1.
`launch.train` with the same configuration then trains on them. Stop it at any time: the same command goes on with the
first shard that is missing. Of several processes each writes its share of the shards, on its own devices. See
docs/latents.md.
"""

import jax
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from asyncpatch_jax import sharding
from asyncpatch_jax.data import encoded
from asyncpatch_jax.pretrained.autoencoders import read_autoencoder
from launch.shared import autoencoders, cli, datasets, processes

_PATIENCE = 24 * 3600.0  # seconds, for processes whose images are slower to read


def run(config: ConfigDict) -> None:
    """Encode as configured, or go on.

    Raises:
        ValueError: no autoencoder or folder, images that do not fit, or a folder with other latents.
        OSError: the folder cannot be written.
    """
    values, data = flags.FLAGS, config.data
    if not data.autoencoder:
        raise ValueError("expected --config.data.autoencoder=FOLDER, got none")
    if data.latents in ("", autoencoders.ONLINE):
        raise ValueError(f"expected --config.data.latents=FOLDER to write to, got {data.latents or 'none'}")
    # each process goes through its own shards, at its own pace
    mesh = sharding.make_mesh(devices=jax.local_devices())
    autoencoder = autoencoders.fitting(config, read_autoencoder(data.autoencoder, mesh))
    images = datasets.dataset(config)
    count = len(encoded.places(len(images.source), values.num))
    sizes = {"dtype": values.dtype, "images": count, "shard": values.shard_size}
    what = autoencoders.about(config, images, autoencoder, **sizes)
    process = jax.process_index(), jax.process_count()
    if process[0] == 0:
        encoded.begin(data.latents, what)
    processes.together(f"write to {data.latents}")
    with tqdm(total=count, unit="image", disable=process[0] != 0) as bar:
        how = {"batch": values.batch, "shard": process, "on_images": bar.update}
        encoded.write(data.latents, what, images, autoencoder.encode, **how)
    processes.together(f"end their shards of {data.latents}", _PATIENCE)
    if process[0] == 0:
        found = encoded.finish(data.latents, what)
        shown = [", ".join(f"{number:.4g}" for number in numbers) for numbers in found]
        print(f"wrote {data.latents}: {count:,} images as {'x'.join(map(str, what.shape))} latents in {values.dtype}")
        print(f"shift {shown[0]}; scale {shown[1]}")


if __name__ == "__main__":
    flags.DEFINE_enum("dtype", "float16", [*encoded.DTYPES], "What latents are kept in.")
    flags.DEFINE_integer("num", 0, "Images, at even distances over the data; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("batch", 32, "Images encoded at a time.", lower_bound=1)
    flags.DEFINE_integer("shard_size", 8192, "Images in a file.", lower_bound=1)
    cli.main(run, __doc__)
