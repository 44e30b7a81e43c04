"""Rewards of public networks that learned what people prefer, read from folders; nothing is downloaded.

- clip: the cosine of CLIP's embeddings (Radford et al. 2021, arXiv 2103.00020), which some papers call CLIPScore.
- clip_score: CLIPScore (Hessel et al. 2021, arXiv 2104.08718), 2.5 max(cosine, 0), of any CLIP.
- pick_score: PickScore (Kirstain et al. 2023, arXiv 2305.01569), CLIP's scaled cosine, about 15 to 25.
- hps_v2, hps_v2.1: Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341), a cosine, about .2 to .35.
- image_reward: ImageReward (Xu et al. 2023, arXiv 2304.05977), about mean 0 and deviation 1.
- aesthetic: LAION's aesthetic predictor (2022), about 1 to 10; the prompts do not matter.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from asyncpatch_jax import schema
from asyncpatch_jax.metrics.clip import BATCH, clip_score, cosines, read_clip
from asyncpatch_jax.metrics.pixels import letterbox, preprocess
from asyncpatch_jax.metrics.rewards import Reward, from_callable
from asyncpatch_jax.metrics.sources import SOURCES
from asyncpatch_jax.pretrained.folders.edges import check_tokenizer
from asyncpatch_jax.pretrained.folders.loading import Component, describe_component, load_component, resolve
from asyncpatch_jax.pretrained.text.tokenizers import read_tokenizer
from asyncpatch_jax.sampling.batches import batched

_IMAGE_REWARD_TOKENS = 35  # of a prompt, as its code cuts them

_Score = Callable[[UInt8[np.ndarray, "b h w 3"], Sequence[str]], Float[np.ndarray, "b"]]


def read_reward(name: str, folder: epath.PathLike, dtype: Any = jnp.float32) -> Reward:
    """A reward of a public network, ready to be called; it cuts no prompt silently, and grey images are grey colours.

    Args:
        name: of `REWARDS`.
        folder: for clip and clip_score one of transformers' `CLIPModel` with its tokenizer; for the others what
            `launch.convert_metric` writes.
        dtype: of the parameters and of the computation.

    Raises:
        ValueError: an unknown name; no such folder, or one of another network: says what to provide, and the command.
        ImportError: the extra `text` is not installed.
    """
    if name not in REWARDS:
        raise ValueError(f"expected a reward out of {', '.join(REWARDS)}, got {name!r}")
    try:
        if not os.fspath(folder):
            raise ValueError("no folder was named")
        path = resolve(folder)
        made_for = schema.read_json(path / "config.json").get("_reward", "clip_score")
        if made_for != ("clip_score" if name == "clip" else name):
            raise ValueError(f"expected a folder of {name}, got one of {made_for}")
        score = REWARDS[name](path, dtype)
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read the reward {name} from {folder}: {error}\nIt needs {_needs(name)}") from error

    def checked(images: UInt8[np.ndarray, "b h w c"], prompts: Sequence[str]) -> Float[np.ndarray, "b"]:
        if images.shape[-1] not in (1, 3):
            raise ValueError(f"expected images [b, h, w, 3] or grey ones for the reward {name}, got {images.shape}")
        return score(np.broadcast_to(images, (*images.shape[:3], 3)), prompts)

    return from_callable(name, checked)


def _needs(name: str) -> str:
    if name in ("clip", "clip_score"):
        return "a folder of a CLIPModel with its tokenizer, such as openai/clip-vit-large-patch14"
    source = SOURCES[name]
    return f"a folder that this command makes: {source.command(name)}\nFILE: {source.needs()}"


def _clip(folder: Path, dtype: Any) -> _Score:
    component, tokenizer = read_clip(folder, dtype)
    return lambda images, prompts: clip_score(component, tokenizer, images, prompts).cosine


def _clip_score(folder: Path, dtype: Any) -> _Score:
    component, tokenizer = read_clip(folder, dtype)
    return lambda images, prompts: clip_score(component, tokenizer, images, prompts).score


def _pick_score(folder: Path, dtype: Any) -> _Score:
    component, tokenizer = read_clip(folder, dtype)
    scale = float(jnp.exp(component.params["logit_scale"].astype(jnp.float32)))
    return lambda images, prompts: scale * cosines(component, tokenizer, images, prompts)


def _hps(folder: Path, dtype: Any) -> _Score:
    component, tokenizer = read_clip(folder, dtype)
    return lambda images, prompts: cosines(component, tokenizer, images, prompts, letterbox)


def _image_reward(folder: Path, dtype: Any) -> _Score:
    tokenizer = read_tokenizer(folder, _IMAGE_REWARD_TOKENS)
    check_tokenizer(tokenizer, describe_component(folder).module, "this network")
    component = load_component(folder, dtype=dtype)

    def score(images: UInt8[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Float[np.ndarray, "b"]:
        ids, mask, _ = tokenizer.encode(prompts)
        return _scores(component, component.module.vision.size, images, ids, mask)

    return score


def _aesthetic(folder: Path, dtype: Any) -> _Score:
    component = load_component(folder, dtype=dtype)
    return lambda images, prompts: _scores(component, component.module.encoder.vision.size, images)


def _scores(component: Component, size: int, images: np.ndarray, *text: np.ndarray) -> Float[np.ndarray, "b"]:
    def call(part: tuple[np.ndarray, ...]) -> Float[Array, "b"]:
        return _apply(component.module, size, component.params, *part)

    return np.concatenate(batched(call, (images, *text), batch=min(BATCH, len(images))))[: len(images)]


@partial(jax.jit, static_argnums=(0, 1))
def _apply(
    module: nn.Module, size: int, params: Any, images: UInt8[Array, "b h w 3"], *text: Array
) -> Float[Array, "b"]:
    scores: Any = module.apply({"params": params}, *text, preprocess(images, size, round))
    return scores


REWARDS: dict[str, Callable[[Path, Any], _Score]] = {
    "clip": _clip,
    "clip_score": _clip_score,
    "pick_score": _pick_score,
    "hps_v2": _hps,
    "hps_v2.1": _hps,
    "image_reward": _image_reward,
    "aesthetic": _aesthetic,
}
