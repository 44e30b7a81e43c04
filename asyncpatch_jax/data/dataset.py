"""What a data set is, and the endless, reproducible batches drawn from it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from asyncpatch_jax import checks
from asyncpatch_jax.data import masks as masks_lib
from asyncpatch_jax.texts import composed

Augment = Literal["none", "flip"]
# of a text its ids [l], and which of them count
Tokens = Callable[[str], tuple[np.ndarray, np.ndarray]]


@runtime_checkable
class Source(Protocol):
    """Grain's random-access protocol; a record is {"image": uint8 [h, w, c], "label": int}.

    Of latents, images are float32 [h, w, z], and may have beside them as "mirrored" those of the mirrored image.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Latents(NamedTuple):
    """What latents are of.

    autoencoder: hash of the one that made them.
    factor: pixels to a side of a cell.
    shift, scale: by channel; what is read is (latents - shift) * scale.
    flips: whether mirrored images have theirs.
    """

    autoencoder: str
    factor: int
    shift: Any  # Float[np.ndarray, "z"]
    scale: Any  # Float[np.ndarray, "z"]
    flips: bool


class Dataset(NamedTuple):
    """A source and what a model needs to know of it. Data without labels is one class."""

    source: Source
    num_classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # h, w, c of every image
    names: str = ""  # `hashed` names of its records, which tell it from others wherever it lies; "": nobody knows
    latents: Latents | None = None  # None: images are pixels
    texts: bool = False  # whether records have "texts" (str, ...), of which any one says what the image shows


