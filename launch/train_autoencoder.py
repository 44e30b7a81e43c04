r"""Train the localised VQ autoencoder, whose latents a mask does not leak into; continue a run that is there.

  python -m launch.train_autoencoder --config=configs/autoencoder_f4.py:smoke        # in seconds, to see it work
  python -m launch.train_autoencoder --config=configs/autoencoder_fashion.py \
      --config.data.path=data/usr/share/datasets/fashion-mnist
  python -m launch.train_autoencoder --config=configs/autoencoder_f8.py --config.data.name=folder \
      --config.data.path=photos/ --config.train.batch=16 --config.loss.lpips=weights/lpips_vgg

Writes into config.workdir: checkpoints/ (the last few, with the data's position), samples/ (pictures and
measures.json: PSNR and SSIM inside and outside of holes, leakage), TensorBoard files, run.json, and at the end
autoencoder/, the folder that other commands read. Stop it with Ctrl-C or SIGTERM: it saves first, and the same command
continues where it was.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data import dataset
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.models import autoencoder
from asyncpatch_jax.training import autoencoding
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import TrainState
from launch.autoencoding import coders, pages
from launch.autoencoding.parts import Parts, frozen_params, masks, parts, rate, training
from launch.shared import build, cli, datasets, fitting, records
from launch.shared.programs import Program

DEFAULT = "configs/autoencoder_fashion.py"
# what may change between two starts of a run, since it does not change what is learned
_FREE = (
    *("workdir", "mesh", "model.remat", "data.path", "data.on_error", "data.max_pixels"),
    *("train.checkpoint_every", "train.log_every", "train.sample_every", "train.keep", "train.fall_back"),
    "train.held_out",
)
_BATCH = 16  # held-out images at a time


def run(config: ConfigDict) -> None:
    """Train as configured, or go on training; then write the autoencoder's folder.

    Raises:
        ValueError: the configuration does not make sense, or the folder holds a run of another one.
        FloatingPointError: the loss became infinite or NaN.
        OSError: the folder cannot be written, or the disk is full.
    """
    check(config)
    data = datasets.dataset(config)
    shown = datasets.dataset(config, "test") if config.data.name in datasets.HELD_OUT else data
    mesh, made = build.mesh(config), parts(config)
    program = training(config, made, mesh)
    batches = stream(config, data, mesh)
    jax.eval_shape(program.fn, *program.args)
    workdir, train = epath.Path(config.workdir), config.train
    record, like = records.record(config, data), program.args[0]
    with Checkpoints(workdir / "checkpoints", keep=train.keep, record=record, fall_back=train.fall_back) as checkpoints:
        checkpoints.check_room(like)
        if checkpoints.latest is None:
            state = first(config, made, mesh, like)
            count = sum(leaf.size for leaf in jax.tree.leaves(state.ema))
            print(f"training {count:,} parameters on {len(data.source):,} images")
        else:
            check_same(config, data)
            state = checkpoints.restore(like, batches)
            print(f"continuing {workdir} at step {int(state.step)}")
        finished = True
        if int(state.step) >= train.steps:
            print(f"nothing to do: {train.steps} steps are done; --config.train.steps=N trains on")
            if train.sample_every and not pages.complete(_folder(workdir, int(state.step))):
                _draw(config, made, shown, mesh, int(state.step), state)
            if records.read(workdir) is None:
                records.write(workdir, record)
        else:
            finished = _fit(config, made, shown, state, batches, program, checkpoints, record, mesh)
        if not finished:
            print("stopped as asked to; the same command continues from here")
            return
        whole = sharding.replicated(mesh)
        last = checkpoints.restore(like.replace(ema=sharding.abstract(like.ema, whole)), batches)
        autoencoder.save(workdir / "autoencoder", made.model, last.ema, overwrite=True)
        print(
            f"wrote {workdir}/autoencoder, checkpoints/ (steps {', '.join(map(str, checkpoints.steps))}) and run.json"
        )


def first(config: ConfigDict, made: Parts, mesh: Mesh, like: TrainState) -> TrainState:
    """The state before the first step, made where it lies."""
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    side, channels, judge = config.data.size, config.data.channels, made.step.discriminator

    def start(key: jax.Array) -> TrainState:
        one, other = jax.random.split(key)
        images = jnp.zeros((1, side, side, channels))
        params = made.model.init(one, images)["params"]
        judged = None if judge is None else judge.init(other, images)["params"]
        return autoencoding.create(params, judged, made.step.optimizer)

    return jax.jit(start, out_shardings=places)(of_seed(config.seed))


def _folder(workdir: epath.Path, step: int) -> epath.Path:
    return workdir / "samples" / f"{step:07d}"


def _draw(config: ConfigDict, made: Parts, shown: Dataset, mesh: Mesh, done: int, state: TrainState) -> None:
    kinds = [*masks(config)] or ["square"]
    images, holes = pages.held_out(shown, config.train.held_out, kinds)
    # of several processes, each measures for itself
    whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(state.ema)
    coder = coders.of_module(made.model, jax.device_put(jax.tree.map(np.asarray, whole)))
    folder = _folder(epath.Path(config.workdir), done)
    found = pages.write(folder, coder, images, holes, made.lpips, batch=min(_BATCH, len(images)))
    print(f"step {done}: {pages.line(found)}; {folder}/autoencoder.png", flush=True)


def _fit(
    config: ConfigDict,
    made: Parts,
    shown: Dataset,
    state: TrainState,
    batches: Any,
    program: Program,
    checkpoints: Checkpoints,
    record: dict[str, Any],
    mesh: Mesh,
) -> bool:
    workdir, rates = epath.Path(config.workdir), rate(config)
    whole = sharding.replicated(mesh)
    key = jax.jit(lambda: of_seed(config.seed), out_shardings=whole)()
    frozen = jax.device_put(frozen_params(made), whole)

    def said(done: int, metrics: dict[str, float]) -> dict[str, str]:
        metrics["learning_rate"] = float(rates(done - 1))
        for part in ("known", "hole"):
            # of the mean of the squares, as of all images together
            metrics[f"psnr_{part}"] = float(10 * np.log10(4 / max(metrics.pop(f"squared_{part}"), 1e-10)))
        return {"loss": f"{metrics['loss']:.4f}", "codes": f"{metrics['codes_used']:.0%}"}

    return fitting.fit(
        state,
        batches,
        lambda state, batch: program.fn(state, frozen, sharding.place_batch(mesh, batch), key),
        config,
        checkpoints,
        unit="step",
        begin=lambda: records.write(workdir, record),
        said=said,
        draw=partial(_draw, config, made, shown, mesh),
    )


def stream(config: ConfigDict, data: Dataset, mesh: Mesh) -> Any:
    """This process's part of endless batches of images with masks. Raises ValueError if the data cannot fill one."""
    shard = sharding.process_shard(mesh)
    size = config.train.batch // shard[1]
    return dataset.batches(
        data, batch=size, seed=config.seed, shard=shard, augment=config.data.augment, masks=masks(config)
    )


def check(config: ConfigDict) -> None:
    """Find mistakes in the settings before anything is read.

    Raises:
        ValueError: says what was expected.
    """
    train = config.train
    if min(train.steps, train.checkpoint_every, train.log_every, train.keep) < 1 or train.sample_every < 0:
        raise ValueError("expected config.train.steps, checkpoint_every, log_every and keep >= 1, sample_every >= 0")
    if train.held_out < 2:
        raise ValueError(f"expected config.train.held_out of 2 images or more, got {train.held_out}")
    masks(config)
    check_same(config)


def check_same(config: ConfigDict, data: Dataset | None = None) -> None:
    """Refuse to go on with another run, by its settings, and by what its data is if `data` is given.

    Raises:
        ValueError: the folder holds a run of other settings or on other data.
        DamagedError: no checkpoint there is whole.
    """
    there = records.trained(config.workdir, config.train.fall_back)
    if there is None:
        return
    free = _FREE if config.optim.schedule == "cosine" else (*_FREE, "train.steps")
    known = there.get("data", {})
    if "names" in known:
        free = (*free, "data.dataset")
    records.check_same(there, config, free, records.other_data(known, data) if known and data else [])


if __name__ == "__main__":
    cli.main(run, __doc__, default=DEFAULT)
