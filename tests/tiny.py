"""Tiny networks, tokenizers and folders in the public formats, with random weights."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.models.t5.modeling_t5 import T5LayerNorm

from asyncpatch_jax.pretrained.folders import names

TEXTS = (
    "a cat eating a sandwich on the street",
    "two dogs and a red car, a white sheep and a green apple",
    "a photo of a horse playing basketball in a photograph",
)


def randomised(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter drawn anew, also those that start at 0 or 1; in the place of its first, ready for inference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in sorted(net.named_parameters()):
            # what fans in keeps the size of activations; norms stay about 1
            scale = param[0].numel() ** -0.5 if param.ndim > 1 else 0.2
            noise = scale * torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.copy_(noise + (1.0 if param.ndim == 1 and name.endswith("weight") else 0.0))
    return net.eval()


def make_t5_norm_wide(monkeypatch) -> None:
    """transformers' T5 takes the variance in float32 whatever the type, which costs 5e-6; from now on, it does not."""

    def forward(self, x):
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


def state(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """A network's tensors as `names.from_torch` takes them."""
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


@functools.cache
def shapes(family, module):
    """Of the parameters of our module; `family` is its file in `pretrained.networks`."""
    return jax.eval_shape(module.init, jax.random.key(0), *family.example(module))["params"]


def built(family, config, net: torch.nn.Module, dtype):
    """Our module for a config.json, and a network's weights as its parameters, which bfloat16 computes with too."""
    module = family.from_config(config, dtype)
    kind = jnp.float32 if dtype == jnp.bfloat16 else dtype
    return module, jax.tree.map(lambda p: np.asarray(p, kind), names.from_torch(shapes(family, module), state(net)))


class WideSinusoid(torch.nn.Module):
    """diffusers' `Timesteps`, cosines first, which computes in float32 whatever the network's type."""

    def __init__(self, width: int):
        super().__init__()
        self.freqs = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))

    def forward(self, t):
        angles = t.double()[..., None] * self.freqs
        return torch.cat([angles.cos(), angles.sin()], -1)


def clip_tokenizer(folder: Path, *, pad: str = "<|endoftext|>", length: int = 77) -> int:
    """A folder of CLIP's tokenizer, as Stable Diffusion has it, trained on `TEXTS`; the size of its vocabulary.

    The map of special tokens says what pads, whatever the configuration says: so it is in Stable Diffusion 2.
    """
    bpe = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" is the first, as in the public files
    trainer = trainers.BpeTrainer(vocab_size=640, end_of_word_suffix="</w>", initial_alphabet=letters)
    bpe.train_from_iterator(TEXTS, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {word: i for i, word in enumerate([*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**special, "pad_token": "<|endoftext|>", "model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
    return len(vocab)


def t5_tokenizer(folder: Path, *, length: int = 512) -> int:
    """A folder of T5's tokenizer, trained on `TEXTS`; the size of its vocabulary."""
    unigram = tokenizers.Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    # each word by itself, so that spaces are never tokens of their own
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    unigram.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    unigram.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    unigram.train_from_iterator(TEXTS, trainer)
    unigram.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    unigram.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {**special, "model_max_length": length, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return unigram.get_vocab_size()


def bert_tokenizer(folder: Path) -> int:
    """A folder of BERT's tokenizer, as bert-base-uncased has it, with letters and words of `TEXTS`; its vocabulary."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = sorted({word for text in TEXTS for word in text.replace(",", "").split()} - set(letters))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    return len(vocab)
