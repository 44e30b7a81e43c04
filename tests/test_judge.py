"""The judge of generated digits, and the two ways in which the page of results inpaints."""

import numpy as np
import pytest

from launch import judge
from launch.shared import digits_judge
from launch.studies import digits
from tests import test_launch


@pytest.fixture(scope="module")
def run():
    """A tiny network with random weights, without guidance."""
    made = test_launch.run()
    config = made.config.copy_and_resolve_references()
    config.sample.guidance = 1.0
    return made._replace(config=config)


def images(split):
    rows, label = digits_judge.real(split)
    return rows.reshape(-1, 8, 8, 1), label


def test_real_digits_are_recognised_and_wrong_labels_are_not():
    x, label = images("test")
    assert digits_judge.accuracy_of_real() > 0.97
    assert digits_judge.accuracy(x, label) == digits_judge.accuracy_of_real()
    assert digits_judge.accuracy(x, (label + 1) % 10) < 0.03


def test_distance_is_small_between_real_digits_and_large_to_noise_or_a_missing_class():
    x, label = images("train")
    noise = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32)
    near = digits_judge.distance(x[::3])  # evenly, as the digits come writer by writer
    assert near < 0.5
    assert digits_judge.distance(x[label != 3]) > 2 * digits_judge.distance(x)
    assert digits_judge.distance(noise) > 20 * near


def test_enlarged_digits_count_as_the_digits_that_they_are():
    x, label = images("test")
    large = x.repeat(2, 1).repeat(2, 2)
    assert digits_judge.accuracy(large, label) == digits_judge.accuracy(x, label)
    with pytest.raises(ValueError, match="multiples of 8"):
        digits_judge.accuracy(x[:, :7], label)


@pytest.mark.parametrize("repaint_steps", [0, 12])
def test_inpainting_for_the_results_keeps_known_pixels_and_fills_holes(run, repaint_steps):
    x, label = (part[:3] for part in images("test"))
    mask = np.zeros((3, 8, 8, 1), np.float32)
    mask[:, 2:6, 2:6] = 1
    filled = digits.inpainted(run, x, label.astype(np.int32), mask, seed=0, repaint_steps=repaint_steps)
    known = np.broadcast_to(mask == 0, x.shape)
    np.testing.assert_array_equal(filled[known], x[known])
    assert np.abs(filled - x)[~known].min() > 0
    assert np.isfinite(filled).all()


def test_classes_asked_for_are_balanced_and_images_do_not_depend_on_the_batch(run):
    a, label = judge.generated(run, "sync", 12, 5, seed=3)
    b, _ = judge.generated(run, "sync", 12, 12, seed=3)
    assert np.bincount(label, minlength=10).max() == 2
    np.testing.assert_allclose(a, b, atol=1e-4)
