"""Inpaint your own images with a trained run.

  python -m launch.inpaint --workdir=runs/digits --image=seven.png --mask=hole.png --out=whole.png
  python -m launch.inpaint --workdir=runs/photos --image=photos/ --mask=masks/ --out=inpainted/ --input_guidance=1
  python -m launch.inpaint --workdir=runs/photos --image=a.png --mask=strength.png --graded --out=edited.png

A mask marks with white what is to be generated (--convention names others). With folders, an image and a mask of the
same name, up to the suffix, are a pair. An image of another size than the network was trained at becomes a centre
square of that size, its mask with it; --native keeps it as it is. Known pixels come back bit for bit, unless --feather
is given. In a folder, made.json says how its images were made.
"""

from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from absl import flags
from jaxtyping import Float, UInt8

from asyncpatch_jax import viz
from asyncpatch_jax.data.images import read_image
from asyncpatch_jax.data.masks import Convention, read_mask
from asyncpatch_jax.texts import composed
from launch.shared import build, cli, inpainting, outputs, trained
from launch.shared.generate import image_keys

_RECORDED = ("image", "mask", "convention", "graded", "native", "feather", "label", "seed")


class Task(NamedTuple):
    """One image to inpaint."""

    image_path: Path
    mask_path: Path
    out: Path


class Pair(NamedTuple):
    """An image and what of it is to be generated: 1, or with a graded mask how much of it changes."""

    image: UInt8[np.ndarray, "h w c"]
    mask: Float[np.ndarray, "h w 1"]


def tasks(image: Path, mask: Path, out: Path) -> list[Task]:
    """What is to be done: one image, or the pairs of two folders.

    Raises:
        ValueError: a missing path, a folder beside a file, images without a mask or masks without an image (all named
            in one error), an output that is no PNG or would replace an input.
    """
    for path in (image, mask):
        if not path.exists():
            raise ValueError(f"expected an image file or a folder of them, got {path}, which does not exist")
    if image.is_dir() != mask.is_dir():
        raise ValueError(f"expected two files or two folders, got {image} and {mask}")
    if image.is_dir():
        images, holes = _by_name(image), _by_name(mask)
        lonely = [f"{images[name]} has no mask" for name in images.keys() - holes.keys()]
        lonely += [f"{holes[name]} has no image" for name in holes.keys() - images.keys()]
        if lonely or not images:
            raise ValueError(
                f"expected images in {image} and masks of the same names in {mask}, got {len(images)} and {len(holes)}"
                + "".join(f"\n  {line}" for line in sorted(lonely))
            )
        found = [Task(images[name], holes[name], out / f"{name}.png") for name in sorted(images)]
    else:
        found = [Task(image, mask, out)]
    inputs = {path.resolve() for task in found for path in task[:2]}
    for task in found:
        if task.out.suffix.lower() != ".png":
            raise ValueError(f"expected an output that ends in .png, which keeps pixels exactly, got {task.out}")
        if task.out.resolve() in inputs:
            raise ValueError(f"expected an output beside the inputs, got {task.out}, which is one of them")
    return found


def _by_name(folder: Path) -> dict[str, Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    names = [composed(file.stem) for file in files]  # of a Mac, a pair may have one name in two forms
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected one file of each name in {folder}, got several of {', '.join(twice)}")
    return dict(zip(names, files, strict=True))


def read(task: Task, run: build.Run, convention: Convention, graded: bool, native: bool) -> Pair:
    """An image and its mask at the size that the network is to see.

    Raises:
        ValueError: what `read_image` and `read_mask` refuse; with `native`, a size that the network cannot take.
    """
    channels, size, multiple = run.shape[2], run.shape[0], run.model.multiple
    image = read_image(task.image_path, None, channels)
    shape = image.shape[:2]
    if native:
        if shape[0] % multiple or shape[1] % multiple:
            raise ValueError(
                f"expected an image whose sides are multiples of {multiple} for --native, got {shape[1]}x{shape[0]} "
                f"(width x height) in {task.image_path}"
            )
        return Pair(image, read_mask(task.mask_path, shape, convention, graded=graded))
    mask = read_mask(task.mask_path, shape, convention, size=size, graded=graded)
    return Pair(read_image(task.image_path, size, channels), mask)


def main() -> None:
    values = flags.FLAGS
    if not (values.image and values.mask and values.out):
        raise ValueError("expected --image, --mask and --out")
    found = tasks(Path(values.image), Path(values.mask), Path(values.out))
    planned = (
        outputs.plan(values.out, "launch.inpaint", [task.out.name for task in found], overwrite=values.overwrite)
        if Path(values.image).is_dir()
        else outputs.single(values.out, overwrite=values.overwrite)
    )
    if values.feather < 0:
        raise ValueError(f"expected --feather >= 0 pixels, got {values.feather}")
    run = trained.load()
    label = trained.label(run, values.label)
    pairs = [read(task, run, values.convention, values.graded, values.native) for task in found]
    keys = image_keys(values.seed, len(pairs))
    settings = {**trained.settings(run), **{name: values[name].value for name in _RECORDED}}
    with outputs.making(planned, settings) as folder:
        # images of one size go together
        for shape in dict.fromkeys(pair.image.shape for pair in pairs):
            index = np.array([i for i, pair in enumerate(pairs) if pair.image.shape == shape])
            made = inpainting.inpaint(
                run,
                keys[index],
                np.stack([pairs[i].image for i in index]),
                np.stack([pairs[i].mask for i in index]),
                np.full(len(index), label, np.int32),
                batch=values.batch,
                graded=values.graded,
                feather=values.feather,
            )
            for i, image in zip(index, made, strict=True):
                viz.save_png(folder / found[i].out.name, image, overwrite=True)
    for task in found:
        print(f"wrote {task.out}")


if __name__ == "__main__":
    trained.define_flags("solver", "eta", "steps", "grid", "guidance", "input_guidance")
    flags.DEFINE_string("image", None, "An image, or a folder of images.")
    flags.DEFINE_string("mask", None, "Its mask, or a folder of masks with the images' names.")
    flags.DEFINE_string("out", None, "PNG file to write, or the folder for several.")
    flags.DEFINE_enum("convention", "white_generate", get_args(Convention), "How masks mark what to generate.")
    flags.DEFINE_bool("graded", False, "Masks are strengths: grey parts change by so much.")
    flags.DEFINE_bool("native", False, "Keep each image's own size.")
    flags.DEFINE_float("feather", 0.0, "Blend the known side of the seam over so many pixels.")
    flags.DEFINE_string("label", None, "Class of the images, by name or number; none unless given.")
    flags.DEFINE_integer("batch", 16, "Images sampled at a time.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.inpaint made as --out.")
    cli.main_of_run(main, __doc__)
