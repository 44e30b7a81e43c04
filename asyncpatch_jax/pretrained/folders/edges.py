"""Whether the parts of a pipeline fit each other: told by their settings alone, before any weights are read.

What does not fit often has shapes that work: ids beyond a table are NaN, latents of another autoencoder are noise.
"""

from collections.abc import Mapping
from typing import Any

from asyncpatch_jax.pretrained.folders import families
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.text.prompts import ENCODERS, OPTIONAL, embedding_widths
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer
from asyncpatch_jax.process import RectifiedFlow

_FLOWS = ("sd3", "flux", "kontext")
_PICTURES = (1, 3)


def check_parts(family: str, components: Mapping[str, Any], scheduler: Scheduler) -> None:
    """Refuse networks that do not fit each other; those that are missing are none of its business.

    Args:
        components: by name, each with its `module`; the denoiser is there.

    Raises:
        ValueError: a scheduler of another process, an autoencoder of other latents or of no pictures, text encoders of
            another network. Names both sides.
    """
    name = next(iter(families.COMPONENTS[family]))
    module = components[name].module
    if (family in _FLOWS) != isinstance(scheduler.process, RectifiedFlow):
        wanted = "a flow-match scheduler" if family in _FLOWS else "a scheduler of discrete levels"
        raise ValueError(f"expected {wanted} for the {name} of {family}, got one of {type(scheduler.process).__name__}")
    latents, _, cond = families.example(module)
    if "vae" in components:
        vae = components["vae"].module
        if vae.latent_channels != latents.shape[-1]:
            raise ValueError(
                f"expected a vae of {latents.shape[-1]} latent channels, which the {name} makes, got one of "
                f"{vae.latent_channels}"
            )
        if vae.channels not in _PICTURES:
            raise ValueError(f"expected a vae of pictures, which have 1 or 3 channels, got one of {vae.channels}")
    needed = [part for part in families.COMPONENTS[family] if part in ENCODERS.values() and part not in OPTIONAL]
    if not set(needed) <= components.keys():
        return
    told = cond.tokens.shape[-1], None if cond.pooled is None else cond.pooled.shape[-1]
    got = embedding_widths(family, components, told[0])
    if got != told:
        raise ValueError(
            f"expected text encoders of width {_widths(told)} for this {family} network, got {_widths(got)}"
        )


def check_tokenizers(family: str, components: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer]) -> None:
    """Refuse tokenizers whose ids or lengths their text encoders do not know.

    Raises:
        ValueError: names both.
    """
    for name, encoder in ENCODERS.items():
        if name in tokenizers and encoder in components:
            check_tokenizer(tokenizers[name], components[encoder].module, encoder)


def check_tokenizer(tokenizer: Tokenizer, module: Any, encoder: str) -> None:
    """Refuse a tokenizer that is not an encoder's own.

    Args:
        module: T5's encoder, or one that has the text encoder of CLIP or BLIP as `text`.
        encoder: its name, for errors.

    Raises:
        ValueError: more ids than the encoder has, longer texts, or another end of text.
    """
    text = getattr(module, "text", module)
    if tokenizer.size > text.vocab:
        raise ValueError(
            f"expected a tokenizer of at most {text.vocab} ids, which {encoder} knows, got {tokenizer.name} with "
            f"{tokenizer.size}"
        )
    most = getattr(text, "positions", tokenizer.length)
    if tokenizer.length > most:
        raise ValueError(
            f"expected texts of at most {most} tokens, which {encoder} has positions for, got {tokenizer.name} with "
            f"{tokenizer.length}"
        )
    # 2 stands in old configurations for the largest id of a text
    end = getattr(text, "eos", 2)
    if end != 2 and (got := tokenizer.backend.encode("").ids[-1:]) != [end]:
        raise ValueError(f"expected a tokenizer that ends texts with {end}, as {encoder} is told, got {got}")


def _widths(widths: tuple[int, int | None]) -> str:
    tokens, pooled = widths
    return f"{tokens}" if pooled is None else f"{tokens} and {pooled} (pooled)"
