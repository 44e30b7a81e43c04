"""Rewards: how good images are for their prompts, by any metric, and several of them as one number.

A reward is a function on the host, `(images, prompts) -> [b]`; what runs on an accelerator is compiled inside of it.
"""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax import checks

# (images of 8 bits [b, h, w, c], a prompt for each) -> [b], float32; higher is better
Reward = Callable[[UInt8[np.ndarray, "b h w c"], Sequence[str]], Float[np.ndarray, "b"]]

# standard deviations below this share of the largest value are rounding: float32 has 1.2e-7
_ROUNDING = 1e-6


def from_callable(name: str, function: Callable[[UInt8[np.ndarray, "b h w c"], Sequence[str]], object]) -> Reward:
    """Any Python function as a reward: of the host, of another library, or of a service.

    Args:
        name: for errors.
        function: `(images, prompts)` to one finite number for each image, as anything that numpy reads.

    Raises:
        ValueError: (by the reward) images that are not of 8 bits or not one prompt for each; an error of the function,
            or what is not one finite number for each image: names the reward.
    """

    def reward(images: np.ndarray, prompts: Sequence[str]) -> Float[np.ndarray, "b"]:
        _check(images, prompts)
        try:
            found = function(images, prompts)
        except Exception as error:  # whatever a service or another library raises
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(f"expected scores of the reward {name}, got an error: {kind}{error}") from error
        scores = _numbers(name, found)
        if scores.shape != (len(images),):
            raise ValueError(f"expected {len(images)} scores of the reward {name}, got an array of {scores.shape}")
        if not np.isfinite(scores).all():
            first = int(np.argmin(np.isfinite(scores)))
            raise ValueError(
                f"expected finite scores of the reward {name}, got {scores[first]} for image {first}, "
                f"{prompts[first]!r}"
            )
        return scores

    return reward


def classifier(
    logits: Callable[[UInt8[np.ndarray, "b h w c"]], Float[np.ndarray, "b n"]],
    classes: Sequence[str],
    *,
    scale: str = "log",
) -> Reward:
    """How surely a classifier sees in each image the class that its prompt names.

    A prompt is the name of a class and nothing else: with `classes` "0" ... "9", "7" asks for label 7.

    Args:
        logits: images to the unnormalised log-probabilities of the classes; a `jax.jit` of a network is fine.
        classes: their names, by label.
        scale: "log" for the log-probability (not bounded below: a sure mistake costs much), or "probability".

    Raises:
        ValueError: two classes of one name, or an unknown scale; (by the reward) a prompt that names no class, logits
            of another shape or that are not finite.
    """
    labels = {name: label for label, name in enumerate(classes)}
    if len(labels) != len(classes) or not classes:
        raise ValueError(f"expected classes of different names, got {list(classes)}")
    if scale not in ("log", "probability"):
        raise ValueError(f"expected a scale of 'log' or 'probability', got {scale!r}")

    def score(images: UInt8[np.ndarray, "b h w c"], prompts: Sequence[str]) -> Float[np.ndarray, "b"]:
        if unknown := [prompt for prompt in prompts if prompt not in labels]:
            raise ValueError(f"expected prompts that name a class of {', '.join(classes)}, got {unknown[0]!r}")
        values = np.asarray(logits(images), np.float64)
        if values.shape != (len(images), len(classes)):
            raise ValueError(f"expected logits of shape {(len(images), len(classes))}, got {values.shape}")
        values = values[np.arange(len(images)), [labels[prompt] for prompt in prompts]] - _log_sum(values)
        return values if scale == "log" else np.exp(values)

    return from_callable("classifier", score)


