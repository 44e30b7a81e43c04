"""Reading a component's config.json: what a module takes from it, and a clear error for what it does not implement."""

from collections.abc import Mapping
from typing import Any

# settings of text generation and of saving, which transformers writes into the config.json of any model
TRANSFORMERS = {
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
}  # fmt: skip


def check(config: Mapping[str, Any], name: str, used: set[str], fixed: Mapping[str, Any], ignored: set[str]) -> None:
    """Refuse a configuration that the module `name` would not compute as PyTorch does.

    Args:
        config: the content of config.json.
        name: of the module, for the error.
        used: settings that the module reads.
        fixed: settings of which one value is implemented; an absent setting has it.
        ignored: settings that do not change the computation. Names that begin with "_" are ignored too.

    Raises:
        ValueError: a setting of another value, or of an unknown name that is set to something.
    """
    for key, value in config.items():
        if key in fixed and value != fixed[key]:
            raise ValueError(f"expected {key} = {fixed[key]!r} in the config.json of {name}, got {value!r}")
        unknown = not key.startswith("_") and key not in used and key not in fixed and key not in ignored
        if unknown and value not in (None, False):
            raise ValueError(f"expected a config.json of {name}, got the unknown setting {key} = {value!r}")
