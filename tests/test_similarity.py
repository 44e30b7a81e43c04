"""PSNR and SSIM against scikit-image, and errors in holes against NumPy."""

import numpy as np
import pytest
from skimage import metrics as skimage

from asyncpatch_jax.metrics.similarity import HOLE_RMSE, PSNR, SSIM


def pairs(count=3, channels=3):
    """Smooth images with noise of several strengths, not square."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:19, :26] / 26
    smooth = 127 + 100 * np.sin(5 * rows + np.arange(count)[:, None, None] * columns)
    images = np.clip(smooth[..., None] + rng.normal(0, 20, (count, 19, 26, channels)), 0, 255)
    strength = np.array([2.0, 15.0, 60.0])[:count, None, None, None]
    return images.astype(np.uint8), np.clip(images + strength * rng.normal(size=images.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_images_are_scikit_image_s(channels):
    a, b = pairs(channels=channels)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    ssim = [skimage.structural_similarity(*pair, channel_axis=-1, **settings) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(SSIM(a, b, batch=2), ssim, rtol=2e-5)
    psnr = [skimage.peak_signal_noise_ratio(*pair, data_range=255) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(PSNR(a, b), psnr, rtol=1e-5)
    assert np.ptp(ssim) > 0.3


def test_equal_images():
    a, _ = pairs()
    np.testing.assert_allclose(SSIM(a, a), 1, rtol=1e-6)
    assert np.isposinf(PSNR(a, a)).all()


def test_only_the_hole_counts():
    a, b = (x / 127.5 - 1 for x in pairs())
    holes = np.zeros((3, 19, 26, 1), bool)
    holes[0, 3:9, 4:20] = holes[1, 12:] = holes[2, :, ::2] = True
    known = np.where(holes, a, 0.25)  # outside, both are something else
    squares = np.array([((x - y) ** 2)[hole[..., 0]].mean() for x, y, hole in zip(a, b, holes, strict=True)])
    np.testing.assert_allclose(HOLE_RMSE(known, b, holes), np.sqrt(squares), rtol=1e-5)
    np.testing.assert_allclose(PSNR(known, b, holes), 10 * np.log10(4 / squares), rtol=1e-5)
    np.testing.assert_allclose(HOLE_RMSE(a, b, holes[:1])[0], np.sqrt(squares[0]), rtol=1e-5)  # one for all


def test_what_they_refuse():
    a, b = pairs()
    with pytest.raises(ValueError, match="expected holes for hole RMSE, got none"):
        HOLE_RMSE(a, b)
    with pytest.raises(ValueError, match="expected no holes for SSIM, which is of whole images"):
        SSIM(a, b, np.ones((1, 19, 26, 1)))
    with pytest.raises(ValueError, match="11 pixels a side or more for SSIM, got 10 x 26"):
        SSIM(a[:, :10], b[:, :10])
    with pytest.raises(ValueError, match="a whole number"):
        PSNR(a, b, batch=0)
