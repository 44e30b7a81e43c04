"""The page and the picture of the inpainting study."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from asyncpatch_jax import viz
from asyncpatch_jax.files import writing
from launch.shared import markdown
from launch.studies.inpainting_scores import digest

TITLE = "Results: filling holes"
SHOWN = 3  # images of each kind of hole in the picture
PICTURE = "images/results.png"


class Cell(NamedTuple):
    """Holes of one kind, filled by one method of one network.

    calls, gradients: of the network for an image; of these, differentiated ones.
    seconds: an image, without compiling.
    """

    images: UInt8[np.ndarray, "n h w c"]
    calls: int
    gradients: int
    seconds: float


Row = tuple[str, str]  # a network, and the method by which it fills holes; "" for its own


class Results:
    """All numbers, seed by seed, and the first seed's images."""

    def __init__(
        self,
        config: ConfigDict,
        split: str | None,
        images: UInt8[np.ndarray, "n h w c"],
        holes: dict[str, Float[np.ndarray, "n h w 1"]],
        reference: int,
        scores: dict[str, str],
    ):
        self.split = split  # None: of what was trained on
        self.config, self.images, self.holes, self.reference, self.scores = config, images, holes, reference, scores
        self.tuned: dict[str, str] = {}
        self.made: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.filled: dict[Row, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        self.first: dict[Row, dict[str, Cell]] = defaultdict(dict)

    def add_made(self, network: str, found: dict[str, float]) -> None:
        """Of the images that a network made from nothing."""
        self.made[network].append(found)

    def add_filled(self, row: Row, mask: str, cell: Cell, found: dict[str, float]) -> None:
        """Of the images whose holes were filled."""
        self.filled[row][mask].append({**found, "seconds": cell.seconds})
        self.first[row].setdefault(mask, cell)


def named(row: Row) -> str:
    """A network and its method, for a table."""
    return row[0] + (f" + {row[1]}" if row[1] else "")


def picture(results: Results) -> viz.Picture:
    """A few images of each kind of hole: what is known, and what each method makes of it."""
    size = results.images.shape[1:3]
    shown = [(mask, i) for mask in results.holes for i in range(min(SHOWN, len(results.images)))]
    known = viz.tiles(np.stack([results.images[i] for _, i in shown]))
    unknown = viz.enlarge(np.stack([results.holes[mask][i] for mask, i in shown]), viz.visible(size))[..., 0] > 0
    rows = [known, viz.hatch(known, unknown)]
    rows += [viz.tiles(np.stack([cells[mask].images[i] for mask, i in shown])) for cells in results.first.values()]
    names = ["real", "known", *map(named, results.first)]
    columns = [mask if i == 0 else "" for mask, i in shown]
    return viz.page(np.stack(rows), row_names=names, column_names=columns)


def _latents(config: ConfigDict) -> str:
    data = config.data
    if not data.get("latents"):
        return ""
    side = data.size // data.factor
    return f" in latents of {side}x{side}x{data.latent_channels} ({data.autoencoder})"


def text(command: str, results: Results) -> str:
    """The page."""
    config, how = results.config, results.config.sample
    count = len(next(iter(results.made.values())))
    seen = f"of its split {results.split}" if results.split else "out of those that were trained on"
    sets = [name for name in results.scores if name in next(iter(results.made.values()))[0]]
    holes = [[name, f"{hole.mean():.2f}", digest(hole)] for name, hole in results.holes.items()]
    parts = [
        f"""# {TITLE}

Written by this command, which trains what is missing and measures all of it; what is done is not done again:

    {command}

Networks of {count} seed{"s" * (count > 1)} each, alike in all but what they were trained for
([training times](training_times.md)), fill the same holes: the one of synchronous times by methods for ordinary
networks ([inpainting](inpainting.md)), the others by their own. Numbers are mean ± standard deviation over the seeds.
Data: {config.data.name}, {config.data.size}x{config.data.size}{_latents(config)}, {len(results.images)} images (hash
{digest(results.images)}) {seen}; sets are compared with {results.reference:,} real ones of these.
Training: {config.train.steps:,} steps of {config.train.batch}. Sampling: {how.solver} with eta {how.eta}, {how.steps}
steps, guidance {how.guidance}; methods with settings of their own use those.

{markdown.table(["score", "is"], results.scores.items())}

Holes, drawn once and kept as files:

{markdown.table(["holes", "mean area", "hash"], holes)}""",
    ]
    if results.tuned:
        parts.append(
            "Settings that belong to the data and the number of steps were chosen on training images, for the first "
            f"seed's network: {', '.join(results.tuned.values())}."
        )
    if sets:
        parts.append("## Generation")
        rows = [[n, *(markdown.spread(one[s] for one in seeds) for s in sets)] for n, seeds in results.made.items()]
        parts.append(markdown.table(["network", *sets], rows))
    parts.append("## Inpainting")
    names = list(results.holes)
    for score in results.scores:
        rows = []
        for row, by_mask in results.filled.items():
            if score in next(iter(by_mask.values()))[0]:
                rows.append([named(row), *(markdown.spread(one[score] for one in by_mask[mask]) for mask in names)])
        parts += [f"{score}:", markdown.table(["network + method", *names], rows)]
    costs = []
    for row, cells in results.first.items():
        seconds = [one["seconds"] for found in results.filled[row].values() for one in found]
        cell = next(iter(cells.values()))
        costs.append([named(row), str(cell.calls), str(cell.gradients), f"{np.median(seconds):.3f}"])
    parts += ["Cost of an image:", markdown.table(["network + method", "calls", "differentiated", "seconds"], costs)]
    parts.append(f"## Pictures\n\nThe first seed's:\n\n![Real, known, and filled images]({PICTURE})")
    return "\n\n".join(parts) + "\n"


def write(out: Path, command: str, results: Results) -> None:
    """The page, and its picture beside it."""
    image = out.parent / PICTURE
    image.parent.mkdir(parents=True, exist_ok=True)
    viz.save_png(image, picture(results), overwrite=True)
    with writing(out, overwrite=True) as stream:
        stream.write(text(command, results).encode())
