"""Real handwritten digits as judges of made ones: scikit-learn classifiers that have seen only real digits."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax.data import sources
from asyncpatch_jax.metrics.frechet import frechet

FEATURES = 32
_SIZE = 8  # scikit-learn's digits as they are
_LEVELS = 16  # grey levels above black that a real digit has


def real(split: str) -> tuple[Float[np.ndarray, "b d"], Int[np.ndarray, "b"]]:
    """Real digits of a split as rows of pixels in [-1, 1], and their classes."""
    source = sources.digits(split, _SIZE).source
    records = [source[i] for i in range(len(source))]
    images = np.stack([record["image"] for record in records]).astype(np.float32)
    return images.reshape(len(records), -1) / 127.5 - 1, np.array([record["label"] for record in records])


def _rows(images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b d"]:
    """Images as rows of 8x8 pixels with the grey levels of real digits, so that no classifier sees what no real has."""
    b, h, w, _ = images.shape
    if h % _SIZE or w % _SIZE or images.shape[-1] != 1:
        raise ValueError(f"expected grey images whose sides are multiples of {_SIZE}, got {images.shape}")
    small = images.reshape(b, _SIZE, h // _SIZE, _SIZE, w // _SIZE).mean((2, 4)).reshape(b, -1)
    return np.round((np.clip(small, -1, 1) + 1) / 2 * _LEVELS) / _LEVELS * 2 - 1


@functools.cache
def _classifiers() -> tuple[Any, Any]:
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    x, y = real("train")
    named = SVC(C=10.0, gamma=1.0 / 64).fit(x, y)
    return named, MLPClassifier((FEATURES,), alpha=1e-2, max_iter=1000, random_state=0).fit(x, y)


def named(images: UInt8[np.ndarray, "b h w 1"]) -> Int[np.ndarray, "b"]:
    """The digits that a support vector machine, trained on real ones, sees."""
    return _classifiers()[0].predict(_rows(images.astype(np.float32) / 127.5 - 1))


def log_probabilities(images: UInt8[np.ndarray, "b h w 1"]) -> Float[np.ndarray, "b 10"]:
    """Of each digit, by a small network that was trained to name real ones."""
    return _classifiers()[1].predict_log_proba(_rows(images.astype(np.float32) / 127.5 - 1))


def accuracy(images: Float[np.ndarray, "b h w c"], label: Int[np.ndarray, "b"]) -> float:
    """Share of the images that a support vector machine, trained on real digits, names as `label`."""
    return float((_classifiers()[0].predict(_rows(images)) == label).mean())


def accuracy_of_real() -> float:
    """The same classifier on real digits that it has not seen."""
    return float(_classifiers()[0].score(*real("test")))


def features(rows: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b {FEATURES}"]:
    """The hidden layer (ReLU) of a small network that was trained to name real digits."""
    network = _classifiers()[1]
    return np.maximum(rows @ network.coefs_[0] + network.intercepts_[0], 0.0)


@functools.cache
def _real_features() -> Float[np.ndarray, "b d"]:
    return features(np.concatenate([real("train")[0], real("test")[0]]))


def distance(images: Float[np.ndarray, "b h w c"]) -> float:
    """Fréchet distance of the images' features to those of all 1,797 real digits."""
    return frechet(features(_rows(images)), _real_features())
