"""Texture synthesis and outpainting: more of a picture than the network can hold at once.

  python -m launch.texture --workdir=runs/photos --image=brick --crop=64 --expand=64,64,64,64 --out=wall.png
  python -m launch.texture --workdir=runs/photos --image=mine.png --expand=0,32,0,0 --out=wider.png
  python -m launch.texture --workdir=runs/photos --size=256,192 --label=grass --num=4 --out=lawn/

Both are inpainting with input guidance (at scale 1 unless given): a window of the size that the network was trained at
goes over the canvas, always on where most is known; what is known stays at time 0 and guides the rest. --image is a
file, or a photograph that scikit-image and scikit-learn ship (brick, grass, gravel, ...). Without one, the whole of
--size is made from nothing. The files say how they were made, in their metadata; so does made.json beside several.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from asyncpatch_jax import viz
from asyncpatch_jax.data.decoding import MAX_PIXELS
from asyncpatch_jax.data.images import read_image
from asyncpatch_jax.data.sources import PHOTOS, photo
from asyncpatch_jax.sampling.painting import Job, repaint, together
from asyncpatch_jax.sampling.windows import plan
from launch.shared import build, cli, masks, outputs, trained
from launch.shared.generate import image_keys
from launch.shared.inpainters import method
from launch.shared.inpainting import painter

Margins = tuple[int, int, int, int]


def source(name: str, channels: int, crop: int, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w c"]:
    """A photograph by name, or an image file; with `crop` > 0 its centre square of so many pixels, not resized.

    Raises:
        ValueError: no such photograph nor file, an unreadable one, or one smaller than the crop.
    """
    image = photo(name, channels) if name in PHOTOS else read_image(name, None, channels, max_pixels=max_pixels)
    if crop <= 0:
        return image
    if crop > min(image.shape[:2]):
        raise ValueError(f"expected --crop of at most {min(image.shape[:2])} pixels for {name}, got {crop}")
    y, x = ((side - crop) // 2 for side in image.shape[:2])
    return image[y : y + crop, x : x + crop]


def numbers(flag: str, values: list[str], count: int) -> tuple[int, ...]:
    """The whole numbers >= 0 of a list flag. Raises ValueError on anything else."""
    if len(values) != count or not all(value.isascii() and value.isdecimal() for value in values):
        raise ValueError(f"expected --{flag} = {count} numbers of pixels >= 0, got {','.join(values)}")
    return tuple(map(int, values))


def expanded(
    image: UInt8[np.ndarray, "h w c"], margins: Margins
) -> tuple[UInt8[np.ndarray, "_H _W c"], Bool[np.ndarray, "_H _W"]]:
    """An image in a larger canvas, and where it is known; margins are left, right, top, bottom.

    Raises:
        ValueError: no margin at all.
    """
    left, right, top, bottom = margins
    if not any(margins):
        raise ValueError("expected --expand=left,right,top,bottom with a margin to paint, got none")
    sides = ((top, bottom), (left, right))
    return np.pad(image, (*sides, (0, 0))), np.pad(np.ones(image.shape[:2], bool), sides)


def paint(
    run: build.Run,
    canvas: UInt8[np.ndarray, "H W c"],
    known: Bool[np.ndarray, "H W"],
    *,
    count: int,
    label: int,
    seed: int,
    overlap: int,
    batch: int,
) -> UInt8[np.ndarray, "b H W c"]:
    """`count` ways to fill the unknown part of a canvas; known pixels keep their bits.

    Raises:
        ValueError: a canvas smaller than the network's images, or an overlap that leaves nothing to paint.
    """
    size = run.pixels[:2]
    if min(canvas.shape[0] - size[0], canvas.shape[1] - size[1]) < 0:
        raise ValueError(
            f"expected a canvas of {size[1]}x{size[0]} pixels or more (the network's images), got "
            f"{canvas.shape[1]}x{canvas.shape[0]}"
        )
    parts = plan((~known)[..., None].astype(np.float32), size, overlap=overlap, coarse=False)
    jobs = [Job(canvas, parts)] * count
    batch = together(jobs, batch)
    with tqdm(total=count * len(parts), unit="window") as progress:
        keys, how = image_keys(seed, count), method(run)
        fill = painter(run, keys, label, batch=batch, method=how, on_windows=progress.update)
        done = dict(repaint(jobs, size, fill, batch=batch))
    return np.stack([done[i] for i in range(count)])


def main() -> None:
    values = flags.FLAGS
    if not values.out or bool(values.image) == bool(values.size):
        raise ValueError("expected --out, and either --image with --expand, or --size")
    several, out = values.num > 1, Path(values.out)
    names = [f"{i:04d}.png" for i in range(values.num)] if several else [out.name]
    if not several and out.suffix.lower() != ".png":
        raise ValueError(f"expected --out that ends in .png, got {out}")
    if not several and values.image and out.resolve() == Path(values.image).resolve():
        raise ValueError(f"expected --out beside --image, got {out} for both")
    planned = (
        outputs.plan(out, "launch.texture", names, overwrite=values.overwrite)
        if several
        else outputs.single(out, overwrite=values.overwrite)
    )
    # what cannot be done is told before anything is loaded
    if values.image:
        margins = numbers("expand", values.expand, 4)
        expanded(source(values.image, 3, values.crop, values.max_pixels), margins)
    else:
        width, height = numbers("size", values.size, 2)
    run = trained.load()
    if values.input_guidance is None:
        run.config.sample.input_guidance = 0.0 if run.model.reference else 1.0
    method(run)  # what it cannot do is told before anything is written
    label = trained.label(run, values.label)
    if values.image:
        image = source(values.image, run.pixels[2], values.crop, values.max_pixels)
        canvas, known = expanded(image, margins)
    else:
        canvas, known = np.zeros((height, width, run.pixels[2]), np.uint8), np.zeros((height, width), bool)
    overlap = run.pixels[0] // 2 if values.overlap is None else values.overlap
    settings = {**trained.settings(run), "overlap": overlap}
    settings |= {name: values[name].value for name in ("seed", "num", "label", "image", "crop", "expand", "size")}
    with outputs.making(planned, settings) as folder:
        images = paint(
            run, canvas, known, count=values.num, label=label, seed=values.seed, overlap=overlap, batch=values.batch
        )
        for i, (name, image) in enumerate(zip(names, images, strict=True)):
            text = {"asyncpatch_jax": json.dumps({**settings, "variant": i}, ensure_ascii=False)}
            viz.save_png(folder / name, image, text=text, overwrite=True)
    for name in names:
        print(f"wrote {out / name if several else out}")


if __name__ == "__main__":
    trained.define_flags("solver", "eta", "steps", "grid", "guidance", "input_guidance")
    trained.define_prompts()
    flags.DEFINE_string("image", None, "Image file, or the name of a photograph: " + ", ".join(PHOTOS) + ".")
    masks.define_max_pixels()
    flags.DEFINE_integer("crop", 0, "Take the image's centre square of so many pixels; all of it unless given.")
    flags.DEFINE_list("expand", ["0", "0", "0", "0"], "Pixels to paint around the image: left,right,top,bottom.")
    flags.DEFINE_list("size", [], "Without an image: width,height to make from nothing.")
    flags.DEFINE_integer("overlap", None, "Pixels that neighbouring windows share; half a window unless given.")
    flags.DEFINE_string("label", None, "Class, by name or number; none unless given.")
    flags.DEFINE_integer("num", 1, "Variants; with several, --out is a folder.", lower_bound=1)
    flags.DEFINE_integer("batch", 16, "Variants sampled at a time.", lower_bound=1)
    flags.DEFINE_string("out", None, "PNG file to write, or the folder for several.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.texture made as --out.")
    cli.main_of_run(main, __doc__)
