"""What a data set is, and the endless, reproducible batches drawn from it."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from asyncpatch_jax import checks
from asyncpatch_jax.data import masks as masks_lib
from asyncpatch_jax.texts import composed

Augment = Literal["none", "flip"]


@runtime_checkable
class Source(Protocol):
    """Grain's random-access protocol; a record is {"image": uint8 [h, w, c], "label": int}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Dataset(NamedTuple):
    """A source and what a model needs to know of it. Data without labels is one class."""

    source: Source
    num_classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # h, w, c of every image
    names: str = ""  # `hashed` names of its records, which tell it from others wherever it lies; "": nobody knows


def hashed(names: Iterable[str]) -> str:
    """A hash of names in any order, however the file system that they come from composes their letters."""
    lines = sorted(composed(name) for name in names)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _flip(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**record, "image": record["image"][:, ::-1]} if rng.random() < 0.5 else record


def _with_mask(record: dict[str, Any], rng: np.random.Generator, *, kinds: Sequence[str], whole: float) -> Any:
    shape = record["image"].shape[:2]
    if rng.random() < whole:
        return {**record, "mask": np.ones((*shape, 1), np.float32)}
    return {**record, "mask": masks_lib.draw_one(kinds[int(rng.integers(len(kinds)))], rng, shape)}


def _to_floats(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        **batch,
        "image": batch["image"].astype(np.float32) / np.float32(127.5) - np.float32(1),
        "label": batch["label"].astype(np.int32),
    }


def batches(
    dataset: Dataset,
    *,
    batch: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    augment: Augment = "none",
    masks: Sequence[str] = (),
    whole: float = 0.0,
    start: int = 0,
    threads: int = 4,
) -> Any:
    """An endless Grain iterator of {"image": float32 [batch, h, w, c] in [-1, 1], "label": int32 [batch]}.

    With `masks`, each record also has a "mask" [h, w, 1], 1 in the hole, of a kind that is drawn out of these
    (`masks.MASKS`); a share `whole` of them is all hole.

    Every epoch is a new permutation of the data, and epochs follow each other without a gap. All hosts together go
    through one stream: with shard=(index, count) a host gets its block of every `count * batch` consecutive records,
    so hosts never share a record of an epoch, and the blocks of the hosts in order are the batch that one host with
    batch `count * batch` would get. Batch k depends on (seed, k, shard) only: `start=k` and `set_state` go there at
    once, and `threads` (how many batches are prepared at a time; 0: in the caller, when asked) changes no value.

    The iterator has `get_state()` and `set_state(state)`, and Grain's checkpoint handlers take it.

    Raises:
        ValueError: more images per step (all hosts) than the data set has, unknown augment or mask, shard outside
            0 <= index < count, batch < 1, seed, start or threads < 0, whole outside of 0 ... 1.
    """
    index, count = shard
    images = len(dataset.source)
    if not 0 <= index < count:
        raise ValueError(f"expected shard = (index, count) with 0 <= index < count, got {shard}")
    if not 1 <= batch <= images // count:
        raise ValueError(f"expected a batch of 1 ... {images // count} ({images} images, {count} hosts), got {batch}")
    if augment not in ("none", "flip"):
        raise ValueError(f"expected augment = 'none' or 'flip', got {augment!r}")
    if min(seed, start, threads) < 0:
        raise ValueError(f"expected seed, start and threads >= 0, got {seed}, {start} and {threads}")
    for name in masks:
        masks_lib.draw(name, 0, 1, dataset.shape[:2])
    checks.number("whole (the share of masks that are all hole)", whole, 0, 1)
    import grain

    records = grain.MapDataset.source(dataset.source).seed(seed).shuffle()
    if augment == "flip":
        # before the split into hosts: here a record's generator is that of its place in the common stream
        records = records.random_map(_flip)
    if masks:
        records = records.random_map(partial(_with_mask, kinds=tuple(masks), whole=whole))
    steps = records.repeat().batch(batch, drop_remainder=True)[index::count].map(_to_floats)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(steps.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator
