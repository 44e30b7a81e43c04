import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.data import PHOTOS, Dataset, batches, digits, folder, photo, photos, tfds


class Numbered:
    """Image i is filled with i and cannot be flipped unnoticed: its last column is 255."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        image = np.full((2, 3, 1), index, np.uint8)
        image[:, -1] = 255
        return {"image": image, "label": index}


def numbered(n):
    return Dataset(Numbered(n), n, tuple(map(str, range(n))), (2, 3, 1))


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def labels(items):
    return np.concatenate([item["label"] for item in items])


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x["image"], y["image"])
        np.testing.assert_array_equal(x["label"], y["label"])


def test_batches_are_floats_of_the_records():
    (item,) = take(batches(numbered(10), batch=4, seed=0), 1)
    assert (item["image"].dtype, item["label"].dtype) == (np.float32, np.int32)
    assert item["image"].shape == (4, 2, 3, 1)
    np.testing.assert_array_equal(np.round((item["image"][:, 0, 0, 0] + 1) * 127.5), item["label"])
    assert (item["image"][:, :, -1] == 1).all()


def test_every_epoch_is_a_new_permutation_without_gaps():
    seen = labels(take(batches(numbered(10), batch=4, seed=3), 15)).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(seen, 1), np.tile(np.arange(10), (6, 1)))
    assert len(np.unique(seen, axis=0)) == 6


def test_hosts_share_one_stream():
    whole = take(batches(numbered(12), batch=6, seed=5, augment="flip"), 8)
    hosts = [take(batches(numbered(12), batch=2, seed=5, augment="flip", shard=(i, 3)), 8) for i in range(3)]
    joined = [{k: np.concatenate([host[step][k] for host in hosts]) for k in whole[0]} for step in range(8)]
    assert_equal(whole, joined)
    # an epoch is two steps here: disjoint, and together everything
    np.testing.assert_array_equal(np.sort(labels([step for host in hosts for step in host[:2]])), np.arange(12))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batch_k_depends_on_seed_and_shard_only(threads):
    def make(seed=1, index=1, **settings):
        return batches(numbered(20), batch=4, seed=seed, shard=(index, 2), augment="flip", **settings)

    expected = take(make(threads=4), 12)
    assert_equal(take(make(threads=threads), 12), expected)
    assert_equal(take(make(threads=threads, start=7), 5), expected[7:])
    for other in (make(seed=2), make(index=0)):
        assert (labels(take(other, 12)) != labels(expected)).any()


def test_state_is_restored_exactly():
    first = batches(numbered(20), batch=4, seed=1, augment="flip")
    take(first, 7)
    state = first.get_state()
    expected = take(first, 6)
    second = batches(numbered(20), batch=4, seed=1, augment="flip")
    take(second, 2)
    second.set_state(state)
    assert_equal(take(second, 6), expected)
    # back again, on the iterator that had gone on
    first.set_state(state)
    assert_equal(take(first, 6), expected)


def test_start_is_a_seek():
    (item,) = take(batches(numbered(20), batch=4, seed=1, start=10**12), 1)
    assert len(set(item["label"])) == 4


def test_flip_turns_half_of_the_images_and_differently_every_epoch():
    items = take(batches(numbered(50), batch=50, seed=0, augment="flip"), 20)
    flipped = np.stack([(i["image"][:, 0, 0, 0] == 1)[np.argsort(i["label"])] for i in items])
    assert flipped.mean() == pytest.approx(0.5, abs=0.05)
    assert len(np.unique(flipped, axis=0)) == 20
    middle = np.concatenate([item["image"][:, 0, 1, 0] for item in items])
    np.testing.assert_array_equal(np.round((middle + 1) * 127.5), labels(items))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 11}, r"a batch of 1 ... 10 \(10 images, 1 hosts\), got 11"),
        ({"batch": 4, "shard": (0, 3)}, r"a batch of 1 ... 3 \(10 images, 3 hosts\), got 4"),
        ({"batch": 0}, "a batch of 1"),
        ({"shard": (2, 2)}, "0 <= index < count"),
        ({"shard": (0, 0)}, "0 <= index < count"),
        ({"start": -1}, "start and threads >= 0"),
        ({"seed": -1}, "expected seed"),
        ({"threads": -1}, "start and threads >= 0"),
        ({"augment": "rotate"}, "augment = 'none' or 'flip'"),
    ],
)
def test_wrong_batches(settings, message):
    with pytest.raises(ValueError, match=message):
        batches.__wrapped__(numbered(10), **{"batch": 2, "seed": 0, **settings})  # past the type check of the tests


def images(dataset):
    return np.stack([dataset.source[i]["image"] for i in range(len(dataset.source))])


def test_digits_hold_out_a_fifth_of_each_class():
    from sklearn.datasets import load_digits

    train, test = digits("train"), digits("test")
    assert (train.shape, train.num_classes, train.class_names[7]) == ((8, 8, 1), 10, "7")
    assert len(train.source) + len(test.source) == 1797
    counts = [np.bincount([part.source[i]["label"] for i in range(len(part.source))]) for part in (train, test)]
    np.testing.assert_array_equal(counts[1], (counts[0] + counts[1]) // 5)
    # together they are scikit-learn's set, each value exactly recoverable
    both = np.concatenate([images(train), images(test)])[..., 0]
    real = load_digits().images
    assert sorted(map(bytes, np.round(both * (16 / 255)).astype(np.uint8))) == sorted(map(bytes, real.astype(np.uint8)))


def test_digits_scale_up_smoothly():
    small, large = digits("test"), digits("test", 16)
    assert large.shape == (16, 16, 1)
    assert [r["label"] for r in map(large.source.__getitem__, range(9))] == [
        r["label"] for r in map(small.source.__getitem__, range(9))
    ]
    a, b = images(small)[:50, ..., 0].astype(float), images(large)[:50, ..., 0].astype(float)
    means = b.reshape(50, 8, 2, 8, 2).mean((2, 4))
    assert np.corrcoef(means.ravel(), a.ravel())[0, 1] > 0.98
    with pytest.raises(ValueError, match="own 8 pixels"):
        digits(size=7)
    with pytest.raises(ValueError, match="split = 'train' or 'test'"):
        digits.__wrapped__("validation")


def test_every_photograph_is_there():
    for name in PHOTOS:
        assert min(photo(name).shape[:2]) >= 300
    assert photo("brick", 1).shape == (512, 512, 1)
    with pytest.raises(ValueError, match="expected a photograph out of astronaut"):
        photo("lena")


def test_photo_crops_come_from_every_place_of_their_part():
    names = ("rocket", "chelsea")
    train, test = photos(64, 1, "train", names), photos(64, 1, "test", names)
    assert (train.shape, train.class_names) == ((64, 64, 1), names)
    rocket = photo("rocket", 1)  # 640 wide: crops of the first 480 columns train
    for dataset, part in ((train, rocket[:, :480]), (test, rocket[:, 480:])):
        positions = (part.shape[0] - 63) * (part.shape[1] - 63)
        assert len(dataset.source) == 2 * positions
        for y, x in ((0, 0), (3, 5), (part.shape[0] - 64, part.shape[1] - 64)):
            record = dataset.source[2 * (y * (part.shape[1] - 63) + x)]
            assert record["label"] == 0
            np.testing.assert_array_equal(record["image"], part[y : y + 64, x : x + 64])
    # the smaller photograph: as many records, from its first to its last position
    cat = photo("chelsea", 1)[:, : 451 * 3 // 4]
    np.testing.assert_array_equal(train.source[1]["image"], cat[:64, :64])
    np.testing.assert_array_equal(train.source[len(train.source) - 1]["image"], cat[-64:, -64:])
    assert train.source[1]["label"] == 1


def test_wrong_photos():
    with pytest.raises(ValueError, match="at most 113 pixels for test crops"):
        photos(128, split="test", names=("chelsea",))
    with pytest.raises(ValueError, match="different names"):
        photos(names=())
    with pytest.raises(ValueError, match="different names"):
        photos(names=("brick", "brick"))
    with pytest.raises(ValueError, match="channels out of"):
        photos(channels=2)


def test_folder_of_mixed_images(tmp_path):
    for name, mode, size in (("a/x.png", "RGBA", (9, 20)), ("a/y.jpg", "L", (30, 8)), ("b/z.png", "I;16", (8, 8))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new(mode, size).save(tmp_path / name)
    dataset = folder(tmp_path, 8)
    assert (dataset.shape, dataset.num_classes, dataset.class_names) == ((8, 8, 3), 2, ("a", "b"))
    (item,) = take(batches(dataset, batch=3, seed=0), 1)
    assert item["image"].shape == (3, 8, 8, 3)
    assert sorted(item["label"]) == [0, 0, 1]
    (tmp_path / "a" / "x.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"a/x\.png"):
        folder(tmp_path, 8)
    with pytest.raises(ValueError, match=r"a/y\.jpg \(30x8 pixels, more than max_pixels = 239"):
        folder(tmp_path, 8, max_pixels=239)
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        assert len(folder(tmp_path, 8, on_error="skip").source) == 2


SAID = [["a cat", " eine Katze, groß"], ["x"], ["", "y"], ["z"], ["u"], [" "]]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


def write_tfds(
    data_dir,
    *,
    name="tiny",
    labelled=True,
    file_format="array_record",
    config=None,
    image=None,
    label=None,
    values=None,
    said=(),
):
    """A data set in the standard layout: six 8x8 images in "train", two of them again in "test".

    `image`, `label`: features other than the usual; `values`: (images, labels) for them.
    """
    import tensorflow_datasets

    features = {"image": image or tensorflow_datasets.features.Image(shape=(8, 8, 3))}
    if labelled:
        features["label"] = label or tensorflow_datasets.features.ClassLabel(names=["cat", "dog"])
    if said:
        texts = tensorflow_datasets.features.Sequence({"text": tensorflow_datasets.features.Text()})
        features |= {"captions": texts, "note": tensorflow_datasets.features.Text()}
    images, labels = values or (PIXELS, [i % 2 for i in range(6)])

    def examples(indices):
        for i in indices:
            record = {"image": images[i], **({"label": labels[i]} if labelled else {})}
            yield i, {**record, "captions": {"text": said[i]}, "note": f"note {i}"} if said else record

    tensorflow_datasets.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        config=config,
        data_dir=data_dir,
        features=tensorflow_datasets.features.FeaturesDict(features),
        split_datasets={"train": examples(range(6)), "test": examples(range(2))},
        file_format=file_format,
        disable_shuffling=True,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    write_tfds(data_dir, config="8x8")
    write_tfds(data_dir, name="rooms", labelled=False)
    write_tfds(data_dir, name="told", labelled=False, said=SAID)
    write_tfds(data_dir, name="old", file_format="tfrecord")
    shutil.copytree(data_dir / "old", data_dir / "bags")
    info = data_dir / "bags" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    return data_dir


@pytest.mark.parametrize("name", ["tiny/8x8", "old"])
def test_tfds_reads_what_was_written(prepared, name):
    dataset = tfds(name, prepared, size=8)
    assert (dataset.shape, dataset.num_classes, dataset.class_names) == ((8, 8, 3), 2, ("cat", "dog"))
    records = [dataset.source[i] for i in range(6)]
    assert {(r["image"].tobytes(), r["label"]) for r in records} == {(PIXELS[i].tobytes(), i % 2) for i in range(6)}
    assert len(tfds(f"{name}:1.0.0", prepared, "test", 8).source) == 2
    second = tfds(name, prepared, "train[50%:]", 8).source
    assert len(second) == 3
    np.testing.assert_array_equal(second[1]["image"], records[4]["image"])
    assert tfds(name, prepared, size=4, channels=1).source[0]["image"].shape == (4, 4, 1)
    (item,) = take(batches(dataset, batch=6, seed=0), 1)
    np.testing.assert_array_equal(np.sort(item["label"]), [0, 0, 0, 1, 1, 1])


def test_tfds_reads_texts(prepared):
    dataset = tfds("told", prepared, size=8, text="captions/text")
    assert [dataset.source[i]["texts"] for i in (0, 2)] == [("a cat", "eine Katze, groß"), ("y",)]
    assert tfds("told", prepared, size=8, text="note").source[3]["texts"] == ("note 3",)
    with pytest.raises(ValueError, match=r"a text as captions/text in record 5 of .*told.*, got none"):
        dataset.source[5]
    with pytest.raises(ValueError, match=r"a feature of texts out of captions/text, note in .*told.*, got 'captions'"):
        tfds("told", prepared, size=8, text="captions")


def test_a_truncated_tfrecord_is_an_error(prepared, tmp_path):
    shutil.copytree(prepared / "old", tmp_path / "old")
    (file,) = (tmp_path / "old" / "1.0.0").glob("*train.tfrecord*")
    whole = file.read_bytes()
    for cut in (3, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="damaged or truncated"):
            tfds("old", tmp_path, size=8)


def test_tfds_without_labels_is_one_class(prepared):
    dataset = tfds("rooms", prepared, size=8)
    assert (dataset.num_classes, dataset.class_names) == (1, ("rooms",))
    assert {dataset.source[i]["label"] for i in range(6)} == {0}


def test_tfds_reads_without_tensorflow(prepared):
    code = (
        "import sys; from asyncpatch_jax.data import batches, tfds;"
        f"[next(batches(tfds(n, {str(prepared)!r}, size=8), batch=6, seed=0)) for n in ('tiny/8x8', 'old')];"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_newest_version_is_read(prepared):
    for version in ("1.0.0", "9.0.0", "10.0.0"):
        (prepared / "versions" / version).mkdir(parents=True)
    from asyncpatch_jax.data.prepared import _version_folder

    assert _version_folder("versions", prepared).name == "10.0.0"
    assert _version_folder("versions:9.0.0", prepared).name == "9.0.0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet_resized/64x64", r"no such folder\); prepare it with: .*imagenet_resized/64x64.*array_record"),
        ("tiny", r"it holds .*8x8\)"),
        ("tiny/8x8:2.0.0", r"it holds 1.0.0"),
        ("bags", "as array_record, or as tfrecord on a local disk, got riegeli .*array_record"),
    ],
)
def test_tfds_that_is_not_there(prepared, name, message):
    with pytest.raises(ValueError, match=message):
        tfds(name, prepared, size=8)


@pytest.mark.parametrize("kind", ["int64", "text", "list"])
def test_labels_that_say_no_number_of_classes_are_refused(tmp_path, kind):
    from tensorflow_datasets import features

    label, value = {
        "int64": (features.Scalar(np.int64), 1),
        "text": (features.Text(), "cat"),
        "list": (features.Sequence(features.ClassLabel(num_classes=2)), [0, 1]),
    }[kind]
    write_tfds(tmp_path, label=label, values=(PIXELS, [value] * 6))
    with pytest.raises(
        ValueError, match=rf"how many classes .* in {tmp_path}/tiny/1\.0\.0, got .*prepare it again with"
    ):
        tfds("tiny", tmp_path, size=8)


def test_images_that_would_be_misread_are_refused(tmp_path):
    from tensorflow_datasets import features

    floats = features.Image(shape=(8, 8, 1), dtype=np.float32)
    write_tfds(tmp_path, name="floats", image=floats, values=(PIXELS[..., :1] / np.float32(255), [0] * 6))
    with pytest.raises(ValueError, match=rf"uint8 or uint16 in {tmp_path}/floats/1\.0\.0, got float32"):
        tfds("floats", tmp_path, size=8)
    maps = features.LabeledImage(labels=3, shape=(8, 8, 1))
    write_tfds(tmp_path, name="maps", image=maps, values=(PIXELS[..., :1] % 3, [0] * 6))
    with pytest.raises(ValueError, match=r"an 'image' feature of pictures in .*maps/1\.0\.0, got a LabeledImage"):
        tfds("maps", tmp_path, size=8)
    deep = features.Image(shape=(8, 8, 1), dtype=np.uint16)
    write_tfds(tmp_path, name="deep", image=deep, values=(PIXELS[..., :1].astype(np.uint16) * 257, [0] * 6))
    read = {tfds("deep", tmp_path, size=8, channels=1).source[i]["image"].tobytes() for i in range(6)}
    assert read == {image.tobytes() for image in PIXELS[..., :1]}


def test_labels_that_are_kept_secret_are_no_class(tmp_path):
    write_tfds(tmp_path, values=(PIXELS, [-1] * 6))
    with pytest.raises(
        ValueError, match=rf"labels from 0 to 1 in {tmp_path}/tiny/1\.0\.0, got -1 in record 0; .*split"
    ):
        tfds("tiny", tmp_path, size=8)


def test_a_record_that_cannot_be_read_is_named(prepared):
    with pytest.raises(ValueError, match=rf"got record 0 of {prepared}/rooms/1\.0\.0 \(8x8 pixels, more than"):
        tfds("rooms", prepared, size=8, max_pixels=63)
    with pytest.raises(ValueError, match="expected max_pixels from 1"):
        tfds("rooms", prepared, size=8, max_pixels=0)


def test_tfds_unknown_split(prepared):
    with pytest.raises(ValueError, match="Unknown split 'val'"):
        tfds("tiny/8x8", prepared, "val", 8)


def test_importing_the_data_module_is_light():
    heavy = ("tensorflow", "tensorflow_datasets", "grain", "sklearn", "skimage", "matplotlib")
    code = f"import sys, asyncpatch_jax.data; assert not [m for m in {heavy} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)
