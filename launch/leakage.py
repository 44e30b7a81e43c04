"""How far does a mask leak into the latents beside it, and the hole's latents into known pixels? Of any autoencoder.

  python -m launch.leakage runs/autoencoder_f4_smoke/autoencoder --size=32
  python -m launch.leakage runs/autoencoder_f8/autoencoder stable-diffusion-2-1-base/vae --images=photos/ --num=256
  python -m launch.leakage runs/autoencoder_fashion/autoencoder --data=fashion_mnist --images=DIRECTORY --size=32

A folder is one that launch.train_autoencoder wrote, or diffusers' AutoencoderKL (a pipeline's vae/). Images are
encoded whole and with a hole (of an AutoencoderKL a grey one); how far the latents of known cells move is told by their
distance to the hole, in standard deviations of the latents, with the share of codes that stay. Then the hole's latents
are exchanged for another image's, and known pixels are compared. --out keeps all numbers as JSON.
"""

from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from asyncpatch_jax.data import MASKS
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.data.decoding import MAX_PIXELS
from asyncpatch_jax.files import refuse_existing, write_json
from asyncpatch_jax.metrics.leakage import Leakage, leakage
from asyncpatch_jax.pretrained.autoencoders import read_autoencoder
from launch.autoencoding import coders, pages
from launch.shared import cli, datasets, markdown, seeding


def images(name: str, path: str, size: int, channels: int) -> Dataset:
    """The data set that is measured on: its part that nothing is trained on, where it has one."""
    data = {"name": name, "path": path, "dataset": "", "split": "train", "size": size, "channels": channels}
    config = ConfigDict({"data": {**data, "on_error": "raise", "max_pixels": MAX_PIXELS}})
    return datasets.dataset(config, "test" if name in datasets.HELD_OUT else None)


def _reach(module: Any) -> str:
    reach = getattr(module, "reach", None)
    return "the whole image" if reach is None else f"{reach} pixels"


def rows(folder: str, found: Leakage) -> list[list[str]]:
    """A line of the table for each distance, latents first."""
    lines = []
    for ring, pixel in zip(found.latents, found.pixels, strict=True):
        last = ring is found.latents[-1]
        same = "" if ring.same is None else f"{ring.same:.1%}"
        moved = [f"{value:.4f}" if ring.count else "" for value in (ring.moved, ring.largest)]
        grey = f"{pixel.moved:.2f}" if pixel.count else ""
        lines.append([folder, f"{ring.away}{' or more' if last else ''}", str(ring.count), *moved, same, grey])
    return lines


def main(*folders: str) -> None:
    values = flags.FLAGS
    if values.out:
        refuse_existing(values.out)
    name = values.data or ("folder" if values.images else "photos")
    table: list[list[str]] = []
    content: dict[str, Any] = {"data": name, "mask": values.mask, "size": values.size, "seed": values.seed}
    for folder in folders:
        module = (found := read_autoencoder(folder)).module
        data = images(name, values.images, values.size, module.channels)
        if data.shape[0] % module.factor:
            raise ValueError(f"expected --size to be a multiple of {module.factor} for {folder}, got {values.size}")
        pictures, holes = pages.held_out(data, values.num, [values.mask], values.seed)
        batch = min(values.batch, len(pictures))
        leaks = leakage(coders.coder(found), pictures, holes, batch=batch)
        print(f"{folder}: a cell of {module.factor}x{module.factor} pixels sees {_reach(module)} beyond its own")
        table += rows(folder, leaks)
        content[folder] = {**pages.told(leaks), "images": len(pictures)}
    head = ["autoencoder", "cells away", "cells", "latents moved", "the furthest", "codes kept", "pixels moved"]
    print(markdown.table(head, table))
    print("latents: root mean square, in standard deviations; pixels: in levels of 255, when the hole's latents change")
    if values.out:
        write_json(epath.Path(values.out), content)
        print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("images", "", "Directory of images, or of the data set; the bundled photographs by default.")
    flags.DEFINE_enum("data", None, datasets.DATA[:-1], "Data set; a folder where --images is given.")
    flags.DEFINE_integer("size", 256, "Side of the images in pixels.", lower_bound=2)
    flags.DEFINE_enum("mask", "wide", MASKS, "Kind of the holes.")
    flags.DEFINE_integer("num", 64, "Images.", lower_bound=2)
    flags.DEFINE_integer("batch", 16, "Images at a time.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write.")
    seeding.define("Seed of the holes.")
    cli.main_of_flags(main, __doc__, takes=("FOLDER...",))
