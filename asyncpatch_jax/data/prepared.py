"""Sets that TensorFlow Datasets prepared on a disk, read without TensorFlow."""

import functools
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from asyncpatch_jax.data.dataset import Dataset, hashed
from asyncpatch_jax.data.decoding import MAX_PIXELS, check_max_pixels
from asyncpatch_jax.data.images import check_settings, read_image
from asyncpatch_jax.data.tfrecord import TFRecords


@dataclass(frozen=True, eq=False)
class _Records:
    examples: Any  # serialised examples by index
    parse: Callable[[bytes], dict[str, Any]]
    where: str
    num_classes: int
    size: int
    channels: int
    max_pixels: int
    text: str  # the feature with texts; "": none

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.parse(self.examples[index])
        label = 0 if self.text else int(record.get("label", 0))
        if not 0 <= label < self.num_classes:
            hint = "; -1 stands for labels that are kept secret: take another split" if label == -1 else ""
            raise ValueError(
                f"expected labels from 0 to {self.num_classes - 1} in {self.where}, got {label} in record {index}{hint}"
            )
        stream = io.BytesIO(record["image"])
        stream.name = f"record {index} of {self.where}"
        found = {"image": read_image(stream, self.size, self.channels, max_pixels=self.max_pixels), "label": label}
        if self.text:
            said: Any = functools.reduce(lambda value, key: value[key], self.text.split("/"), record)
            texts = tuple(one.decode().strip() for one in np.ravel(said))
            found["texts"] = tuple(filter(None, texts))
            if not found["texts"]:
                raise ValueError(f"expected a text as {self.text} in record {index} of {self.where}, got none")
        return found


def tfds(
    name: str,
    data_dir: str | os.PathLike[str],
    split: str = "train",
    size: int = 64,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    *,
    text: str = "",
) -> Dataset:
    """A prepared TensorFlow Datasets set, e.g. "imagenet_resized/64x64" or "lsun/bedroom"; TensorFlow reads none of it.

    Looks in the standard layout data_dir/name[/config]/version: the newest version there, or the one of "name:1.2.3".
    The set needs an "image" feature of 8 or 16 bit; "label" is optional, and a ClassLabel. `split` follows TFDS
    ("train", "validation", "train[:90%]", ...). Images become size x size centre squares, as in `folder`. array_record
    is the format made for this; tfrecord, which TFDS writes unless told otherwise, is read from local disks after a
    pass over the lengths of its records.

    Args:
        text: the feature of one text or several, such as "captions/text" of coco_captions: a record then has "texts",
            as those of `captions.captioned`, and no label.

    Raises:
        ValueError: not prepared there, or in a format that this cannot read (with the command that helps); a damaged
            tfrecord file; no "image", or one of floats; a "label" that says no number of classes; a first record that
            cannot be read; unknown split or number of channels.
    """
    check_settings(size, channels)
    check_max_pixels(max_pixels)
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(_version_folder(name, data_dir))
    features = dict(builder.info.features.items())
    where = str(builder.data_dir)
    if text:
        _check_text(text, features, where)
    names = (name,) if text else _class_names(name, features, where)
    # our own decoder reads the bytes, so that every source treats modes and sizes alike
    decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
    parse = functools.partial(builder.info.features.deserialize_example_np, decoders=decoders)
    records = _Records(_examples(builder, name, split), parse, where, len(names), size, channels, max_pixels, text)
    if len(records):
        records[0]  # what is wrong with all of them shall show now
    known = hashed([f"{builder.info.full_name} {split}"])
    return Dataset(records, len(names), names, (size, size, channels), known, texts=bool(text))


def _check_text(text: str, features: Mapping[str, Any], where: str) -> None:
    """Refuse what is no feature of texts, and name those that are."""
    from tensorflow_datasets import features as kinds

    _check_image(features, where)
    texts = []

    def look(path: str, feature: Any) -> None:
        if isinstance(feature, kinds.Sequence):
            look(path, feature.feature)
        elif isinstance(feature, Mapping | kinds.FeaturesDict):
            for name, below in feature.items():
                look(f"{path}/{name}" if path else name, below)
        elif isinstance(feature, kinds.Text):
            texts.append(path)

    look("", features)
    if text not in texts:
        raise ValueError(
            f"expected a feature of texts out of {', '.join(sorted(texts)) or 'none'} in {where}, got {text!r}"
        )


def _check_image(features: Mapping[str, Any], where: str) -> None:
    from tensorflow_datasets import features as kinds

    image = features.get("image")
    if not isinstance(image, kinds.Image) or isinstance(image, kinds.LabeledImage):
        got = f"a {type(image).__name__}" if image else f"only {', '.join(features)}"
        raise ValueError(f"expected an 'image' feature of pictures in {where}, got {got}")
    if image.np_dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected images of uint8 or uint16 in {where}, got {np.dtype(image.np_dtype)}")


def _class_names(name: str, features: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The classes of a data set; refuses features that this module would misread."""
    from tensorflow_datasets import features as kinds

    _check_image(features, where)
    label = features.get("label")
    if label is None:
        return (name,)
    if not isinstance(label, kinds.ClassLabel):
        raise ValueError(
            f"expected a 'label' feature that says how many classes there are in {where}, got {label!r}; prepare it "
            "again with tfds.features.ClassLabel(num_classes=...) there, or without"
        )
    return tuple(label.names)


def _examples(builder: Any, name: str, split: str) -> Any:
    from tensorflow_datasets.core.decode import DeserializeMethod

    try:
        return builder.as_data_source(split=split, deserialize_method=DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        files = builder.info.splits[split].file_instructions
        file_format = builder.info.file_format.value
        if file_format != "tfrecord" or not all(os.path.isfile(file.filename) for file in files):
            raise ValueError(
                f"expected {name} as array_record, or as tfrecord on a local disk, got {file_format} in "
                f"{builder.data_dir}; prepare it again, in another data_dir: {_command(name, '...')}"
            ) from error
        return TFRecords([(file.filename, file.examples_in_shard, file.skip, file.take) for file in files])


def _version_folder(name: str, data_dir: str | os.PathLike[str]) -> epath.Path:
    name, _, version = name.partition(":")
    root = epath.Path(data_dir).expanduser() / name
    found = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    versions = [v for v in found if re.fullmatch(r"\d+\.\d+\.\d+", v) and version in ("", v)]
    if not versions:
        there = f"it holds {', '.join(sorted(found))}" if found else "no such folder"
        raise ValueError(
            f"expected {name} prepared in {root}/<version>, got none ({there}); prepare it with: "
            f"{_command(name, data_dir)}"
        )
    return root / max(versions, key=lambda v: tuple(map(int, v.split("."))))


def _command(name: str, data_dir: object) -> str:
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
