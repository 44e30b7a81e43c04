"""Images from prompts, with a public checkpoint in the layout of diffusers.

  python -m launch.text2image stable-diffusion-2-1-base --prompt="a bear and a clock" --out=bear
  python -m launch.text2image FOLDER --prompt="a bear and a clock" --schedule=asyndm --objects="bear, clock" --show
  python -m launch.text2image FOLDER --prompts=animal.json --items=items.json --schedule=asyndm --num=4
  python -m launch.text2image FOLDER --prompts=captions_val2014.json --sample=2048 --sample_seed=42
  python -m launch.text2image FOLDER --prompt="a red door" --image=house.png --mask=door.png
  python -m launch.text2image FLUX.1-Kontext-dev --prompt="make it winter" --image=house.png

FOLDER holds Stable Diffusion 1.5, 2.1, XL or 3.5, FLUX.1-dev or Kontext: `python -m launch.check_checkpoint FOLDER`
says whether it will load, and on what. Writes into --out: grid.png, images/0000.png ... with the settings in each
file's metadata, with --show fields/0000.png ..., the time field and the objects' attention along the run, and
made.json, which lists these files. With --overwrite they are replaced, all at once at the end; other files there stay.
Image i of a prompt has the seed --seed + i, and depends on nothing else.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from tqdm import tqdm

import asyncpatch_jax
from asyncpatch_jax import sharding, viz
from asyncpatch_jax.data.channels import with_channels
from asyncpatch_jax.data.prompts import Prompt
from asyncpatch_jax.pretrained import settings as settings_lib
from asyncpatch_jax.pretrained.folders.loading import Pretrained, describe, load_pretrained
from asyncpatch_jax.pretrained.pipelines import Made, ready, text2image
from asyncpatch_jax.pretrained.requests import Request, factor
from asyncpatch_jax.pretrained.settings import Settings, defaults
from asyncpatch_jax.pretrained.text.objects import noun_phrases
from asyncpatch_jax.sampling.schedules import curves
from launch.shared import cli, inputs, masks, outputs, photos, prompt_files, seeding, trained

_MOMENTS = 8
_ARRAYS = ("image", "mask", "object_masks", "noise", "fresh_noise")
_RECORDED = (
    "image",
    "mask",
    "convention",
    "graded",
    "mask_values",
    "detail",
    "strength",
    "object_mask",
    "dtype",
    "mesh",
    "variant",
    "tpm",
    "gamma",
)
_CHOICES = {
    "schedule": (settings_lib.ScheduleName, "When cells move: all together, all on --curve, or the objects on it."),
    "masks": (settings_lib.Masks, "Where objects are: by each step's attention, by a first run's, or as drawn."),
    "curve": (curves.Curve, "The concave curve of what goes slower."),
    "text_time": (settings_lib.TextTime, "The time that the text of SD3 and FLUX is told."),
    "method": (settings_lib.Method, "The guidance; which network supports which, docs/text2image.md says."),
    "solver": (settings_lib.SolverName, "How cells move."),
}


def prompts(values: flags.FlagValues) -> list[Prompt]:
    """The prompts of the flags, or of a file, with their objects.

    Raises:
        ValueError: neither or both, or objects beside a file.
    """
    if bool(values.prompt) == bool(values.prompts):
        raise ValueError("expected --prompt (once or more often) or --prompts=FILE")
    if values.prompts:
        if values.objects:
            raise ValueError("expected the objects of --prompts in --items=FILE, got --objects")
        given = prompt_files.read(values.prompts, values.items, values.sample, values.sample_seed)
    else:
        given = [Prompt(text, tuple(values.objects)) for text in values.prompt]
    if not values.find_objects:
        return given
    return [prompt._replace(objects=prompt.objects or noun_phrases(prompt.text)) for prompt in given]


def check_flags(values: flags.FlagValues, family: str) -> None:
    """Refuse flags that another flag, or the family, makes meaningless.

    Raises:
        ValueError: names both.
    """
    asyndm, sync = values.schedule == "asyndm", values.schedule in (None, "sync")
    lone = {
        "items": (values.items and (sync or not values.prompts), "--prompts and --schedule=asyndm or concave"),
        "sample": (values.sample and not values.prompts, "--prompts"),
        "mask": (values.mask and not values.image, "--image"),
        "strength": (values.strength is not None and (values.mask or not values.image), "--image, and without --mask"),
        "graded": (values.graded and not values.mask, "--mask"),
        "detail": (values.detail is not None and not values.mask, "--mask"),
        "gamma": (values.gamma != 1 and not values.tpm, "--tpm"),
        "object_mask": (values.object_mask and not (asyndm and values.masks == "drawn"), "--masks=drawn"),
        "masks": (values.masks and not asyndm, "--schedule=asyndm"),
        "threshold": (values.threshold is not None and not asyndm, "--schedule=asyndm"),
        "reference_compat": (
            values.reference_compat and (sync or not values.items),
            "--items and --schedule=asyndm or concave",
        ),
        "objects": (values.objects and not asyndm, "--schedule=asyndm"),
        "find_objects": (values.find_objects and not asyndm, "--schedule=asyndm"),
        "curve": (values.curve and sync, "--schedule=asyndm or concave"),
        "omega": (
            values.omega is not None and (sync or bool(values.items)),
            "--schedule=asyndm or concave, and without --items, which have their own",
        ),
        "text_time": (values.text_time and (sync or family in ("sd", "sdxl")), "sd3, flux or kontext, and no sync"),
        "t5_length": (values.t5_length is not None and family in ("sd", "sdxl"), "sd3, flux or kontext"),
        "negative": (
            values.negative and family in ("flux", "kontext") and values.negative_guidance is None,
            "--negative_guidance: FLUX is told its guidance",
        ),
    }
    for name, (alone, needed) in lone.items():
        if alone:
            raise ValueError(f"expected --{name} with {needed}")


def requests(values: flags.FlagValues, given: Sequence[Prompt], size: tuple[int, int]) -> list[Request]:
    """`--num` images of each prompt; what windows show of a photo and of what is drawn on it, they add.

    Raises:
        ValueError: drawn objects that cannot be read, or of another size.
    """
    drawn = None if values.image else photos.drawn_objects(values, size)
    return [
        Request(
            prompt.text,
            values.seed + i,
            values.negative,
            prompt.objects,
            prompt.omegas,
            prompt.item_idx,
            object_masks=drawn,
        )
        for prompt in given
        for i in range(values.num)
    ]


def record(
    folder: str, requests: Sequence[Request], settings: Settings, values: flags.FlagValues
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """What each image's file says of how it was made, and the grid's: all that it depends on, files by their names."""
    more = {name: values[name].value for name in _RECORDED}
    shared = {"model": folder, **dataclasses.asdict(settings), **more, "version": asyncpatch_jax.__version__}
    own = [{name: value for name, value in r._asdict().items() if name not in _ARRAYS} for r in requests]

    def text(content: dict[str, Any]) -> str:
        return json.dumps(content, ensure_ascii=False)

    each = [{"asyncpatch_jax": text({**shared, **kept}), "prompt": kept["prompt"]} for kept in own]
    return each, {"asyncpatch_jax": text({**shared, "images": own})}


def shown(made: Made, objects: Sequence[str]) -> np.ndarray:
    """An image, its time field along the run, and of each object the attention and where the schedule took it to be.

    Attention is scaled to its own maximum. A step's mask, white, decides where the next step lands.
    """
    steps = len(made.fields) - 1
    moments = np.unique(np.linspace(0, steps - 1, min(steps, _MOMENTS)).round().astype(int))
    size = viz.visible(made.image.shape[:2])
    rows = [viz.enlarge(viz.heat(made.fields[moments]), size)]
    names = ["time"]
    drawn = 0 if made.masks is None else made.masks.shape[-1]
    # masks that were drawn need no words
    for k, name in enumerate(objects or [f"object {k + 1}" for k in range(drawn)]):
        if made.maps is not None:
            maps = made.maps[moments, ..., k : k + 1].astype(np.float32)
            rows += [viz.enlarge(viz.heat(maps / maps.max((1, 2, 3), keepdims=True).clip(1e-20)), size)]
            names += [f"{name}: attention"]
        if made.masks is not None:
            masks = made.masks[np.minimum(moments, len(made.masks) - 1), ..., k : k + 1].astype(np.float32)
            rows += [viz.enlarge(viz.colour(2 * masks - 1), size)]
            names += [f"{name}: mask"]
    blank = np.full((len(rows), 1, *size, 3), 255, np.uint8)
    blank[0, 0] = viz.tiles(made.image[None])[0]
    table = np.concatenate([np.stack(rows), blank], 1)
    return viz.page(table, row_names=names, column_names=[*(f"step {i}" for i in moments), "image"], legend=True)


def settings_of(values: flags.FlagValues, pretrained: Pretrained, original: photos.Original | None) -> Settings:
    """The family's defaults, the size at which a given photo is shown, and what the flags say."""
    side = (pretrained.denoiser.config.get("sample_size") or 128) * factor(pretrained)
    flag = {"num_steps": "steps"}  # as all commands call it
    given = {f.name: values[flag.get(f.name, f.name)].value for f in dataclasses.fields(Settings)}
    multiple = pretrained.denoiser.module.multiple * factor(pretrained)
    if original is not None:
        height, width = photos.shown_size(original, multiple, side, values.mask is not None)
        given["height"], given["width"] = given["height"] or height, given["width"] or width
    return defaults(pretrained.family, side, **given)


