"""Rewards by name, for mains: public networks, the project's own classifiers, and any Python function."""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

from asyncpatch_jax.data import scenes
from asyncpatch_jax.metrics.preferences import REWARDS, read_reward
from asyncpatch_jax.metrics.rewards import Reward, check_weights, classifier, from_callable
from launch.shared import digits_judge, scenes_judge

SYNTAX = "NAME, NAME=FOLDER or MODULE:FUNCTION, each with *WEIGHT if it is not 1; separated by commas"


class Rewards(NamedTuple):
    """Rewards and their weights, by name."""

    of: Mapping[str, Reward]
    weights: Mapping[str, float]


def _digits() -> Reward:
    return classifier(digits_judge.log_probabilities, [str(digit) for digit in range(10)])


def _digits_judge() -> Reward:
    def right(images, prompts):
        return digits_judge.named(images) == [int(prompt) for prompt in prompts]

    return from_callable("digits_judge", right)


def _scenes_judge() -> Reward:
    labels = {caption.text: i for i, caption in enumerate(scenes.captions())}

    def aligned(images, prompts):
        if unknown := [prompt for prompt in prompts if prompt not in labels]:
            raise ValueError(f"expected captions of scenes of digits, got {unknown[0]!r}")
        return [verdict.alignment for verdict in scenes_judge.judge(images, [labels[prompt] for prompt in prompts])]

    return from_callable("scenes_judge", aligned)


# of digits: log-probability by a small network, and rightness by a support vector machine; of captioned scenes: the
# share of what a caption says that a support vector machine finds. No policy is trained on the judges.
OWN = {"digits": _digits, "digits_judge": _digits_judge, "scenes_judge": _scenes_judge}


def parse(text: str) -> Rewards:
    """The rewards of a flag; reads their weights.

    Raises:
        ValueError: an unknown name, a public network without its folder, or a weight that is no number.
        ImportError: a module or function that is not there.
    """
    found: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition("*")
        name, _, folder = name.strip().partition("=")
        if name in found:
            raise ValueError(f"expected each reward once, got {name} twice")
        found[name] = _reward(name, folder)
        try:
            weights[name] = float(weight or 1)
        except ValueError as error:
            raise ValueError(f"expected a number as the weight of {name}, got {weight!r}") from error
    if not found:
        raise ValueError(f"expected rewards ({SYNTAX}), got none")
    check_weights(weights, found)
    return Rewards(found, weights)


def _reward(name: str, folder: str) -> Reward:
    if name in REWARDS:
        return read_reward(name, folder)
    if folder:
        raise ValueError(f"expected a folder of a public network's reward alone, got {folder} for {name}")
    if name in OWN:
        return OWN[name]()
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"expected a reward out of {', '.join([*OWN, *REWARDS])} or MODULE:FUNCTION, got {name!r}")
    try:
        return from_callable(name, getattr(importlib.import_module(module), function))
    except AttributeError as error:
        raise ImportError(f"expected a function {function} in {module}, got none") from error
