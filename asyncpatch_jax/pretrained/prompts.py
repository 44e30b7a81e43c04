"""Prompts to what each family's network is conditioned on, as diffusers' pipelines compute it.

"sd" (Stable Diffusion 1 and 2): the last states of one CLIP encoder. "sdxl": the states before the last layer of two,
side by side; the second one's projection is `pooled`. "sd3": the same two, then T5's tokens; both projections are
`pooled`. "flux" and "kontext": T5's tokens; CLIP's `pooled`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Float, Int

from asyncpatch_jax.pretrained.clip import TextFeatures
from asyncpatch_jax.pretrained.spans import Stream
from asyncpatch_jax.pretrained.tokenizers import Tokenizer, read_tokenizer
from asyncpatch_jax.types import Condition

_ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"}
# None: CLIP's, as long as its folder says; a number: T5's, as long as diffusers has it
_LENGTHS: dict[str, dict[str, int | None]] = {
    "sd": {"tokenizer": None},
    "sdxl": {"tokenizer": None, "tokenizer_2": None},
    "sd3": {"tokenizer": None, "tokenizer_2": None, "tokenizer_3": 256},
    "flux": {"tokenizer": None, "tokenizer_2": 512},
    "kontext": {"tokenizer": None, "tokenizer_2": 512},
}
# Stable Diffusion 3 was trained with T5's tokens left out at times
_OPTIONAL = {"tokenizer_3"}
# prompts that are encoded at once
_ROWS = 8

Encoded = tuple[Float[Array, "u l d"], Float[Array, "u p"] | None]


def read_tokenizers(family: str, folders: Mapping[str, epath.PathLike]) -> dict[str, Tokenizer]:
    """The tokenizers of a pipeline, with the lengths of its texts.

    Args:
        folders: by name, "tokenizer", "tokenizer_2", ...: `Pretrained.tokenizers`.

    Raises:
        ValueError: an unknown family, or a tokenizer that is missing; T5's of Stable Diffusion 3 may be.
    """
    names = _names(family)
    _expect("tokenizers", [name for name in names if name not in _OPTIONAL], folders)
    return {name: read_tokenizer(folders[name], _LENGTHS[family][name]) for name in names if name in folders}


def streams(
    family: str,
    components: Mapping[str, Any],
    tokenizers: Mapping[str, Tokenizer],
    *,
    t5_length: int | None = None,
) -> list[Stream]:
    """The texts among a network's tokens, for `spans`: whose they are, and where they begin.

    Args:
        t5_length: as for `encode_prompts`.
    """
    tokenizers = _with_length(family, tokenizers, t5_length)
    if family in ("flux", "kontext"):
        return [(tokenizers["tokenizer_2"], 0)]
    found = [(tokenizers["tokenizer"], 0)]
    if family == "sd3" and "text_encoder_3" in components and "tokenizer_3" in tokenizers:
        found.append((tokenizers["tokenizer_3"], tokenizers["tokenizer"].length))
    return found


def encode_prompts(
    family: str,
    components: Mapping[str, Any],
    tokenizers: Mapping[str, Tokenizer],
    prompts: Sequence[str],
    negatives: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    t5_length: int | None = None,
    width: int | None = None,
    zero_negatives: bool = True,
) -> tuple[Condition, Condition]:
    """What the network is told of prompts, and of what they are guided away from.

    Every text is encoded once, however often it is there, and a few at a time: programs are compiled for 1, 2, 4 and 8
    texts.

    Args:
        family: "sd", "sdxl", "sd3", "flux" or "kontext".
        components: `text_encoder`, `text_encoder_2`, ..., each with `module` and `params`.
        tokenizers: from `read_tokenizers`.
        negatives: one for each prompt; None: "" for all, or zeros in place of a text's embeddings (SDXL).
        size: SDXL only, height and width of the images in pixels.
        guidance: FLUX only, the scale that the distilled network is told; None for a network that is told none.
        t5_length: tokens of T5's texts, `max_sequence_length` of diffusers; None: 256 of SD3, 512 of FLUX. 0, SD3 only:
            CLIP's tokens alone.
        width: of the network's text, `joint_attention_dim`; SD3 without `text_encoder_3` needs it, and reads zeros in
            the place of T5's tokens.
        zero_negatives: SDXL only, `force_zeros_for_empty_prompt` of model_index.json.

    Raises:
        ValueError: an encoder or tokenizer that is missing, lists that do not match, a size or width that is missing.
    """
    _check(family, components, tokenizers, prompts, negatives, size)
    if family == "sd3":
        width = components["text_encoder_3"].module.width if "text_encoder_3" in components else width
        if width is None:
            raise ValueError("expected the width of the network's text (joint_attention_dim): sd3 without T5, got none")
    zeros = family == "sdxl" and negatives is None and zero_negatives
    negatives = [""] * len(prompts) if negatives is None else negatives
    rows = {text: i for i, text in enumerate(dict.fromkeys([*prompts, *([] if zeros else negatives)]))}
    read = {
        name: of for name, of in _with_length(family, tokenizers, t5_length).items() if _ENCODERS[name] in components
    }
    ids = {name: tokenizer.encode(list(rows)).ids for name, tokenizer in read.items()}
    modules = tuple((_ENCODERS[name], components[_ENCODERS[name]].module) for name in read)
    params = {_ENCODERS[name]: components[_ENCODERS[name]].params for name in read}
    padding = (_LENGTHS["sd3"]["tokenizer_3"] if t5_length is None else t5_length, width)
    tokens, pooled = _in_chunks(partial(_encode, family, modules, padding, params), ids)
    shared = _shared(family, len(prompts), size, guidance)

    def condition(texts: Sequence[str]) -> Condition:
        index = np.array([rows[text] for text in texts])
        return Condition(tokens=tokens[index], pooled=None if pooled is None else pooled[index], **shared)

    positive = condition(prompts)
    if zeros:
        nothing = {name: jnp.zeros_like(getattr(positive, name)) for name in ("tokens", "pooled")}
        return positive, positive._replace(**nothing)
    return positive, condition(negatives)


def _check(
    family: str,
    components: Mapping[str, Any],
    tokenizers: Mapping[str, Tokenizer],
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    size: tuple[int, int] | None,
) -> None:
    names = _names(family)
    _expect("text encoders", [_ENCODERS[name] for name in names if name not in _OPTIONAL], components)
    _expect("tokenizers", [n for n in names if n not in _OPTIONAL or _ENCODERS[n] in components], tokenizers)
    if not prompts or (negatives is not None and len(negatives) != len(prompts)):
        given = "none" if negatives is None else len(negatives)
        raise ValueError(f"expected prompts, and as many negative ones, got {len(prompts)} and {given}")
    if family == "sdxl" and size is None:
        raise ValueError("expected the size of the images, which sdxl is told, got none")


def _with_length(family: str, tokenizers: Mapping[str, Tokenizer], t5_length: int | None) -> dict[str, Tokenizer]:
    """The tokenizers that a family reads, T5's with this length; without T5's at 0, if the family can do without."""
    found = {name: tokenizers[name] for name in _names(family) if name in tokenizers}
    for name in found.keys() & {name for name, length in _LENGTHS[family].items() if length}:
        if t5_length == 0 and name in _OPTIONAL:
            del found[name]
        elif t5_length is not None:
            found[name] = replace(found[name], length=t5_length)
    return found


def _names(family: str) -> list[str]:
    if family not in _LENGTHS:
        raise ValueError(f"expected a family of {', '.join(_LENGTHS)}, got {family!r}")
    return list(_LENGTHS[family])


def _expect(what: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"expected the {what} {', '.join(names)}, got none for {', '.join(missing)}")


def _shared(family: str, batch: int, size: tuple[int, int] | None, guidance: float | None) -> dict[str, jax.Array]:
    if family == "sdxl":
        # whole images: as large as what was asked for, and nothing cropped
        return {"sizes": jnp.tile(jnp.array([[*size, 0, 0, *size]], jnp.float32), (batch, 1))}
    if family in ("flux", "kontext") and guidance is not None:
        return {"guidance": jnp.full((batch,), guidance, jnp.float32)}
    return {}


def _in_chunks(encode: Any, ids: Mapping[str, Int[np.ndarray, "_u _l"]]) -> Encoded:
    """All rows, at most `_ROWS` at once, in chunks of powers of two: few shapes, and so few programs."""
    total = len(next(iter(ids.values())))
    chunk = min(_ROWS, 1 << (total - 1).bit_length())
    places = [np.minimum(np.arange(i, i + chunk), total - 1) for i in range(0, total, chunk)]
    parts = [encode({name: rows[place] for name, rows in ids.items()}) for place in places]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:total], *parts)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    family: str,
    modules: tuple[tuple[str, nn.Module], ...],
    padding: tuple[int | None, int | None],
    params: Mapping[str, Any],
    ids: Mapping[str, Int[Array, "_u _l"]],
) -> Encoded:
    """Tokens and pooled embeddings of texts; what an encoder says that no one reads is not computed.

    Stable Diffusion 3 without T5 has `padding` in its place: this many tokens of this width.
    """
    encoder_of = dict(modules)

    def run(tokenizer: str) -> Any:
        name = _ENCODERS[tokenizer]
        return encoder_of[name].apply({"params": params[name]}, ids[tokenizer])

    first: TextFeatures = run("tokenizer")
    if family == "sd":
        return first.last, None
    if family in ("flux", "kontext"):
        return run("tokenizer_2"), first.pooled
    second: TextFeatures = run("tokenizer_2")
    tokens = jnp.concatenate([first.penultimate, second.penultimate], axis=-1)
    if family == "sdxl":
        return tokens, second.projected
    pooled = jnp.concatenate([first.projected, second.projected], axis=-1)
    if "text_encoder_3" in encoder_of:
        third = run("tokenizer_3")
    else:
        third = jnp.zeros((tokens.shape[0], *padding), tokens.dtype)
    if third.shape[-1] < tokens.shape[-1]:
        raise ValueError(f"expected text of a width of at least {tokens.shape[-1]}, CLIP's two, got {third.shape[-1]}")
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, third.shape[-1] - tokens.shape[-1])))
    return jnp.concatenate([tokens, third], axis=1), pooled
