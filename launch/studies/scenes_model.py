"""Small text-to-image networks for captioned scenes, as diffusers' folders describe them, and their tokenizer.

"sd" is a UNet that predicts noise at the levels of Stable Diffusion and reads one CLIP text encoder; "sd3" is an MM-DiT
that predicts the velocity of rectified flow and reads two. Both make pixels: there is no autoencoder.
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from asyncpatch_jax import timefield
from asyncpatch_jax.data import scenes
from asyncpatch_jax.pretrained.folders import schedulers
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.networks import clip, sd3, unet2d
from asyncpatch_jax.types import Condition, FewTimes, Image, Spans, TimeField
from launch.shared import small_networks
from launch.shared.small_networks import Config

FAMILIES = ("sd", "sd3")
LENGTH = 12  # tokens of a caption; the longest has 9
_START, _END = "<|startoftext|>", "<|endoftext|>"
_TEXT_WIDTH = 64
_PATCH = 4  # pixels: tokens are as many as the UNet has cells where it reads the text
_FLOW: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def _mmdit(size: int, heads: int, head_dim: int, layers: int) -> Config:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": size,
        "in_channels": 1,
        "out_channels": 1,
        "patch_size": _PATCH,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "caption_projection_dim": heads * head_dim,
        "joint_attention_dim": 2 * _TEXT_WIDTH,
        "pooled_projection_dim": 2 * _TEXT_WIDTH,
        "pos_embed_max_size": size // _PATCH,
        "qk_norm": "rms_norm",
    }


def text_config(*, projected: bool) -> Config:
    """config.json of a CLIP text encoder for captions."""
    vocabulary = vocab()
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": len(vocabulary),
        "hidden_size": _TEXT_WIDTH,
        "intermediate_size": 4 * _TEXT_WIDTH,
        "projection_dim": _TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": vocabulary[_START],
        "eos_token_id": vocabulary[_END],
        "pad_token_id": vocabulary[_END],
    }


def configs(family: str, *, tiny: bool = False, size: int = 24) -> dict[str, Config]:
    """config.json of each component, by the name of its folder.

    Args:
        tiny: networks that do not learn anything, for a try.

    Raises:
        ValueError: unknown family.
    """
    if family == "sd":
        shape: Config = {"widths": (8, 8, 16), "heads": 2} if tiny else {}
        unet = small_networks.unet(size, 1, _TEXT_WIDTH, **shape)
        return {"unet": unet, "text_encoder": text_config(projected=False), "scheduler": small_networks.LEVELS}
    if family == "sd3":
        mmdit = _mmdit(size, 2, 8, 2) if tiny else _mmdit(size, 4, 32, 6)
        text = text_config(projected=True)
        return {"transformer": mmdit, "text_encoder": text, "text_encoder_2": text, "scheduler": _FLOW}
    raise ValueError(f"expected a family out of {', '.join(FAMILIES)}, got {family!r}")


@functools.cache
def _bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair encoding in which every word of the captions is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    letters = [chr(ord("a") + i) for i in range(26)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
    )
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # each word once: what is frequent does not matter where all words become whole
    words = sorted({word for caption in scenes.captions() for word in caption.text.split()})
    backend.train_from_iterator([" ".join([*letters, *words])], trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    # the trainer numbers last letters in another order in every process, and a network knows words by number
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    # CLIP's own come last: the largest id ends a text
    return {token: i for i, token in enumerate([*tokens, _START, _END])}, merges


def vocab() -> dict[str, int]:
    """Ids of all tokens."""
    return _bpe()[0]


def write_tokenizer(folder: epath.PathLike) -> None:
    """Write the captions' tokenizer as CLIP's: vocab.json, merges.txt and tokenizer_config.json."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _bpe()
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
        "do_lower_case": True,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


@functools.cache
def caption_ids() -> tuple[tuple[int, ...], ...]:
    """Token ids of all captions, and of the empty text after them: what its tokenizer makes of them."""
    vocabulary = vocab()
    texts = [caption.text for caption in scenes.captions()] + [""]

    def ids(text: str) -> tuple[int, ...]:
        words = [vocabulary[f"{word}</w>"] for word in text.split()]
        return tuple(([vocabulary[_START], *words] + [vocabulary[_END]] * LENGTH)[:LENGTH])

    return tuple(map(ids, texts))


