"""Train a network with spatially varying noise levels; continue the run if its folder holds one.

  python -m launch.train --config=configs/digits.py
  python -m launch.train --config=configs/digits.py:smoke                     # the same in seconds, to see it work
  python -m launch.train --config=configs/folder.py --config.data.path=photos/  # your own images
  python -m launch.train --config=configs/digits.py --config.workdir=runs/wide --config.model.base=64

Writes into config.workdir: checkpoints/ (the last few, with the data's position), samples/ (pictures), TensorBoard
files and run.json. Stop it with Ctrl-C or SIGTERM: it saves first, and the same command continues where it was. While
it draws pictures all is saved, and it stops at once.
"""

import functools
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data import dataset
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.pretrained.text_encoder import TextEncoder
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.records import differences, shortened, summary
from asyncpatch_jax.training.step import TrainState, create
from asyncpatch_jax.training.stored import listed
from launch.shared import autoencoders, build, cli, datasets, fitting, pictures, programs, records, texts

# what may change between two starts of a run, since it does not change what is learned; what the data is, is compared
# in place of where it lies
_FREE = (
    *("workdir", "mesh", "sample", "model.remat", "model.scan", "data.path", "data.on_error", "data.max_pixels"),
    *("text.encoder", "text.tokenizer", "data.root"),
    *("data.autoencoder", "data.latents", "data.factor", "data.latent_channels"),
    *("train.checkpoint_every", "train.log_every", "train.sample_every", "train.keep", "train.fall_back"),
)

_SEEN = ("image", "label", "mask", "tokens", "counted")  # of a record, what a step looks at


def run(config: ConfigDict) -> None:
    """Train as configured, or go on training.

    Raises:
        ValueError: the configuration does not make sense, or the folder holds a run of another one.
        FloatingPointError: the loss became infinite or NaN.
        OSError: the folder cannot be written, or the disk is full.
    """
    # first, as to look through a data set may take long
    check_same(config)
    if config.train.init and not listed(epath.Path(config.workdir) / "checkpoints"):
        records.record_of(config.train.init, fall_back=config.train.fall_back)
    mesh = build.mesh(config)
    autoencoder = autoencoders.chosen(config, mesh)
    encoder = texts.chosen(config, mesh)
    source = texts.with_texts(config, autoencoders.training_data(config, autoencoder))
    there = records.trained(config.workdir, config.train.fall_back) or {}
    data, autoencoder = autoencoders.measured(config, source, autoencoder, there.get("data"))
    network = build.untrained(config, data)._replace(mesh=mesh, autoencoder=autoencoder, encoder=encoder)
    shown = source
    if config.data.name in datasets.HELD_OUT:
        shown = texts.with_texts(config, datasets.dataset(config, "test"))
    if encoder:
        network = network.told(pictures.some_texts(shown))
    program = programs.training(config, network, mesh)
    like = program.args[0]
    batches = stream(config, source, mesh, encoder)
    check(config, program)
    workdir = epath.Path(config.workdir)
    record, settings = records.record(config, data), config.train
    with Checkpoints(
        workdir / "checkpoints", keep=settings.keep, record=record, fall_back=settings.fall_back
    ) as checkpoints:
        checkpoints.check_room(like)
        if checkpoints.latest is None:
            start = functools.partial(create, optimizer=build.optimizer(config))
            state = jax.jit(start, out_shardings=jax.tree.map(lambda x: x.sharding, like))(
                first_params(config, network)
            )
            count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            print(f"training {count:,} parameters on {len(data.source):,} images")
        else:
            check_same(config, data)
            state = checkpoints.restore(like, batches)
            print(f"continuing {workdir} at step {int(state.step)}")
        if int(state.step) >= config.train.steps:
            if records.read(workdir) is None:
                records.write(workdir, record)
            print(f"nothing to do: {config.train.steps} steps are done; {_how_to_go_on(config)}")
            folder = samples_folder(workdir, int(state.step))
            finished = network._replace(params=state.ema, step=int(state.step))
            if config.train.sample_every and not pictures.complete(folder, finished):
                _write_pages(folder, finished, shown, of_seed(config.seed))
            return
        finished = _fit(config, network, shown, state, batches, program, checkpoints, record)
        print(f"wrote {workdir}/checkpoints (steps {', '.join(map(str, checkpoints.steps))}) and {workdir}/run.json")
    if not finished:
        print("stopped as asked to; the same command continues from here")


def _how_to_go_on(config: ConfigDict) -> str:
    if config.optim.schedule != "cosine":
        return "--config.train.steps=N trains on"
    # its learning rate is 0 at the end: what comes after is another run
    return (
        "its learning rate has come to 0, and another run goes on from here: "
        f"--config.train.init={config.workdir} --config.workdir={config.workdir}_2"
    )


