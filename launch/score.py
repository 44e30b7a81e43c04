r"""How good a folder of images is, by the measures of papers: a table with intervals, and a file.

  python -m launch.score samples --reference=photos --metrics=fid,kid
  python -m launch.score made --reference=val2014.npz --protocol=fid-30k
  python -m launch.score inpainted --pairs=originals --masks=holes --metrics=lpips,lpips_hole,psnr,ssim,hole_rmse
  python -m launch.score sync asyndm --prompts=animal.json --metrics="clip, image_reward, hpsv2, pick=PickScore"

IMAGES is a folder, what a command of this project wrote, or an .npz with arr_0. Several are compared: brackets are 95 %
bootstrap intervals, over prompts where there are any, and differences to the first are paired by the images' names.
Weights lie in --weights under the names of their networks (docs/metrics.md), or where NAME=FOLDER says; nothing is
downloaded. Writes scores.json, scores.md and made.json into --out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from absl import flags

from asyncpatch_jax.data.masks import Convention
from asyncpatch_jax.files import refuse_existing, write_json, writing
from asyncpatch_jax.metrics.distances import PROTOCOLS
from asyncpatch_jax.metrics.inception import RESIZES
from asyncpatch_jax.metrics.statistics import holds_statistics, read_statistics
from launch.scoring import images as images_lib
from launch.scoring import measures, memory, passes, report, sets
from launch.scoring.measures import MEASURES, Options
from launch.scoring.passes import Asked
from launch.scoring.report import Number
from launch.scoring.sets import Reference
from launch.shared import cli, inputs, outputs, prompt_files
from launch.shared.masks import define_max_pixels

_FILES = ("scores.json", "scores.md")
_RECORDED = (
    *("reference", "pairs", "masks", "convention", "prompts", "sample", "sample_seed", "captions"),
    *("metrics", "weights", "resize", "protocol", "size", "bert_layer"),
)


def opened(values: flags.FlagValues, places: Sequence[str], wanted: Mapping[str, str]) -> list[Asked]:
    """The folders, with all that belongs to their images; every file is looked at.

    Raises:
        ValueError: what cannot be read, or does not belong together.
    """
    first = images_lib.open_images(places[0], values.max_pixels)
    each = [first]
    each += [
        images_lib.matched(first, images_lib.open_images(place, values.max_pixels), sizes=False) for place in places[1:]
    ]
    needs = {need for name in wanted for need in MEASURES[name].needs}
    texts = captions = pairs = masks = None
    if "prompts" in needs or values.prompts:
        texts = images_lib.texts_of(first, values.prompts, values.sample, values.sample_seed)
    if values.captions:
        captions = images_lib.texts_of(first, values.captions, None, prompt_files.SEED)
    if "pairs" in needs:
        pairs = images_lib.open_images(values.pairs, values.max_pixels)
    if "masks" in needs:
        masks = images_lib.masks_of(first, values.masks, values.convention)
    return [
        Asked(
            images,
            None if pairs is None else images_lib.matched(images, pairs, sizes=True),
            masks,
            texts,
            captions,
            values.convention,
        )
        for images in each
    ]


def reference_of(values: flags.FlagValues, wanted: Mapping[str, str], size: int | None) -> Reference | None:
    """What sets are compared with; None if they are not.

    Raises:
        ValueError: neither statistics nor images, or KID of statistics.
    """
    if not set(wanted) & set(measures.SETS):
        return None
    place = values.reference
    statistics = read_statistics(place) if holds_statistics(place) else None
    needed = "kid" in wanted or statistics is None
    if statistics is not None and needed and not images_lib.holds_images(place):
        raise ValueError(f"expected images as --reference for kid, got statistics alone in {place}")
    images = images_lib.open_images(place, values.max_pixels, size=size) if needed else None
    return Reference(place, images, statistics)


def keep(protocol: str, folders: Sequence[Asked]) -> None:
    """Refuse images that are not as a protocol has them.

    Raises:
        ValueError: another number of images, or another size.
    """
    wanted = PROTOCOLS[protocol]
    for asked in folders:
        count, shapes = len(asked.images.names), set(asked.images.shapes)
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(shapes))
        if count != wanted.count or shapes != {(wanted.size, wanted.size)}:
            raise ValueError(
                f"expected {wanted.count:,} images of {wanted.size} x {wanted.size} pixels in {asked.images.place} for "
                f"{wanted.name} ({wanted.prompts}), got {count:,} of {sizes}"
            )


def check_sizes(wanted: Mapping[str, str], folders: Sequence[Asked], reference: Reference | None) -> None:
    """Refuse what a measure has no number for, before another one is worked on.

    Raises:
        ValueError: images that are too small, or one image where sets are compared.
    """
    for name, folder in wanted.items():
        least = measures.smallest(name, folder)
        for asked in folders:
            height, width = min(asked.images.shapes, key=min)
            if min(height, width) < least:
                raise ValueError(
                    f"expected images of {least} pixels a side or more in {asked.images.place} for {name}, got "
                    f"{height} x {width}"
                )
    if reference is not None:
        sets_of = [*(asked.images for asked in folders), *([reference.images] if reference.images else [])]
        for images in sets_of:
            if len(images.names) < 2:
                raise ValueError(f"expected at least 2 images in {images.place} for fid or kid, got one")


def score(
    wanted: Mapping[str, str],
    folders: Sequence[Asked],
    reference: Reference | None,
    options: Options,
    statistics: str = "",
) -> dict[str, list[Number]]:
    """Each measure of each folder; one network at a time is in memory.

    Args:
        wanted: the measures, with the folders of their weights.
        statistics: where those of the reference are written; "": nowhere.
    """
    found: dict[str, list[Number]] = {}
    # those of sets first: only they can find that the reference does not fit
    for name, folder in sorted(wanted.items(), key=lambda item: item[0] not in measures.SETS):
        if name in found:
            continue
        loaded = MEASURES[name].load(folder, options)
        if name in measures.SETS:
            assert reference is not None  # it is needed
            both = [other for other in measures.SETS if wanted.get(other) == folder]
            rule, batch = options.resize, options.batch
            found |= sets.numbers(both, loaded, folders, reference, rule=rule, batch=batch, write=statistics)
            continue
        found[name] = []
        for asked in folders:
            own, pace = passes.rows(loaded, asked, options.batch, f"{loaded.title}, {asked.images.place}")
            rate = pace.images / pace.seconds
            found[name].append(Number(loaded.title, loaded.about, loaded.weights, own[:, 0].astype(float), rate))
    return {name: found[name] for name in wanted}


def main(*places: str) -> None:
    values = flags.FLAGS
    protocol = PROTOCOLS.get(values.protocol)
    wanted = measures.parse(values.metrics or ("fid" if protocol else ""), values.weights)
    if protocol and values.resize not in (None, protocol.resize):
        raise ValueError(f"expected --resize={protocol.resize} for {protocol.name}, got {values.resize}")
    if protocol and values.size not in (None, protocol.size):
        raise ValueError(f"expected --size={protocol.size} for {protocol.name}, got {values.size}")
    planned = outputs.plan(values.out, "launch.score", _FILES, overwrite=values.overwrite)
    inputs.check_there("reference", "pairs", "masks", "prompts", "captions")
    measures.check(wanted, [name for name in measures.FLAGS if values[name].value])
    vlm = ""
    if "bert" in wanted and not values.captions:
        vlm = wanted.get("qwen", str(Path(values.weights) / MEASURES["qwen"].folder))
        measures.check_folder("qwen", vlm)
    if values.sample is not None and not values.prompts:
        raise ValueError(f"expected --prompts=FILE to draw --sample={values.sample} from, got none")
    if values.captions and len(places) > 1:
        raise ValueError(f"expected one folder of images with --captions, got {len(places)}")
    if values.statistics:
        refuse_existing(values.statistics)
    resize = values.resize or (protocol.resize if protocol else "clean")
    options = Options(resize, values.batch, values.bert_layer, vlm)
    folders = opened(values, places, wanted)
    if protocol:
        keep(values.protocol, folders)
    reference = reference_of(values, wanted, protocol.size if protocol else values.size)
    check_sizes(wanted, folders, reference)
    if values.statistics and (reference is None or reference.statistics is not None):
        raise ValueError("expected --statistics with images as --reference, and fid or kid, got it without")
    settings = {"images": list(places), **{name: values[name].value for name in _RECORDED}, "resize": resize}
    with outputs.making(planned, settings) as out:
        numbers = score(wanted, folders, reference, options, values.statistics)
        groups = folders[0].texts
        found = {name: report.summary(of, groups) for name, of in numbers.items()}
        text = f"{report.table(places, found)}\n\n{report.notes(found)}"
        content = {
            "folders": list(places),
            "names": list(folders[0].images.names),
            "texts": None if groups is None else list(groups),
            "measures": report.content(found),
            "peak_memory": memory.peak(),
        }
        write_json(out / "scores.json", content)
        with writing(out / "scores.md") as stream:
            stream.write(f"{text}\n".encode())
    print(f"{text}\n{memory.said()}")


if __name__ == "__main__":
    flags.DEFINE_string("reference", "", "For fid, kid: a folder or .npz of images, or an .npz of mu and sigma.")
    flags.DEFINE_string("pairs", "", "For lpips, psnr, ssim, ...: a folder or .npz of images of the same names.")
    flags.DEFINE_string("masks", "", "For lpips_hole, hole_rmse: a mask, or a folder of masks of the same names.")
    flags.DEFINE_enum("convention", "white_generate", get_args(Convention), "How masks mark what they are of.")
    flags.DEFINE_string("prompts", "", "What images are of, in order or by name; unless given, what their files say.")
    prompt_files.define()
    flags.DEFINE_string(
        "captions", "", "What images show, for bert, in order or by name; a model says it unless given."
    )
    flags.DEFINE_string("metrics", "", f"{', '.join(MEASURES)}: {measures.SYNTAX}.")
    flags.DEFINE_string("weights", "weights", "Folder with those of the measures that are not named.")
    flags.DEFINE_enum("resize", None, list(RESIZES), "How images become Inception's; clean unless given.")
    flags.DEFINE_enum("protocol", None, list(PROTOCOLS), "How papers do it: checks images, sets --resize and --size.")
    flags.DEFINE_integer(
        "size", None, "Pixels a side of the reference's images, cut to squares; their own unless given."
    )
    flags.DEFINE_string("statistics", "", "File to write the reference's mean and covariance to, for later.")
    flags.DEFINE_integer("bert_layer", 17, "Whose vectors are compared: 17 of roberta-large.", lower_bound=0)
    flags.DEFINE_integer("batch", 32, "Images at a time.", lower_bound=1)
    define_max_pixels()
    flags.DEFINE_string("out", "scores", "Folder to write to.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier launch.score made in --out.")
    cli.main_of_flags(main, __doc__, takes=("IMAGES...",))