class Captioned(nn.Module):
    """A text-to-image network and its text encoders as one, told library times and the number of a caption.

    Attributes:
        denoiser: a `UNet2DCondition`, or an `SD3Transformer` with two encoders.
        encoders: CLIP text encoders.
        ids: token ids of all captions; the last are those of no caption.
        scheduler: what the denoiser's times are.
    """

    denoiser: nn.Module
    encoders: tuple[nn.Module, ...]
    ids: tuple[tuple[int, ...], ...]
    scheduler: Scheduler

    @property
    def num_classes(self) -> int:
        """The label that means no caption."""
        return len(self.ids) - 1

    def __call__(
        self, x: Image, t: TimeField | FewTimes, cond: Condition, *, train: bool = False
    ) -> tuple[Image, dict[str, jax.Array]]:
        told = timefield.mapped(t, self.scheduler.timestep)
        return self.denoiser(x, told, self.condition(cond.label))

    def condition(self, label: jax.Array, spans: Spans | None = None) -> Condition:
        """What the denoiser is told of captions [b]: as Stable Diffusion's and Stable Diffusion 3's pipelines do."""
        ids = jnp.asarray(np.array(self.ids, np.int32))[label]
        texts = [encoder(ids) for encoder in self.encoders]
        if len(texts) == 1:
            return Condition(tokens=texts[0].last, spans=spans)
        tokens, pooled = ([getattr(text, part) for text in texts] for part in ("penultimate", "projected"))
        return Condition(tokens=jnp.concatenate(tokens, -1), pooled=jnp.concatenate(pooled, -1), spans=spans)


def captioned(configs: dict[str, Config]) -> Captioned:
    """The network of `configs`."""
    denoiser = unet2d.from_config(configs["unet"]) if "unet" in configs else sd3.from_config(configs["transformer"])
    encoders = tuple(clip.from_config(config) for name, config in configs.items() if name.startswith("text_encoder"))
    return Captioned(denoiser, encoders, caption_ids(), schedulers.from_config(configs["scheduler"]))


def components(configs: dict[str, Config], params: Any) -> dict[str, Any]:
    """The parameters of a `Captioned`, by the name of each component's folder."""
    encoders = sorted(name for name in configs if name.startswith("text_encoder"))
    first = next(name for name in configs if name in ("unet", "transformer"))
    return {first: params["denoiser"]} | {name: params[f"encoders_{i}"] for i, name in enumerate(encoders)}


def index(family: str, configs: dict[str, Config]) -> Config:
    """model_index.json; what public pipelines have and this one has not is listed as nothing."""
    listed: Config = {name: [None, None] for name in ("vae", "safety_checker", "feature_extractor", "image_encoder")}
    name = "StableDiffusionPipeline" if family == "sd" else "StableDiffusion3Pipeline"
    if family == "sd3":
        listed = {name: [None, None] for name in ("vae", "text_encoder_3", "tokenizer_3", "image_encoder")}
    for part, config in configs.items():
        kind = config.get("_class_name") or config["architectures"][0]
        listed[part] = ["transformers" if part.startswith("text_encoder") else "diffusers", kind]
        if part.startswith("text_encoder"):
            listed[part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    return {"_class_name": name, "_diffusers_version": "0.40.0", **listed}


def init(model: Captioned, key: jax.Array, size: int) -> Any:
    """Parameters to begin training with; an MM-DiT's layers begin as the identity (adaLN-zero, Peebles & Xie 2022)."""
    example = jnp.zeros((1, size, size, 1)), timefield.constant(1.0, 1), Condition(label=jnp.zeros(1, jnp.int32))
    params = jax.jit(model.init)(key, *example)["params"]
    if isinstance(model.denoiser, unet2d.UNet2DCondition):
        return params

    def begin(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith("pos_embed"):
            return jnp.asarray(_positions(model.denoiser.table, leaf.shape[-1]))
        last = name.endswith(("norm1.linear.kernel", "norm1_context.linear.kernel", "proj_out.kernel"))
        return jnp.zeros_like(leaf) if last else leaf

    return jax.tree_util.tree_map_with_path(begin, params)


def _positions(side: int, width: int) -> np.ndarray:
    """Sines and cosines of rows and columns [1, side^2, width], as diffusers initialises the table."""
    freqs = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * freqs
    line = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    columns, rows = np.broadcast_to(line[None], (side, side, width // 2)), np.repeat(line[:, None], side, 1)
    return np.concatenate([columns, rows], -1).reshape(1, side * side, width).astype(np.float32)
