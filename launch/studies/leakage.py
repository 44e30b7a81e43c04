"""Results: what keeps a mask from leaking through an autoencoder, part by part.

  python -m launch.studies.leakage --config.data.path=data/usr/share/datasets/fashion-mnist
  python -m launch.studies.leakage --config.train.steps=300 --seeds=1       # a short look

Trains the localised autoencoder of configs/autoencoder_fashion.py, the same with one part changed at a time, and the
layout of diffusers' AutoencoderKL, all alike; measures each on test images with holes, and writes the page. What is
trained is in --runs, and is not trained again.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.models import autoencoder
from launch import train_autoencoder
from launch.autoencoding import coders, pages, parts
from launch.shared import cli, datasets, markdown, outputs

TITLE = "Results: leakage of autoencoders"
# what is changed of the localised autoencoder, and what the page calls it
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "localised": ("the localised autoencoder", {}),
    "untold": ("blocks are not told the mask", {"told": False}),
    "group": ("group norms", {"norm": "group"}),
    "attention": ("attention in the middle of both halves", {"attention": "both", "head_dim": 16}),
    "windows": ("3x3 windows on all levels", {"windows": (3, 3, 3)}),
    "layout": (
        "all four, and two blocks a level: the layout of diffusers' AutoencoderKL",
        {
            **{"told": False, "norm": "group", "attention": "both", "head_dim": 16},
            **{"windows": (3, 3, 3), "encoder_blocks": 2},
        },
    ),
}
_RINGS = 4  # distances in the table; the last has all from there on
_BATCH = 32


def configured(config: ConfigDict, name: str, seed: int, runs: Path) -> ConfigDict:
    """One training of the study."""
    config = ConfigDict(config.to_dict())
    config.workdir, config.seed = str(runs / f"{name}_{seed}"), seed
    config.model.update(VARIANTS[name][1])
    config.train.sample_every = 0
    return config


def trained(config: ConfigDict) -> Path:
    """The folder of a trained autoencoder; it is trained if it is not there.

    Raises:
        ValueError: another run is in its folder, or it was stopped before its end.
    """
    train_autoencoder.run(config)
    folder = Path(config.workdir) / "autoencoder"
    if not (folder / "config.json").exists():
        raise ValueError(f"expected a training that came to its end in {config.workdir}, got a stopped one")
    return folder


def measured(config: ConfigDict, folder: Path, count: int) -> dict[str, Any]:
    """The measures of a trained autoencoder, on test images with the holes that it was trained with, in turn."""
    data = datasets.dataset(config, "test")
    images, holes = pages.held_out(data, count, [*parts.masks(config)])
    coder = coders.of_module(*autoencoder.load(folder))
    batch = min(_BATCH, len(images))
    made, _ = pages.reconstructed(coder, images, holes, batch)
    return pages.measures(coder, images, holes, made, None, batch, longest=_RINGS)


def row(name: str, found: list[dict[str, Any]]) -> list[str]:
    """A line of the table: means over seeds, with their spread."""

    def ring(what: str, away: int, key: str, digits: int) -> str:
        # a ring without cells is left out of the measures
        rings = [{ring["away"]: ring[key] for ring in seed[what]} for seed in found]
        return markdown.spread((ring.get(away, float("nan")) for ring in rings), digits)

    latents = [ring("latents", d, "moved", 4) for d in range(1, _RINGS + 1)]
    codes = [ring("latents", d, "same", 3) for d in (1, 2)]
    pixels = [ring("pixels", d, "moved", 2) for d in (1, 2, _RINGS)]
    psnr = [markdown.spread((seed[f"psnr_{part}"] for seed in found), 2) for part in ("known", "hole")]
    return [VARIANTS[name][0], *latents, *codes, *pixels, *psnr]


def page(command: str, config: ConfigDict, found: dict[str, list[dict[str, Any]]], count: int) -> str:
    """The page in Markdown."""
    last = f"{_RINGS} or more"
    head = ["", *(f"latents moved, {d} away" for d in (*range(1, _RINGS), last))]
    head += ["codes kept, 1", "codes kept, 2", *(f"pixels moved, {d}" for d in (1, 2, last))]
    head += ["PSNR known", "PSNR hole"]
    train, size = config.train, config.data.size
    seeds = len(next(iter(found.values())))
    times = "once" if seeds == 1 else f"{seeds} times"
    return "\n".join([
        f"# {TITLE}",
        "",
        f"Made by `{command}`.",
        "",
        f"Each row is trained on {config.data.name} at {size}x{size} for {train.steps:,} steps of {train.batch} images "
        f"{times}, with the same data, masks and losses, and measured on {count} test images "
        "with holes of all these kinds. Distances are in cells, 1 touches the hole. *Latents moved*: between the whole "
        "image and the one with its hole, root mean square over known cells, in standard deviations of the latents. "
        "*Codes kept*: the share of these cells whose code stayed the same. *Pixels moved*: of known pixels, in levels "
        "of 255, when the hole's latents are exchanged for another image's. PSNR in dB, decoded from latents whose "
        "known cells did not see the hole.",
        "",
        markdown.table(head, [row(name, seeds) for name, seeds in found.items()]),
        "",
    ])  # fmt: skip


def run(config: ConfigDict) -> None:
    """Train, measure and write the page.

    Raises:
        ValueError: unknown variants, or runs of other settings in --runs.
    """
    values = flags.FLAGS
    names = values.variants or list(VARIANTS)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"expected --variants out of {', '.join(VARIANTS)}, got {', '.join(unknown)}")
    outputs.check_page(values.out, TITLE)
    if config.data.name not in datasets.HELD_OUT:
        raise ValueError(f"expected data with a test part, {', '.join(datasets.HELD_OUT)}, got {config.data.name}")
    runs, found = Path(values.runs), {}
    for name in names:
        for seed in range(values.seeds):
            one = configured(config, name, seed, runs)
            measures = measured(one, trained(one), values.num)
            write_json(runs / f"{name}_{seed}" / "measures.json", measures, overwrite=True)
            found.setdefault(name, []).append(measures)
            print(f"{name} {seed}: {pages.line(measures)}", flush=True)
    command = shlex.join(["python", "-m", "launch.studies.leakage", *sys.argv[1:]])
    with writing(values.out, overwrite=True) as stream:
        stream.write(page(command, config, found, values.num).encode())
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("runs", "runs/leakage", "Folder for trained autoencoders and their measures.")
    flags.DEFINE_string("out", "runs/leakage/results.md", "Page to write; it is replaced.")
    flags.DEFINE_list("variants", None, "What is trained and measured; all unless given.")
    flags.DEFINE_integer("seeds", 2, "Trainings of each.", lower_bound=1)
    flags.DEFINE_integer("num", 256, "Test images.", lower_bound=2)
    cli.main(run, __doc__, default=train_autoencoder.DEFAULT)
