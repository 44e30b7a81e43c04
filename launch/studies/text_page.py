"""The page and the pictures of `launch.studies.text`: tables in Markdown, with intervals of paired differences."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from asyncpatch_jax import viz
from asyncpatch_jax.data import scenes
from asyncpatch_jax.files import writing
from asyncpatch_jax.metrics.alignment import Verdict
from asyncpatch_jax.metrics.intervals import Interval, bootstrap
from asyncpatch_jax.pretrained.pipelines import Made
from launch.shared import markdown, scenes_judge

TITLE = "Text to image on captioned scenes"
_TITLES = {"sd": "UNet with cross-attention", "sd3": "MM-DiT"}
_SHOWN = 8  # captions of a picture
_MOMENTS = 8  # steps of the picture of a run
Scores = Float[np.ndarray, "s n"]


class Results(NamedTuple):
    """Everything that was measured of one network.

    tried: by guidance scale, on captions that were trained on.
    labels: held-out captions.
    cells: by method, one for each seed; the first method is what the others are compared with.
    runs: of AsynDM with dynamic masks, by caption.
    """

    family: str
    training: dict[str, Any]
    parameters: dict[str, int]
    tried: dict[float, Any]
    guidance: float
    labels: Int[np.ndarray, "n"]
    cells: dict[str, list[Any]]
    runs: list[Made]


def scores(cells: Sequence[Any], of: Callable[[Verdict], float]) -> Scores:
    """A number of each image, in percent [seeds, captions]."""
    return np.array([[100.0 * of(verdict) for verdict in cell.verdicts] for cell in cells])


def interval(difference: Scores) -> Interval:
    """Of the mean of paired differences [seeds, captions]: captions are drawn again, with all their seeds."""
    return bootstrap(difference.mean(0))


def _mean(cells: Sequence[Any], of: Callable[[Verdict], float]) -> str:
    """Mean over all images ± standard deviation of the seeds' means."""
    per_seed = scores(cells, of).mean(1)
    return f"{per_seed.mean():.1f} ± {per_seed.std(ddof=1):.1f}"


def _part(cells: Sequence[Any], name: str) -> str:
    found = [getattr(verdict, name) for cell in cells for verdict in cell.verdicts]
    said = [value for value in found if value is not None]
    return f"{100 * np.mean(said):.1f}" if said else "–"


def _difference(cells: Sequence[Any], base: Sequence[Any], of: Callable[[Verdict], float]) -> str:
    difference = scores(cells, of) - scores(base, of)
    mean, low, high = interval(difference)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _alignment(verdict: Verdict) -> float:
    return verdict.alignment


def _strict(verdict: Verdict) -> float:
    return float(verdict.strict)


def _base(name: str, cells: dict[str, list[Any]]) -> str:
    """What a method is compared with: ordinary sampling, with noise if the method has it."""
    noisy = name.endswith("η = 1")
    return next(other for other in cells if other.endswith("η = 1") == noisy)


def method_table(result: Results) -> str:
    """A row for each method."""
    rows = []
    for name, cells in result.cells.items():
        base = result.cells[_base(name, result.cells)]
        own = base is cells
        rows.append(
            [
                name,
                _mean(cells, _alignment),
                "–" if own else _difference(cells, base, _alignment),
                _mean(cells, _strict),
                "–" if own else _difference(cells, base, _strict),
                *(_part(cells, part) for part in ("objects", "relation", "sizes", "place")),
                f"{cells[1].seconds:.2f}",
            ]
        )
    head = ["method", "alignment", "against DM", "all true", "against DM"]
    return markdown.table([*head, "objects", "relation", "sizes", "place", "s / image"], rows)


def verdict_text(result: Results) -> str:
    """Which differences are more than chance, said plainly."""
    better, worse = [], []
    for name, cells in result.cells.items():
        base = _base(name, result.cells)
        if name == base:
            continue
        _, low, high = interval(scores(cells, _alignment) - scores(result.cells[base], _alignment))
        better += [name] if low > 0 else []
        worse += [name] if high < 0 else []
    said = "; ".join(f"{word} than DM: {', '.join(n) or 'none'}" for word, n in (("better", better), ("worse", worse)))
    return f"Of the differences in alignment, those whose interval leaves out 0: {said}."


