"""What a timestep policy does and what it gains, on images that it was not trained on: pictures and numbers.

AsyncDiff's figures 3 and 4 (deviations per step), and 2 (reward against gamma).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.metrics.intervals import bootstrap
from asyncpatch_jax.sampling.batches import batched
from asyncpatch_jax.sampling.schedules.tpm import deviation
from asyncpatch_jax.training.policies import Policy
from launch.policy.rewarding import Rewards
from launch.policy.subjects import Subject, drawn
from launch.shared.generate import image_keys

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
# what is written last of a policy's pages
LAST = "gamma.png"
# keeps the noise of these images apart from that of any training, whose seeds are small
HELD_OUT = 10**6
_BATCH = 100


def numbers(count: int, prompts: int) -> Int[np.ndarray, "{count}"]:
    """Which prompt each of so many images is of: all of them in turns; of more prompts than images, evenly spread ones.

    Prompts next to each other are often of one kind.
    """
    places = np.arange(count)
    return (places * prompts // count if count < prompts else places % prompts).astype(np.int32)


class Made(NamedTuple):
    """Images of prompts, their scores by reward, and the deviations of every call (None of a schedule without)."""

    images: UInt8[np.ndarray, "b h w c"]
    scores: dict[str, Float[np.ndarray, "b"]]
    deviations: Float[np.ndarray, "b s rh rw"] | None


def make(
    subject: Subject,
    rewards: Mapping[str, Any],
    schedule: Any,
    index: Int[np.ndarray, "b"],
    seed: int,
    *,
    deviates: bool,
    batch: int = _BATCH,
) -> Made:
    """An image for each prompt's number in `index`, and its scores; image i begins as in any other schedule.

    Args:
        schedule: `(base, known of a batch) -> Schedule`.
        deviates: whether that has deviations to be told of.
    """
    keys, size = image_keys(seed, len(index)), min(batch, len(index))

    def call(part: Any) -> Any:
        own, keys = part
        asked = subject.ask(np.asarray(own))
        args = subject.net, subject.params, schedule(subject.base, asked.known), asked, keys, subject.shape
        return drawn(*args, deviation if deviates else None)

    found = batched(call, (index, keys), batch=size)
    latents = np.concatenate([latents for latents, _ in found])[: len(index)]
    told = np.concatenate([np.moveaxis(d, 0, 1) for _, d in found])[: len(index)] if deviates else None
    pictures = np.concatenate(batched(subject.pictures, latents, batch=size))[: len(index)]
    texts = [subject.prompts[i] for i in index]
    return Made(pictures, {name: reward(pictures, texts) for name, reward in rewards.items()}, told)


def write(
    folder: epath.PathLike, subject: Subject, rewards: Rewards, policy: Policy, config: ConfigDict
) -> list[epath.Path]:
    """The pages of a policy: deviations.png, gamma.png, and their numbers in page.json.

    Raises:
        ValueError: images that are not finite.
        OSError: a file cannot be written.
    """
    folder = epath.Path(folder)
    index = numbers(config.train.held_out, len(subject.prompts))
    # no more at once than training has, so that what fits there fits here
    batch = min(_BATCH, config.grpo.prompts * config.grpo.noises * config.grpo.draws)
    made = {}
    for gamma in GAMMAS:
        follow = partial(policy.schedule, gamma=gamma)
        made[gamma] = make(subject, rewards.of, follow, index, HELD_OUT + config.seed, deviates=True, batch=batch)
    # texts are a sample of all that one may ask for; classes are all there are
    texts = index if config.prompts else None
    scores = {
        name: {
            str(gamma): bootstrap(one.scores[name].astype(np.float64), texts)._asdict() for gamma, one in made.items()
        }
        for name in rewards.of
    }
    calls = made[1.0].deviations.reshape(len(index), made[1.0].deviations.shape[1], -1)[:, 1:]
    steps = {"mean": calls.mean((0, 2)).tolist(), "std": calls.std((0, 2)).tolist()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "page.json", {"images": len(index), "deviations": steps, "scores": scores}, overwrite=True)
    paths = [folder / "deviations.png", folder / LAST]
    plot_deviations(paths[0], {"": calls}, policy.gain)
    plot_gamma(paths[1], scores)
    return [*paths, folder / "page.json"]


def plot_deviations(path: epath.PathLike, policies: Mapping[str, Float[np.ndarray, "b s n"]], gain: float) -> None:
    """Mean deviation of each call, and where 80 % of the images' lie, as a share of a step."""
    figure, axes = _figure()
    for name, calls in policies.items():
        flat = gain * np.moveaxis(calls, 1, 0).reshape(calls.shape[1], -1)
        steps = np.arange(1, len(flat) + 1)
        low, high = np.quantile(flat, [0.1, 0.9], axis=1)
        axes.plot(steps, flat.mean(1), marker="o", label=name or None)
        axes.fill_between(steps, low, high, alpha=0.2)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="call of the network (the first is told its own time)", ylabel="deviation, steps (> 0: cleaner)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, axes, path, legend=len(policies) > 1)


def plot_gamma(path: epath.PathLike, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Mean reward against gamma with its interval, one panel for each reward."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((4.5 * len(scores), 3.4), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, (name, by_gamma) in zip(panels, scores.items(), strict=True):
        gammas = [float(gamma) for gamma in by_gamma]
        mean, low, high = (np.array([one[key] for one in by_gamma.values()]) for key in ("mean", "low", "high"))
        axes.plot(gammas, mean, marker="o")
        axes.fill_between(gammas, low, high, alpha=0.2)
        axes.axhline(mean[gammas.index(0.0)], color="grey", linewidth=0.8)
        axes.set(xlabel="gamma (0: synchronous)", ylabel=name)
    _save(figure, None, path, legend=False)


def _figure() -> tuple[Any, Any]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure((5.5, 3.4), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, axes: Any, path: epath.PathLike, *, legend: bool) -> None:
    if legend:
        axes.legend()
    with writing(path, overwrite=True) as stream:
        figure.savefig(stream, format="png", dpi=120)