def _is_size(text: str) -> bool:
    number = text.removeprefix("-")
    return number.isascii() and number.isdecimal()


def mesh_of(text: str | None) -> Mesh | None:
    """The mesh of "data=1,fsdp=4,tensor=2"; by default all devices there are, which split the networks among them.

    Raises:
        ValueError: no such axes, or another number of devices than there are.
    """
    if text is None:
        return None if jax.device_count() == 1 else sharding.make_mesh(data=1, fsdp=-1)
    parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if not parts or set(parts) - set(sharding.AXES) or not all(_is_size(size) for size in parts.values()):
        raise ValueError(f"expected a mesh such as data=1,fsdp=4,tensor=2, got {text!r}")
    return sharding.make_mesh(**{"data": 1} | {name: int(size) for name, size in parts.items()})


def names(count: int, *, show: bool) -> list[str]:
    """The files of so many images."""
    folders = ("images", "fields") if show else ("images",)
    return [*(f"{folder}/{i:04d}.png" for folder in folders for i in range(count)), "grid.png"]


def main(folder: str) -> None:
    values = flags.FLAGS
    given = prompts(values)
    files = names(len(given) * values.num, show=values.show)
    planned = outputs.plan(values.out, "launch.text2image", files, overwrite=values.overwrite)
    mesh = mesh_of(values.mesh)
    # what the machine decides is recorded as if it had been asked for
    values.dtype = values.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    values.mesh = mesh and ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    dtype = jnp.dtype(values.dtype)
    described = describe(folder, dtype)
    check_flags(values, described.family)
    inputs.check_there("image", "mask", "object_mask", "tpm")
    original = None if values.image is None else photos.read(values)
    follow = trained.follow(values.tpm, mesh, values.gamma)
    settings = settings_of(values, described, original)
    size, local = (settings.height, settings.width), values.mask is not None
    windows = [] if original is None else photos.windows_of(original, size, local=local, detail=values.detail)
    wanted = requests(values, given, size)
    # what is wrong shall be told before minutes of reading
    ready(described, photos.examples(wanted, original, windows, settings), settings)
    pretrained = load_pretrained(folder, mesh, dtype, variant=values.variant)
    more = f" in {len(windows)} windows of {settings.width} x {settings.height}" if len(windows) > 1 else ""
    print(f"{len(wanted)} images{more}, {settings.num_steps} steps each; the first batch compiles", flush=True)
    each, whole = record(folder, wanted, settings, values)
    small = []
    with (
        outputs.making(planned, json.loads(whole["asyncpatch_jax"])) as out,
        tqdm(total=len(wanted) * max(len(windows), 1), disable=jax.process_index() > 0) as progress,
    ):
        if original is None:
            plain = text2image(pretrained, wanted, settings, batch=values.batch, mesh=mesh, follow=follow)
            images = ((made.image, made) for made in plain)
        else:
            run = {"batch": values.batch, "mesh": mesh, "follow": follow, "on_windows": progress.update}
            images = photos.repainted(pretrained, original, windows, wanted, settings, **run)
        for i, (image, made) in enumerate(images):
            viz.save_png(out / "images" / f"{i:04d}.png", image, text=each[i])
            if values.show:
                viz.save_png(out / "fields" / f"{i:04d}.png", shown(made, wanted[i].objects))
            small.append(with_channels(image, 3))
            progress.update(original is None)
        columns = values.num if values.num > 1 else math.ceil(len(small) ** 0.5)
        viz.save_png(out / "grid.png", viz.grid(np.stack(small), columns), text=whole)
    print(
        f"wrote grid.png and images/ ({len(small)} PNG files){' and fields/' if values.show else ''} into {values.out}"
    )


