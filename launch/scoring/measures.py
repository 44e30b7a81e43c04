"""The measures by name: what each needs beside the images, where its weights lie, and how it is called.

All that a command line lacks is said before an image is read or a network loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from asyncpatch_jax import schema, sharding
from asyncpatch_jax.metrics.conversion import SOURCES
from asyncpatch_jax.metrics.features import Features
from asyncpatch_jax.metrics.inception import read_inception
from asyncpatch_jax.metrics.lpips import NAMES as LPIPS
from asyncpatch_jax.metrics.lpips import read_lpips
from asyncpatch_jax.metrics.paired import Paired, Weights, weights
from asyncpatch_jax.metrics.preferences import read_reward
from asyncpatch_jax.metrics.similarity import HOLE_RMSE, PSNR, SIDE, SSIM
from asyncpatch_jax.metrics.text import RATING, bert_score, captions, qwen_score, read_bert, read_vlm
from asyncpatch_jax.pretrained.networks.lpips import LEAST

SYNTAX = "NAME or NAME=FOLDER (of its weights), separated by commas"
_CLIP = "clip_score"  # the kind of a folder of CLIP
SETS = ("fid", "kid")  # measures of sets of images; all others are of single ones
# which flag gives what a measure needs. Prompts may be in the images' own files
FLAGS = {
    "reference": "--reference=FOLDER or stats.npz",
    "pairs": "--pairs=FOLDER",
    "masks": "--masks=FOLDER",
}


class Given(NamedTuple):
    """A batch, with what the measures need of it."""

    images: UInt8[np.ndarray, "b h w 3"]
    pairs: UInt8[np.ndarray, "b h w 3"] | None
    holes: Float[np.ndarray, "b h w 1"] | None
    texts: Sequence[str]  # none where no measure needs them, and so are captions
    captions: Sequence[str]


class Loaded(NamedTuple):
    """A measure that is ready.

    title: as it stands in tables.
    about: what a reader must know of the number besides.
    call: rows [b, k] of a batch: numbers [b, 1], or features that sets are compared by.
    features: what these are.
    """

    title: str
    about: str
    weights: Weights | None
    call: Callable[[Given], Float[np.ndarray, "b k"]]
    features: Features | None = None


@dataclass(frozen=True)
class Options:
    """What the command line says of how numbers are made.

    Args:
        resize: the rule by which images become Inception's.
        batch: images at a time.
        bert_layer: whose vectors BERTScore compares.
        vlm: folder of the model that says what it sees, for BERTScore; "": captions are given.
    """

    resize: str
    batch: int
    bert_layer: int
    vlm: str


@dataclass(frozen=True)
class Measure:
    """How a number is made.

    Args:
        needs: out of `FLAGS`, and "prompts".
        folder: of its weights, within --weights; "" if it has none.
        kinds: of networks that may lie there, as config.json says it; empty: a model that transformers reads.
        load: `(folder, options) -> Loaded`.
    """

    needs: tuple[str, ...]
    folder: str
    kinds: tuple[str, ...]
    load: Callable[[str, Options], Loaded]


def _column(values: Any) -> Float[np.ndarray, "b 1"]:
    return np.asarray(values, np.float32)[:, None]


def _features(folder: str, options: Options) -> Loaded:
    features = read_inception(folder, options.resize, mesh=_mesh(), batch=options.batch)
    named = Weights(folder, features.weights)
    return Loaded(features.name, features.resize, named, lambda given: features.call(given.images), features)


def _paired(paired: Paired, about: str, masked: bool) -> Loaded:
    def call(given: Given) -> Float[np.ndarray, "b 1"]:
        assert given.pairs is not None  # it is needed
        holes = given.holes if masked else None
        return _column(paired(given.images, given.pairs, holes, batch=len(given.images)))

    title = f"{paired.name}, hole" if masked and paired.holes == "optional" else paired.name
    return Loaded(title, about, paired.weights, call)


def _lpips(masked: bool, folder: str, options: Options) -> Loaded:
    about = "each layer's distances averaged over the hole" if masked else "own size, no resize"
    return _paired(read_lpips(folder, _mesh()), about, masked)


def _plain(paired: Paired, about: str, masked: bool = False) -> Callable[[str, Options], Loaded]:
    return lambda folder, options: _paired(paired, about, masked)


def _reward(about: str, folder: str, options: Options) -> Loaded:
    kind = kind_of(folder)
    # the plain cosine, of which CLIPScore is 2.5 times the positive part
    reward = read_reward("clip" if kind == _CLIP else kind, folder)
    title = "CLIP cosine" if kind == _CLIP else kind
    return Loaded(title, about, weights(folder), lambda given: _column(reward(given.images, given.texts)))


def _qwen(folder: str, options: Options) -> Loaded:
    vlm = read_vlm(folder)
    about = f"0 ... 9, asked: {RATING}"
    return Loaded(
        "QwenScore", about, weights(folder), lambda given: _column(qwen_score(vlm, given.images, given.texts))
    )


def _bert(folder: str, options: Options) -> Loaded:
    embed, vlm = read_bert(folder, options.bert_layer), read_vlm(options.vlm) if options.vlm else None

    def call(given: Given) -> Float[np.ndarray, "b 1"]:
        said = given.captions if vlm is None else captions(vlm, given.images)
        return _column(bert_score(embed, said, given.texts).f1)

    by = f"captions by {options.vlm}" if options.vlm else "captions of a file"
    return Loaded("BERTScore F1", f"layer {options.bert_layer}, {by}", weights(folder), call)


def _mesh() -> Any:
    """Of this process' own devices: processes share the images, not the steps."""
    return sharding.make_mesh(devices=jax.local_devices()) if jax.local_device_count() > 1 else None