def _fit(
    config: ConfigDict,
    network: build.Run,
    shown: Dataset,
    state: TrainState,
    batches: Any,
    program: programs.Program,
    checkpoints: Checkpoints,
    record: dict[str, Any],
) -> bool:
    workdir, steps = epath.Path(config.workdir), config.train.steps
    rate = build.rate(config)
    key = of_seed(config.seed)
    everywhere = jax.jit(lambda: of_seed(config.seed), out_shardings=sharding.replicated(network.mesh))()

    def said(done: int, metrics: dict[str, float]) -> dict[str, str]:
        metrics["learning_rate"] = float(rate(done - 1))
        return {"loss": f"{metrics['loss']:.4f}"}

    def draw(done: int, state: TrainState) -> None:
        now, folder = network._replace(params=state.ema, step=done), samples_folder(workdir, done)
        if done == steps:
            print("drawing the last pages; all is saved, and to stop now loses nothing", flush=True)
            _write_pages(folder, now, shown, key)
        else:
            pictures.write_samples(folder, now, key)

    return fitting.fit(
        state,
        batches,
        lambda state, batch: program.fn(state, seen(network, sharding.place_batch(network.mesh, batch)), everywhere),
        config,
        checkpoints,
        unit="step",
        begin=lambda: records.write(workdir, record),
        said=said,
        draw=draw,
    )


def samples_folder(workdir: epath.Path, step: int) -> epath.Path:
    """Where the pictures of a step go."""
    return workdir / "samples" / f"{step:07d}"


def _write_pages(folder: epath.Path, run: build.Run, shown: Dataset, key: jax.Array) -> None:
    for path in pictures.write_all(folder, run, shown, key):
        print(f"wrote {path}")


def seen(network: build.Run, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch as the step takes it: texts become vectors, and images that are not encoded yet latents, on the devices
    that they are on.
    """
    if network.encoder is not None:
        vectors = network.encoder.vectors(batch["ids"], batch["counted"], whole=False)
        batch = {**batch, "tokens": vectors}
    batch = {name: batch[name] for name in _SEEN if name in batch}
    if batch["image"].shape[1:] == network.shape:
        return batch
    masks = {"mask": network.unknown(batch["mask"])} if "mask" in batch else {}
    return {**batch, **masks, "image": network.encoded(batch["image"], whole=False)}


def stream(config: ConfigDict, data: Dataset, mesh: Mesh, encoder: TextEncoder | None = None) -> Any:
    """This process's part of endless batches. Raises ValueError if the data cannot fill one."""
    shard = sharding.process_shard(mesh)
    size = config.train.batch // shard[1]
    holes = datasets.holes(config)
    more = holes._asdict() if holes else {}
    more |= {"tokens": encoder.one} if encoder else {}
    return dataset.batches(data, batch=size, seed=config.seed, shard=shard, augment=config.data.augment, **more)


def check_same(config: ConfigDict, data: Dataset | None = None) -> None:
    """Refuse to go on with another run, by its settings, and by what its data is if `data` is given.

    Raises:
        ValueError: the folder holds a run of other settings or on other data.
        DamagedError: no checkpoint there is whole.
    """
    workdir = epath.Path(config.workdir)
    there = records.trained(workdir, config.train.fall_back)
    if there is None:
        return
    # a decay that ends with the run makes its length part of what is learned
    free = _FREE if config.optim.schedule == "cosine" else (*_FREE, "train.steps")
    if data is None:  # sizes that are written into the configuration when the text encoder is read
        free = (*free, "text.width", "text.length", "text.digest")
    known = there.get("data", {})
    if "names" in known:
        free = (*free, "data.dataset")
    records.check_same(there, config, free, records.other_data(known, data) if known and data else [])


def check(config: ConfigDict, program: programs.Program) -> None:
    """Find mistakes before anything is compiled or written.

    Raises:
        ValueError: settings that do not fit each other or the data.
    """
    train = config.train
    if min(train.steps, train.checkpoint_every, train.log_every, train.keep) < 1 or train.sample_every < 0:
        raise ValueError("expected config.train.steps, checkpoint_every, log_every and keep >= 1, sample_every >= 0")
    if not 0 <= config.optim.ema < 1:
        raise ValueError(f"expected 0 <= config.optim.ema < 1, got {config.optim.ema}")
    process = build.process(config)
    build.solver(config, process)
    build.grid(config, config.sample.steps, process)
    jax.eval_shape(program.fn, *program.args)


def first_params(config: ConfigDict, network: build.Run) -> Any:
    """Random parameters, or those of the run `config.train.init`; a head that is to be trained alone may be new to it.

    Raises:
        FileNotFoundError: no run there.
        ValueError: its network is another one.
    """
    layout = build.layout(network, network.mesh)
    fresh = build.init_params(network.model, of_seed(config.seed), network.shape, layout)
    if not config.train.init:
        return fresh
    given = build.load_run(config.train.init, mesh=network.mesh, fall_back=config.train.fall_back).params
    start = {**{name: fresh[name] for name in fresh if name == config.optim.only}, **given}
    lines = differences(summary(start), summary(fresh))
    if lines:
        raise ValueError(f"expected this model in {config.train.init}, got another (there -> here): {shortened(lines)}")
    return start


if __name__ == "__main__":
    cli.main(run, __doc__)