def define_flags() -> None:
    """The flags of this command; None is what suits the family."""
    flags.DEFINE_multi_string("prompt", [], "What to make; may be given several times.")
    flags.DEFINE_string("prompts", None, "A file of prompts: texts, a table, COCO, GenEval, ...: docs/data.md.")
    prompt_files.define()
    flags.DEFINE_string("items", None, "Their objects, in AsynDM's format: JSON of item_idx and item_k.")
    flags.DEFINE_bool("reference_compat", False, "Objects' tokens, first mask and steps of AsynDM's released code.")
    flags.DEFINE_integer("t5_length", None, "Tokens of T5's text; as published unless given.", lower_bound=0)
    flags.DEFINE_string("negative", None, "What to guide away from.")
    flags.DEFINE_list("objects", [], 'Words of --prompt that denoise slower with asyndm: "bear, clock#2".')
    flags.DEFINE_bool("find_objects", False, "Take the noun phrases of --prompt as its objects (needs spaCy).")
    flags.DEFINE_integer("num", 1, "Images of each prompt.", lower_bound=1)
    seeding.define("Seed of the first image of each prompt.")
    flags.DEFINE_integer("height", None, "Pixels; the network's own size unless given.")
    flags.DEFINE_integer("width", None, "Pixels; the network's own size unless given.")
    flags.DEFINE_integer("steps", None, "Steps; what the family's authors suggest unless given.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Classifier-free scale, 1 for none; FLUX: the scale that it is told.")
    flags.DEFINE_float("negative_guidance", None, "FLUX: classifier-free scale against --negative.")
    for name, (options, about) in _CHOICES.items():
        flags.DEFINE_enum(name, None, get_args(options), about)
    flags.DEFINE_float("eta", None, "Share of fresh noise of ddim; AsynDM's paper has 1.")
    flags.DEFINE_float("omega", None, "How much slower objects go, 0 to 1.")
    flags.DEFINE_float("threshold", None, "A cell is an object's if its attention is so many times the mean.")
    flags.DEFINE_string("image", None, "An image to change where --mask or --strength say, or for Kontext to edit.")
    flags.DEFINE_string("mask", None, "Which part of --image is generated anew; the rest comes back bit for bit.")
    masks.define_flags()
    flags.DEFINE_float("detail", None, "Go on to closer looks, until a pixel shown is so many of the photo's.")
    flags.DEFINE_float("strength", None, "How much all of --image may change, 0 to 1.", 0.0, 1.0)
    flags.DEFINE_multi_string("object_mask", [], "With --masks=drawn: a mask of each object; --objects may name them.")
    flags.DEFINE_string("tpm", None, "Folder of launch.train_tpm: a policy for the times that the network is told.")
    trained.define_fall_back()
    flags.DEFINE_float("gamma", 1.0, "Factor of the policy's deviations.", lower_bound=0.0)
    flags.DEFINE_integer("batch", 4, "Images made at a time.", lower_bound=1)
    flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the networks; float32 on a CPU, else bfloat16.")
    flags.DEFINE_string("variant", None, "Of the files, say fp16 for model.fp16.safetensors.")
    flags.DEFINE_string("mesh", None, "Devices, such as data=1,fsdp=4,tensor=2; unless given all, by fsdp.")
    flags.DEFINE_bool("show", False, "Also write the time fields and the objects' attention along each run.")
    flags.DEFINE_string("out", "images", "Folder to write to.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.text2image made in --out.")


if __name__ == "__main__":
    define_flags()
    cli.main_of_flags(main, __doc__, takes=("FOLDER",))