MEASURES: Mapping[str, Measure] = {
    "fid": Measure(("reference",), "inception", ("inception",), _features),
    "kid": Measure(("reference",), "inception", ("inception",), _features),
    "lpips": Measure(("pairs",), "lpips_alex", tuple(LPIPS), partial(_lpips, False)),
    "lpips_hole": Measure(("pairs", "masks"), "lpips_alex", tuple(LPIPS), partial(_lpips, True)),
    "psnr": Measure(("pairs",), "", (), _plain(PSNR, "dB, of 8 bits")),
    "ssim": Measure(("pairs",), "", (), _plain(SSIM, "11 x 11 Gaussian window, mean of the colours")),
    "hole_rmse": Measure(("pairs", "masks"), "", (), _plain(HOLE_RMSE, "of images in [-1, 1]", True)),
    "clip": Measure(("prompts",), "clip", (_CLIP,), partial(_reward, "-1 ... 1")),
    "image_reward": Measure(("prompts",), "image_reward", ("image_reward",), partial(_reward, "")),
    "hpsv2": Measure(("prompts",), "hps_v2.1", ("hps_v2", "hps_v2.1"), partial(_reward, "cosine")),
    "pick": Measure(("prompts",), "pick_score", ("pick_score",), partial(_reward, "scaled cosine")),
    "aesthetic": Measure((), "aesthetic", ("aesthetic",), partial(_reward, "reads no prompt")),
    "qwen": Measure(("prompts",), "qwen", (), _qwen),
    "bert": Measure(("prompts",), "bert", (), _bert),
}


def parse(text: str, root: str) -> dict[str, str]:
    """The measures of a flag, and the folders of their weights.

    Args:
        root: where the folders lie that are not named.

    Raises:
        ValueError: an unknown name, or one that is there twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, folder = part.partition("=")
        if name not in MEASURES or name in found:
            raise ValueError(f"expected measures out of {', '.join(MEASURES)}, each once, got {part!r} in {text!r}")
        if folder and not MEASURES[name].folder:
            raise ValueError(f"expected no folder of weights for {name}, which has none, got {part!r}")
        found[name] = folder or str(Path(root) / MEASURES[name].folder) if MEASURES[name].folder else ""
    if not found:
        raise ValueError(f"expected measures ({SYNTAX}), got none")
    return found


def check(measures: Mapping[str, str], given: Sequence[str]) -> None:
    """Refuse measures that lack something, with what to give.

    Args:
        measures: of `parse`.
        given: which of `FLAGS` there are.

    Raises:
        ValueError: the first one that lacks a flag or its weights.
    """
    for name, folder in measures.items():
        for need in MEASURES[name].needs:
            if need in FLAGS and need not in given:
                raise ValueError(f"expected {FLAGS[need]} for the measure {name}, got none")
        if folder:
            check_folder(name, folder)


def check_folder(name: str, folder: str) -> None:
    """Look at what the folder of a measure's weights says of itself; nothing is loaded.

    Raises:
        ValueError: there are no weights, or those of another network: says what files to give, and the command.
    """
    kinds = MEASURES[name].kinds
    try:
        if not any(Path(folder).glob("*.safetensors")):
            raise ValueError("it has no safetensors files" if Path(folder).is_dir() else "there is no such folder")
        kind = kind_of(folder)
        if kinds and kind not in kinds:
            raise ValueError(f"it is of {kind}")
    except (ValueError, OSError) as error:
        raise ValueError(f"expected the weights of {name} in {folder}: {error}\nIt needs {_needs(name)}") from error


def smallest(name: str, folder: str) -> int:
    """The side, in pixels, of the smallest images that a measure takes."""
    if name == "ssim":
        return SIDE
    if not folder or not set(MEASURES[name].kinds) & set(LPIPS):
        return 1
    kind = kind_of(folder)
    return next(side for trunk, side in LEAST.items() if trunk in kind)


def kind_of(folder: str) -> str:
    """Which network a folder is of, as `launch.convert_metric` notes it; a folder without a note is a `CLIPModel`'s."""
    return str(schema.read_json(Path(folder) / "config.json").get("_reward", _CLIP))


def _needs(name: str) -> str:
    found = {
        "clip": "a folder of a CLIPModel with its tokenizer, such as openai/clip-vit-large-patch14",
        "qwen": "a folder of a model that talks about images, such as Qwen2.5-VL-7B-Instruct",
        "bert": "a folder of an encoder with its tokenizer, such as roberta-large",
    }.get(name)
    commands = [
        f"{SOURCES[kind].command(kind)}\nFILE: {SOURCES[kind].needs()}" for kind in MEASURES[name].kinds if not found
    ]
    return found or "a folder that this command makes: " + "\nor: ".join(commands)
