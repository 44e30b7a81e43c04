"""Moments of features that stream by are those of all at once, and files of statistics are what they say."""

import numpy as np
import pytest

from asyncpatch_jax.data.arrays import read_images
from asyncpatch_jax.files import sha256
from asyncpatch_jax.metrics.distances import frechet_distance
from asyncpatch_jax.metrics.features import INCEPTION, Features
from asyncpatch_jax.metrics.frechet import frechet
from asyncpatch_jax.metrics.moments import Moments, gather, gather_rows, merge, moments
from asyncpatch_jax.metrics.statistics import holds_statistics, read_statistics, write_statistics

FEATURES = Features(INCEPTION, "clean", "hash", lambda images: np.zeros((len(images), 5), np.float32))


def some_features(n=90, d=5, seed=0):
    """Of a large mean, where the mean of squares less the square of the mean would lose all digits."""
    rng = np.random.default_rng(seed)
    return (1e4 + rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype(np.float32)


def test_parts_of_any_sizes_merge_to_the_moments_of_all():
    x = some_features()
    parts = [moments(part) for part in np.split(x, [1, 1, 40, 77])]  # one of them is empty
    for order in (range(5), (4, 2, 0, 1, 3)):
        whole = moments(x[:0])
        for i in order:
            whole = merge(whole, parts[i])
        assert whole.count == 90
        np.testing.assert_allclose(whole.mean, x.astype(np.float64).mean(0), rtol=1e-14)
        np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64).T), rtol=1e-10)
    # (a + b) + (c + d) as two processes have it, each of which merged its own
    halves = merge(merge(parts[0], parts[2]), merge(parts[3], parts[4]))
    np.testing.assert_allclose(halves.scatter, whole.scatter, rtol=1e-10)
    assert gather(whole) is whole
    assert gather_rows(x) is x


def test_a_distance_is_that_of_the_features_and_says_what_it_is_of(tmp_path):
    a, b = some_features(), some_features(70, seed=1)
    found = frechet_distance(FEATURES, moments(a), moments(b))
    np.testing.assert_allclose(found.value, frechet(a, b), rtol=1e-9)
    assert found._asdict() == {
        "name": "FID", "value": found.value, "spread": None, "features": INCEPTION, "resize": "clean",
        "weights": "hash", "count": 90, "reference_count": 70, "reference": None,
    }  # fmt: skip
    path = tmp_path / "reference.npz"
    write_statistics(path, moments(b), FEATURES)
    again = frechet_distance(FEATURES, moments(a), read_statistics(path))
    assert again == found._replace(value=again.value, reference=sha256(path))
    np.testing.assert_allclose(again.value, found.value, rtol=1e-12)
    # of other features it is no FID, and neither is it compared with Inception's
    others = FEATURES._replace(name="SqueezeNet 1.1")
    assert frechet_distance(others, moments(a), moments(b)).name == "Frechet distance"
    with pytest.raises(ValueError, match=r"statistics of the features 'SqueezeNet 1\.1', got 'Inception pool3'"):
        frechet_distance(others, moments(a), read_statistics(path))
    with pytest.raises(ValueError, match="statistics of the resize rule 'legacy', got 'clean'"):
        frechet_distance(FEATURES._replace(resize="legacy"), moments(a), read_statistics(path))
    with pytest.raises(ValueError, match="statistics of 4 features"):
        frechet_distance(FEATURES, moments(a[:, :4]), read_statistics(path))
    with pytest.raises(ValueError, match="at least 2 images for a covariance, got 1"):
        frechet_distance(FEATURES, moments(a[:1]), moments(b))
    with pytest.raises(ValueError, match="nothing exists yet"):
        write_statistics(path, moments(b), FEATURES)


