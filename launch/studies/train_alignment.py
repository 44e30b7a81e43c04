"""Train a small CLIP on captioned scenes of real digits: a reward that says how well an image shows its caption.

  python -m launch.studies.train_alignment

A contrastive loss (Radford et al. 2021, arXiv 2103.00020) on real scenes with captions that are trained on
(`data.scenes`); other captions that are as true of a scene do not count against it. Stop it with Ctrl-C or SIGTERM: it
saves first, and the same command continues where it was. In the end the folder holds clip/, a `CLIPModel` with its
tokenizer in the layout of transformers, which any command that takes rewards reads as clip_score=FOLDER/clip; and the
captions of both splits, captions.txt and held_out.txt. Says how often the true caption is found for unseen real scenes.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax.data import scenes
from asyncpatch_jax.files import writing
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.metrics.clip import read_clip
from asyncpatch_jax.metrics.pixels import preprocess
from asyncpatch_jax.pretrained.folders.loading import Component
from asyncpatch_jax.pretrained.folders.saving import save_component
from asyncpatch_jax.pretrained.networks import clip
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import TrainState, adam, learning_rate
from launch.shared import cli, seeding
from launch.studies import scenes_model, train_scenes

# files of captions
SPLITS: dict[scenes.Split, str] = {"train": "captions.txt", "test": "held_out.txt"}
_WIDTH, _PATCH, _WARMUP = 64, 4, 100


def config(*, tiny: bool = False) -> dict[str, Any]:
    """config.json of the network; a tiny one learns nothing, for a try."""
    text = scenes_model.text_config(projected=True)
    layers = 1 if tiny else 4
    vision = {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "projection_dim": _WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": scenes.scenes().shape[0],
        "patch_size": _PATCH,
    }
    own = {name: value for name, value in text.items() if name not in ("architectures", "model_type")}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": _WIDTH,
        "text_config": own,
        "vision_config": vision,
    }


@functools.cache
def also_true() -> Bool[np.ndarray, "n n"]:
    """Of each two captions by number, whether a scene of the first may be one of the second.

    Those of one scene, and those that say less: "a two" of "a two in the middle". Places count as different ones,
    though some digits in corners also lie in the middle ninth.
    """
    captions = scenes.captions()
    scene = np.array(scenes.scene_numbers())
    same = scene[:, None] == scene[None]
    named = {what: i for i, what in enumerate(dict.fromkeys((c.digits, c.sizes) for c in captions))}
    digits = np.array([named[caption.digits, caption.sizes] for caption in captions])
    bare = np.array([not caption.relation and not caption.place for caption in captions])
    return same | ((digits[:, None] == digits[None]) & (bare[:, None] | bare[None]))


def contrast(
    texts: Float[Array, "b d"], images: Float[Array, "b d"], scale: Float[Array, ""], also: Bool[Array, "b b"]
) -> Float[Array, ""]:
    """CLIP's loss of pairs: each text finds its image among the batch's, and each image its text.

    Args:
        texts, images: vectors of any length.
        scale: of their cosines.
        also: pairs that count neither for nor against; the diagonal does not matter.
    """
    texts, images = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (texts, images))
    logits = scale * texts @ images.T
    own = jnp.eye(len(texts), dtype=bool)
    logits = jnp.where(also & ~own, -jnp.inf, logits)
    return -sum(jnp.diagonal(jax.nn.log_softmax(logits, axis)) for axis in (0, 1)).mean() / 2


def fit(chosen: dict[str, Any], folder: Path) -> TrainState | None:
    """Train as chosen, or go on; None if the training was stopped.

    Raises:
        ValueError: the folder holds a training of other settings.
        FloatingPointError: the loss became infinite or NaN.
    """
    model = clip.from_config(config(tiny=chosen["tiny"]))
    steps = chosen["steps"]
    rate = learning_rate(chosen["learning_rate"], warmup=min(_WARMUP, steps - 1), decay="cosine", steps=steps)
    optimizer = adam(rate, b2=0.98)
    ids, also = np.array(scenes_model.caption_ids(), np.int32), also_true()

    def loss_fn(params: Any, keys: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        label = batch["label"]
        grey = jnp.round((batch["image"] + 1) * 127.5).astype(jnp.uint8)
        read = preprocess(jnp.repeat(grey, 3, -1), model.vision.size)
        texts, images, scale = model.apply({"params": params}, jnp.asarray(ids)[label], read)
        return contrast(texts, images, jnp.minimum(scale, 100.0), jnp.asarray(also)[label][:, label]), {"scale": scale}

    params = jax.jit(model.init)(of_seed(chosen["seed"]), *clip.example(model))["params"]
    state, finished = train_scenes.steps_of(chosen, folder, params, loss_fn, optimizer, steps, _check)
    return state if finished else None


def _check(there: dict[str, Any], chosen: dict[str, Any], folder: Path) -> None:
    if there != chosen:
        raise ValueError(f"expected {folder} to be empty or a training of {chosen}, got one of {there}")


def trained(chosen: dict[str, Any], folder: Path) -> Path | None:
    """folder/clip, trained as chosen unless it is there; None if the training was stopped.

    Raises:
        ValueError, FloatingPointError: as `fit`.
    """
    out = folder / "clip"
    if (out / "config.json").exists():
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            _check(checkpoints.about()["config"], chosen, folder)
    else:
        state = fit(chosen, folder)
        if state is None:
            return None
        content = config(tiny=chosen["tiny"])
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            whole = Path(temporary) / "clip"
            save_component(Component(clip.from_config(content), state.ema, content), whole)
            scenes_model.write_tokenizer(whole)
            for split, name in SPLITS.items():
                texts = [scenes.captions()[i].text for i in scenes.split_captions(split)]
                with writing(folder / name, overwrite=True) as stream:
                    stream.write("".join(f"{text}\n" for text in texts).encode())
            whole.rename(out)
    return out


def found(folder: Path, split: scenes.Split, count: int, seed: int) -> tuple[float, float]:
    """Of real scenes of a split: the share whose own caption fits better than another one of its kind, and than all.

    A caption that is as true does not count.
    """
    component, tokenizer = read_clip(folder)
    source = scenes.scenes(split, seed=seed).source
    records = [source[i] for i in range(count)]
    label = np.array([record["label"] for record in records])
    images = np.repeat(np.stack([record["image"] for record in records]), 3, -1)
    texts, pictures = _vectors(component, tokenizer.encode([caption.text for caption in scenes.captions()]).ids, images)
    cosine = pictures @ texts.T
    own = cosine[np.arange(count), label]
    rival = np.where(also_true()[label], -np.inf, cosine)
    kinds = np.array([caption.kind for caption in scenes.captions()])
    alike = np.where(kinds[label][:, None] == kinds[None], rival, -np.inf)
    rng = np.random.default_rng(seed)
    one = np.array([line[rng.choice(np.flatnonzero(np.isfinite(line)))] for line in alike])
    return float((own > one).mean()), float((own > rival.max(1)).mean())


def _vectors(component: Component, ids: Int[np.ndarray, "n l"], images: np.ndarray) -> list[np.ndarray]:
    size = component.module.vision.size
    vectors = jax.jit(lambda p, i, x: component.module.apply({"params": p}, i, preprocess(x, size))[:2])
    return [np.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True)) for v in vectors(component.params, ids, images)]


def settings() -> dict[str, Any]:
    """What the flags say of the training, as it is stored beside a checkpoint."""
    return {name: flags.FLAGS[name].value for name in ("steps", "batch", "learning_rate", "seed", "tiny")}


def main() -> None:
    folder = trained(settings(), Path(flags.FLAGS.workdir))
    if folder is None:
        print("stopped as asked to; the same command continues from here")
        return
    print(f"wrote {folder}")
    for split, name in (("train", "captions that were trained on"), ("test", "held-out captions and digits")):
        kind, every = found(folder, split, flags.FLAGS.num, seed=10**6)
        print(f"{name}: fits better than another of its kind {kind:.1%}, than all others {every:.1%}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/scenes_clip", "Folder of the training.")
    flags.DEFINE_integer("steps", 4000, "Training steps.", lower_bound=2)
    flags.DEFINE_integer("batch", 128, "Scenes in a step.", lower_bound=2)
    flags.DEFINE_float("learning_rate", 1e-3, "At its peak.", lower_bound=0.0)
    seeding.define("Seed of data and parameters.")
    flags.DEFINE_integer("num", 1000, "Scenes to say how good it is.", lower_bound=2)
    flags.DEFINE_bool("tiny", False, "A network that learns little, to see it work.")
    cli.main_of_flags(main, __doc__)
