"""Does a classifier that has seen only real digits recognise the digits of a trained run?

  python -m launch.judge --workdir=runs/digits
  python -m launch.judge --workdir=runs/digits --num=1000 --schedule=autoregressive

Trains scikit-learn classifiers on the real training split, scores them on the real test split, and then on images that
the run makes, as many of each class: how many are named as the class that was asked for, and how far their features
are from those of real digits (Fréchet distance; the features are the hidden layer of a small network).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax.data import sources
from asyncpatch_jax.metrics.frechet import frechet
from asyncpatch_jax.sampling.batches import batched
from launch import build, cli, pictures, plans, trained
from launch.generate import generate, image_keys

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


def generated(
    run: build.Run, schedule: str, count: int, batch: int, seed: int
) -> tuple[Float[np.ndarray, "b h w c"], Int[np.ndarray, "b"]]:
    """Class-conditional images of a run and the classes that were asked for, as many of each."""
    label = pictures.cycled_labels(run, count)
    chosen = plans.plan(schedule, run)
    keys = image_keys(seed, count)

    def call(part: Any) -> jax.Array:
        batch_keys, batch_label = part
        inputs = pictures.inputs(run, batch_keys, np.zeros((len(batch_label), *run.shape), np.float32), batch_label)
        args = pictures.net(run), run.params, chosen.schedule, inputs
        return generate(*args, num_steps=chosen.num_steps, ahead=chosen.ahead).images

    return np.concatenate(batched(call, (keys, jnp.asarray(label)), batch=batch))[:count], label


def main() -> None:
    values = flags.FLAGS
    run = trained.load()
    if run.config.data.name != "digits" or not run.num_classes:
        raise ValueError(f"expected a run on digits with classes, got one on {run.config.data.name}")
    images, label = generated(run, values.schedule, values.num, min(values.batch, values.num), values.seed)
    print(f"real test digits named correctly:      {accuracy_of_real():7.1%}")
    print(f"{values.num:4} generated digits, as was asked for: {accuracy(images, label):7.1%}")
    print(f"Fréchet distance to real digits:       {distance(images):7.3f} ({FEATURES} features, {values.num} samples)")


if __name__ == "__main__":
    trained.define_flags("solver", "eta", "steps", "grid", "guidance")
    flags.DEFINE_string("schedule", "sync", f"How cells move: {', '.join(plans.PLANS)}.")
    flags.DEFINE_integer("num", 500, "Images.", lower_bound=2)
    flags.DEFINE_integer("batch", 250, "Images at a time.", lower_bound=1)
    cli.main_of_run(main, __doc__)