def hashed(names: Iterable[str]) -> str:
    """A hash of names in any order, however the file system that they come from composes their letters."""
    lines = sorted(composed(name) for name in names)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _flip(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    # mirrored latents are not those of the mirrored image
    mirrored = record["mirrored"] if "mirrored" in record else record["image"][:, ::-1]
    return {**record, "image": mirrored} if rng.random() < 0.5 else record


def _with_mask(
    record: dict[str, Any], rng: np.random.Generator, *, kinds: Sequence[str], whole: float, factor: int
) -> Any:
    """With a mask that is drawn on pixels; a cell of latents with anything of a hole in it is all hole."""
    shape = _pixels(record, factor)
    if rng.random() < whole:
        return {**record, "mask": _cells(np.ones((*shape, 1), np.float32), factor)}
    return {**record, "mask": _cells(masks_lib.draw_one(kinds[int(rng.integers(len(kinds)))], rng, shape), factor)}


def _with_share(record: dict[str, Any], rng: np.random.Generator, *, shares: Mapping[str, float], factor: int) -> Any:
    """The same by shares of kinds; what they leave has no hole."""
    draw, shape = rng.random(), _pixels(record, factor)
    for kind, share in shares.items():
        if draw < share:
            return {**record, "mask": _cells(masks_lib.draw_one(kind, rng, shape), factor)}
        draw -= share
    return {**record, "mask": _cells(np.zeros((*shape, 1), np.float32), factor)}


def _pixels(record: dict[str, Any], factor: int) -> tuple[int, int]:
    h, w = record["image"].shape[:2]
    return h * factor, w * factor


def _cells(mask: np.ndarray, factor: int) -> np.ndarray:
    h, w = mask.shape[0] // factor, mask.shape[1] // factor
    return mask.reshape(h, factor, w, factor, 1).max((1, 3))


def _without(record: dict[str, Any], *, name: str) -> dict[str, Any]:
    return {other: value for other, value in record.items() if other != name}


def _with_text(record: dict[str, Any], rng: np.random.Generator, *, tokens: Tokens) -> dict[str, Any]:
    """With one of its texts, as tokens, in the place of all."""
    texts = record["texts"]
    ids, counted = tokens(texts[int(rng.integers(len(texts)))])
    return {**_without(record, name="texts"), "ids": ids, "counted": counted}


def _to_floats(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    image = batch["image"]
    return {
        **batch,
        "image": image.astype(np.float32) / np.float32(127.5) - np.float32(1) if image.dtype == np.uint8 else image,
        "label": batch["label"].astype(np.int32),
    }


def batches(
    dataset: Dataset,
    *,
    batch: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    augment: Augment = "none",
    masks: Sequence[str] | Mapping[str, float] = (),
    whole: float = 0.0,
    tokens: Tokens | None = None,
    start: int = 0,
    threads: int = 4,
) -> Any:
    """An endless Grain iterator of {"image": float32 [batch, h, w, c] in [-1, 1], "label": int32 [batch]}.

    Latents come as their source has them. Flips of them are those that were encoded.

    With `tokens`, each record also has the "ids" [l] of one of its texts, drawn anew each time, and which of them are
    "counted".

    With `masks`, each record also has a "mask" [h, w, 1], 1 in the hole, of a kind that is drawn out of these
    (`masks.MASKS`); a share `whole` of them is all hole. Given as {kind: share}, kinds are drawn by their shares, and
    what these leave to 1 has a mask of zeros.

    Every epoch is a new permutation of the data, and epochs follow each other without a gap. All hosts together go
    through one stream: with shard=(index, count) a host gets its block of every `count * batch` consecutive records,
    so hosts never share a record of an epoch, and the blocks of the hosts in order are the batch that one host with
    batch `count * batch` would get. Batch k depends on (seed, k, shard) only: `start=k` and `set_state` go there at
    once, and `threads` (how many batches are prepared at a time; 0: in the caller, when asked) changes no value.

    The iterator has `get_state()` and `set_state(state)`, and Grain's checkpoint handlers take it.

    Raises:
        ValueError: tokens of data without texts, more images per step (all hosts) than the data set has, unknown
            augment or mask, flips of latents that have none, shard outside of 0 <= index < count, batch < 1, seed,
            start or threads < 0, whole outside of 0 ... 1.
    """
    index, count = shard
    images = len(dataset.source)
    if not 0 <= index < count:
        raise ValueError(f"expected shard = (index, count) with 0 <= index < count, got {shard}")
    if not 1 <= batch <= images // count:
        raise ValueError(f"expected a batch of 1 ... {images // count} ({images} images, {count} hosts), got {batch}")
    if tokens is not None and not dataset.texts:
        raise ValueError("expected data with texts to make tokens of, got data without")
    if augment not in ("none", "flip"):
        raise ValueError(f"expected augment = 'none' or 'flip', got {augment!r}")
    factor = dataset.latents.factor if dataset.latents else 1
    if augment == "flip" and dataset.latents and not dataset.latents.flips:
        raise ValueError("expected latents that were encoded with augment = 'flip' for this augment, got others")
    if min(seed, start, threads) < 0:
        raise ValueError(f"expected seed, start and threads >= 0, got {seed}, {start} and {threads}")
    for name in masks:
        masks_lib.draw(name, 0, 1, (dataset.shape[0] * factor, dataset.shape[1] * factor))
    checks.number("whole (the share of masks that are all hole)", whole, 0, 1)
    if isinstance(masks, Mapping):
        for name, share in masks.items():
            checks.number(f"the share of {name!r} masks", share, 0, 1)
        if (total := sum(masks.values())) > 1 + 1e-6 or whole:
            raise ValueError(f"expected shares of masks of 1 at most, and whole = 0, got {total:g} and {whole}")
    import grain

    records = grain.MapDataset.source(dataset.source).seed(seed).shuffle()
    if augment == "flip":
        # before the split into hosts: here a record's generator is that of its place in the common stream
        records = records.random_map(_flip)
    if isinstance(masks, Mapping):
        records = records.random_map(partial(_with_share, shares=dict(masks), factor=factor))
    elif masks:
        records = records.random_map(partial(_with_mask, kinds=tuple(masks), whole=whole, factor=factor))
    if dataset.latents:
        records = records.map(partial(_without, name="mirrored"))
    if tokens is not None:
        records = records.random_map(partial(_with_text, tokens=tokens))
    elif dataset.texts:
        records = records.map(partial(_without, name="texts"))
    steps = records.repeat().batch(batch, drop_remainder=True)[index::count].map(_to_floats)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(steps.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator
