"""Train a small text-to-image network on captioned scenes of real digits; continue if its folder holds one.

  python -m launch.studies.train_scenes --family=sd       # a UNet like Stable Diffusion's
  python -m launch.studies.train_scenes --family=sd3      # an MM-DiT like Stable Diffusion 3's

All cells of an image share one time, as in the training of public networks; a tenth of the captions is left out, for
classifier-free guidance. Text encoder and network are trained together. Stop it with Ctrl-C or SIGTERM: it saves first,
and the same command continues where it was. In the end the folder holds pipeline/, in the layout of diffusers:

  python -m launch.text2image runs/scenes_sd/pipeline --prompt="a seven left of a three"
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tqdm import tqdm

from asyncpatch_jax import sharding
from asyncpatch_jax.data import dataset, scenes
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.pretrained.folders import families
from asyncpatch_jax.pretrained.folders.loading import Component, Pretrained
from asyncpatch_jax.pretrained.folders.saving import save_pretrained
from asyncpatch_jax.training import loop, losses
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import LossFn, TrainState, adam, create, jit_step, learning_rate, train_step
from asyncpatch_jax.training.times import Synchronous
from asyncpatch_jax.types import Condition
from launch.shared import cli, outputs, seeding
from launch.studies import scenes_model

_DROPPED = 0.1  # captions
_WARMUP = 100


class Trained(NamedTuple):
    """A network in training or after it."""

    family: str
    configs: dict[str, scenes_model.Config]
    model: scenes_model.Captioned
    params: Any  # averaged over the training
    step: int


def settings() -> dict[str, Any]:
    """What the flags say of the training, as it is stored beside a checkpoint."""
    values = flags.FLAGS
    names = ("family", "batch", "learning_rate", "seed", "tiny")
    return {**{name: values[name].value for name in names}, "cycles": [int(steps) for steps in values.cycles]}


def _rate(peak: float, cycles: Sequence[int]) -> optax.Schedule:
    """Cosine decays one after the other, each from the peak to 0 (SGDR, Loshchilov & Hutter 2017), after a warm-up.

    So a training that is done can be gone on with.
    """
    if not cycles or min(cycles) < 2:
        raise ValueError(f"expected cycles of at least 2 steps, got {cycles}")
    parts = [learning_rate(peak, warmup=min(_WARMUP, steps - 1), decay="cosine", steps=steps) for steps in cycles]
    return optax.join_schedules(parts, np.cumsum(cycles)[:-1].tolist())


def fit(chosen: dict[str, Any], folder: Path) -> bool:
    """Train as chosen, or go on; whether all steps are done.

    Raises:
        ValueError: the folder holds a training of other settings.
        FloatingPointError: the loss became infinite or NaN.
    """
    model = scenes_model.captioned(scenes_model.configs(chosen["family"], tiny=chosen["tiny"]))
    rate, steps = _rate(chosen["learning_rate"], chosen["cycles"]), sum(chosen["cycles"])
    optimizer = adam(rate)
    # SD3's own choice of times: the middle counts most
    times = Synchronous("logit_normal" if chosen["family"] == "sd3" else "uniform")
    process, kind = model.scheduler.process, model.scheduler.kind
    common = {"model": model, "process": process, "kind": kind, "times": times, "grid": (1, 1)}

    def loss_fn(params: Any, keys: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        cond = losses.drop_labels(keys, Condition(label=batch["label"]), _DROPPED, model.num_classes)
        return losses.loss(params, keys, batch["image"], cond, weight=losses.Uniform(), **common)

    params = scenes_model.init(model, of_seed(chosen["seed"]), scenes.scenes().shape[0])
    return steps_of(chosen, folder, params, loss_fn, optimizer, steps, _check)[1]


def steps_of(
    chosen: dict[str, Any],
    folder: Path,
    params: Any,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    steps: int,
    check: Callable[[dict[str, Any], dict[str, Any], Path], None],
) -> tuple[TrainState, bool]:
    """Steps on batches of scenes on one device, from the folder's checkpoint if it has one; and whether all are done.

    Args:
        chosen: settings, recorded beside the checkpoints; "seed" and "batch" are used here.
        check: `(recorded, chosen, folder)`, raises a ValueError if those are of another training.

    Raises:
        ValueError: the folder holds a training of other settings.
        FloatingPointError: the loss became infinite or NaN.
    """
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    state = create(params, optimizer)
    layout = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    state = jax.device_put(state, layout)
    step = jit_step(partial(train_step, loss_fn=loss_fn, optimizer=optimizer, ema=0.999), mesh, layout)
    batches = dataset.batches(scenes.scenes("train", seed=chosen["seed"]), batch=chosen["batch"], seed=chosen["seed"])
    key = of_seed(chosen["seed"])
    with Checkpoints(folder / "checkpoints", keep=1, record={"config": chosen}) as checkpoints:
        if checkpoints.latest is not None:
            check(checkpoints.about()["config"], chosen, folder)
            state = checkpoints.restore(state, batches)
        if int(state.step) >= steps:
            return state, True
        with tqdm(total=steps, initial=int(state.step), unit="step", mininterval=5) as bar:
            return loop.fit(
                state,
                batches,
                lambda state, batch: step(state, batch, key),
                steps=steps,
                checkpoints=checkpoints,
                checkpoint_every=500,
                log_every=50,
                sample_every=0,
                on_step=lambda done: bar.update(1),
                on_log=lambda done, metrics: bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False),
                on_sample=lambda done, state: None,
            )


def _check(there: dict[str, Any], chosen: dict[str, Any], folder: Path) -> None:
    begun = {**chosen, "cycles": chosen["cycles"][: len(there["cycles"])]}  # more of them may follow
    different = [f"{name}: {there[name]!r} -> {value!r}" for name, value in begun.items() if there[name] != value]
    if different:
        raise ValueError(f"expected {folder} to be empty or of these settings, got others: {', '.join(different)}")


def load(folder: Path) -> Trained:
    """The network that was trained in a folder, its averaged parameters.

    Raises:
        FileNotFoundError: nothing was trained there.
    """
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        chosen = checkpoints.about()["config"]
        configs = scenes_model.configs(chosen["family"], tiny=chosen["tiny"])
        model = scenes_model.captioned(configs)
        like = jax.eval_shape(lambda: scenes_model.init(model, jax.random.key(0), scenes.scenes().shape[0]))
        params, step = checkpoints.restore_ema(like)
    return Trained(chosen["family"], configs, model, jax.tree.map(jnp.asarray, params), step)


def export(network: Trained, folder: Path) -> None:
    """Write a trained network as a folder that `pretrained.loading` and diffusers read.

    Raises:
        ValueError: there is something already.
    """
    parts = scenes_model.components(network.configs, network.params)
    components = {
        name: Component(families.module(network.configs[name]), params, network.configs[name])
        for name, params in parts.items()
    }
    names = [name.replace("text_encoder", "tokenizer") for name in parts if name.startswith("text_encoder")]
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = Path(temporary) / "tokenizer"
        scenes_model.write_tokenizer(tokenizer)
        scheduler = network.configs["scheduler"]
        index = scenes_model.index(network.family, network.configs)
        tokenizers = dict.fromkeys(names, tokenizer)
        whole = Pretrained(network.family, components, network.model.scheduler, tokenizers, index, scheduler)
        save_pretrained(whole, folder)


def write_pipeline(network: Trained, folder: Path) -> None:
    """`export`, in the place of an earlier one.

    Raises:
        ValueError: there is something else, or it was changed.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        export(network, made)
        # the index last: a folder without it is one that was not finished
        names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
        names.sort(key="model_index.json".__eq__)
        planned = outputs.plan(folder, "launch.studies.train_scenes", names, overwrite=True)
        with outputs.making(planned, {"family": network.family, "step": network.step}) as into:
            for name in names:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).rename(into / name)


