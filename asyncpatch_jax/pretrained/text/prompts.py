"""Prompts to what each family's network is conditioned on, as diffusers' pipelines compute it.

"sd" (Stable Diffusion 1 and 2): the last states of one CLIP encoder. "sdxl": the states before the last layer of two,
side by side; the second one's projection is `pooled`. "sd3": the same two, then T5's tokens; both projections are
`pooled`. "flux" and "kontext": T5's tokens; CLIP's `pooled`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from asyncpatch_jax import sharding
from asyncpatch_jax.pretrained.networks.clip import TextFeatures
from asyncpatch_jax.pretrained.text.spans import Stream
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer, read_tokenizer
from asyncpatch_jax.types import Condition

ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"}
# None: CLIP's, as long as its folder says; a number: T5's, as long as diffusers has it
_LENGTHS: dict[str, dict[str, int | None]] = {
    "sd": {"tokenizer": None},
    "sdxl": {"tokenizer": None, "tokenizer_2": None},
    "sd3": {"tokenizer": None, "tokenizer_2": None, "tokenizer_3": 256},
    "flux": {"tokenizer": None, "tokenizer_2": 512},
    "kontext": {"tokenizer": None, "tokenizer_2": 512},
}
# encoders that a folder may leave out: Stable Diffusion 3 was trained to do without T5
OPTIONAL = {"text_encoder_3"}
# prompts that are encoded at once
_ROWS = 8

# of one text, on the host: its tokens, and what is pooled
Encoded = tuple[Float[np.ndarray, "l d"], Float[np.ndarray, "p"] | None]


def read_tokenizers(family: str, folders: Mapping[str, epath.PathLike]) -> dict[str, Tokenizer]:
    """The tokenizers of a pipeline, with the lengths of its texts.

    Args:
        folders: by name, "tokenizer", "tokenizer_2", ...: `Pretrained.tokenizers`.

    Raises:
        ValueError: an unknown family, or a tokenizer that is missing; T5's of Stable Diffusion 3 may be.
    """
    names = _names(family)
    _expect("tokenizers", [name for name in names if not _optional(name)], folders)
    return read_listed(family, folders)


def read_listed(family: str, folders: Mapping[str, epath.PathLike]) -> dict[str, Tokenizer]:
    """`read_tokenizers` of those that there are, be it none.

    Raises:
        ValueError: an unknown family, or a folder that holds no tokenizer.
    """
    lengths = {name: _LENGTHS[family][name] for name in _names(family) if name in folders}
    return {name: read_tokenizer(folders[name], length) for name, length in lengths.items()}


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
    mesh: Mesh | None = None,
    known: dict[str, Encoded] | None = None,
) -> tuple[Condition, Condition]:
    """What the network is told of prompts, and of what they are guided away from; arrays on the host.

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
        mesh: the devices that the encoders were loaded to.
        known: texts that were encoded before by the same encoders; new ones are added.

    Raises:
        ValueError: an encoder or tokenizer that is missing, or a tokenizer of another encoder; lists that do not match,
            a size or width that is missing.
    """
    _check(family, components, tokenizers, prompts, negatives, size)
    if family == "sd3":
        width = components["text_encoder_3"].module.width if "text_encoder_3" in components else width
        if width is None:
            raise ValueError("expected the width of the network's text (joint_attention_dim): sd3 without T5, got none")
    zeros = family == "sdxl" and negatives is None and zero_negatives
    negatives = [""] * len(prompts) if negatives is None else negatives
    known = {} if known is None else known
    new = [text for text in dict.fromkeys([*prompts, *([] if zeros else negatives)]) if text not in known]
    if new:
        read = _with_length(family, tokenizers, t5_length)
        read = {name: tokenizer for name, tokenizer in read.items() if ENCODERS[name] in components}
        ids = {name: tokenizer.encode(new).ids for name, tokenizer in read.items()}
        for name, rows in ids.items():
            module = components[ENCODERS[name]].module
            known_ids = getattr(module, "text", module).vocab
            if rows.max() >= known_ids:  # a table that is asked for more answers NaN
                raise ValueError(f"expected ids below {known_ids} for {ENCODERS[name]}, got {rows.max()} by {name}")
        modules = tuple((ENCODERS[name], components[ENCODERS[name]].module) for name in read)
        params = {ENCODERS[name]: components[ENCODERS[name]].params for name in read}
        padding = (_LENGTHS["sd3"]["tokenizer_3"] if t5_length is None else t5_length, width)
        known |= _in_chunks(partial(_encode, family, modules, padding, mesh, params), ids, new)
    shared = _shared(family, len(prompts), size, guidance)

    def condition(texts: Sequence[str]) -> Condition:
        tokens, pooled = zip(*(known[text] for text in texts), strict=True)
        read: dict[str, Any] = {"tokens": np.stack(tokens), "pooled": None if pooled[0] is None else np.stack(pooled)}
        return Condition(**read, **shared)

    positive = condition(prompts)
    if zeros:
        nothing = {name: np.zeros_like(getattr(positive, name)) for name in ("tokens", "pooled")}
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
    _expect("text encoders", [ENCODERS[name] for name in _names(family) if not _optional(name)], components)
    expect_tokenizers(family, components, tokenizers)
    if not prompts or (negatives is not None and len(negatives) != len(prompts)):
        given = "none" if negatives is None else len(negatives)
        raise ValueError(f"expected prompts, and as many negative ones, got {len(prompts)} and {given}")
    if family == "sdxl" and size is None:
        raise ValueError("expected the size of the images, which sdxl is told, got none")


def _with_length(family: str, tokenizers: Mapping[str, Tokenizer], t5_length: int | None) -> dict[str, Tokenizer]:
    """The tokenizers that a family reads, T5's with this length; without T5's at 0, if the family can do without."""
    found = {name: tokenizers[name] for name in _names(family) if name in tokenizers}
    for name in found.keys() & {name for name, length in _LENGTHS[family].items() if length}:
        if t5_length == 0 and _optional(name):
            del found[name]
        elif t5_length is not None:
            found[name] = replace(found[name], length=t5_length)
    return found


def expect_tokenizers(family: str, components: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a family's encoders without their tokenizers.

    Raises:
        ValueError: one is missing.
    """
    _expect("tokenizers", [n for n in _names(family) if not _optional(n) or ENCODERS[n] in components], given)


