"""Energy at high frequencies: Parseval's theorem, waves of known frequency, white noise."""

import numpy as np
import pytest

from asyncpatch_jax.metrics.spectrum import high_frequency_energy, residual


def test_energies_add_up_to_the_mean_square():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 9, 2), np.uint8)
    pixels = images / 127.5 - 1
    variance = ((pixels - pixels.mean((1, 2), keepdims=True)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(high_frequency_energy(images, 0.0), variance, rtol=1e-12)
    assert (high_frequency_energy(images, 1.0) == 0).all()


@pytest.mark.parametrize(("frequency", "above"), [(1, False), (8, False), (9, True), (15, True)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_lies_where_its_frequency_is(frequency, above, axis):
    wave = np.cos(np.pi * frequency * (np.arange(16) + 0.5) / 16)  # 16 would be half the sampling rate
    image = np.broadcast_to(wave[:, None] if axis == 0 else wave[None], (16, 16))
    image = np.round(127.5 + 100 * image).astype(np.uint8)[None, :, :, None]
    energy, everything = (high_frequency_energy(image, cutoff)[0] for cutoff in (0.5, 0.0))
    np.testing.assert_allclose(everything, (100 / 127.5) ** 2 / 2, rtol=0.02)
    np.testing.assert_allclose(energy, everything if above else 0.0, atol=2e-4)


def test_noise_in_an_image_is_seen():
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(60, 180, 16)[:, None, None], (8, 16, 16, 1))
    real = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    same = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    noisy = np.clip(smooth + rng.normal(0, 16, smooth.shape), 0, 255).astype(np.uint8)
    np.testing.assert_allclose(residual(same, real).mean(), 1.0, atol=0.15)
    assert residual(noisy, real).min() > 3


def test_mistakes_are_named():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    with pytest.raises(Exception, match=r"expected images|UInt8"):  # with shape checks on, beartype speaks first
        high_frequency_energy(image.astype(np.int32))
    with pytest.raises(ValueError, match="cut-off in"):
        high_frequency_energy(image, 1.5)
    with pytest.raises(ValueError, match="expected real images of shape"):
        residual(image, image[:, :4])
    with pytest.raises(ValueError, match="with energy above"):
        residual(image, image)