def pipeline_of(chosen: dict[str, Any], folder: Path) -> Path | None:
    """folder/pipeline, trained as chosen unless it is there; None if the training was stopped.

    Raises:
        ValueError, FloatingPointError: as `fit`.
    """
    pipeline = folder / "pipeline"
    if not (pipeline / "model_index.json").exists():
        if not fit(chosen, folder):
            return None
        write_pipeline(load(folder), pipeline)
    return pipeline


def main() -> None:
    values = flags.FLAGS
    if values.family not in scenes_model.FAMILIES:
        raise ValueError(f"expected --family out of {', '.join(scenes_model.FAMILIES)}, got {values.family!r}")
    folder = Path(values.workdir or f"runs/scenes_{values.family}")
    if not values.export and not fit(settings(), folder):
        print("stopped as asked to; the same command continues from here, with --export the network is used as it is")
        return
    network, pipeline = load(folder), folder / "pipeline"
    write_pipeline(network, pipeline)
    print(f"wrote {pipeline} of step {network.step}")


if __name__ == "__main__":
    flags.DEFINE_string("family", "sd", f"Which network: {', '.join(scenes_model.FAMILIES)}.")
    flags.DEFINE_string("workdir", None, "Folder of the training; runs/scenes_FAMILY unless given.")
    flags.DEFINE_bool("export", False, "Do not train, only write pipeline/ of the newest checkpoint.")
    flags.DEFINE_list(
        "cycles", ["3000", "5500"], "Training steps of each cosine decay; a finished run goes on with one more."
    )
    flags.DEFINE_integer("batch", 32, "Scenes in a step.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 1e-3, "At its peak.", lower_bound=0.0)
    seeding.define("Seed of data, noise and parameters.")
    flags.DEFINE_bool("tiny", False, "A network of a few thousand weights, to see it work.")
    cli.main_of_flags(main, __doc__)
