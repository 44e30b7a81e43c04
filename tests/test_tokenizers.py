"""Tokenizers from folders: the ids of transformers, padding by the folder's rules, and what is cut."""

import json
import sys

import numpy as np
import pytest
from transformers import BertTokenizer, CLIPTokenizer, T5Tokenizer

from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer, read_tokenizer
from tests import tiny

PROMPTS = ["a red dog, and two dogs!", "An Émigré's  35mm photograph ...", "", "a sheep\n\ton the STREET"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    tiny.clip_tokenizer(root / "clip")
    tiny.clip_tokenizer(root / "openclip", pad="!")
    tiny.t5_tokenizer(root / "t5")
    tiny.bert_tokenizer(root / "bert")
    return root


@pytest.mark.parametrize(
    ("name", "kind"),
    [("clip", CLIPTokenizer), ("openclip", CLIPTokenizer), ("t5", T5Tokenizer), ("bert", BertTokenizer)],
)
@pytest.mark.parametrize("length", [8, 40])
@pytest.mark.filterwarnings("ignore:.*cut from a prompt")
def test_ids_are_transformers(folders, name, kind, length):
    ours = read_tokenizer(folders / name, length).encode(PROMPTS)
    reference = kind.from_pretrained(folders / name)
    theirs = reference(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    np.testing.assert_array_equal(ours.ids, theirs.input_ids)
    np.testing.assert_array_equal(ours.mask, theirs.attention_mask.astype(bool))


def test_padding_is_the_folders(folders):
    clip = read_tokenizer(folders / "clip")
    assert clip.length == 77
    ids = clip.encode([""]).ids[0]
    assert ids[1] == clip.pad
    assert (ids[1:] == clip.pad).all()  # the end of text pads
    assert (read_tokenizer(folders / "openclip").encode([""]).ids[0, 2:] == 0).all()
    assert (read_tokenizer(folders / "t5").encode([""]).ids[0, 1:] == 0).all()


def test_newer_configurations_count_before_the_map(folders, tmp_path):
    """A tokenizer_config.json that lists its added tokens is complete, and the old map beside it is not asked."""
    target = tmp_path / "t5"
    tiny.t5_tokenizer(target)
    (target / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<unk>"}}))
    assert read_tokenizer(target).pad == 2
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": {}}))
    assert read_tokenizer(target).pad == 0


@pytest.mark.parametrize(("name", "cut"), [("clip", "street"), ("t5", "t")])
def test_what_is_cut_is_said(folders, name, cut):
    text = "a cat on the street"
    whole = len(read_tokenizer(folders / name, 50).offsets(text))
    exact = read_tokenizer(folders / name, whole).encode([text])
    assert exact.cut == ("",)
    with pytest.warns(UserWarning, match=f"cut from a prompt: .*{cut}"):
        short = read_tokenizer(folders / name, whole - 1).encode([text, "a cat"])
    assert text.endswith(short.cut[0])
    assert short.cut[0]
    assert short.cut[1] == ""
    assert short.ids[0, -1] == exact.ids[0, -1]  # the end is still told
    np.testing.assert_array_equal(short.ids[0, :-1], exact.ids[0, : whole - 2])


def test_a_sentencepiece_model_alone(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(tiny.TEXTS))
    folder = tmp_path / "t5"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(folder / "spiece"), vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    text = "a red car on the street"
    ids = read_tokenizer(folder, 40).encode([text]).ids[0]
    want = [*model.encode(text), 1]
    np.testing.assert_array_equal(ids, want + [0] * (40 - len(want)))


def test_errors_say_what_is_missing(tmp_path, folders, monkeypatch):
    with pytest.raises(ValueError, match=r"spiece.model in .*nothing"):
        read_tokenizer(tmp_path / "nothing")
    with pytest.raises(ValueError, match="at least 2"):
        read_tokenizer(folders / "clip", 1)
    with pytest.raises(ValueError, match=r"whole characters, got half of one at 2: .a .udcff"):
        read_tokenizer(folders / "clip").encode(["a \udcff"])
    with pytest.raises(ValueError, match="a list of texts"):
        read_tokenizer(folders / "clip").encode("a cat")
    empty = tmp_path / "t5"
    tiny.t5_tokenizer(empty)
    (empty / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="model_max_length"):
        read_tokenizer(empty)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"asyncpatch_jax\[text\]"):
        read_tokenizer(folders / "t5")


def test_a_tokenizer_is_a_setting(folders):
    tokenizer = read_tokenizer(folders / "clip")
    with pytest.raises(AttributeError):
        tokenizer.length = 3
    assert isinstance(tokenizer, Tokenizer)
