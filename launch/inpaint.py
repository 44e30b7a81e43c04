"""Inpaint your own images with a trained run.

  python -m launch.inpaint --workdir=runs/digits --image=seven.png --mask=hole.png --out=whole.png
  python -m launch.inpaint --workdir=runs/photos --image=photos/ --mask=masks/ --out=inpainted/ --input_guidance=1
  python -m launch.inpaint --workdir=runs/photos --image=a.png --mask=strength.png --graded --out=edited.png
  python -m launch.inpaint --workdir=runs/sync --image=a.png --mask=b.png --out=c.png --method=ddnm:eta=0.5

A mask marks with white what is to be generated (--convention names others). With folders, an image and a mask of the
same name, up to the suffix, are a pair. A photo comes back at its own size, and all of it that is not marked bit for
bit: the network is shown windows of its size around the holes, of a large hole scaled down. --detail=1 goes on to
closer and closer looks, until each pixel of the network's is one of the photo's, for networks that have learned from
such crops. --method fills holes with networks that were trained on synchronous times: docs/inpainting.md describes
each. --thumbnail writes the whole photo at the network's own size instead, and --raw what the network itself makes of
such a photo: of latents, known pixels too come out of the autoencoder then. In a folder, made.json says how its images
were made.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float, UInt8
from tqdm import tqdm

from asyncpatch_jax import viz
from asyncpatch_jax.data.channels import read_photo, with_channels
from asyncpatch_jax.data.images import read_image
from asyncpatch_jax.data.masks import read_mask
from asyncpatch_jax.sampling.inpainting import Inpainter, Supervised
from asyncpatch_jax.sampling.painting import Job, Shown, repaint, together
from asyncpatch_jax.sampling.windows import plan
from asyncpatch_jax.texts import composed
from asyncpatch_jax.types import ImageKeys
from launch.shared import build, cli, inpainters, inpainting, masks, outputs, trained
from launch.shared.generate import image_keys

# a network that has learned whole pictures wants to see much of one
_ROOM = 4.0
_RECORDED = (
    *("image", "mask", "convention", "graded", "mask_values", "detail", "thumbnail", "raw", "feather", "label", "seed"),
    "method",
)
# how asyncpatch moves, and looks that change pixels in part
_OF_ASYNCPATCH = ("solver", "eta", "detail", "graded")


class Task(NamedTuple):
    """One image to inpaint."""

    image_path: Path
    mask_path: Path
    out: Path


class Pair(NamedTuple):
    """A photo with the channels of its file, and how much of each pixel changes: 1 where it is generated anew."""

    photo: UInt8[np.ndarray, "h w c"]
    strength: Float[np.ndarray, "h w 1"]


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


def read(task: Task, run: build.Run | None) -> Pair:
    """A photo and its mask; as a thumbnail with the size and the channels of the network.

    Args:
        run: None: to see whether they can be read, which needs no network.

    Raises:
        ValueError: what `read_photo` and `read_mask` refuse.
    """
    values = flags.FLAGS
    size = run.pixels[0] if run is not None and values.thumbnail else None
    photo = read_photo(task.image_path, max_pixels=values.max_pixels)
    how = {"graded": values.graded, "mask_values": masks.mask_values(), "max_pixels": values.max_pixels}
    strength = read_mask(task.mask_path, photo.shape[:2], values.convention, size=size, **how)
    if run is not None and size is not None:
        photo = read_image(task.image_path, size, run.pixels[2], max_pixels=values.max_pixels)
    return Pair(photo, strength)


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
    if not 0 <= values.feather < np.inf:
        raise ValueError(f"expected --feather >= 0 pixels, got {values.feather}")
    if values.detail is not None and not 1 <= values.detail < np.inf:
        raise ValueError(f"expected --detail >= 1 pixel, got {values.detail}")
    own = not values.method or values.method in ("asyncpatch", "supervised")
    if not own and (odd := [n for n in _OF_ASYNCPATCH if values[n].present]):
        raise ValueError(f"expected --{odd[0]} with --method=asyncpatch alone, got it with {values.method}")
    for task in found:  # what cannot be read is told before anything is loaded or computed
        read(task, None)
    run = trained.load()
    method = inpainters.method(run, values.method)
    if values.graded and isinstance(method, Supervised):
        raise ValueError("expected no --graded mask for a supervised run, which is told one time an image, got one")
    label = trained.label(run, values.label)
    keys = image_keys(values.seed, len(found))
    settings = {**trained.settings(run), **{name: values[name].value for name in _RECORDED}}
    with outputs.making(planned, settings) as folder:
        for first in range(0, len(found), values.batch):
            part = found[first : first + values.batch]
            pairs = [read(task, run) for task in part]
            outs, own = [folder / task.out.name for task in part], keys[first : first + len(part)]
            paint(run, method, outs, pairs, own, label)
    for task in found:
        print(f"wrote {task.out}")


def paint(
    run: build.Run,
    method: Inpainter,
    outs: Sequence[epath.Path],
    pairs: Sequence[Pair],
    keys: ImageKeys,
    label: int,
) -> None:
    """Fill the holes of some photos together, and write each as soon as it is done."""
    values, size, channels = flags.FLAGS, run.pixels[:2], run.pixels[2]
    if values.raw:
        write_raw(run, method, outs, pairs, keys, label)
        return
    how = {"overlap": size[0] // 4, "room": _ROOM, "detail": values.detail}
    jobs = [Job(with_channels(photo, channels), plan(strength, size, **how)) for photo, strength in pairs]
    batch = together(jobs, values.batch)
    with tqdm(total=sum(len(job.windows) for job in jobs), unit="window") as progress:
        fill = inpainting.painter(run, keys, label, batch=batch, method=method, on_windows=progress.update)
        for i, canvas in repaint(jobs, size, fill, batch=batch, feather=values.feather):
            photo, strength = pairs[i]
            made = np.where(strength > 0, with_channels(canvas, photo.shape[2]), photo)
            viz.save_png(outs[i], made, overwrite=True)


def write_raw(
    run: build.Run,
    method: Inpainter,
    outs: Sequence[epath.Path],
    pairs: Sequence[Pair],
    keys: ImageKeys,
    label: int,
) -> None:
    """Write what the network makes of photos of its own size, known pixels as they come out.

    Raises:
        ValueError: a photo of another size.
    """
    if wrong := [photo.shape for photo, _ in pairs if photo.shape[:2] != run.pixels[:2]]:
        h, w = run.pixels[:2]
        raise ValueError(
            f"expected photos of {w}x{h} pixels for --raw, or --thumbnail, got {wrong[0][1]}x{wrong[0][0]}"
        )
    shown = [Shown(i, 0, with_channels(photo, run.pixels[2]), strength) for i, (photo, strength) in enumerate(pairs)]
    fill = inpainting.painter(run, keys, label, batch=len(shown), method=method)
    for out, made in zip(outs, fill(shown), strict=True):
        viz.save_png(out, made, overwrite=True)


if __name__ == "__main__":
    trained.define_flags("solver", "eta", "steps", "grid", "guidance", "input_guidance")
    trained.define_prompts()
    flags.DEFINE_string(
        "method",
        "",
        f"How holes are filled: {', '.join(inpainters.METHODS)}; with settings as NAME:SETTING=VALUE,SETTING=VALUE. "
        "Unless given, supervised for a supervised run, asyncpatch for any other.",
    )
    flags.DEFINE_string("image", None, "An image, or a folder of images.")
    flags.DEFINE_string("mask", None, "Its mask, or a folder of masks with the images' names.")
    flags.DEFINE_string("out", None, "PNG file to write, or the folder for several.")
    masks.define_flags()
    flags.DEFINE_float("detail", None, "Go on to closer looks, until a pixel shown is so many of the photo's.")
    flags.DEFINE_bool("thumbnail", False, "Write the photo's centre square at the network's own size instead.")
    flags.DEFINE_bool("raw", False, "Write all that the network makes, known pixels too, of photos of its own size.")
    flags.DEFINE_float(
        "feather", 2.0, "Width of the seam inside a hole, in pixels of the network's; 0 for a plain cut."
    )
    flags.DEFINE_string("label", None, "Class of the images, by name or number; none unless given.")
    flags.DEFINE_integer("batch", 16, "Images sampled at a time.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.inpaint made as --out.")
    cli.main_of_run(main, __doc__)
