"""Reading a component's config.json: types and bounds that the schemas of all networks share.

Each network's file declares its own schema, a `Settings`, beside its `from_config`. Bounds are a few times what any
published network has: they keep a broken file from building something without end, and judge nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, field

from asyncpatch_jax import schema
from asyncpatch_jax.schema import Settings

S = TypeVar("S", bound=Settings)

Count = Annotated[int, Meta(ge=1, le=512)]  # of layers that are one loop, of heads, of groups
Few = Annotated[int, Meta(ge=1, le=8)]  # of layers that are written out
Width = Annotated[int, Meta(ge=1, le=2**17)]
Channels = Annotated[int, Meta(ge=1, le=1024)]  # of images and latents
Side = Annotated[int, Meta(ge=1, le=1024)]  # of images that an encoder reads, in pixels
Vocabulary = Annotated[int, Meta(ge=1, le=2**22)]
Length = Annotated[int, Meta(ge=2, le=2**17)]  # of texts
Id = Annotated[int, Meta(ge=0, lt=2**22)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
# of each level of a UNet or an autoencoder
Widths = Annotated[tuple[Width, ...], Meta(min_length=1, max_length=8)]

# settings of text generation and of saving, which transformers writes into the config.json of any model
TRANSFORMERS = frozenset({
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "torchscript", "return_dict",
    "output_attentions", "output_hidden_states", "output_past", "output_scores", "return_dict_in_generate",
    "use_bfloat16", "use_cache", "tf_legacy_loss", "pruned_heads", "chunk_size_feed_forward", "is_encoder_decoder",
    "is_decoder", "tie_word_embeddings", "tie_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "id2label", "label2id", "finetuning_task",
    "problem_type", "prefix", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values",
    "tokenizer_class", "task_specific_params",
})  # fmt: skip


class _Named(Struct, frozen=True):
    """What diffusers and transformers call the class of a network."""

    diffusers: str | None = field(default=None, name="_class_name")
    architectures: tuple[str, ...] | None = None


def read(config: Mapping[str, Any], settings: type[S], name: str) -> S:
    """The settings that a config.json of the network `name` makes.

    Raises:
        ValueError: as `schema.convert`: the network would not compute what PyTorch does.
    """
    return schema.convert(config, settings, f"the config.json of {name}")


def class_name(config: Mapping[str, Any]) -> str | None:
    """The class of diffusers or transformers that a config.json says to be of; None if it says nothing.

    Raises:
        ValueError: it says something else than a name.
    """
    named = schema.convert(config, _Named, "a config.json")
    return named.diffusers or next(iter(named.architectures or ()), None)


def encoder(given: Any, dtype: Any) -> dict[str, Any]:
    """The size of a transformer, by the names that transformers gives it, as attributes of a module.

    Raises:
        ValueError: heads that do not divide the width, or (of images) patches larger than they are.
    """
    expect_divides("a hidden_size", [given.hidden_size], given.num_attention_heads, "heads")
    patch, size = getattr(given, "patch_size", 0), getattr(given, "image_size", 0)
    if patch > size:
        raise ValueError(f"expected a patch_size within image_size = {size}, got {patch}")
    return {
        "width": given.hidden_size,
        "mlp": given.intermediate_size,
        "layers": given.num_hidden_layers,
        "heads": given.num_attention_heads,
        "dtype": dtype,
    }


def expect_divides(name: str, widths: Sequence[int], parts: int, what: str) -> None:
    """Refuse widths that cannot be split in equal parts.

    Args:
        name: of the setting with the widths.
        what: the parts are.

    Raises:
        ValueError: names the setting.
    """
    if wrong := [width for width in widths if width % parts]:
        raise ValueError(f"expected {name} that {parts} {what} divide, got {wrong[0]}")
