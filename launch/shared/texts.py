"""The texts that a network learns from: which encoder reads them, and prompts as the network is told them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from asyncpatch_jax.data.dataset import Dataset, Source
from asyncpatch_jax.pretrained.text_encoder import TextEncoder, read_text_encoder


class Prompts(NamedTuple):
    """Texts, and what a network is told of each: vectors of its tokens, and which of them count."""

    texts: tuple[str, ...]
    vectors: Float[np.ndarray, "n l d"]
    counted: Bool[np.ndarray, "n l"]


def prompts(encoder: TextEncoder, texts: Sequence[str]) -> Prompts:
    """Texts as a network is told them. Errors as `TextEncoder.encode`."""
    vectors, counted = encoder.encode(texts)
    return Prompts(tuple(texts), np.asarray(vectors), counted)


def chosen(config: ConfigDict, mesh: Mesh | None) -> TextEncoder | None:
    """That of `config.text.encoder`, whose sizes are written into the configuration; None for a network without texts.

    Raises:
        ValueError: no such encoder, or another one than the configuration says.
        ImportError: the extra `text` is not installed.
    """
    text = config.text
    if not text.encoder:
        if text.width or text.tokenizer:
            raise ValueError("expected --config.text.encoder=FOLDER to learn from texts (docs/training.md), got none")
        return None
    encoder = read_text_encoder(text.encoder, text.length, tokenizer=text.tokenizer or None, mesh=mesh)
    for name, own in (("width", encoder.width), ("length", encoder.tokenizer.length), ("digest", encoder.digest)):
        if text[name] not in (None, own):
            raise ValueError(f"expected a text encoder with {name} = {text[name]}, got {own} in {text.encoder}")
        text[name] = own
    return encoder


def of_run(config: ConfigDict, mesh: Mesh | None, folder: str | None) -> TextEncoder:
    """The encoder that a trained run was told texts by.

    Args:
        folder: where it lies now; None: where it lay.

    Raises:
        ValueError: a run without texts; the encoder is not there, or is another one.
    """
    text = config.get("text") or ConfigDict()  # runs of before have none
    if not text.get("width"):
        raise ValueError("expected a run that learned from texts for prompts (config.text.encoder), got one without")
    where = folder or text.encoder
    hint = "say by --text_encoder=FOLDER where that of the run lies now"
    try:
        encoder = read_text_encoder(where, text.length, tokenizer=text.tokenizer or None, mesh=mesh)
    except ValueError as error:
        raise ValueError(f"{error}; {hint}") from error
    if encoder.digest != text.digest:
        raise ValueError(
            f"expected the text encoder {text.digest}, got another one ({encoder.digest}) in {where}; {hint}"
        )
    return encoder


@dataclass(frozen=True, eq=False)
class _Named:
    """Records whose text is the name of their class."""

    source: Source
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        return {**record, "texts": (self.names[int(record["label"])],)}


def with_texts(config: ConfigDict, data: Dataset) -> Dataset:
    """Data with a text for each image, if the network learns from texts: the data's own, or the names of its classes.

    Raises:
        ValueError: it has neither.
    """
    if not config.text.width or data.texts:
        return data
    if data.num_classes == 1:
        cached = ", and --config.data.latents=online for latents of them" if data.latents else ""
        raise ValueError(
            "expected data with texts (config.data.name=captions, or tfds with config.data.text) or with classes, "
            f"whose names are their texts{cached}, got neither"
        )
    return data._replace(source=_Named(data.source, data.class_names), texts=True)