def combine(
    scores: Mapping[str, Float[np.ndarray, "b"]],
    weights: Mapping[str, float],
    groups: Int[np.ndarray, "_b"] | None = None,
) -> Float[np.ndarray, "b"]:
    """Several metrics of the same images as one: the weighted mean of their z-scores, which have no units.

    z = (score - mean) / standard deviation, over the batch; a metric without spread counts as 0 there. Only for
    comparing images of one batch: it says nothing about how good they all are.

    Args:
        scores: by name of the metric.
        weights: by the same names; the mean divides by the sum of their sizes. A negative one is for what shall be low.
        groups: a number for each image, such as that of its prompt: z-scores are over the images of one number. None:
            over all.

    Raises:
        ValueError: other names in `weights` than in `scores`, weights that are not finite or all 0, or scores that are
            not finite or of different lengths.
    """
    check_weights(weights, scores)
    lengths = {name: len(values) for name, values in scores.items()}
    lengths |= {"groups": len(groups)} if groups is not None else {}
    if len({*lengths.values()}) > 1:
        raise ValueError(f"expected a score of each metric for each image (and a group), got lengths {lengths}")
    total = np.zeros(len(next(iter(scores.values()))), np.float64)
    groups = np.zeros(len(total), np.int64) if groups is None else groups
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite scores of {name}, got {checks.shown(np.asarray(values))}")
        total += weights[name] * _z_scores(np.asarray(values, np.float64), groups)
    return (total / sum(abs(weight) for weight in weights.values())).astype(np.float32)


def _numbers(name: str, found: object) -> Float[np.ndarray, "..."]:
    try:
        array = np.asarray(found)
    except Exception as error:  # ragged lists; arrays of other libraries on devices that numpy does not reach
        raise ValueError(f"expected numbers of the reward {name}, got what numpy does not read: {error}") from error
    # numpy counts the narrow floats of ml_dtypes, which JAX has, to no kind of its own
    if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
        first = next(iter(array.reshape(-1).tolist()), None)
        raise ValueError(f"expected numbers of the reward {name}, got {array.dtype} such as {first!r}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def composed(rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> Reward:
    """Several rewards as one: `combine` of their scores over the batch that it is called with.

    Raises:
        ValueError: other names in `weights` than in `rewards`, or weights that are not finite or all 0; (by the reward)
            as `from_callable`, by the name of the one that fails.
    """
    check_weights(weights, rewards)
    named = {name: from_callable(name, reward) for name, reward in rewards.items()}

    def score(images: UInt8[np.ndarray, "b h w c"], prompts: Sequence[str]) -> Float[np.ndarray, "b"]:
        return combine({name: reward(images, prompts) for name, reward in named.items()}, weights)

    return score


def _check(images: np.ndarray, prompts: Sequence[str]) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"expected images [b, h, w, c] of uint8, 0 ... 255, got {images.dtype}{list(images.shape)}")
    if isinstance(prompts, str) or len(images) != len(prompts):
        got = "one text" if isinstance(prompts, str) else str(len(prompts))
        raise ValueError(f"expected a prompt for each of {len(images)} images, got {got}")


def _z_scores(values: Float[np.ndarray, "b"], groups: Int[np.ndarray, "b"]) -> Float[np.ndarray, "b"]:
    z = np.zeros_like(values)
    for group in np.unique(groups):
        members = groups == group
        part = values[members]
        spread = part.std()
        if spread > _ROUNDING * np.abs(part).max():
            z[members] = (part - part.mean()) / spread
    return z


def _log_sum(logits: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b"]:
    highest = logits.max(1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(1))


def check_weights(weights: Mapping[str, float], named: Mapping[str, object]) -> None:
    """Refuse weights that no mean can be taken with.

    Raises:
        ValueError: other names in `weights` than in `named`, or weights that are not finite or all 0.
    """
    if weights.keys() != named.keys() or not weights:
        raise ValueError(f"expected a weight for each of {', '.join(named) or 'no metrics'}, got {dict(weights)}")
    if not np.isfinite(list(weights.values())).all() or not any(weights.values()):
        raise ValueError(f"expected finite weights that are not all 0, got {dict(weights)}")
