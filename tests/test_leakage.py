"""The leakage measure: known cells and known pixels by their distance, on coders whose leaks are known exactly."""

import numpy as np
import pytest

from asyncpatch_jax.metrics import leakage
from asyncpatch_jax.metrics.leakage import Coder, away, latents_moved


def _images(n=3, size=16):
    return np.random.default_rng(0).uniform(-1, 1, (n, size, size, 1)).astype(np.float32)


def _holes(n=3, size=16):
    holes = np.zeros((n, size, size, 1), np.float32)
    holes[:, 5:7, 4:9] = 1  # one row of cells of 2 x 2 touched by two of its pixels each: rows 2 and 3, columns 2 ... 4
    return holes


def test_distances_are_of_cells_that_hold_any_pixel_of_the_hole():
    found = away(_holes(1), 2)[0]
    rows = np.array([2, 1, 0, 0, 1, 2, 3, 4])
    columns = np.array([2, 1, 0, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(found, np.maximum(rows[:, None], columns))


def _cells(images):
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _spread(latents):
    return latents.repeat(2, 1).repeat(2, 2)


def _local(images, masks):
    return _cells(images if masks is None else images * (1 - masks))


def test_a_local_coder_leaks_nothing_whatever_lies_in_the_hole():
    coder = Coder(_local, lambda z, m: _spread(z), lambda z: np.round(8 * z[..., 0]).astype(int), 2)
    found = leakage.leakage(coder, _images(), _holes(), batch=2, longest=3)
    assert [ring.away for ring in found.latents] == [1, 2, 3]
    # of 8 x 8 cells, 2 x 3 in the hole, 4 x 5 with the first ring, 6 x 7 with the second
    assert [ring.count for ring in found.latents] == [3 * 14, 3 * 22, 3 * 22]
    assert all((ring.moved, ring.largest, ring.same) == (0.0, 0.0, 1.0) for ring in found.latents)
    assert all((ring.moved, ring.largest, ring.same) == (0.0, 0.0, None) for ring in found.pixels)
    whole = _cells(_images())
    change = 127.5 * _spread(np.abs(whole - np.roll(whole, 1, 0)))[_holes() > 0]
    np.testing.assert_allclose(found.hole, np.sqrt((change**2).mean()), rtol=1e-5)


def test_a_known_leak_is_found_at_its_size_and_nowhere_else():
    """The masked encoder adds .3 to each cell one step right of the hole's last column, and 7 in the hole itself."""
    leaked = np.zeros((1, 8, 8, 1))
    leaked[:, 2:4, 5], leaked[:, 2:4, 2:5] = 0.3, 7.0
    whole = _local(_images(), None)

    def encode(images, masks):
        return _local(images, None) + (0 if masks is None else leaked)

    def decode(latents, masks):
        out = _spread(latents)
        out[:, 0, 0] += out[:, 6, 6]  # the corner repeats a pixel of the hole's cells
        return out

    coder = Coder(encode, decode, lambda z: np.floor(10 * z[..., 0]).astype(int), 2)
    found = leakage.leakage(coder, _images(), _holes(), batch=3, longest=4)
    unit = 0.3 / whole.std()
    first = found.latents[0]
    np.testing.assert_allclose(first.largest, unit, rtol=1e-5)
    np.testing.assert_allclose(first.moved, unit * np.sqrt(2 / 14), rtol=1e-5)
    np.testing.assert_allclose(first.same, 12 / 14)  # .3 is three codes
    assert [ring.moved for ring in found.latents[1:]] == [0.0, 0.0, 0.0]
    # the corner's cell is two steps away; one of its four pixels moves as far as the pixel that it repeats
    change = np.abs(whole[:, 3, 3, 0] - np.roll(whole, 1, 0)[:, 3, 3, 0]) * 127.5
    corner = found.pixels[1]
    np.testing.assert_allclose(corner.largest, change.max(), rtol=1e-5)
    np.testing.assert_allclose(corner.moved, np.sqrt((change**2).sum() / corner.count), rtol=1e-5)
    assert [found.pixels[i].moved for i in (0, 2, 3)] == [0.0, 0.0, 0.0]


def test_each_channel_is_measured_in_its_own_spread():
    whole = np.random.default_rng(1).normal(size=(2, 4, 4, 2)) * np.array([1.0, 100.0])
    distance = np.full((2, 4, 4), 1)
    moved = whole + whole.std((0, 1, 2)) * np.array([0.5, 0.5])
    ring = latents_moved(whole, moved, distance, longest=1)[0]
    np.testing.assert_allclose([ring.moved, ring.largest], 0.5)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="a hole in each image"):
        away(np.zeros((1, 4, 4, 1), np.float32), 2)
    with pytest.raises(ValueError, match="multiples of 3"):
        away(_holes(1), 3)
    with pytest.raises(ValueError, match="channels vary"):
        latents_moved(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)), np.ones((1, 2, 2), int))
    with pytest.raises(ValueError, match="two images or more"):
        leakage.leakage(Coder(_local, _local, None, 2), _images(1), _holes(1))