def embedding_widths(family: str, components: Mapping[str, Any], width: int) -> tuple[int, int | None]:
    """The widths of a text's tokens and of what is pooled, by the encoders' settings.

    Args:
        width: of the network's text, as for `encode_prompts`.

    Raises:
        ValueError: encoders that do not fit each other.
    """
    modules = {name: part.module for name, part in components.items()}
    first: Any = modules["text_encoder"]
    second: Any = modules.get("text_encoder_2")  # where the family has one, `_check` has seen it
    if family == "sd":
        return first.text.width, None
    if family in ("flux", "kontext"):
        return second.width, first.text.width
    both = first.text.width + second.text.width
    if family == "sdxl":
        return both, second.projection
    third = modules["text_encoder_3"].width if "text_encoder_3" in modules else width
    if third < both:
        raise ValueError(f"expected text of a width of at least {both}, CLIP's two, got {third}")
    return third, first.projection + second.projection


def _optional(tokenizer: str) -> bool:
    return ENCODERS[tokenizer] in OPTIONAL


def _names(family: str) -> list[str]:
    if family not in _LENGTHS:
        raise ValueError(f"expected a family of {', '.join(_LENGTHS)}, got {family!r}")
    return list(_LENGTHS[family])


def _expect(what: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"expected the {what} {', '.join(names)}, got none for {', '.join(missing)}")


def _shared(family: str, batch: int, size: tuple[int, int] | None, guidance: float | None) -> dict[str, Any]:
    if family == "sdxl" and size is not None:
        # whole images: as large as what was asked for, and nothing cropped
        return {"sizes": np.tile(np.array([[*size, 0, 0, *size]], np.float32), (batch, 1))}
    if family in ("flux", "kontext") and guidance is not None:
        return {"guidance": np.full((batch,), guidance, np.float32)}
    return {}


def _in_chunks(
    encode: Callable[[dict[str, np.ndarray]], tuple[jax.Array, jax.Array | None]],
    ids: Mapping[str, Int[np.ndarray, "_u _l"]],
    texts: Sequence[str],
) -> dict[str, Encoded]:
    """All texts, at most `_ROWS` at once, in chunks of powers of two: few shapes, and so few programs."""
    total = len(texts)
    chunk = min(_ROWS, 1 << (total - 1).bit_length())
    found: dict[str, Encoded] = {}
    for first in range(0, total, chunk):
        place = np.minimum(np.arange(first, first + chunk), total - 1)
        tokens, pooled = jax.device_get(encode({name: rows[place] for name, rows in ids.items()}))
        for row, index in enumerate(place):
            found[texts[index]] = tokens[row], None if pooled is None else pooled[row]
    return found


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _encode(
    family: str,
    modules: tuple[tuple[str, nn.Module], ...],
    padding: tuple[int | None, int | None],
    mesh: Mesh | None,
    params: Mapping[str, Any],
    ids: Mapping[str, Int[Array, "_u _l"]],
) -> tuple[Float[Array, "u l d"], Float[Array, "u p"] | None]:
    """Tokens and pooled embeddings of texts; what an encoder says that no one reads is not computed."""
    with sharding.using(mesh):
        texts = {name: sharding.constrain(rows, "batch", None) for name, rows in ids.items()}
        encoded = _embeddings(family, modules, padding, params, texts)
        # whole on every device, of every process
        return jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), encoded)


def _embeddings(
    family: str,
    modules: tuple[tuple[str, nn.Module], ...],
    padding: tuple[int | None, int | None],
    params: Mapping[str, Any],
    ids: Mapping[str, Int[Array, "_u _l"]],
) -> tuple[Float[Array, "u l d"], Float[Array, "u p"] | None]:
    """Stable Diffusion 3 without T5 has `padding` in its place: this many tokens of this width."""
    encoder_of = dict(modules)

    def run(tokenizer: str) -> Any:
        name = ENCODERS[tokenizer]
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
    projected: Any = [first.projected, second.projected]
    pooled = jnp.concatenate(projected, axis=-1)
    if "text_encoder_3" in encoder_of:
        third = run("tokenizer_3")
    else:
        third = jnp.zeros((tokens.shape[0], *padding), tokens.dtype)
    if third.shape[-1] < tokens.shape[-1]:
        raise ValueError(f"expected text of a width of at least {tokens.shape[-1]}, CLIP's two, got {third.shape[-1]}")
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, third.shape[-1] - tokens.shape[-1])))
    return jnp.concatenate([tokens, third], axis=1), pooled