def kind_table(result: Results) -> str:
    """Alignment by kind of caption."""
    captions = [scenes.captions()[i] for i in result.labels]
    kinds = [kind for kind in scenes.KINDS if any(caption.kind == kind for caption in captions)]
    columns = {kind: [i for i, caption in enumerate(captions) if caption.kind == kind] for kind in kinds}
    rows = [
        [name, *(f"{scores(cells, _alignment)[:, columns[kind]].mean():.1f}" for kind in kinds)]
        for name, cells in result.cells.items()
    ]
    return markdown.table(["method", *(f"{kind} ({len(columns[kind])})" for kind in kinds)], rows)


def guidance_table(result: Results) -> str:
    """What the guidance scale was chosen by."""
    rows = []
    for scale, cell in result.tried.items():
        alignment, strict = scenes_judge.summary(cell.verdicts)
        rows.append([f"{scale:g}", f"{100 * alignment:.1f}", f"{100 * strict:.1f}"])
    return markdown.table(["guidance", "alignment", "all true"], rows)


def examples(result: Results) -> np.ndarray:
    """Images of the first captions, a row for each method."""
    rows = np.stack([viz.tiles(cells[0].images[:_SHOWN]) for cells in result.cells.values()])
    columns = [str(i + 1) for i in range(rows.shape[1])]
    # the font of the pictures has no Greek letters
    names = [name.replace("ω", "omega").replace("η", "eta") for name in result.cells]
    return viz.page(rows, row_names=names, column_names=columns)


def _watched(result: Results) -> int:
    """The place of the first caption with two different digits."""
    two = [i for i, label in enumerate(result.labels) if len(scenes.captions()[label].objects) == 2]
    return two[0] if two else 0