def test_statistics_as_other_programs_write_them(tmp_path):
    b = moments(some_features().astype(np.float64) - 1e4)
    path, covariance = tmp_path / "stats.npz", b.covariance
    np.savez_compressed(path, mu=b.mean, sigma=covariance)  # pytorch-fid's, clean-fid's
    assert holds_statistics(path)
    found = read_statistics(path)
    np.testing.assert_array_equal(found.mean, b.mean)
    np.testing.assert_array_equal(found.covariance, covariance)
    assert found[2:] == (None, None, None, sha256(path))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    both = {"mu": b.mean.astype(np.float32), "sigma": covariance.astype(np.float32), "mu_s": np.zeros(7)}
    for save in (np.savez, np.savez_compressed):  # ADM's, and of either kind
        save(path, images, **both)
        np.testing.assert_allclose(read_statistics(path).covariance, covariance, rtol=1e-6)
        np.testing.assert_array_equal(read_images(path), images)
        save(path, images[..., :1])
        assert not holds_statistics(path)
        np.testing.assert_array_equal(read_images(path), np.repeat(images[..., :1], 3, -1))
    # one that is not compressed is not read before it is looked at
    np.savez(path, images)
    base = read_images(path)
    while not isinstance(base, np.memmap):
        base = base.base


def _bad_files():
    mean, covariance, images = np.zeros(2), np.eye(2), np.zeros((1, 2, 2, 3), np.uint8)
    return {
        r"mu \[d\] and sigma \[d, d\] in .*, got \[3\]": {"mu": np.zeros(3), "sigma": covariance},
        "finite numbers as sigma in .*, got 1 others": {"mu": mean, "sigma": np.diag([1, np.nan])},
        "a symmetric sigma": {"mu": mean, "sigma": np.array([[1, 0.5], [0, 1]])},
        "without negative eigenvalues in .*, got -1": {"mu": mean, "sigma": np.diag([1.0, -1.0])},
        "floats as mu in .*, got int64": {"mu": np.zeros(2, int), "sigma": covariance},
        "an array as mu in .*Object arrays cannot be loaded": {"mu": np.array([None] * 2), "sigma": covariance},
        "a count of at least 2 images in .*, got 1": {"mu": mean, "sigma": covariance, "count": np.array(1)},
        "an array as resize in .*Object arrays cannot be loaded": {
            "mu": mean,
            "sigma": covariance,
            "resize": np.array(None),
        },
        "one number or text as count": {"mu": mean, "sigma": covariance, "count": np.array([5, 6])},
        "mu and sigma in .*, got something else": {"arr_0": images},
    }


@pytest.mark.parametrize("said", _bad_files())
def test_files_that_are_no_statistics(tmp_path, said):
    np.savez(tmp_path / "bad.npz", **_bad_files()[said])
    with pytest.raises(ValueError, match=said):
        read_statistics(tmp_path / "bad.npz")


def test_files_that_are_no_images(tmp_path):
    path = tmp_path / "bad.npz"
    for content, said in (
        ({"mu": np.zeros(2)}, "no item named 'arr_0.npy'"),
        ({"arr_0": np.zeros((1, 2, 2, 3))}, r"uint8 \[n, h, w, 3\] as arr_0 in .*, got float64 \[1, 2, 2, 3\]"),
        ({"arr_0": np.zeros((2, 2, 3), np.uint8)}, r"got uint8 \[2, 2, 3\]"),
        ({"arr_0": np.array([None, "x"])}, "unpickled"),
    ):
        np.savez(path, **content)
        with pytest.raises(ValueError, match=said):
            read_images(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="got something else"):
        read_images(path)
    for read, content in (
        (read_images, {"arr_0": np.arange(3000).reshape(10, 10, 10, 3).astype(np.uint8)}),
        (read_statistics, {"mu": np.arange(9.0), "sigma": np.diag(np.arange(9.0))}),
    ):
        np.savez_compressed(path, **content)
        damaged = bytearray(path.read_bytes())
        damaged[60:90] = b"x" * 30
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="got"):
            read(path)
    for read in (read_images, read_statistics):
        with pytest.raises(ValueError, match="got no file"):
            read(tmp_path / "nothing.npz")


def test_features_that_are_not_finite():
    with pytest.raises(ValueError, match="others of 1 images of 90, first 3"):
        moments(np.where(np.arange(90)[:, None] == 3, np.nan, some_features()))
    with pytest.raises(ValueError, match="one dimension, got 5 and 4"):
        merge(moments(some_features()), moments(some_features(d=4)))
    assert isinstance(moments(some_features()), Moments)
