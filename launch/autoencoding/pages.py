"""What an autoencoder does, seen and measured on images that it was not trained on: a page, and measures.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from asyncpatch_jax import viz
from asyncpatch_jax.data import masks
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.files import write_json
from asyncpatch_jax.metrics import PSNR, SSIM
from asyncpatch_jax.metrics.leakage import LONGEST, Coder, Leakage, away, leakage
from asyncpatch_jax.metrics.paired import Paired
from asyncpatch_jax.metrics.similarity import SIDE

COLUMNS = ("image", "masked", "decoded", "moved")
_SHOWN = 12
Images = Float[np.ndarray, "n h w c"]
Holes = Float[np.ndarray, "n h w 1"]
Moved = Float[np.ndarray, "n _h _w"]  # NaN in the hole


def held_out(data: Dataset, count: int, kinds: Sequence[str], seed: int = 0) -> tuple[Images, Holes]:
    """So many images of a data set, evenly spread over it, each with a hole; kinds take turns."""
    count = min(count, len(data.source))
    places = np.linspace(0, len(data.source) - 1, count).astype(int)
    images = np.stack([data.source[int(place)]["image"] for place in places]).astype(np.float32) / 127.5 - 1
    rngs = [np.random.default_rng([seed, i]) for i in range(count)]
    holes = [masks.draw_one(kinds[i % len(kinds)], rng, data.shape[:2]) for i, rng in enumerate(rngs)]
    return images, np.stack(holes)


def reconstructed(coder: Coder, images: Images, holes: Holes, batch: int) -> tuple[Images, Moved]:
    """Images decoded from latents whose known cells do not know the hole; and how far these moved, in deviations."""
    distance = away(holes, coder.factor)
    whole = _each(lambda x: coder.encode(x, None), batch, images)
    masked = _each(coder.encode, batch, images, holes)
    moved = np.sqrt((((masked - whole) / np.maximum(whole.std((0, 1, 2)), 1e-12)) ** 2).mean(-1))
    latents = np.where((distance == 0)[..., None], whole, masked)
    made = _each(coder.decode, batch, latents, holes)
    return np.clip(made, -1, 1), np.where(distance == 0, np.nan, moved)


def _each(function: Any, batch: int, *arrays: np.ndarray) -> np.ndarray:
    parts = [function(*(x[i : i + batch] for x in arrays)) for i in range(0, len(arrays[0]), batch)]
    return np.concatenate([np.asarray(part) for part in parts])


def measures(
    coder: Coder,
    images: Images,
    holes: Holes,
    made: Images,
    lpips: Paired | None,
    batch: int,
    longest: int = LONGEST,
) -> dict[str, Any]:
    """Likeness to the originals inside and outside of the holes, and leakage, by name.

    Inside: what is known is the original's, and the other way round. PSNR is of the part alone.
    """
    known = 1 - holes
    pasted = {"hole": holes * made + known * images, "known": known * made + holes * images}
    found: dict[str, Any] = {}
    for part, where in (("hole", holes), ("known", known)):
        found[f"psnr_{part}"] = float(PSNR(made, images, where).mean())
        if min(images.shape[1:3]) >= SIDE:
            found[f"ssim_{part}"] = float(SSIM(pasted[part], images).mean())
        if lpips is not None:
            found[f"{lpips.name} {part}"] = float(lpips(pasted[part], images).mean())
    return {**found, **told(leakage(coder, images, holes, batch=batch, longest=longest))}


def told(found: Leakage) -> dict[str, Any]:
    """Leakage as plain numbers; rings without cells are left out."""
    plain = lambda rings: [ring._asdict() for ring in rings if ring.count]  # noqa: E731
    return {"latents": plain(found.latents), "pixels": plain(found.pixels), "hole": found.hole}


def page(images: Images, holes: Holes, made: Images, moved: Moved, title: str) -> UInt8[np.ndarray, "_h _w 3"]:
    """A row for each image: as it is, with its hole, decoded, and how far its known cells' latents moved."""
    shown = slice(0, _SHOWN)
    size = viz.visible(images.shape[1:3])
    original, decoded = viz.tiles(images[shown]), viz.tiles(made[shown])
    masked = viz.hatch(original, viz.enlarge(holes[shown] > 0.5, size)[..., 0])
    heat = viz.enlarge(viz.heat(np.nan_to_num(np.clip(moved[shown], 0, 1))[..., None]), size)
    heat = viz.hatch(heat, viz.enlarge(np.isnan(moved[shown])[..., None], size)[..., 0])
    return viz.page(np.stack([original, masked, decoded, heat], 1), column_names=COLUMNS, title=title)


def write(
    folder: epath.Path, coder: Coder, images: Images, holes: Holes, lpips: Paired | None, *, batch: int = 16
) -> Mapping[str, Any]:
    """Write both files of a step; returns the measures. Those that are there are made anew.

    Raises:
        OSError: a file cannot be written.
    """
    made, moved = reconstructed(coder, images, holes, batch)
    found = measures(coder, images, holes, made, lpips, batch)
    title = "latents moved: from 0 (violet) to one standard deviation (yellow)"
    viz.save_png(folder / "autoencoder.png", page(images, holes, made, moved, title), overwrite=True)
    write_json(folder / "measures.json", found, overwrite=True)
    return found


def line(found: Mapping[str, Any]) -> str:
    """The measures that matter most, for people."""
    rings = {ring["away"]: ring["moved"] for ring in found["latents"]}
    moved = ", ".join(f"{rings[d]:.4f}" for d in sorted(rings))
    return (
        f"PSNR {found['psnr_known']:.2f} dB of what is known, {found['psnr_hole']:.2f} in holes; known latents moved "
        f"by {moved} standard deviations at 1, 2, ... cells from the hole"
    )


def complete(folder: epath.Path) -> bool:
    """Whether a step has its measures, which are written last."""
    try:
        return bool(json.loads((folder / "measures.json").read_text()))
    except (OSError, ValueError):
        return False
