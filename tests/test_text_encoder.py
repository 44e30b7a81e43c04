"""Text encoders of three kinds against transformers' own, on random weights."""

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from asyncpatch_jax.pretrained.text_encoder import read_text_encoder
from tests import tiny

TEXTS = ["a red dog", "two cats on the street and a dog", ""]
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tokenizer(folder, length=8):
    vocab = {word: i for i, word in enumerate([*SPECIAL.values(), *dict.fromkeys(" ".join(TEXTS).split())])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pairs = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **SPECIAL)
    fast.save_pretrained(folder)
    return len(vocab)


def bert(folder):
    size = tokenizer(folder)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=size, max_position_embeddings=12, **settings))
    tiny.randomised(model, seed=0).save_pretrained(folder)
    return model, folder


def clip(folder):
    size = tokenizer(folder / "tokenizer_2")
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    config = transformers.CLIPTextConfig(vocab_size=size, max_position_embeddings=8, eos_token_id=3, **settings)
    model = transformers.CLIPTextModel(config)
    tiny.randomised(model, seed=0).save_pretrained(folder / "text_encoder_2")
    return model, folder / "text_encoder_2"


def t5(folder):
    size = tokenizer(folder)
    settings = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 20,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    }
    model = transformers.T5EncoderModel(transformers.T5Config(vocab_size=size, **settings))
    tiny.randomised(model, seed=0).save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("make", [bert, clip, t5])
def test_vectors_are_those_of_transformers(make, tmp_path):
    """Of all tokens that count; and padding is seen by none of them."""
    model, folder = make(tmp_path)
    encoder = read_text_encoder(folder, 7)
    with pytest.warns(UserWarning, match="cut from a prompt: 'and a dog'"):
        vectors, mask = encoder.encode(TEXTS)
    ids = encoder.tokens(["x"]).ids  # an unknown word
    assert (ids[0, 1], encoder.width, vectors.shape) == (0, 16, (3, 7, 16))
    for row, text in enumerate(TEXTS):
        alone = encoder.tokenizer.backend.encode(text).ids
        kept = [*alone[:6], alone[-1]] if len(alone) > 7 else alone
        with torch.no_grad():
            theirs = model.eval()(torch.tensor([kept])).last_hidden_state[0].numpy()
        assert mask[row].sum() == len(kept)
        np.testing.assert_allclose(vectors[row, : len(kept)], theirs, atol=2e-5)
    assert np.isfinite(np.asarray(vectors)).all()
    assert np.asarray(theirs).std() > 0.1


def test_an_encoder_is_known_again(tmp_path):
    _, folder = bert(tmp_path / "a")
    here = read_text_encoder(folder).digest
    assert here == read_text_encoder(folder.rename(tmp_path / "b")).digest
    transformers.BertModel.from_pretrained(tmp_path / "b").half().save_pretrained(tmp_path / "b")
    assert read_text_encoder(tmp_path / "b").digest != here


def test_what_does_not_fit_is_said(tmp_path):
    _, folder = bert(tmp_path / "a")
    with pytest.raises(ValueError, match=r"at most 12 tokens for .*a, got a length of 13"):
        read_text_encoder(folder, 13)
    with pytest.raises(ValueError, match="texts to encode, got none"):
        read_text_encoder(folder).encode([])
    with pytest.raises(ValueError, match=r"expected vocab.json and merges.txt, .* in .*none, got nothing"):
        read_text_encoder(folder, tokenizer=tmp_path / "none")
    (tmp_path / "b").mkdir()
    tokenizer(tmp_path / "b")
    vocab = (tmp_path / "b" / "tokenizer.json").read_text().replace('"street": ', '"street": 9')
    (tmp_path / "b" / "tokenizer.json").write_text(vocab)
    with pytest.raises(ValueError, match=r"a tokenizer of at most \d+ ids for .*a, got 9\d+ in .*b"):
        read_text_encoder(folder, tokenizer=tmp_path / "b")