def focus(result: Results) -> list[tuple[float, float]]:
    """Where AsynDM's masks lie: for each digit that an image shows as asked for, by its own word's attention.

    Attention inside of the digit's box, against the mean over the image; and the share of steps and cells in the box
    that the mask has. A step counts from the second half of the run, where digits can be seen.
    """
    found = scenes_judge.read(np.stack([made.image for made in result.runs]))
    measured = []
    for made, label, digits in zip(result.runs, result.labels, found, strict=True):
        caption = scenes.captions()[label]
        maps = made.maps[len(made.maps) // 2 :]
        maps = viz.enlarge(maps, made.image.shape[:2])
        for i, digit in enumerate(dict.fromkeys(caption.digits)):
            inside = np.zeros(made.image.shape[:2], bool)
            for box, name in digits:
                if name == digit:
                    inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
            if inside.any():
                mean = maps[..., i].mean((1, 2), keepdims=True)
                ratio = maps[..., i] / np.maximum(mean, 1e-12)
                measured.append((float(ratio[:, inside].mean()), float((ratio[:, inside] >= 1).mean())))
    return measured


def focus_text(result: Results) -> str:
    """`focus`, said."""
    measured = np.array(focus(result)).reshape(-1, 2)
    if not len(measured):
        return "No image shows a digit that was asked for, so there is no telling where the masks lie."
    (ratio, share), spread = measured.mean(0), measured.std(0)
    return f"""Where the dynamic masks lie (ω = .5, first seed, second half of the run, {len(measured)} digits that are
shown as asked for): the attention to a digit's word inside that digit's box is {ratio:.2f} ± {spread[0]:.2f} times its
mean over the image, and {share:.0%} of the box's cells are in its mask."""


def watched(result: Results) -> np.ndarray:
    """A run of AsynDM: how far cells lag, and where the network looks for each object, at some steps."""
    place = _watched(result)
    made = result.runs[place]
    steps = np.linspace(1, len(made.maps) - 1, min(_MOMENTS, len(made.maps) - 1)).round().astype(int)
    image = viz.tiles(made.image[None])
    size = image.shape[1:3]
    lag = made.fields - made.fields.min((1, 2, 3), keepdims=True)
    rows = [viz.heat(lag[steps] / max(lag.max(), 1e-9))]
    objects = scenes.captions()[result.labels[place]].objects
    for i in range(len(objects)):
        maps = made.maps[steps][..., i : i + 1]
        rows.append(viz.heat(np.clip(maps / np.maximum(maps.max((1, 2, 3), keepdims=True), 1e-9), 0, 1)))
    blank = np.full_like(image, 255)
    tiles = [np.concatenate([viz.enlarge(row, size), image if i == 0 else blank]) for i, row in enumerate(rows)]
    names = [*(f"step {step}" for step in steps), "image"]
    return viz.page(np.stack(tiles), row_names=["lag", *objects], column_names=names)


def section(result: Results, pictures: dict[str, str]) -> str:
    """What is said of one network."""
    training = result.training
    texts = "; ".join(f"{i + 1}: {scenes.captions()[label].text}" for i, label in enumerate(result.labels[:_SHOWN]))
    sizes = ", ".join(f"{name} {count:,}" for name, count in result.parameters.items())
    film = scenes.captions()[result.labels[_watched(result)]].text
    cycles = " + ".join(map(str, training["cycles"]))
    early = ", stopped before their end" if training["step"] < sum(training["cycles"]) else ""
    return f"""## {_TITLES[result.family]}

Parameters: {sizes}. Trained for {training["step"]} steps of {training["batch"]} scenes (cosine decays of
{cycles} steps{early}). Guidance, by ordinary sampling of {len(result.labels)} captions that were trained on:

{guidance_table(result)}

The best one, {result.guidance:g}, is used below (CFG++ has its own scale, λ = .6 of its paper; AsynDM's table has .4).
Held-out captions, percent:

{method_table(result)}

{verdict_text(result)}

{focus_text(result)}

Alignment by kind of caption (and how many there are):

{kind_table(result)}

![Images of each method]({pictures["examples"]})

The first seed's images. {texts}.

![A run of AsynDM]({pictures["run"]})

"{film}", AsynDM with ω = .5: how far each cell lags behind the background (yellow is most), and the attention to each
object, each step's brightest cell yellow.
"""


def page(command: str, results: Sequence[Results], pictures: list[dict[str, str]], steps: int) -> str:
    """All of it in Markdown."""
    own, other = (scenes_judge.summary(verdicts) for verdicts in scenes_judge.of_real(1000, seed=0))
    first = next(iter(results[0].cells.values()))
    count, seeds = len(results[0].labels), len(first)
    held_out, total = len(scenes.split_captions("test")), len(scenes.captions())
    sections = "\n".join(section(result, named) for result, named in zip(results, pictures, strict=True))
    return f"""# {TITLE}

Written by this command, which trains what is missing and measures all of it:

    {command}

Small networks of the architectures of Stable Diffusion and Stable Diffusion 3, with their text encoders, trained from
nothing on 24x24 scenes of one to three real handwritten digits. A caption names digits, how many, how large, where, or
how two of them lie to each other: "a small two above a large five". They stand in for public networks: trained with one
time for all cells of an image, saved in the layout of diffusers, and sampled by the same code.

Of {total} captions {held_out} are held out: combinations, and all ways to say them, that no training scene has. {count}
of these, {seeds} seeds each, make {count * seeds} images for each method; an image begins with the same noise in every
method. {steps} steps, deterministic unless η = 1 is said (DDIM for the UNet, Euler for the MM-DiT; Z-Sampling and CFG++
are DDIM's).

A classifier that has seen only real digits names each connected piece of ink. *Alignment* is the mean over what a
caption claims (the digits and their number, sizes, relation, place) of how far it is true, *all true* the share of
images where everything is and nothing else is there. On real scenes of digits that the classifier has not seen, it
finds {own[0]:.1%} alignment and {own[1]:.1%} all true with their own captions, {other[0]:.1%} and {other[1]:.1%} with
captions of other scenes.

± is the standard deviation of the seeds' means. "Against DM" is the mean paired difference to ordinary sampling with
the same noise, and in brackets its 95 % bootstrap interval over captions. Seconds are of the second seed (the first
also compiles) on a machine of which other work had a share; fixed masks take a synchronous run first. "DM's digits" is
a control: its masks are where ordinary sampling from the same noise drew digits.

{sections}"""


def write(out: Path, command: str, results: Sequence[Results], steps: int) -> list[Path]:
    """Write the page, and its pictures beside it in images/; returns the paths."""
    paths, pictures = [], []
    for result in results:
        named = {name: f"images/{out.stem}_{result.family}_{name}.png" for name in ("examples", "run")}
        for name, picture in (("examples", examples(result)), ("run", watched(result))):
            paths.append(out.parent / named[name])
            viz.save_png(paths[-1], picture, overwrite=True)
        pictures.append(named)
    with writing(out, overwrite=True) as stream:
        stream.write(page(command, results, pictures, steps).encode())
    return [*paths, out]
