"""Does a classifier that has seen only real digits recognise the digits of a trained run?

  python -m launch.judge --workdir=runs/digits
  python -m launch.judge --workdir=runs/digits --num=1000 --schedule=autoregressive

Trains scikit-learn classifiers on the real training split, scores them on the real test split, and then on images that
the run makes, as many of each class: how many are named as the class that was asked for, and how far their features
are from those of real digits (Fréchet distance; the features are the hidden layer of a small network).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from asyncpatch_jax.sampling.batches import batched
from launch.shared import build, cli, digits_judge, pictures, plans, trained
from launch.shared.generate import generate, image_keys


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
        return run.decoded(generate(*args, num_steps=chosen.num_steps, ahead=chosen.ahead).images)

    return np.concatenate(batched(call, (keys, jnp.asarray(label)), batch=batch))[:count], label


def main() -> None:
    values = flags.FLAGS
    run = trained.load()
    if run.config.data.name != "digits" or not run.num_classes:
        raise ValueError(f"expected a run on digits with classes, got one on {run.config.data.name}")
    images, label = generated(run, values.schedule, values.num, min(values.batch, values.num), values.seed)
    print(f"real test digits named correctly:      {digits_judge.accuracy_of_real():7.1%}")
    print(f"{values.num:4} generated digits, as was asked for: {digits_judge.accuracy(images, label):7.1%}")
    about = f"{digits_judge.FEATURES} features, {values.num} samples"
    print(f"Fréchet distance to real digits:       {digits_judge.distance(images):7.3f} ({about})")


if __name__ == "__main__":
    trained.define_flags("solver", "eta", "steps", "grid", "guidance")
    flags.DEFINE_string("schedule", "sync", f"How cells move: {', '.join(plans.PLANS)}.")
    flags.DEFINE_integer("num", 500, "Images.", lower_bound=2)
    flags.DEFINE_integer("batch", 250, "Images at a time.", lower_bound=1)
    cli.main_of_run(main, __doc__)
